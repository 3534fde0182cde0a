"""Training in which zeros stay zeros, whatever the loop, the optimiser or the library around it."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from secateur.sparse import WeightPlan


@contextmanager
def masked(model: nn.Module, plan: WeightPlan) -> Iterator[None]:
    """While it is open, weights that went stay exactly zero after each step of any optimiser over the model's parameters.

    Their gradients are zero too, so that moments gather nothing; after each step weights and moments are masked once more, for
    what was in them before. Mixed precision, accumulated gradients, weight decay and `torch.compile` need nothing else.

    Args:
        model: The sparse model; what goes is set to zero at once.
        plan: Which weights stay.

    Raises:
        ModelError: The plan is for another model.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> with masked(model, WeightPlan({"weight": torch.tensor([[True, False]])})):
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     _ = optimizer.step()
        >>> model.weight[0, 1].item()
        0.0
    """
    pairs = plan.of(model)
    gone = {id(parameter): ~mask for parameter, mask in pairs}
    plan.apply(model)
    hooks: list[Any] = [
        parameter.register_hook(lambda gradient, gone=~mask: gradient.masked_fill(gone, 0))  # type: ignore[no-untyped-call]
        for parameter, mask in pairs
        if parameter.requires_grad
    ]
    for parameter, mask in pairs:
        if parameter.grad is not None:
            parameter.grad.masked_fill_(~mask, 0)

    def after_step(optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        with torch.no_grad():
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    if (zeros := gone.get(id(parameter))) is not None:
                        parameter.masked_fill_(zeros, 0)
                        for value in optimizer.state.get(parameter, {}).values():
                            if isinstance(value, Tensor) and value.shape == zeros.shape:
                                value.masked_fill_(zeros, 0)

    hooks.append(register_optimizer_step_post_hook(after_step))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
