"""What goes is exactly as much as was asked for, and what scores least, whatever ties there are."""

from fractions import Fraction
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from secateur.errors import BudgetError, PlanError
from secateur.sparse.counts import apportion, count_of, share_of
from secateur.sparse.patterns import Block, NofM, Unstructured

SCORES = {
    "all different": torch.arange(48.0).reshape(6, 8)[torch.randperm(6, generator=torch.Generator().manual_seed(0))],
    "all the same": torch.ones(6, 8),
    "all zero": torch.zeros(6, 8),
    "one row": torch.tensor([[3.0, 3.0, 1.0, 2.0, 2.0, 2.0, 9.0, 0.0]]),
    "infinite": torch.full((6, 8), -torch.inf),
}


@pytest.mark.parametrize("scores", SCORES.values(), ids=SCORES)
@pytest.mark.parametrize("scope", ["row", "tensor", "global"])
@pytest.mark.parametrize("share", [0, 0.1, 0.5, 0.77])
def test_single_weights_go_as_many_as_asked_for(scores: Tensor, scope: str, share: float) -> None:
    count = count_of(share, scores.numel())
    stays = Unstructured(scope).choose(scores, count)  # type: ignore[arg-type]
    assert int((~stays).sum()) == count
    by_row = (~stays).sum(1)
    if scope == "row":
        assert int(by_row.max() - by_row.min()) <= 1
        for row, kept in zip(scores, stays, strict=True):
            assert not kept.any() or kept.all() or row[kept].min() >= row[~kept].max()
    elif count > 0:
        assert scores[stays].min() >= scores[~stays].max()


def test_of_equal_scores_the_first_go() -> None:
    assert Unstructured().choose(torch.ones(2, 4), 3).tolist() == [
        [False, False, True, True],
        [False, True, True, True],
    ]
    assert Unstructured("tensor").choose(torch.ones(2, 3), 4).tolist() == [[False] * 3, [False, True, True]]
    assert NofM(2, 4).choose(torch.zeros(1, 4), 0).tolist() == [[False, False, True, True]]
    assert Block(1, 2).choose(torch.ones(1, 4), 1).tolist() == [[False, False, True, True]]


def test_a_single_weight() -> None:
    assert Unstructured().choose(torch.ones(1, 1), 0).all()
    assert not Unstructured().choose(torch.ones(1, 1), 1).any()


@pytest.mark.parametrize(("n", "m"), [(1, 2), (2, 4), (1, 4), (3, 4), (4, 8), (2, 5)])
def test_of_every_cell_the_best_stay(n: int, m: int) -> None:
    scores = torch.rand(3, 4 * m, generator=torch.Generator().manual_seed(n))
    stays = NofM(n, m).choose(scores, 0)
    for cell, kept in zip(scores.view(-1, m), stays.view(-1, m), strict=True):
        assert int(kept.sum()) == n
        best = max(combinations(range(m), n), key=lambda chosen: float(cell[list(chosen)].sum()))
        assert tuple(kept.nonzero().flatten().tolist()) == best


@pytest.mark.parametrize(("rows", "columns"), [(1, 4), (4, 1), (16, 1), (4, 4), (5, 3), (100, 100)])
@pytest.mark.parametrize("shape", [(16, 16), (17, 7), (3, 5), (1, 1)])
def test_blocks_go_whole(rows: int, columns: int, shape: tuple[int, int]) -> None:
    pattern, scores = Block(rows, columns), torch.rand(shape, generator=torch.Generator().manual_seed(0))
    units = pattern.units(scores)
    assert units.numel() == -(-shape[0] // rows) * -(-shape[1] // columns)
    assert torch.isclose(units.sum(), scores.sum())
    count = units.numel() // 2
    stays = pattern.choose(scores, count)
    assert stays.shape == shape
    kept = pattern.units(stays.float()) / pattern.units(torch.ones(shape))
    assert set(kept.flatten().tolist()) <= {0.0, 1.0}
    assert int((kept == 0).sum()) == count
    assert not count or units[kept == 1].min() >= units[kept == 0].max()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NofM(4, 4), "fewer than all"),
        (lambda: NofM(0, 4), "at least 1 stays"),
        (lambda: Block(0, 4), "at least one row"),
        (lambda: Unstructured("layer"), "'row', 'tensor' or 'global'"),  # type: ignore[arg-type]
        (lambda: NofM(2, 4).check(10), "10 inputs are no multiple of 4"),
    ],
)
def test_what_is_no_pattern_is_refused(make: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        make()  # type: ignore[operator]


@pytest.mark.parametrize("sparsity", [1, 1.5, -0.1, float("nan"), "half", None, True])
def test_what_is_no_sparsity_is_refused(sparsity: object) -> None:
    with pytest.raises(BudgetError, match="at least 0 and below 1"):
        share_of(sparsity)  # type: ignore[arg-type]


def test_shares_are_read_as_they_are_written() -> None:
    assert count_of(0.3, 10) == 3
    assert count_of(0.7, 10) == 7
    assert count_of(Fraction(1, 3), 3_000_000_001) == 1_000_000_000
    assert share_of(0.1) == Fraction(1, 10)


PARTS = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 40)), min_size=1, max_size=8)


@given(PARTS, st.integers(0, 100))
def test_a_total_is_divided_exactly(parts: list[tuple[int, int]], percent: int) -> None:
    weights, most = [weight for weight, _ in parts], [n for _, n in parts]
    total = sum(most) * percent // 100
    found = apportion(total, weights, most)
    assert sum(found) == total
    assert all(0 <= n <= limit for n, limit in zip(found, most, strict=True))


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(0, 500))
def test_and_none_is_further_from_its_share_than_one(weights: list[int], total: int) -> None:
    found = apportion(total, weights, [total] * len(weights))
    for n, weight in zip(found, weights, strict=True):
        assert abs(n - Fraction(total * weight, sum(weights))) < 1


def test_more_than_there_is_cannot_be_divided() -> None:
    with pytest.raises(BudgetError, match="5 are to go, of 4 that can"):
        apportion(5, [1, 1], [2, 2])
