"""What is refused before training begins: data, models and teachers that it cannot end well with."""

from collections.abc import Iterable, Iterator, Mapping, Sized

import torch
from torch import Tensor, nn

from secateur.errors import DataError, ModelError, RecoveryError
from secateur.torch.batches import Batches


def check_data(data: Batches, epochs: int) -> None:
    """Raise unless the data can be gone through `epochs` times.

    Raises:
        DataError: It cannot be iterated, is empty, or can be iterated only once although there are more epochs.
    """
    if isinstance(data, (Tensor, Mapping)) or not isinstance(data, Iterable):
        raise DataError(
            f"data is an iterable of batches, such as a list or a DataLoader; got one {type(data).__name__}"
        )
    if isinstance(data, Iterator) and epochs > 1:
        raise DataError(
            f"data is a {type(data).__name__}, which can be iterated only once: after the first of {epochs} epochs it would be "
            "empty; give a list of batches, a DataLoader, or another object that starts anew each time it is iterated"
        )
    if length(data) == 0:
        raise DataError(f"data, a {type(data).__name__}, has no batches; give at least one")


def length(data: Batches) -> int | None:
    """The number of batches; None if the data does not say."""
    try:
        return len(data) if isinstance(data, Sized) else None
    except TypeError:  # a DataLoader has __len__, but not always a length
        return None


def check_model(model: nn.Module) -> None:
    """Raise unless the model can be trained.

    Raises:
        ModelError: It is no module, has no values, or not-finite ones.
        RecoveryError: It has no trainable parameter.
    """
    if not isinstance(model, nn.Module):
        raise ModelError(f"the model to train is a {type(model).__name__}, not a torch.nn.Module")
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise RecoveryError(
            f"nothing to train: {type(model).__name__} has no parameter with requires_grad=True; "
            "set it where training may change them"
        )
    if any(parameter.is_meta for parameter in model.parameters()):
        raise ModelError(
            f"{type(model).__name__} has parameters on the meta device, without values; load its weights first"
        )
    bad = not_finite(model)
    if bad:
        raise ModelError(f"{bad!r} of {type(model).__name__} holds NaN or infinite values; training would spread them")


def not_finite(model: nn.Module) -> str | None:
    """The name of the first parameter with a NaN or infinite value, or None."""
    with torch.no_grad():
        return next((name for name, p in model.named_parameters() if not torch.isfinite(p).all()), None)


def check_teacher(model: nn.Module, teacher: nn.Module | None) -> None:
    """Raise unless the teacher can teach, and stays what it is while the model is trained.

    Raises:
        RecoveryError: There is none, it is the model itself, or it shares trainable parameters with it.
        ModelError: It has not-finite values.
    """
    if not isinstance(teacher, nn.Module):
        raise RecoveryError(
            f"distillation needs a teacher, the dense model, and got a {type(teacher).__name__}; pass teacher=..., "
            "or train without it: FineTune(distill=None)"
        )
    if teacher is model:
        raise RecoveryError(
            "the teacher is the model that is trained; pass the dense model, of which compact() made a copy"
        )
    theirs = {id(parameter) for parameter in teacher.parameters()}
    shared = next((name for name, p in model.named_parameters() if p.requires_grad and id(p) in theirs), None)
    if shared is not None:
        raise RecoveryError(
            f"the model shares the trainable parameter {shared!r} with its teacher, which would change with it; "
            "pass copy.deepcopy(teacher)"
        )
    if bad := not_finite(teacher):
        raise ModelError(f"{bad!r} of the teacher holds NaN or infinite values; it has nothing to teach")
