"""Masks that follow a timetable: little by little (`Gradual`), or sparse and dense by turns (`ACDC`)."""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from secateur.errors import BudgetError, PlanError
from secateur.sparse.allocation import Allocation, even
from secateur.sparse.counts import share_of
from secateur.sparse.patterns import Pattern, Unstructured
from secateur.torch.scores import Magnitude, WeightScore
from secateur.train.method import Weights, check_choice, lowest


@dataclass(frozen=True, slots=True)
class Gradual:
    """Ever more weights go while the model is trained: many at first, few in the end.

    After `t` steps the sparsity is `s + (initial - s) * (1 - (t - begin) / (end - begin))^3`, exactly. What went stays zero: the
    paper's masks hide weights, which could come back with their old values; here they score less than all others. On its way to
    N of M, what goes are the lowest of those that will have to.

    Args:
        sparsity: The share that goes in the end, in [0, 1).
        end: The step after which it is reached.
        begin: The step after which the first weights go, at least 0 and before the end.
        every: How many steps masks stay as they are, at least 1.
        initial: The share that goes at the beginning, at most `sparsity`.
        pattern: What goes together.
        score: What a weight is worth; one that needs no data.
        allocation: How what goes is divided among the layers; N of M takes none but `even`.

    Raises:
        PlanError: The steps are not so, or the score needs data.
        BudgetError: A sparsity is out of range, or not the pattern's.

    Example:
        >>> schedule = Gradual(0.8, end=100, every=50)
        >>> [float(schedule.sparsity_at(step)) for step in (0, 50, 100)], schedule.changes(50), schedule.changes(60)
        ([0.0, 0.7, 0.8], True, False)

    Source:
        M. Zhu, S. Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model compression", 2017, equation 1.
    """

    sparsity: float | Fraction
    end: int
    begin: int = 0
    every: int = 100
    initial: float | Fraction = 0.0
    pattern: Pattern = Unstructured("tensor")  # noqa: RUF009 - frozen
    score: WeightScore = Magnitude()  # noqa: RUF009 - frozen
    allocation: Allocation = even

    def __post_init__(self) -> None:
        if not 0 <= self.begin < self.end or self.every < 1:
            raise PlanError(f"{self!r}: 0 <= begin < end, and every is at least 1")
        if share_of(self.initial) > share_of(self.sparsity):
            raise BudgetError(f"{self!r}: initial is at most the sparsity, which only grows")
        check_choice(self.sparsity, self.pattern, self.score, self.allocation)

    @property
    def needs_gradients(self) -> bool:
        """It looks at the weights alone."""
        return False

    def changes(self, step: int) -> bool:
        """From the beginning on, every so many steps, and at the end."""
        return self.begin <= step <= self.end and ((step - self.begin) % self.every == 0 or step == self.end)

    def sparsity_at(self, step: int) -> Fraction:
        """The share that goes after so many steps, in [0, 1)."""
        first, last = share_of(self.initial), share_of(self.sparsity)
        done = Fraction(min(max(step, self.begin), self.end) - self.begin, self.end - self.begin)
        return last + (first - last) * (1 - done) ** 3

    def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:
        """See `Method`."""
        return lowest(weights, self.sparsity_at(step), towards(self.pattern), self.score, self.allocation)


@dataclass(frozen=True, slots=True)
class ACDC:
    """Sparse and dense by turns: what went gets the chance to come back, and a sparse phase is the last.

    At the beginning of a sparse phase the weights of the lowest magnitude go; in a dense one all are trained.

    Args:
        sparsity: The share that goes, in [0, 1).
        warmup: How many steps are dense at first, at least 0.
        sparse_steps: How long a sparse phase is, at least 1.
        dense_steps: How long a dense phase is, at least 1.
        until: The step after which all is sparse, at least `warmup`.
        pattern: What goes together.
        allocation: How what goes is divided among the layers.

    Raises:
        PlanError: The steps are not so.
        BudgetError: The sparsity is out of range.

    Example:
        >>> method = ACDC(0.9, warmup=10, sparse_steps=20, dense_steps=20, until=80)
        >>> list(filter(method.changes, range(200)))
        [10, 30, 50, 70, 80]

    Source:
        A. Peste et al., "AC/DC: Alternating Compressed/DeCompressed Training of Deep Neural Networks", NeurIPS 2021, algorithm 1.
    """

    sparsity: float | Fraction
    warmup: int
    sparse_steps: int
    dense_steps: int
    until: int
    pattern: Pattern = Unstructured("global")  # noqa: RUF009 - frozen
    allocation: Allocation = even

    def __post_init__(self) -> None:
        check_choice(self.sparsity, self.pattern, Magnitude(), self.allocation)
        if not 0 <= self.warmup <= self.until or min(self.sparse_steps, self.dense_steps) < 1:
            raise PlanError(f"{self!r}: 0 <= warmup <= until, and both phases have at least one step")

    @property
    def needs_gradients(self) -> bool:
        """It looks at the weights alone."""
        return False

    def changes(self, step: int) -> bool:
        """Where a phase begins; before the first step all is dense."""
        return self._is_sparse(step) != (step > 0 and self._is_sparse(step - 1))

    def choose(self, step: int, weights: Weights) -> Mapping[str, Tensor]:
        """See `Method`."""
        if self._is_sparse(step):
            return lowest(weights, self.sparsity, self.pattern, Magnitude(), self.allocation)
        return {name: torch.ones_like(mask) for name, mask in weights.stays.items()}

    def _is_sparse(self, step: int) -> bool:
        place = (step - self.warmup) % (self.sparse_steps + self.dense_steps)
        return step >= self.until or (step >= self.warmup and place < self.sparse_steps)


def towards(pattern: Pattern) -> Pattern:
    """A pattern that any sparsity up to its own is possible in; where all are, the pattern itself."""
    return pattern if pattern.share is None else _Towards(pattern)


@dataclass(frozen=True, slots=True)
class _Towards:
    """A pattern with one sparsity, reached little by little: of the weights that it lets go, the lowest go first."""

    pattern: Pattern

    @property
    def width(self) -> int:
        return self.pattern.width

    @property
    def share(self) -> None:
        return

    def check(self, columns: int) -> None:
        self.pattern.check(columns)

    def units(self, entries: Tensor) -> Tensor:
        return self.pattern.units(entries)

    def choose(self, scores: Tensor, count: int) -> Tensor:
        stays = self.pattern.choose(scores, count)
        return Unstructured("tensor").choose(scores.masked_fill(stays, torch.inf), count)
