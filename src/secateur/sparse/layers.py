"""Which weights of a model can become sparse, and each of them as matrices that patterns and solvers work on."""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from math import prod

import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.torch.batches import batch_size, part, run
from secateur.torch.calibrate import evaluation_copy, undisturbed
from secateur.torch.capture import Inputs
from secateur.torch.products import Product, WatchProducts
from secateur.torch.state import state_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Layer:
    """A product of data with a parameter, or with a part of one.

    A matrix has a row for each output. The columns of a convolution are ordered tap by tap, all input channels of one beside each
    other, so that N of M neighbours are input channels.

    Attributes:
        product: What is multiplied.
        shape: `(groups, out, in)`.
    """

    product: Product
    shape: tuple[int, int, int]

    @property
    def name(self) -> str:
        """The parameter's name, with which matrix of a stack it is, and the rows where it is a part."""
        product = self.product
        which = [] if product.stack is None else [str(product.stack)]
        rows = [f"{product.start}:{product.start + product.size}"] if product.start else []
        return product.tensor + (f"[{', '.join(which + rows)}]" if which or rows else "")

    def matrices(self, weight: Tensor) -> Tensor:
        """The weight as `[groups, out, in]`."""
        return self.product.matrix(weight)[..., self.order(weight.device)]

    def put(self, matrices: Tensor, weight: Tensor) -> None:
        """Write such matrices into the weight, in place."""
        unordered = torch.empty_like(matrices)
        unordered[..., self.order(matrices.device)] = matrices
        self.product.put(unordered, weight)

    def read(self, x: Tensor, at_most: int | None) -> Tensor:
        """What it reads of its input, `[groups, rows, in]`."""
        return self.product.read(x, at_most)[..., self.order(x.device)]

    def order(self, device: torch.device) -> Tensor | slice:
        """Where each column lies among the inputs of the product."""
        taps = 1 if self.product.window is None else prod(self.product.window.kernel)
        return slice(None) if taps == 1 else torch.arange(self.shape[2], device=device).view(-1, taps).T.flatten()


@dataclass(slots=True)
class Survey:
    """What one run of a model tells.

    Attributes:
        included: Weights that are in `layers`, before all others, because somebody asked for it.
        layers: The products whose weights can become sparse, in the order in which they run; of a stack all matrices, though the
            run may have come to a few.
        repeated: Those that run several times.
        waiting: The most bytes of a sample that a product reads and writes, as far as there are layers to make sparse.
        working: The most bytes of a sample that any operator writes, as far.
    """

    included: list[Product] = field(default_factory=list)
    layers: list[Layer] = field(default_factory=list)
    repeated: set[Product] = field(default_factory=set)
    waiting: int = 1
    working: int = 1


