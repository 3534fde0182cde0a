"""What an entry of the zoo is: a tiny model, how to run it, and the axes it must be found to have."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from secateur.axes import Kind

Inputs = Tensor | tuple[Tensor, ...] | dict[str, Tensor]
"""One tensor is the only argument, a tuple the positional arguments, a dict the keyword arguments."""


@dataclass(frozen=True, slots=True)
class ExpectedAxis:
    """An axis that a model has, worked out by hand.

    Args:
        slots: Every place where the units live, as `"<tensor or list of modules>:<dim>"`. Tied parameters go by the first
            name that `named_parameters` gives. A unit may own several positions of a slot, and a slot may also hold
            positions that belong to no unit of this axis.
        units: How many units there are, at least 2.
        kind: What its units are.
        exact: False if a mean, variance, norm or softmax runs over the axis, or if zeroing the units' parameters
            leaves something of them behind.
    """

    slots: frozenset[str]
    units: int
    kind: Kind
    exact: bool = True


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A tiny model with all the axes it has; whatever is not in one of them must be found frozen.

    Args:
        name: Unique, in snake case.
        build: Makes the model, in eval mode, the same one each time. No parameter or buffer along an axis is constant,
            so no proof can pass by accident.
        inputs: Makes the example inputs, the same ones each time, with batch 2.
        axes: Every axis the model has.
        numeric: False if the model has no values (it is on the meta device), so that it can be traced but not run.
        dtype: The dtype of the floating-point parameters, buffers and inputs as they are built.
    """

    name: str
    build: Callable[[], nn.Module]
    inputs: Callable[[], Inputs]
    axes: tuple[ExpectedAxis, ...]
    numeric: bool = True
    dtype: torch.dtype = torch.float32


def call(model: nn.Module, inputs: Inputs) -> object:
    """Run a model on the inputs of its entry.

    Args:
        model: The model of the entry.
        inputs: The entry's inputs, on the device and in the dtype of the model.

    Returns:
        What the model's `forward` returns.

    Example:
        >>> call(nn.Flatten(), torch.ones(2, 3, 4)).shape
        torch.Size([2, 12])
    """
    if isinstance(inputs, dict):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def in_float64(inputs: Inputs) -> Inputs:
    """Cast the floating-point tensors among the inputs to float64; indices stay as they are.

    Args:
        inputs: The inputs of an entry.

    Returns:
        The same structure.

    Example:
        >>> [x.dtype for x in in_float64((torch.ones(2), torch.tensor([1])))]
        [torch.float64, torch.int64]
    """
    if isinstance(inputs, dict):
        return {name: _double(x) for name, x in inputs.items()}
    return tuple(_double(x) for x in inputs) if isinstance(inputs, tuple) else _double(inputs)


def axis(kind: Kind, units: int, slots: str, *, exact: bool = True) -> ExpectedAxis:
    """State an axis briefly: slots are separated by spaces, and braces stand for alternatives, as in a shell.

    Args:
        kind: What its units are.
        units: How many units the axis has.
        slots: Such as `"conv.{weight,bias}:0 head.weight:1"`.
        exact: Whether removing a unit is the same as zeroing it.

    Returns:
        The axis.

    Example:
        >>> sorted(axis("channels", 6, "conv.{weight,bias}:0 head.weight:1").slots)
        ['conv.bias:0', 'conv.weight:0', 'head.weight:1']
    """
    return ExpectedAxis(frozenset(name for word in slots.split() for name in _alternatives(word)), units, kind, exact)


def randomised(model: Callable[[], nn.Module], seed: int = 0) -> Callable[[], nn.Module]:
    """A build function: the model in eval mode, with random parameters and running statistics, the same each time.

    Args:
        model: Makes the model; what it draws at random comes from `seed` too.
        seed: Of the global generator, whose state is put back afterwards.

    Returns:
        A function without arguments.

    Example:
        >>> build = randomised(lambda: nn.Linear(2, 3))
        >>> bool((build().weight == build().weight).all())
        True
    """

    def build() -> nn.Module:
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(seed)
            built = model()
            for module in built.modules():
                _randomise(module)
        return built.eval()

    return build


def normal(*shapes: tuple[int, ...]) -> Callable[[], Inputs]:
    """An inputs function: one float32 tensor of standard normal values for each shape.

    Args:
        *shapes: One shape gives one tensor, several give a tuple.

    Returns:
        A function without arguments.

    Example:
        >>> normal((2, 3))().shape
        torch.Size([2, 3])
    """

    def inputs() -> Inputs:
        generator = torch.Generator().manual_seed(1)
        tensors = tuple(torch.randn(shape, generator=generator) for shape in shapes)
        return tensors if len(tensors) > 1 else tensors[0]

    return inputs


def tokens(vocabulary: int, *shape: int) -> Callable[[], Inputs]:
    """An inputs function: one int64 tensor of token numbers.

    Args:
        vocabulary: How many tokens there are.
        *shape: The shape of the tensor.

    Returns:
        A function without arguments.

    Example:
        >>> tokens(11, 2, 5)().shape
        torch.Size([2, 5])
    """
    return lambda: torch.randint(vocabulary, shape, generator=torch.Generator().manual_seed(1))


def _double(x: Tensor) -> Tensor:
    return x.double() if x.is_floating_point() else x


def _alternatives(word: str) -> list[str]:
    parts = re.split(r"\{([^}]*)\}", word)
    return [
        "".join(choice) for choice in product(*(part.split(",") if i % 2 else [part] for i, part in enumerate(parts)))
    ]


def _randomise(module: nn.Module) -> None:
    """Matrices keep the size of what they read; vectors (biases, gains) are positive, so that few units are dead."""
    if isinstance(module, ParametrizationList):  # spectral norm keeps vectors that belong to these very values
        return
    for parameter in module.parameters(recurse=False):
        if parameter.ndim > 1:
            parameter.normal_(0, parameter[0].numel() ** -0.5)
        else:
            parameter.uniform_(0.2, 1.2)
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
        assert module.running_mean is not None
        assert module.running_var is not None
        module.running_mean.normal_(0, 0.5)
        module.running_var.uniform_(0.5, 2)
