"""Experts that a router chooses: their number can shrink, because what the router chose is followed to what it chose from."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import secateur as sc
from secateur.errors import PlanError
from secateur.torch.compensate import Refit, compensate
from secateur.torch.scores import Energy, Magnitude


class SortedMixture(nn.Module):
    """Rows are sorted by the expert that they go to, so that one grouped product serves all; as libraries do it."""

    def __init__(self, dim: int = 8, experts: int = 6, chosen: int = 2, hidden: int = 12) -> None:
        super().__init__()
        self.experts, self.chosen = experts, chosen
        self.embed = nn.Linear(6, dim)
        self.router = nn.Linear(dim, experts, bias=False)
        self.up = nn.Parameter(torch.empty(experts, hidden, dim))
        self.bias = nn.Parameter(torch.empty(experts, hidden))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        weights, places = torch.topk(self.router(x).softmax(-1), self.chosen, dim=-1)
        ordered, order = places.flatten().sort()
        counts = torch.histc(ordered.float(), bins=self.experts, min=0, max=self.experts - 1)
        ends = counts.cumsum(0, dtype=torch.int32)
        rows = x[order // self.chosen]
        hidden = F.grouped_mm(rows, self.up.transpose(1, 2), offs=ends) + self.bias[ordered]
        out = F.grouped_mm(F.relu(hidden), self.down.transpose(1, 2), offs=ends) * weights.flatten()[order][:, None]
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order), device=order.device)
        return self.head(x + out[back].view(len(x), self.chosen, -1).sum(1))


def test_experts_of_a_grouped_product_can_go() -> None:
    torch.manual_seed(0)
    model, x = SortedMixture().eval(), torch.randn(2, 8, 6)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    network = sc.trace(model, x)
    experts = network.axis("up.experts")
    slots = {f"{slot.tensor}:{slot.dim}" for slot in experts.slots}
    assert (experts.size, experts.least, experts.exact) == (6, 2, False)
    assert slots == {"router.weight:0", "up:0", "bias:0", "down:0"}
    plan = network.plan({"up.experts": [0, 2, 5]})
    proof = sc.verify(model, plan, x)
    assert proof.permutation < 1e-4
    small = sc.compact(model, plan)
    assert small.experts == 3
    with torch.no_grad():
        silenced = model.router.weight.clone()
        silenced[[1, 3, 4]] = 0.0
        model.router.weight.copy_(silenced)
        left = model.router(F.relu(model.embed(x)))
        assert small.router.weight.equal(silenced[[0, 2, 5]])
        assert left.shape[-1] == 6


def test_neurons_of_experts_have_the_energy_of_the_rows_that_are_sent_to_them() -> None:
    torch.manual_seed(0)
    model, x = SortedMixture().eval(), torch.randn(2, 50, 6)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    network = sc.trace(model, x)
    (axis,) = [axis for axis in network.axes if any((slot.tensor, slot.dim) == ("down", 2) for slot in axis.slots)]
    expected = torch.zeros(axis.size)
    with torch.no_grad():
        rows = F.relu(model.embed(x)).flatten(0, 1)
        chosen = model.router(rows).topk(2)[1]
        for expert in chosen.unique():
            read = rows[(chosen == expert).any(1)]
            hidden = F.relu(read @ model.up[expert].T + model.bias[expert])
            expected += hidden.square().mean(0) * model.down[expert].square().sum(0)
    found = Energy(otherwise=Magnitude())(network, [x])[axis.name]
    torch.testing.assert_close(torch.as_tensor(found).float(), expected)


@pytest.mark.parametrize(("experts", "chosen"), [(6, 2), (1, 1)])
def test_experts_are_not_refitted_because_a_router_may_send_other_rows_to_them(experts: int, chosen: int) -> None:
    torch.manual_seed(0)
    model, x = SortedMixture(experts=experts, chosen=chosen).eval(), torch.randn(2, 50, 6)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    network = sc.trace(model, x)
    (axis,) = [axis for axis in network.axes if any((slot.tensor, slot.dim) == ("down", 2) for slot in axis.slots)]
    plan = network.plan({axis.name: range(8)})
    small = sc.compact(model, plan)
    assert compensate(network, small, plan, [x], [Refit()]).down.equal(small.down)


def test_at_least_as_many_experts_stay_as_a_token_chooses() -> None:
    network = sc.trace(SortedMixture(chosen=3), torch.randn(2, 8, 6))
    assert network.axis("up.experts").least == 3
    with pytest.raises(PlanError, match="the 3 largest are chosen from as many units"):
        network.plan({"up.experts": [0, 1]})


def test_many_experts_may_be_chosen() -> None:
    network = sc.trace(SortedMixture(experts=40, chosen=20), torch.randn(2, 8, 6))
    assert network.axis("up.experts").least == 20


class DenseMixture(nn.Module):
    """Every expert is given every token, times a weight that is zero for those that were not chosen."""

    def __init__(self, dim: int = 7, experts: int = 6, hidden: int = 5) -> None:
        super().__init__()
        self.experts = experts
        self.embed, self.router = nn.Linear(6, dim), nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.randn(experts, dim, hidden))
        self.down = nn.Parameter(torch.randn(experts, hidden, dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        logits = self.router(x)
        best, places = logits.topk(2, dim=1)
        weights = torch.full_like(logits, float("-inf")).scatter_(1, places, best).transpose(0, 1).sigmoid()
        rows = x.repeat(self.experts, 1) * weights.reshape(-1, 1)
        out = F.relu(rows.view(self.experts, -1, x.shape[1]) @ self.up) @ self.down
        return self.head(x + out.view(-1, x.shape[1]).reshape(self.experts, -1, x.shape[1]).sum(0))


def test_experts_that_are_all_given_every_token_can_go() -> None:
    torch.manual_seed(0)
    model, x = DenseMixture(), torch.randn(2, 8, 6)
    network = sc.trace(model, x)
    assert {axis.kind: (axis.size, axis.least) for axis in network.axes} == {
        "experts": (6, 2), "residual": (7, 1), "neurons": (5, 1),
    }  # fmt: skip
    plan = network.plan({axis.name: range(3) for axis in network.axes})
    assert sc.verify(model, plan, x).permutation < 1e-12
    assert sc.compact(model, plan).experts == 3


def _sorted(places: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
    """The rows that places send to a table, in the order of the table, and which row each belongs to."""
    ordered, order = places.flatten().sort()
    return order // places.shape[1], table[ordered]


class Chooses(nn.Module):
    """A router whose choice is put to some use."""

    def __init__(self, use: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.router, self.table, self.use = nn.Linear(6, 5), nn.Parameter(torch.randn(5, 3)), use

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.router(x).topk(2, dim=-1)[1], self.table)


@pytest.mark.parametrize(
    "use",
    [
        lambda places, table: table[places],
        lambda places, table: table.index_select(0, places.flatten()),
        lambda places, table: table.gather(0, places[:, :1].expand(-1, 3)),
        lambda places, table: F.one_hot(places, table.shape[0]).sum(1).float() @ table,
        lambda places, table: (places[..., None] == torch.arange(table.shape[0])).sum(1).float() @ table,
        lambda places, table: torch.zeros(len(places), table.shape[0]).scatter_(1, places, 1.0) @ table,
        lambda places, table: table[torch.sort(places.flatten())[0]].sum(0),
        lambda places, table: torch.zeros(4, 3).index_add(0, *_sorted(places, table)),
    ],
)
def test_what_is_addressed_by_a_choice_shrinks_with_what_was_chosen_from(use: Callable[..., Tensor]) -> None:
    model, x = Chooses(use), torch.randn(4, 6)
    (axis,) = sc.trace(model, x).axes
    assert {f"{slot.tensor}:{slot.dim}" for slot in axis.slots} == {"router.weight:0", "router.bias:0", "table:0"}
    assert sc.verify(model, sc.trace(model, x).plan({axis.name: [0, 2, 3]}), x).permutation < 1e-12


@pytest.mark.parametrize(
    "use",
    [
        lambda places, table: table[places + 0],
        lambda places, table: places.float() @ table[:2],
        lambda places, table: table[places.flip(0).bool().long()],
        lambda places, table: (places[..., None] == 3) * table[0],
        lambda places, table: (places[..., None] < torch.arange(len(table))).sum(1).float() @ table,
        lambda places, table: table[places.clamp(max=3)],
        lambda places, table: table[torch.sort(places.flatten())[0]],
        lambda places, table: table.index_select(0, torch.sort(places.flatten())[0]),
        lambda places, table: table.gather(0, torch.sort(places.flatten())[0][:5, None].expand(5, 3)),
        lambda places, table: torch.zeros(8, 3).index_add(0, torch.arange(8), _sorted(places, table)[1]),
        lambda places, table: _sorted(places, table)[1] + table[0:1].expand(8, 3) * torch.arange(8)[:, None],
        lambda places, table: table[F.one_hot(places, 5).sum((0, 1)).cumsum(0).clamp(max=4)],
        lambda places, table: table[torch.bincount(places.flatten(), minlength=5).clamp(max=4)],
    ],
)
def test_a_choice_that_is_computed_with_freezes_what_was_chosen_from(use: Callable[..., Tensor]) -> None:
    network = sc.trace(Chooses(use), torch.randn(4, 6))
    assert not any(slot.tensor.startswith("router") for axis in network.axes for slot in axis.slots)
    frozen = {frozen.tensor for frozen in network.frozen}
    assert {"router.weight", "router.bias"} <= frozen
