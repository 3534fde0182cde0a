"""What training minimises: the loss of one batch."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from secateur.errors import DataError
from secateur.torch.batches import split_batch
from secateur.torch.capture import call, line_of
from secateur.train.distill import Distill, logits_of

Loss = Callable[[Any, Any], Tensor]
"""`(the model's output as it is, targets) -> a scalar`."""


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a model on a batch: of the task, of the distance to a teacher, or of both.

    Args:
        loss: Of the task; None = the model's own `.loss` where it gives one, else cross-entropy of its logits.
        distill: How to learn from the teacher; None = not at all.
        teacher: The model to learn from, in eval mode.
    """

    loss: Loss | None
    distill: Distill | None
    teacher: nn.Module | None

    def __call__(self, model: nn.Module, batch: Any, where: str) -> Tensor:
        """Compute the loss.

        Args:
            model: The model to train; inputs and targets are moved to its device.
            batch: What `split_batch` can split.
            where: Which batch it is, for error messages.

        Returns:
            A scalar that depends on the model's trainable parameters.

        Raises:
            DataError: The batch does not fit the model or the loss.
        """
        loss = self._whole(model, batch, where)
        if not loss.requires_grad:
            raise DataError(
                f"the loss of {where} does not depend on any trainable parameter; compute it from the model's output "
                "with torch operators alone, without detach() or item()"
            )
        return loss

    def _whole(self, model: nn.Module, batch: Any, where: str) -> Tensor:
        device = device_of(model)
        inputs, targets = split_batch(batch)
        inputs, targets = to_device(inputs, device), to_device(targets, device)
        output = _run(model, inputs, where)
        if self.distill is None or self.teacher is None:
            return self._task(output, targets, where)
        with torch.no_grad():
            answer = _run(self.teacher, to_device(inputs, device_of(self.teacher, device)), where)
        distance = self.distill(logits_of(output), logits_of(answer).to(device))
        if self.distill.weight == 1:
            return distance
        return (1 - self.distill.weight) * self._task(output, targets, where) + self.distill.weight * distance

    def _task(self, output: Any, targets: Any, where: str) -> Tensor:
        if targets is None or self.loss is None:
            own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
            if isinstance(own, Tensor):
                return _scalar(own, "the model's own loss", where)
        if targets is None:
            raise DataError(
                f"{where} has no targets, and the model's output ({type(output).__name__}) no .loss; give batches "
                "(inputs, targets), or learn from the teacher alone with Distill(weight=1)"
            )
        loss = self.loss or cross_entropy
        try:
            return _scalar(loss(output, targets), "loss", where)
        except (RuntimeError, ValueError, TypeError, IndexError) as error:
            raise DataError(
                f"the loss cannot be computed for {where} with targets {describe(targets)}: {error} ({line_of(error)}); "
                "check that the targets are what the loss takes"
            ) from error


def cross_entropy(output: Any, targets: Tensor) -> Tensor:
    """Cross-entropy of a model's logits, a mean over the examples.

    Args:
        output: What holds logits, `[batch, classes, ...]`, at least two classes.
        targets: Classes, int64 `[batch, ...]` (-100 = left out), or probabilities shaped like the logits.

    Returns:
        A scalar.

    Raises:
        DataError: Labels or logits that it is not made for.
    """
    logits = logits_of(output)
    return F.cross_entropy(logits, targets)


def device_of(model: nn.Module, default: torch.device | None = None) -> torch.device:
    """Where a model's first parameter is; `default`, or the CPU, for a model without parameters."""
    first = next(model.parameters(), None)
    return first.device if first is not None else default or torch.device("cpu")


def to_device(value: Any, device: torch.device) -> Any:
    """The same value with all of its tensors on a device."""
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def describe(value: Any) -> str:
    """The shapes and dtypes of the tensors in a value."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {describe(item)}" for key, item in value.items()) + "}"
    if isinstance(value, Tensor):
        return f"{list(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(describe(item) for item in value)})"
    return type(value).__name__


def _run(model: nn.Module, inputs: Any, where: str) -> Any:
    try:
        return call(model, inputs)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise DataError(
            f"{type(model).__name__} cannot be run on {where}, {describe(inputs)}: {type(error).__name__}: {error} "
            f"({line_of(error)}); check that model(inputs) works in train mode, also on the last batch, which may be smaller"
        ) from error


def _scalar(loss: Any, what: str, where: str) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise DataError(
            f"the {what} of {where} is {describe(loss)}; it must be a tensor with one number, such as a mean"
        )
    return loss.reshape(())
