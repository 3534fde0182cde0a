"""The main job for low rank: gather what layers read, decompose, choose ranks, put smaller layers in place."""

import logging
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor, nn

from secateur.allocate.budget import exact_share
from secateur.errors import BudgetError, DataError, ModelError, PlanError
from secateur.low_rank.beside import Sparse
from secateur.low_rank.levels import lowest_errors
from secateur.low_rank.linear import LowRankLinear
from secateur.low_rank.spectrum import Spectrum, spectrum
from secateur.sparse.layers import Layer, survey
from secateur.sparse.plan import WeightPlan
from secateur.sparse.problem import output_error
from secateur.torch.batches import Batches, part, run, take
from secateur.torch.calibrate import Calibrate, evaluation_copy, undisturbed
from secateur.torch.capture import Inputs
from secateur.torch.products import Product, WatchProducts
from secateur.torch.replicate import replicate
from secateur.train.check import not_finite

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FactorReport:
    """What became of one linear layer.

    Attributes:
        name: The module.
        shape: `(out, in)` of its weight.
        rank: The width between its two factors; None where it stays as it is.
        beside: How many weights stay in the sparse one beside them.
        error: E|(W - W') x|^2 / E|W x|^2 on the calibration data, undamped.
    """

    name: str
    shape: tuple[int, int]
    rank: int | None
    beside: int
    error: float

    @property
    def parameters(self) -> int:
        """How many numbers its weight has now."""
        return _cost(self.shape, self.rank) + self.beside

    def __str__(self) -> str:
        rank = "dense" if self.rank is None else f"rank {self.rank} of {min(self.shape)}"
        beside = f" and {self.beside:,} weights" if self.beside else ""
        return f"{self.name:<44} {rank + beside:<18} error {self.error:.2e}"


@dataclass(frozen=True, slots=True)
class LowRankResult:
    """What `factorise` gives back.

    Attributes:
        model: A copy of the model with `LowRankLinear` in the place of linear layers; the caller's is untouched.
        report: What became of each layer, in the order in which they run.
        plan: What stays of the sparse weights beside factors, for `train.masked`.
    """

    model: nn.Module
    report: tuple[FactorReport, ...]
    plan: WeightPlan

    @property
    def share(self) -> float:
        """The share of the parameters of these weights that is left."""
        return sum(layer.parameters for layer in self.report) / sum(_cost(layer.shape, None) for layer in self.report)

    def __str__(self) -> str:
        factored = sum(layer.rank is not None for layer in self.report)
        head = f"{factored} of {len(self.report)} layers have low rank, and {self.share:.1%} of the weights' parameters are left"
        return "\n".join([head, *(f"  {layer}" for layer in self.report)])


