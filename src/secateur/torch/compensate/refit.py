"""The layers that lost inputs get new weights or biases: least squares (`Refit`), or means alone (`FoldMean`)."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor, nn

from secateur.axes import Plan
from secateur.errors import DataError
from secateur.torch.batches import Batches, batch_size, run, take
from secateur.torch.calibrate import Calibrate, evaluation_copy, undisturbed
from secateur.torch.capture import Inputs, TracedNetwork
from secateur.torch.compensate.batchnorm import measured, observed
from secateur.torch.compensate.consumer import Consumer, survey
from secateur.torch.join import joined
from secateur.torch.least_squares import Fit, Gap, close, fold_mean, refit
from secateur.torch.products import Product, WatchProducts
from secateur.torch.state import state_of

logger = logging.getLogger(__name__)

LEAST_ROWS = 4096
"""Rows to fit a layer on, however few inputs it has."""

LIVE = 3
"""About how many times the largest input and output of a layer are alive at once: theirs, and a residual stream's."""


@dataclass(frozen=True, slots=True)
class Refit:
    """New weights for every layer that lost inputs, so that it writes what it wrote before: least squares on data.

    In sequence (the default), layer after layer is fitted on what the compact model gives it, errors of earlier layers
    included, to what the dense model writes there. Batch norms on the way get the running statistics with which they write the
    mean and the variance that they write in the dense model, so that whatever lost nothing stays exactly as it was. All samples
    then run through both models at once, so that their activations are in memory together; `memory` bounds how many samples that
    are. Otherwise all layers are fitted on the inputs of the dense model, batch by batch, which takes a Gram matrix for each
    layer but no more memory for more data, and batch norms stay as they are.

    Depth-wise convolutions have nothing to refit. Layers without a bias or a batch norm behind them get no constant. Layers whose
    weight serves in several places are left as they are, and logged.

    Args:
        ridge: How strongly weights are held to what they were: a share of the mean square of the inputs, >= 0.
        samples: The most samples to use, > 0.
        rows_per_input: Tokens or windows to use for each input of a layer, > 0: fewer fit the sample and not the data.
        in_sequence: Whether to fit each layer on what the compact model gives it.
        memory: About how many bytes activations may take, in sequence, > 0; a sample is the least.

    Raises:
        DataError: A field is out of range. When called: no data, data that do not fit the model, or activations that are not
            finite; names the layer.

    Example:
        >>> Refit(ridge=0.1).name
        'refit'

    Source:
        As `secateur.torch.least_squares.refit`. In sequence, the asymmetric objective of X. Zhang et al., "Accelerating Very Deep
        Convolutional Networks for Classification and Detection", TPAMI 2016, section 3.3. Ours: damping towards the old weights.
    """

    ridge: float = 1e-2
    samples: int = 1024
    rows_per_input: int = 8
    in_sequence: bool = True
    memory: int = 2 << 30

    def __post_init__(self) -> None:
        if not 0 <= self.ridge < inf or min(self.samples, self.rows_per_input, self.memory) < 1:
            raise DataError(
                f"{self!r}: ridge is at least 0 and finite; samples, rows_per_input and memory are at least 1"
            )

    @property
    def name(self) -> str:
        """What a report calls the step."""
        return "refit"

    def __call__(self, network: TracedNetwork, small: nn.Module, plan: Plan, batches: Batches) -> None:
        """Change the compact model in place; see `Compensation`."""
        pieces = [inputs for inputs, _ in take(batches, self.samples)]
        found = survey(network.model, plan, pieces[0])
        if self.in_sequence:
            inputs = joined(pieces, at_most=max(1, self.memory // (LIVE * max(found.bytes_per_sample, 1))))
            left = _refit_in_sequence(network.model, small, plan, found.consumers, inputs, self)
        else:
            left = found.consumers
        _refit_from_moments(network, small, left, pieces, self.ridge)

    def rows(self, consumer: Consumer) -> int:
        """How many rows of data a layer is fitted on, at most."""
        return max(LEAST_ROWS, self.rows_per_input * len(consumer.features))


@dataclass(frozen=True, slots=True)
class FoldMean:
    """The mean of what went, as each layer read it, goes into the layer's bias, or into the running mean of a batch norm.

    Exact where the units that go are constant. Layers with neither are left as they are.

    Args:
        samples: The most samples to use, > 0.

    Raises:
        DataError: `samples` is not positive. When called: no data, or data that do not fit the model.

    Example:
        >>> FoldMean(samples=512).name
        'mean folding'

    Source:
        As `secateur.torch.least_squares.fold_mean`.
    """

    samples: int = 1024

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"{self!r}: samples is at least 1")

    @property
    def name(self) -> str:
        """What a report calls the step."""
        return "mean folding"

    def __call__(self, network: TracedNetwork, small: nn.Module, plan: Plan, batches: Batches) -> None:
        """Change the compact model in place; see `Compensation`."""
        pieces = [inputs for inputs, _ in take(batches, self.samples)]
        _refit_from_moments(network, small, survey(network.model, plan, pieces[0]).consumers, pieces, None)


def _refit_in_sequence(
    model: nn.Module, small: nn.Module, plan: Plan, consumers: Sequence[Consumer], inputs: Inputs, settings: Refit
) -> list[Consumer]:
    """Run the dense model and keep what its layers write; run the compact one, and fit each layer when it is its turn.

    Returns:
        The layers that were not fitted: the compact model does not run them, or not on the same rows (a layer that mixes tokens
        reads a row for each channel, and channels went).
    """
    by_dense, by_small = {c.dense: c for c in consumers}, {c.small: c for c in consumers}
    targets: dict[Product, tuple[int, Tensor]] = {}
    state = state_of(small)

    def remember(product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        y = run()
        consumer = by_dense.get(product)
        if consumer is not None and consumer.dense.bias == product.bias:
            targets[consumer.small] = (
                x.numel() // x.shape[1],
                consumer.rows(product.channels(y, settings.rows(consumer)).mT),
            )
        return y

    def fit(product: Product, x: Tensor, run: Callable[[], Tensor]) -> Tensor:
        consumer, (places, goal) = by_small.get(product), targets.get(product, (0, x))
        if consumer is None or consumer.small.bias != product.bias or places != x.numel() // x.shape[1]:
            return run()
        del targets[product]
        read = product.read(x, settings.rows(consumer))
        fits = [close(gap, settings.ridge) for gap in _gaps(consumer, read, goal, state)]
        _log(product, fits)
        consumer.apply(torch.stack([f.change for f in fits]), torch.stack([f.shift for f in fits]), state)
        return run()

    dense = evaluation_copy(model)
    with observed(dense) as written, undisturbed(dense), WatchProducts(dense, remember):
        run(dense, inputs)
    cuts = {cut.name: cut for cut in plan.tensors}
    kept = {path: cuts[name].kept[0] for path in written if (name := f"{path}.running_mean") in cuts}
    goals = {path: norm.of(kept.get(path)) for path, norm in written.items()}
    with measured(small, goals), undisturbed(small), WatchProducts(small, fit):
        run(small, inputs)
    return [by_small[product] for product in targets]


def _gaps(consumer: Consumer, read: Tensor, goal: Tensor, state: Mapping[str, Tensor]) -> Iterator[Gap]:
    """For each group what its weight makes of the compact inputs `[rows, in]`, compared with the goal `[out, rows]`."""
    kind = torch.promote_types(read.dtype, torch.float32)
    matrices = consumer.small.matrix(state[consumer.small.tensor]).to(kind)
    biases = torch.zeros(goal.shape[:2], dtype=kind, device=goal.device)
    if consumer.small.bias is not None:
        bias = state[consumer.small.bias].narrow(0, consumer.small.bias_start, biases.numel())
        biases += bias.detach().reshape(biases.shape)
    for x, y, matrix, bias in zip(read.to(kind), goal.to(kind), matrices, biases, strict=True):
        missed, means = y.T - x @ matrix.T - bias, None
        if consumer.constant:
            means = missed.mean(0), x.mean(0)
            missed, x = missed - means[0], x - means[1]
        if not torch.isfinite(x).all() or not torch.isfinite(missed).all():
            raise DataError(
                f"{consumer.dense.tensor!r} reads or writes values that are not finite; look at the data and the weights"
            )
        yield Gap(float(missed.square().sum()) / len(x), missed.T @ x / len(x), x.T @ x / len(x), means)


def _refit_from_moments(
    network: TracedNetwork,
    small: nn.Module,
    consumers: Sequence[Consumer],
    pieces: Sequence[Inputs],
    ridge: float | None,
) -> None:
    """Fit all layers on the inputs of the dense model; without a ridge, or a Gram matrix, constants alone."""
    if not consumers:
        return
    calibrate = Calibrate(samples=sum(map(batch_size, pieces)), gram=ridge is not None)
    tensors = {consumer.dense.tensor for consumer in consumers}
    found = {
        moments.product: moments for moments in calibrate(network.model, [(piece, None) for piece in pieces], tensors)
    }
    weights, state = state_of(network.model), state_of(small)
    for consumer in consumers:
        moments = found.get(consumer.dense)
        if moments is None:
            continue
        matrices = consumer.rows(consumer.dense.matrix(weights[consumer.dense.tensor].detach()))
        if ridge is not None and moments.gram is not None:
            fits = [
                refit(matrix, moments.gram[g], moments.mean[g], consumer.features, ridge, consumer.constant)
                for g, matrix in zip(consumer.groups, matrices, strict=True)
            ]
            _log(consumer.dense, fits)
            consumer.apply(torch.stack([fit.change for fit in fits]), torch.stack([fit.shift for fit in fits]), state)
        elif consumer.constant:
            shifts = [
                fold_mean(m, moments.mean[g], consumer.features) for g, m in zip(consumer.groups, matrices, strict=True)
            ]
            consumer.apply(None, torch.stack(shifts), state)


def _log(product: Product, fits: Sequence[Fit]) -> None:
    before, after = sum(fit.before for fit in fits), sum(fit.after for fit in fits)
    logger.info("%s: squared error %.3g, refitted %.3g", product.tensor, before, after)
