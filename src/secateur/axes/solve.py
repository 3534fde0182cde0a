"""From what a run said about labels to units: union-find over the ties, then the definitions until they agree.

A class of tied labels is either *composite* (some definition says which factors it consists of) or *primitive*. Two definitions
of one class must agree: equal partitions of the same positions are unified factor by factor, a coarser one refines a finer one
(8 groups against 4 heads of 2 groups each), and what cannot be matched is frozen. Free primitive classes are the units.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from secateur.axes.blocks import Integers
from secateur.axes.kinds import WHOLE, Role
from secateur.axes.labels import CONSTANT, Definition, Labels, Reason

FREE = -1

UNFIT = "seen as two groupings that do not fit each other"
"""Why classes stay whose groupings contradict each other."""


@dataclass(frozen=True, slots=True)
class Solution:
    """What the labels turned out to be.

    Attributes:
        places: The number of each label among those left when dims tied as wholes are counted once; the last is that of -1.
        consists: For each such number, the rows of classes it consists of, padded with `CONSTANT`; so is the last column.
        frozen: Why classes must stay.
        reasons: For each class, the index into `frozen` of the reason it must stay, or `FREE`.
        exact: For each class, whether removing it equals zeroing it.
        signature: For each class, a number that is equal for interchangeable classes.
        roles: For each class, the parts that it plays in operators: the values of `Role`.
    """

    places: Integers
    consists: Integers
    frozen: tuple[Reason, ...]
    reasons: Integers
    exact: np.ndarray
    signature: np.ndarray
    roles: Integers

    def classes(self, dim: Integers) -> Integers:
        """The classes that each position of a dim consists of: `[factors, n] -> [more factors, n]`."""
        rows = [self.consists[:, self.places[row]] for row in dim]
        return rows[0] if len(rows) == 1 else np.concatenate(rows)

    @property
    def primitive(self) -> Integers:
        """For each label, the rows of classes it consists of."""
        return self.consists[:, self.places[:-1]]


def solve(run: Labels) -> Solution:
    """Unify all ties and definitions of a run."""
    labels, places = run.united()
    primitive = _Solver(labels).primitive()
    consists = np.append(primitive, np.full((len(primitive), 1), CONSTANT), axis=1)
    return Solution(
        places=places,
        consists=consists,
        frozen=tuple(reason for _, reason in labels.frozen),
        reasons=_frozen_classes(labels, primitive),
        exact=_exact_classes(labels, primitive),
        signature=_signatures(labels, primitive),
        roles=_roles(labels, consists),
    )


class _CircleError(Exception):
    """Some class is, by its definitions, a factor of itself."""


class _Solver:
    def __init__(self, labels: Labels) -> None:
        self.labels = labels
        self.definitions = list(labels.definitions)
        self.reunite()

    def reunite(self) -> None:
        """Recompute the classes of tied labels: `root[label]` is the smallest label of its class."""
        count = self.labels.count
        if not self.labels.ties:
            self.root = np.arange(count, dtype=np.int64)
            return
        left = np.concatenate([pair[0] for pair in self.labels.ties])
        right = np.concatenate([pair[1] for pair in self.labels.ties])
        graph = coo_array((np.ones(len(left), dtype=np.int8), (left, right)), shape=(count, count))
        _, component = connected_components(graph, directed=False)
        smallest = np.empty(component.max(initial=-1) + 1, dtype=np.int64)
        smallest[component[::-1]] = np.arange(count)[::-1]  # the last to be written stays
        self.root = smallest[component]

    def roots(self, labels: Integers) -> Integers:
        found: Integers = np.where(labels == CONSTANT, CONSTANT, self.root[labels])
        return found

    def primitive(self) -> Integers:
        """Make all definitions of one class agree, and expand every label by them: `[rows, labels]`.

        It ends because every step ties, refines or freezes something, or drops a definition.
        """
        while True:
            self._index_definitions()
            before = (len(self.labels.ties), self.labels.count)
            try:
                for definition, owner, at, owner_at in list(self._overlaps()):
                    self._unify(definition, at, owner, owner_at)
                if (len(self.labels.ties), self.labels.count) == before:
                    return self.expand(np.arange(self.labels.count, dtype=np.int64)[None])
                self.definitions = [*self._owners, *self._added]
            except _CircleError:
                self._break_circles()
            self.reunite()

    def _break_circles(self) -> None:
        """Classes that are factors of themselves are seen as groupings that do not fit each other: they stay."""
        whole = [*self._owners, *(definition for definition, _ in self._overlapping)]
        pairs = [(np.broadcast_to(d.labels, d.factors.shape)[d.factors >= 0], d.factors[d.factors >= 0]) for d in whole]
        parts, factors = (np.concatenate(side) for side in zip(*pairs, strict=True))
        count = self.labels.count
        graph = coo_array((np.ones(len(parts), dtype=np.int8), (parts, factors)), shape=(count, count))
        _, component = connected_components(graph, directed=True, connection="strong")
        circular = np.bincount(component)[component] > 1
        circular[parts[parts == factors]] = True
        assert circular.any(), "definitions of labels nest too deeply"
        self.labels.freeze(np.flatnonzero(circular), Reason(UNFIT, whole[0].reason.where))
        self.definitions = [
            Definition(d.labels[stays], d.factors[:, stays], d.reason)
            for d in whole
            if (stays := ~circular[d.labels]).any()
        ]

    def _index_definitions(self) -> None:
        """Give each class the first definition that speaks of it."""
        self._added: list[Definition] = []
        self._owners: list[Definition] = []
        self._overlapping: list[tuple[Definition, Integers]] = []
        self.owner = np.full(self.labels.count, -1, dtype=np.int64)
        self.owner_at = np.zeros(self.labels.count, dtype=np.int64)
        for definition in self.definitions:
            roots, factors = self.roots(definition.labels), self.roots(definition.factors)
            if (roots[1:] <= roots[:-1]).any():
                roots, first = self._without_repeats(roots, factors, definition.reason)
                factors = factors[:, first]
            new = self.owner[roots] < 0
            if not new.all():
                self._overlapping.append((Definition(roots, factors, definition.reason), np.flatnonzero(~new)))
                roots, factors = roots[new], factors[:, new]
            if len(roots):
                self.owner[roots] = len(self._owners)
                self.owner_at[roots] = np.arange(len(roots))
                self._owners.append(Definition(roots, factors, definition.reason))
        self._tabulate()

    def _without_repeats(self, roots: Integers, factors: Integers, reason: Reason) -> tuple[Integers, Integers]:
        """The distinct classes and where each comes first; the other places overlap with those."""
        unique, first = np.unique(roots, return_index=True)
        if len(first) < len(roots):
            again = np.ones(len(roots), dtype=bool)
            again[first] = False
            repeated = Definition(roots[again], factors[:, again], reason)
            self._overlapping.append((repeated, np.arange(len(repeated.labels))))
        return unique, first

    def _tabulate(self) -> None:
        """All definitions side by side, so that any number of labels is expanded by one look-up."""
        starts = np.cumsum([0, *(len(d.labels) for d in self._owners)])
        height = max((len(d.factors) for d in self._owners), default=1)
        self._table = np.full((height, int(starts[-1]) + 1), CONSTANT, dtype=np.int64)
        for start, definition in zip(starts, self._owners, strict=False):
            self._table[: len(definition.factors), start : start + len(definition.labels)] = definition.factors
        self._column = np.where(self.owner >= 0, starts[self.owner] + self.owner_at, -1)

    def _overlaps(self) -> Iterator[tuple[Definition, Definition, Integers, Integers]]:
        """Pairs of definitions that speak of the same classes, with the positions where they meet."""
        for definition, shared in self._overlapping:
            owners = self.owner[definition.labels[shared]]
            for owner in np.unique(owners):
                at = shared[owners == owner]
                yield definition, self._owners[owner], at, self.owner_at[definition.labels[at]]

    def _unify(self, left: Definition, left_at: Integers, right: Definition, right_at: Integers) -> None:
        """Match the factors of two definitions of the same positions."""
        ours = _rows(self.expand(left.factors[:, left_at]))
        theirs = _rows(self.expand(right.factors[:, right_at]))
        while True:
            ours, theirs = _without_common(ours, theirs)
            if not ours and not theirs:
                return
            if (pair := _same_partition(ours, theirs)) is not None:
                i, j = pair
                both = (ours[i] != CONSTANT) & (theirs[j] != CONSTANT)
                self.labels.ties.append((ours.pop(i)[both], theirs.pop(j)[both]))
            elif not (self._refine(ours, theirs, left.reason) or self._refine(theirs, ours, left.reason)):
                for row in (*ours, *theirs):
                    self.labels.freeze(row[row != CONSTANT], Reason(UNFIT, left.reason.where))
                return

    def _refine(self, coarse: list[Integers], fine: list[Integers], reason: Reason) -> bool:
        """Where a fine factor is a coarse one times a rest, define it so, and replace it in `fine`."""
        for a in coarse:
            for j, c in enumerate(fine):
                rest = _rest_within(a, c)
                if rest is None:
                    continue
                size = int(rest.max()) + 1
                extra = self.labels.fresh(size)
                assert isinstance(extra, np.ndarray)
                self.labels.observe((extra,))
                row = extra[0][rest]
                unique, first = np.unique(c, return_index=True)
                self._added.append(Definition(unique, np.stack([a[first], row[first]]), reason))
                fine[j : j + 1] = [a, row]
                return True
        return False

    def expand(self, factors: Integers) -> Integers:
        """Replace composite classes by their factors until only primitive ones are left: `[m, n] -> [m', n]`."""
        rows = self.roots(factors)
        for _ in range(64):
            columns = np.where(rows == CONSTANT, -1, self._column[rows])
            if (columns < 0).all():
                return _compacted(rows)
            rows = _compacted(self._expand_once(rows, columns))
        raise _CircleError

    def _expand_once(self, rows: Integers, columns: Integers) -> Integers:
        height = len(self._table)
        out = np.full((len(rows) * height, rows.shape[1]), CONSTANT, dtype=np.int64)
        for k, (row, column) in enumerate(zip(rows, columns, strict=True)):
            composite = np.flatnonzero(column >= 0)
            out[k * height] = row
            out[k * height : (k + 1) * height, composite] = self.roots(self._table[:, column[composite]])
        return out


def _compacted(rows: Integers) -> Integers:
    """Drop repeated classes of a column, then empty rows; the rows that stay keep their order."""
    if len(rows) == 1:
        return rows
    rows = rows.copy()
    for k in range(1, len(rows)):
        rows[k][(rows[:k] == rows[k]).any(axis=0)] = CONSTANT
    used = (rows != CONSTANT).any(axis=1)
    used[0] = True
    kept: Integers = rows[used]
    return kept


def _rows(factors: Integers) -> list[Integers]:
    return [row for row in factors if (row != CONSTANT).any()]


def _without_common(left: list[Integers], right: list[Integers]) -> tuple[list[Integers], list[Integers]]:
    """Drop factors that both sides have, position by position."""
    if not left or not right:
        return left, right
    a, b = np.stack(left), np.stack(right)
    in_both = (a[:, None] == b[None]) & (a != CONSTANT)[:, None]
    a = np.where(in_both.any(axis=1), CONSTANT, a)
    b = np.where(in_both.any(axis=0), CONSTANT, b)
    return _rows(a), _rows(b)


def _distinct(values: Integers) -> int:
    """The number of distinct values."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if high - low > 16 * len(values) + 1024:
        return len(np.unique(values))
    seen = np.zeros(high - low + 1, dtype=bool)
    seen[values - low] = True
    return int(seen.sum())


