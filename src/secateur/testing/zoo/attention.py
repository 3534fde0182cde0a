"""Which axes do the many ways to write attention have: heads, the width of q.k, the width of v?

Keys have no bias of their own here: it adds the same number to all the logits of a query, and softmax takes it out.
"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class FusedByReshape(nn.Module):
    """q, k and v are taken apart by `reshape`, `permute` and `unbind`, and share heads and width."""

    def __init__(self, default_scale: bool, dim: int = 10, heads: int = 4, head_dim: int = 5) -> None:
        super().__init__()
        self.default_scale = default_scale
        self.heads = heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.embed = nn.Linear(6, dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        if self.default_scale:
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            out = ((q @ k.transpose(-2, -1)) * self.scale).softmax(dim=-1) @ v
        x = x + self.proj(out.transpose(1, 2).reshape(B, N, -1))
        return self.head(x)


class FusedByChunk(nn.Module):
    """q, k and v are three equal chunks, tied position by position."""

    def __init__(self, dim: int = 10, heads: int = 4, head_dim: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.embed = nn.Linear(6, dim)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, C = x.shape
        q, k, v = (part.view(B, N, self.heads, self.head_dim).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        out = torch.softmax(q @ k.mT * self.scale, dim=-1) @ v
        out = out.transpose(1, 2).contiguous().view(B, N, self.heads * self.head_dim)
        return self.head(x + self.proj(out).view(B, N, C))


class SeparateProjections(nn.Module):
    """Heads live in all four projections; the width of q.k and the width of v have nothing to do with each other."""

    def __init__(self, stored_scale: bool, dim: int = 7, heads: int = 3, key_dim: int = 4, value_dim: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.scale = key_dim**-0.5 if stored_scale else None
        self.embed = nn.Linear(6, dim)
        self.q = nn.Linear(dim, heads * key_dim)
        self.k = nn.Linear(dim, heads * key_dim, bias=False)
        self.v = nn.Linear(dim, heads * value_dim)
        self.out = nn.Linear(heads * value_dim, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, _ = x.shape
        q = self.q(x).view(B, N, self.heads, self.key_dim).transpose(1, 2)
        k = self.k(x).view(B, N, self.heads, self.key_dim).transpose(1, 2)
        v = self.v(x).view(B, N, self.heads, self.value_dim).transpose(1, 2)
        logits = torch.matmul(q, k.transpose(-2, -1))
        logits = logits * self.scale if self.scale is not None else logits / math.sqrt(q.shape[-1])
        out = torch.matmul(logits.softmax(-1), v).transpose(1, 2).flatten(2)
        return self.head(x + self.out(out))


class CrossAttention(nn.Module):
    """Queries from one input, keys and values from another."""

    def __init__(
        self, dim: int = 8, context_dim: int = 9, heads: int = 3, key_dim: int = 4, value_dim: int = 5
    ) -> None:
        super().__init__()
        self.heads = heads
        self.scale = key_dim**-0.5
        self.embed = nn.Linear(6, dim)
        self.embed_context = nn.Linear(7, context_dim)
        self.q = nn.Linear(dim, heads * key_dim)
        self.k = nn.Linear(context_dim, heads * key_dim, bias=False)
        self.v = nn.Linear(context_dim, heads * value_dim)
        self.out = nn.Linear(heads * value_dim, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x, context = self.embed(x), F.relu(self.embed_context(context))
        q, k, v = (
            y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in (self.q(x), self.k(context), self.v(context))
        )
        out = F.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return self.head(x + self.out(out.transpose(1, 2).flatten(-2)))


class LinearAttention(nn.Module):
    """q and k pass elu + 1, which makes a zeroed unit one: the width of q.k is not exact."""

    def __init__(self, dim: int = 7, heads: int = 3, key_dim: int = 4, value_dim: int = 5) -> None:
        super().__init__()
        self.heads = heads
        self.embed = nn.Linear(6, dim)
        self.q = nn.Linear(dim, heads * key_dim)
        self.k = nn.Linear(dim, heads * key_dim)
        self.v = nn.Linear(dim, heads * value_dim)
        self.out = nn.Linear(heads * value_dim, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, _ = x.shape
        q = F.elu(self.q(x).view(B, N, self.heads, -1).transpose(1, 2)) + 1
        k = F.elu(self.k(x).view(B, N, self.heads, -1).transpose(1, 2)) + 1
        v = self.v(x).view(B, N, self.heads, -1).transpose(1, 2)
        out = q @ (k.transpose(-2, -1) @ v)
        out = out / (q @ k.sum(dim=2).unsqueeze(-1))
        return self.head(x + self.out(out.transpose(1, 2).reshape(B, N, -1)))


class NonLocal(nn.Module):
    """As in non-local networks: one head over the pixels, whose widths are channels of 1x1 convolutions."""

    def __init__(self, channels: int = 6, key_dim: int = 4, value_dim: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, channels, 3)
        self.q = nn.Conv2d(channels, key_dim, 1)
        self.k = nn.Conv2d(channels, key_dim, 1, bias=False)
        self.v = nn.Conv2d(channels, value_dim, 1)
        self.out = nn.Conv2d(value_dim, channels, 1)
        self.head = nn.Linear(channels, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        q, k, v = (layer(x).flatten(2) for layer in (self.q, self.k, self.v))
        out = v @ (q.mT @ k).softmax(dim=-1).mT
        x = x + self.out(out.view(x.shape[0], -1, *x.shape[2:]))
        return self.head(x.mean((2, 3)))


class EinsumAttention(nn.Module):
    """Projections with dims of their own for heads and widths, and no reshape at all."""

    def __init__(self, dim: int = 7, heads: int = 3, key_dim: int = 4, value_dim: int = 6) -> None:
        super().__init__()
        self.scale = key_dim**-0.5
        self.embed = nn.Linear(5, dim)
        self.q = nn.Parameter(torch.empty(dim, heads, key_dim))
        self.k = nn.Parameter(torch.empty(dim, heads, key_dim))
        self.v = nn.Parameter(torch.empty(dim, heads, value_dim))
        self.out = nn.Parameter(torch.empty(heads, value_dim, dim))
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        q, k = torch.einsum("bnc,chd->bhnd", x, self.q), torch.einsum("bnc,chd->bhnd", x, self.k)
        v = torch.einsum("bnc,chd->bhnd", x, self.v)
        weights = torch.softmax(torch.einsum("bhnd,bhmd->bhnm", q, k) * self.scale, dim=-1)
        out = torch.einsum("bhnm,bhmd->bnhd", weights, v)
        return self.head(x + torch.einsum("bnhd,hdc->bnc", out, self.out))


_FUSED_STREAM = axis("residual", 10, "{embed,proj}.{weight,bias}:0 {qkv,head}.weight:1")
_FUSED_HEADS = axis("heads", 4, "qkv.{weight,bias}:0 proj.weight:1")
_FUSED_WIDTH = axis("qkv_width", 5, "qkv.{weight,bias}:0 proj.weight:1")
_SEPARATE_STREAM = axis("residual", 7, "{embed,out}.{weight,bias}:0 {q,k,v,head}.weight:1")
_SEPARATE_HEADS = axis("heads", 3, "{q,v}.{weight,bias}:0 k.weight:0 out.weight:1")
_SEPARATE_VALUES = axis("v_width", 5, "v.{weight,bias}:0 out.weight:1")

ENTRIES = (
    ZooEntry(
        "fused_qkv_by_reshape",
        randomised(lambda: FusedByReshape(default_scale=False)),
        normal((2, 7, 6)),
        (_FUSED_STREAM, _FUSED_HEADS, _FUSED_WIDTH),
    ),
    ZooEntry(
        "fused_qkv_with_default_scale",
        randomised(lambda: FusedByReshape(default_scale=True)),
        normal((2, 7, 6)),
        (_FUSED_STREAM, _FUSED_HEADS),
    ),
    ZooEntry(
        "fused_qkv_by_chunk",
        randomised(FusedByChunk),
        normal((2, 7, 6)),
        (_FUSED_STREAM, _FUSED_HEADS, _FUSED_WIDTH),
    ),
    ZooEntry(
        "separate_qkv",
        randomised(lambda: SeparateProjections(stored_scale=True)),
        normal((2, 8, 6)),
        (_SEPARATE_STREAM, _SEPARATE_HEADS, axis("qk_width", 4, "q.{weight,bias}:0 k.weight:0"), _SEPARATE_VALUES),
    ),
    ZooEntry(
        "separate_qkv_with_computed_scale",
        randomised(lambda: SeparateProjections(stored_scale=False)),
        normal((2, 8, 6)),
        (_SEPARATE_STREAM, _SEPARATE_HEADS, _SEPARATE_VALUES),
    ),
    ZooEntry(
        "cross_attention",
        randomised(CrossAttention),
        normal((2, 5, 6), (2, 10, 7)),
        (
            axis("residual", 8, "{embed,out}.{weight,bias}:0 {q,head}.weight:1"),
            axis("neurons", 9, "embed_context.{weight,bias}:0 {k,v}.weight:1"),
            axis("heads", 3, "{q,v}.{weight,bias}:0 k.weight:0 out.weight:1"),
            axis("qk_width", 4, "q.{weight,bias}:0 k.weight:0"),
            axis("v_width", 5, "v.{weight,bias}:0 out.weight:1"),
        ),
    ),
    ZooEntry(
        "linear_attention",
        randomised(LinearAttention),
        normal((2, 8, 6)),
        (
            axis("residual", 7, "{embed,out}.{weight,bias}:0 {q,k,v,head}.weight:1"),
            axis("heads", 3, "{q,k,v}.{weight,bias}:0 out.weight:1"),
            axis("qk_width", 4, "{q,k}.{weight,bias}:0", exact=False),
            axis("v_width", 5, "v.{weight,bias}:0 out.weight:1"),
        ),
    ),
    ZooEntry(
        "non_local",
        randomised(NonLocal),
        normal((2, 3, 5, 6)),
        (
            axis("residual", 6, "{stem,out}.{weight,bias}:0 {q,k,v}.weight:1 head.weight:1"),
            axis("qk_width", 4, "q.{weight,bias}:0 k.weight:0"),
            axis("v_width", 5, "v.{weight,bias}:0 out.weight:1"),
        ),
    ),
    ZooEntry(
        "einsum_attention",
        randomised(EinsumAttention),
        normal((2, 8, 5)),
        (
            axis("residual", 7, "embed.{weight,bias}:0 {q,k,v}:0 out:2 head.weight:1"),
            axis("heads", 3, "{q,k,v}:1 out:0"),
            axis("qk_width", 4, "{q,k}:2"),
            axis("v_width", 6, "v:2 out:1"),
        ),
    ),
)
