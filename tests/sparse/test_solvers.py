"""Solvers against closed forms, brute force, and each other where theory says that they agree."""

from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from torch import Tensor

from secateur.errors import DataError, PlanError
from secateur.sparse.patterns import Block, NofM, Pattern, Unstructured
from secateur.sparse.solvers import ALPS, ExactOBS, Problem, Refit, Solver, SparseGPT, Swaps, keep, output_error


def problem(
    rows: int = 5,
    columns: int = 12,
    pattern: Pattern | None = None,
    share: float = 0.5,
    seed: int = 0,
    samples: int = 200,
) -> Problem:
    """A layer with correlated inputs, and what a layer's own scores choose of it."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    x = torch.randn(samples, columns, generator=generator, dtype=torch.float64) @ mixing
    weight = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    gram, chosen = x.T @ x / samples, pattern or Unstructured()
    units = chosen.units(weight)
    count = round(share * units.numel())
    stays = chosen.choose((weight * gram.diagonal().sqrt()).abs(), count)
    return Problem(weight, gram, chosen, count, stays)


def error(given: Problem, weight: Tensor) -> float:
    return float(output_error(weight, given.weight, given.gram).sum())


def least_squares(given: Problem, stays: Tensor) -> Tensor:
    """The best weights on a mask, row by row, by a solver of another kind."""
    root = torch.linalg.cholesky(given.gram).T
    best = torch.zeros_like(given.weight)
    for row, kept in enumerate(stays):
        best[row, kept] = torch.linalg.lstsq(root[:, kept], root @ given.weight[row]).solution
    return best


@dataclass(frozen=True)
class Given:
    """A pattern that lets go what a mask says, whatever the scores are, for solvers that go through columns in order."""

    mask: Tensor
    seen: list[int]
    width: int = 1
    share: None = None

    def check(self, columns: int) -> None: ...

    def units(self, entries: Tensor) -> Tensor:
        return entries

    def choose(self, scores: Tensor, count: int) -> Tensor:
        start = sum(self.seen)
        self.seen.append(scores.shape[1])
        return self.mask[:, start : start + scores.shape[1]]


SOLVERS: dict[str, Solver] = {
    "keep": keep, "refit": Refit(), "sweep": SparseGPT(), "swaps": Swaps(), "surgery": ExactOBS(),
    "alps": ALPS(),
}  # fmt: skip
PATTERNS = {
    "row": Unstructured(), "tensor": Unstructured("tensor"), "2:4": NofM(2, 4), "1:3": NofM(1, 3),
    "1x4": Block(1, 4), "5x1": Block(5, 1), "2x3": Block(2, 3),
}  # fmt: skip


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
@pytest.mark.parametrize("solver", SOLVERS.values(), ids=SOLVERS)
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.9])
def test_what_goes_is_zero_and_as_much_as_was_asked_for(solver: Solver, pattern: Pattern, share: float) -> None:
    given = problem(6, 24, pattern, share)
    if isinstance(pattern, Block) and isinstance(solver, Swaps | ExactOBS):
        with pytest.raises(PlanError, match="single weights"):
            solver(given)
        return
    found = solver(given)
    assert not found.weight[~found.stays].any()
    assert torch.isfinite(found.weight).all()
    units = pattern.units(found.stays.to(torch.float64))
    if isinstance(pattern, NofM):
        assert (found.stays.view(-1, pattern.m).sum(1) == pattern.n).all()
    else:
        assert int((units == 0).sum()) == given.count


@pytest.mark.parametrize("seed", range(5))
def test_a_refit_is_least_squares(seed: int) -> None:
    given = problem(seed=seed)
    found = Refit(ridge=0, tolerance=1e-12)(given)
    torch.testing.assert_close(found.weight, least_squares(given, given.stays), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("ridge", [0.0, 1e-3, 1e-1, 10.0])
@pytest.mark.parametrize("samples", [200, 6])
def test_a_refit_never_does_harm(ridge: float, samples: int) -> None:
    for seed in range(10):
        given = problem(seed=seed, samples=samples)
        before = output_error(given.weight * given.stays, given.weight, given.gram)
        after = output_error(Refit(ridge=ridge)(given).weight, given.weight, given.gram)
        assert (after <= before * (1 + 1e-12)).all()


def test_the_copy_of_an_input_does_its_work() -> None:
    given = problem(3, 6)
    x = torch.randn(100, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:, 5] = x[:, 4]
    stays = torch.ones(3, 6, dtype=torch.bool)
    stays[:, 5] = False
    copied = replace(given, gram=x.T @ x / 100, stays=stays)
    assert error(copied, Refit(ridge=0, tolerance=1e-12)(copied).weight) < 1e-16


def test_without_correlation_a_sweep_is_magnitude() -> None:
    given = replace(problem(8, 32), gram=torch.eye(32, dtype=torch.float64))
    found = SparseGPT(block=8, damping=0)(given)
    for start in range(0, 32, 8):
        part = slice(start, start + 8)
        chosen = Unstructured().choose(given.weight[:, part].abs(), 32)
        assert found.stays[:, part].equal(chosen)
    torch.testing.assert_close(found.weight, given.weight * found.stays)


@pytest.mark.parametrize("gone", [1, 3, 7])
def test_a_sweep_over_the_first_columns_is_least_squares(gone: int) -> None:
    given = problem()
    stays = torch.ones_like(given.stays)
    stays[:, :gone] = False
    found = SparseGPT(damping=0)(replace(given, pattern=Given(stays, []), count=0))
    torch.testing.assert_close(found.weight, least_squares(given, stays), rtol=1e-6, atol=1e-8)


def test_blocks_of_a_sweep_are_a_matter_of_speed_alone() -> None:
    given = problem(6, 24)
    one, *others = (
        SparseGPT(block=block)(replace(given, pattern=Given(given.stays, []), count=0)).weight
        for block in (1, 5, 16, 24)
    )
    for other in others:
        torch.testing.assert_close(other, one)


def test_no_sweep_beats_least_squares_on_its_own_mask() -> None:
    for seed in range(50):
        given = problem(seed=seed, samples=50)
        swept = SparseGPT(block=4)(given)
        assert error(given, least_squares(given, swept.stays)) <= error(given, swept.weight) * (1 + 1e-9)


def test_surgery_ends_at_least_squares_and_each_step_is_the_cheapest() -> None:
    given = problem(4, 10)
    found = ExactOBS()(given)
    torch.testing.assert_close(found.weight, least_squares(given, found.stays), rtol=1e-6, atol=1e-8)
    one = ExactOBS()(replace(given, count=4))
    for row in range(4):
        costs = []
        for gone in range(10):
            stays = torch.ones(4, 10, dtype=torch.bool)
            stays[row, gone] = False
            costs.append(error(given, least_squares(given, stays)))
        assert not one.stays[row, min(range(10), key=costs.__getitem__)]
        inverse = torch.linalg.inv(given.gram)
        expected = given.weight[row].square() / inverse.diagonal()
        torch.testing.assert_close(torch.tensor(costs, dtype=torch.float64), expected)


@pytest.mark.parametrize("pattern", [Unstructured(), Unstructured("tensor"), NofM(2, 4), Block(1, 4)], ids=str)
def test_alternating_directions_beat_a_sweep_and_a_refit(pattern: Pattern) -> None:
    errors = [0.0, 0.0, 0.0]
    for seed in range(8):
        given = problem(12, 48, pattern, 0.7, seed=seed, samples=300)
        for i, solver in enumerate((ALPS(), SparseGPT(), Refit())):
            errors[i] += error(given, solver(given).weight)
    assert errors[0] < 0.9 * min(errors[1:])


def test_swaps_end_where_no_swap_helps() -> None:
    for seed in range(10):
        given = problem(4, 10, seed=seed)
        found = Swaps(rounds=100)(given)
        reached = output_error(found.weight, given.weight, given.gram)
        assert (reached <= output_error(given.weight * given.stays, given.weight, given.gram) + 1e-12).all()
        for row, stays in enumerate(found.stays):
            for out in stays.nonzero().flatten().tolist():
                for back in (~stays).nonzero().flatten().tolist():
                    other = stays.clone()
                    other[out], other[back] = False, True
                    change = given.weight[row] * ~other
                    assert change @ given.gram @ change >= reached[row] * (1 - 1e-9)


def test_few_candidates_find_nearly_what_all_pairs_do() -> None:
    given = problem(16, 64, samples=400)
    few, every = (error(given, Swaps(candidates=candidates)(given).weight) for candidates in (8, 64))
    assert few <= 1.02 * every < error(given, keep(given).weight)


def test_swaps_come_near_the_best_of_all_masks() -> None:
    given = problem(1, 12)
    best = min(
        float((lost := given.weight[0] * torch.tensor([i in gone for i in range(12)])) @ given.gram @ lost)
        for gone in combinations(range(12), 6)
    )
    reached = error(given, Swaps(rounds=100)(given).weight)
    assert best * (1 - 1e-9) <= reached <= 1.5 * best


def test_memory_changes_nothing_of_swaps_and_surgery() -> None:
    given = problem(7, 12)
    for solver in (Swaps, ExactOBS):
        one, other = solver()(given), solver(memory=1)(given)
        torch.testing.assert_close(one.weight, other.weight)


@pytest.mark.parametrize(
    "solver", [SparseGPT(), ExactOBS(damping=0.01), Refit(), Swaps()], ids=lambda s: type(s).__name__
)
def test_dead_and_repeated_inputs_and_few_samples(solver: Solver) -> None:
    given = problem(6, 16, samples=5)
    gram = given.gram.clone()
    gram[3], gram[:, 3] = 0, 0
    found = solver(replace(given, gram=gram))
    assert torch.isfinite(found.weight).all()
    assert int((~found.stays).sum()) == given.count
    if isinstance(solver, SparseGPT):
        assert not found.stays[:, 3].any()


def test_a_sweep_counts_dead_inputs_and_old_zeros_once() -> None:
    given = problem(4, 32)
    gram, weight = given.gram.clone(), given.weight.clone()
    gram[:6], gram[:, :6] = 0, 0
    weight[:, 20:25] = 0
    found = SparseGPT(block=8)(replace(given, gram=gram, weight=weight))
    assert int((found.weight == 0).sum()) == given.count == 64


def test_weights_are_rounded_where_they_stay() -> None:
    def halves(weight: Tensor, columns: slice = slice(None)) -> Tensor:
        return (weight * 2).round() / 2

    given = replace(problem(6, 24, samples=500), grid=halves)
    for solver in SOLVERS.values():
        found = solver(given)
        assert found.weight.equal(halves(found.weight) * found.stays)
    together = apart = 0.0
    for seed in range(20):
        given = replace(problem(6, 24, samples=500, seed=seed), grid=halves)
        together += error(given, SparseGPT()(given).weight)
        apart += error(given, halves(SparseGPT()(replace(given, grid=None)).weight))
    assert together < apart


@pytest.mark.parametrize(
    "make",
    [lambda: SparseGPT(block=0), lambda: SparseGPT(damping=-1), lambda: Refit(ridge=-1), lambda: Refit(tolerance=0),
     lambda: Swaps(rounds=0), lambda: Swaps(candidates=0),
     lambda: ALPS(damping=-1), lambda: ALPS(rounds=0), lambda: ExactOBS(damping=float("inf"))],
)  # fmt: skip
def test_settings_out_of_range_are_refused(make: object) -> None:
    with pytest.raises(DataError, match="at least"):
        make()  # type: ignore[operator]
