"""What training minimises: the loss of one batch."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError
from secateur.torch.batches import Loss, cross_entropy, is_out_of_memory, logits_of, run, split_batch
from secateur.torch.places import cause_of
from secateur.train.distill import Distill


@dataclass(frozen=True, slots=True)
class Objective:
    """The loss of a model on a batch: of the task, of the distance to a teacher, or of both.

    Args:
        loss: Of the task: `(the model's output as it is, targets) -> scalar`; None = cross-entropy of the logits, or, for a batch
            without targets, the `loss` in the model's output.
        distill: How to learn from the teacher; None = not at all.
        teacher: The model to learn from, in eval mode.
    """

    loss: Loss | None
    distill: Distill | None
    teacher: nn.Module | None

    def __call__(self, model: nn.Module, batch: Any, where: str) -> Tensor:
        """Compute the loss.

        Args:
            model: The model to train; inputs and targets are moved to the device of its parameters.
            batch: What `split_batch` can split.
            where: Which batch it is, for error messages.

        Returns:
            A scalar that depends on the model's trainable parameters.

        Raises:
            DataError: The batch does not fit the model or the loss.
        """
        try:
            inputs, targets = split_batch(batch)
            output = run(model, inputs)
            loss = self._whole(output, inputs, to_device(targets, next(model.parameters()).device))
        except DataError as error:
            raise DataError(f"{where}: {error}") from error
        if not loss.requires_grad:
            raise DataError(
                f"{where}: the loss does not depend on any trainable parameter; compute it from the model's output "
                "with torch operators alone, without detach() or item()"
            )
        return loss

    def _whole(self, output: Any, inputs: Any, targets: Any) -> Tensor:
        if self.distill is None or self.teacher is None:
            return self._task(output, targets)
        with torch.no_grad():
            answer = run(self.teacher, inputs)
        student = logits_of(output)
        distance = self.distill(student, logits_of(answer).to(student.device))
        if self.distill.weight == 1:
            return distance
        return (1 - self.distill.weight) * self._task(output, targets) + self.distill.weight * distance

    def _task(self, output: Any, targets: Any) -> Tensor:
        if self.loss is not None:
            return _scalar(_computed(self.loss, output, targets))
        if targets is not None:
            return cross_entropy(output, targets)
        own = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if own is None:
            raise DataError(
                f"the batch has no targets, and the model's output ({type(output).__name__}) no loss; give batches "
                "(inputs, targets), labels among the keyword arguments, or learn from the teacher alone: Distill(weight=1)"
            )
        return _scalar(own)


def to_device(value: Any, device: torch.device) -> Any:
    """The same value with all of its tensors on a device.

    Args:
        value: Tensors, in tuples, lists and mappings.
        device: Where they go.

    Returns:
        A value of the same structure.
    """
    return pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), value)


def _computed(loss: Loss, output: Any, targets: Any) -> Any:
    try:
        return loss(output, targets)
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"the loss cannot be computed: {cause_of(error)}; the model returned "
            f"{_described(output)}, and the targets are {_described(targets)}"
        ) from error


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        raise DataError(f"the loss is {_described(loss)}; it must be a tensor with one number, such as a mean")
    return loss.reshape(())


def _described(value: Any) -> str:
    """A type, with the shape and dtype of a tensor."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)} and type {value.dtype}"
    return f"a {type(value).__name__}"
