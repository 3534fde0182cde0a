"""Weights lie on their grids exactly, whoever puts them there, and solvers make up for it."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError
from secateur.sparse.patterns import Block, NofM, Pattern, Unstructured
from secateur.sparse.problem import Problem, output_error
from secateur.sparse.rounding import Integer, WholeNumbers
from secateur.sparse.solvers import ALPS, ExactOBS, Refit, Solver, SparseGPT, Swaps, keep

WHOLE = slice(None)
INTEGERS = st.builds(
    Integer, st.sampled_from([2, 3, 4, 8, 16]), st.sampled_from([None, 1, 3, 5]), st.booleans(), st.booleans()
)
NUMBER = st.one_of(st.just(0.0), st.floats(-1e3, 1e3, width=32), st.floats(-1e-40, 1e-40), st.just(1e30))
WEIGHTS = st.lists(st.lists(NUMBER, min_size=7, max_size=7), min_size=1, max_size=3)


def made(integer: Integer, weight: Tensor) -> WholeNumbers:
    grid = integer(weight)
    assert isinstance(grid, WholeNumbers)
    return grid


@settings(deadline=None)
@given(INTEGERS, WEIGHTS, WEIGHTS)
def test_the_number_of_the_grid_is_the_nearest(integer: Integer, dense: list[Any], others: list[Any]) -> None:
    weight = torch.tensor(dense, dtype=torch.float64)
    grid = made(replace(integer, bits=min(integer.bits, 8)), weight)
    given_ = torch.tensor((others * 3)[: len(dense)], dtype=torch.float64)
    found = grid(given_, WHOLE)
    numbers = (torch.arange(grid.least, grid.most + 1)[:, None, None] - grid.zero) * grid.scale
    distances = (numbers - given_).abs()
    assert ((found - given_).abs() <= distances.amin(0) * (1 + 1e-9)).all()
    assert (numbers == found).any(0).all()


@settings(deadline=None)
@given(INTEGERS, WEIGHTS)
def test_a_number_of_the_grid_stays_what_it_is_and_zero_is_one(integer: Integer, dense: list[Any]) -> None:
    weight = torch.tensor(dense, dtype=torch.float32)
    grid = made(integer, weight)
    once = grid(weight, WHOLE)
    assert grid(once, WHOLE).equal(once)
    zeros = grid(torch.zeros_like(weight), WHOLE)
    assert not zeros.any()
    assert not zeros.signbit().any()
    assert not once[once == 0].signbit().any()


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_a_grid_has_as_many_numbers_as_its_bits(bits: int, symmetric: bool) -> None:
    weight = torch.rand(4, 5000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) - 0.4
    found = Integer(bits, None, symmetric)(weight)(weight, WHOLE)
    reached = [len(row.unique()) for row in found]
    assert max(reached) <= 2**bits - symmetric
    if not symmetric:
        assert reached == [2**bits] * 4


def test_without_clipping_no_weight_is_farther_than_half_a_step() -> None:
    weight = torch.randn(6, 50, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for symmetric in (True, False):
        grid = made(Integer(4, 16, symmetric), weight)
        assert ((grid(weight, WHOLE) - weight).abs() <= grid.scale * (0.5 if symmetric else 1.0) + 1e-12).all()


def test_groups_know_nothing_of_each_other() -> None:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    whole = Integer(3, 4, symmetric=False, clip=True)(weight)(weight, WHOLE)
    for start in (0, 4, 8):
        part = weight[:, start : start + 4]
        alone = Integer(3, None, symmetric=False, clip=True)(part)(part, WHOLE)
        torch.testing.assert_close(whole[:, start : start + 4], alone)


def test_some_columns_are_rounded_as_in_the_whole() -> None:
    weight = torch.randn(3, 10, generator=torch.Generator().manual_seed(0))
    grid = Integer(3, 4)(weight)
    for columns in (slice(3, 4), slice(2, 9)):
        assert grid(weight[:, columns], columns).equal(grid(weight, WHOLE)[:, columns])


def test_clipping_lowers_the_error_and_never_raises_it() -> None:
    for seed in range(5):
        weight = torch.randn(8, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        lost = [
            (Integer(3, 32, clip=clip)(weight)(weight, WHOLE) - weight).square().unflatten(1, (-1, 32)).sum(2)
            for clip in (True, False)
        ]
        assert (lost[0] <= lost[1]).all()
        assert lost[0].sum() < 0.9 * lost[1].sum()


def problem(seed: int = 0, pattern: Pattern | None = None, share: float = 0.5) -> Problem:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(300, 24, generator=generator, dtype=torch.float64)
    x = x @ torch.randn(24, 24, generator=generator, dtype=torch.float64)
    weight = torch.randn(8, 24, generator=generator, dtype=torch.float64)
    gram, pattern = x.T @ x / 300, pattern or Unstructured()
    count = round(share * pattern.units(weight).numel())
    stays = pattern.choose((weight * gram.diagonal().sqrt()).abs(), count)
    return Problem(weight, gram, pattern, count, stays)


def error(given: Problem, weight: Tensor) -> float:
    return float(output_error(weight, given.weight, given.gram).sum())


@pytest.mark.parametrize("pattern", [Unstructured(), NofM(2, 4), Block(2, 3)], ids=str)
@pytest.mark.parametrize(
    "solver",
    [keep, Refit(), Refit(ridge=1e3), SparseGPT(), SparseGPT(block=7), Swaps(), ALPS(), ExactOBS()],
    ids=lambda solver: getattr(solver, "__name__", str(solver)),
)
def test_every_solver_ends_on_the_grid(solver: Solver, pattern: Pattern) -> None:
    if isinstance(pattern, Block) and isinstance(solver, Swaps | ExactOBS):
        return
    for seed in range(3):
        given = problem(seed, pattern)
        grid = Integer(3, 8)(given.weight)
        found = solver(replace(given, grid=grid))
        assert found.weight.equal(grid(found.weight, WHOLE))
        assert not found.weight[~found.stays].any()


@pytest.mark.parametrize("integer", [Integer(3, 8), Integer(4, 8), Integer(4, None, symmetric=False)], ids=str)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_rounding_while_solving_beats_rounding_what_was_solved(integer: Integer, share: float) -> None:
    together = apart = 0.0
    for seed in range(20):
        given = problem(seed, share=share)
        grid, solver = integer(given.weight), SparseGPT()
        together += error(given, solver(replace(given, grid=grid)).weight)
        sparse = solver(given)
        apart += error(given, grid(sparse.weight, WHOLE) * sparse.stays)
    assert together < apart


def test_of_two_columns_the_second_makes_up_for_the_first() -> None:
    gram = torch.tensor([[2.0, 1.5], [1.5, 3.0]], dtype=torch.float64)
    weight = torch.tensor([[0.7, -1.2], [1.0, 0.3]], dtype=torch.float64)
    grid = Integer(3, None)(weight)
    given = Problem(weight, gram, Unstructured(), 0, torch.ones(2, 2, dtype=torch.bool), grid)
    first = grid(weight[:, :1], slice(0, 1))
    second = grid(weight[:, 1:] + (weight[:, :1] - first) * 1.5 / 3.0, slice(1, 2))
    torch.testing.assert_close(SparseGPT(damping=0)(given).weight, torch.cat([first, second], 1))


def test_inputs_that_have_nothing_in_common_leave_the_nearest_numbers() -> None:
    given = replace(problem(share=0.0), gram=torch.eye(24, dtype=torch.float64))
    grid = Integer(3, 8)(given.weight)
    assert SparseGPT()(replace(given, grid=grid)).weight.equal(grid(given.weight, WHOLE))


@pytest.mark.parametrize("solver", [sc.solvers.keep, Refit(), SparseGPT()], ids=["keep", "refit", "sparsegpt"])
@pytest.mark.parametrize("in_sequence", [True, False])
def test_whole_models_lie_on_grids(solver: Solver, in_sequence: bool) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 12)).eval()
    result = sc.sparsify(
        model, [torch.randn(64, 4, 6, 6)], sparsity=0.5, solver=solver, rounding=Integer(2, 16), in_sequence=in_sequence
    )
    taps = result.model[0].weight.detach().view(2, 4, 2, 9).mT.flatten(2).flatten(0, 1)
    for weight in (taps, result.model[3].weight.detach()):
        for group in weight.split(16, 1):
            assert all(len(row[row != 0].abs().unique()) <= 1 for row in group)
    assert result.plan.zeros * 2 == result.plan.total
    assert "weights are zero, in 2 layers; the others have 2 bits in groups of 16\n" in str(result)


@pytest.mark.parametrize("solver", [sc.solvers.keep, Refit(), SparseGPT()], ids=["keep", "refit", "sparsegpt"])
def test_the_grid_is_that_of_the_weights_as_they_would_be_without_it(solver: Solver) -> None:
    torch.manual_seed(0)
    model, data, integer = nn.Linear(32, 8), torch.randn(64, 4) @ torch.randn(4, 32), Integer(4, 16)
    free = sc.sparsify(model, [data], sparsity=0.5, solver=solver).model.weight.detach()
    found = sc.sparsify(model, [data], sparsity=0.5, solver=solver, rounding=integer).model.weight.detach()
    assert found.equal(integer(free)(found, WHOLE))


def test_weights_that_grow_are_not_cut_off() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(64, 32, bias=False), torch.randn(256, 8) @ torch.randn(8, 64)
    settings_ = {"sparsity": 0.75, "solver": SparseGPT()}
    free = sc.sparsify(model, [data], **settings_)
    rounded = sc.sparsify(model, [data], rounding=Integer(8, 16), **settings_)
    assert free.model.weight.abs().max() > 1.5 * model.weight.abs().max()
    assert rounded.report[0].error <= 1.05 * free.report[0].error


def test_in_sixteen_bits_weights_are_the_nearest_of_their_type() -> None:
    torch.manual_seed(0)
    model = nn.Linear(32, 8).bfloat16()
    weight = sc.sparsify(model, [torch.randn(64, 32).bfloat16()], sparsity=0.5, rounding=Integer(2, 16)).model.weight
    for group in weight.detach().split(16, 1):
        assert all(len(row[row != 0].abs().unique()) <= 1 for row in group)


@pytest.mark.parametrize("make", [lambda: Integer(bits=1), lambda: Integer(bits=17), lambda: Integer(group=0)])
def test_settings_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataError, match="bits is at least 2 and at most 16, group at least 1 or None"):
        make()
