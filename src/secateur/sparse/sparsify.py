"""The main job for single weights: score, choose, solve, layer by layer, on what each layer reads."""

import hashlib
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache, partial
from math import prod
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import BudgetError, DataError, ModelError, PlanError
from secateur.sparse.allocation import Allocation, Share, even
from secateur.sparse.counts import apportion, count_of, share_of
from secateur.sparse.journal import Entry, Journal, Masks, digest
from secateur.sparse.layers import Layer, Survey, survey
from secateur.sparse.patterns import Block, Pattern, Unstructured
from secateur.sparse.plan import WeightPlan
from secateur.sparse.problem import Problem, Solver, keep, output_error
from secateur.sparse.result import LayerReport, SparseResult
from secateur.sparse.solvers import Refit
from secateur.torch import scores as criteria
from secateur.torch.apply import state_of
from secateur.torch.batches import Batches, batch_size, part, real_rows, take
from secateur.torch.calibrate import Calibrate, Moments, evaluation_copy, undisturbed
from secateur.torch.capture import Inputs
from secateur.torch.products import Product
from secateur.torch.replicate import replicate
from secateur.torch.side_by_side import side_by_side

logger = logging.getLogger(__name__)

WINDOWS = 8
"""Windows of an image that a convolution is solved on, for each of its inputs; and so many more."""
LEAST_ROWS = 4096
LIVE = 3
"""About how many times the largest input and output of a layer are alive at once."""

Progress = Callable[[str, int, int], None]
"""Called with what was done last, how much is done and how much there is."""

Sparsity = float | Fraction | Mapping[str, float | Fraction]
"""A share for all weights, or shares by name patterns, of which the last that fits counts; `"*"` is all of them."""


