"""What goes is divided exactly, and as the papers say."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import secateur as sc
from secateur.errors import BudgetError, DataError
from secateur.sparse.allocation import Allocation, OutlierWeighted, Share, erdos_renyi, even
from secateur.sparse.counts import count_of

LAYERS = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40), st.integers(1, 3)), min_size=1, max_size=6)


def shares(shapes: list[tuple[int, int, int]]) -> list[Share]:
    def share(number: int, out: int, columns: int, side: int) -> Share:
        scores = torch.rand(out * columns, generator=torch.Generator().manual_seed(number))
        return Share(str(number), (out, columns, side, side), out * columns * side * side, lambda: scores)

    return [share(number, *shape) for number, shape in enumerate(shapes)]


@given(LAYERS, st.integers(0, 99), st.sampled_from([even, erdos_renyi, OutlierWeighted(), OutlierWeighted(1.5, 0.4)]))
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
        sc.sparsify(model, [data], sparsity=0.8, allocation=erdos_renyi, pattern=sc.patterns.Unstructured("global"))


@pytest.mark.parametrize("make", [lambda: OutlierWeighted(times=0), lambda: OutlierWeighted(spread=1.0)])
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(DataError, match="spread at least 0"):
        make()  # type: ignore[operator]
