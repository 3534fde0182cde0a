"""Lists of modules that code goes through one by one: which become shorter, which cannot, and what a shorter one is."""

import copy
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.axes import Plan
from secateur.testing.zoo.lists import ComparedChoice, Listed, WeightedLoop
from secateur.torch.short_list import ShortList

INPUTS = torch.randn(5, 6, generator=torch.Generator().manual_seed(0))


def built(cls: type[nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return cls().eval()


class SideBySide(nn.Module):
    """Layers that read the same, one after the other for the layer that reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(6, 7)
        self.views = nn.ModuleList(nn.Linear(7, 5) for _ in range(3))
        self.head = nn.Linear(15, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(torch.cat([view(x) for view in self.views], dim=-1)))


class Voters(nn.Module):
    """The mean of what several nets say."""

    def __init__(self) -> None:
        super().__init__()
        self.voters = nn.ModuleList(nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([voter(x) for voter in self.voters]).mean(0)


@pytest.mark.parametrize("cls", [SideBySide, Voters])
def test_layers_side_by_side_go_as_units(cls: type[nn.Module], prune_every_way: Callable[..., object]) -> None:
    model = built(cls)
    (axis,) = [axis for axis in sc.trace(model, INPUTS).axes if axis.kind == "groups"]
    assert axis.size == len(next(m for m in model.modules() if isinstance(m, nn.ModuleList)))
    assert not axis.exact
    prune_every_way(model, INPUTS)


class LiteralRange(Listed):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights = self.router(x).softmax(-1)
        out = torch.zeros_like(x)
        for i in range(4):
            out = out + weights[:, i, None] * self.experts[i](x)
        return self.head(x + out)


class OneAfterTheOther(Listed):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights = self.router(x).softmax(-1)
        for i, expert in enumerate(self.experts):
            x = x + weights[:, i, None] * expert(x)
        return self.head(x)


class Crossed(Listed):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights = self.router(x).softmax(-1)
        return self.head(sum(weights[:, 3 - i, None] * expert(x) for i, expert in enumerate(self.experts)))


class KnowsItsPlace(Listed):
    def __init__(self) -> None:
        super().__init__()
        for place, expert in enumerate(self.experts):
            expert.place = place

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights = self.router(x).softmax(-1)
        return self.head(sum(weights[:, expert.place, None] * expert(x) for expert in self.experts))


class Returned(Listed):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = F.relu(self.embed(x))
        weights = self.router(x).softmax(-1)
        made = [weights[:, i, None] * expert(x) for i, expert in enumerate(self.experts)]
        return self.head(sum(made)), made[1]


class NotAllReached(ComparedChoice):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights, chosen = torch.topk(self.router(x), 2)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            if i == 3 and x.sum() < 1e9:
                continue
            token, place = torch.where(chosen == i)
            out[token] += weights[token, place, None] * expert(x[token])
        return self.head(x + out)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (LiteralRange, r"without the first entry of experts, the compact model does not run.*IndexError"),
        (
            OneAfterTheOther,
            r"position 0 is picked by its number; experts: what some of its entries make is read before all of them ran",
        ),
        (
            Crossed,
            r"picked by its number; experts: its entries do not meet the positions that the code picks one to one",
        ),
        (KnowsItsPlace, r"without the first entry of experts, the compact model runs select with index=1"),
        (Returned, r"position 0 is picked by its number; experts: the model returns what some of its entries made"),
        (NotAllReached, r"experts: what some of its entries make is read before all"),
    ],
)
def test_a_list_stays_where_its_code_needs_every_entry(
    cls: type[nn.Module], reason: str, prune_every_way: Callable[..., object]
) -> None:
    model = built(cls)
    network = sc.trace(model, INPUTS)
    assert not network.entries
    reasons = [frozen.reason for frozen in network.frozen if frozen.tensor == "router.weight" and frozen.dim == 0]
    assert any(re.search(reason, text) for text in reasons), reasons
    prune_every_way(model, INPUTS)


class Tied(WeightedLoop):
    def __init__(self) -> None:
        super().__init__()
        self.experts[2].up = self.experts[1].up


class AlsoCalledAlone(WeightedLoop):
    def __init__(self) -> None:
        super().__init__()
        self.first = self.experts[0]


@pytest.mark.parametrize("cls", [Tied, AlsoCalledAlone])
def test_entries_that_are_held_elsewhere_too_stay(cls: type[nn.Module]) -> None:
    assert not sc.trace(built(cls), INPUTS).entries


@pytest.fixture
def short() -> tuple[nn.Module, Plan, nn.Module]:
    """A mixture, a plan that takes its second expert and the widths of others, and what comes of it."""
    model = built(WeightedLoop)
    plan = sc.trace(model, INPUTS).plan({"router": [0, 2, 3], "experts.0.up": [1, 2], "experts.3.up": range(4)})
    return model, plan, sc.compact(model, plan)


def test_entries_that_stay_keep_their_names_and_move_up(short: tuple[nn.Module, Plan, nn.Module]) -> None:
    model, plan, small = short
    assert isinstance(small.experts, ShortList)
    assert [name for name, _ in small.experts.named_children()] == ["0", "2", "3"]
    assert small.experts[1] is small.get_submodule("experts.2")
    assert small.experts[-1] is list(small.experts)[2]
    assert list(small.experts[1:]) == list(small.experts)[1:]
    assert plan.removal.entries == ("experts.1",)
    assert not isinstance(model.experts, ShortList)
    with torch.no_grad():
        router = small.router(F.relu(small.embed(INPUTS)))
    assert router.shape == (5, 3)


def test_a_list_with_methods_of_its_own_keeps_them() -> None:
    class Mixture(nn.ModuleList):
        def forward(self, x: Tensor, weights: Tensor) -> Tensor:
            return sum(weights[:, i, None] * expert(x) for i, expert in enumerate(self))

    class Model(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.experts = Mixture(self.experts)

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.embed(x))
            return self.head(x + self.experts(x, self.router(x).softmax(-1)))

    model = built(Model)
    plan = sc.trace(model, INPUTS).plan({"router": [1, 3]})
    small = sc.compact(model, plan)
    assert isinstance(small.experts, Mixture)
    assert type(small.experts).__name__ == "Mixture"
    assert len(small.experts) == 2
    assert sc.verify(model, plan, INPUTS).operators > 10


def test_a_shorter_list_is_exported_compiled_and_copied(short: tuple[nn.Module, Plan, nn.Module]) -> None:
    small = short[2]
    with torch.no_grad():
        expected = small(INPUTS)
        assert torch.equal(torch.export.export(small, (INPUTS,)).module()(INPUTS), expected)
        assert torch.equal(torch.compile(small, backend="eager")(INPUTS), expected)
        assert torch.equal(copy.deepcopy(small)(INPUTS), expected)


def test_what_was_shortened_is_shortened_again_and_loads(
    short: tuple[nn.Module, Plan, nn.Module], tmp_path: Path
) -> None:
    model, _, small = short
    network = sc.trace(small, INPUTS)
    assert [axis.size for axis in network.axes if axis.kind == "experts"] == [3]
    plan = network.plan({"router": [1, 2], "experts.3.up": [0, 3]})
    assert sc.verify(small, plan, INPUTS).permutation < 1e-9
    smaller = sc.compact(small, plan)
    assert [name for name, _ in smaller.experts.named_children()] == ["2", "3"]
    assert network.cost(plan).parameters == sum(p.numel() for p in smaller.parameters())
    sc.save(smaller, tmp_path)
    assert torch.equal(sc.load(model, tmp_path)(INPUTS), smaller(INPUTS))


def test_a_plan_with_entries_is_stored(short: tuple[nn.Module, Plan, nn.Module]) -> None:
    assert Plan.from_json(short[1].to_json()) == short[1]


def test_masking_zeroes_all_that_an_entry_holds_and_unmasking_gives_it_back(
    short: tuple[nn.Module, Plan, nn.Module],
) -> None:
    model, plan, _ = short
    masked = sc.mask(model, plan)
    assert not any(p.any() for p in masked.experts[1].parameters())
    assert all(p.any() for p in masked.experts[2].parameters())
    for ours, theirs in zip(sc.unmask(masked).parameters(), model.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_score_of_an_entry_is_that_of_all_it_holds() -> None:
    model = built(WeightedLoop)
    network = sc.trace(model, INPUTS)
    scores = sc.scores.Magnitude()(network, model)["router"]
    held = [sum(float(p.detach().square().sum()) for p in expert.parameters()) for expert in model.experts]
    rows = model.router.weight.detach().square().sum(1) + model.router.bias.detach().square()
    np.testing.assert_allclose(scores, np.sqrt(np.array(held) + rows.numpy()), rtol=1e-6)


def test_of_entries_that_differ_in_size_it_counts_which_go() -> None:
    model = built(WeightedLoop)
    small = sc.compact(model, sc.trace(model, INPUTS).plan({"experts.0.up": [0]}))
    network = sc.trace(small, INPUTS)
    for kept in ([1, 2, 3], [0, 1, 2], [0, 3]):
        plan = network.plan({"router": kept})
        smaller = sc.compact(small, plan)
        assert network.cost(plan).parameters == sum(p.numel() for p in smaller.parameters())
        assert network.cost(plan) == sc.trace(smaller, INPUTS).cost()


def test_a_budget_takes_whole_experts() -> None:
    model = built(ComparedChoice)
    inputs = torch.randn(2, 8, 6, generator=torch.Generator().manual_seed(1))
    result = sc.prune(
        model, inputs, budget=sc.Budget(params=0.7), exclude=("embed", "experts.*"), score=sc.scores.Magnitude()
    )
    assert 2 <= len(result.model.experts) < 4
    assert result.model(inputs).shape == (16, 3)
