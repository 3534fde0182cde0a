"""Tables that longer inputs reach, padded encoders, numbers made of sizes, and what plans and costs refuse."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.allocate import Budget, Global
from secateur.errors import DataError, ModelError, PlanError


class Positions(nn.Module):
    """A table of positions, of which short inputs read the first rows only."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.table = nn.Linear(6, 16), nn.Parameter(torch.randn(64, 16))
        self.bias, self.gates = nn.Parameter(torch.randn(64, 64)), nn.Parameter(torch.randn(8, 16))
        self.hidden, self.out = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[1]
        x = self.embed(x) + self.table[:n] + self.gates[0] + self.gates[2]
        x = self.bias[:n, :n].softmax(-1) @ x
        out: Tensor = self.out(self.hidden(x).relu())
        return out


def test_rows_that_only_longer_inputs_reach_stay() -> None:
    model = Positions()
    network = sc.trace(model, torch.randn(2, 10, 6))
    assert sorted(axis.size for axis in network.axes) == [16, 32]
    plan = network.plan({axis.name: range(axis.size // 2) for axis in network.axes})
    for length in (10, 3, 40):
        assert sc.verify(model, plan, torch.randn(2, length, 6)).zero_is_prune < 1e-12


class Padded(nn.Module):
    """An encoder whose padded positions are pooled with the others."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True, dropout=0.0)
        self.embed, self.encoder, self.out = nn.Embedding(20, 16), nn.TransformerEncoder(layer, 2), nn.Linear(16, 3)

    def forward(self, ids: Tensor, padding: Tensor) -> Tensor:
        out: Tensor = self.out(self.encoder(self.embed(ids), src_key_padding_mask=padding).mean(1))
        return out


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("lengths", [(6, 6), (4, 5), (6, 2)])
def test_an_encoder_without_some_heads_writes_zeros_where_the_library_does(lengths: tuple[int, int]) -> None:
    model, ids = Padded().eval(), torch.arange(12).reshape(2, 6)
    padding = torch.arange(6) >= torch.tensor(lengths)[:, None]
    network = sc.trace(model, (ids, torch.zeros_like(padding)))
    plan = network.plan({"encoder.layers.0.self_attn.heads": [0, 1, 2]})
    assert sc.verify(model, plan, (ids, padding)).zero_is_prune < 1e-12


@pytest.mark.parametrize("number", [lambda x: x.numel(), lambda x: len(x.T), lambda x: x.stride(0)])
def test_numbers_made_of_sizes_freeze_them(number: object) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            x = self.first(x).softmax(-1)
            out: Tensor = self.second(x * number(x))  # type: ignore[operator]
            return out

    assert not sc.trace(Scaled(), torch.randn(3, 6)).axes


@pytest.mark.parametrize("middle", [lambda a, b: a / b, lambda a, b: 1 / a + b, lambda a, b: a.abs().log() + b])
def test_what_cannot_be_masked_can_be_pruned(middle: object) -> None:
    class Divides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.out = nn.Linear(6, 16), nn.Linear(6, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(middle(self.a(x), self.b(x)))  # type: ignore[operator]
            return out

    model, x = Divides(), torch.randn(3, 6)
    network = sc.trace(model, x)
    (axis,) = network.axes
    assert not axis.exact
    assert sc.verify(model, network.plan({axis.name: range(8)}), x).permutation < 1e-12


def two() -> nn.Module:
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"0": 5}, "say which units stay"),
        ({"0": [1, 1]}, "each once"),
        ([1, 2], "say which units of which axis stay"),
        ({"0": [8]}, "has units 0..7"),
    ],
)
def test_choices_that_mean_nothing_are_refused(kept: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        sc.trace(two(), torch.zeros(1, 4)).plan(kept)  # type: ignore[arg-type]


@pytest.mark.parametrize("counts", [{"nothing": 1}, {"0": 9}, {"0": -1}])
def test_costs_of_what_cannot_be_are_refused(counts: dict[str, int]) -> None:
    with pytest.raises(PlanError):
        sc.trace(two(), torch.zeros(1, 4)).cost(counts)


def test_an_optimiser_of_another_model_is_refused() -> None:
    model = two()
    plan = sc.trace(model, torch.zeros(1, 4)).plan({"0": range(4)})
    with pytest.raises(PlanError, match="holds no parameter of this Sequential"):
        sc.compact(model, plan, optimizer=torch.optim.SGD(two().parameters(), lr=0.1))


def test_several_inputs_without_targets_are_data() -> None:
    class Adds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = two(), two()

        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            out: Tensor = self.a(x) + self.b(y)
            return out

    pair = (torch.randn(4, 4), torch.randn(4, 4))
    result = sc.prune(Adds(), pair, budget=sc.Budget(macs=0.5), data=[(pair, None)] * 2, measure=False)
    assert result.proof.permutation < 1e-9


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"data": 5}, "data= must be something to go through"),
        ({"score": sc.scores.Magnitude}, "score= is an object"),
        ({"score": "magnitude"}, "score= is an object"),
        ({"compensation": sc.compensation.Refit()}, "compensation= must be something to go through"),
        ({"evaluate": lambda model: 97.2}, "shares between 0 and 1"),
    ],
)
def test_arguments_of_the_wrong_kind_are_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        sc.prune(two(), torch.zeros(1, 4), budget=sc.Budget(macs=0.5), **arguments)  # type: ignore[arg-type]


def test_what_is_no_model_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a function, not a torch.nn.Module"):
        sc.trace(lambda x: x, torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ModelError, match=r"a NoneType, not a torch.nn.Module"):
        sc.prune(None, torch.zeros(1), budget=sc.Budget(macs=0.5))  # type: ignore[arg-type]


class Experts(nn.Module):
    """A mixture of experts as one product of groups of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 16), nn.Linear(16, 8)
        self.up, self.down = nn.Parameter(torch.randn(4, 16, 32)), nn.Parameter(torch.randn(4, 32, 16))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        ends = torch.tensor([2, 4, 5, 8], dtype=torch.int32, device=x.device)
        hidden = torch._grouped_mm(x, self.up, offs=ends).relu()
        out: Tensor = self.last(x + torch._grouped_mm(hidden, self.down, offs=ends))
        return out


def test_the_widths_of_experts_are_free_and_their_number_stays() -> None:
    model, x = Experts(), torch.randn(8, 8)
    network = sc.trace(model, x)
    assert sorted(axis.size for axis in network.axes) == [16, 32]
    plan = network.plan({axis.name: range(axis.size // 2) for axis in network.axes})
    assert sc.verify(model, plan, x).zero_is_prune < 1e-4
    with pytest.raises(PlanError, match="grouped product in multiples of 4"):
        network.plan({axis.name: range(7) for axis in network.axes})
    assert {axis.step for axis in network.axes} == {4}
    assert [axis.near(n) for axis in network.axes for n in (0, 7, axis.size)] == [4, 8, 16, 4, 8, 32]
    allowed = Global(Budget(params=0.45))(network, sc.scores.Magnitude()(network))
    assert sc.verify(model, allowed, x).zero_is_prune < 1e-4
    assert sum(p.numel() for p in sc.compact(model, plan).parameters()) == network.cost(plan.counts).parameters


class Groups(nn.Module):
    """Query heads in groups that share a key-value head, with a way of its own for groups of one."""

    def __init__(self) -> None:
        super().__init__()
        self.heads, self.shared, self.groups = 8, 2, 4
        self.q, self.kv, self.out = nn.Linear(6, 8 * 5), nn.Linear(6, 2 * 5), nn.Linear(8 * 5, 3)

    def forward(self, x: Tensor) -> Tensor:
        b, n, _ = x.shape
        q = self.q(x).view(b, n, self.heads, -1).transpose(1, 2)
        kv = self.kv(x).view(b, n, self.shared, -1).transpose(1, 2)
        if self.groups == 1:
            kv = -kv
        else:
            kv = kv[:, :, None].expand(b, self.shared, self.groups, n, kv.shape[-1]).flatten(1, 2)
        mixed = (q @ kv.mT).softmax(-1) @ kv
        out: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return out


def test_an_axis_keeps_as_many_units_as_the_code_branches_on() -> None:
    model, x = Groups(), torch.randn(2, 3, 6)
    network = sc.trace(model, x)
    axis = next(axis for axis in network.axes if axis.size == 4)
    assert axis.least == 2
    with pytest.raises(PlanError, match=r"branches on groups == 1"):
        network.plan({axis.name: [0]})
    plan = sc.allocate.Global(sc.Budget(params=0.5), floor=0)(network, sc.scores.Random()(network, None))
    assert plan.counts[axis.name] >= 2
    assert sc.verify(model, plan, x).permutation < 1e-12


class OnThrees(nn.Module):
    """Computes something else where its width is a multiple of three: no step of units avoids that."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 25), nn.Linear(25, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        out: Tensor = self.last(x.relu() if x.shape[-1] % 3 else x.sigmoid())
        return out


def test_numbers_of_units_that_follow_no_step_freeze_the_axis() -> None:
    network = sc.trace(OnThrees(), torch.randn(2, 4))
    assert not network.axes
    assert any("the code branches on" in frozen.reason for frozen in network.frozen)


class Large(nn.Module):
    """Code that does something else where a width is small."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 64), nn.Linear(64, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        if x.shape[-1] > 20:
            x = x.relu()
        out: Tensor = self.out(x)
        return out


def test_an_axis_keeps_as_many_units_as_the_code_asks_for() -> None:
    network = sc.trace(Large(), torch.randn(2, 6))
    (axis,) = network.axes
    assert (axis.size, axis.least) == (64, 21)
    assert sc.verify(Large(), network.plan({axis.name: range(21)}), torch.randn(2, 6)).zero_is_prune < 1e-12


class Sampled(nn.Module):
    """A model that looks at some of its rows, drawn at random."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        rows = torch.randint(x.shape[1], (4,))
        out: Tensor = self.out(self.embed(x)[:, rows].relu())
        return out


def test_what_is_drawn_at_random_besides_the_units_does_not_hinder_a_proof() -> None:
    model, x = Sampled(), torch.randn(2, 9, 6)
    plan = sc.trace(model, x).plan({"embed": range(5)})
    assert sc.verify(model, plan, x).zero_is_prune < 1e-12


class Jittered(nn.Module):
    """A router that is shaken in training mode, where alone one of its experts may be read."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.experts = nn.Linear(6, 4), nn.ModuleList(nn.Linear(6, 6) for _ in range(4))
        self.out = nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        logits = self.router(x)
        if self.training:
            logits = logits * 100 * torch.rand(4)
        chosen = int(logits.sum((0, 1)).argmax())
        out: Tensor = self.out(self.experts[chosen](x).relu())
        return out


def test_every_look_at_a_model_draws_the_same_numbers() -> None:
    torch.manual_seed(0)
    model, x = Jittered(), torch.randn(2, 5, 6)
    looks = {tuple(axis.name for axis in sc.trace(model, x).axes) for _ in range(8)}
    assert len(looks) == 1
    state = torch.random.get_rng_state()
    network = sc.trace(model, x)
    assert sc.verify(model, network.plan({axis.name: range(3) for axis in network.axes}), x).operators > 0
    assert torch.random.get_rng_state().equal(state)


class Caching(nn.Module):
    """A model that keeps, outside its state, what it computes of a parameter in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.scale, self.out = nn.Linear(6, 8), nn.Parameter(torch.randn(8)), nn.Linear(8, 3)
        self.cache: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        if str(x.device) not in self.cache:
            self.cache[str(x.device)] = self.scale.exp()
        out: Tensor = self.out(self.embed(x) * self.cache[str(x.device)])
        return out


def test_a_proof_leaves_nothing_in_the_model_that_the_next_one_would_read() -> None:
    model, x = Caching().eval(), torch.randn(4, 6)
    network = sc.trace(model, x)
    (axis,) = network.axes
    plan = network.plan({axis.name: range(5)})
    assert sc.verify(model, plan, x).zero_is_prune < 1e-12
    assert not model.cache
