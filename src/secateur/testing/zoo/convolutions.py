"""Which axes do convolutional networks have: chains, residual sums, concatenations?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised

BATCH_NORM = "{weight,bias,running_mean,running_var}:0"


class PlainCNN(nn.Module):
    """Each layer's output channels are the next layer's input channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 5, 3, padding=1)
        self.conv2 = nn.Conv2d(5, 7, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        x = self.pool(F.relu(self.conv2(x)))
        return self.head(x.view(x.size(0), -1))


class FlattenIntoLinear(nn.Module):
    """After `flatten` each channel owns height x width = 12 columns of the linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, padding=1)
        self.fc1 = nn.Linear(5 * 3 * 4, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.conv(x)), 2)
        return self.fc2(F.relu(self.fc1(torch.flatten(x, 1))))


class FlattenIntoBatchNorm(nn.Module):
    """After `flatten` each channel owns 6 entries of every vector of the batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 5, 3, bias=False)
        self.flatten = nn.Flatten()
        self.norm = nn.BatchNorm1d(5 * 2 * 3)
        self.head = nn.Linear(5 * 2 * 3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.norm(self.flatten(self.conv(x)))))


class ParametricReLU(nn.Module):
    """An activation with a slope for each channel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.act = nn.PReLU(6)
        self.conv2 = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(self.act(self.conv1(x)))


class BasicBlock(nn.Module):
    """conv, norm, relu, conv, norm; plus the input; relu."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, hidden, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.downsample is None else self.downsample(x)
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += identity
        return self.relu(out)


class Residual(nn.Module):
    """All that is added to a residual stream shares its units."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(6)
        self.layer1 = BasicBlock(6, 5, 6, 1)
        self.layer2 = BasicBlock(6, 7, 8, 2)
        self.head = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn(self.stem(x)), inplace=True)
        x = self.layer2(self.layer1(x))
        return self.head(x.mean((2, 3)))


class PreactivationBlock(nn.Module):
    """norm, relu, conv, twice; plus the input."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(width)
        self.conv1 = nn.Conv2d(width, hidden, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(hidden)
        self.conv2 = nn.Conv2d(hidden, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        out = self.conv1(F.relu(self.bn1(x)))
        return self.conv2(F.relu(self.bn2(out))) + x


class PreactivationResidual(nn.Module):
    """The residual stream meets a batch norm in each block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.blocks = nn.Sequential(PreactivationBlock(6, 5), PreactivationBlock(6, 7))
        self.norm = nn.BatchNorm2d(6)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.blocks(self.stem(x))))
        return self.head(F.adaptive_avg_pool2d(x, 1).flatten(1))


class DenseLayer(nn.Module):
    """norm, relu, conv."""

    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.relu(self.norm(x)))


class DenseConcat(nn.Module):
    """What a layer adds lives on in the inputs of all the layers after it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1, bias=False)
        self.layers = nn.ModuleList([DenseLayer(4, 3), DenseLayer(7, 5)])
        self.transition = nn.Conv2d(12, 6, 1)
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        x = F.relu(self.transition(torch.cat(features, 1)))
        return self.head(x.mean((2, 3)))


class Conv1dNet(nn.Module):
    """Strided and dilated convolutions over a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv1d(2, 5, 5, stride=2),
            nn.GELU(),
            nn.Conv1d(5, 6, 3, dilation=2, padding=2),
            nn.SiLU(),
            nn.AvgPool1d(2),
        )
        self.head = nn.Conv1d(6, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x))


class Conv3dNet(nn.Module):
    """Kernels with three spatial dims, all different."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(2, 5, (1, 2, 3))
        self.conv2 = nn.Conv3d(5, 7, (2, 3, 1))
        self.head = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.conv1(x)), (1, 1, 2))
        return self.head(F.relu(self.conv2(x)).amax((2, 3, 4)))


