"""The truncated decomposition is the best there is on what the layer reads, and its error is what it says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.low_rank.spectrum import spectrum
from secateur.sparse.problem import output_error

SIZES = st.integers(1, 7)


def problem(out: int, columns: int, seed: int) -> tuple[Tensor, Tensor]:
    """A weight and a Gram matrix far from a multiple of one, in float64."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(4 * columns, columns, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, 2, columns, dtype=torch.float64) + x[:, :1]
    return torch.randn(out, columns, generator=generator, dtype=torch.float64), x.mT @ x / len(x)


def by_turns(weight: Tensor, gram: Tensor, rank: int) -> float:
    """The least error of a rank that least squares finds, for one factor and the other in turns."""
    best = float("inf")
    for seed in range(4):
        up = torch.randn(len(weight), rank, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for _ in range(3000):
            down = torch.linalg.lstsq(up, weight).solution
            up = torch.linalg.solve(down @ gram @ down.T, down @ gram @ weight.T).T
        best = min(best, float(output_error(up @ down, weight, gram).sum()))
    return best


@settings(max_examples=40, deadline=None)
@given(out=SIZES, columns=SIZES, seed=st.integers(0, 99))
def test_the_error_is_the_sum_of_the_squares_that_were_dropped(out: int, columns: int, seed: int) -> None:
    weight, gram = problem(out, columns, seed)
    found = spectrum(weight, gram, 0.0)
    squares = torch.linalg.svdvals(weight @ torch.linalg.cholesky(gram)).square()
    for rank in range(min(out, columns) + 1):
        down, up = found.factors(rank)
        error = output_error(up @ down, weight, gram).sum()
        close = {"rtol": 1e-8, "atol": 1e-10 * float(squares.sum())}  # of condition numbers of up to 1e5
        torch.testing.assert_close(error, squares[rank:].sum(), **close)
        torch.testing.assert_close(found.errors()[rank], error, **close)


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_least_squares_by_turns_finds_nothing_better(rank: int) -> None:
    weight, gram = problem(5, 6, 0)
    assert by_turns(weight, gram, rank) == pytest.approx(float(spectrum(weight, gram, 0.0).errors()[rank]), rel=1e-6)


def test_without_whitening_the_error_is_larger() -> None:
    weight, gram = problem(6, 6, 1)
    left, values, right = torch.linalg.svd(weight)
    plain = output_error(left[:, :2] * values[:2] @ right[:2], weight, gram).sum()
    assert float(plain) > 1.5 * float(spectrum(weight, gram, 0.0).errors()[2])


@pytest.mark.parametrize("damping", [0.0, 0.01])
@pytest.mark.parametrize("rows", [0, 1, 3])
def test_too_few_data_are_no_hindrance(rows: int, damping: float) -> None:
    weight = problem(4, 6, 2)[0]
    x = torch.randn(rows, 6, dtype=torch.float64)
    gram = x.mT @ x / max(rows, 1)
    down, up = spectrum(weight, gram, damping).factors(4)
    assert torch.isfinite(up).all()
    assert torch.isfinite(down).all()
    # Whatever was added to the diagonal, all ranks together are the weight; the condition number is 1e8 at most.
    torch.testing.assert_close(up @ down, weight, rtol=1e-6, atol=1e-6)


def test_zeros_and_ties_are_decomposed() -> None:
    zero = spectrum(torch.zeros(3, 4), torch.eye(4), 0.0)
    assert zero.errors().tolist() == [0, 0, 0, 0]
    ties = spectrum(torch.eye(4), torch.eye(4), 0.0)
    torch.testing.assert_close(ties.errors(), torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0]))


def test_damping_is_a_share_of_the_mean_of_the_diagonal() -> None:
    weight, gram = problem(3, 5, 3)
    by_hand = gram + 0.5 * gram.diagonal().mean() * torch.eye(5, dtype=torch.float64)
    torch.testing.assert_close(spectrum(weight, gram, 0.5).values, spectrum(weight, by_hand, 0.0).values)
