"""What goes is divided exactly, and as the papers say; where weights are compared, by brute force."""

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, DataError
from secateur.sparse.allocation import (
    Allocation,
    Below,
    Cutoff,
    Insignificant,
    Lowest,
    OutlierWeighted,
    Share,
    erdos_renyi,
    even,
)
from secateur.sparse.counts import count_of
from secateur.torch.scores import Magnitude, Wald

GLOBAL = sc.patterns.Unstructured("global")
SCORES = st.lists(st.lists(st.integers(-2, 3), min_size=1, max_size=8), min_size=1, max_size=5)
LAYERS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=6)


def shares(shapes: list[tuple[int, int, int]]) -> list[Share]:
    def share(number: int, out: int, columns: int, side: int) -> Share:
        scores = torch.rand(out * columns * side * side, generator=torch.Generator().manual_seed(number))
        return Share(str(number), (out, columns, side, side), out * columns * side * side, lambda: scores)

    return [share(number, *shape) for number, shape in enumerate(shapes)]


@given(
    LAYERS,
    st.integers(0, 99),
    st.sampled_from([even, erdos_renyi, Lowest(), OutlierWeighted(), OutlierWeighted(1.5, 0.4)]),
)
def test_as_much_goes_as_was_asked_for(
    shapes: list[tuple[int, int, int]], percent: int, allocation: Allocation
) -> None:
    layers, sparsity = shares(shapes), Fraction(percent, 100)
    gone = allocation(layers, sparsity)
    assert all(0 <= n <= layer.units for n, layer in zip(gone, layers, strict=True))
    if allocation is not even:
        assert sum(gone) == count_of(sparsity, sum(layer.units for layer in layers))


def test_what_stays_is_in_proportion_to_the_sum_of_the_dims() -> None:
    layers = shares([(100, 100, 1), (1000, 1000, 1), (50, 20, 3)])
    kept = [layer.units - n for layer, n in zip(layers, erdos_renyi(layers, 0.9), strict=True)]
    assert kept[1] / kept[0] == pytest.approx(2002 / 202, rel=1e-3)
    assert kept[2] / kept[0] == pytest.approx(76 / 202, rel=1e-3)
    assert erdos_renyi(layers, 0.5) == [0, 509_500, 0]  # small layers are as dense as can be


def test_outliers_keep_a_layer_dense() -> None:
    calm, wild = torch.ones(1000), torch.cat([torch.ones(950), torch.full((50,), 100.0)])
    layers = [Share("calm", (), 1000, lambda: calm), Share("wild", (), 1000, lambda: wild)]
    assert OutlierWeighted(times=5, spread=0.1)(layers, 0.6) == [700, 500]
    assert OutlierWeighted(times=5, spread=0)(layers, 0.6) == [600, 600]


def test_whole_models() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 50), nn.Linear(50, 4)).eval()
    data = torch.randn(16, 3, 8, 8)
    for allocation in (erdos_renyi, OutlierWeighted(2.0, 0.2)):
        result = sc.sparsify(model, [data], sparsity=0.8, allocation=allocation, solver=sc.solvers.keep)
        assert result.plan.zeros == count_of(0.8, result.plan.total)
        shares_ = [layer.sparsity for layer in result.report]
        assert len(set(shares_)) == 3
    with pytest.raises(BudgetError, match="one sparsity, and no allocation"):
        sc.sparsify(model, [data], sparsity=0.8, allocation=erdos_renyi, pattern=GLOBAL)


@pytest.mark.parametrize("make", [lambda: OutlierWeighted(times=0), lambda: OutlierWeighted(spread=1.0)])
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(DataError, match="spread at least 0"):
        make()  # type: ignore[operator]


def scored(scores: list[list[int]]) -> list[Share]:
    return [
        Share(str(i), (), len(each), lambda each=each: torch.tensor(each, dtype=torch.float32).view(1, 1, -1))
        for i, each in enumerate(scores)
    ]