def _pairs(a: Integers, c: Integers) -> tuple[int, int, int]:
    """The number of distinct values of `a`, of `c`, and of both together."""
    both = (a - a.min(initial=0)) * (np.int64(c.max(initial=0) - c.min(initial=0)) + 1) + (c - c.min(initial=0))
    return _distinct(a), _distinct(c), _distinct(both)


def _same_partition(left: list[Integers], right: list[Integers]) -> tuple[int, int] | None:
    for i, a in enumerate(left):
        for j, c in enumerate(right):
            if np.array_equal(a == CONSTANT, c == CONSTANT):
                na, nc, both = _pairs(a, c)
                if na == nc == both:
                    return i, j
    return None


def _rest_within(coarse: Integers, fine: Integers) -> Integers | None:
    """The index of each fine value within its coarse one, or None where `fine` is no even refinement of `coarse`."""
    if (coarse == CONSTANT).any() or (fine == CONSTANT).any():
        return None
    na, nc, both = _pairs(coarse, fine)
    if both != nc or nc <= na or na <= 1 or nc % na:
        return None
    unique, first, inverse = np.unique(fine, return_index=True, return_inverse=True)
    owner = coarse[first]
    order = np.lexsort((first, owner))
    sizes = np.unique(owner, return_counts=True)[1]
    if (sizes != nc // na).any():
        return None
    rank = np.empty(len(unique), dtype=np.int64)
    rank[order] = np.tile(np.arange(nc // na), na)
    return rank[inverse]


def _frozen_classes(labels: Labels, primitive: Integers) -> Integers:
    """The first reason each class is frozen for; a frozen composite freezes all its factors."""
    reasons = np.full(labels.count, len(labels.frozen), dtype=np.int64)
    if labels.frozen:
        sizes = [len(frozen) for frozen, _ in labels.frozen]
        frozen = np.concatenate([frozen for frozen, _ in labels.frozen])
        index = np.repeat(np.arange(len(sizes)), sizes)
        index, frozen = index[frozen != CONSTANT], frozen[frozen != CONSTANT]
        for row in primitive:
            classes = row[frozen]
            np.minimum.at(reasons, classes[classes != CONSTANT], index[classes != CONSTANT])
    reasons[reasons == len(labels.frozen)] = FREE
    return reasons


def _exact_classes(labels: Labels, primitive: Integers) -> np.ndarray:
    exact = np.ones(labels.count, dtype=bool)
    for crossed in labels.normalised:
        for row in primitive:
            classes = row[crossed[crossed != CONSTANT]]
            exact[classes[classes != CONSTANT]] = False
    return exact


def _roles(labels: Labels, consists: Integers) -> Integers:
    """The parts that each class plays; the factors of a composite play most of its parts."""
    roles = np.zeros(labels.count + 1, dtype=np.int64)  # the last is that of CONSTANT
    batches = []
    for dim, played in labels.roles.values():
        classes = consists[:, dim].reshape(-1, dim.shape[1])
        if inherited := played & ~WHOLE:
            roles[classes] |= inherited.value
        if own := played & WHOLE:
            roles[classes[:, (classes != CONSTANT).sum(axis=0) == 1]] |= own.value
        if Role.BATCH in played:
            batches.append(classes)
    for classes in batches:
        repeated = (roles[classes] & Role.REPEATED.value != 0) & (classes != CONSTANT)
        roles[classes[~repeated & repeated.any(axis=0)]] |= Role.SHARED.value
    return roles[:-1]


def _signatures(labels: Labels, primitive: Integers) -> np.ndarray:
    """Sum, over all the places a class was met, of a random number of the place."""
    generator = np.random.default_rng(0)
    marks = np.zeros(labels.count, dtype=np.uint64)
    for context in labels.contexts.values():
        for row in context:
            mark = generator.integers(0, 2**63, dtype=np.uint64)
            np.add.at(marks, row[row != CONSTANT], mark)
    signature = np.zeros(labels.count, dtype=np.uint64)
    for row in primitive:
        there = row != CONSTANT
        np.add.at(signature, row[there], marks[there])
    return signature
