"""One pass over data that gathers what linear layers and convolutions read: means, powers and Gram matrices."""

import logging
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.torch.attention import open_attention
from secateur.torch.batches import Batches, real_rows, run, take
from secateur.torch.capture import Inputs, same_numbers
from secateur.torch.products import Product, WatchProducts
from secateur.torch.replicate import replicate

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Moments:
    """Means over the rows that a product read: tokens but for padding, or windows of an image. Mergeable, so made in any parts.

    Attributes:
        product: Whose input it is.
        count: How many rows were seen.
        mean: E[x], `[groups, features]` float64.
        power: E[x^2], `[groups, features]` float64.
        output_mean: E[y] of what the product wrote, bias included, `[groups, out]` float64.
        output_power: E[y^2] of it, likewise.
        gram: E[x x^T], `[groups, features, features]`, or None where it was not asked for or would be too large.
    """

    product: Product
    count: int
    mean: Tensor
    power: Tensor
    output_mean: Tensor
    output_power: Tensor
    gram: Tensor | None

    def merged(self, other: "Moments") -> "Moments":
        """The moments over the rows of both."""
        count = self.count + other.count
        share = other.count / count
        both = self.gram is not None and other.gram is not None
        return Moments(
            self.product,
            count,
            torch.lerp(self.mean, other.mean, share),
            torch.lerp(self.power, other.power, share),
            torch.lerp(self.output_mean, other.output_mean, share),
            torch.lerp(self.output_power, other.output_power, share),
            torch.lerp(self.gram, other.gram, share) if both else None,  # type: ignore[arg-type]
        )


@dataclass(frozen=True, slots=True)
class Calibrate:
    """Runs the model on data and gathers the moments of what its linear layers and convolutions read.

    Memory: a Gram matrix takes `features^2` numbers (features = input channels times taps of the kernel, in each group), all of
    them together are kept; means and powers are nothing beside them. While a batch runs, one product at a time holds `rows`
    rows of features.

    Args:
        samples: How many samples to use, > 0.
        rows: The most rows of a batch that a product uses, spread evenly, the same ones every time, > 0.
        gram: Whether to gather Gram matrices.
        limit: The most bytes that a single Gram matrix may take; larger ones are left out, which is logged.
        dtype: What Gram matrices are added up in, at least: `torch.float32`, or `torch.float64`.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
        >>> [moments.gram.shape for moments in Calibrate()(model, [torch.ones(5, 2)])]
        [torch.Size([1, 2, 2]), torch.Size([1, 3, 3])]
    """

    samples: int = 1024
    rows: int = 8192
    gram: bool = True
    limit: int = 1 << 29
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        if self.samples < 1 or self.rows < 1:
            raise DataError(f"{self!r}: samples and rows are at least 1")

    def __call__(
        self, model: nn.Module, batches: Batches, tensors: Collection[str] | None = None
    ) -> tuple[Moments, ...]:
        """Gather the moments.

        Args:
            model: What to run, as a copy in eval mode.
            batches: Data; see `secateur.torch.batches`. Targets are not looked at.
            tensors: The parameters whose products count; None = all.

        Returns:
            Moments for each product that read something, in the order in which the model runs them; a product that runs several
            times in a batch has one entry.
        """
        found: dict[Product, Moments] = {}
        copy = evaluation_copy(model)

        def look(product: Product, x: Tensor, y: Tensor) -> None:
            if tensors is None or product.tensor in tensors:
                seen = self._moments(product, x, y)
                found[product] = found[product].merged(seen) if product in found else seen

        for inputs, _ in take(batches, self.samples):
            watch(copy, inputs, look)
        for moments in found.values() if self.gram else ():
            if moments.gram is None:
                logger.warning(
                    "no Gram matrix for %s: it would take more than %d bytes", moments.product.tensor, self.limit
                )
        return tuple(found.values())

    def _moments(self, product: Product, x: Tensor, y: Tensor) -> Moments:
        kind = torch.promote_types(x.dtype, self.dtype)
        rows, written = product.read(x, self.rows).to(kind), product.channels(y, self.rows).to(kind)
        power = rows.square().mean(1, dtype=torch.float64)
        check_finite(product, power)
        return Moments(
            product,
            count=rows.shape[1],
            mean=rows.mean(1, dtype=torch.float64),
            power=power,
            output_mean=written.mean(1, dtype=torch.float64),
            output_power=written.square().mean(1, dtype=torch.float64),
            gram=rows.mT @ rows / rows.shape[1] if self.gram and self._fits(rows) else None,
        )

    def _fits(self, rows: Tensor) -> bool:
        return rows.shape[0] * rows.shape[2] ** 2 * rows.itemsize <= self.limit


def watch(copy: nn.Module, inputs: Inputs, look: Callable[[Product, Tensor, Tensor], None]) -> None:
    """Run an evaluation copy on a batch, and look at what each product reads and writes; rows of padding are left out."""

    def visit(product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        y = run()
        read = real_rows(inputs, x)
        if len(read):
            look(product, read, real_rows(inputs, y))
        return y

    with undisturbed(copy), WatchProducts(copy, visit):
        run(copy, inputs)


def check_finite(product: Product, numbers: Tensor) -> None:
    """Refuse numbers, made of what a product reads, that are not finite.

    Raises:
        DataError: They are not; names the parameter.
    """
    if not bool(torch.isfinite(numbers).all()):
        raise DataError(
            f"{product.tensor!r} reads values that are not finite, or too large to be squared; look at the data and the weights"
        )


def evaluation_copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, attention opened, that shares the weights of the model."""
    copy = replicate(
        model, lambda tensor: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()
    )
    open_attention(copy)
    return copy.eval()


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """No gradients, the same random numbers, and no fused paths of torch's own layers, which would hide products."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with same_numbers(), _in_steps(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


@contextmanager
def _in_steps(model: nn.Module) -> Iterator[None]:
    """No oneDNN and no cuDNN where the model has recurrent layers: all steps of one would be a single operator of theirs."""
    backends: tuple[Any, ...] = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [backend.enabled for backend in backends]
    recurrent = any(isinstance(module, nn.RNNBase) for module in model.modules())
    try:
        for backend in backends if recurrent else ():
            backend.enabled = False
        yield
    finally:
        for backend, enabled in zip(backends, before, strict=True):
            backend.enabled = enabled