@given(SCORES, st.integers(0, 99), st.sampled_from([0, 0.1, 0.25, Fraction(1, 3), 0.9]))
def test_the_lowest_of_all_go_but_for_a_floor(scores: list[list[int]], percent: int, floor: float | Fraction) -> None:
    """One weight after the other, the lowest first, of equal ones the first, none of a layer that is at its floor."""
    total = sum(map(len, scores))
    wanted, gone = count_of(Fraction(percent, 100), total), [0] * len(scores)
    for _, i in sorted((score, i) for i, each in enumerate(scores) for score in each):
        if sum(gone) < wanted and len(scores[i]) - gone[i] - 1 >= Fraction(str(floor)) * len(scores[i]):
            gone[i] += 1
    if sum(gone) == wanted:
        assert Lowest(floor)(scored(scores), Fraction(percent, 100)) == gone
    else:
        with pytest.raises(BudgetError, match="ask for less, or lower the floor"):
            Lowest(floor)(scored(scores), Fraction(percent, 100))


@pytest.mark.parametrize("floor", [0.0, 0.125])
def test_all_weights_of_a_model_are_compared_group_by_group(floor: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, bias=False), nn.Flatten(), nn.Linear(32, 4, bias=False)).eval()
    with torch.no_grad():
        model[0].weight[:2] *= 10
        model[2].weight *= 0.1
    settings = {"pattern": GLOBAL, "score": Magnitude(1), "solver": sc.solvers.keep}
    result = sc.sparsify(model, [torch.randn(4, 4, 4, 4)], sparsity=0.6, allocation=Lowest(floor), **settings)
    sizes = {name: parameter.detach().abs() for name, parameter in model.named_parameters()}
    if not floor:
        threshold = torch.cat([size.flatten() for size in sizes.values()]).sort().values[result.plan.zeros]
        assert all(stays.equal(sizes[name] >= threshold) for name, stays in result.plan.stays.items())
        assert result.plan.stays["0.weight"][:2].all()
    else:
        assert int(result.plan.stays["2.weight"].sum()) == 16
    assert result.plan.zeros == count_of(0.6, 128 + 72)


@given(SCORES, st.integers(-3, 4))
def test_what_scores_below_a_threshold_goes(scores: list[list[int]], threshold: int) -> None:
    assert Below(threshold).cut(scored(scores)) == [sum(score < threshold for score in each) for each in scores]


