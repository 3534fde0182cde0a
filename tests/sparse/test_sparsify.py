"""Whole models become sparse: exactly as much as was asked for, in copies, and the nearer the better the solver."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import BudgetError, DataError, ModelError, PlanError
from secateur.sparse import SparseResult, sparsify
from secateur.sparse.patterns import Block, NofM, Pattern, Unstructured
from secateur.sparse.rounding import Integer
from secateur.sparse.solvers import Refit, SparseGPT, Swaps, keep
from secateur.torch.scores import LAMP, RIA, Energy, Fisher, Magnitude, Random, SynFlow, Taylor, Wanda, WeightScore


class Attention(nn.Module):
    """A small language model, whose last layer is tied to its embedding and whose projections are packed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(50, 32), nn.LayerNorm(32)
        self.packed, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)
        self.head = nn.Linear(32, 50, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        q, k, v = self.packed(self.norm(x)).view(*x.shape[:2], 3, 4, 8).permute(2, 0, 3, 1, 4)
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + self.down(F.gelu(self.up(x)))
        logits: Tensor = self.head(x)
        return logits


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, groups=4, stride=2),
        nn.ReLU(),
        nn.ConvTranspose2d(16, 8, 3),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 12),
    )


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "convolutions": (convolutional, torch.randn(48, 4, 12, 12, generator=torch.Generator().manual_seed(0))),
    "sequences": (
        lambda: nn.Conv1d(8, 16, 3),
        torch.randn(32, 8, 20, generator=torch.Generator().manual_seed(0)).cumsum(-1),
    ),
    "attention": (Attention, torch.randint(50, (24, 16), generator=torch.Generator().manual_seed(0))),
}


def made(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, data = MODELS[name]
    return make().eval(), data


def distance(result: SparseResult, model: nn.Module, data: Tensor) -> float:
    with torch.no_grad():
        expected = model(data)
        return float((result.model(data) - expected).square().mean() / expected.var())


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize(
    "pattern", [Unstructured(), Unstructured("tensor"), Unstructured("global"), NofM(2, 4), Block(4, 1)]
)
@pytest.mark.parametrize("solver", [keep, Refit(), SparseGPT()], ids=["keep", "refit", "sparsegpt"])
def test_a_model_loses_what_was_asked_for(name: str, pattern: Pattern, solver: Any) -> None:
    model, data = made(name)
    before = copy.deepcopy(model.state_dict())
    result = sparsify(
        model, data.split(16), sparsity=None if isinstance(pattern, NofM) else 0.5, pattern=pattern, solver=solver
    )
    assert all(value.equal(before[key]) for key, value in model.state_dict().items())
    assert type(result.model) is type(model)
    state = dict(result.model.named_parameters())
    for parameter, stays in result.plan.stays.items():
        assert not state[parameter][~stays].any()
    if not isinstance(pattern, Block):
        assert result.plan.zeros * 2 == result.plan.total
    if isinstance(pattern, NofM):
        for parameter, stays in result.plan.stays.items():
            inputs = stays.movedim(1, -1) if "5." not in parameter else stays.movedim(0, -1)
            assert (inputs.reshape(-1, 4).sum(1) == 2).all()
    untouched = before.keys() - result.plan.stays.keys()
    assert all(result.model.state_dict()[key].equal(before[key]) for key in untouched)
    assert "embed.weight" not in result.plan.stays
    assert "head.weight" not in result.plan.stays


@pytest.mark.parametrize("name", MODELS)
def test_better_solvers_come_nearer(name: str) -> None:
    model, data = made(name)

    def reached(solver: Any, score: WeightScore | None = None) -> float:
        return distance(sparsify(model, [data], sparsity=0.5, solver=solver, score=score), model, data)

    chance, size, kept = reached(keep, Random()), reached(keep, Magnitude()), reached(keep)
    refitted, swapped = reached(Refit()), reached([Swaps(), Refit()])
    assert refitted < 0.8 * min(kept, size) < chance
    assert swapped < 1.05 * refitted
    assert reached(SparseGPT()) < kept


def test_the_report_says_what_a_layer_lost() -> None:
    model, data = nn.Linear(8, 4), torch.randn(100, 8)
    result = sparsify(model, [data], sparsity=0.5, solver=Refit())
    (layer,) = result.report
    with torch.no_grad():
        lost = (model(data) - result.model(data)).square().sum() / (data @ model.weight.T).square().sum()
    assert layer.error == pytest.approx(float(lost), rel=1e-3)
    assert (layer.name, layer.zeros, layer.sparsity) == ("weight", 16, 0.5)
    assert "50.0% of 32 weights are zero, in 1 layers" in str(result)


def test_in_sequence_later_layers_know_what_earlier_ones_lost() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*(layer for _ in range(4) for layer in (nn.Linear(24, 24), nn.ReLU()))).eval()
    data = torch.randn(512, 24)
    first = sparsify(model, [data], sparsity=0.6)
    other = sparsify(model, [data], sparsity=0.6, in_sequence=False)
    assert first.model[0].weight.equal(other.model[0].weight)
    assert not first.model[6].weight.equal(other.model[6].weight)


