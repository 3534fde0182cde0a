"""What the activations of a unit are, where it is read: their mean, how often they are positive, what they tell of classes."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from secateur.axes import Integers, Scores
from secateur.errors import DataError
from secateur.torch.batches import Batches, take
from secateur.torch.calibrate import check_finite, evaluation_copy, watch
from secateur.torch.capture import TracedNetwork
from secateur.torch.products import Product
from secateur.torch.scores.otherwise import UNSEEN, Found, completed, either, where_known
from secateur.torch.scores.score import Score, needed, prunable
from secateur.torch.scores.units import Totals, add_at

READ, WRITTEN = 0, 1

Look = Callable[[int, Integers, Tensor], None]
"""Takes whether it is read or written, the units `[factors, n]` of each channel, and the activations `[rows, n]` in float64."""


class Activations(Protocol):
    """A score that looks at activations."""

    @property
    def samples(self) -> int:
        """How many samples it uses."""
        ...

    @property
    def rows(self) -> int:
        """The most tokens or pixels of a batch that it looks at."""
        ...


@dataclass(frozen=True, slots=True)
class ActivationMean:
    """The mean size of a unit's activations, `E[|x_u|]`, over tokens or pixels, as linear layers and convolutions read them.

    Where several layers read a unit, or it has several channels, it is the mean over all of them. Where no such layer reads an
    axis (the width of q and k, which a product of activations reads), what they write there is taken. It depends on how scales
    are divided among layers; `Energy` does not.

    Args:
        samples: How many samples to use, > 0.
        rows: The most tokens or pixels of a batch that are looked at, > 0.
        otherwise: Scores the axes that linear layers and convolutions neither read nor write; None = such axes are an error.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model.
        ModelError: When called: an axis that is neither read nor written, and no `otherwise`; names the axes. Weights that are
            not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[2.0], [-1.0]]))
        >>> ActivationMean()(trace(model, torch.ones(1, 1)), [torch.tensor([[1.0], [3.0], [-4.0], [0.0]])])[
        ...     "0"
        ... ].tolist()
        [2.0, 1.0]

    Source:
        P. Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR 2017, section 2.2, of
        sizes, because other activations than rectifiers have signs that cancel.
    """

    samples: int = 1024
    rows: int = 2048
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        check_activations(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        return completed(self, network, batches, _means(self, network, batches, torch.abs), UNSEEN)


@dataclass(frozen=True, slots=True)
class ActivationRate:
    """How often a unit is active: the share of its activations that are positive, over tokens or pixels, where it is read.

    Behind a rectifier, this is one minus the average percentage of zeros (APoZ). Other activations have hardly any zeros, and how
    often they are positive says less of them. What is read comes behind pooling, if there is any. Several readers, several
    channels, and axes that nothing reads, as for `ActivationMean`.

    Args:
        samples: How many samples to use, > 0.
        rows: The most tokens or pixels of a batch that are looked at, > 0.
        otherwise: Scores the axes that linear layers and convolutions neither read nor write; None = such axes are an error.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model.
        ModelError: When called: an axis that is neither read nor written, and no `otherwise`; names the axes. Weights that are
            not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 2, bias=False), torch.nn.ReLU(), torch.nn.Linear(2, 1))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[2.0], [-1.0]]))
        >>> ActivationRate()(trace(model, torch.ones(1, 1)), [torch.tensor([[1.0], [3.0], [-4.0], [0.0]])])[
        ...     "0"
        ... ].tolist()
        [0.5, 0.25]

    Source:
        H. Hu et al., "Network Trimming: A Data-Driven Neuron Pruning Approach towards Efficient Deep Architectures",
        arXiv:1607.03250, 2016, equation 1; one minus it, so that higher is better.
    """

    samples: int = 1024
    rows: int = 2048
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        check_activations(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        return completed(self, network, batches, _means(self, network, batches, lambda x: x > 0), UNSEEN)


@dataclass(frozen=True, slots=True)
class FTest:
    """How well a unit tells the classes apart: the F-value of a one-way analysis of variance.

    `F = (sum_c n_c (m_c - m)^2 / (C - 1)) / (sum_c sum_s (x_s - m_c)^2 / (n - C))`, where `x_s` is the unit's mean activation in
    sample s, over tokens or pixels as in `ActivationMean`, `m_c` the mean of the `n_c` samples of class c out of C, and `m` that
    of all n. It looks at each unit by itself: those that tell the same apart all score high, and those that help only together
    all score low. Units that do not vary score 0; those that vary between classes alone infinity, which no allocation takes.

    Args:
        samples: How many samples to use, more than there are classes. They run through the model one by one.
        rows: The most tokens or pixels of a sample that are looked at, > 0.
        otherwise: Scores the axes that linear layers and convolutions neither read nor write; None = such axes are an error.

    Raises:
        DataError: `samples` or `rows` is not positive. When called: no data, or data that do not fit the model; targets that are
            not one class a sample; fewer than two classes, or no more samples than classes.
        ModelError: When called: an axis that is neither read nor written, and no `otherwise`; names the axes. Weights that are
            not finite.

    Example:
        >>> from secateur.torch import trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False), torch.nn.Linear(2, 2))
        >>> _ = model[0].weight.data.copy_(torch.eye(2))
        >>> x = torch.tensor([[0.0, 0.0], [2.0, 2.0], [3.0, 0.0], [5.0, 2.0]])
        >>> FTest()(trace(model, x[:1]), [(x, torch.tensor([0, 0, 1, 1]))])["0"].tolist()
        [4.5, 0.0]

    Source:
        R. A. Fisher, "Statistical Methods for Research Workers", 1925, chapter VII.
    """

    samples: int = 512
    rows: int = 2048
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        check_activations(self)

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        classes: dict[int, _Class] = {}
        for target, totals, counts in _sums(self, network, batches, lambda x: x, at_most=1):
            one = classes.setdefault(_label(target), _Class(np.zeros_like(totals)))
            one.add(totals / counts.clip(min=1), counts > 0)
        samples = sum(one.samples for one in classes.values())
        if len(classes) < 2 or samples <= len(classes):
            raise DataError(
                f"FTest compares classes, and found {samples} samples of {len(classes)}; give it two classes or more, and more "
                "samples than classes"
            )
        values, counts = _f_values(list(classes.values()))
        read, written = (where_known(network, values[place], counts[place]) for place in (READ, WRITTEN))
        return completed(self, network, batches, either(read, written), UNSEEN)


def check_activations(score: Activations) -> None:
    """Refuse counts that are not positive.

    Raises:
        DataError: They are not.
    """
    if score.samples < 1 or score.rows < 1:
        raise DataError(f"{score!r}: samples and rows are at least 1")


def watch_units(
    score: Activations, network: TracedNetwork, batches: Batches | None, look: Look, at_most: int | None = None
) -> Iterator[Any]:
    """Look at what each linear layer and convolution reads and writes of units, and give the targets of each piece of data.

    Raises:
        DataError: No data, or data that do not fit the model.
        ModelError: Weights that are not finite.
    """
    batches, copy = needed(score, batches), evaluation_copy(network.model)
    prunable(network)

    def show(product: Product, x: Tensor, y: Tensor) -> None:
        check_finite(product, x.sum(dtype=torch.float64))
        units = network.units(product.tensor)
        if (read := units[product.in_dim]) is not None:
            look(READ, read, product.channels(x, score.rows).flatten(0, 1).to(torch.float64))
        if (written := units[product.out_dim]) is not None:
            rows = product.channels(y, score.rows).transpose(0, 1).flatten(1)
            look(WRITTEN, written[:, product.start : product.start + product.size], rows.to(torch.float64))

    for inputs, targets in take(batches, score.samples, at_most, labelled=at_most is not None):
        watch(copy, inputs, show)
        yield targets


def _means(
    score: Activations, network: TracedNetwork, batches: Batches | None, of: Callable[[Tensor], Tensor]
) -> Found:
    """For each unit the mean of a function of its activations."""
    totals, counts = np.zeros((2, network.unit_count)), np.zeros((2, network.unit_count))
    for _, more, number in _sums(score, network, batches, of):
        totals, counts = totals + more, counts + number
    means = totals / counts.clip(min=1)
    return either(*(where_known(network, means[place], counts[place]) for place in (READ, WRITTEN)))


def _sums(
    score: Activations,
    network: TracedNetwork,
    batches: Batches | None,
    of: Callable[[Tensor], Tensor],
    at_most: int | None = None,
) -> Iterator[tuple[Any, Totals, Totals]]:
    """For each piece of data its targets, and the sum and the number of each unit's activations, `[read or written, units]`."""
    totals, counts = np.zeros((2, network.unit_count)), np.zeros((2, network.unit_count))

    def look(place: int, units: Integers, activations: Tensor) -> None:
        add_at(totals[place], units, of(activations).sum(0, dtype=torch.float64).cpu().numpy())
        add_at(counts[place], units, np.full(units.shape[1], float(len(activations))))

    for targets in watch_units(score, network, batches, look, at_most):
        yield targets, totals.copy(), counts.copy()
        totals[:], counts[:] = 0, 0