def survey(model: nn.Module, inputs: Inputs, exclude: Sequence[str], include: Sequence[str] = ()) -> Survey:
    """Run a model, and find the products whose weights nothing else reads.

    Args:
        model: Runs once, as a copy in eval mode.
        inputs: What it takes; the first sample is used.
        exclude: Name patterns of parameters or modules that stay dense.
        include: Name patterns of such whose matrices count too, whatever reads them.

    Raises:
        PlanError: A pattern names no parameter or module, or no matrix; or no weight is left.
    """
    inputs, _ = part(inputs, None, 0, 1)
    copy, runs, found = evaluation_copy(model), Counter[Product](), Survey()
    sizes: dict[Product, tuple[int, int]] = {}
    most = 1

    def visit(product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        nonlocal most
        y = run()
        runs[product] += 1
        most = max(most, (x.nbytes + y.nbytes) // batch_size(inputs))
        sizes[product] = most, max(most, watch.largest // batch_size(inputs))
        return y

    watch = WatchProducts(copy, visit)
    with undisturbed(copy), watch:
        run(copy, inputs)
    state, excluded = state_of(model), named("exclude", model, exclude)
    again = {_form(product) for product, times in runs.items() if times > 1}
    products = _whole_stacks(runs, state)
    found.repeated = {product for product in products if _form(product) in again}
    ways = {name: overlap([each for each in products if each.tensor == name]) for name in {p.tensor for p in products}}
    for product in products:
        if product.tensor not in excluded and (product.tensor in watch.others or ways[product.tensor]):
            logger.info("%s stays dense: it is read in another way too, as an embedding or transposed", product.tensor)
        elif product.tensor not in excluded:
            groups, out, columns = product.matrix(state[product.tensor].detach()).shape
            found.layers.append(Layer(product, (groups, out, columns)))
    asked = {name for name in named("include", model, include) if state[name].ndim == 2}
    if include and not asked:
        raise PlanError(f"include={list(include)} names no matrix; name embeddings, or modules that hold them")
    tables = asked - excluded - {layer.product.tensor for layer in found.layers}
    found.included = [Product(name, in_dim=1, out_dim=0, start=0, size=len(state[name])) for name in sorted(tables)]
    found.layers[:0] = [Layer(product, (1, *state[product.tensor].shape)) for product in found.included]
    if not found.layers:
        raise PlanError(f"{type(model).__name__} has no weight that could become sparse; see exclude= and what it runs")
    found.waiting, found.working = max(
        (sizes[each.product] for each in found.layers if each.product in sizes), default=(1, 1)
    )
    return found


def _whole_stacks(products: Iterable[Product], state: Mapping[str, Tensor]) -> list[Product]:
    """The products in their order, and where there are matrices of stacks, all of them.

    Those that the run did not come to stand where their number says: between experts that run one after the other, or in each of
    several steps that all experts take together.
    """
    passes: list[list[Product]] = []
    for product in products:
        before = passes[-1][-1].stack if passes else None
        if before is None or product.stack is None or product.stack < before:
            passes.append([])
        passes[-1].append(product)
    found: dict[Product, None] = {}
    for each in passes:
        if each[0].stack is None:
            found[each[0]] = None
            continue
        forms = dict.fromkeys(map(_form, each))
        for number in range(max(len(state[form.tensor]) for form in forms)):
            found.update((replace(form, stack=number), None) for form in forms if number < len(state[form.tensor]))
    return list(found)


def _form(product: Product) -> Product:
    """The same of all matrices of a stack."""
    return replace(product, stack=None)


def overlap(products: Sequence[Product]) -> bool:
    """Whether some of a parameter's products read the same numbers of it, in two ways."""
    for number, one in enumerate(products):
        for other in products[:number]:
            apart = one.start + one.size <= other.start or other.start + other.size <= one.start
            same_way = (one.in_dim, one.out_dim, one.window) == (other.in_dim, other.out_dim, other.window)
            if one.stack == other.stack and not (same_way and apart):
                return True
    return False


def named(keyword: str, model: nn.Module, patterns: Sequence[str] | None) -> set[str]:
    """The parameters that patterns name, by themselves or by a module around them.

    Raises:
        PlanError: A pattern names nothing.
    """
    if isinstance(patterns, str):
        raise PlanError(f"{keyword}= is a list of name patterns, such as {keyword}=[{patterns!r}]; got one text")
    if patterns is None or not all(isinstance(pattern, str) for pattern in patterns):
        raise PlanError(f"{keyword}= is a list of name patterns; got {patterns!r}")
    names = [name for name, _ in model.named_parameters()]
    paths = {name: [".".join(name.split(".")[:length]) for length in range(1, name.count(".") + 2)] for name in names}
    for pattern in patterns:
        if not any(fnmatchcase(path, pattern) for each in paths.values() for path in each):
            raise PlanError(
                f"{pattern!r} names no parameter or module of this {type(model).__name__}; it has {', '.join(names[:5])}..."
            )
    return {name for name in names if any(fnmatchcase(path, pattern) for path in paths[name] for pattern in patterns)}
