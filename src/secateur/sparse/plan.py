"""Which weights stay: masks by the names of parameters, which can be applied as often as you like."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from secateur.errors import ModelError


@dataclass(frozen=True, slots=True, eq=False)
class WeightPlan:
    """Which weights of a model stay.

    Attributes:
        stays: For the name of each sparse parameter, what stays of it: boolean, of its shape.
    """

    stays: Mapping[str, Tensor]

    @property
    def zeros(self) -> int:
        """How many weights go."""
        return sum(int((~mask).sum()) for mask in self.stays.values())

    @property
    def total(self) -> int:
        """How many weights the sparse parameters have."""
        return sum(mask.numel() for mask in self.stays.values())

    @property
    def sparsity(self) -> float:
        """The share that goes of the sparse parameters."""
        return self.zeros / max(self.total, 1)

    def of(self, model: nn.Module) -> list[tuple[nn.Parameter, Tensor]]:
        """The model's parameters with what stays of each, on the parameter's device.

        Raises:
            ModelError: The model has no such parameter, or one of another shape.
        """
        parameters = dict(model.named_parameters())
        for name, mask in self.stays.items():
            if name not in parameters or parameters[name].shape != mask.shape:
                got = list(parameters[name].shape) if name in parameters else "missing"
                raise ModelError(
                    f"the plan is for another model: {name!r} is {got} in this {type(model).__name__}, and {list(mask.shape)} "
                    "in the plan"
                )
        return [(parameters[name], mask.to(parameters[name].device)) for name, mask in self.stays.items()]

    def apply(self, model: nn.Module) -> None:
        """Set what goes to zero, in place.

        Raises:
            ModelError: The plan is for another model; nothing was changed.
        """
        with torch.no_grad():
            for parameter, mask in self.of(model):
                parameter.masked_fill_(~mask, 0)
