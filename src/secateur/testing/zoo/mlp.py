"""Which axes do feed-forward networks have: hidden units, gates, parts of a projection, what a reduction leaves?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class MLP(nn.Module):
    """Hidden units between linear layers."""

    def __init__(self, sizes: tuple[int, ...] = (5, 7, 6, 3)) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = torch.tanh(layer(x))
        return self.layers[-1](x)


class FeedForward(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class MLPMixer(nn.Module):
    """The 6 tokens come from the picture and stay; the hidden units that mix them do not."""

    def __init__(self, tokens: int = 6, dim: int = 8) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, dim, 2, stride=2)
        self.norm1 = nn.LayerNorm(dim)
        self.token_mixing = FeedForward(tokens, 5)
        self.norm2 = nn.LayerNorm(dim)
        self.channel_mixing = FeedForward(dim, 10)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2)
        x = x + self.token_mixing(self.norm1(x).transpose(1, 2)).transpose(1, 2)
        x = x + self.channel_mixing(self.norm2(x))
        return self.head(self.norm(x).mean(dim=1))


class GatedByChunk(nn.Module):
    """One projection makes both the gate and what it gates."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(4, 2 * 7)
        self.down = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * value)


class GatedLinearUnit(nn.Module):
    """`F.glu` over the channels of a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(3, 2 * 5, 3)
        self.out = nn.Conv1d(5, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(F.glu(self.conv(x), dim=1))


class GatedByTwoLayers(nn.Module):
    """Gate and value from layers of their own, as in Llama."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(4, 7, bias=False)
        self.up = nn.Linear(4, 7, bias=False)
        self.down = nn.Linear(7, 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(x)) * self.up(x))


