"""Which axes does attention in shifted windows have?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


def relative_positions(window: int) -> Tensor:
    """For each pair of pixels of a window, the row of the bias table: `[window^2, window^2]`, int64."""
    rows, columns = torch.meshgrid(torch.arange(window), torch.arange(window), indexing="ij")
    pixels = torch.stack([rows.flatten(), columns.flatten()])
    offsets = pixels[:, :, None] - pixels[:, None, :] + window - 1
    return offsets[0] * (2 * window - 1) + offsets[1]


class WindowAttention(nn.Module):
    """Attention inside each window, with a bias for each relative position and head."""

    index: Tensor

    def __init__(self, dim: int, heads: int, head_dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        self.heads = heads
        self.head_dim = head_dim
        self.scale = head_dim**-0.5
        self.table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.register_buffer("index", relative_positions(window), persistent=False)
        self.qkv = nn.Linear(dim, 3 * heads * head_dim)
        self.proj = nn.Linear(heads * head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.shape
        qkv = self.qkv(x).reshape(B, N, 3, self.heads, self.head_dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv[0], qkv[1], qkv[2]
        weights = (q * self.scale) @ k.transpose(-2, -1)
        bias = self.table[self.index.view(-1)].view(N, N, -1).permute(2, 0, 1).contiguous()
        weights = F.softmax(weights + bias.unsqueeze(0), dim=-1)
        return self.proj((weights @ v).transpose(1, 2).flatten(2))


class ShiftedWindowBlock(nn.Module):
    """Pad, roll, cut into windows, attend, and put everything back; then a feed-forward branch."""

    def __init__(self, dim: int, window: int = 2, shift: int = 1) -> None:
        super().__init__()
        self.window = window
        self.shift = shift
        self.norm1 = nn.LayerNorm(dim)
        self.attention = WindowAttention(dim, heads=3, head_dim=5, window=window)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 10), nn.GELU(), nn.Linear(10, dim))

    def attend(self, x: Tensor) -> Tensor:
        B, H, W, C = x.shape
        w = self.window
        x = F.pad(x, (0, 0, 0, (w - W % w) % w, 0, (w - H % w) % w))
        _, Hp, Wp, _ = x.shape
        x = torch.roll(x, shifts=(-self.shift, -self.shift), dims=(1, 2))
        x = x.view(B, Hp // w, w, Wp // w, w, C).permute(0, 1, 3, 2, 4, 5).reshape(-1, w * w, C)
        x = self.attention(x)
        x = x.view(B, Hp // w, Wp // w, w, w, -1).permute(0, 1, 3, 2, 4, 5).reshape(B, Hp, Wp, -1)
        x = torch.roll(x, shifts=(self.shift, self.shift), dims=(1, 2))
        return x[:, :H, :W].contiguous()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attend(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class SwinTransformer(nn.Module):
    """The bias table has a column for each head; its rows, found through a buffer of indices, stay."""

    def __init__(self, dim: int = 6) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 2, stride=2)
        self.block = ShiftedWindowBlock(dim)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).permute(0, 2, 3, 1)
        x = self.norm(self.block(x))
        return self.head(x.mean((1, 2)))


ENTRIES = (
    ZooEntry(
        "window_attention",
        randomised(SwinTransformer),
        normal((2, 3, 10, 6)),
        (
            axis(
                "residual",
                6,
                "{patch,norm}.{weight,bias}:0 block.{norm1,norm2,attention.proj,mlp.2}.{weight,bias}:0 "
                "block.{attention.qkv,mlp.0}.weight:1 head.weight:1",
                exact=False,
            ),
            axis(
                "heads", 3, "block.attention.qkv.{weight,bias}:0 block.attention.table:1 block.attention.proj.weight:1"
            ),
            axis("qkv_width", 5, "block.attention.qkv.{weight,bias}:0 block.attention.proj.weight:1"),
            axis("neurons", 10, "block.mlp.0.{weight,bias}:0 block.mlp.2.weight:1"),
        ),
    ),
)
