"""What a recovery is: trains a pruned model, and says how far it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from secateur.torch.batches import Batches


@dataclass(frozen=True, slots=True)
class Step:
    """One update of the weights, as told to a progress callback.

    Attributes:
        epoch: From 1.
        step: From 1, counted over all epochs.
        steps: How many there will be at most; None if the data does not say.
        loss: What was minimised, before the update.
    """

    epoch: int
    step: int
    steps: int | None
    loss: float


Progress = Callable[[Step], None]


class Recovery(Protocol):
    """Trains a pruned model, so that it gets back what pruning took from it."""

    def __call__(
        self, model: nn.Module, data: Batches, teacher: nn.Module | None = None, progress: Progress | None = None
    ) -> nn.Module:
        """Train the model.

        Args:
            model: The pruned model; may be changed.
            data: The batches to train on.
            teacher: The dense model; not changed.
            progress: Called after each update.

        Returns:
            The trained model, of the same architecture.
        """
        ...
