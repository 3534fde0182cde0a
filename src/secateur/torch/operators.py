"""The operators of a run, and whether the compact model runs those of the dense model: the same ones, with the same numbers.

Where a norm hides what outputs would show, only what is computed can be compared. It also shows what Python uses without
telling anybody: `range(self.heads)`, a place in a list, `math.log(self.width)`.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from secateur.torch.provenance import name_of
from secateur.torch.recorder import Recorder
from secateur.torch.schema import bound, operands, schema_of

_LAYOUT = frozenset({"view", "_unsafe_view", "clone", "contiguous", "detach", "alias", "_reshape_alias"})
"""Operators that change no value: whether torch needs them depends on how memory happens to lie."""

_WHOLE = frozenset(
    (  # noqa: SIM905 - names, read as prose
        "linear matmul __matmul__ __rmatmul__ einsum tensordot inner multi_dot chain_matmul scaled_dot_product_attention"
    ).split()
)
"""Functions that torch computes in one way or another, as sizes and memory have it: each counts as one operator."""

PLACES = frozenset({"index", "other"})
"""Arguments by which code picks what stands at a place."""

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator of a run.

    Attributes:
        name: What it is called.
        numbers: Its arguments that are no sizes, as text; tensors by their dtype.
        sizes: Its arguments that are sizes, as text.
        dim: The dim that its sizes are about, where it has such an argument.
        operands: The shapes of the tensors that it took.
        results: The shapes of the tensors that it gave.
    """

    name: str
    numbers: Mapping[str, str]
    sizes: Mapping[str, str]
    dim: int | None
    operands: tuple[Shape, ...]
    results: tuple[Shape, ...]


@dataclass(frozen=True, slots=True)
class Step:
    """One operator of the dense model's run, and what the compact model's run needs of it.

    Attributes:
        operator: What ran.
        first: The place of its first result among `Network.results`.
        out: What it gave, where the code can look at values and this is made of numbers, integers or truth values, but not of
            places on an axis, which may go; else None.
        where: The line of the user's code, and the module.
        entries: The place among `Network.results` of the entries of lists that it ran for, each one dim of one position. What
            comes next are the positions before the one that it picked, or the dim each position of which became a result.
        gathers: It put together what several entries made; where some go, it may go with any of them.
    """

    operator: Operator
    first: int
    out: Any
    where: str
    entries: int
    gathers: bool


@dataclass(slots=True)
class Recording:
    """The dense model's run.

    Attributes:
        has_values: It ran on real tensors, because the code looks at values.
        steps: Its operators, in order.
    """

    has_values: bool = False
    steps: list[Step] = field(default_factory=list)

    def add(self, recorder: Recorder, operator: Operator, out: Any) -> None:
        """The next operator, after its rule was applied."""
        results = recorder.run.results
        readable = self.has_values and _is_readable(out) and not any(map(recorder.points, operands((out,))))
        readable = readable and not recorder.checks_places
        played = pytree.tree_map_only(Tensor, Tensor.clone, out) if readable else None
        first, given, ran = len(results), operands((out,)), recorder.entries
        self.steps.append(Step(operator, first, played, recorder.where(), first + len(given), ran.gathers))
        results += [*map(recorder.known, given), tuple(np.array([[label]]) for label in ran.running), ran.picked]


def _is_readable(out: Any) -> bool:
    """Whether a model's code can read the results and act upon them: numbers, integers and truth values."""
    leaves = pytree.tree_leaves(out)
    return not any(isinstance(leaf, Tensor) and (leaf.is_floating_point() or leaf.is_complex()) for leaf in leaves)


class WholeFunctions(TorchFunctionMode):
    """Knows when torch is inside a function that counts as one operator, and tells of it afterwards.

    Args:
        seen: Called with the operator and its result.
    """

    def __init__(self, seen: Callable[[Operator, Any], None]) -> None:
        super().__init__()
        self.seen, self.inside = seen, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, name_of(func)
        if self.inside or name not in _WHOLE:
            return func(*args, **kwargs)
        self.inside = True
        try:
            out = func(*args, **kwargs)
        finally:
            self.inside = False
        numbers = {str(key): _text(value) for key, value in (*enumerate(args), *kwargs.items())}
        if name == "scaled_dot_product_attention" and kwargs.get("scale") is None:
            query = kwargs["query"] if "query" in kwargs else args[0]
            numbers["scale"] = str(query.shape[-1] ** -0.5)
        self.seen(_operator(name, numbers, {}, None, (*args, *kwargs.values()), out), out)
        return out


def operator_of(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Operator | None:
    """The operator of a call; None where it only lays out memory, or adds nothing, as `sum` does to what comes first."""
    schema = schema_of(func)
    arguments = bound(func, args, kwargs)
    if schema.name in _LAYOUT or (
        schema.name == "add" and type(arguments["other"]) in (int, float) and arguments["other"] == 0
    ):
        return None
    numbers = {name: _text(value) for name, value in arguments.items() if name not in schema.sizes}
    sizes = {name: _text(value) for name, value in arguments.items() if name in schema.sizes}
    dim = arguments.get("dim")
    return _operator(schema.name, numbers, sizes, dim if isinstance(dim, int) else None, arguments.values(), out)


def _operator(
    name: str, numbers: Mapping[str, str], sizes: Mapping[str, str], dim: int | None, taken: Iterable[Any], out: Any
) -> Operator:
    taken_shapes, shapes = (tuple(tuple(tensor.shape) for tensor in operands(values)) for values in (taken, (out,)))
    return Operator(name, numbers, sizes, dim, taken_shapes, shapes)


def other_than(dense: Operator, ours: Operator, predicted: Sequence[Shape | None]) -> str:
    """What the compact model's operator does otherwise than it should; nothing where it is right.

    Args:
        dense: The operator of the dense model.
        ours: That of the compact model, in the same place.
        predicted: The shapes that the plan predicts for the results, None for those that nothing is known of.
    """
    if ours.name != dense.name:
        return f"runs {ours.name} where the model runs {dense.name}"
    for name, number in dense.numbers.items():
        if ours.numbers.get(name) != number:
            return f"runs {ours.name} with {name}={ours.numbers.get(name)} where the model has {name}={number}"
    if len(ours.results) != len(dense.results):
        return f"gets {len(ours.results)} results of {ours.name} where the model gets {len(dense.results)}"
    for shape, expected in zip(ours.results, predicted, strict=True):
        if expected is not None and shape != expected:
            return f"gets a result of shape {list(shape)} of {ours.name} where {list(expected)} was predicted"
    for name, size in dense.sizes.items():
        if ours.sizes.get(name) != size and not _is_cut(dense, ours):
            return f"runs {ours.name} with {name}={ours.sizes.get(name)} where the model has {name}={size}, and nothing is cut"
    return ""


def _is_cut(dense: Operator, ours: Operator) -> bool:
    """Whether anything shrinks along the dim that an operator's sizes are about, or anywhere where it names none."""
    pairs = zip((*dense.operands, *dense.results), (*ours.operands, *ours.results), strict=False)
    if dense.dim is None:
        return any(before != after for before, after in pairs)
    along = slice(dense.dim, dense.dim + 1 or None)
    return any(before[along] != after[along] for before, after in pairs)


def _text(value: Any) -> str:
    """An argument as text, without what differs from copy to copy."""
    if isinstance(value, Tensor):
        return str(value.dtype)
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, Tensor) for item in value):  # as many as a list has entries
            return f"[{', '.join(sorted({_text(item) for item in value}))}]"
        return f"[{', '.join(map(_text, value))}]"
    return type(value).__name__ if isinstance(value, torch.Generator) else str(value)
