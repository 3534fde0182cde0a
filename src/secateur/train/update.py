"""How the weights change: an optimiser over a model's trainable parameters."""

from collections.abc import Callable
from functools import partial
from inspect import Parameter, signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from secateur.errors import RecoveryError

OptimizerFactory = Callable[..., torch.optim.Optimizer]
"""Makes an optimiser of parameters or parameter groups, and of `lr=` where a learning rate is chosen: any class of `torch.optim`
that takes groups, or a `functools.partial` of one."""

# benchmarks/recovery.py compares them with others.
DEFAULT: OptimizerFactory = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
DEFAULT_LEARNING_RATE = 0.03
DEFAULT_WEIGHT_DECAY = 5e-4

_ROUNDED = (torch.bfloat16, torch.float16)
_ORIGINAL = "_secateur_original"


class Updater:
    """Updates the trainable parameters of a model from their gradients.

    Parameters in bfloat16 and float16 are updated through copies in float32: an update is often smaller than half the distance to
    the next number in 16 bits, and would be lost. Gradients are not scaled, so float16 may underflow.

    Args:
        model: The model; parameters with `requires_grad=False` are left out.
        factory: Makes the optimiser; None = stochastic gradient descent with Nesterov's momentum of 0.9.
        learning_rate: Above 0; None = what the factory has itself, or 0.03 for the default.
        weight_decay: At least 0, for parameters of two dims or more (biases and the scales of normalisations get none); None =
            what the factory has itself, or 5e-4 for the default.

    Raises:
        RecoveryError: The factory does not make an optimiser over these parameters.

    Source:
        Copies in float32: P. Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3.1.
    """

    def __init__(
        self,
        model: nn.Module,
        factory: OptimizerFactory | None = None,
        learning_rate: float | None = None,
        weight_decay: float | None = None,
    ) -> None:
        if factory is None:
            factory = DEFAULT
            learning_rate = DEFAULT_LEARNING_RATE if learning_rate is None else learning_rate
            weight_decay = DEFAULT_WEIGHT_DECAY if weight_decay is None else weight_decay
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.updated = [_in_float32(parameter) for parameter in self.parameters]
        self.copies = [parameter for parameter in self.updated if original(parameter) is not parameter]
        self.optimizer = _optimizer(factory, self.updated, learning_rate, weight_decay)
        self.optimizer.register_step_post_hook(self._write_back)
        self.rates = [group["lr"] for group in self.optimizer.param_groups]

    def make_dense(self) -> None:
        """Make sparse gradients dense: neither norms nor weight decay know others."""
        for parameter in self.parameters:
            if parameter.grad is not None and parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()

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
        for copy in self.copies:
            gradient = original(copy).grad
            copy.grad = None if gradient is None else gradient.to(copy)
        self.optimizer.step()
        for parameter in self.parameters:
            parameter.grad = None

    def _write_back(self, *_: Any) -> None:
        """Round what was updated; in a hook, so that hooks of all optimisers, as those of `masked`, find it done."""
        for copy in self.copies:
            original(copy).detach().copy_(copy.detach())


def original(updated: nn.Parameter) -> nn.Parameter:
    """The parameter of the model that an optimiser updates: what it was given, or what that is a wider copy of."""
    parameter: nn.Parameter = vars(updated).get(_ORIGINAL, updated)
    return parameter


def _in_float32(parameter: nn.Parameter) -> nn.Parameter:
    """The parameter itself, or a wider copy of one in 16 bits."""
    if parameter.dtype not in _ROUNDED:
        return parameter
    copy = nn.Parameter(parameter.detach().float())
    vars(copy)[_ORIGINAL] = parameter
    return copy


def _optimizer(
    factory: OptimizerFactory, parameters: list[nn.Parameter], learning_rate: float | None, weight_decay: float | None
) -> torch.optim.Optimizer:
    chosen = {} if learning_rate is None else {"lr": learning_rate}
    try:
        optimizer = factory(_groups(parameters, weight_decay), **chosen)
    except (TypeError, ValueError) as error:
        how = "".join(f", {name}={value}" for name, value in chosen.items())
        raise RecoveryError(
            f"optimizer={factory!r} cannot be called as optimizer(parameter_groups{how}): {error}; pass a class such as "
            "torch.optim.AdamW, or functools.partial(torch.optim.SGD, momentum=0.9)"
        ) from error
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise RecoveryError(f"optimizer={factory!r} made a {type(optimizer).__name__}, not a torch.optim.Optimizer")
    if _needs_closure(optimizer):
        raise RecoveryError(
            f"{type(optimizer).__name__} wants to compute the loss several times in one step, which fine-tuning does once; pass "
            "one that steps on gradients, such as torch.optim.AdamW, or your own training function"
        )
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    if held != {id(parameter) for parameter in parameters}:
        raise RecoveryError(
            f"optimizer={factory!r} made an optimiser over other parameters than the {len(parameters)} it was given; "
            "let it use its first argument, and freeze what shall not be trained with requires_grad_(False)"
        )
    return optimizer


def _needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Whether its step takes an argument that it cannot do without."""
    closure = signature(optimizer.step).parameters.get("closure")
    return closure is not None and closure.default is Parameter.empty


def _groups(parameters: list[nn.Parameter], weight_decay: float | None) -> list[dict[str, Any]]:
    if weight_decay is None:
        return [{"params": parameters}]
    decayed = [parameter for parameter in parameters if parameter.ndim >= 2]
    others = [parameter for parameter in parameters if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
