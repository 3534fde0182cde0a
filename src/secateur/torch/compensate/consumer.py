"""Which layers lost inputs, and how a layer of the dense model maps to its place in the compact one."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import prod
from weakref import ref

import torch
from torch import Tensor, nn

from secateur.axes import Plan, TensorCut
from secateur.torch.batches import batch_size, part, run
from secateur.torch.calibrate import evaluation_copy, undisturbed
from secateur.torch.capture import Inputs
from secateur.torch.products import Product, WatchProducts

logger = logging.getLogger(__name__)

BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

FIRST_LOOK = 4
"""Samples of the run that finds the layers, and how much memory they take."""


@dataclass(frozen=True, slots=True, eq=False)
class Consumer:
    """A linear layer or convolution some of whose inputs go.

    Attributes:
        dense: As it is in the dense model.
        small: As it is in the compact model.
        groups: The groups that stay, of the dense ones.
        outs: The outputs that stay, within a group.
        features: The inputs that stay, within a group.
        norm: The running mean of a batch norm that reads the output directly, by its name; None where there is none.
    """

    dense: Product
    small: Product
    groups: Tensor
    outs: Tensor
    features: Tensor
    norm: str | None

    @property
    def constant(self) -> bool:
        """Whether something can take a constant that is added to the output."""
        return self.small.bias is not None or self.norm is not None

    def rows(self, groups_by_out: Tensor) -> Tensor:
        """The groups and outputs that stay, of a dense `[groups, out, ...]`."""
        return groups_by_out[self.groups.to(groups_by_out.device)][:, self.outs.to(groups_by_out.device)]

    def apply(self, change: Tensor | None, shift: Tensor, state: Mapping[str, Tensor]) -> None:
        """Add to the weight `[groups, out, in]` and the constant `[groups, out]` in the compact model's state, in place."""
        weight, shift = state[self.small.tensor], shift.flatten()
        if change is not None:
            matrix = self.small.matrix(weight.detach())
            self.small.put(matrix.to(torch.float64) + change.to(matrix.device), weight)
        with torch.no_grad():
            if self.small.bias is not None:
                bias = state[self.small.bias].narrow(0, self.small.bias_start, len(shift))
                bias += shift.to(bias)
            elif self.norm is not None:
                mean = state[self.norm]
                mean -= shift.to(mean)


@dataclass(slots=True)
class Survey:
    """What one run of the dense model tells.

    Attributes:
        consumers: The layers that can be compensated, in the order in which they run.
        bytes_per_sample: The most bytes of a sample that a layer holds at once as input and output.
    """

    consumers: list[Consumer] = field(default_factory=list)
    bytes_per_sample: int = 0


def survey(model: nn.Module, plan: Plan, inputs: Inputs) -> Survey:
    """Run a dense model, and find the layers that lose inputs.

    Left out, which is logged: layers whose weight serves in several places, or that run several times.
    """
    inputs, _ = part(inputs, None, 0, min(batch_size(inputs), FIRST_LOOK))
    samples = batch_size(inputs)
    copy, found, runs = evaluation_copy(model), Survey(), dict[Product, int]()
    outputs: dict[int, tuple[ref[Tensor], Product]] = {}
    norms: dict[Product, str] = {}

    def visit(product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        y = run()
        runs[product] = runs.get(product, 0) + 1
        found.bytes_per_sample = max(found.bytes_per_sample, (x.nbytes + y.nbytes) // samples)
        outputs[id(y)] = ref(y), product
        return y

    def meets(path: str, x: Tensor) -> None:
        alive, product = outputs.get(id(x), (None, None))
        if alive is not None and alive() is x and product is not None:
            norms[product] = f"{path}.running_mean"

    handles = [
        module.register_forward_pre_hook(lambda _, args, path=path: meets(path, args[0]))
        for path, module in copy.named_modules()
        if isinstance(module, BATCH_NORMS) and module.running_mean is not None
    ]
    watch = WatchProducts(copy, visit)
    with undisturbed(copy), watch:
        run(copy, inputs)
    for handle in handles:
        handle.remove()
    cuts = {cut.name: cut for cut in plan.tensors}
    for product in runs:
        norm = norms.get(product)
        consumer = consumer_of(product, cuts, norm if list(norms.values()).count(norm or "") == 1 else None)
        if consumer is None:
            continue
        if _serves_once(product, runs, watch.others, model):
            found.consumers.append(consumer)
        else:
            logger.info("%s is not compensated: it serves in several places", product.tensor)
    return found


def consumer_of(product: Product, cuts: Mapping[str, TensorCut], norm: str | None) -> Consumer | None:
    """The consumer that a product is under a plan, or None where all its inputs stay.

    None too for a matrix of a stack: a router may send other rows to it in the compact model.
    """
    cut = cuts.get(product.tensor)
    inputs = None if cut is None else cut.kept[product.in_dim]
    if cut is None or inputs is None or product.stack is not None:
        return None
    taps = 1 if product.window is None else prod(product.window.kernel)
    features = (torch.tensor(inputs)[:, None] * taps + torch.arange(taps)).flatten()
    kept = cut.kept[product.out_dim] or range(cut.shape[product.out_dim])
    written = torch.tensor(
        [position - product.start for position in kept if 0 <= position - product.start < product.size]
    )
    per_group = product.size // product.groups
    groups, outs = torch.unique(written // per_group), torch.unique(written % per_group)
    bias = None if product.bias is None else cuts.get(product.bias)
    small = replace(
        product,
        start=_kept_before(cut.kept[product.out_dim], product.start),
        size=len(written),
        groups=len(groups),
        bias_start=product.bias_start if bias is None else _kept_before(bias.kept[0], product.bias_start),
    )
    return Consumer(product, small, groups, outs, features, norm)


def _kept_before(kept: tuple[int, ...] | None, start: int) -> int:
    return start if kept is None else sum(position < start for position in kept)


def _serves_once(product: Product, runs: Mapping[Product, int], others: set[str], model: nn.Module) -> bool:
    """Whether nothing but this product uses its weight and its bias, and just once."""
    used = {product.tensor, product.bias} - {None}
    names = [id(tensor) for _, tensor in model.named_parameters(remove_duplicate=False)]
    state = dict(model.named_parameters())
    return (
        runs[product] == 1
        and not used & others
        and all(names.count(id(state[name])) == 1 for name in used if name is not None)
        and not any(
            used & {other.tensor, other.bias} and _overlap(product, other) for other in runs if other != product
        )
    )


def _overlap(one: Product, other: Product) -> bool:
    """Whether two products use a common part of a parameter."""
    weights = one.tensor == other.tensor and (
        one.out_dim != other.out_dim or (one.start < other.start + other.size and other.start < one.start + one.size)
    )
    biases = one.bias is not None and one.bias == other.bias
    return weights or (
        biases and one.bias_start < other.bias_start + other.size and other.bias_start < one.bias_start + one.size
    )
