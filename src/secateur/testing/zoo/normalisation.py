"""What does each normalisation do to an axis: pass it, split it, or make it inexact?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class BatchNormOverFeatures(nn.Module):
    """Batch norm of a [batch, features] tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.norm(self.fc1(x))))


class BatchNormWithoutAffine(nn.Module):
    """Batch norm with running statistics only."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.BatchNorm2d(6, affine=False)
        self.conv2 = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.elu(self.norm(self.conv1(x))))


class BatchNormOverVolumes(nn.Module):
    """Batch norm of a [batch, channels, depth, height, width] tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv3d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm3d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.conv(x))).mean((2, 3, 4)))


class InstanceNorm(nn.Module):
    """Statistics over the picture, each channel by itself. A bias before it would cancel out."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, bias=False)
        self.norm = nn.InstanceNorm2d(6, affine=True)
        self.conv2 = nn.Conv2d(6, 5, 3)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv1(x)))
        return self.head(F.relu(self.conv2(x)).mean((2, 3)))


class GroupNorm(nn.Module):
    """A whole group can go exactly; the i-th channel of every group is normalised with the others of its group."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 3 * 4, 3)
        self.norm = nn.GroupNorm(3, 3 * 4)
        self.conv2 = nn.Conv2d(3 * 4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.silu(self.norm(self.conv1(x))))


class ConcatGroupNorm(nn.Module):
    """Of 5 groups, 2 come from the left and 3 from the right; all groups shrink alike."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Conv2d(3, 2 * 4, 3, padding=1)
        self.right = nn.Conv2d(3, 3 * 4, 1)
        self.norm = nn.GroupNorm(5, 5 * 4)
        self.mix = nn.Conv2d(5 * 4, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(torch.cat([self.left(x), self.right(x)], dim=1)))
        return self.head(F.relu(self.mix(x)).mean((2, 3)))


class LayerNormChannelsLast(nn.Module):
    """The block of ConvNeXt: permute, norm, two linear layers, layer scale, permute back."""

    def __init__(self, dim: int = 6, hidden: int = 10) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, dim, 2, stride=2)
        self.depthwise = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm = nn.LayerNorm(dim)
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)
        self.gamma = nn.Parameter(torch.ones(dim))
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.depthwise(x).permute(0, 2, 3, 1)
        y = self.gamma * self.fc2(F.gelu(self.fc1(self.norm(y))))
        x = x + y.permute(0, 3, 1, 2)
        return self.head(x.mean([-2, -1]))


class LayerNorm2d(nn.Module):
    """Layer norm over the channels of a [batch, channels, height, width] tensor."""

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(1, keepdim=True)
        variance = (x - mean).pow(2).mean(1, keepdim=True)
        x = (x - mean) / torch.sqrt(variance + self.eps)
        return self.weight[:, None, None] * x + self.bias[:, None, None]


class LayerNormChannelsFirst(nn.Module):
    """Layer norm written out with means."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.norm = LayerNorm2d(6)
        self.conv2 = nn.Conv2d(6, 5, 2, stride=2)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv2(self.norm(self.conv1(x)))
        return self.head(F.relu(x).mean((2, 3)))