class SplitByTwoAttributes(nn.Module):
    """Each attribute can follow its own part, so the parts are independent."""

    def __init__(self, inner: int = 5, state: int = 6) -> None:
        super().__init__()
        self.inner = inner
        self.state = state
        self.project = nn.Linear(4, inner + state)
        self.left = nn.Linear(inner, 3)
        self.right = nn.Linear(state, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, state = self.project(x).split([self.inner, self.state], dim=-1)
        return self.left(F.silu(gate)) + self.right(torch.tanh(state))


class SplitBySameAttribute(nn.Module):
    """One attribute has one value, so two parts of that size shrink together, position by position."""

    def __init__(self, inner: int = 5, state: int = 6) -> None:
        super().__init__()
        self.inner = inner
        self.state = state
        self.project = nn.Linear(4, 2 * inner + state)
        self.left = nn.Linear(inner, 3)
        self.middle = nn.Linear(inner, 3)
        self.right = nn.Linear(state, 3)

    def forward(self, x: Tensor) -> Tensor:
        a, b, c = torch.split(self.project(x), [self.inner, self.inner, self.state], dim=-1)
        return self.left(F.silu(a)) + self.middle(F.relu(b)) + self.right(torch.tanh(c))


class LiteralSlice(nn.Module):
    """`[:, :4]` always means four positions, so those four stay; the 6 after them are free."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(5, 4 + 6)
        self.left = nn.Linear(4, 3)
        self.right = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.project(x))
        return self.left(x[:, :4]) + self.right(x[:, 4:])


class LiteralView(nn.Module):
    """A view into literal sizes cannot follow anything, so both factors stay."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(5, 4 * 6)
        self.gain = nn.Parameter(torch.ones(6))
        self.fc2 = nn.Linear(4 * 6, 7)
        self.fc3 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc1(x).view(-1, 4, 6) * self.gain
        return self.fc3(F.relu(self.fc2(F.relu(x.view(-1, 24)))))


class ChannelPooling(nn.Module):
    """A map made of all channels of the first convolution gates the second."""

    def __init__(self, mean: bool) -> None:
        super().__init__()
        self.mean = mean
        self.conv1 = nn.Conv2d(3, 6, 3)
        self.conv2 = nn.Conv2d(6, 5, 1)
        self.head = nn.Linear(5, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv1(x))
        pooled = x.mean(dim=1, keepdim=True) if self.mean else x.sum(dim=1, keepdim=True)
        return self.head((self.conv2(x) * pooled).mean((2, 3)))


class SoftmaxOverUnits(nn.Module):
    """Hidden units that share a softmax: without one of them, the others get more."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(4, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.softmax(self.fc1(x), dim=-1))


ENTRIES = (
    ZooEntry(
        "mlp",
        randomised(MLP),
        normal((2, 5)),
        (
            axis("neurons", 7, "layers.0.{weight,bias}:0 layers.1.weight:1"),
            axis("neurons", 6, "layers.1.{weight,bias}:0 layers.2.weight:1"),
        ),
    ),
    ZooEntry(
        "mlp_mixer",
        randomised(MLPMixer),
        normal((2, 3, 4, 6)),
        (
            axis(
                "residual",
                8,
                "{embed,norm1,norm2,norm,channel_mixing.fc2}.{weight,bias}:0 {channel_mixing.fc1,head}.weight:1",
                exact=False,
            ),
            axis("neurons", 5, "token_mixing.fc1.{weight,bias}:0 token_mixing.fc2.weight:1"),
            axis("neurons", 10, "channel_mixing.fc1.{weight,bias}:0 channel_mixing.fc2.weight:1"),
        ),
    ),
    ZooEntry(
        "gated_by_chunk",
        randomised(GatedByChunk),
        normal((2, 5, 4)),
        (axis("neurons", 7, "up.{weight,bias}:0 down.weight:1"),),
    ),
    ZooEntry(
        "gated_linear_unit",
        randomised(GatedLinearUnit),
        normal((2, 3, 8)),
        (axis("channels", 5, "conv.{weight,bias}:0 out.weight:1"),),
    ),
    ZooEntry(
        "gated_by_two_layers",
        randomised(GatedByTwoLayers),
        normal((2, 5, 4)),
        (axis("neurons", 7, "{gate,up}.weight:0 down.weight:1"),),
    ),
    ZooEntry(
        "split_by_two_attributes",
        randomised(SplitByTwoAttributes),
        normal((2, 4)),
        (
            axis("neurons", 5, "project.{weight,bias}:0 left.weight:1"),
            axis("neurons", 6, "project.{weight,bias}:0 right.weight:1"),
        ),
    ),
    ZooEntry(
        "split_by_same_attribute",
        randomised(SplitBySameAttribute),
        normal((2, 4)),
        (
            axis("neurons", 5, "project.{weight,bias}:0 {left,middle}.weight:1"),
            axis("neurons", 6, "project.{weight,bias}:0 right.weight:1"),
        ),
    ),
    ZooEntry(
        "literal_slice",
        randomised(LiteralSlice),
        normal((2, 5)),
        (axis("neurons", 6, "project.{weight,bias}:0 right.weight:1"),),
    ),
    ZooEntry(
        "literal_view",
        randomised(LiteralView),
        normal((2, 5)),
        (axis("neurons", 7, "fc2.{weight,bias}:0 fc3.weight:1"),),
    ),
    ZooEntry(
        "sum_over_channels",
        randomised(lambda: ChannelPooling(mean=False)),
        normal((2, 3, 5, 6)),
        (
            axis("channels", 6, "conv1.{weight,bias}:0 conv2.weight:1"),
            axis("channels", 5, "conv2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "mean_over_channels",
        randomised(lambda: ChannelPooling(mean=True)),
        normal((2, 3, 5, 6)),
        (
            axis("channels", 6, "conv1.{weight,bias}:0 conv2.weight:1", exact=False),
            axis("channels", 5, "conv2.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "softmax_over_units",
        randomised(SoftmaxOverUnits),
        normal((2, 4)),
        (axis("neurons", 7, "fc1.{weight,bias}:0 fc2.weight:1", exact=False),),
    ),
)
