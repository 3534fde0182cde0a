"""Lists of modules that code goes through one by one: which become shorter, which cannot, and what a shorter one is."""

import copy
import pickle
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
        (LiteralRange, r"without some entries of experts, the compact model does not run.*IndexError"),
        (
            OneAfterTheOther,
            r"position 0 is picked by its number; experts: what some of its entries make is read before all of them ran",
        ),
        (
            Crossed,
            r"picked by its number; experts: its entries do not meet the positions that the code picks one to one",
        ),
        (KnowsItsPlace, r"without some entries of experts, the compact model runs select with index=1"),
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


class Views(nn.Module):
    """Each entry reads an input of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.experts, self.head = nn.ModuleList(nn.Linear(2, 6) for _ in range(3)), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(e(v).relu() for e, v in zip(self.experts, x.split(2, 1), strict=True)))


class Factors(Views):
    """Each entry's result is multiplied by another number."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(sum(factor * e(x) for factor, e in zip((0.5, 1.0, 2.0), self.experts, strict=False)))


class Powers(Views):
    """What the entries read changes from one to the next."""

    def __init__(self) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Linear(6, 6) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in self.experts:
            x = x.roll(1, 0) * 0.5
            out = out + expert(x)
        return self.head(out)


class OneReadsMore(Powers):
    """One of the entries reads something that the others do not."""

    def __init__(self) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(6))

    def forward(self, x: Tensor) -> Tensor:
        made = [e.weight.sum(0) * x for e in self.experts]
        made[1] = made[1] * self.shift
        return self.head(torch.stack(made).sum(0))


class LastIsOther(Powers):
    def forward(self, x: Tensor) -> Tensor:
        last = len(self.experts) - 1
        return self.head(sum(e(x) if i == last else e(x).relu() for i, e in enumerate(self.experts)))


class Overwrites(Powers):
    """An entry writes over the rows that others wrote."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        gate, out = self.gate(x), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = gate[:, i] > 0
            out[rows] = expert(x[rows])
        return self.head(out)


class Decays(Powers):
    def forward(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        for expert in self.experts:
            out = torch.add(expert(x), out, alpha=0.5)
        return self.head(out)


class Auxiliary(nn.Module):
    """A list that runs in training only."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 2)
        self.experts = nn.ModuleList(nn.Linear(8, 2) for _ in range(2))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        first = self.a(x).relu()
        second = self.b(first).relu()
        if self.training:
            return self.head(second), *(aux(h) for aux, h in zip(self.experts, (first, second), strict=True))
        return (self.head(second),)


@pytest.mark.parametrize("cls", [Views, Factors, Powers, OneReadsMore, LastIsOther, Overwrites, Decays, Auxiliary])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_a_list_stays_whose_entries_are_not_alike(
    cls: type[nn.Module], seed: int, prune_every_way: Callable[..., object]
) -> None:
    torch.manual_seed(seed)
    model = cls().eval()
    assert not [entry for entry in sc.trace(model, INPUTS).entries if entry.module.startswith("experts.")]
    if seed == 0:
        prune_every_way(model, INPUTS)


class Overwritten(Powers):
    """Each row is one entry's alone, because it makes one choice."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        weight, chosen = self.gate(x).softmax(-1).max(-1)
        out = torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            rows = chosen == i
            out[rows] = expert(x[rows]) * weight[rows, None]
        return self.head(out)


class Backwards(Listed):
    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights, out = self.router(x).softmax(-1), torch.zeros_like(x)
        for i in reversed(range(len(self.experts))):
            out = out + weights[:, i, None] * self.experts[i](x)
        return self.head(x + out)


class Nested(nn.Module):
    """Lists of lists."""

    def __init__(self) -> None:
        super().__init__()
        self.groups = nn.ModuleList(nn.ModuleList(nn.Linear(6, 6) for _ in range(3)) for _ in range(2))
        self.head = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        for group in self.groups:
            x = torch.stack([entry(x) for entry in group]).mean(0).relu()
        return self.head(x)


@pytest.mark.parametrize(
    ("cls", "units"), [(Overwritten, [3]), (Backwards, [4]), (Nested, [3, 3])], ids=lambda value: str(value)
)
def test_a_list_becomes_shorter_however_its_loop_is_written(
    cls: type[nn.Module], units: list[int], prune_every_way: Callable[..., object]
) -> None:
    model = built(cls)
    inputs = torch.randn(64, 6, generator=torch.Generator().manual_seed(0))
    network = sc.trace(model, inputs)
    assert [network.axis(name).size for name in sorted(network.axes_of_lists)] == units
    prune_every_way(model, inputs)


@pytest.mark.parametrize("kept", [[0], [1], [3], [1, 2]])
def test_any_entries_may_stay(kept: list[int]) -> None:
    class Sums(Listed):
        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.embed(x))
            weights = self.router(x).softmax(-1)
            return self.head(x + sum(weights[:, i, None] * e(x) for i, e in enumerate(self.experts)))

    model = built(Sums)
    plan = sc.trace(model, INPUTS).plan({"router": kept})
    assert sc.verify(model, plan, INPUTS).permutation < 1e-9


def test_a_number_that_is_no_length_stays_what_it_is() -> None:
    class Counts(Listed):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.count, self.patience = 4, 4, 4

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.embed(x))
            weights, out = self.router(x).softmax(-1), torch.zeros_like(x)
            for i in range(self.count):
                out = out + weights[:, i, None] * self.experts[i](x)
            return self.head(x + out)

    model = built(Counts)
    small = sc.compact(model, sc.trace(model, INPUTS).plan({"router": [1, 3]}))
    assert (small.scale, small.count, small.patience) == (4, 2, 4)


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


def test_a_shorter_list_is_edited_as_any_list(short: tuple[nn.Module, Plan, nn.Module]) -> None:
    experts = short[2].experts
    first, second, third = experts
    wrapped = experts[1] = nn.Sequential(second)
    assert list(experts) == [first, wrapped, third]
    experts.append(second)
    assert list(experts) == [first, wrapped, third, second]
    experts.insert(1, added := nn.Identity())
    assert list(experts) == [first, added, wrapped, third, second]
    del experts[0]
    assert experts.pop(0) is added
    assert list(experts) == [wrapped, third, second]
    del experts[1:]
    experts.extend([third])
    assert list(experts) == [wrapped, third]


class Mixture(nn.ModuleList):
    def forward(self, x: Tensor, weights: Tensor) -> Tensor:
        return sum(weights[:, i, None] * expert(x) for i, expert in enumerate(self))


def test_a_list_with_methods_of_its_own_keeps_them() -> None:
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
    again = pickle.loads(pickle.dumps(small.experts))
    assert type(again) is not Mixture
    assert isinstance(again, Mixture)
    assert [name for name, _ in again.named_children()] == ["1", "3"]


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