class HandwrittenRMSNorm(nn.Module):
    """x / sqrt(mean(x^2)) * weight."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RMSNorm(nn.Module):
    """A residual stream with torch's own norm and a handwritten one."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.norm1 = nn.RMSNorm(6)
        self.up = nn.Linear(6, 9, bias=False)
        self.down = nn.Linear(9, 6, bias=False)
        self.norm2 = HandwrittenRMSNorm(6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.down(F.silu(self.up(self.norm1(x))))
        return self.head(self.norm2(x))


class GatedHeads(nn.Module):
    """Channels that are groups for a group norm and heads for a gate.

    With as many heads as groups both see the same two factors. With 8 groups and 4 heads the 24 channels are
    (4 heads, 2 groups in each head, 3 channels in each group), and each factor is an axis.
    """

    def __init__(self, groups: int, heads: int, channels: int) -> None:
        super().__init__()
        self.heads = heads
        self.conv = nn.Conv1d(2, channels, 3)
        self.norm = nn.GroupNorm(groups, channels)
        self.gate = nn.Parameter(torch.ones(heads, 1, 1))
        self.out = nn.Conv1d(channels, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        B, C, L = x.shape
        x = x.view(B, self.heads, C // self.heads, L) * self.gate
        return self.out(F.relu(x.reshape(B, C, L)))


BATCH_NORM = "{weight,bias,running_mean,running_var}:0"


class StandardisedWeights(nn.Module):
    """Kernels are standardised by a batch norm without statistics of its own, as in BiT: across the channels that come in."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 4, 3), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        flat = self.conv.weight.reshape(1, self.conv.out_channels, -1)
        weight = F.batch_norm(flat, None, None, training=True, momentum=0.0).reshape_as(self.conv.weight)
        return self.head(F.relu(F.conv2d(self.stem(x).relu(), weight, self.conv.bias)).mean((2, 3)))


class OwnRmsNorm(nn.Module):
    """A norm by torch's function, with the shape in an attribute of its own, as in timm; torch takes the function apart."""

    def __init__(self, affine: bool) -> None:
        super().__init__()
        self.normalized_shape = (6,)
        self.embed, self.head = nn.Linear(4, 6), nn.Linear(6, 2)
        self.weight = nn.Parameter(torch.ones(6)) if affine else None

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.rms_norm(self.embed(x), self.normalized_shape, self.weight, 1e-6))


ENTRIES = (
    ZooEntry(
        "batch_norm_1d",
        randomised(BatchNormOverFeatures),
        normal((2, 5)),
        (axis("neurons", 7, f"fc1.{{weight,bias}}:0 norm.{BATCH_NORM} fc2.weight:1"),),
    ),
    ZooEntry(
        "batch_norm_2d_without_affine",
        randomised(BatchNormWithoutAffine),
        normal((2, 3, 4, 5)),
        (axis("channels", 6, "conv1.weight:0 norm.{running_mean,running_var}:0 conv2.weight:1"),),
    ),
    ZooEntry(
        "batch_norm_3d",
        randomised(BatchNormOverVolumes),
        normal((2, 2, 3, 4, 5)),
        (axis("channels", 6, f"conv.{{weight,bias}}:0 norm.{BATCH_NORM} head.weight:1"),),
    ),
    ZooEntry(
        "instance_norm",
        randomised(InstanceNorm),
        normal((2, 3, 7, 8)),
        (
            axis("channels", 6, "conv1.weight:0 norm.{weight,bias}:0 conv2.weight:1"),
            axis("channels", 5, "conv2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "group_norm",
        randomised(GroupNorm),
        normal((2, 2, 5, 6)),
        (
            axis("groups", 3, "{conv1,norm}.{weight,bias}:0 conv2.weight:1"),
            axis("channels", 4, "{conv1,norm}.{weight,bias}:0 conv2.weight:1", exact=False),
        ),
    ),
    ZooEntry(
        "concat_group_norm",
        randomised(ConcatGroupNorm),
        normal((2, 3, 5, 7)),
        (
            axis("groups", 2, "{left,norm}.{weight,bias}:0 mix.weight:1"),
            axis("groups", 3, "{right,norm}.{weight,bias}:0 mix.weight:1"),
            axis("channels", 4, "{left,right,norm}.{weight,bias}:0 mix.weight:1", exact=False),
            axis("channels", 6, "mix.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "layer_norm_channels_last",
        randomised(LayerNormChannelsLast),
        normal((2, 3, 8, 10)),
        (
            axis(
                "residual",
                6,
                "{stem,depthwise,norm,fc2}.{weight,bias}:0 gamma:0 {fc1,head}.weight:1",
                exact=False,
            ),
            axis("neurons", 10, "fc1.{weight,bias}:0 fc2.weight:1"),
        ),
    ),
    ZooEntry(
        "layer_norm_channels_first",
        randomised(LayerNormChannelsFirst),
        normal((2, 3, 6, 8)),
        (
            axis("channels", 6, "{conv1,norm}.{weight,bias}:0 conv2.weight:1", exact=False),
            axis("channels", 5, "conv2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "rms_norm",
        randomised(RMSNorm),
        normal((2, 5, 4)),
        (
            axis(
                "residual",
                6,
                "embed.{weight,bias}:0 {norm1,norm2}.weight:0 down.weight:0 {up,head}.weight:1",
                exact=False,
            ),
            axis("neurons", 9, "up.weight:0 down.weight:1"),
        ),
    ),
    ZooEntry(
        "groups_and_heads_alike",
        randomised(lambda: GatedHeads(groups=4, heads=4, channels=4 * 3)),
        normal((2, 2, 9)),
        (
            axis("groups", 4, "{conv,norm}.{weight,bias}:0 gate:0 out.weight:1"),
            axis("channels", 3, "{conv,norm}.{weight,bias}:0 out.weight:1", exact=False),
        ),
    ),
    ZooEntry(
        "groups_within_heads",
        randomised(lambda: GatedHeads(groups=8, heads=4, channels=4 * 2 * 3)),
        normal((2, 2, 9)),
        (
            axis("groups", 4, "{conv,norm}.{weight,bias}:0 gate:0 out.weight:1"),
            axis("groups", 2, "{conv,norm}.{weight,bias}:0 out.weight:1"),
            axis("channels", 3, "{conv,norm}.{weight,bias}:0 out.weight:1", exact=False),
        ),
    ),
    ZooEntry(
        "standardised_weights",
        randomised(StandardisedWeights),
        normal((2, 3, 6, 6)),
        (
            axis("channels", 5, "stem.{weight,bias}:0 conv.weight:1", exact=False),
            axis("channels", 4, "conv.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "rms_norm_by_attribute",
        randomised(lambda: OwnRmsNorm(affine=True)),
        normal((2, 4)),
        (axis("neurons", 6, "embed.{weight,bias}:0 weight:0 head.weight:1", exact=False),),
    ),
    ZooEntry(
        "rms_norm_by_attribute_without_weight",
        randomised(lambda: OwnRmsNorm(affine=False)),
        normal((2, 4)),
        (axis("neurons", 6, "embed.{weight,bias}:0 head.weight:1", exact=False),),
    ),
)
