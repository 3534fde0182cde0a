"""Saving a pruned model, and loading it into the user's own class: all or nothing, both ways."""

import errno
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from secateur.artefact import sparse
from secateur.artefact.commit import commit, describe, locked
from secateur.artefact.dense import write
from secateur.artefact.manifest import MANIFEST, Artefact
from secateur.artefact.match import (
    class_name,
    dtype_name,
    fill,
    listed,
    plan_complaints,
    plan_not_applied,
    state_complaints,
    storable_state,
    ties_of,
)
from secateur.axes import Plan
from secateur.errors import ArtefactError, SecateurError
from secateur.torch import Inputs
from secateur.torch.apply import compact, plan_of
from secateur.torch.graph import graph_of, in_form


def save(
    model: nn.Module, folder: str | Path, plan: Plan | None = None, *, extra: Mapping[str, Any] | None = None
) -> Artefact:
    """Save a model, pruned or dense, as a folder of safetensors and JSON.

    Parameters and persistent buffers are saved, tied ones once; nothing else of the model is. A tensor with many zeros is stored
    without them, with a bitmap of at most a bit for each entry that says where its values lie: half of the weights in 16 bits
    take 56 % of the bytes, a tenth 14 %. Whoever is killed while saving, or runs out of space, leaves what the folder held
    before. The same model gives the same bytes, with the same zlib.

    Args:
        model: The compact model.
        folder: Where to; made where it is missing. An artefact that lies there is replaced, other files stay.
        plan: What led from the dense model to this one; by default what `compact` remembers for it, and for others an empty plan.
        extra: Whatever else belongs to it, as JSON can hold it: accuracies, the job, a note.

    Returns:
        What was saved, as `read` gives it.

    Raises:
        ArtefactError: The model holds what cannot be saved or has not the plan's shapes, or the folder cannot be written.

    Example:
        >>> import tempfile
        >>> from secateur.artefact import save
        >>> save(torch.nn.Linear(3, 2), tempfile.mkdtemp(), extra={"accuracy": 0.75}).tensors["weight"]
        StoredTensor(dtype='float32', shape=(2, 3), values=None, bitmap=None)
    """
    folder = Path(folder)
    if plan is None:
        plan = plan_of(model) or Plan(axes=(), tensors=())
    if wrong := list(plan_not_applied(model, plan)):
        raise ArtefactError(
            f"{class_name(model)} is not the model that the plan leads to: {listed(wrong)}; save what compact(model, plan) gave"
        )
    state = storable_state(model)
    ties = ties_of(state)
    tensors = {name: tensor for name, tensor in state.items() if name not in ties}
    stored = {name: sparse.packed(name, tensor, tensors) for name, tensor in tensors.items()}
    artefact = partial(
        Artefact,
        plan=plan,
        model=class_name(model),
        form="module" if graph_of(model) is None else "graph",
        tensors={name: how for name, (how, _) in stored.items()},
        ties=ties,
        secateur=_version(),
        torch=str(torch.__version__),
        extra=_jsonable({} if extra is None else extra),
    )
    try:
        entries = {name: tensor for _, parts in stored.values() for name, tensor in parts.items()}
        weights = commit(folder, partial(write, entries), lambda weights: artefact(weights=weights).to_json())
    except (OSError, SafetensorError) as error:
        raise _unwritable(folder, error) from error
    return artefact(weights=weights)


def load(model: nn.Module, folder: str | Path, example_inputs: Inputs | None = None) -> nn.Module:
    """Load what `save` wrote, into the class it came from.

    Args:
        model: The dense model, built as it was built before pruning; its values do not matter. It stays as it is.
        folder: An artefact's folder.
        example_inputs: As for `as_graph`: where the artefact is one of a graph form, the model's is made with them.

    Returns:
        A new module of the model's class with the plan's shapes and the saved weights. Device, dtype, `requires_grad` and mode
        are those of `model`; where its floating-point dtype is not the saved one, the weights are converted to it.

    Raises:
        ArtefactError: There is no artefact, it is damaged or altered, it is from a newer format, or it is another model's.

    Example:
        >>> import tempfile
        >>> from secateur.artefact import load, save
        >>> small, folder = torch.nn.Linear(3, 2), tempfile.mkdtemp()
        >>> artefact = save(small, folder)
        >>> again = load(torch.nn.Linear(3, 2), folder)
        >>> torch.equal(again.weight, small.weight)
        True
    """
    folder = Path(folder)
    read(folder)  # with the precise complaint where there is nothing to lock
    try:
        with locked(folder, exclusive=False):
            artefact = read(folder)
            _refuse_damaged(folder, artefact)
            small = _compacted(_in_form(model, artefact, folder, example_inputs), artefact, folder, example_inputs)
            fill(small, _weights(folder, artefact))
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"the artefact in {folder} cannot be read: {error}; save the model again") from error
    except RuntimeError as error:
        raise ArtefactError(f"{class_name(model)} does not take the weights in {folder}: {error}") from error
    return small


