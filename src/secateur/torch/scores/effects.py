"""What shrinking a unit does to the loss, to first order, in many samples: its mean and its variance."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from secateur.errors import DataError
from secateur.torch.batches import Batches
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.backward import Backward, gradients, widened
from secateur.torch.scores.score import prunable
from secateur.torch.scores.units import Totals, sum_onto_units


@dataclass(frozen=True, slots=True, eq=False)
class Effects:
    """The moments of `s = sum w g` over all weights that go with a unit.

    Attributes:
        passes: How many backward passes there were, of one gradient each.
        mean: E[s] over samples, `[units]`.
        variance: E[(s - E[s])^2], likewise.
    """

    passes: int
    mean: Totals
    variance: Totals

    def signal_to_noise(self, score: Backward) -> Totals:
        """The size of the mean over the standard deviation; infinity where it does not vary, but zero where it is zero.

        Raises:
            DataError: None varies.
        """
        if not self.variance.any():
            raise DataError(
                f"the effect of no unit varies among {self.passes} passes of up to {score.microbatch} samples, so there is no "
                f"noise to compare with; give {type(score).__name__} several different samples, and a smaller microbatch"
            )
        with np.errstate(divide="ignore"):
            return np.divide(
                np.abs(self.mean), np.sqrt(self.variance), out=np.zeros_like(self.mean), where=self.mean != 0
            )


def effects(score: Backward, network: TracedNetwork, batches: Batches | None) -> Effects:
    """The mean and the variance of what shrinking each unit does, over backward passes of `score.microbatch` samples.

    Raises:
        DataError: No data, or data that do not fit the model or the loss.
        ModelError: Weights or gradients that are not finite; names the tensor.
    """
    mean, spread = np.zeros(network.unit_count), np.zeros(network.unit_count)
    count = passes = 0
    for size, sums in _weights_times_gradients(score, network, batches):
        count, passes, change = count + size, passes + 1, sums - mean
        mean += change * (size / count)
        spread += size * change * (sums - mean)
    return Effects(passes, mean, spread / count)


def _weights_times_gradients(
    score: Backward, network: TracedNetwork, batches: Batches | None
) -> Iterator[tuple[int, Totals]]:
    """For each piece of data its number of samples and, for each unit, the sum of weight times gradient of the mean loss."""
    weights = prunable(network)
    for size, found in gradients(score, network.model, batches, weights):
        products = ((name, _times(name, weights[name], gradient)) for name, gradient in found.items())
        yield size, sum_onto_units(network, products)


def _times(name: str, weight: Tensor, gradient: Tensor) -> Tensor:
    """Weight times gradient, entry by entry, in float32 at least."""
    wide = widened(name, gradient)
    return weight.to(wide.dtype) * wide
