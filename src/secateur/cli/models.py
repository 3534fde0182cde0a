"""What MODEL on a command line or in a job means: a model, with inputs to run it on."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from secateur.artefact import load_weights
from secateur.cli import libraries
from secateur.cli.inputs import parse_inputs
from secateur.cli.objects import call_object, find_object
from secateur.errors import JobError, ModelError
from secateur.torch import Inputs

LIBRARIES = {"timm": libraries.timm, "torchvision": libraries.torchvision, "hf": libraries.hugging_face}
"""Where `LIBRARY/NAME` comes from."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A model to look at, to prune or to measure.

    Attributes:
        name: What to call it.
        model: The model, in eval mode.
        inputs: What one call of it takes.
    """

    name: str
    model: nn.Module
    inputs: Inputs


def load_model(
    spec: str,
    *,
    inputs: tuple[str, ...] = (),
    weights: str | None = None,
    folder: Path = Path(),
    drawn: bool = True,
) -> Subject:
    """Build a model.

    Args:
        spec: `module:factory`, `path/file.py:factory`, `timm/NAME`, `torchvision/NAME` or `hf/FOLDER`. A factory is a function
            or class without arguments that gives a module, or a module and its example inputs.
        inputs: The shapes of its arguments, as `parse_inputs` takes them; by default the factory's own or the library's.
        weights: A file with its weights, safetensors or a state dict of torch; by default it stays as it was built.
        folder: What paths are relative to.
        drawn: Whether inputs of given shapes have values, for a model that runs on them.

    Raises:
        JobError: The specification is not understood, or no inputs are known.
        MissingExtraError: The library is not installed.
        ModelError: The factory fails, or gives no model.
        ArtefactError: The weights are damaged, or another model's.
    """
    library, slash, name = spec.partition("/")
    if slash and library in LIBRARIES and not name.partition(":")[0].endswith(".py"):
        model, own = LIBRARIES[library](name, folder, known=bool(inputs))
        title = name.rstrip("/").rpartition("/")[2]
    else:
        model, own = _from_factory(spec, folder)
        title = type(model).__name__
    model.eval()
    if weights is not None:
        load_weights(model, folder / weights)
    given = parse_inputs(inputs, drawn=drawn) if inputs else own
    if given is None:
        raise JobError(
            f"{spec} says nothing of its inputs: give their shapes, such as 1x3x224x224, or let it return (model, inputs)"
        )
    return Subject(title, model, given)


def _from_factory(spec: str, folder: Path) -> tuple[nn.Module, Inputs | None]:
    what = "the model"
    found = find_object(spec, folder, what)
    made: Any = found if isinstance(found, nn.Module) else call_object(found, spec, what)
    model, own = made if isinstance(made, tuple) and len(made) == 2 else (made, None)
    if not isinstance(model, nn.Module):
        raise ModelError(f"{spec} gives a {_kind(made)}; let it return an nn.Module, or (module, example_inputs)")
    if own is not None and not isinstance(own, (Tensor, tuple, Mapping, list)):
        raise ModelError(
            f"{spec} gives example inputs of type {_kind(own)}; make it a tensor, a tuple or a dict of arguments, or a list"
        )
    return model, own


def _kind(value: object) -> str:
    return "None" if value is None else type(value).__name__