def read(folder: str | Path) -> Artefact:
    """Read what an artefact says of itself: plan, shapes, versions, the user's extra. The weights are not touched.

    Raises:
        ArtefactError: There is no artefact, its manifest is damaged or altered, or it is from a newer format.
    """
    folder = Path(folder)
    try:
        text = (folder / MANIFEST).read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        missing = f"{folder} is a folder without {MANIFEST}" if folder.is_dir() else f"there is no folder {folder}"
        raise ArtefactError(f"no artefact: {missing}; name the folder that secateur's save wrote") from error
    except OSError as error:
        raise ArtefactError(f"the artefact in {folder} cannot be read: {error}") from error
    return Artefact.from_json(text, str(folder / MANIFEST))


def _refuse_damaged(folder: Path, artefact: Artefact) -> None:
    """Compare the weights file with what the manifest says of it. Nothing of the file's claimed sizes is allocated."""
    path = folder / artefact.weights.name
    if not path.is_file():
        raise ArtefactError(f"the weights {path} are missing; copy the whole folder again, or save the model again")
    found = describe(path)
    if found.size != artefact.weights.size:
        raise ArtefactError(
            f"the weights {path} have {found.size} bytes, the manifest says {artefact.weights.size}: truncated or altered; "
            "copy the whole folder again, or save the model again"
        )
    if found.sha256 != artefact.weights.sha256:
        raise ArtefactError(
            f"the weights {path} were altered: their sha256 is {found.sha256}, the manifest says {artefact.weights.sha256}; "
            "copy the whole folder again, or save the model again"
        )
    with safe_open(path, framework="pt") as file:  # which refuses tensors that do not fill the file exactly
        shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118  no dict
    expected = {
        entry: shape for name, tensor in artefact.tensors.items() for entry, shape in tensor.entries(name).items()
    }
    if shapes != expected:
        wrong = sorted(name for name in shapes.keys() | expected.keys() if shapes.get(name) != expected.get(name))
        raise ArtefactError(f"the weights {path} are not those of the manifest: {listed(wrong)}; save the model again")


def _in_form(model: nn.Module, artefact: Artefact, folder: Path, inputs: Inputs | None) -> nn.Module:
    """The model in the artefact's form."""
    if artefact.form == "module" and graph_of(model) is not None:
        raise ArtefactError(
            f"{folder} holds a {artefact.model} with its own code, not its graph form; pass the model itself"
        )
    if artefact.form == "graph" and graph_of(model) is None and inputs is None:
        raise ArtefactError(
            f"{folder} holds the graph form of a {artefact.model}; pass example_inputs= to load, as for as_graph"
        )
    return in_form(model, artefact.form, inputs)


def _compacted(model: nn.Module, artefact: Artefact, folder: Path, inputs: Inputs | None) -> nn.Module:
    """The model in the artefact's shapes, with whatever values, once it is certain that the artefact is this model's."""
    cause: SecateurError | None = None
    plan = artefact.plan
    if artefact.form == "graph" and inputs is not None:
        plan = replace(plan, attributes=())  # graphs of other versions of torch name them otherwise; they follow anew
    complaints = list(plan_complaints(model, plan))
    if not complaints:
        try:
            small = compact(model, plan, form=artefact.form, example_inputs=inputs)
        except SecateurError as error:
            complaints, cause = [str(error)], error
        else:
            complaints = list(state_complaints(storable_state(small), artefact))
    if not complaints:
        return small
    hint = "" if artefact.plan.axes else "; it holds no plan: save a pruned model with save(model, folder, plan)"
    raise ArtefactError(
        f"{folder} holds another model than {class_name(model)}: it was saved from {artefact.model}; {listed(complaints)}; "
        f"build the model as it was built before pruning{hint}"
    ) from cause


def _weights(folder: Path, artefact: Artefact) -> dict[str, Tensor]:
    with safe_open(folder / artefact.weights.name, framework="pt") as file:
        weights = {
            name: sparse.restored(name, {entry: file.get_tensor(entry) for entry in tensor.entries(name)}, tensor)
            for name, tensor in artefact.tensors.items()
        }
    wrong = [name for name, stored in artefact.tensors.items() if dtype_name(weights[name].dtype) != stored.dtype]
    if wrong:
        raise ArtefactError(f"the weights in {folder} have other dtypes than the manifest says: {listed(wrong)}")
    return weights | {name: weights[first] for name, first in artefact.ties.items()}


def _jsonable(extra: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON makes of it, so that what `save` returns is what `read` will."""
    try:
        return dict(json.loads(json.dumps(dict(extra), allow_nan=False, sort_keys=True)))
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtefactError(
            f"extra cannot be saved as JSON: {error}; give text, finite numbers, lists and dicts"
        ) from error


def _unwritable(folder: Path, error: Exception) -> ArtefactError:
    code = error.errno if isinstance(error, OSError) else None
    if code in (errno.EACCES, errno.EPERM, errno.EROFS):
        advice = "it may not be written to; choose another folder, or change its permissions"
    elif code in (errno.ENOSPC, errno.EDQUOT):
        advice = "no space is left there; free some, or choose another folder"
    elif code in (errno.ENOTDIR, errno.EEXIST):
        advice = "a file is in the way; choose another folder"
    else:
        advice = "nothing was changed; choose another folder, or look into the cause"
    return ArtefactError(f"cannot save to {folder}: {error}; {advice}")


def _version() -> str:
    try:
        return importlib.metadata.version("secateur")
    except importlib.metadata.PackageNotFoundError:  # a source tree on the path, not installed
        return "unknown"
