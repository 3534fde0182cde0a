"""Networks for tables, speech and physics, small."""

import itertools
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Dlrm(nn.Module):
    """A recommender: dense features and embedding bags meet in dot products of all pairs (Naumov et al., 2019)."""

    def __init__(self, dense: int = 13, tables: tuple[int, ...] = (100, 50, 20), width: int = 32) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.EmbeddingBag(rows, width, mode="sum") for rows in tables)
        self.bottom = mlp(dense, 128, 64, width)
        count = len(tables) + 1
        self.top = mlp(width + count * (count - 1) // 2, 128, 64, 1)

    def forward(self, dense: Tensor, sparse: Tensor) -> Tensor:
        x = F.relu(self.bottom(dense))
        rows = [table(sparse[:, i]) for i, table in enumerate(self.embeddings)]
        together = torch.stack([x, *rows], 1)
        products = together @ together.transpose(1, 2)
        first, second = torch.tril_indices(products.shape[1], products.shape[2], offset=-1).unbind()
        return torch.sigmoid(self.top(torch.cat([x, products[:, first, second]], 1)))


class NeuMf(nn.Module):
    """A recommender: a product of two embeddings beside a network on two others (He et al., 2017)."""

    def __init__(self, users: int = 100, items: int = 200, factors: int = 32) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(users, factors), nn.Embedding(items, factors)
        self.user_mlp, self.item_mlp = nn.Embedding(users, 2 * factors), nn.Embedding(items, 2 * factors)
        self.mlp = nn.Sequential(mlp(4 * factors, 2 * factors, factors), nn.ReLU())
        self.output = nn.Linear(2 * factors, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        product = self.user(user) * self.item(item)
        deep = self.mlp(torch.cat([self.user_mlp(user), self.item_mlp(item)], -1))
        return self.output(torch.cat([product, deep], -1)).squeeze(-1)


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLU between them."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


class ConvModule(nn.Module):
    """The Conformer's convolution: a gate, a depthwise convolution and batch norm."""

    def __init__(self, width: int, side: int = 15) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first = nn.Conv1d(width, 2 * width, 1)
        self.depthwise = nn.Conv1d(width, width, side, padding=side // 2, groups=width)
        self.batch_norm = nn.BatchNorm1d(width)
        self.last = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.glu(self.first(self.norm(x).transpose(1, 2)), dim=1)
        return self.last(F.silu(self.batch_norm(self.depthwise(y)))).transpose(1, 2)


class RelativeAttention(nn.Module):
    """Attention with relative positions (Dai et al., 2019)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.h, self.d_k = heads, width // heads
        self.norm = nn.LayerNorm(width)
        self.linear_q, self.linear_k, self.linear_v, self.linear_out = (nn.Linear(width, width) for _ in range(4))
        self.linear_pos = nn.Linear(width, width, bias=False)
        self.pos_bias_u = nn.Parameter(torch.zeros(heads, self.d_k))
        self.pos_bias_v = nn.Parameter(torch.zeros(heads, self.d_k))

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        batch, time, _ = x.shape
        x = self.norm(x)
        q = self.linear_q(x).view(batch, time, self.h, self.d_k)
        k = self.linear_k(x).view(batch, time, self.h, self.d_k).transpose(1, 2)
        v = self.linear_v(x).view(batch, time, self.h, self.d_k).transpose(1, 2)
        p = self.linear_pos(positions).view(1, -1, self.h, self.d_k).transpose(1, 2)
        content = (q + self.pos_bias_u).transpose(1, 2) @ k.transpose(-2, -1)
        place = self.shift((q + self.pos_bias_v).transpose(1, 2) @ p.transpose(-2, -1))
        weights = ((content + place[..., :time]) / math.sqrt(self.d_k)).softmax(-1)
        return self.linear_out((weights @ v).transpose(1, 2).reshape(batch, time, self.h * self.d_k))

    @staticmethod
    def shift(x: Tensor) -> Tensor:
        """From distances to places."""
        batch, heads, rows, columns = x.shape
        padded = torch.cat([x.new_zeros(batch, heads, rows, 1), x], -1).view(batch, heads, columns + 1, rows)
        return padded[:, :, 1:].view(batch, heads, rows, columns)


class ConformerBlock(nn.Module):
    """Half a feed-forward, attention, a convolution and the other half (Gulati et al., 2020)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()

        def feed_forward() -> nn.Module:
            return nn.Sequential(
                nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
            )

        self.first, self.last = feed_forward(), feed_forward()
        self.attention, self.convolution = RelativeAttention(width, heads), ConvModule(width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor) -> Tensor:
        x = x + 0.5 * self.first(x)
        x = x + self.attention(x, positions)
        x = x + self.convolution(x)
        return self.norm(x + 0.5 * self.last(x))


class Conformer(nn.Module):
    """A speech encoder over a spectrogram, at a quarter of its rate."""

    def __init__(self, bins: int = 80, width: int = 64, heads: int = 4, layers: int = 2, classes: int = 30) -> None:
        super().__init__()
        self.subsample = nn.Sequential(nn.Conv2d(1, width, 3, 2), nn.ReLU(), nn.Conv2d(width, width, 3, 2), nn.ReLU())
        self.project = nn.Linear(width * (((bins - 1) // 2 - 1) // 2), width)
        self.width = width
        self.blocks = nn.ModuleList(ConformerBlock(width, heads) for _ in range(layers))
        self.output = nn.Linear(width, classes)

    def forward(self, spectrogram: Tensor) -> Tensor:
        x = self.subsample(spectrogram[:, None])
        batch, channels, time, bins = x.shape
        x = self.project(x.transpose(1, 2).reshape(batch, time, channels * bins))
        positions = self.positions(time)
        for block in self.blocks:
            x = block(x, positions)
        return self.output(x).log_softmax(-1)

    def positions(self, time: int) -> Tensor:
        """Sines of the distances from `time - 1` to `1 - time`."""
        distance = torch.arange(time - 1, -time, -1.0)[:, None]
        rates = torch.exp(torch.arange(0, self.width, 2) * (-math.log(10000.0) / self.width))
        angles = distance * rates
        return torch.stack([angles.sin(), angles.cos()], -1).flatten(1)[None]


class RnnT(nn.Module):
    """A transducer: an encoder of sound, a prediction network of labels, and a network that joins all pairs (Graves, 2012)."""

    def __init__(self, bins: int = 40, width: int = 64, joint: int = 64, classes: int = 30) -> None:
        super().__init__()
        self.encoder = nn.LSTM(bins, width, num_layers=2, batch_first=True, bidirectional=True)
        self.embedding = nn.Embedding(classes, width)
        self.prediction = nn.GRU(width, width, batch_first=True)
        self.encoder_proj, self.prediction_proj = nn.Linear(2 * width, joint), nn.Linear(width, joint)
        self.output = nn.Linear(joint, classes)

    def forward(self, sound: Tensor, labels: Tensor) -> Tensor:
        heard, _ = self.encoder(sound)
        said, _ = self.prediction(self.embedding(labels))
        joint = torch.tanh(self.encoder_proj(heard)[:, :, None] + self.prediction_proj(said)[:, None])
        return self.output(joint).log_softmax(-1)


class Pinn(nn.Module):
    """A physics-informed network: sines of a few frequencies, tanh layers with gates, one field (Wang et al., 2021)."""

    def __init__(self, inputs: int = 2, width: int = 64, layers: int = 4) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(inputs, width // 2))
        self.u, self.v = nn.Linear(width, width), nn.Linear(width, width)
        self.hidden = nn.ModuleList(nn.Linear(width, width) for _ in range(layers))
        self.output = nn.Linear(width, 1)

    def forward(self, points: Tensor) -> Tensor:
        angles = 2 * math.pi * points @ self.frequencies
        x = torch.cat([angles.sin(), angles.cos()], -1)
        u, v = torch.tanh(self.u(x)), torch.tanh(self.v(x))
        for layer in self.hidden:
            z = torch.tanh(layer(x))
            x = (1 - z) * u + z * v
        return self.output(x)
