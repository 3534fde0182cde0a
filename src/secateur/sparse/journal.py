"""Weights that are sparse already, on disk: who is killed goes on where it stopped, and what is solved takes no memory."""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from secateur.errors import ArtefactError
from secateur.sparse.result import LayerReport

JOB = "job.json"
NAMED = 3
"""Differences that a message names; of the others it gives the number."""
_DIGEST = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """A parameter that is sparse, or some of its layers.

    Attributes:
        weight: All of the parameter.
        stays: What stays of it, boolean.
        reports: What became of its layers.
    """

    weight: Tensor
    stays: Tensor
    reports: tuple[LayerReport, ...]


class Journal:
    """A folder with a file for each parameter, written when all of its layers are solved.

    The tensors that it gives are mapped from the files: they are read when they are used, and the system may drop them.

    Args:
        folder: Made where it is missing.
        job: What decides the result, by name. A folder goes on with the job that it was begun with alone.

    Raises:
        ArtefactError: The folder holds the work of another job; says what differs.
    """

    def __init__(self, folder: Path, job: Mapping[str, str]) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        place = folder / JOB
        if place.exists():
            _check_same(folder, _read_json(place), job)
        elif any(folder.glob("*.safetensors")):
            raise ArtefactError(f"{folder} has weights, and no {JOB} that says of which job; name another folder")
        else:
            _write(place, lambda path: path.write_text(json.dumps(dict(job), indent=2), encoding="utf-8"))

    def find(self, name: str, dense: Tensor) -> Entry | None:
        """What was made of a parameter, or None.

        Raises:
            ArtefactError: The file is damaged, or was made from other weights.
        """
        path = self._path(name)
        if not path.exists():
            return None
        told, entry = self._read(path)
        if told.get("dense") != digest(dense) or entry.weight.shape != dense.shape or entry.weight.dtype != dense.dtype:
            raise ArtefactError(f"{path} was made from other weights than this model has; remove {self.folder}")
        if told.get("weight") != digest(entry.weight) or told.get("stays") != digest(entry.stays):
            raise ArtefactError(
                f"{path} is damaged (other bytes than were written); remove it, and the layer is solved again"
            )
        return entry

    def add(self, name: str, dense: Tensor, entry: Entry) -> Entry:
        """Keep what was made of a parameter; gives it back, mapped from its file.

        Raises:
            OSError: There is no space, or no permission; what the folder held before is still there and whole.
        """
        path = self._path(name)
        tensors = {
            "weight": entry.weight.detach().cpu().contiguous(),
            "stays": torch.from_numpy(np.packbits(entry.stays.cpu().numpy())),
        }
        digests = {"dense": digest(dense), "weight": digest(entry.weight), "stays": digest(entry.stays)}
        told = digests | {"reports": json.dumps([asdict(report) for report in entry.reports])}
        _write(path, lambda new: save_file(tensors, new, told))
        return self._read(path)[1]

    def read(self, name: str) -> Entry:
        """What was made of a parameter that is in the journal.

        Raises:
            ArtefactError: The file is missing or damaged.
        """
        return self._read(self._path(name))[1]

    def _path(self, name: str) -> Path:
        return self.folder / f"{quote(name, safe='')}.safetensors"

    def _read(self, path: Path) -> tuple[dict[str, str], Entry]:
        try:
            with safe_open(path, framework="pt") as file:
                told = file.metadata() or {}
                weight, packed = file.get_tensor("weight"), file.get_tensor("stays")
            bits = np.unpackbits(packed.numpy(), count=weight.numel())
            stays = torch.from_numpy(bits).view(torch.bool).view(weight.shape)
            reports = tuple(
                LayerReport(**(report | {"shape": tuple(report["shape"])})) for report in json.loads(told["reports"])
            )
            return told, Entry(weight, stays, reports)
        except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
            raise ArtefactError(
                f"{path} is damaged ({type(error).__name__}: {error}); remove it, and the layer is solved again"
            ) from error


class Masks(Mapping[str, Tensor]):
    """Masks in a journal, read when they are asked for, one in memory at a time.

    Args:
        journal: Where they are.
        names: Of which parameters.
    """

    def __init__(self, journal: Journal, names: Sequence[str]) -> None:
        self._journal, self._names = journal, list(names)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        return self._journal.read(name).stays

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def digest(tensor: Tensor) -> str:
    """The SHA-256 of a tensor's bytes."""
    data = tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(data.data).hexdigest()


def _check_same(folder: Path, before: Mapping[str, str], job: Mapping[str, str]) -> None:
    different = [
        _told_apart(name, before.get(name), job.get(name))
        for name in {**before, **job}
        if before.get(name) != job.get(name)
    ]
    if different:
        more = f"; and {len(different) - NAMED} more" if len(different) > NAMED else ""
        raise ArtefactError(
            f"{folder} has the work of another job: {'; '.join(different[:NAMED])}{more}; remove the folder, or go on with "
            "the job as it was"
        )


def _told_apart(name: str, before: str | None, now: str | None) -> str:
    """What differs, in words; digests say nothing to a reader."""
    if before is None or now is None:
        return f"{name} is {'new' if before is None else 'missing'}"
    if _DIGEST.fullmatch(before) or _DIGEST.fullmatch(now):
        return f"{name} has changed"
    return f"{name} was {before} and is {now}"


def _read_json(path: Path) -> dict[str, str]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ArtefactError(f"{path} cannot be read ({error}); remove the folder to begin anew") from error


def _write(path: Path, write: Callable[[Path], Any]) -> None:
    """Write a file under another name, and give it its own when all of it is on the disk."""
    private = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(private)
        with private.open("rb") as file:
            os.fsync(file.fileno())
        private.replace(path)
    except SafetensorError as error:
        raise OSError(f"{path} cannot be written: {error}") from error
    finally:
        private.unlink(missing_ok=True)