def factorise(
    model: nn.Module,
    batches: Batches,
    *,
    share: float | Fraction | None = None,
    rank: int | None = None,
    beside: Sparse | None = None,
    exclude: Sequence[str] = (),
    samples: int = 128,
    damping: float = 0.01,
) -> LowRankResult:
    """Put two smaller layers in the place of linear layers, as near to them as can be on what they read.

    Those are the `nn.Linear` of a model whose weights nothing else reads, and that have no hooks. A layer in which two factors
    would have as many parameters as one weight stays as it is, and so does one whose Gram matrix is too large to gather.

    Args:
        model: Any module; it is not changed.
        batches: What the model reads; see `secateur.torch.batches`.
        share: Which share of the parameters of these weights may stay, in (0, 1]; ranks are chosen so that the relative errors of
            the layers add up to little, by their fall for each parameter.
        rank: The rank of all layers, > 0, in place of a share.
        beside: A sparse weight that stands beside the factors, and does with them what the dense one did; with a rank.
        exclude: Parameters or modules that stay as they are, as name patterns.
        samples: How many samples to use, > 0.
        damping: Added to the diagonal of Gram matrices, as a share of its mean, >= 0, for directions that the data do not show.

    Returns:
        The model with its report.

    Raises:
        BudgetError: Not one of share and rank is given, one is out of range, or no layer gets smaller; or the sparsity of what
            is beside is missing, out of range, or not the pattern's.
        DataError: There are no data, they do not fit the model, activations are not finite, or the damping is negative.
        ModelError: Weights are not finite, or code holds a layer elsewhere than in the module around it.
        PlanError: There is no such layer, a name pattern fits nothing, or the pattern of what is beside does not fit a weight.

    Example:
        >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16))
        >>> result = factorise(model, [torch.randn(64, 16)], rank=4)
        >>> result.model[0], result.share
        (LowRankLinear(
          16, 32, rank=4
          (down): Linear(in_features=16, out_features=4, bias=False)
          (up): Linear(in_features=4, out_features=32, bias=True)
        ), 0.375)

    Source:
        See `secateur.low_rank.spectrum`.
    """
    _check(model, share, rank, beside, damping)
    taken = list(take(batches, samples))
    small = replicate(model, lambda tensor: tensor.detach().clone())
    layers = _layers(small, taken[0][0], exclude)
    grams = _grams(small, taken, layers, samples)
    linears: dict[str, Any] = {name: small.get_submodule(name) for name in layers if name in grams}
    weights = {name: linear.weight.detach().to(grams[name].dtype) for name, linear in linears.items()}
    counts = {} if beside is None else beside.counts(layers.values())
    spectra = {name: spectrum(weight, grams[name], damping) for name, weight in weights.items() if beside is None}
    ranks = _ranks(spectra, weights, share, rank)
    parts: dict[str, tuple[Tensor | None, Tensor | None, Tensor, Tensor]] = {}
    for name, chosen in ranks.items():
        if chosen is not None and beside is None:
            parts[name] = (None, None, *spectra[name].factors(chosen))
        elif chosen is not None and beside is not None:
            layer, weight = layers[name], weights[name]
            found = beside(layer, weight, grams[name], counts[layer.product], chosen, damping)
            if _cost((weight.shape[0], weight.shape[1]), chosen) + int(found[1].sum()) < weight.numel():
                parts[name] = found
    if not parts:
        raise BudgetError(
            f"no layer gets smaller: of {', '.join(list(layers)[:5])} none has fewer parameters in parts; lower the "
            f"{'rank' if rank is not None else 'share'}" + (", or let more go beside" if beside is not None else "")
        )
    report, masks = [], {}
    for name, weight in weights.items():
        put, kept, width = weight, 0, None
        if name in parts:
            sparse, stays, down, up = parts[name]
            if stays is not None:
                masks[f"{name}.sparse.weight"], kept = stays, int(stays.sum())
            factored, width = _factored(linears[name], down, up, sparse), len(down)
            put = factored.weight.detach().to(weight.dtype)
            _replace(small, linears[name], factored)
        lost, whole = (output_error(other, weight, grams[name]).sum() for other in (put, torch.zeros_like(weight)))
        out, columns = weight.shape
        report.append(FactorReport(name, (out, columns), width, kept, float(lost / whole) if whole else 0.0))
    _check_used(small, taken[0][0], [layer.name for layer in report if layer.rank is not None])
    return LowRankResult(small, tuple(report), WeightPlan(masks))


def _check(
    model: nn.Module, share: float | Fraction | None, rank: int | None, beside: Sparse | None, damping: float
) -> None:
    if (share is None) == (rank is None):
        raise BudgetError(f"give a share, such as share=0.5, or a rank; got share={share!r} and rank={rank!r}")
    if beside is not None and (rank is None or not isinstance(beside, Sparse)):
        raise BudgetError(
            f"beside= is an object such as low_rank.Sparse(0.5), and wants rank=; got {beside!r}, {rank=}"
        )
    if share is not None:
        exact_share("share", share)
    if rank is not None and (type(rank) is not int or rank < 1):
        raise BudgetError(f"a rank is a whole number, at least 1; got {rank!r}")
    if not 0 <= damping < float("inf"):
        raise DataError(f"damping is a finite number, at least 0; got {damping!r}")
    if bad := not_finite(model):
        raise ModelError(f"{bad!r} has NaN or infinite values; load finite weights first")


