"""Scores made comparable: each over the sum of its axis, or of its tensor."""

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from secateur.axes import Scores
from secateur.errors import DataError
from secateur.torch.batches import Batches
from secateur.torch.capture import TracedNetwork
from secateur.torch.scores.score import Score
from secateur.torch.scores.weights import ModelScore


@dataclass(frozen=True, slots=True)
class Normalised:
    """Another score over the sum of its sizes: `s / sum |s|`, a unit's share of its axis, or a weight's of its tensor.

    For units that are compared across axes, or weights across tensors, whose scales differ. `Normalised(Magnitude(1))` is
    `|w| / sum |w|`, `Normalised(Gradient())` is `|g| / sum |g|`. Units of a wide axis have smaller shares, those of a narrow one
    larger; `allocate.normalise.mean`, which allocations use by themselves, leaves that out.

    Args:
        score: A score of units, or of whole models for weights.

    Raises:
        DataError: It is none. When called: it has none of what is asked for; and what it raises.

    Example:
        >>> from secateur.torch.scores import Magnitude
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> Normalised(Magnitude(1)).of_model(model, None, ["weight"])["weight"].tolist()
        [[0.75, 0.25]]
    """

    score: Score | ModelScore

    def __post_init__(self) -> None:
        if isinstance(self.score, type) or not (isinstance(self.score, ModelScore) or callable(self.score)):
            raise DataError(
                f"Normalised takes a score of units or of whole models, such as scores.Gradient(); got {self.score!r}"
            )

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        if not callable(self.score):
            raise DataError(f"{self.score!r} does not score units; normalise one that does, such as scores.Gradient()")
        shares = ((name, scores, np.abs(scores).sum()) for name, scores in self.score(network, batches).items())
        return {name: scores / total if total > 0 else scores for name, scores, total in shares}

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        if not isinstance(self.score, ModelScore):
            raise DataError(
                f"{self.score!r} does not score weights; normalise one that does, such as scores.Gradient()"
            )
        return {name: _shares(scores) for name, scores in self.score.of_model(model, batches, names).items()}


def _shares(scores: Tensor) -> Tensor:
    """Scores over the sum of their sizes; as they are where that is zero."""
    total = scores.abs().sum(dtype=torch.float64)
    return scores / total.to(scores.dtype) if total > 0 else scores
