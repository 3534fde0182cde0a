"""The layers that lost inputs get new weights or biases: least squares (`Refit`), or means alone (`FoldMean`)."""

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.axes import Plan
from secateur.errors import DataError
from secateur.torch.apply import state_of
from secateur.torch.batches import Batches, batch_size, part, run, take
from secateur.torch.calibrate import Calibrate, Moments, evaluation_copy, undisturbed
from secateur.torch.capture import Inputs, TracedNetwork
from secateur.torch.compensate.batchnorm import measured
from secateur.torch.compensate.consumer import Consumer, Survey, survey
from secateur.torch.least_squares import Fit, Gap, close, refit
from secateur.torch.products import Product, WatchProducts

logger = logging.getLogger(__name__)

FIRST_LOOK = 4
"""Samples of the run that finds the layers and how much memory a sample takes."""

LIVE = 3
"""About how many times the largest input and output of a layer are alive at once: theirs, and a residual stream's."""


@dataclass(frozen=True, slots=True)
class Refit:
    """New weights for every layer that lost inputs, so that it writes what it wrote before: least squares on data.

    In sequence (the default), layer after layer is fitted on what the compact model gives it, errors of earlier layers and
    re-estimated batch norms included, to what the dense model writes there. All samples then run through both models at once, so
    that their activations are in memory together; `memory` bounds how many samples that are. Otherwise all layers are fitted on
    the inputs of the dense model, batch by batch, which takes a Gram matrix for each layer but no more memory for more data.

    Depth-wise convolutions have nothing to refit. Layers without a bias or a batch norm behind them get no constant. Layers whose
    weight serves in several places are left as they are.

    Args:
        ridge: How strongly weights are held to what they were: a share of the mean square of the inputs, >= 0.
        samples: The most samples to use, > 0.
        rows_per_input: Tokens or windows to use for each input of a layer, > 0: fewer fit the sample and not the data.
        in_sequence: Whether to fit each layer on what the compact model gives it.
        memory: About how many bytes activations may take, in sequence.

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
        if not 0 <= self.ridge < inf or self.samples < 1 or self.rows_per_input < 1:
            raise DataError(f"{self!r}: ridge is at least 0 and finite; samples and rows_per_input are at least 1")

    @property
    def name(self) -> str:
        """What a report calls the step."""
        return "refit"

    def __call__(self, network: TracedNetwork, small: nn.Module, plan: Plan, batches: Batches) -> None:
        """Change the compact model in place; see `Compensation`."""
        pieces = list(take(batches, self.samples))
        found = survey(network.model, plan, _first(pieces))
        if self.in_sequence:
            _refit_in_sequence(network.model, small, found, _joined(pieces, self._fitting(found)), self)
        else:
            _refit_from_moments(network, small, found, pieces, self.ridge, gram=True)

    def rows(self, consumer: Consumer) -> int:
        """How many rows of data a layer is fitted on, at most."""
        return max(4096, self.rows_per_input * len(consumer.features))

    def _fitting(self, found: Survey) -> int:
        """How many samples fit in memory."""
        return max(1, self.memory * FIRST_LOOK // (LIVE * max(found.bytes, 1)))