@given(st.permutations(range(20)), st.integers(0, 100))
def test_below_a_quantile_lies_its_share_rounded_up(order: list[int], percent: int) -> None:
    (gone,) = Below(quantile=percent / 100).cut(scored([order]))
    assert gone == -(-percent * 19 // 100)


def test_what_is_zero_already_does_not_move_a_quantile() -> None:
    scores = torch.tensor([-torch.inf, -torch.inf, 1, 2, 3, 4, 5])
    assert Below(quantile=0.5).cut([Share("a", (), 7, lambda: scores)]) == [4]
    assert Below(quantile=0.5).cut([Share("a", (), 2, lambda: scores[:2])]) == [2]


def test_z_values_are_read_as_two_sided() -> None:
    z = torch.linspace(0, 6, 50, dtype=torch.float64)
    layers = [Share("a", (), 20, lambda: z[:20]), Share("b", (), 30, lambda: z[20:])]
    p_values = [2 * float(norm.sf(each)) for each in z]
    most = max(k for k in range(1, 51) if sorted(p_values)[k - 1] <= 0.01 * k / 50)
    assert most < 30
    assert Insignificant(0.01).cut(layers) == [20, 30 - most]


def test_nothing_is_significant_among_zeros_and_all_is_where_z_is_large() -> None:
    for z, gone in ((torch.zeros(5), 5), (torch.full((5,), 50.0), 0), (torch.full((5,), -torch.inf), 5)):
        assert Insignificant().cut([Share("a", (), 5, lambda z=z: z)]) == [gone]
    z = torch.tensor([-torch.inf] * 95 + [2.1] * 5)  # p = 0.036: a discovery of 5 tests, none of 100
    assert Insignificant(0.05).cut([Share("a", (), 100, lambda: z)]) == [95]


def test_the_data_show_which_weights_of_a_regression_are_not_zero() -> None:
    """30 of 300 inputs have an effect: they stay, and about a twentieth of what stays is there by chance."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5000, 300, generator=generator, dtype=torch.float64)
    true = torch.zeros(300, dtype=torch.float64)
    true[:30] = 0.2
    y = x @ true[:, None] + torch.randn(5000, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(300, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    score = Wald(samples=5000, loss=lambda output, target: 0.5 * (output - target).square().mean())
    result = sc.sparsify(
        model,
        [(x, y)],
        allocation=Insignificant(0.05),
        score=score,
        pattern=GLOBAL,
        solver=sc.solvers.keep,
        samples=5000,
    )
    stays = result.plan.stays["weight"][0]
    assert stays[:30].all()
    assert int(stays[30:].sum()) <= 6


def test_a_threshold_decides_how_much_of_a_model_goes() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=4), nn.Flatten(), nn.Linear(32, 4)).eval()
    data = torch.randn(8, 4, 4, 4)
    result = sc.sparsify(
        model, [data], allocation=Below(0.1), score=Magnitude(1), pattern=GLOBAL, solver=sc.solvers.keep
    )
    for name, stays in result.plan.stays.items():
        assert stays.equal(model.get_parameter(name).detach().abs() >= 0.1)
    assert 0 < result.plan.sparsity < 1


@pytest.mark.parametrize("allocation", [Below(0.1), Insignificant(), Lowest(0.1)])
@pytest.mark.parametrize(
    "pattern", [None, sc.patterns.NofM(2, 4), sc.patterns.Block(2, 2), sc.patterns.Unstructured("tensor")]
)
def test_only_a_pattern_that_compares_all_weights_goes_with_them(
    allocation: Allocation | Cutoff, pattern: sc.patterns.Pattern | None
) -> None:
    with pytest.raises(
        BudgetError, match=r"compares the weights of all tensors, and .*choose patterns.Unstructured\('global'\)"
    ):
        sc.sparsify(nn.Linear(8, 4), [torch.randn(8, 8)], allocation=allocation, pattern=pattern, sparsity=0.5)


def test_an_allocation_that_decides_takes_no_sparsity_and_leaves_something() -> None:
    model, data = nn.Linear(8, 4), [torch.randn(8, 8)]
    settings = {"pattern": GLOBAL, "score": Magnitude(1)}
    with pytest.raises(BudgetError, match=r"Below\(.*\) decides how much goes; leave sparsity= out"):
        sc.sparsify(model, data, allocation=Below(0.1), sparsity=0.5, **settings)
    with pytest.raises(BudgetError, match=r"Below\(.*\) lets all weights go"):
        sc.sparsify(model, data, allocation=Below(10.0), **settings)
    with pytest.raises(BudgetError, match="needs a sparsity"):
        sc.sparsify(model, data, allocation=Lowest(0.1), **settings)
    with pytest.raises(BudgetError, match="one sparsity, and no allocation"):
        sc.sparsify(model, data, sparsity={"*": 0.5}, **settings)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lowest(floor=1.0), "the floor is at least 0 and below 1"),
        (lambda: Lowest(floor=-0.1), "the floor is at least 0 and below 1"),
        (lambda: Lowest(floor=torch.nan), "the floor is at least 0 and below 1"),
        (lambda: Below(), "give a threshold or a quantile"),
        (lambda: Below(0.1, quantile=0.5), "give a threshold or a quantile"),
        (lambda: Below(torch.nan), "the threshold is a number"),
        (lambda: Below(quantile=1.5), "a quantile is at least 0 and at most 1"),
        (lambda: Below(quantile=torch.nan), "a quantile is at least 0 and at most 1"),
        (lambda: Insignificant(0.0), "the rate is above 0 and below 1"),
        (lambda: Insignificant(1.0), "the rate is above 0 and below 1"),
    ],
)
def test_what_cannot_be_compared_with_is_refused(make: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        make()
