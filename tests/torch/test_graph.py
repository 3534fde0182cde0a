"""The graph form frees what a model's own code holds fast."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import CaptureError
from secateur.torch.graph import as_graph


class Attention(nn.Module):
    """The width of the heads is computed from that of the stream, and the other way round."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.norm, self.heads = nn.Linear(8, width), nn.LayerNorm(width), heads
        self.qkv, self.out, self.head = nn.Linear(width, 3 * width), nn.Linear(width, width), nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        b, n, c = x.shape
        q, k, v = self.qkv(self.norm(x)).reshape(b, n, 3, self.heads, c // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, c)
        out: Tensor = self.head(x + self.out(mixed))
        return out


class Literal(nn.Module):
    """Widths written as numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(8 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(x).relu().view(-1, 8 * 16))
        return out


INPUTS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


def test_the_graph_computes_what_the_model_computes_for_any_batch() -> None:
    model = Attention().eval()
    graph = as_graph(model, INPUTS)
    for batch in (2, 5):
        x = torch.randn(batch, 4, 8)
        torch.testing.assert_close(graph(x), model(x))
    assert list(graph.state_dict()) == list(model.state_dict())


def test_heads_and_stream_are_free_of_each_other() -> None:
    (together,) = sc.trace(Attention(), INPUTS).axes
    assert together.size == 4
    graph = as_graph(Attention(), INPUTS)
    network = sc.trace(graph, INPUTS)
    assert [axis.size for axis in network.axes] == [16, 4, 4]
    plan = network.plan({axis.name: range(axis.size // 2) for axis in network.axes})
    assert sc.verify(graph, plan, INPUTS).permutation < 1e-12
    small = sc.compact(graph, plan)
    assert sum(p.numel() for p in small.parameters()) == network.cost(plan.counts).parameters


def test_numbers_in_the_code_follow() -> None:
    x = torch.randn(2, 3, 4, 4)
    assert not sc.trace(Literal(), x).axes
    graph = as_graph(Literal(), x)
    network = sc.trace(graph, x)
    plan = network.plan({network.axes[0].name: [1, 4, 6]})
    assert sc.verify(graph, plan, x).zero_is_prune < 1e-12


def test_a_compact_graph_exports_and_reloads(tmp_path: object) -> None:
    graph = as_graph(Attention(), INPUTS)
    network = sc.trace(graph, INPUTS)
    small = sc.compact(graph, network.plan({axis.name: range(2) for axis in network.axes}))
    again = torch.export.export(small, (INPUTS,)).module()
    assert torch.equal(again(INPUTS), small(INPUTS))
    sc.save(small, str(tmp_path))
    loaded = sc.load(as_graph(Attention(), INPUTS), str(tmp_path))
    assert torch.equal(loaded(INPUTS), small(INPUTS))


def test_a_model_that_cannot_be_exported_is_refused_with_the_reason() -> None:
    class Branches(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match="Branches has no graph form"):
        as_graph(Branches(), INPUTS)
