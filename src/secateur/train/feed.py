"""The batches of all epochs, one after the other, and how many there will be."""

from collections.abc import Iterator
from itertools import islice
from typing import Any

from secateur.errors import DataError
from secateur.torch.batches import Batches
from secateur.train.check import length


def batches(data: Batches, epochs: int, limit: int | None) -> Iterator[tuple[int, str, Any]]:
    """Go through the data `epochs` times.

    Args:
        data: Iterated once an epoch.
        epochs: At least 1.
        limit: At most so many batches of each epoch; None = all.

    Yields:
        The epoch, from 1, the batch's place in words, and the batch.

    Raises:
        DataError: An epoch has no batches.
    """
    for epoch in range(1, epochs + 1):
        number = 0
        for number, batch in enumerate(islice(data, limit), 1):
            yield epoch, f"batch {number} of epoch {epoch}", batch
        if not number:
            raise DataError(
                f"data, a {type(data).__name__}, gave no batches in epoch {epoch} of {epochs}; give at least one, "
                "and data that starts anew each time it is iterated"
            )


def step_count(data: Batches, epochs: int, limit: int | None) -> int | None:
    """How many batches there will be at most; None if neither the data nor a limit says."""
    known = [count for count in (length(data), limit) if count is not None]
    return epochs * min(known) if known else None
