"""Which axes do grouped and depth-wise convolutions have, and what does a channel shuffle do to them?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised

BATCH_NORM = "{weight,bias,running_mean,running_var}:0"


def channel_shuffle(x: Tensor, groups: int) -> Tensor:
    """See the channels as (groups, n), and write them as (n, groups)."""
    B, C, H, W = x.shape
    x = x.view(B, groups, C // groups, H, W).transpose(1, 2).contiguous()
    return x.view(B, -1, H, W)


class DepthwiseSeparable(nn.Module):
    """The channels pass through the depth-wise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, bias=False)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.norm = nn.BatchNorm2d(6)
        self.pointwise = nn.Conv2d(6, 8, 1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.depthwise(self.stem(x))))
        return self.head(F.relu(self.pointwise(x)).mean((2, 3)))


class DepthwiseMultiplier(nn.Module):
    """Each of 4 channels makes 3: a channel goes with its three, or the i-th of every three goes."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 4, 3)
        self.depthwise = nn.Conv2d(4, 4 * 3, 3, groups=4)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.depthwise(F.relu(self.stem(x)))))


class GroupedConvolution(nn.Module):
    """A group goes, or the i-th input of every group, or the o-th output of every group."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(2, 3 * 4, 3)
        self.norm = nn.BatchNorm2d(3 * 4)
        self.grouped = nn.Conv2d(3 * 4, 3 * 5, 3, padding=1, groups=3)
        self.head = nn.Linear(3 * 5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        return self.head(F.relu(self.grouped(x)).mean((2, 3)))


class ChannelShuffle(nn.Module):
    """The groups of a grouped convolution stay whole across a shuffle."""

    def __init__(self, groups: int = 4) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(2, groups * 3, 3, padding=1)
        self.grouped = nn.Conv2d(groups * 3, groups * 5, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(groups * 5)
        self.depthwise = nn.Conv2d(groups * 5, groups * 5, 3, groups=groups * 5)
        self.pointwise = nn.Conv2d(groups * 5, 7, 1)
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(F.relu(self.stem(x)))))
        x = self.depthwise(channel_shuffle(x, self.groups))
        return self.head(F.relu(self.pointwise(x)).mean((2, 3)))