def test_a_layer_that_runs_several_times_is_solved_on_all_it_reads() -> None:
    torch.manual_seed(0)

    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.layer(x).relu())

    model, data = Twice(), torch.randn(100, 8)
    result = sparsify(model, [data], sparsity=0.5)
    assert result.plan.sparsity == 0.5
    assert result.report[0].error is not None


def test_names_have_shares_of_their_own() -> None:
    model, data = made("attention")
    result = sparsify(
        model, [data], sparsity={"*": 0.5, "up*": 0.25, "*down.weight": 0.75}, exclude=["packed"], solver=keep
    )
    assert {layer.name: layer.sparsity for layer in result.report} == {
        "out.weight": 0.5, "up.weight": 0.25, "down.weight": 0.75,
    }  # fmt: skip


def test_all_tensors_together_lose_what_scores_least() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8)), torch.randn(20, 8)
    with torch.no_grad():
        model[0].weight *= 1000
    result = sparsify(model, [data], sparsity=0.5, pattern=Unstructured("global"), score=Magnitude(), solver=keep)
    assert [layer.sparsity for layer in result.report] == [0.0, 1.0]
    fair = sparsify(model, [data], sparsity=0.5, pattern=Unstructured("global"), score=LAMP(), solver=keep)
    assert all(0.3 < layer.sparsity < 0.7 for layer in fair.report)


@pytest.mark.parametrize("name", ["convolutions", "sequences", "attention"])
@pytest.mark.parametrize("pattern", [Unstructured(), Unstructured("global"), NofM(2, 4), Block(4, 1)], ids=repr)
def test_scores_of_the_whole_model_choose_in_every_pattern(name: str, pattern: Pattern) -> None:
    model, data = made(name)
    batches = [(x, x) for x in data.split(16)]
    sparsity = None if isinstance(pattern, NofM) else 0.5
    score = Fisher(loss=lambda output, _: output.square().mean())
    result = sparsify(model, batches, sparsity=sparsity, pattern=pattern, score=score, solver=keep)
    assert isinstance(pattern, Block) or result.plan.zeros * 2 == result.plan.total
    if pattern == Unstructured("global"):
        worth = score.of_model(model, batches, list(result.plan.stays))
        gone = torch.cat([worth[name][~stays] for name, stays in result.plan.stays.items()])
        kept = torch.cat([worth[name][stays] for name, stays in result.plan.stays.items()])
        assert gone.max() <= kept.min()


