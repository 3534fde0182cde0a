"""What scores the axes that a score has nothing to say of?"""

from collections.abc import Mapping
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from secateur.axes import Network, Scores
from secateur.errors import ModelError
from secateur.torch.batches import Batches
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.score import Score
from secateur.torch.scores.units import Totals, by_axis

Found = Mapping[str, NDArray[np.float64] | None]
"""For each axis' name the scores of its units, or None where there are none."""


class Partial(Protocol):
    """A score that some axes do not have."""

    @property
    def otherwise(self) -> Score | None:
        """Scores the other axes; None = such axes are an error."""
        ...


UNSEEN = "no linear layer or convolution reads or writes the units of"


def where_known(network: Network, values: Totals, counts: Totals) -> Found:
    """The values of the axes all of whose units were counted."""
    found, known = by_axis(network, values), by_axis(network, counts)
    return {name: found[name] if known[name].all() else None for name in found}


def either(first: Found, second: Found) -> Found:
    """The first's values, and the second's where it has none."""
    return {name: second[name] if values is None else values for name, values in first.items()}


def completed(score: Partial, network: TracedNetwork, batches: Batches | None, found: Found, lack: str) -> Scores:
    """Scores for all axes.

    Args:
        score: Whose they are.
        network: Whose units were scored.
        batches: The data.
        found: What it found.
        lack: What the other axes lack, in words that go before their names.

    Raises:
        ModelError: There are other axes, and no score for them; names the axes.
    """
    others = [name for name, values in found.items() if values is None]
    if not others:
        return {name: values for name, values in found.items() if values is not None}
    if score.otherwise is None:
        raise ModelError(
            f"{lack} {', '.join(map(repr, others[:5]))}; give {type(score).__name__}(otherwise=...) a score for such axes, "
            "for example Magnitude()"
        )
    rest = score.otherwise(network, batches)
    return {name: rest[name] if values is None else values for name, values in found.items()}
