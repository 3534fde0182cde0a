"""Which axes does attention with grouped queries and rotary positions have, as in Llama?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


def rotate_half(x: Tensor) -> Tensor:
    """Pair unit i with unit i + width/2."""
    left = x[..., : x.shape[-1] // 2]
    right = x[..., x.shape[-1] // 2 :]
    return torch.cat((-right, left), dim=-1)


def repeat_kv(x: Tensor, n_rep: int) -> Tensor:
    """Each key-value head serves `n_rep` query heads."""
    B, KV, N, D = x.shape
    return x[:, :, None, :, :].expand(B, KV, n_rep, N, D).reshape(B, KV * n_rep, N, D)


class GroupedQueryRotary(nn.Module):
    """Query heads go with their key-value head, or the g-th of each goes; rotation pairs the width of q.k."""

    inv_freq: Tensor
    value_dim: int | None

    def __init__(self, dim: int = 7, kv_heads: int = 3, n_rep: int = 2, head_dim: int = 8, value_dim: int = 5) -> None:
        super().__init__()
        self.heads = kv_heads * n_rep
        self.kv_heads = kv_heads
        self.n_rep = n_rep
        self.head_dim = head_dim
        self.value_dim = value_dim
        self.scale = head_dim**-0.5
        self.embed = nn.Linear(6, dim)
        self.q_proj = nn.Linear(dim, self.heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, kv_heads * value_dim, bias=False)
        self.o_proj = nn.Linear(self.heads * value_dim, dim, bias=False)
        self.head = nn.Linear(dim, 2)
        self.register_buffer("inv_freq", 10.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim))

    def rotation(self, length: int) -> tuple[Tensor, Tensor]:
        positions = torch.arange(length, device=self.inv_freq.device).type_as(self.inv_freq)
        angles = torch.outer(positions, self.inv_freq)
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, _ = x.shape
        q = self.q_proj(x).view(B, N, self.heads, self.head_dim).transpose(1, 2)
        k = self.k_proj(x).view(B, N, self.kv_heads, self.head_dim).transpose(1, 2)
        value_dim = self.head_dim if self.value_dim is None else self.value_dim
        v = self.v_proj(x).view(B, N, self.kv_heads, value_dim).transpose(1, 2)
        cos, sin = self.rotation(N)
        q, k = q * cos + rotate_half(q) * sin, k * cos + rotate_half(k) * sin
        k, v = repeat_kv(k, self.n_rep), repeat_kv(v, self.n_rep)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=self.scale)
        return self.head(x + self.o_proj(out.transpose(1, 2).reshape(B, N, -1)))


class OneHeadWidth(GroupedQueryRotary):
    """One attribute is the width of queries, keys and values, as in Llama: pairs of the first two go with pairs of the last."""

    def __init__(self) -> None:
        super().__init__(value_dim=8)
        self.value_dim = None


class RotaryByPairs(nn.Module):
    """Neighbours are rotated together: taken as every second position, or as complex numbers."""

    freq: Tensor

    def __init__(self, as_complex: bool, dim: int = 7, heads: int = 3, head_dim: int = 8, value_dim: int = 5) -> None:
        super().__init__()
        self.as_complex, self.heads = as_complex, heads
        self.embed = nn.Linear(6, dim)
        self.q = nn.Linear(dim, heads * head_dim, bias=False)
        self.k = nn.Linear(dim, heads * head_dim, bias=False)
        self.v = nn.Linear(dim, heads * value_dim, bias=False)
        self.out = nn.Linear(heads * value_dim, dim, bias=False)
        self.head = nn.Linear(dim, 2)
        self.register_buffer("freq", 10.0 ** -(torch.arange(0, head_dim, 2).float() / head_dim))

    def rotate(self, x: Tensor) -> Tensor:
        angles = torch.outer(torch.arange(x.shape[2]).type_as(self.freq), self.freq)
        if self.as_complex:
            pairs = torch.view_as_complex(x.reshape(*x.shape[:-1], -1, 2))
            return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
        even, odd, cos, sin = x[..., ::2], x[..., 1::2], angles.cos(), angles.sin()
        return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, _ = x.shape
        q, k, v = (layer(x).view(B, N, self.heads, -1).transpose(1, 2) for layer in (self.q, self.k, self.v))
        attention = (self.rotate(q) @ self.rotate(k).mT * 0.35).softmax(-1)
        return self.head(x + self.out((attention @ v).transpose(1, 2).flatten(2)))


_PAIRS = (
    axis("residual", 7, "{embed.weight,embed.bias,out.weight}:0 {q,k,v,head}.weight:1"),
    axis("heads", 3, "{q,k,v}.weight:0 out.weight:1"),
    axis("qk_width", 4, "{q,k}.weight:0 freq:0"),
    axis("v_width", 5, "v.weight:0 out.weight:1"),
)

ENTRIES = (
    ZooEntry(
        "grouped_query_rotary",
        randomised(GroupedQueryRotary),
        normal((2, 9, 6)),
        (
            axis("residual", 7, "embed.{weight,bias}:0 o_proj.weight:0 {q_proj,k_proj,v_proj,head}.weight:1"),
            axis("kv_groups", 3, "{q_proj,k_proj,v_proj}.weight:0 o_proj.weight:1"),
            axis("heads", 2, "q_proj.weight:0 o_proj.weight:1"),
            axis("qk_width", 4, "{q_proj,k_proj}.weight:0 inv_freq:0"),
            axis("v_width", 5, "v_proj.weight:0 o_proj.weight:1"),
        ),
    ),
    ZooEntry(
        "one_head_width",
        randomised(OneHeadWidth),
        normal((2, 9, 6)),
        (
            axis("residual", 7, "embed.{weight,bias}:0 o_proj.weight:0 {q_proj,k_proj,v_proj,head}.weight:1"),
            axis("kv_groups", 3, "{q_proj,k_proj,v_proj}.weight:0 o_proj.weight:1"),
            axis("heads", 2, "q_proj.weight:0 o_proj.weight:1"),
            axis("qkv_width", 4, "{q_proj,k_proj,v_proj}.weight:0 inv_freq:0 o_proj.weight:1"),
        ),
    ),
    ZooEntry("rotary_by_every_second", randomised(lambda: RotaryByPairs(as_complex=False)), normal((2, 9, 6)), _PAIRS),
    ZooEntry(
        "rotary_by_complex_numbers", randomised(lambda: RotaryByPairs(as_complex=True)), normal((2, 9, 6)), _PAIRS
    ),
)
