"""The mathematics of refitting, against torch's own least squares."""

import logging
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from secateur.torch.least_squares import Gap, close, fold_mean, refit, solve


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.T @ x / len(x), x.mean(0)


def correlated(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64) @ mix + 1


@pytest.mark.parametrize("constant", [True, False])
def test_a_refit_is_the_least_squares_solution(constant: bool) -> None:
    x, weight, kept = correlated(50, 6), torch.randn(4, 6, dtype=torch.float64), torch.tensor([0, 2, 5])
    fit = refit(weight, *moments(x), kept, ridge=0, constant=constant)
    seen = torch.cat([x[:, kept], torch.ones(50, 1, dtype=torch.float64)], dim=1) if constant else x[:, kept]
    solution = torch.linalg.lstsq(seen, x @ weight.T).solution.T
    torch.testing.assert_close(weight[:, kept] + fit.change, solution[:, :3])
    if constant:
        torch.testing.assert_close(fit.shift, solution[:, 3])
    else:
        assert not fit.shift.any()
    error = (x @ weight.T - seen @ solution.T).square().sum(1).mean()
    assert fit.after == pytest.approx(error.item(), rel=1e-9)


@given(
    rows=st.integers(1, 12),
    columns=st.integers(2, 6),
    seed=st.integers(0, 10_000),
    ridge=st.sampled_from([0.0, 1e-6, 1e-2, 1.0, 100.0]),
    constant=st.booleans(),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_a_refit_never_leaves_a_larger_error_than_removing_alone(
    rows: int, columns: int, seed: int, ridge: float, constant: bool, data: Any
) -> None:
    """However few the rows are, and whatever the ridge: it pulls towards the weights as they were."""
    x, weight = correlated(rows, columns, seed), correlated(3, columns, seed + 1)
    kept = torch.tensor(sorted(data.draw(st.sets(st.integers(0, columns - 1), min_size=1, max_size=columns))))
    fit = refit(weight, *moments(x), kept, ridge, constant)
    new = x[:, kept] @ (weight[:, kept] + fit.change).T + fit.shift
    alone = (x @ weight.T - x[:, kept] @ weight[:, kept].T).square().sum(1).mean().item()
    error = (x @ weight.T - new).square().sum(1).mean().item()
    scale = (x @ weight.T).square().sum(1).mean().item()
    assert fit.before == pytest.approx(alone, rel=1e-6, abs=1e-9 * scale)
    assert error <= alone + 1e-6 * scale
    assert fit.after <= fit.before


def test_a_duplicate_goes_without_a_trace() -> None:
    x = correlated(40, 5)
    x = torch.cat([x, x[:, [3]]], dim=1)
    fit = refit(torch.randn(3, 6, dtype=torch.float64), *moments(x), torch.tensor([0, 1, 2, 3, 4]), 0, constant=False)
    assert fit.after <= 1e-12 * fit.before


def test_a_linear_combination_goes_without_a_trace() -> None:
    x = correlated(40, 5)
    x = torch.cat([x, x @ torch.randn(5, 1, dtype=torch.float64)], dim=1)
    fit = refit(torch.randn(3, 6, dtype=torch.float64), *moments(x), torch.tensor([0, 1, 2, 3, 4]), 0, constant=False)
    assert fit.after <= 1e-12 * fit.before


def test_a_constant_input_folds_exactly() -> None:
    x = correlated(40, 4)
    x[:, 1] = -2.5
    weight, kept = torch.randn(3, 4, dtype=torch.float64), torch.tensor([0, 2, 3])
    fit = refit(weight, *moments(x), kept, ridge=0.1, constant=True)
    assert fit.after <= 1e-12 * fit.before
    torch.testing.assert_close(fit.change, torch.zeros(3, 3, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(fit.shift, -2.5 * weight[:, 1])
    torch.testing.assert_close(fold_mean(weight, x.mean(0), kept), -2.5 * weight[:, 1])


def test_a_large_ridge_leaves_the_mean_alone_to_be_folded() -> None:
    x, weight, kept = correlated(50, 5), torch.randn(3, 5, dtype=torch.float64), torch.tensor([1, 2])
    fit = refit(weight, *moments(x), kept, ridge=1e12, constant=True)
    torch.testing.assert_close(fit.change, torch.zeros(3, 2, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(fit.shift, fold_mean(weight, x.mean(0), kept), rtol=1e-9, atol=1e-9)


def test_the_damped_solution_minimises_the_damped_objective() -> None:
    x, missed, ridge = correlated(30, 4), torch.randn(30, 2, dtype=torch.float64), 0.3
    gram, cross = x.T @ x / 30, missed.T @ x / 30
    damping = ridge * gram.diagonal().mean()
    change = close(Gap(float(missed.square().sum()) / 30, cross, gram, None), ridge).change
    rows = torch.cat([x / 30**0.5, damping.sqrt() * torch.eye(4, dtype=torch.float64)])
    goal = torch.cat([missed / 30**0.5, torch.zeros(4, 2, dtype=torch.float64)])
    torch.testing.assert_close(change, torch.linalg.lstsq(rows, goal).solution.T)


def test_a_singular_gram_matrix_is_damped_more_and_more_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.randn(3, 6, dtype=torch.float64)
    gram = x.T @ x / 3
    with caplog.at_level(logging.INFO, logger="secateur"):
        change = solve(torch.randn(2, 3, dtype=torch.float64) @ x, gram, 0)
    assert torch.isfinite(change).all()
    assert "a Gram matrix of 6 inputs is singular; trying a ridge of 1e-10" in caplog.text


def test_inputs_that_are_always_zero_need_no_weights() -> None:
    assert not solve(torch.zeros(2, 3, dtype=torch.float64), torch.zeros(3, 3, dtype=torch.float64), 0).any()
