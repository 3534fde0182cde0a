"""Scores of tensors made comparable: each over the sum of its tensor."""

from collections.abc import Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.torch.batches import Batches
from secateur.torch.scores.weights import ModelScore


@dataclass(frozen=True, slots=True)
class Normalised:
    """Another score over the sum of its sizes in the same tensor: `s / sum |s|`, a weight's share of its tensor.

    For weights that are compared across tensors, whose scales differ. `Normalised(Magnitude(1))` is `|w| / sum |w|`,
    `Normalised(Gradient())` is `|g| / sum |g|`.

    Args:
        score: A score of whole models.

    Raises:
        DataError: It is none. When called: what it raises.

    Example:
        >>> from secateur.torch.scores import Magnitude
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, -1.0]]))
        >>> Normalised(Magnitude(1)).of_model(model, None, ["weight"])["weight"].tolist()
        [[0.75, 0.25]]
    """

    score: ModelScore

    def __post_init__(self) -> None:
        if isinstance(self.score, type) or not isinstance(self.score, ModelScore):
            raise DataError(f"Normalised takes a score of whole models, such as scores.Gradient(); got {self.score!r}")

    def of_model(self, model: nn.Module, batches: Batches | None, names: Collection[str]) -> dict[str, Tensor]:
        """Score the weights; see `ModelScore`."""
        return {name: _shares(scores) for name, scores in self.score.of_model(model, batches, names).items()}


def _shares(scores: Tensor) -> Tensor:
    """Scores over the sum of their sizes; as they are where that is zero."""
    total = scores.abs().sum(dtype=torch.float64)
    return scores / total.to(scores.dtype) if total > 0 else scores