class ChannelShuffleBetweenGroups(nn.Module):
    """As in ShuffleNet, every group of the second convolution reads from every group of the first.

    The 18 channels between are (3 groups of the first, 2 groups of the second, 3 more), and each factor is an axis.
    """

    def __init__(self, groups: int = 3) -> None:
        super().__init__()
        self.groups = groups
        self.stem = nn.Conv2d(2, groups * 4, 3, padding=1)
        self.grouped1 = nn.Conv2d(groups * 4, groups * 6, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(groups * 6)
        self.depthwise = nn.Conv2d(groups * 6, groups * 6, 3, groups=groups * 6, bias=False)
        self.grouped2 = nn.Conv2d(groups * 6, 2 * 5, 1, groups=2)
        self.head = nn.Linear(2 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped1(F.relu(self.stem(x)))))
        x = self.depthwise(channel_shuffle(x, self.groups))
        return self.head(F.relu(self.grouped2(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """As in ShuffleNet V2: one half passes, the other is worked on, and both are interleaved.

    The halves are equal and are tied, unit by unit, first by the chunk and then by the shuffle.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 2 * 5, 3)
        self.conv1 = nn.Conv2d(5, 7, 1)
        self.depthwise = nn.Conv2d(7, 7, 3, padding=1, groups=7, bias=False)
        self.norm = nn.BatchNorm2d(7)
        self.conv2 = nn.Conv2d(7, 5, 1)
        self.head = nn.Linear(2 * 5, 4)

    def forward(self, x: Tensor) -> Tensor:
        left, right = F.relu(self.stem(x)).chunk(2, dim=1)
        right = self.norm(self.depthwise(F.relu(self.conv1(right))))
        x = channel_shuffle(torch.cat((left, F.relu(self.conv2(right))), dim=1), 2)
        return self.head(x.mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate for each channel, from the means of all channels over the picture."""

    def __init__(self, channels: int, squeezed: int) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(channels, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(self.fc2(F.relu(self.fc1(self.pool(x)))))


class InvertedResidual(nn.Module):
    """The expanded channels pass through the depth-wise convolution and the gate."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.expand = nn.Sequential(nn.Conv2d(6, 10, 1, bias=False), nn.BatchNorm2d(10), nn.Hardswish())
        self.depthwise = nn.Sequential(
            nn.Conv2d(10, 10, 3, padding=1, groups=10, bias=False), nn.BatchNorm2d(10), nn.Hardswish()
        )
        self.squeeze = SqueezeExcite(10, 4)
        self.project = nn.Sequential(nn.Conv2d(10, 6, 1, bias=False), nn.BatchNorm2d(6))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.project(self.squeeze(self.depthwise(self.expand(x))))
        return self.head(x.mean((2, 3)))


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class ZeroPaddedShortcut(nn.Module):
    """The shortcut of the CIFAR ResNets, option A: halve the picture, and fill the channels up with zeros on both sides.

    Of 10 channels the outer 4 are added to literal zeros and stay; the 6 that run through are one axis.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(6)
        self.conv1 = nn.Conv2d(6, 5, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(5, 10, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(10)
        self.shortcut = Lambda(lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2), "constant", 0))
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        out = self.norm2(self.conv2(F.relu(self.conv1(x))))
        out += self.shortcut(x)
        return self.head(F.relu(out).mean((2, 3)))


ENTRIES = (
    ZooEntry(
        "depthwise_separable",
        randomised(DepthwiseSeparable),
        normal((2, 3, 5, 6)),
        (
            axis("channels", 6, f"stem.weight:0 depthwise.{{weight,bias}}:0 norm.{BATCH_NORM} pointwise.weight:1"),
            axis("channels", 8, "pointwise.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "depthwise_multiplier",
        randomised(DepthwiseMultiplier),
        normal((2, 2, 6, 7)),
        (
            axis("channels", 4, "stem.{weight,bias}:0 depthwise.{weight,bias}:0 head.weight:1"),
            axis("channels", 3, "depthwise.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "grouped_convolution",
        randomised(GroupedConvolution),
        normal((2, 2, 5, 6)),
        (
            axis("groups", 3, f"stem.{{weight,bias}}:0 norm.{BATCH_NORM} grouped.{{weight,bias}}:0 head.weight:1"),
            axis("channels", 4, f"stem.{{weight,bias}}:0 norm.{BATCH_NORM} grouped.weight:1"),
            axis("channels", 5, "grouped.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "channel_shuffle",
        randomised(ChannelShuffle),
        normal((2, 2, 5, 6)),
        (
            axis(
                "groups",
                4,
                f"{{stem,depthwise}}.{{weight,bias}}:0 grouped.weight:0 norm.{BATCH_NORM} pointwise.weight:1",
            ),
            axis("channels", 3, "stem.{weight,bias}:0 grouped.weight:1"),
            axis("channels", 5, f"grouped.weight:0 norm.{BATCH_NORM} depthwise.{{weight,bias}}:0 pointwise.weight:1"),
            axis("channels", 7, "pointwise.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "channel_shuffle_between_groups",
        randomised(ChannelShuffleBetweenGroups),
        normal((2, 2, 5, 6)),
        (
            axis(
                "groups",
                3,
                f"stem.{{weight,bias}}:0 {{grouped1,depthwise}}.weight:0 norm.{BATCH_NORM} grouped2.weight:1",
            ),
            axis("channels", 4, "stem.{weight,bias}:0 grouped1.weight:1"),
            axis(
                "groups",
                2,
                f"{{grouped1,depthwise}}.weight:0 norm.{BATCH_NORM} grouped2.{{weight,bias}}:0 head.weight:1",
            ),
            axis("channels", 3, f"{{grouped1,depthwise}}.weight:0 norm.{BATCH_NORM} grouped2.weight:1"),
            axis("channels", 5, "grouped2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "shuffle_unit",
        randomised(ShuffleUnit),
        normal((2, 3, 5, 6)),
        (
            axis("channels", 5, "{stem,conv2}.{weight,bias}:0 conv1.weight:1 head.weight:1"),
            axis("channels", 7, f"conv1.{{weight,bias}}:0 depthwise.weight:0 norm.{BATCH_NORM} conv2.weight:1"),
        ),
    ),
    ZooEntry(
        "inverted_residual",
        randomised(InvertedResidual),
        normal((2, 3, 5, 7)),
        (
            axis(
                "residual",
                6,
                f"stem.{{weight,bias}}:0 expand.0.weight:1 project.0.weight:0 project.1.{BATCH_NORM} head.weight:1",
            ),
            axis(
                "channels",
                10,
                f"{{expand,depthwise}}.0.weight:0 {{expand,depthwise}}.1.{BATCH_NORM} squeeze.fc1.weight:1 "
                "squeeze.fc2.{weight,bias}:0 project.0.weight:1",
            ),
            axis("channels", 4, "squeeze.fc1.{weight,bias}:0 squeeze.fc2.weight:1"),
        ),
    ),
    ZooEntry(
        "zero_padded_shortcut",
        randomised(ZeroPaddedShortcut),
        normal((2, 3, 6, 8)),
        (
            axis("residual", 6, f"{{stem,conv2}}.weight:0 {{norm,norm2}}.{BATCH_NORM} conv1.weight:1 head.weight:1"),
            axis("channels", 5, "conv1.{weight,bias}:0 conv2.weight:1"),
        ),
    ),
)