def sparsify(
    model: nn.Module,
    batches: Batches,
    *,
    sparsity: Sparsity | None = None,
    pattern: Pattern | None = None,
    score: criteria.WeightScore | None = None,
    solver: Solver | Iterable[Solver] | None = None,
    allocation: Allocation = even,
    exclude: Sequence[str] = (),
    in_sequence: bool = True,
    samples: int = 128,
    memory: int = 4 << 30,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> SparseResult:
    """Set weights to zero, and let the others make up for it.

    The weights of all matrix products and convolutions can become sparse, but for those that something else reads too, such as an
    embedding that is tied to the last layer.

    Args:
        model: Any module; it is not changed.
        batches: What the model reads; targets are not looked at. See `secateur.torch.batches`.
        sparsity: The share that goes, in [0, 1), or shares by name patterns. None where the pattern says how much.
        pattern: What goes together; by default each weight by itself, as many in each row.
        score: What a weight is worth; by default `scores.Wanda()`.
        solver: What is done with the choice, one after the other; by default `solvers.Refit()`. `solvers.keep` does nothing.
        allocation: How what goes is divided among the layers, where `sparsity` is one number.
        exclude: Parameters or modules that stay dense, as name patterns.
        in_sequence: Solve each layer on what the model gives it in which the layers before are sparse already. Otherwise all are
            solved on what the dense model gives them.
        samples: How many samples to use, > 0. In sequence fewer are used where the memory is too small for what they all read;
            the result says how many.
        memory: About how many bytes of activations may be kept, in sequence; half of them while layers wait for each other, half
            while operators work.
        journal: A folder that gets each weight as soon as it is solved. A job that was killed goes on where it stopped when it
            is started again as it was, and comes to the same bytes. The weights of the result are then mapped from these files,
            those that did not change are the model's own, and one layer with its Gram matrix is in memory at a time.
        progress: Called as `progress(layer, done, total)` after each layer.

    Returns:
        The sparse model with its plan and a report.

    Raises:
        ArtefactError: The journal has the work of another job, or is damaged.
        BudgetError: A sparsity is missing, out of range, or not the pattern's.
        DataError: There are no data, they do not fit the model, or activations are not finite; names the layer.
        ModelError: Weights are not finite.
        PlanError: The pattern does not fit a weight, a name pattern fits nothing, or a solver does not know the pattern.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> result = sparsify(model, [torch.randn(64, 8)], sparsity=0.5)
        >>> result.plan.zeros, int((result.model[0].weight == 0).sum())
        (96, 64)
    """
    pattern = Unstructured() if pattern is None else pattern
    score = criteria.Wanda() if score is None else score
    solvers = _listed(Refit() if solver is None else solver)
    pieces = [inputs for inputs, _ in take(batches, samples)]
    _check_weights(model)
    small = replicate(model, _shared)
    found = survey(small, pieces[0], exclude)
    layers = found.layers
    _check_fit(layers, pattern)
    counts = _counts(
        layers, pattern, sparsity, allocation, cache(lambda: _scores(small, layers, score, pieces, pattern))
    )
    if in_sequence:
        pieces = _affordable(pieces, found, memory)
    method = _Method(pattern, score, solvers)
    book = None if journal is None else Journal(journal, _identity(method, counts, pieces, in_sequence=in_sequence))
    job = _Job(small, layers, counts, method, book, progress)
    if in_sequence:
        job.in_sequence(pieces, found.repeated)
    job.from_moments(pieces)
    return job.result(sum(map(batch_size, pieces)))


@dataclass(frozen=True, slots=True)
class _Method:
    """What is done with each matrix: choose by score and pattern, then solve."""

    pattern: Pattern
    score: criteria.WeightScore
    solvers: Sequence[Solver]

    @property
    def needs_gram(self) -> bool:
        """Whether there is more to do than to choose."""
        return any(solver is not keep for solver in self.solvers)

    def __call__(
        self, dense: Tensor, power: Tensor, gram: Tensor | None, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor, float | None]:
        """Make matrices sparse.

        Args:
            dense: `[groups, out, in]`.
            power: E[x^2], `[groups, in]`.
            gram: E[x x^T], `[groups, in, in]`, or None.
            counts: How many units go of each group.

        Returns:
            The sparse matrices, what stays of them, and the relative error where there is a Gram matrix.
        """
        weights, masks, lost, whole = [], [], 0.0, 0.0
        for g, count in enumerate(counts):
            stays = self.pattern.choose(scored(self.score, dense[g], power[g], self.pattern), count)
            weight = dense[g] * stays
            if gram is not None:
                for solver in self.solvers:
                    found = solver(Problem(dense[g], gram[g], self.pattern, count, stays))
                    weight, stays = found.weight, found.stays
                lost += float(output_error(weight, dense[g], gram[g]).sum())
                whole += float(output_error(torch.zeros_like(weight), dense[g], gram[g]).sum())
            weights.append(weight)
            masks.append(stays)
        error = None if gram is None else lost / whole if whole > 0 else 0.0
        return torch.stack(weights), torch.stack(masks), error


class _Job:
    """Layers that are to become sparse, and what became of those that are."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        counts: Mapping[Product, list[int]],
        method: _Method,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.layers, self.counts, self.method = model, layers, counts, method
        self.journal, self.progress = journal, progress
        self.running = evaluation_copy(model)
        self.todo = {layer.product: layer for layer in layers}
        self.dense = {name: tensor.detach() for name, tensor in state_of(model).items()}
        self.entries: dict[str, Entry] = {}
        self.reports: dict[str, LayerReport] = {}

    def in_sequence(self, pieces: Sequence[Inputs], repeated: Collection[Product]) -> None:
        """One run, in which each layer becomes sparse when it is its turn; those that run several times are left."""

        def change(product: Product, read: Mapping[int, Tensor]) -> Tensor:
            layer = self.todo.pop(product)
            return self._settled(
                layer, lambda: self._moments(layer, [real_rows(pieces[number], x) for number, x in read.items()])
            )

        with undisturbed():
            side_by_side(self.running, pieces, [product for product in self.todo if product not in repeated], change)

    def from_moments(self, pieces: Sequence[Inputs]) -> None:
        """All layers that are left, on what the model as it is now gives them."""
        if not self.todo:
            return
        calibrate = Calibrate(samples=sum(map(batch_size, pieces)), gram=self.method.needs_gram)
        tensors = {product.tensor for product in self.todo}
        for moments in calibrate(self.running, [(piece, None) for piece in pieces], tensors):
            layer = self.todo.pop(moments.product, None)
            if layer is not None:
                self._settled(layer, partial(_ordered, layer, moments))

    def result(self, samples: int) -> SparseResult:
        """What became of the model."""
        names = list(dict.fromkeys(layer.product.tensor for layer in self.layers))
        if self.journal is None:
            masks: Mapping[str, Tensor] = {name: self.entries[name].stays for name in names}
            for name, tensor in state_of(self.model).items():
                if name not in masks and isinstance(tensor, nn.Parameter):
                    tensor.data = tensor.detach().clone()
        else:
            masks = Masks(self.journal, names)
        reports = tuple(self.reports[layer.name] for layer in self.layers)
        return SparseResult(self.model, WeightPlan(masks), reports, samples)

    def _moments(self, layer: Layer, read: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        """E[x^2] and E[x x^T] of what a layer reads: `[groups, in]`, `[groups, in, in]`."""
        at_most = None if layer.product.window is None else max(LEAST_ROWS, WINDOWS * layer.shape[2]) // len(read) + 1
        total, count = None, 0
        for x in read:
            rows = layer.read(x, at_most)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            if not torch.isfinite(rows).all():
                raise DataError(f"{layer.name!r} reads values that are not finite; look at the data and the weights")
            more = rows.mT @ rows if self.method.needs_gram else rows.square().sum(1)
            total = more if total is None else total.add_(more)
            count += rows.shape[1]
        if total is None or not count:
            raise DataError(f"{layer.name!r} reads nothing: all of the data is padding")
        total /= count
        return (total.diagonal(dim1=1, dim2=2), total) if self.method.needs_gram else (total, None)

    def _settled(self, layer: Layer, moments: Callable[[], tuple[Tensor, Tensor | None]]) -> Tensor:
        """Make a layer sparse, or look up what became of it in an earlier run; gives the parameter."""
        name = layer.product.tensor
        entry = self.entries.get(name)
        if entry is None and self.journal is not None:
            entry = self.journal.find(name, self.dense[name])
        if entry is None or layer.name not in {report.name for report in entry.reports}:
            entry = self._solved(layer, entry, *moments())
            if self.journal is not None:
                entry = self.journal.add(name, self.dense[name], entry)
        if self.journal is None:
            self.entries[name] = entry
        self.reports.update((report.name, report) for report in entry.reports)
        for model in (self.model, self.running):
            parameter = model.get_parameter(name)
            parameter.data = entry.weight.to(parameter.device)
        if self.progress is not None:
            self.progress(layer.name, len(self.layers) - len(self.todo), len(self.layers))
        return parameter

    def _solved(self, layer: Layer, entry: Entry | None, power: Tensor, gram: Tensor | None) -> Entry:
        """Make a layer sparse in what is known of its parameter."""
        dense = self.dense[layer.product.tensor]
        kind = power.dtype
        weights, kept, error = self.method(layer.matrices(dense).to(kind), power, gram, self.counts[layer.product])
        weight, stays = (
            (dense.clone(), torch.ones_like(dense, dtype=torch.bool)) if entry is None else (entry.weight, entry.stays)
        )
        layer.put(weights, weight)
        layer.put(kept, stays)
        report = LayerReport(layer.name, layer.shape, int((~kept).sum()), error)
        logger.info("%s: %s", layer.name, "solved" if error is None else f"relative error {error:.2e}")
        return Entry(weight, stays, (*(() if entry is None else entry.reports), report))


def _shared(tensor: Tensor) -> Tensor:
    """Parameters as they are, until they change; copies of all others."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _affordable(pieces: Sequence[Inputs], found: Survey, memory: int) -> list[Inputs]:
    """As many samples as the memory is enough for, in pieces that are small enough to work on."""
    most, step = (max(1, memory // (2 * LIVE * size)) for size in (found.waiting, found.working))
    taken, left = [], most
    for piece in pieces:
        for start in range(0, min(batch_size(piece), left), step):
            taken.append(part(piece, None, start, min(start + step, batch_size(piece), start + left))[0])
            left -= batch_size(taken[-1])
    if left <= 0:
        logger.info("%d samples are used; for more, the memory would have to be larger", most)
    return taken


def _identity(
    method: _Method, counts: Mapping[Product, list[int]], pieces: Sequence[Inputs], *, in_sequence: bool
) -> dict[str, str]:
    """All that decides what becomes of a model's weights, besides these."""
    data = hashlib.sha256()
    for leaf in pytree.tree_leaves(list(pieces)):
        data.update((digest(leaf) if isinstance(leaf, Tensor) else repr(leaf)).encode())
    return {
        "pattern": repr(method.pattern),
        "score": repr(method.score),
        "solver": ", ".join(getattr(solver, "__qualname__", None) or repr(solver) for solver in method.solvers),
        "in sequence": str(in_sequence),
        "what goes": hashlib.sha256(repr(list(counts.values())).encode()).hexdigest(),
        "data": data.hexdigest(),
        "torch": torch.__version__,
    }


def scored(score: criteria.WeightScore, weight: Tensor, power: Tensor | None, pattern: Pattern) -> Tensor:
    """The scores of a weight; what is zero already goes first, and counts nothing in a block."""
    return score.of_weight(weight, power).masked_fill(weight == 0, 0 if isinstance(pattern, Block) else -torch.inf)


def _scores(
    model: nn.Module,
    layers: Sequence[Layer],
    score: criteria.WeightScore,
    pieces: Sequence[Inputs],
    pattern: Pattern,
) -> dict[Product, Tensor]:
    """The scores of all layers, `[groups, out, in]`, on what the dense model gives them."""
    powers: dict[Product, Tensor] = {}
    by_product = {layer.product: layer for layer in layers}
    if score.needs_data:
        calibrate = Calibrate(samples=sum(map(batch_size, pieces)), gram=False)
        for moments in calibrate(model, [(piece, None) for piece in pieces]):
            if moments.product in by_product:
                powers[moments.product] = _ordered(by_product[moments.product], moments)[0]
    state, found = state_of(model), {}
    for layer in layers:
        weights = layer.matrices(state[layer.product.tensor].detach()).float()
        power = powers.get(layer.product)
        found[layer.product] = torch.stack(
            [
                scored(score, weight, None if power is None else power[g].float(), pattern)
                for g, weight in enumerate(weights)
            ]
        )
    return found


def _ordered(layer: Layer, moments: Moments) -> tuple[Tensor, Tensor | None]:
    """Moments in the order of a layer's columns, in the type that the Gram matrix has."""
    order = layer.order()
    kind = torch.float32 if moments.gram is None else moments.gram.dtype
    gram = None if moments.gram is None else moments.gram[:, order][:, :, order]
    return moments.power[:, order].to(kind), gram


def _counts(
    layers: Sequence[Layer],
    pattern: Pattern,
    sparsity: Sparsity | None,
    allocation: Allocation,
    scores: Callable[[], Mapping[Product, Tensor]],
) -> dict[Product, list[int]]:
    """How many units go of each layer, group by group."""
    units = {layer.product: _units(layer, pattern) for layer in layers}
    if pattern.share is not None:
        if sparsity is not None and (isinstance(sparsity, Mapping) or float(share_of(sparsity)) != pattern.share):
            raise BudgetError(
                f"{pattern} has a sparsity of {pattern.share:g}; leave sparsity= out, or choose another pattern"
            )
        return {product: [int(n * pattern.share + 0.5) for n in each] for product, each in units.items()}
    if sparsity is None:
        raise BudgetError(f"{pattern} needs a sparsity, such as sparsity=0.5")
    if isinstance(pattern, Unstructured) and pattern.scope == "global":
        return _lowest_of_all(units, sparsity, allocation, scores())
    if isinstance(sparsity, Mapping):
        shares = _shares(layers, sparsity)
        gone = [count_of(shares[layer.product], sum(units[layer.product])) for layer in layers]
    else:
        share_of(sparsity)
        gone = allocation([_share(layer, sum(units[layer.product]), scores) for layer in layers], sparsity)
    return {
        layer.product: apportion(n, units[layer.product], units[layer.product])
        for layer, n in zip(layers, gone, strict=True)
    }


def _share(layer: Layer, units: int, scores: Callable[[], Mapping[Product, Tensor]]) -> Share:
    kernel = () if layer.product.window is None else layer.product.window.kernel
    groups, out, columns = layer.shape
    dims = (groups * out, columns // prod(kernel), *kernel)
    return Share(layer.name, dims, units, lambda: scores()[layer.product])


def _lowest_of_all(
    units: Mapping[Product, list[int]], sparsity: Sparsity, allocation: Allocation, scores: Mapping[Product, Tensor]
) -> dict[Product, list[int]]:
    """How many of each group are among the lowest scores of all."""
    if isinstance(sparsity, Mapping) or allocation is not even:
        raise BudgetError("all tensors are compared with each other: give one sparsity, and no allocation")
    total = sum(sum(each) for each in units.values())
    everything = torch.cat([scores[product].flatten().double() for product in units])
    places = torch.cat([torch.full((n,), i) for i, n in enumerate(n for each in units.values() for n in each)])
    lowest = everything.argsort(stable=True)[: count_of(sparsity, total)]
    found = iter(torch.bincount(places[lowest], minlength=sum(map(len, units.values()))).tolist())
    return {product: [next(found) for _ in each] for product, each in units.items()}


def _shares(layers: Sequence[Layer], sparsity: Mapping[str, float | Fraction]) -> dict[Product, float | Fraction]:
    """The sparsity of each layer; the last pattern that fits its name counts."""
    found: dict[Product, float | Fraction] = {}
    for name, share in sparsity.items():
        share_of(share)
        fits = [
            layer.product
            for layer in layers
            if fnmatchcase(layer.name, name) or fnmatchcase(layer.product.tensor, name)
        ]
        if not fits:
            raise PlanError(
                f"sparsity={{{name!r}: ...}} fits no weight; there are {', '.join(x.name for x in layers[:5])}..."
            )
        found.update(dict.fromkeys(fits, share))
    if left := [layer.name for layer in layers if layer.product not in found]:
        raise BudgetError(
            f"no sparsity is given for {', '.join(left[:5])}; add '*' as the first pattern, or exclude them"
        )
    return found


def _units(layer: Layer, pattern: Pattern) -> list[int]:
    groups, out, columns = layer.shape
    return [pattern.units(torch.empty(out, columns, device="meta")).numel()] * groups


def _check_fit(layers: Sequence[Layer], pattern: Pattern) -> None:
    wrong = []
    for layer in layers:
        try:
            pattern.check(layer.shape[2])
        except PlanError as error:
            wrong.append(f"{layer.name}: {error}")
    if wrong:
        more = f"; and {len(wrong) - 4} more" if len(wrong) > 4 else ""
        raise PlanError(f"{pattern} does not fit {'; '.join(wrong[:4])}{more}")


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"{name!r} is on the meta device and has no values; materialise the model first")
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(f"{name!r} has NaN or infinite values; load finite weights first")


def _listed(solver: Solver | Iterable[Solver]) -> list[Solver]:
    found = list(solver) if isinstance(solver, Iterable) else [solver]
    for one in found:
        if isinstance(one, type) or not callable(one):
            raise PlanError(f"solver= is an object such as secateur.solvers.SparseGPT(), or several; got {one!r}")
    return found or [keep]
