"""Zeros that training leaves alone: those of a masked model."""

from torch import Tensor, nn

from secateur.torch.apply import _MASK, unmasked_positions
from secateur.torch.state import state_of


def is_masked(model: nn.Module) -> bool:
    """Whether `mask` made a model."""
    return _MASK in model.__dict__


class Held:
    """The weights that `mask` set to zero, which no update may bring back.

    They get no gradient, so that they count neither in its norm nor in an optimiser's moments, and are set to zero again after
    each update, whatever the optimiser made of that. Then a masked model learns what the compact one would.

    Args:
        model: Any; nothing is held in a model that `mask` did not make.
    """

    def __init__(self, model: nn.Module) -> None:
        self._zeros: list[tuple[Tensor, Tensor]] = []
        masked = model.__dict__.get(_MASK)
        if masked is None:
            return
        state = state_of(model)
        for cut in masked.plan.tensors:
            tensor = state[cut.name]
            if isinstance(tensor, nn.Parameter) and tensor.requires_grad:
                self._zeros.append((tensor, ~unmasked_positions(cut, tensor.device)))

    def drop_gradients(self) -> None:
        """Set the gradients of the held weights to zero."""
        for parameter, gone in self._zeros:
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)

    def put_back(self) -> None:
        """Set the held weights to zero."""
        for parameter, gone in self._zeros:
            parameter.detach().masked_fill_(gone, 0)
