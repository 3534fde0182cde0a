"""What a model is put back to when its training fails: `Best`."""

import torch
from torch import Tensor, nn

_NEWEST = 0.1
"""The share of the newest loss in the running mean: a memory of about ten steps, so that one lucky batch decides little."""


class Best:
    """Remembers the weights and buffers with which the running mean of the loss was lowest; at first those the model has.

    It costs the memory of the trainable parameters and buffers once more, and a copy of them in each step that is a new best.

    Args:
        model: The model; its weights must be finite.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.mean: float | None = None
        self.lowest: float | None = None
        self.kept = {name: tensor.detach().clone() for name, tensor in _changing(model).items()}

    def saw(self, loss: float) -> None:
        """Take note of the loss, a finite number, that the model's present weights gave."""
        self.mean = loss if self.mean is None else self.mean + _NEWEST * (loss - self.mean)
        if self.lowest is not None and self.mean >= self.lowest:
            return
        self.lowest = self.mean
        for name, tensor in _changing(self.model).items():
            self.kept[name].copy_(tensor.detach())

    def put_back(self) -> str:
        """Give the model the remembered weights and buffers, in place; says in words which they are."""
        with torch.no_grad():
            for name, tensor in _changing(self.model).items():
                tensor.copy_(self.kept[name])
        if self.lowest is None:
            return "the model has the weights that it came with"
        return f"the model has its best weights so far, with a running mean of the loss of {self.lowest:.4g}"


def _changing(model: nn.Module) -> dict[str, Tensor]:
    """Trainable parameters and all buffers, by name."""
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return {**trained, **dict(model.named_buffers())}
