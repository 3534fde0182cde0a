"""The network of the demonstration: residual blocks with depth-wise convolutions, written the ordinary way.

Nothing here knows of pruning. Its couplings are real ones: a depth-wise convolution ties the channels before it to those
behind it, and a residual stream ties every layer that reads or writes it.
"""

import torch
from torch import Tensor, nn


class Convolution(nn.Sequential):
    """A convolution with its batch norm, and a ReLU where wanted."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1, relu: bool = True):
        layers: list[nn.Module] = [
            nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outputs),
        ]
        super().__init__(*layers, *([nn.ReLU(inplace=True)] if relu else []))


class Block(nn.Module):
    """Point-wise, depth-wise, point-wise, around a shortcut.

    Source:
        M. Sandler et al., "MobileNetV2: Inverted Residuals and Linear Bottlenecks", CVPR 2018; with a ReLU behind the sum, and
        with a convolution in the shortcut where the shape changes, as in K. He et al., CVPR 2016.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1, expansion: int = 3):
        super().__init__()
        hidden = expansion * inputs
        self.expand = Convolution(inputs, hidden)
        self.spatial = Convolution(hidden, hidden, kernel=3, stride=stride, groups=hidden)
        self.project = Convolution(hidden, outputs, relu=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else Convolution(inputs, outputs, stride=stride, relu=False)

    def forward(self, x: Tensor) -> Tensor:
        """Features `[batch, inputs, height, width]` to `[batch, outputs, height / stride, width / stride]`."""
        return nn.functional.relu(self.shortcut(x) + self.project(self.spatial(self.expand(x))))


class ResidualNet(nn.Module):
    """Grey images to class scores, in two stages of residual blocks.

    Args:
        classes: The number of classes.
        width: The channels of the first stage; the second has twice as many.

    Example:
        >>> ResidualNet()(torch.zeros(1, 1, 28, 28)).shape
        torch.Size([1, 10])
    """

    def __init__(self, classes: int = 10, width: int = 32):
        super().__init__()
        self.stem = Convolution(1, width, kernel=3, stride=2)
        self.stage1 = nn.Sequential(Block(width, width), Block(width, width))
        self.stage2 = nn.Sequential(Block(width, 2 * width, stride=2), Block(2 * width, 2 * width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classify = nn.Linear(2 * width, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, 1, height, width]`, standardised, to logits `[batch, classes]`."""
        features = self.stage2(self.stage1(self.stem(images)))
        logits: Tensor = self.classify(self.pool(features).flatten(1))
        return logits


def example() -> tuple[ResidualNet, Tensor]:
    """The network, untrained, and a batch of images to run it on: float32 `[32, 1, 28, 28]`."""
    return ResidualNet(), torch.zeros(32, 1, 28, 28)
