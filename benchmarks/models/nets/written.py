"""Networks as people write them: sizes and weights kept wherever it was convenient."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Lambda(nn.Module):
    """A function as a layer."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def lambdas() -> nn.Module:
    """A sequence with functions in it, among them one that knows a width."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, stride=2, padding=1),
        Lambda(lambda x: F.relu(x)),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        Lambda(lambda x: x * torch.sigmoid(x)),
        Lambda(lambda x: F.adaptive_avg_pool2d(x, 4)),
        Lambda(lambda x: x.view(x.size(0), 64 * 16)),
        nn.Linear(64 * 16, 128),
        nn.LayerNorm(128),
        Lambda(torch.tanh),
        nn.Linear(128, 10),
    )


class ParametersInList(nn.Module):
    """Weights and biases in lists of parameters."""

    def __init__(self, widths: tuple[int, ...] = (20, 64, 48, 10)) -> None:
        super().__init__()
        pairs = list(itertools.pairwise(widths))
        self.weights = nn.ParameterList(nn.Parameter(torch.randn(b, a) / a**0.5) for a, b in pairs)
        self.biases = nn.ParameterList(nn.Parameter(torch.randn(b)) for _, b in pairs)

    def forward(self, x: Tensor) -> Tensor:
        for weight, bias in list(zip(self.weights, self.biases, strict=True))[:-1]:
            x = F.gelu(x @ weight.T + bias)
        return x @ self.weights[-1].T + self.biases[-1]


class ParametersInDict(nn.Module):
    """Gates of a cell in a dictionary of parameters."""

    def __init__(self, inputs: int = 16, hidden: int = 48) -> None:
        super().__init__()
        self.hidden = hidden
        self.cell = nn.ParameterDict()
        for gate in ("forget", "candidate"):
            self.cell[f"{gate}_x"] = nn.Parameter(torch.randn(inputs, hidden) / inputs**0.5)
            self.cell[f"{gate}_h"] = nn.Parameter(torch.randn(hidden, hidden) / hidden**0.5)
            self.cell[f"{gate}_bias"] = nn.Parameter(torch.zeros(hidden))
        self.output = nn.Linear(hidden, 5)

    def gate(self, name: str, x: Tensor, state: Tensor) -> Tensor:
        return x @ self.cell[f"{name}_x"] + state @ self.cell[f"{name}_h"] + self.cell[f"{name}_bias"]

    def forward(self, series: Tensor) -> Tensor:
        state = torch.zeros(series.size(0), self.hidden)
        for x in series.unbind(1):
            forget = torch.sigmoid(self.gate("forget", x, state))
            state = forget * state + (1 - forget) * torch.tanh(self.gate("candidate", x, forget * state))
        return self.output(state)


class FunctionalWeights(nn.Module):
    """Convolutions and layers called as functions, with weights, a mean and a variance of its own; one weight is standardised."""

    def __init__(self, channels: int = 32, hidden: int = 64) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(channels, 3, 3, 3) * 0.2)
        self.gain, self.shift = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.w1 = nn.Parameter(torch.randn(hidden, channels) * 0.1)
        self.b1 = nn.Parameter(torch.zeros(hidden))
        self.w2 = nn.Parameter(torch.randn(10, hidden) * 0.1)

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.kernel - self.kernel.mean((1, 2, 3), keepdim=True)
        kernel = kernel / (kernel.std((1, 2, 3), keepdim=True) + 1e-5)
        x = F.conv2d(x, kernel, stride=2, padding=1)
        x = F.relu(F.batch_norm(x, self.mean, self.var, self.gain, self.shift))
        x = F.linear(x.mean((2, 3)), self.w1, self.b1)
        return F.linear(F.relu(x), self.w2)


class EinopsNet(nn.Module):
    """A small vision transformer of einops layers and functions."""

    def __init__(self, side: int = 32, patch: int = 8, width: int = 64, heads: int = 4) -> None:
        super().__init__()
        from einops.layers.torch import Rearrange, Reduce

        self.heads = heads
        self.embed = nn.Sequential(
            Rearrange("b c (h p1) (w p2) -> b (h w) (p1 p2 c)", p1=patch, p2=patch), nn.Linear(3 * patch * patch, width)
        )
        self.position = nn.Parameter(torch.randn(1, (side // patch) ** 2, width))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.head = nn.Sequential(Reduce("b n d -> b d", "mean"), nn.Linear(width, 10))

    def forward(self, image: Tensor) -> Tensor:
        from einops import rearrange

        x = self.embed(image) + self.position
        q, k, v = rearrange(self.qkv(self.norm1(x)), "b n (three h d) -> three b h n d", three=3, h=self.heads)
        weights = (torch.einsum("bhid,bhjd->bhij", q, k) * q.shape[-1] ** -0.5).softmax(-1)
        x = x + self.out(rearrange(torch.einsum("bhij,bhjd->bhid", weights, v), "b h n d -> b n (h d)"))
        return self.head(x + self.mlp(self.norm2(x)))


@dataclass
class Shape:
    """The sizes of an attention block."""

    width: int = 64
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    groups: int = 4


class SizesInDataclass(nn.Module):
    """Grouped attention that asks a dataclass for its sizes while it runs."""

    def __init__(self, shape: Shape | None = None, embed: bool = True) -> None:
        super().__init__()
        self.shape = s = shape or Shape()
        self.embed = nn.Linear(s.width, s.width) if embed else nn.Identity()
        self.q = nn.Linear(s.width, s.heads * s.head_dim)
        self.kv = nn.Linear(s.width, 2 * s.kv_heads * s.head_dim)
        self.o = nn.Linear(s.heads * s.head_dim, s.width)
        self.norm = nn.GroupNorm(s.groups, s.width)
        self.output = nn.Linear(s.width, 7)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        s, (batch, time, _) = self.shape, x.shape
        q = self.q(x).view(batch, time, s.heads, s.head_dim).transpose(1, 2)
        k, v = self.kv(x).view(batch, time, 2, s.kv_heads, s.head_dim).permute(2, 0, 3, 1, 4)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, dim=1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, time, s.heads * s.head_dim)
        x = x + self.o(y)
        return self.output(self.norm(x.transpose(1, 2)).mean(-1))


class ConfigBlock(nn.Module):
    """A gated block that reads its sizes from a configuration that all blocks share."""

    def __init__(self, config: SimpleNamespace) -> None:
        super().__init__()
        self.config = config
        self.norm = nn.LayerNorm(config.hidden_size)
        self.up = nn.Linear(config.hidden_size, 2 * config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        up = self.up(self.norm(x))
        gate, value = up[..., : self.config.intermediate_size], up[..., self.config.intermediate_size :]
        return x + self.down(F.silu(gate) * value)


class SizesInConfig(nn.Module):
    """Blocks that share one configuration object."""

    def __init__(self) -> None:
        super().__init__()
        self.config = SimpleNamespace(vocab_size=100, hidden_size=48, intermediate_size=96, num_layers=3)
        self.embed = nn.Embedding(self.config.vocab_size, self.config.hidden_size)
        self.blocks = nn.ModuleList(ConfigBlock(self.config) for _ in range(self.config.num_layers))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embed(tokens) * self.config.hidden_size**0.5
        for block in self.blocks:
            x = block(x)
        return F.linear(x, self.embed.weight)


class ComputedAttributes(nn.Module):
    """Attributes computed in `__init__` from one another, and used in `forward`."""

    def __init__(self, in_features: int = 24, out_features: int = 64, parts: int = 4) -> None:
        super().__init__()
        self.in_features, self.out_features, self.parts = in_features, out_features, parts
        self.part = out_features // parts
        self.flat = self.part * 9
        self.conv = nn.Conv2d(in_features, out_features, 3, padding=1)
        self.mix = nn.Conv2d(out_features, out_features, 1)
        self.rest = nn.Linear(self.flat, 32)
        self.output = nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mix(F.relu(self.conv(x)))
        x = x.view(-1, self.parts, self.part, x.size(2), x.size(3)).amax(1)
        x = F.adaptive_max_pool2d(x, 3).view(-1, self.flat)
        return self.output(F.relu(self.rest(x)))


class QuarterOfWidth(nn.Module):
    """Slices whose places are worked out from `self.out_features` in `forward`."""

    def __init__(self, in_features: int = 24, out_features: int = 64) -> None:
        super().__init__()
        self.out_features = out_features
        self.first = nn.Linear(in_features, out_features)
        self.second = nn.Linear(out_features // 4, out_features)
        self.output = nn.Linear(out_features, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        quarter = self.out_features // 4
        gate, value = x[:, :quarter], x[:, 2 * quarter : 3 * quarter]
        rest = torch.cat([x[:, quarter : 2 * quarter], x[:, 3 * quarter :]], 1).view(-1, 2, quarter).sum(1)
        return self.output(F.relu(self.second(torch.sigmoid(gate) * value + rest)))


class LayersInPlainList(nn.Module):
    """Layers in a plain list, registered by name, and called in an order that a string says."""

    def __init__(self, order: str = "acbd") -> None:
        super().__init__()
        self.order = order
        layers = [nn.Linear(16, 48), nn.Linear(48, 48), nn.Linear(48, 48), nn.Linear(48, 6)]
        self.layers = dict(zip("abcd", layers, strict=True))
        for name, layer in self.layers.items():
            self.add_module(f"layer_{name}", layer)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.order[:-1]:
            x = F.relu(self.layers[name](x)) if name == "a" else x + F.relu(self.layers[name](x))
        return self.layers[self.order[-1]](x)


class SharedLayer(nn.Module):
    """One block used three times, with a gain of its own each time."""

    def __init__(self, width: int = 48, times: int = 3) -> None:
        super().__init__()
        self.embed, self.output = nn.Linear(12, width), nn.Linear(width, 4)
        self.block = nn.Sequential(nn.Linear(width, 2 * width), nn.ReLU(), nn.Linear(2 * width, width))
        self.gains = nn.Parameter(torch.ones(times, width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for gain in self.gains:
            x = x + gain * self.block(x)
        return self.output(x)
