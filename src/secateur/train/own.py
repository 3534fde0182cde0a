"""Takes a user's own training function as a recovery, and checks what it gives back: `as_recovery`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.errors import RecoveryError
from secateur.torch.apply import plan_of
from secateur.torch.batches import Batches
from secateur.torch.state import state_of
from secateur.train.check import not_finite
from secateur.train.finetune import FineTune
from secateur.train.protocol import Progress, Recovery
from secateur.train.reconstruct import Reconstruct

OwnTraining = Callable[[nn.Module, Any], nn.Module | None]
"""`(model, data) -> model`, or None if it was trained in place."""


def as_recovery(function: FineTune | OwnTraining) -> Recovery:
    """Make a recovery of a user's own training function.

    Args:
        function: `FineTune(...)` or `Reconstruct(...)`, which are recoveries as they are, or a function `(model, data) -> model`;
            it may train the model in place and return None. It gets the pruned model, each module in the mode that the dense
            one's is in, and the data as they were given. A function that wants a teacher or reports its progress has them itself.

    Returns:
        A recovery that raises `RecoveryError` if the function gives back something else than the trained model: another type,
        class, architecture or dtype, or weights that are not finite. Modes are put back as they were, and gradients dropped.

    Raises:
        RecoveryError: It cannot be called, or is a class.

    Example:
        >>> import torch
        >>> def train(model, data):
        ...     for batch in data:
        ...         model(batch).sum().backward()
        >>> model = torch.nn.Linear(2, 1)
        >>> as_recovery(train)(model, [torch.ones(1, 2)]) is model
        True
    """
    if isinstance(function, (FineTune, Reconstruct, _Own)):
        return function
    if isinstance(function, type):
        raise RecoveryError(
            f"recover={function.__name__} is a class; pass an object of it, such as {function.__name__}()"
        )
    if not callable(function):
        raise RecoveryError(
            f"recover is a {type(function).__name__}; pass FineTune(...) or a function (model, data) -> model"
        )
    return _Own(function)


@dataclass(frozen=True, slots=True)
class _Own:
    function: Callable[..., Any]

    def __call__(
        self,
        model: nn.Module,
        data: Batches,
        teacher: nn.Module | None = None,  # noqa: ARG002  (a recovery's signature)
        progress: Progress | None = None,  # noqa: ARG002
    ) -> nn.Module:
        before = _Architecture.of(model)
        modes = {name: module.training for name, module in model.named_modules()}
        with torch.inference_mode(False), torch.enable_grad():
            returned = self.function(model, data)
        trained = model if returned is None else returned
        if not isinstance(trained, nn.Module):
            raise RecoveryError(
                f"{self._name} returned a {type(trained).__name__}; return the trained model, or None if it was trained in place"
            )
        before.check(trained, self._name)
        if bad := not_finite(trained):
            raise RecoveryError(f"{self._name} left NaN or infinite values in {bad!r}; lower its learning rate")
        trained.zero_grad(set_to_none=True)
        for name, module in trained.named_modules():
            module.training = modes.get(name, module.training)
        return trained

    @property
    def _name(self) -> str:
        return f"the training function {getattr(self.function, '__qualname__', type(self.function).__name__)}"


@dataclass(frozen=True, slots=True)
class _Architecture:
    """What training may not change."""

    kind: type[nn.Module]
    shapes: dict[str, str]
    plan: Any

    @classmethod
    def of(cls, model: nn.Module) -> "_Architecture":
        return cls(type(model), {name: _described(tensor) for name, tensor in state_of(model).items()}, plan_of(model))

    def check(self, model: nn.Module, who: str) -> None:
        after = _Architecture.of(model)
        advice = "train the model that was passed in, and return it without a wrapper around it"
        if after.kind is not self.kind:
            raise RecoveryError(f"{who} returned a {after.kind.__name__} for a {self.kind.__name__}; {advice}")
        for name in (*self.shapes, *after.shapes):
            old, new = (each.shapes.get(name, "not there") for each in (self, after))
            if old != new:
                raise RecoveryError(f"{who} returned another architecture: {name!r} was {old} and is {new}; {advice}")
        if after.plan != self.plan:
            raise RecoveryError(f"{who} returned a model that does not know the plan it was pruned by; {advice}")


def _described(tensor: Tensor) -> str:
    return f"{list(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
