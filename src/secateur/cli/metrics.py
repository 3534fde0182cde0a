"""How good a model is, for jobs that name a measure instead of bringing their own."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError
from secateur.torch.batches import logits_of, split_batch
from secateur.torch.capture import call

LEFT_OUT = -100
"""Targets of this value count for nothing, as in torch's cross-entropy."""


def accuracy(model: nn.Module, batches: Iterable[Any]) -> tuple[int, int]:
    """How many of the targets the model gives the highest logit to, and how many there are.

    Args:
        model: In eval mode. Inputs and targets are moved to its device.
        batches: Of `(inputs, targets)`: targets are classes, int64, shaped like the logits without their classes.

    Returns:
        Both numbers, the second above 0.

    Raises:
        DataError: There are no batches, or targets that do not fit.
    """
    right = total = 0
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    for batch in batches:
        inputs, targets = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), split_batch(batch))
        logits = logits_of(call(model, inputs))
        answers = logits.argmax(_class_dim(logits, targets))
        counted = targets != LEFT_OUT
        right += int((answers == targets)[counted].sum())
        total += int(counted.sum())
    if not total:
        raise DataError("there is nothing to evaluate on: the data gave no batch with targets; give at least one")
    return right, total


def _class_dim(logits: Tensor, targets: Any) -> int:
    if not isinstance(targets, Tensor):
        raise DataError(f"accuracy needs batches of (inputs, targets); the targets are a {type(targets).__name__}")
    for dim in (-1, 1):
        if logits.ndim > 1 and logits.shape[:dim] + logits.shape[dim:][1:] == targets.shape:
            return _checked(dim, logits, targets)
    raise DataError(
        f"targets of shape {list(targets.shape)} are no classes for logits of shape {list(logits.shape)}; "
        "accuracy needs one whole number for each"
    )


def _checked(dim: int, logits: Tensor, targets: Tensor) -> int:
    classes = logits.shape[dim]
    wrong = targets[(targets != LEFT_OUT) & ((targets < 0) | (targets >= classes))]
    if wrong.numel():
        raise DataError(f"the target {wrong[0].item()} is none of the model's {classes} classes, 0 to {classes - 1}")
    return dim
