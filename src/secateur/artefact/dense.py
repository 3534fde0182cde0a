"""Weights in ordinary files: what a user brings for a dense model, and what other programs read. Nothing in them is ever run."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError  # noqa: TID251  only the name of what torch.load(weights_only=True) raises
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.artefact.match import class_name, dtype_name, fill, listed, storable_state
from secateur.errors import ArtefactError

_TORCH_FILES = (".pt", ".pth", ".bin", ".ckpt")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")
"""What `DataParallel` and `torch.compile` put before every name."""


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Fill a dense model with weights from a file.

    Checkpoints of the form `{"state_dict": ...}` or `{"model": ...}` are opened, and the prefixes of `DataParallel` and
    `torch.compile` are taken off. Floating-point weights are converted to the model's dtype.

    Args:
        model: Filled in place; untouched where this raises.
        path: A `.safetensors` file, or a state dict that torch saved (`.pt`, `.pth`, `.bin`, `.ckpt`).

    Raises:
        ArtefactError: The file cannot be read, holds more than weights, or its weights are not this model's.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> path = Path(tempfile.mkdtemp(), "dense.safetensors")
        >>> save_file({"weight": torch.ones(1, 2), "bias": torch.zeros(1)}, path)
        >>> model = torch.nn.Linear(2, 1)
        >>> load_weights(model, path)
        >>> model(torch.tensor([[2.0, 3.0]])).item()
        5.0
    """
    path = Path(path)
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    weights = _named_alike(_unwrapped(_contents(path), path), own)
    weights |= {name: own[name] for name in own if name not in weights and name.endswith(".num_batches_tracked")}
    complaints = [
        *(f"{name} is missing in the file" for name in own if name not in weights),
        *(f"{name} is missing in the model" for name in weights if name not in own),
        *(complaint for name in weights if name in own if (complaint := _complaint(name, weights[name], own[name]))),
    ]
    if complaints:
        raise ArtefactError(
            f"the weights in {path} are not those of {class_name(model)}: {listed(complaints)}; "
            "check that the model is built with the settings it was trained with"
        )
    fill(model, weights)


def save_weights(model: nn.Module, path: str | Path) -> None:
    """Write a model's state dict as it is, zeros and all, for whatever reads safetensors.

    Tied tensors are written under each of their names. Whoever is killed while it is written leaves what was there before. The
    file holds no plan: `save` writes what `load` reads.

    Args:
        model: Any module.
        path: The file, `.safetensors`; an earlier one is replaced.

    Raises:
        ArtefactError: The name does not end in `.safetensors`, the state dict holds more than tensors, or the file cannot be
            written.

    Example:
        >>> from pathlib import Path
        >>> path = Path(tempfile.mkdtemp(), "model.safetensors")
        >>> save_weights(torch.nn.Linear(2, 1), path)
        >>> sorted(load_file(path))
        ['bias', 'weight']
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ArtefactError(f"weights are written as .safetensors, not as {path.name!r}")
    state = storable_state(model)
    try:
        with tempfile.TemporaryDirectory(prefix=".writing-", dir=path.parent) as private:
            write(state, Path(private, path.name))
            Path(private, path.name).replace(path)
    except (OSError, SafetensorError) as error:
        raise ArtefactError(f"cannot write {path}: {error}; choose another folder") from error


def write(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write safetensors; equal tensors give equal bytes."""
    packed: dict[str, Tensor] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        plain = tensor.detach().cpu().contiguous()
        if plain.untyped_storage().data_ptr() in storages:  # views of one storage: safetensors wants each by itself
            plain = plain.clone()
        packed[name] = plain
        storages.add(plain.untyped_storage().data_ptr())
    try:
        save_file(packed, path, metadata={"format": "pt"})  # one entry: several would be written in random order
    except (KeyError, ValueError) as error:
        dtypes = sorted({dtype_name(tensor.dtype) for tensor in packed.values()})
        raise ArtefactError(f"safetensors cannot hold these tensors, of {', '.join(dtypes)}: {error}") from error


def _contents(path: Path) -> object:
    if not path.is_file():
        raise ArtefactError(f"there is no file {path}; name the file with the model's weights")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        if path.suffix in _TORCH_FILES:
            return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise ArtefactError(
            f"{path} holds more than weights, or is damaged; save model.state_dict() alone, best as safetensors: a file that may "
            "run code is never opened"
        ) from error
    except (OSError, EOFError, RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise ArtefactError(f"{path} cannot be read as weights: {error}; is it damaged or cut short?") from error
    raise ArtefactError(f"{path} is of unknown kind; weights come as .safetensors, {', '.join(_TORCH_FILES)}")


def _unwrapped(contents: object, path: Path) -> dict[str, Tensor]:
    if isinstance(contents, Mapping) and not _is_state(contents):
        inside = [contents[key] for key in _WRAPPERS if isinstance(contents.get(key), Mapping)]
        contents = inside[0] if len(inside) == 1 else contents
    if not isinstance(contents, Mapping) or not _is_state(contents):
        found = (
            f"keys {sorted(map(str, contents))[:5]}"
            if isinstance(contents, Mapping)
            else f"a {type(contents).__name__}"
        )
        raise ArtefactError(
            f"{path} holds {found} and no state dict; save model.state_dict(), or {{'state_dict': ...}}"
        )
    return dict(contents)


def _is_state(contents: Mapping[Any, Any]) -> bool:
    return bool(contents) and all(isinstance(k, str) and isinstance(v, Tensor) for k, v in contents.items())


def _named_alike(weights: dict[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Take off a wrapper's prefix that every name in the file has and no name in the model."""
    for prefix in _PREFIXES * 2:  # in either order, one inside the other
        if all(name.startswith(prefix) for name in weights) and not any(name.startswith(prefix) for name in own):
            weights = {name.removeprefix(prefix): tensor for name, tensor in weights.items()}
    return weights


def _complaint(name: str, given: Tensor, own: Tensor) -> str | None:
    if own.is_meta:
        return f"{name} is on the meta device and cannot be filled"
    if given.shape != own.shape:
        return f"{name} has shape {tuple(given.shape)} in the file, {tuple(own.shape)} in the model"
    alike = given.dtype == own.dtype or (given.is_floating_point() and own.is_floating_point())
    return None if alike else f"{name} is {dtype_name(given.dtype)} in the file, {dtype_name(own.dtype)} in the model"