def _layers(model: nn.Module, inputs: Inputs, exclude: Sequence[str]) -> dict[str, Layer]:
    """The linear layers by name, whose whole weight is read by one product and nothing else."""
    linears = {name: module for name, module in model.named_modules() if name and type(module) is nn.Linear}
    holders = Counter(id(module.weight) for module in linears.values())
    layers = survey(model, inputs, exclude).layers
    readers = Counter(layer.product.tensor for layer in layers)
    found = {}
    for layer in layers:
        product = layer.product
        name = product.tensor.rpartition(".")[0]
        linear = linears.get(name)
        if linear is None or f"{name}.weight" != product.tensor or product.size != linear.out_features:
            continue
        if linear._forward_hooks or linear._forward_pre_hooks:
            logger.info("%s stays as it is: it has hooks", name)
            continue
        if readers[product.tensor] == holders[id(linear.weight)] == 1:
            found[name] = layer
    if not found:
        raise PlanError(
            f"{type(model).__name__} has no linear layer inside it that could have low rank; see exclude= and what it runs"
        )
    return found


def _grams(
    model: nn.Module, taken: Sequence[tuple[Inputs, object]], layers: Mapping[str, Layer], samples: int
) -> dict[str, Tensor]:
    """E[x x^T] of what each layer reads, `[in, in]`, in the order in which they run."""
    calibrate, names = Calibrate(samples=samples), {f"{name}.weight": name for name in layers}
    return {
        names[moments.product.tensor]: moments.gram[0]
        for moments in calibrate(model, taken, names)
        if moments.gram is not None
    }


def _ranks(
    spectra: Mapping[str, Spectrum], weights: Mapping[str, Tensor], share: float | Fraction | None, rank: int | None
) -> dict[str, int | None]:
    """The rank of each layer; None where it stays as it is."""
    shapes = [(weight.shape[0], weight.shape[1]) for weight in weights.values()]
    saving = [(_cost(shape, None) - 1) // sum(shape) for shape in shapes]
    if rank is not None:
        return {name: rank if rank <= most else None for name, most in zip(weights, saving, strict=True)}
    levels: list[list[int | None]] = [[*range(1, most + 1), None] for most in saving]
    costs = [[_cost(shape, level) for level in each] for shape, each in zip(shapes, levels, strict=True)]
    errors = []
    for each, found in zip(levels, spectra.values(), strict=True):
        lost = (found.errors() / found.errors()[0].clamp(min=torch.finfo(found.values.dtype).tiny)).tolist()
        errors.append([0.0 if level is None else lost[level] for level in each])
    most = int(exact_share("share", share) * sum(each[-1] for each in costs))
    chosen = lowest_errors(errors, costs, most)
    return {name: each[level] for name, each, level in zip(weights, levels, chosen, strict=True)}


def _cost(shape: tuple[int, int], rank: int | None) -> int:
    """The parameters of a weight, whole or as two factors."""
    out, columns = shape
    return out * columns if rank is None else rank * (out + columns)


def _factored(layer: nn.Linear, down: Tensor, up: Tensor, sparse: Tensor | None) -> LowRankLinear:
    weight, bias = layer.weight, layer.bias
    out, columns = weight.shape
    factored = LowRankLinear(columns, out, len(down), bias is not None, weight.device, weight.dtype, sparse is not None)
    for factor, values in ((factored.down, down), (factored.up, up), (factored.sparse, sparse)):
        if factor is None or values is None:
            continue
        factor.weight = nn.Parameter(values.to(weight.dtype).contiguous(), requires_grad=weight.requires_grad)
    if bias is not None:
        factored.up.bias = bias
    return factored.train(layer.training)


def _check_used(model: nn.Module, inputs: Inputs, names: Sequence[str]) -> None:
    """Refuse a model that runs without some of the layers that were put into it."""
    used = set()

    def visit(product: Product, x: Tensor, run: Callable[..., Tensor]) -> Tensor:  # noqa: ARG001 - as Visit asks
        used.add(product.tensor)
        return run()

    copy, (inputs, _) = evaluation_copy(model), part(inputs, None, 0, 1)
    with undisturbed(copy), WatchProducts(copy, visit):
        run(copy, inputs)
    if unused := [name for name in names if f"{name}.down.weight" not in used]:
        raise ModelError(
            f"{type(model).__name__} runs without the layer that was put in the place of {unused[0]!r}: its code holds the layer "
            "elsewhere too, such as in a list of its own; use nn.ModuleList, or exclude it"
        )


def _replace(model: nn.Module, layer: nn.Module, other: nn.Module) -> None:
    """Put another module wherever a module is held."""
    for parent in list(model.modules()):
        for name, child in list(parent._modules.items()):
            if child is layer:
                setattr(parent, name, other)
