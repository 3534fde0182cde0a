"""Movement as a score: does training move a weight away from zero, or towards it?"""

from collections.abc import Collection
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from secateur.errors import DataError, ModelError
from secateur.torch.batches import Batches
from secateur.torch.scores.weights import weights_of


class Movement:
    """The sum of `-w g` over the steps of training: high for weights that the gradient moves away from zero.

    While it is open, it adds up what each step of any optimiser finds in the model's parameters and their gradients, whatever the
    loop. Opened again, it goes on. An optimiser that computes gradients within its step, from a closure, is seen with those of
    the step before.

    Args:
        model: What is trained; it and its copies can be scored.

    Raises:
        DataError: When called: no step was seen.
        ModelError: When called: the model is another one, or gradients were not finite; names the parameter.

    Example:
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[1.0, -2.0]]))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
        >>> with Movement(model) as movement:
        ...     for _ in range(3):
        ...         optimizer.zero_grad()
        ...         model(torch.ones(1, 2)).sum().backward()
        ...         optimizer.step()
        >>> movement.of_model(model, None, ["weight"])["weight"].tolist()
        [[-3.0, 6.0]]

    Source:
        V. Sanh et al., "Movement Pruning: Adaptive Sparsity by Fine-Tuning", NeurIPS 2020, but for the learning rate of scores.
        There only the weights with the highest scores take part in training, here all that the loop trains.
    """

    def __init__(self, model: nn.Module) -> None:
        self._parameters = {id(parameter): (name, parameter) for name, parameter in model.named_parameters()}
        self._totals: dict[str, Tensor] = {}
        self._hook: Any = None

    def __repr__(self) -> str:
        return f"Movement(of {len(self._totals)} parameters)"

    def __enter__(self) -> Self:
        self._hook = register_optimizer_step_pre_hook(self._before_step)
        return self

    def __exit__(self, *error: object) -> None:
        self._hook.remove()

    def of_model(
        self,
        model: nn.Module,
        batches: Batches | None,  # noqa: ARG002 - as ModelScore asks
        names: Collection[str],
    ) -> dict[str, Tensor]:
        """What was seen, zero for weights without gradients; see `ModelScore`."""
        if not self._totals:
            raise DataError("no step of an optimiser was seen; train inside `with Movement(model) as movement:`")
        found = {}
        for name, weight in weights_of(model, names).items():
            total = self._totals.get(name, torch.zeros_like(weight))
            if total.shape != weight.shape:
                raise ModelError(
                    f"the movement is of another model: {name!r} was {list(total.shape)} in training, and is "
                    f"{list(weight.shape)} in this {type(model).__name__}"
                )
            if not torch.isfinite(total).all():
                raise ModelError(f"the gradients of {name!r} were not finite in training; lower the learning rate")
            found[name] = total.to(weight.device)
        return found

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and id(parameter) in self._parameters:
                    name, weight = self._parameters[id(parameter)][0], parameter.detach()
                    gradient = parameter.grad.to_dense() if parameter.grad.is_sparse else parameter.grad
                    wide = torch.promote_types(weight.dtype, torch.float32)
                    change = weight.to(wide) * gradient.to(wide)
                    self._totals[name] = self._totals.get(name, torch.zeros_like(change)) - change
