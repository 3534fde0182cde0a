"""Which axes do models have whose code makes two widths one: `B, N, C = x.shape`, and then `C` for another tensor?

Such widths shrink together, as many units of the one as match a unit of the other.
"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class AsWideAsItsInput(nn.Module):
    """Attention as most vision transformers write it: `C` channels come in, and `C` is heads times their width."""

    def __init__(self, computed_scale: bool, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.heads, self.computed_scale = heads, computed_scale
        self.scale = (dim // heads) ** -0.5
        self.embed = nn.Linear(6, dim)
        self.qkv = nn.Linear(dim, 3 * dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        B, N, C = x.shape
        q, k, v = self.qkv(x).reshape(B, N, 3, self.heads, C // self.heads).permute(2, 0, 3, 1, 4)
        scale = (C // self.heads) ** -0.5 if self.computed_scale else self.scale
        attention = (q * scale @ k.transpose(-2, -1)).softmax(dim=-1)
        return self.head(x + self.proj((attention @ v).transpose(1, 2).reshape(B, N, C)))


class TokensOfStages(nn.Module):
    """A convolution along the channels with a window of one: three stages are mixed, channel by channel."""

    def __init__(self, dim: int = 5) -> None:
        super().__init__()
        self.stages = nn.ModuleList(nn.Linear(4, dim) for _ in range(3))
        self.mix = nn.Conv1d(3, 1, 1)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        stacked = torch.stack([stage(x) for stage in self.stages], dim=1)
        return self.head(self.mix(stacked).squeeze(1))


class PooledChannelsLast(nn.Module):
    """Pooling to one pixel lays an image with channels last out anew."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.adaptive_avg_pool2d(self.embed(x).permute(0, 3, 1, 2), 1).flatten(1))


ENTRIES = (
    ZooEntry(
        "as_wide_as_its_input",
        randomised(lambda: AsWideAsItsInput(computed_scale=False)),
        normal((2, 7, 6)),
        (axis("residual", 4, "{embed,proj}.{weight,bias}:0 qkv.weight:0 {qkv,proj,head}.weight:1"),),
    ),
    ZooEntry(
        "as_wide_as_its_input_with_computed_scale",
        randomised(lambda: AsWideAsItsInput(computed_scale=True)),
        normal((2, 7, 6)),
        (axis("heads", 3, "{embed,proj}.{weight,bias}:0 qkv.weight:0 {qkv,proj,head}.weight:1"),),
    ),
    ZooEntry(
        "as_wide_as_its_input_with_as_many_heads_as_wide",
        randomised(lambda: AsWideAsItsInput(computed_scale=True, dim=9)),
        normal((2, 7, 6)),
        (axis("heads", 3, "{embed,proj}.{weight,bias}:0 qkv.weight:0 {qkv,proj,head}.weight:1"),),
    ),
    ZooEntry(
        "tokens_of_stages",
        randomised(TokensOfStages),
        normal((2, 4)),
        (
            axis("neurons", 5, "stages.{0,1,2}.{weight,bias}:0 head.weight:1"),
            axis("groups", 3, "stages:0 mix.weight:1", exact=False),
        ),
    ),
    ZooEntry(
        "pooled_channels_last",
        randomised(PooledChannelsLast),
        normal((2, 6, 6, 4)),
        (axis("neurons", 5, "embed.{weight,bias}:0 head.weight:1"),),
    ),
)
