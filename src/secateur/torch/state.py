"""What a model is besides its code: its parameters and buffers by name, and the modes of its modules."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn


def state_of(model: nn.Module, *, each_name: bool = False) -> dict[str, Tensor]:
    """Parameters and then buffers by name, those that are not in the state dict too.

    Args:
        model: Any module.
        each_name: Tied tensors under each of their names; otherwise once, under their first.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.BatchNorm1d(2, affine=False))
        >>> model.append(model[0])[0] is model[2]
        True
        >>> list(state_of(model))
        ['0.weight', '1.running_mean', '1.running_var', '1.num_batches_tracked']
        >>> list(state_of(model, each_name=True))[:2]
        ['0.weight', '2.weight']
    """
    parameters: dict[object, tuple[str, Tensor]] = {}
    buffers: dict[object, tuple[str, Tensor]] = {}
    for path, module in model.named_modules(remove_duplicate=not each_name):
        for found, tensors in ((parameters, module._parameters), (buffers, module._buffers)):
            for short, tensor in tensors.items():
                if tensor is not None:
                    name = f"{path}.{short}" if path else short
                    found.setdefault(name if each_name else id(tensor), (name, tensor))
    return dict((*parameters.values(), *buffers.values()))


@contextmanager
def same_modes(*models: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode it was in."""
    modes = [(module, module.training) for model in models for module in model.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@contextmanager
def evaluating(*models: nn.Module | None) -> Iterator[None]:
    """Eval mode inside; afterwards every module is in the mode it was in."""
    there = [model for model in models if model is not None]
    with same_modes(*there):
        for model in there:
            model.eval()
        yield
