"""The proof of the same operators, where what torch runs may differ although the model is right."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import VerificationError
from secateur.testing.zoo.entry import randomised


class Routed(nn.Module):
    """Each row goes to the expert that a router chooses, behind a norm: units that go change the choice."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.router = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)
        self.experts = nn.ModuleList(nn.Linear(8, 5) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.first(x))
        choice = self.choice(y)
        out: Tensor = y.new_zeros(len(x), 5)
        for number, expert in enumerate(self.experts):
            if bool((choice == number).any()):
                rows = (choice == number).nonzero().flatten()
                out[rows] += expert(y[rows])
        return out

    def choice(self, y: Tensor) -> Tensor:
        best: Tensor = self.router(y).argmax(-1)
        return best


def test_a_router_may_choose_otherwise_in_the_compact_model() -> None:
    model, x = randomised(Routed)(), torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    plan = sc.trace(model, x).plan({"first": [1, 2]})
    small = sc.compact(model, plan)
    chosen = [set(m.choice(m.norm(m.first(x))).tolist()) for m in (model, small)]  # type: ignore[operator]
    assert len(chosen[0]) != len(chosen[1]), "as many experts run: this test shows nothing"
    assert sc.verify(model, plan, x).operators > 20


class GroupedQueries(nn.Module):
    """Two groups of query heads share the heads of keys and values; the scale is given."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = nn.Linear(6, 16), nn.Linear(6, 8), nn.Linear(6, 8), nn.Linear(16, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (2, -1, 4)).flatten(-3, -2)
        q, k, v = (y.unflatten(-1, (-1, 4)).transpose(1, 2) for y in (q.flatten(-2), self.k(x), self.v(x)))
        out: Tensor = self.out(
            F.scaled_dot_product_attention(q, k, v, scale=0.5, enable_gqa=True).transpose(1, 2).flatten(2)
        )
        return out


def test_one_unit_that_is_left_makes_no_other_operators() -> None:
    """Where a dim is 1, torch computes products in another way."""
    model, x = randomised(GroupedQueries)(), torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    network = sc.trace(model, x)
    assert network.axes
    for axis in network.axes:
        for count in (axis.least, axis.size - 1):
            assert sc.verify(model, network.plan({axis.name: range(count)}), x).operators > 5


def test_a_model_on_the_meta_device_has_the_proof_too() -> None:
    with torch.device("meta"):
        model, x = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3)), torch.zeros(2, 4)
    plan = sc.trace(model, x).plan({"0": range(5)})
    assert sc.verify(model, plan, x).operators == 3


class ShownWidth(nn.Module):
    """A default scale that follows the width, where nothing else shows it."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out, self.width = nn.Linear(6, 24), nn.Linear(8, 6), 8

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        scale = [n**-0.5 if n else 0.0 for n in range(9)][self.width]
        out: Tensor = self.out(F.scaled_dot_product_attention(q, k, v, scale=scale).view(*x.shape[:2], self.width))
        return out


def test_a_scale_that_python_makes_of_a_width_is_caught() -> None:
    model, x = randomised(ShownWidth)(), torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0))
    network = sc.trace(model, x)
    for axis in network.axes:
        plan = network.plan({axis.name: range(axis.size - 1)})
        if plan.attributes:
            with pytest.raises(VerificationError, match=r"runs scaled_dot_product_attention with scale="):
                sc.verify(model, plan, x)
            return
    pytest.fail("no axis changes the attribute: this test shows nothing")


class Caching(nn.Module):
    """Makes a table when it first runs, and keeps it."""

    def __init__(self) -> None:
        super().__init__()
        self.table: Tensor | None = None
        self.first, self.last = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.arange(x.shape[0], dtype=x.dtype)[:, None]
        out: Tensor = self.last(self.first(x).relu() + self.table)
        return out


def test_what_the_code_caches_when_it_runs_is_made_in_every_run() -> None:
    model, x = Caching(), torch.randn(3, 4)
    plan = sc.trace(model, x).plan({"first": range(5)})
    assert sc.verify(model, plan, x).operators > 0
    assert model.table is None
