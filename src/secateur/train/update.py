"""How the weights change: an optimiser over a model's trainable parameters."""

from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from secateur.train.protocol import RecoveryError

_ROUNDED = (torch.bfloat16, torch.float16)


class OptimizerFactory(Protocol):
    """Makes an optimiser; every class of `torch.optim` that takes parameter groups is one."""

    def __call__(self, params: list[dict[str, Any]], /, *, lr: float) -> torch.optim.Optimizer:
        """Make it.

        Args:
            params: Parameter groups: `params`, a list of parameters, and their `weight_decay`.
            lr: The learning rate.

        Returns:
            An optimiser over all these parameters.
        """
        ...


class Updater:
    """Updates the trainable parameters of a model from their gradients.

    Parameters in bfloat16 and float16 are updated through copies in float32: an update is often smaller than half the distance to
    the next number in 16 bits, and would be lost. Gradients are not scaled, so float16 may underflow.

    Args:
        model: The model; parameters with `requires_grad=False` are left out.
        factory: Makes the optimiser.
        learning_rate: Above 0.
        weight_decay: For parameters of two dims or more; biases and the scales of normalisations get none.

    Raises:
        RecoveryError: The factory does not make an optimiser over these parameters.

    Source:
        Copies in float32: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.1.
    """

    def __init__(self, model: nn.Module, factory: OptimizerFactory, learning_rate: float, weight_decay: float) -> None:
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.updated = [_in_float32(parameter) for parameter in self.parameters]
        self.optimizer = _optimizer(factory, self.updated, learning_rate, weight_decay)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def gradient_norm(self) -> Tensor:
        """The Euclidean norm of all gradients together: a scalar."""
        return get_total_norm([parameter.grad for parameter in self.parameters if parameter.grad is not None])

    def update(self, factor: float, norm: Tensor, max_norm: float | None) -> None:
        """Take one step and drop the gradients.

        Args:
            factor: Of the learning rate.
            norm: The norm of the gradients.
            max_norm: Gradients are scaled down to this norm; None = left as they are.
        """
        if max_norm is not None:
            clip_grads_with_norm_(self.parameters, max_norm, norm)
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            group["lr"] = rate * factor
        copies = [(p, q) for p, q in zip(self.parameters, self.updated, strict=True) if p is not q]
        for parameter, copy in copies:
            copy.grad = None if parameter.grad is None else parameter.grad.to(copy)
        self.optimizer.step()
        with torch.no_grad():
            for parameter, copy in copies:
                parameter.copy_(copy)
        for parameter in self.parameters:
            parameter.grad = None


def _in_float32(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a wider copy of one in 16 bits."""
    return nn.Parameter(parameter.detach().float()) if parameter.dtype in _ROUNDED else parameter


def _optimizer(
    factory: OptimizerFactory, parameters: list[nn.Parameter], learning_rate: float, weight_decay: float
) -> torch.optim.Optimizer:
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    try:
        optimizer = factory([group for group in groups if group["params"]], lr=learning_rate)
    except TypeError as error:
        raise RecoveryError(
            f"optimizer={factory!r} cannot be called as optimizer(parameter_groups, lr={learning_rate}): {error}; "
            "pass a class such as torch.optim.AdamW, or functools.partial(torch.optim.SGD, momentum=0.9)"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RecoveryError(f"optimizer={factory!r} made a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != {id(parameter) for parameter in parameters}:
        raise RecoveryError(
            f"optimizer={factory!r} made an optimiser over other parameters than the {len(parameters)} it was given; "
            "let it use its first argument, and freeze what shall not be trained with requires_grad_(False)"
        )
    return optimizer
