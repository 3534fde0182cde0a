"""What goes follows the papers' timetables, exactly, and lies where the pattern says."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from secateur.errors import BudgetError, ModelError, PlanError
from secateur.sparse.allocation import Allocation, erdos_renyi, even
from secateur.sparse.counts import count_of
from secateur.sparse.patterns import Block, NofM, Pattern, Unstructured
from secateur.torch.scores import LAMP, Random, Wanda
from secateur.train import ACDC, Gradual, masked


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12), nn.Linear(12, 3))


IMAGES = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(IMAGES).square().mean().backward()
    optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if p.ndim > 1}


@given(st.integers(0, 99), st.integers(0, 99), st.integers(0, 50), st.integers(1, 200), st.integers(1, 60))
def test_the_sparsity_grows_as_the_equation_says(one: int, other: int, begin: int, length: int, every: int) -> None:
    initial, final = Fraction(min(one, other), 100), Fraction(max(one, other), 100)
    method = Gradual(final, end=begin + length, begin=begin, every=every, initial=initial)
    steps = [step for step in range(begin + length + 2 * every) if method.changes(step)]
    shares = [method.sparsity_at(step) for step in steps]
    assert (steps[0], steps[-1]) == (begin, begin + length)
    assert (shares[0], shares[-1]) == (initial, final)
    assert all(a <= b for a, b in pairwise(shares))
    assert all(b - a == every for a, b in pairwise(steps[:-1]))
    for t, share in zip(steps, shares, strict=True):
        s_f, s_i = max(one, other) / 100, min(one, other) / 100
        assert float(share) == pytest.approx(s_f + (s_i - s_f) * (1 - (t - begin) / length) ** 3, abs=1e-12)


@pytest.mark.parametrize(
    ("pattern", "allocation"),
    [
        (Unstructured(), even),
        (Unstructured("tensor"), even),
        (Unstructured("tensor"), erdos_renyi),
        (Unstructured("global"), even),
        (Block(2, 2), even),
        (Block(2, 2), erdos_renyi),
    ],
)
def test_as_much_is_zero_as_the_step_asks_for(pattern: Pattern, allocation: Allocation) -> None:
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    method = Gradual(0.8, end=12, every=4, begin=2, pattern=pattern, allocation=allocation)
    with masked(model, method, IMAGES) as training:
        gone = [training.plan.zeros]
        for _ in range(15):
            before = dict(training.plan.stays)
            step(model, optimizer)
            gone.append(training.plan.zeros)
            for name, mask in training.plan.stays.items():
                assert not weights(model)[name][~mask].any()
                if allocation is even:
                    assert not bool((mask & ~before[name]).any()), "what went stays zero"
        total = training.plan.total
    assert total == sum(w.numel() for w in weights(model).values())
    assert gone[:6] == [0] * 6
    if not isinstance(pattern, Block):
        each = [w.numel() for w in weights(model).values()]
        expected = [
            sum(count_of(method.sparsity_at(t), n) for n in each)
            if allocation is even and pattern != Unstructured("global")
            else count_of(method.sparsity_at(t), total)
            for t in (6, 10, 12)
        ]
        assert [gone[6], gone[10], gone[12]] == expected
    assert len(set(gone[12:])) == 1


def test_the_first_choice_is_that_of_the_lowest_magnitudes() -> None:
    model = network()
    before = {name: weight.clone() for name, weight in weights(model).items()}
    with masked(model, Gradual(0.5, end=10, initial=0.5), IMAGES) as training:
        for name in ("3.weight", "4.weight"):
            mask = training.plan.stays[name]
            half = before[name].abs().flatten().sort().values[before[name].numel() // 2]
            assert torch.equal(mask, before[name].abs() >= half)


def test_it_trains_as_a_loop_by_hand_does() -> None:
    """The paper in a few lines, where nothing remembers gradients; the same weights, bit for bit."""
    method, rate = Gradual(0.9, end=10, every=3), 0.05
    model, other = (nn.Sequential(*network()[2:]) for _ in range(2))
    data = torch.randn(14, 8, 8 * 16)
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    with masked(model, method, data[0]):
        for batch in data:
            optimizer.zero_grad()
            model(batch).square().mean().backward()
            optimizer.step()

    parameters, masks = list(other.parameters()), [torch.ones(p.shape) for p in other.parameters()]
    for t, batch in enumerate(data, 1):
        gradients = torch.autograd.grad(other(batch).square().mean(), parameters)
        with torch.no_grad():
            for i, (weight, gradient) in enumerate(zip(parameters, gradients, strict=True)):
                weight.add_(gradient * masks[i], alpha=-rate)
                if t in (3, 6, 9, 10) and weight.ndim == 2:
                    gone = round((0.9 * (1 - (1 - t / 10) ** 3)) * weight.numel())
                    masks[i] = torch.ones(weight.numel())
                    masks[i][weight.abs().flatten().argsort(stable=True)[:gone]] = 0
                    masks[i] = masks[i].view(weight.shape)
                weight.mul_(masks[i])

    assert all(one.equal(two) for one, two in zip(model.parameters(), parameters, strict=True))


@pytest.mark.parametrize("pattern", [NofM(2, 4), NofM(1, 4), NofM(3, 4)])
def test_n_of_m_is_reached_little_by_little(pattern: NofM) -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    method = Gradual(pattern.share, end=6, every=2, pattern=pattern)
    gone = []
    with masked(model, method, torch.randn(2, 16)) as training:
        for _ in range(6):
            model(torch.randn(4, 16)).square().sum().backward()
            optimizer.step()
            gone.append(training.plan.zeros)
            cells = training.plan.stays["weight"].view(8, 4, 4).sum(-1)
            assert bool((cells >= pattern.n).all())
    assert gone == [count_of(method.sparsity_at(t - t % 2), 128) for t in range(1, 7)]
    assert bool((cells == pattern.n).all())


def test_all_scores_alike_are_no_matter() -> None:
    model = nn.Linear(10, 10)
    for value in (0.0, 1.0):
        nn.init.constant_(model.weight, value)
        with masked(model, Gradual(0.3, end=1, initial=0.3), torch.zeros(1, 10)) as training:
            assert training.plan.zeros == 30
    with masked(one := nn.Linear(1, 1), Gradual(0.6, end=1, initial=0.6), torch.zeros(1, 1)):
        assert one.weight.item() == 0


def test_other_scores_choose_otherwise() -> None:
    plans = []
    for score in (LAMP(), Random(seed=1)):
        model = network()
        with masked(model, Gradual(0.5, end=1, initial=0.5, score=score), IMAGES) as training:
            plans.append(training.plan)
            assert training.plan.sparsity == 0.5
    assert any(not plans[0].stays[name].equal(plans[1].stays[name]) for name in plans[0].stays)


@given(st.integers(0, 20), st.integers(1, 9), st.integers(1, 9), st.integers(0, 60))
def test_phases_take_turns_and_the_last_is_sparse(warmup: int, sparse: int, dense: int, more: int) -> None:
    method = ACDC(0.5, warmup, sparse, dense, until=warmup + more)
    is_sparse, phases = False, []
    for t in range(warmup + more + 20):
        if method.changes(t):
            is_sparse = not is_sparse
        phases.append(is_sparse)
    cycle = [True] * sparse + [False] * dense
    expected = [False] * warmup + [cycle[t % len(cycle)] for t in range(more)] + [True] * 20
    assert phases == expected


def test_what_went_comes_back_at_zero_and_learns() -> None:
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    method = ACDC(0.75, warmup=2, sparse_steps=3, dense_steps=2, until=10)
    sparsities = []
    with masked(model, method, IMAGES) as training:
        for t in range(1, 12):
            held = training.plan
            step(model, optimizer)
            sparsities.append(training.plan.sparsity)
            if t == 5:  # the first dense phase begins
                assert sum(int((weights(model)[name][~mask] != 0).sum()) for name, mask in held.stays.items()) == 0
                assert not optimizer.state[model[3].weight]["momentum_buffer"][~held.stays["3.weight"]].any()
            if t == 6:
                assert all(bool(w.any()) for w in weights(model).values())
    assert sparsities == [0, 0.75, 0.75, 0.75, 0, 0, 0.75, 0.75, 0.75, 0.75, 0.75]
    assert sum(int((w == 0).sum()) for w in weights(model).values()) == 0.75 * training.plan.total


@pytest.mark.parametrize(
    ("error", "match", "make"),
    [
        (PlanError, "begin < end", lambda: Gradual(0.5, end=3, begin=3)),
        (PlanError, "every is at least 1", lambda: Gradual(0.5, end=3, every=0)),
        (BudgetError, "only grows", lambda: Gradual(0.5, end=3, initial=0.6)),
        (BudgetError, "below 1", lambda: Gradual(1.0, end=3)),
        (PlanError, "needs data", lambda: Gradual(0.5, end=3, score=Wanda())),
        (BudgetError, "0.5 in each layer", lambda: Gradual(0.6, end=3, pattern=NofM(2, 4))),
        (BudgetError, "no allocation", lambda: Gradual(0.5, end=3, pattern=NofM(2, 4), allocation=erdos_renyi)),
        (PlanError, "warmup <= until", lambda: ACDC(0.5, 3, 1, 1, until=2)),
        (PlanError, "at least one step", lambda: ACDC(0.5, 3, 0, 1, until=9)),
        (BudgetError, "below 1", lambda: ACDC(-0.1, 3, 1, 1, until=9)),
    ],
)
def test_settings_out_of_range_are_refused(error: type[Exception], match: str, make: object) -> None:
    with pytest.raises(error, match=match):
        make()  # type: ignore[operator]


def test_what_a_method_cannot_choose_among_is_refused() -> None:
    model = network()
    with pytest.raises(PlanError, match="pass example inputs"), masked(model, Gradual(0.5, end=1)):
        pass
    with pytest.raises(PlanError, match="no multiple of 8"):  # noqa: SIM117
        with masked(model, Gradual(0.5, end=1, pattern=NofM(4, 8)), IMAGES):
            pass
    with torch.no_grad():
        model[3].weight[0, 0] = torch.nan
    with pytest.raises(ModelError, match=r"'3.weight' has weights or gradients that are not finite"):  # noqa: SIM117
        with masked(model, Gradual(0.5, end=1), IMAGES):
            pass
