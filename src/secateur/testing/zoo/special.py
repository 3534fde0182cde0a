"""Which axes are there when the Python or the parameters are unusual?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm, weight_norm

from secateur.testing.zoo.entry import Inputs, ZooEntry, axis, normal, randomised


class WeightNorm(nn.Module):
    """Each output channel has a length and a direction of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = weight_norm(nn.Conv1d(3, 6, 3))
        self.conv2 = nn.Conv1d(6, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv2(F.leaky_relu(self.conv1(x)))


class SpectralNorm(nn.Module):
    """All rows are divided by one number, which two buffers estimate."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = spectral_norm(nn.Linear(4, 7))
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(x)))


class ChannelBuffers(nn.Module):
    """Buffers along the input channels stay; buffers along hidden channels go with them."""

    input_mean: Tensor
    mean: Tensor
    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("input_mean", torch.randn(3, 1, 1))
        self.register_buffer("mean", torch.randn(1, 6, 1, 1))
        self.register_buffer("scale", torch.rand(6) + 0.5)
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = (self.conv1(x - self.input_mean) - self.mean) * self.scale.view(1, -1, 1, 1)
        return self.conv2(F.relu(x))


class ModuleUsedTwice(nn.Module):
    """A layer that reads what it wrote has its rows tied to its columns."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(4, 6)
        self.shared = nn.Linear(6, 6)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        x = F.relu(self.shared(x))
        x = F.relu(self.shared(x))
        return self.head(x)


class SeveralInputsAndOutputs(nn.Module):
    """Two named inputs are joined; the outputs are nested, and features that are given out stay."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 5, 3)
        self.fc = nn.Linear(4, 6)
        self.fuse = nn.Linear(5 + 6, 7)
        self.features = nn.Linear(7, 8)
        self.boxes = nn.Linear(8, 4)
        self.classes = nn.Linear(7, 2)

    def forward(self, image: Tensor, metadata: Tensor) -> tuple[Tensor, tuple[Tensor, dict[str, Tensor]]]:
        image = F.relu(self.conv(image)).mean((2, 3))
        x = F.relu(self.fuse(torch.cat([image, torch.tanh(self.fc(metadata))], dim=-1)))
        features = self.features(x)
        return self.classes(x), (self.boxes(F.relu(features)), {"features": features})


class DataBranch(nn.Module):
    """`forward` looks at values, so it can only be watched on real tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        positive = x.sum() > 0
        x = self.fc1(x)
        x = torch.relu(x) if positive else torch.tanh(x)
        return self.fc2(x)


class TwoLayers(nn.Module):
    """The plainest model, for what is special outside the model."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 7)
        self.norm = nn.LayerNorm(7)
        self.fc2 = nn.Linear(7, 6)
        self.fc3 = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc3(F.relu(self.fc2(F.gelu(self.norm(self.fc1(x))))))


class InPlaceWrites(nn.Module):
    """A sum is written into the first `k` units through a view: they are one axis, the others another."""

    def __init__(self, k: int = 5, others: int = 3) -> None:
        super().__init__()
        self.k = k
        self.stem = nn.Linear(4, k + others)
        self.side = nn.Linear(k + others, k)
        self.head = nn.Linear(k + others, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.side(F.relu(x))
        y.add_(0.5).relu_()
        x[:, : self.k] += y
        x.relu_()
        return self.head(x)


def partly_frozen() -> nn.Module:
    """A model of which the first layers must not be trained; they can be pruned all the same."""
    model = TwoLayers()
    model.fc1.requires_grad_(False)
    model.norm.requires_grad_(False)
    return model


def in_bfloat16() -> nn.Module:
    """A model in half precision."""
    return randomised(TwoLayers)().bfloat16()


def on_meta() -> nn.Module:
    """A model without values."""
    with torch.device("meta"):
        return TwoLayers().eval()


def images_with_metadata() -> Inputs:
    """Named inputs: an image and a vector for each."""
    generator = torch.Generator().manual_seed(1)
    return {"image": torch.randn(2, 3, 5, 6, generator=generator), "metadata": torch.randn(2, 4, generator=generator)}


def features_in_bfloat16() -> Inputs:
    """Features in half precision."""
    return torch.randn(2, 5, generator=torch.Generator().manual_seed(1)).bfloat16()


def features_on_meta() -> Inputs:
    """Features without values."""
    return torch.empty(2, 5, device="meta")


_TWO_LAYERS = (
    axis("neurons", 7, "{fc1,norm}.{weight,bias}:0 fc2.weight:1", exact=False),
    axis("neurons", 6, "fc2.{weight,bias}:0 fc3.weight:1"),
)

ENTRIES = (
    ZooEntry(
        "weight_norm",
        randomised(WeightNorm),
        normal((2, 3, 7)),
        (axis("channels", 6, "conv1.parametrizations.weight.{original0,original1}:0 conv1.bias:0 conv2.weight:1"),),
    ),
    ZooEntry(
        "spectral_norm",
        randomised(SpectralNorm),
        normal((2, 4)),
        (
            axis(
                "neurons",
                7,
                "fc1.parametrizations.weight.{original,0._u}:0 fc1.bias:0 fc2.weight:1",
            ),
        ),
    ),
    ZooEntry(
        "channel_buffers",
        randomised(ChannelBuffers),
        normal((2, 3, 4, 5)),
        (axis("channels", 6, "conv1.{weight,bias}:0 mean:1 scale:0 conv2.weight:1"),),
    ),
    ZooEntry(
        "module_used_twice",
        randomised(ModuleUsedTwice),
        normal((2, 4)),
        (axis("neurons", 6, "{embed,shared}.{weight,bias}:0 {shared,head}.weight:1"),),
    ),
    ZooEntry(
        "several_inputs_and_outputs",
        randomised(SeveralInputsAndOutputs),
        images_with_metadata,
        (
            axis("channels", 5, "conv.{weight,bias}:0 fuse.weight:1"),
            axis("neurons", 6, "fc.{weight,bias}:0 fuse.weight:1"),
            axis("neurons", 7, "fuse.{weight,bias}:0 {features,classes}.weight:1"),
        ),
    ),
    ZooEntry(
        "data_branch", randomised(DataBranch), normal((2, 5)), (axis("neurons", 7, "fc1.{weight,bias}:0 fc2.weight:1"),)
    ),
    ZooEntry("parameters_without_gradients", randomised(partly_frozen), normal((2, 5)), _TWO_LAYERS),
    ZooEntry("bfloat16", in_bfloat16, features_in_bfloat16, _TWO_LAYERS, dtype=torch.bfloat16),
    ZooEntry("on_meta", on_meta, features_on_meta, _TWO_LAYERS, numeric=False),
    ZooEntry(
        "in_place_writes",
        randomised(InPlaceWrites),
        normal((2, 4)),
        (
            axis("residual", 5, "stem.{weight,bias}:0 side.{weight,bias}:0 {side,head}.weight:1"),
            axis("neurons", 3, "stem.{weight,bias}:0 {side,head}.weight:1"),
        ),
    ),
)
