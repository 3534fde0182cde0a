"""The main job for single weights: score, choose, solve, layer by layer, on what each layer reads."""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from fractions import Fraction
from functools import cache
from math import prod

import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, DataError, ModelError, PlanError
from secateur.sparse.allocation import Allocation, Share, even
from secateur.sparse.alone import EachAlone
from secateur.sparse.counts import apportion, count_of, share_of
from secateur.sparse.layers import Layer, survey
from secateur.sparse.patterns import Block, Pattern, Unstructured
from secateur.sparse.plan import WeightPlan
from secateur.sparse.problem import Problem, Solved, Solver, keep, output_error
from secateur.sparse.rounding import Rounding
from secateur.sparse.solvers import Refit
from secateur.torch import scores as criteria
from secateur.torch.apply import state_of
from secateur.torch.batches import Batches, batch_size, run, take
from secateur.torch.calibrate import Calibrate, Moments, evaluation_copy, undisturbed
from secateur.torch.capture import Inputs
from secateur.torch.compensate.refit import joined
from secateur.torch.products import Product, WatchProducts
from secateur.torch.replicate import replicate

logger = logging.getLogger(__name__)

WINDOWS = 8
"""Windows of an image that a convolution is solved on, for each of its inputs; and so many more."""
LEAST_ROWS = 4096
LIVE = 3
"""About how many times the largest input and output of a layer are alive at once."""

Sparsity = float | Fraction | Mapping[str, float | Fraction]
"""A share for all weights, or shares by name patterns, of which the last that fits counts; `"*"` is all of them."""


@dataclass(frozen=True, slots=True)
class LayerReport:
    """What became of one weight.

    Attributes:
        name: The parameter, and which rows of it where it is a part.
        shape: `(groups, out, in)`.
        zeros: How many weights are zero.
        error: E|(W - W') x|^2 / E|W x|^2 on the calibration data, undamped; None where it was not measured.
    """

    name: str
    shape: tuple[int, int, int]
    zeros: int
    error: float | None

    @property
    def sparsity(self) -> float:
        """The share of zeros."""
        groups, out, columns = self.shape
        return self.zeros / (groups * out * columns)


@dataclass(frozen=True, slots=True)
class SparseResult:
    """What `sparsify` gives back.

    Attributes:
        model: A copy of the model with zeros; the caller's is untouched.
        plan: Which weights stay.
        report: What became of each weight, in the order in which they run.
        rounding: What the weights that stay were rounded to, or None.
    """

    model: nn.Module
    plan: WeightPlan
    report: tuple[LayerReport, ...]
    rounding: Rounding | None = None

    def __str__(self) -> str:
        head = f"{self.plan.sparsity:.1%} of {self.plan.total:,} weights are zero, in {len(self.report)} layers"
        bits = "" if self.rounding is None else f"; the others have {self.rounding}"
        rows = [
            f"  {layer.name:<44} {layer.sparsity:>6.1%}  {'' if layer.error is None else f'error {layer.error:.2e}'}"
            for layer in self.report
        ]
        return "\n".join([head + bits, *rows])