def test_rounds_of_synflow_empty_no_layer_before_they_must() -> None:
    """6 weights of 704 stay: in one round two of three layers are emptied, in 25 there is still a path through all."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 2))
    settings: dict[str, Any] = {"pattern": Unstructured("global"), "score": SynFlow(), "solver": keep}

    def left(rounds: int) -> list[int]:
        sparse = model
        for i in range(1, rounds + 1):
            sparse = sparsify(sparse, [torch.zeros(1, 8)], sparsity=1 - (6 / 704) ** (i / rounds), **settings).model
        return [int((layer.weight != 0).sum()) for layer in sparse[::2]]

    assert left(1) == [0, 0, 6]
    assert left(25) == [2, 2, 2]


def test_targets_reach_the_score_for_the_samples_that_count() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    batches = [(torch.randn(16, 8), torch.randint(4, (16,))) for _ in range(3)]
    first = [(batches[0][0], batches[0][1]), (batches[1][0][:4], batches[1][1][:4])]

    def stays(batches: Any) -> dict[str, Tensor]:
        return dict(sparsify(model, batches, sparsity=0.5, score=Taylor(), samples=20, solver=keep).plan.stays)

    found, other = stays(batches), stays([(x, 3 - y) for x, y in batches])
    assert all(mask.equal(stays(first)[name]) for name, mask in found.items())
    assert not all(mask.equal(other[name]) for name, mask in found.items())
    with pytest.raises(DataError, match="give targets as tensors"):
        stays([(x, y.tolist()) for x, y in batches])
    sparsify(model, [(x, y.tolist()) for x, y in batches], sparsity=0.5, samples=20)  # nobody looks at them


def test_a_score_that_is_not_one_of_single_weights_is_refused() -> None:
    class Wrong:
        def __init__(self, value: Any) -> None:
            self.value = value

        def of_model(self, model: nn.Module, batches: Any, names: Any) -> Any:
            return self.value

        def __repr__(self) -> str:
            return "Wrong()"

    model, data = nn.Linear(8, 4), torch.randn(16, 8)
    for score in (Energy(), Taylor, "taylor"):
        with pytest.raises(PlanError, match="score= is an object that scores single weights"):
            sparsify(model, [data], sparsity=0.5, score=score)  # type: ignore[arg-type]
    for value, got in (
        ({}, "got none"),
        ({"weight": torch.zeros(8, 4)}, r"got a \[8, 4\] tensor with 0 NaN"),
        ({"weight": torch.zeros(4, 8) / 0}, r"got a \[4, 8\] tensor with 32 NaN"),
    ):
        with pytest.raises(DataError, match=r"Wrong\(\) gives a number for each weight of 'weight' \[4, 8\]; " + got):
            sparsify(model, [data], sparsity=0.5, score=Wrong(value))


def test_zeros_that_were_there_count_once() -> None:
    model, data = nn.Linear(8, 8), torch.randn(100, 8)
    with torch.no_grad():
        model.weight[:, :3] = 0
    for score in (Wanda(), RIA(), Magnitude(), Random()):
        for solver in (keep, Refit(), SparseGPT()):
            result = sparsify(model, [data], sparsity=0.5, score=score, solver=solver)
            assert int((result.model.weight == 0).sum()) == 32


def test_a_zero_does_not_make_its_block_go() -> None:
    model, data = nn.Linear(8, 8, bias=False), torch.randn(100, 8)
    with torch.no_grad():
        model.weight.fill_(0.1)
        model.weight[:4] = 1.0
        model.weight[0, 0] = 0.0
        model.weight[4:, :2] = 0.0
    result = sparsify(model, [data], sparsity=0.5, pattern=Block(4, 1), score=Magnitude(), solver=keep)
    assert result.plan.stays["weight"][:4].all()
    assert not result.plan.stays["weight"][4:].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_weights_keep_their_type(dtype: torch.dtype) -> None:
    model, data = nn.Linear(8, 8).to(dtype), torch.randn(100, 8).to(dtype)
    result = sparsify(model, [data], sparsity=0.5)
    assert result.model.weight.dtype == dtype
    assert int((result.model.weight == 0).sum()) >= 32


NAN = torch.tensor([[float("nan")] * 8])


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({}, BudgetError, "needs a sparsity, such as sparsity=0.5"),
        ({"sparsity": 1.0}, BudgetError, "at least 0 and below 1"),
        ({"sparsity": {"nothing": 0.5}}, PlanError, "'nothing'.* fits no weight; there are 0.weight"),
        ({"sparsity": {"0*": 0.5}}, BudgetError, "no sparsity is given for 2.weight"),
        ({"sparsity": 0.4, "pattern": NofM(2, 4)}, BudgetError, "has a sparsity of 0.5; leave sparsity= out"),
        ({"pattern": NofM(2, 5)}, PlanError, "does not fit 0.weight: 8 inputs are no multiple of 5"),
        ({"pattern": "2:4"}, PlanError, "pattern= is an object such as .* got '2:4'"),
        ({"pattern": NofM}, PlanError, "pattern= is an object"),
        ({"sparsity": 0.5, "exclude": ["3"]}, PlanError, "'3' names no parameter or module"),
        ({"sparsity": 0.5, "exclude": ["*"]}, PlanError, "no weight that could become sparse"),
        ({"sparsity": 0.5, "solver": Refit}, PlanError, "solver= is an object"),
        ({"sparsity": 0.5, "solver": [None]}, PlanError, "solver= is an object"),
        ({"sparsity": 0.5, "rounding": Integer}, PlanError, "rounding= is an object such as .*Integer"),
        ({"sparsity": 0.5, "rounding": 4}, PlanError, "rounding= is an object such as .*; got 4"),
        ({"sparsity": 0.5, "pattern": Block(2, 2), "solver": Swaps()}, PlanError, "swaps move single weights"),
        ({"sparsity": 0.5, "batches": []}, DataError, "there is no data"),
        ({"sparsity": 0.5, "batches": [NAN]}, DataError, "'0.weight' reads values that are not finite"),
        ({"sparsity": 0.5, "batches": [torch.randn(4, 7)]}, DataError, "cannot run on a batch"),
    ],
)
def test_what_cannot_be_done_is_refused(settings: dict[str, Any], error: type[Exception], message: str) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    settings = {"batches": [torch.randn(16, 8)], **settings}
    with pytest.raises(error, match=message):
        sparsify(model, **settings)


def test_weights_that_are_not_finite_or_not_there_are_refused() -> None:
    model = nn.Linear(8, 8)
    model.weight.data[0, 0] = torch.inf
    with pytest.raises(ModelError, match="'weight' has NaN or infinite values"):
        sparsify(model, [torch.randn(4, 8)], sparsity=0.5)
    with pytest.raises(ModelError, match="on the meta device"):
        sparsify(nn.Linear(8, 8, device="meta"), [torch.randn(4, 8)], sparsity=0.5)


def test_a_plan_fits_its_model_alone() -> None:
    result = sparsify(nn.Linear(8, 8), [torch.randn(16, 8)], sparsity=0.5)
    other = nn.Linear(8, 8)
    result.plan.apply(other)
    assert int((other.weight == 0).sum()) == 32
    for wrong in (nn.Linear(8, 9), nn.Sequential(nn.Linear(8, 8))):
        with pytest.raises(ModelError, match="the plan is for another model: 'weight' is"):
            result.plan.apply(wrong)


class Own(nn.Module):
    """Weights stored the other way round, cut into parts, and torch's own attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.randn(16, 24))
        self.both = nn.Parameter(torch.randn(32, 24))
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.both.chunk(2)
        y = F.linear((x @ self.first).relu(), one) + F.linear((x @ self.first.neg()).relu(), two)
        out: Tensor = self.attention(y, y, y, need_weights=False)[0]
        return out


def test_weights_are_found_however_a_model_holds_them() -> None:
    torch.manual_seed(0)
    model, data = Own().eval(), torch.randn(20, 6, 16)
    result = sparsify(model, [data], pattern=NofM(2, 4))
    stays = result.plan.stays
    assert set(stays) == {
        "both",
        "attention.in_proj_weight",
        "attention.out_proj.weight",
    }  # something else reads `first`
    for name in ("both", "attention.in_proj_weight", "attention.out_proj.weight"):
        assert (stays[name].view(-1, 4).sum(1) == 2).all()
    assert [layer.name for layer in result.report][:2] == ["both", "both[16:32]"]


def test_a_weight_stored_the_other_way_round() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(16, 24))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    result = sparsify(Turned(), [torch.randn(64, 16)], pattern=NofM(2, 4))
    assert (result.plan.stays["weight"].T.reshape(-1, 4).sum(1) == 2).all()
    assert int((result.model.weight == 0).sum()) == 16 * 12
