"""What each expert adds to a token, as a router weighs it, against a computation by hand."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, ModelError
from secateur.torch.scores import Magnitude, RouterWeighted

Shape = tuple[int, int, int]


class Experts(nn.Module):
    """Rows are sorted by the expert that they go to, so that one grouped product serves all."""

    def __init__(self, dim: int, experts: int, hidden: int) -> None:
        super().__init__()
        self.experts = experts
        self.up = nn.Parameter(torch.randn(experts, hidden, dim))
        self.down = nn.Parameter(torch.randn(experts, dim, hidden))
        self.bias = nn.Parameter(torch.randn(experts, dim))

    def forward(self, x: Tensor, weights: Tensor, places: Tensor) -> Tensor:
        chosen = places.shape[1]
        ordered, order = places.flatten().sort()
        counts = torch.histc(ordered.float(), bins=self.experts, min=0, max=self.experts - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        hidden = F.grouped_mm(x[order // chosen], self.up.transpose(1, 2), offs=ends).relu()
        out = F.grouped_mm(hidden, self.down.transpose(1, 2), offs=ends) + self.bias[ordered]
        out = out * weights.flatten()[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return out[back].view(len(x), chosen, -1).sum(1)


class Model(nn.Module):
    def __init__(self, dim: int = 8, experts: int = 6, hidden: int = 12) -> None:
        super().__init__()
        self.embed, self.router, self.head = nn.Linear(4, dim), nn.Linear(dim, experts), nn.Linear(dim, 3)
        self.mixture = Experts(dim, experts, hidden)

    def routed(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x = self.embed(x).relu().flatten(0, 1)
        weights, places = torch.topk(self.router(x).softmax(-1), 2, dim=-1)
        return x, weights, places

    def forward(self, x: Tensor) -> Tensor:
        x, weights, places = self.routed(x)
        y: Tensor = self.head(x + self.mixture(x, weights, places))
        return y


def by_hand(model: Model, x: Tensor) -> Tensor:
    """The mean of g |f(x)| over the tokens of each expert."""
    found = []
    with torch.no_grad():
        rows, weights, places = model.routed(x)
        for expert in range(model.mixture.experts):
            there, which = torch.where(places == expert)
            hidden = (rows[there] @ model.mixture.up[expert].T).relu()
            written = hidden @ model.mixture.down[expert].T + model.mixture.bias[expert]
            found.append((weights[there, which] * written.norm(dim=1)).sum() / max(len(there), 1))
    return torch.stack(found)


@pytest.mark.parametrize("shape", [(8, 6, 12), (12, 4, 12), (4, 10, 12)], ids=str)
def test_what_experts_add_is_seen_one_by_one(shape: Shape) -> None:
    torch.manual_seed(0)
    model, x = Model(*shape).eval(), torch.randn(3, 40, 4)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    network = sc.trace(model, x)
    (axis,) = [axis for axis in network.axes if axis.kind == "experts"]
    scores = RouterWeighted(otherwise=Magnitude())(network, [x[:1], x[1:]])
    torch.testing.assert_close(torch.as_tensor(scores[axis.name]).float(), by_hand(model, x), rtol=1e-4, atol=1e-5)
    others = Magnitude()(network)
    assert all((scores[name] == others[name]).all() for name in others if name != axis.name)
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


def test_few_directions_come_near() -> None:
    torch.manual_seed(0)
    model, x = Model(64, 8, 16).eval(), torch.randn(4, 100, 4)
    network = sc.trace(model, x)
    (axis,) = [axis for axis in network.axes if axis.kind == "experts"]
    scores = RouterWeighted(directions=16, otherwise=Magnitude())(network, [x])
    torch.testing.assert_close(torch.as_tensor(scores[axis.name]).float(), by_hand(model, x), rtol=0.4, atol=0)


def test_the_experts_that_add_least_go() -> None:
    torch.manual_seed(0)
    model, x = Model().eval(), torch.randn(3, 40, 4)
    with torch.no_grad():
        model.mixture.down[[0, 4]] *= 1e-3
        model.mixture.bias[[0, 4]] *= 1e-3
    network = sc.trace(model, x)
    (axis,) = [axis for axis in network.axes if axis.kind == "experts"]
    scores = RouterWeighted(otherwise=Magnitude())(network, [x])
    used = [expert for expert in range(6) if by_hand(model, x)[expert] > 0]
    assert set(sorted(used, key=lambda expert: scores[axis.name][expert])[:2]) == {0, 4}


def test_a_mixture_of_transformers_is_scored() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.MixtralConfig(
        vocab_size=50, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=4,
    )  # fmt: skip
    model = transformers.MixtralForCausalLM(config).eval()
    ids = torch.randint(0, 50, (4, 16))
    network = sc.trace(model, {"input_ids": ids, "use_cache": False})
    names = [axis.name for axis in network.axes if axis.kind == "experts"]
    assert len(names) == 2
    scores = RouterWeighted(otherwise=Magnitude())(network, [{"input_ids": ids, "use_cache": False}])
    assert all((scores[name] > 0).all() for name in names)


class More(Model):
    """Does more with what experts write than to add it up, in the module that holds them."""

    def __init__(self, more: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        inner = self.mixture

        class Inside(Experts):
            def forward(self, x: Tensor, weights: Tensor, places: Tensor) -> Tensor:
                return more(super().forward(x, weights, places))

        self.mixture = Inside(8, 6, 12)
        self.mixture.load_state_dict(inner.state_dict())


def test_what_cannot_be_scored_is_refused() -> None:
    x = torch.randn(3, 40, 4)
    network = sc.trace(Model().eval(), x)
    with pytest.raises(ModelError, match=r"no stacked experts are the units of '.+; give RouterWeighted\(otherwise="):
        RouterWeighted()(network, [x])
    with pytest.raises(DataError, match="needs data"):
        RouterWeighted()(network)
    with pytest.raises(DataError, match="at least 1"):
        RouterWeighted(samples=0)
    for more in (lambda y: F.layer_norm(y, (8,)), torch.relu, F.leaky_relu):
        with pytest.raises(ModelError, match="'mixture' does more with what its experts write"):
            RouterWeighted(otherwise=Magnitude())(sc.trace(More(more).eval(), x), [x])
