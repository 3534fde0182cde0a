"""The data of a job: what to train on, and what to evaluate on."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from secateur.cli.choices import choose
from secateur.cli.objects import call_object, find_object
from secateur.errors import DataError

KEYS = ("train", "evaluate")


@dataclass(frozen=True, slots=True)
class Data:
    """The batches of a job.

    Attributes:
        train: For scores, compensation and recovery; None where there are none.
        evaluate: To evaluate on; None where there are none.
    """

    train: Iterable[Any] | None = None
    evaluate: Iterable[Any] | None = None


def load_data(spec: str | None, folder: Path) -> Data:
    """Make the data.

    Args:
        spec: A name of `secateur.cli.choices`, or `module:factory` or `path/file.py:factory`: a function without arguments that
            gives batches, or a dict with `train` and `evaluate`. Batches alone are trained on, not evaluated on.
        folder: What paths are relative to.

    Raises:
        JobError: The specification is not understood.
        DataError: The factory gives something else.
    """
    if spec is None:
        return Data()
    factory = find_object(spec, folder, "the data") if ":" in spec else choose("data", spec)
    made: Any = call_object(factory, spec, "the data")
    parts = made if isinstance(made, Mapping) else {"train": made}
    unknown = [str(key) for key in parts if key not in KEYS]
    if unknown or not parts:
        raise DataError(
            f"the data {spec!r} is a dict with {', '.join(unknown) or 'nothing'}; it may have {' and '.join(KEYS)}"
        )
    for key, batches in parts.items():
        _check(batches, f"the data {spec!r}, {key}")
    return Data(**parts)


def _check(batches: Any, what: str) -> None:
    if not isinstance(batches, Iterable):
        raise DataError(
            f"{what}: a {type(batches).__name__} cannot be iterated over; give a list of batches or a DataLoader"
        )
    if iter(batches) is batches:
        raise DataError(
            f"{what}: a {type(batches).__name__} runs out after one time; give a list of batches or a DataLoader"
        )