class _Class:
    """The mean activations of the samples of one class."""

    def __init__(self, zeros: Totals) -> None:
        self.samples, self.count, self.mean, self.spread = 0, zeros.copy(), zeros.copy(), zeros.copy()

    def add(self, values: Totals, seen: Any) -> None:
        """Count in a sample, for the units that were seen in it; the spread is that around the mean."""
        self.samples += 1
        self.count += seen
        change = np.where(seen, values - self.mean, 0)
        self.mean += change / self.count.clip(min=1)
        self.spread += change * np.where(seen, values - self.mean, 0)


def _f_values(classes: list[_Class]) -> tuple[Totals, Totals]:
    """The F-value of each unit, and in how many samples it was seen; 0 where these are too few for one."""
    numbers, means, spreads = (
        np.stack([getattr(one, name) for one in classes]) for name in ("count", "mean", "spread")
    )
    count, groups = numbers.sum(0), (numbers > 0).sum(0)
    average = (numbers * means).sum(0) / count.clip(min=1)
    between = (numbers * (means - average) ** 2).sum(0) / (groups - 1).clip(min=1)
    within = spreads.sum(0) / (count - groups).clip(min=1)
    # The average of equal means is rounded, and a constant unit would be infinitely good.
    differ = between > np.square(1e-12 * average)
    tested = (groups > 1) & (count > groups) & differ
    with np.errstate(divide="ignore"):
        return np.divide(between, within, out=np.zeros_like(between), where=tested), count


def _label(target: Any) -> int:
    """The class of a sample.

    Raises:
        DataError: The target is none.
    """
    if not isinstance(target, Tensor) or target.numel() != 1 or target.is_floating_point():
        what = f"a tensor of shape {list(target.shape)}, {target.dtype}" if isinstance(target, Tensor) else repr(target)
        raise DataError(f"FTest compares classes, and the target of a sample is {what}; give one whole number a sample")
    return int(target)
