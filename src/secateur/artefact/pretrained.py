"""Saving a pruned model of `transformers` in that library's own format, where its layers came out alike.

Its classes build every layer from one configuration, so a configuration must be found that gives the pruned model. The class is
built from one whose integers remember where they come from: each size of a parameter is then an expression of them, and the
sizes of the pruned model are equations.
"""

import copy
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from secateur.artefact.match import class_name, listed
from secateur.axes import Attribute, Expression
from secateur.axes.sizes import attributes_of, describe, evaluate, invert
from secateur.errors import ArtefactError
from secateur.torch import Inputs, plan_of
from secateur.torch.capture import call
from secateur.torch.settings import convert_integers
from secateur.torch.size import Size, Tracker
from secateur.torch.state import state_of
from secateur.torch.structure import tensors_in


def save_pretrained(model: nn.Module, folder: str | Path, example_inputs: Inputs) -> Any:
    """Save a pruned model of `transformers` as a folder that `from_pretrained` opens, without Secateur.

    Args:
        model: The compact model, in which each layer kept as many units as the others.
        folder: Where to; made where it is missing.
        example_inputs: Inputs of one call. What was saved is opened, and must give on them what `model` gives.

    Returns:
        The configuration that was found: a copy of the model's own with other integers.

    Raises:
        ArtefactError: No configuration of the class gives this model: its layers differ, or something that the class computes
            from its configuration would come out otherwise. Says which. Nothing was written then.
    """
    if not hasattr(model, "config") or not hasattr(type(model), "from_pretrained"):
        raise ArtefactError(f"{class_name(model)} is no model of transformers: save it with secateur.save")
    kind: Any = type(model)
    config = uniform_config(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as written:
        try:
            _with_config(model, config).save_pretrained(written)
        except Exception as error:  # transformers has its own rules for each architecture, and its own exceptions
            raise ArtefactError(
                f"transformers does not save {class_name(model)} with the configuration that its shapes ask for: {error}; "
                "keep other numbers of units, or save the model with secateur.save"
            ) from error
        opened = kind.from_pretrained(written, dtype="auto", local_files_only=True).train(model.training)
        _refuse_different(model, opened.to(next(model.parameters()).device), example_inputs)
        for path in Path(written).iterdir():
            path.replace(folder / path.name)
    return config


def uniform_config(model: nn.Module) -> Any:
    """The configuration from which the class of `model` builds a model of its shapes.

    Args:
        model: A compact model with the configuration of the dense one in its attribute `config`.

    Returns:
        A copy of its configuration with other integers.

    Raises:
        ArtefactError: There is none; names the tensors whose sizes contradict each other.
    """
    try:
        return _found(model, model.config)
    except ArtefactError as error:
        spelt_out = _with_sizes_left_out(type(model), model.config)
        if spelt_out is None:
            raise
        try:
            return _found(model, spelt_out)
        except ArtefactError:
            raise error from None


def _found(model: nn.Module, config: Any) -> Any:
    pattern, made = _built(type(model), config)
    shapes = list(_shape_equations(model, pattern, made))
    _refuse_contradictions(model, shapes)
    values = _solved(shapes, list(_kept_equations(model, pattern)))
    found = _with_integers(config, lambda place: values.get(place, place.value))
    with torch.device("meta"):
        built = type(model)(found).state_dict()
    wrong = [
        f"{name} has {list(tensor.shape)} in the model, {list(built[name].shape) if name in built else 'no place'} there"
        for name, tensor in model.state_dict().items()
        if name not in built or built[name].shape != tensor.shape
    ]
    if wrong:
        changed = ", ".join(f"{place}={n}" for place, n in values.items() if n != place.value) or "no other integers"
        raise ArtefactError(
            f"no configuration of {class_name(model)} gives the shapes of the pruned model; the nearest has {changed}, where "
            f"{listed(wrong)}; shrink alike what it makes one from the other, or save the model with secateur.save"
        )
    return found


def _with_sizes_left_out(kind: type[nn.Module], config: Any) -> Any | None:
    """The configuration with a number for each size that it leaves to the class to work out; None if it leaves none."""
    spelt_out = copy.deepcopy(config)
    for name in [name for name, value in vars(config).items() if value is None]:
        vars(spelt_out)[name] = _STAND_IN
        try:
            _, made = _built(kind, spelt_out)
        except Exception:  # noqa: BLE001  what the class makes of a number there is its own affair: it takes none
            vars(spelt_out)[name] = None
        else:
            sizes = [size for _, sizes in made.values() for size in sizes if isinstance(size, Size)]
            if not any(a.name == f"config.{name}" for size in sizes for a in attributes_of(size.expression)):
                vars(spelt_out)[name] = None
    return spelt_out if vars(spelt_out) != vars(config) else None


_STAND_IN = 8
"""Of the sizes that are looked for, before they are known."""


class Equation(NamedTuple):
    """`expression`, of integers of the configuration, is `value` in the pruned model, at `where`."""

    expression: Expression
    value: int
    where: str


Made = dict[int, tuple[object, Sequence[int]]]
"""By the identity of a tensor's memory: the memory, and the sizes that the code asked for."""


def _built(kind: type[nn.Module], config: Any) -> tuple[nn.Module, Made]:
    """A model without values, whose integers remember their places in the configuration."""
    sized = _with_integers(config, lambda place: Size(place.value, place, _SILENT))
    watch = _WatchCreation()
    with torch.device("meta"), watch:
        return kind(sized), watch.made


class _WatchCreation(TorchFunctionMode):
    """Notes the sizes of the tensors that the code makes; a parameter shares the memory of what it was made of."""

    def __init__(self) -> None:
        super().__init__()
        self.made: Made = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and args and not isinstance(args[0], Tensor):
            sizes = args[0] if isinstance(args[0], (tuple, list)) else args
            sizes = sizes[: out.ndim]
            if all(isinstance(n, int) for n in sizes) and [int.__add__(n, 0) for n in sizes] == list(out.shape):
                storage = out.untyped_storage()
                self.made[id(storage)] = (storage, sizes)
        return out


_SILENT = Tracker(lambda _: None, lambda *_: None)


def _with_integers(config: Any, integer: Any) -> Any:
    """A copy of a configuration, with other integers."""
    holder: Any = nn.Module()
    holder.config = copy.deepcopy(config)
    convert_integers(holder, lambda name, index, value: integer(Attribute("", name, index, int(value))))
    return holder.config


def _with_config(model: nn.Module, config: Any) -> Any:
    """The same modules under a top that holds another configuration."""
    top = copy.copy(model)
    vars(top)["config"] = config
    return top


def _shape_equations(model: nn.Module, pattern: nn.Module, made: Made) -> Iterator[Equation]:
    """The sizes of the tensors, as far as the code of the class took them from its configuration."""
    ours = state_of(model, each_name=True)
    for name, tensor in state_of(pattern, each_name=True).items():
        _, sizes = made.get(id(tensor.untyped_storage()), (None, ()))
        for d, size in enumerate(sizes):
            if isinstance(size, Size) and name in ours and ours[name].ndim == len(sizes):
                yield Equation(size.expression, ours[name].shape[d], f"{name}:{d}")


def _kept_equations(model: nn.Module, pattern: nn.Module) -> Iterator[Equation]:
    """The integers that modules keep, those that pruning changed first; what no run reads may be out of date."""
    changed = _changed(model)
    ours = dict(model.named_modules())
    found = []
    for path, module in pattern.named_modules():
        for name, size in vars(module).items():
            kept = getattr(ours.get(path), name, None)
            if isinstance(size, Size) and isinstance(kept, int):
                found.append(((path, name) not in changed, Equation(size.expression, kept, f"{path}.{name}")))
    yield from (equation for _, equation in sorted(found, key=lambda pair: pair[0]))


def _changed(model: nn.Module) -> set[tuple[str, str]]:
    """Which modules' integers pruning changed."""
    plan = plan_of(model)
    return {(a.module, a.name) for a in plan.attributes} if plan else set()


def _refuse_contradictions(model: nn.Module, equations: Sequence[Equation]) -> None:
    wanted: dict[Expression, dict[int, list[str]]] = {}
    for expression, value, where in equations:
        wanted.setdefault(expression, {}).setdefault(value, []).append(where)
    for expression, places in wanted.items():
        if len(places) > 1:
            each = "; ".join(f"{value} for {listed(names)}" for value, names in sorted(places.items()))
            raise ArtefactError(
                f"the layers of {class_name(model)} differ, and its configuration has one {describe(expression)} for all: "
                f"it would have to be {each}; keep as many units in each, or save the model with secateur.save"
            )


def _solved(shapes: Sequence[Equation], kept: Sequence[Equation]) -> dict[Attribute, int]:
    """The configuration's integers: from sizes where these say enough, then from what modules keep, else as they were."""
    values: dict[Attribute, int] = {}
    while True:
        known = next(
            (
                solution
                for expression, value, _ in (*shapes, *kept)
                if len(attributes_of(expression) - values.keys()) == 1
                and (solution := invert(expression, value, values, _no_dims)) is not None
                and evaluate(expression, values | dict([solution]), _no_dims) == value
            ),
            None,
        )
        if known is None:
            return values
        values.update([known])


def _no_dims(dim: object) -> int:
    raise AssertionError(f"a configuration has no dims: {dim}")


def _refuse_different(model: nn.Module, opened: nn.Module, inputs: Inputs) -> None:
    """Compare what was opened again with the model: buffers and numbers that the class computes, then the outputs."""
    wrong = [
        f"{name}, which {'was pruned' if a.shape != b.shape else 'has other values'}"
        for (name, a), b in zip(model.named_buffers(), opened.buffers(), strict=True)
        if not torch.equal(a, b)
    ]
    changed, theirs = _changed(model), dict(opened.named_modules())
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            other = vars(theirs[path]).get(name, value) if path in theirs else value
            if (type(value) is float or (path, name) in changed) and value != other:
                wrong.append(f"{path}.{name}, which is {value} in the pruned model and {other} in a new one")
    with torch.no_grad():
        ours, again = tensors_in(call(model, inputs)), tensors_in(call(opened, inputs))
    if len(ours) == len(again) and all(map(torch.equal, ours, again)):
        return
    cause = f"; it computes {listed(wrong)}" if wrong else ""
    raise ArtefactError(
        f"{class_name(model)} built anew from a configuration gives other results than the pruned model{cause}; "
        "exclude the axes that these depend on, or save the model with secateur.save"
    )