ENTRIES = (
    ZooEntry(
        "plain_cnn",
        randomised(PlainCNN),
        normal((2, 3, 8, 9)),
        (
            axis("channels", 5, "conv1.{weight,bias}:0 conv2.weight:1"),
            axis("channels", 7, "conv2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "flatten_into_linear",
        randomised(FlattenIntoLinear),
        normal((2, 2, 6, 8)),
        (
            axis("channels", 5, "conv.{weight,bias}:0 fc1.weight:1"),
            axis("neurons", 7, "fc1.{weight,bias}:0 fc2.weight:1"),
        ),
    ),
    ZooEntry(
        "flatten_into_batch_norm",
        randomised(FlattenIntoBatchNorm),
        normal((2, 2, 4, 5)),
        (axis("channels", 5, f"conv.weight:0 norm.{BATCH_NORM} head.weight:1"),),
    ),
    ZooEntry(
        "parametric_relu",
        randomised(ParametricReLU),
        normal((2, 3, 4, 5)),
        (axis("channels", 6, "conv1.{weight,bias}:0 act.weight:0 conv2.weight:1"),),
    ),
    ZooEntry(
        "residual",
        randomised(Residual),
        normal((2, 3, 6, 7)),
        (
            axis(
                "residual",
                6,
                f"{{stem,layer1.conv2}}.weight:0 {{bn,layer1.bn2}}.{BATCH_NORM} "
                "{layer1.conv1,layer2.conv1,layer2.downsample.0}.weight:1",
            ),
            axis("channels", 5, f"layer1.conv1.weight:0 layer1.bn1.{BATCH_NORM} layer1.conv2.weight:1"),
            axis("channels", 7, f"layer2.conv1.weight:0 layer2.bn1.{BATCH_NORM} layer2.conv2.weight:1"),
            axis(
                "channels",
                8,
                f"layer2.{{conv2,downsample.0}}.weight:0 layer2.{{bn2,downsample.1}}.{BATCH_NORM} head.weight:1",
            ),
        ),
    ),
    ZooEntry(
        "preactivation_residual",
        randomised(PreactivationResidual),
        normal((2, 3, 5, 6)),
        (
            axis(
                "residual",
                6,
                f"stem.{{weight,bias}}:0 blocks.{{0,1}}.bn1.{BATCH_NORM} blocks.{{0,1}}.conv1.weight:1 "
                f"blocks.{{0,1}}.conv2.{{weight,bias}}:0 norm.{BATCH_NORM} head.weight:1",
            ),
            axis("channels", 5, f"blocks.0.conv1.weight:0 blocks.0.bn2.{BATCH_NORM} blocks.0.conv2.weight:1"),
            axis("channels", 7, f"blocks.1.conv1.weight:0 blocks.1.bn2.{BATCH_NORM} blocks.1.conv2.weight:1"),
        ),
    ),
    ZooEntry(
        "dense_concat",
        randomised(DenseConcat),
        normal((2, 3, 5, 6)),
        (
            axis(
                "channels",
                4,
                f"stem.weight:0 layers.{{0,1}}.norm.{BATCH_NORM} layers.{{0,1}}.conv.weight:1 transition.weight:1",
            ),
            axis(
                "channels",
                3,
                f"layers.0.conv.weight:0 layers.1.norm.{BATCH_NORM} layers.1.conv.weight:1 transition.weight:1",
            ),
            axis("channels", 5, "layers.1.conv.weight:0 transition.weight:1"),
            axis("channels", 6, "transition.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "conv1d",
        randomised(Conv1dNet),
        normal((2, 2, 19)),
        (
            axis("channels", 5, "net.0.{weight,bias}:0 net.2.weight:1"),
            axis("channels", 6, "net.2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "conv3d",
        randomised(Conv3dNet),
        normal((2, 2, 3, 5, 8)),
        (
            axis("channels", 5, "conv1.{weight,bias}:0 conv2.weight:1"),
            axis("channels", 7, "conv2.{weight,bias}:0 head.weight:1"),
        ),
    ),
)