def sparsify(
    model: nn.Module,
    batches: Batches,
    *,
    sparsity: Sparsity | None = None,
    pattern: Pattern | None = None,
    score: criteria.WeightScore | None = None,
    solver: Solver | Iterable[Solver] | None = None,
    allocation: Allocation = even,
    rounding: Rounding | None = None,
    exclude: Sequence[str] = (),
    in_sequence: bool = True,
    samples: int = 128,
    memory: int = 4 << 30,
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
        rounding: What the weights that stay are rounded to while they are solved, such as `rounding.Integer(bits=4)`.
        exclude: Parameters or modules that stay dense, as name patterns.
        in_sequence: Solve each layer on what the model gives it in which the layers before are sparse already. Otherwise all are
            solved on what the dense model gives them.
        samples: How many samples to use, > 0.
        memory: About how many bytes the activations of one run may take, in sequence, and the Gram matrices that an allocation
            measures with.

    Returns:
        The sparse model with its plan and a report.

    Raises:
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
    if rounding is not None:
        _check_object(rounding, "rounding= is an object such as secateur.sparse.rounding.Integer()")
    pieces = [inputs for inputs, _ in take(batches, samples)]
    _check_weights(model)
    small = replicate(model, lambda tensor: tensor.detach().clone())
    found = survey(small, pieces[0], exclude)
    layers = found.layers
    _check_fit(layers, pattern)
    method = _Method(pattern, score, solvers, rounding)
    counts = _counts(
        layers,
        pattern,
        sparsity,
        allocation,
        cache(lambda: _scores(small, layers, score, pieces, pattern)),
        EachAlone(small, layers, pieces, method.on_moments, memory),
    )
    job = _Job(small, {layer.product: layer for layer in layers}, counts, method)
    if in_sequence:
        inputs = joined(pieces, at_most=max(1, memory // (LIVE * max(found.bytes_per_sample, 1))))
        job.in_sequence(inputs, found.repeated)
    job.from_moments(pieces)
    return job.result(layers)


@dataclass(frozen=True, slots=True)
class _Method:
    """How one layer becomes sparse: what it is scored, chosen, solved and rounded by."""

    pattern: Pattern
    score: criteria.WeightScore
    solvers: Sequence[Solver]
    rounding: Rounding | None

    @property
    def needs_gram(self) -> bool:
        """Whether a solver looks at the Gram matrix."""
        return any(solver is not keep for solver in self.solvers)

    def __call__(
        self, dense: Tensor, power: Tensor, gram: Tensor | None, counts: Sequence[int]
    ) -> tuple[Tensor, Tensor, float | None]:
        """The weight `[groups, out, in]`, what stays of it, and the relative error, None without a Gram matrix."""
        weights, masks, lost, whole = [], [], 0.0, 0.0
        for g, count in enumerate(counts):
            scores = scored(self.score, dense[g], power[g], self.pattern)
            stays = self.pattern.choose(scores, count)
            if gram is None:
                weight = dense[g] * stays
                found = Solved(weight if self.rounding is None else self.rounding(weight)(weight, slice(None)), stays)
            else:
                problem = Problem(dense[g], gram[g], self.pattern, count, stays)
                found = _solved(problem, self.solvers)
                if self.rounding is not None:  # what stays grows: the dense weight would give too narrow a grid
                    found = _solved(replace(problem, grid=self.rounding(found.weight)), self.solvers)
                lost += float(output_error(found.weight, dense[g], gram[g]).sum())
                whole += float(output_error(torch.zeros_like(found.weight), dense[g], gram[g]).sum())
            weights.append(found.weight)
            masks.append(found.stays)
        error = None if gram is None else lost / whole if whole > 0 else 0.0
        return torch.stack(weights), torch.stack(masks), error

    def on_moments(self, layer: Layer, weight: Tensor, moments: Moments, counts: Sequence[int]) -> tuple[Tensor, float]:
        """The sparse weight and its error, on moments that have a Gram matrix."""
        power, gram = _ordered(layer, moments)
        sparse, _, error = self(layer.matrices(weight).to(power.dtype), power, gram, counts)
        assert error is not None
        return sparse, error


def _solved(problem: Problem, solvers: Sequence[Solver]) -> Solved:
    """What comes out of one solver after the other."""
    found = Solved(problem.weight, problem.stays)
    for solver in solvers:
        found = solver(replace(problem, stays=found.stays))
    return found


class _Job:
    """Layers that are to become sparse, and what became of those that are."""

    def __init__(
        self,
        model: nn.Module,
        todo: dict[Product, Layer],
        counts: Mapping[Product, list[int]],
        method: _Method,
    ) -> None:
        self.model, self.todo, self.counts, self.method = model, todo, counts, method
        self.state = state_of(model)
        self.stays = {
            layer.product.tensor: torch.ones_like(self.state[layer.product.tensor], dtype=torch.bool)
            for layer in todo.values()
        }
        self.reports: dict[Product, LayerReport] = {}

    def in_sequence(self, inputs: Inputs, repeated: Collection[Product]) -> None:
        """One run, in which each layer becomes sparse when it is its turn; those that run several times are left."""

        def solve(product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
            if product in self.todo and product not in repeated:
                layer = self.todo.pop(product)
                self._solve(layer, *self._moments(layer, x))
            return run()

        copy = evaluation_copy(self.model)
        with undisturbed(), WatchProducts(copy, solve):
            run(copy, inputs)

    def from_moments(self, pieces: Sequence[Inputs]) -> None:
        """All layers that are left, on what the model as it is now gives them."""
        if not self.todo:
            return
        calibrate = Calibrate(samples=sum(map(batch_size, pieces)), gram=self.method.needs_gram)
        tensors = {product.tensor for product in self.todo}
        for moments in calibrate(self.model, [(piece, None) for piece in pieces], tensors):
            layer = self.todo.pop(moments.product, None)
            if layer is not None:
                self._solve(layer, *_ordered(layer, moments))

    def result(self, layers: Sequence[Layer]) -> SparseResult:
        """What became of the model."""
        plan = WeightPlan(self.stays)
        plan.apply(self.model)
        report = tuple(self.reports[layer.product] for layer in layers)
        return SparseResult(self.model, plan, report, self.method.rounding)

    def _moments(self, layer: Layer, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """E[x^2] and E[x x^T] of what a layer reads: `[groups, in]`, `[groups, in, in]`."""
        at_most = None if layer.product.window is None else max(LEAST_ROWS, WINDOWS * layer.shape[2])
        rows = layer.read(x, at_most)
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if not torch.isfinite(rows).all():
            raise DataError(f"{layer.name!r} reads values that are not finite; look at the data and the weights")
        gram = rows.mT @ rows / rows.shape[1] if self.method.needs_gram else None
        power = rows.square().mean(1) if gram is None else gram.diagonal(dim1=1, dim2=2)
        return power, gram

    def _solve(self, layer: Layer, power: Tensor, gram: Tensor | None) -> None:
        parameter = self.state[layer.product.tensor]
        dense = layer.matrices(parameter.detach()).to(power.dtype)
        weight, kept, error = self.method(dense, power, gram, self.counts[layer.product])
        layer.put(weight, parameter)
        layer.put(kept, self.stays[layer.product.tensor])
        self.reports[layer.product] = LayerReport(layer.name, layer.shape, int((~kept).sum()), error)
        logger.info("%s: %s", layer.name, "solved" if error is None else f"relative error {error:.2e}")


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
    alone: EachAlone,
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
        gone = allocation([_share(layer, units[layer.product], scores, alone) for layer in layers], sparsity)
    return {
        layer.product: apportion(n, units[layer.product], units[layer.product])
        for layer, n in zip(layers, gone, strict=True)
    }


def _share(
    layer: Layer, units: Sequence[int], scores: Callable[[], Mapping[Product, Tensor]], alone: EachAlone
) -> Share:
    kernel = () if layer.product.window is None else layer.product.window.kernel
    groups, out, columns = layer.shape
    dims = (groups * out, columns // prod(kernel), *kernel)
    return Share(
        layer.name,
        dims,
        sum(units),
        lambda: scores()[layer.product],
        lambda count: alone(layer, apportion(count, units, units)),
    )


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
        _check_object(one, "solver= is an object such as secateur.solvers.SparseGPT(), or several")
    return found or [keep]


def _check_object(value: object, wanted: str) -> None:
    if isinstance(value, type) or not callable(value):
        raise PlanError(f"{wanted}; got {value!r}")
