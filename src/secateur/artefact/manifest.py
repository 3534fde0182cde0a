"""What `secateur.json` says: the plan, every tensor's shape, the versions, and how to tell that nothing was altered."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

from secateur.axes import Plan
from secateur.errors import ArtefactError, PlanError

FORMAT = 3
"""The newest format that this version reads; it writes the oldest that says all: 1 where all tensors are dense, 3 to deflate."""

MANIFEST = "secateur.json"


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of the weights file.

    Attributes:
        dtype: In torch's words, such as `float32`.
        shape: Of the whole tensor.
        values: How many of its entries are stored, with a bitmap of where they lie; the others are zero. None where all are.
        bitmap: How many bytes the bitmap takes, deflated; None where it is stored as it is, a bit for each entry, or not at all.
    """

    dtype: str
    shape: tuple[int, ...]
    values: int | None = None
    bitmap: int | None = None

    @property
    def format(self) -> int:
        """The oldest format that knows such a tensor."""
        return 1 + (self.values is not None) + (self.bitmap is not None)

    def entries(self, name: str) -> dict[str, tuple[int, ...]]:
        """The names and shapes of what the file holds of it."""
        if self.values is None:
            return {name: self.shape}
        return {name: (self.values,), bitmap_of(name): (self._bitmap_bytes(),)}

    def bytes(self, itemsize: int) -> int:
        """How many bytes it takes, with so many for each entry."""
        if self.values is None:
            return prod(self.shape) * itemsize
        return self.values * itemsize + self._bitmap_bytes()

    def to_data(self) -> dict[str, Any]:
        """What the manifest says of it."""
        data = {"dtype": self.dtype, "shape": list(self.shape), "values": self.values, "bitmap": self.bitmap}
        return {key: value for key, value in data.items() if value is not None}

    def _bitmap_bytes(self) -> int:
        return -(-prod(self.shape) // 8) if self.bitmap is None else self.bitmap


def bitmap_of(name: str) -> str:
    """The name in the weights file of the bitmap of a tensor that is stored without its zeros."""
    return f"{name}#bitmap"


@dataclass(frozen=True, slots=True)
class WeightsFile:
    """The file that holds the tensors: its size in bytes, and its SHA-256, which is also its name."""

    size: int
    sha256: str

    @property
    def name(self) -> str:
        """The file's name in the artefact's folder."""
        return f"weights-{self.sha256}.safetensors"


@dataclass(frozen=True, slots=True)
class Artefact:
    """Everything about a saved model but the values of its weights.

    Attributes:
        plan: What was removed; empty where the model is dense.
        model: Module and name of the model's class, for people to read.
        form: "module", or "graph" for the graph form of a model of that class.
        tensors: What the weights file holds, by name in the state dict; tied tensors under their first name.
        ties: For each further name of a tied tensor, the name that it is stored under.
        weights: The weights file.
        secateur: The version of Secateur that wrote it.
        torch: The version of PyTorch that wrote it.
        extra: What the user added: anything that JSON holds.
    """

    plan: Plan
    model: str
    form: str
    tensors: Mapping[str, StoredTensor]
    ties: Mapping[str, str]
    weights: WeightsFile
    secateur: str
    torch: str
    extra: Mapping[str, Any]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """The shape of every tensor of the state dict, tied ones under each of their names."""
        stored = {name: tensor.shape for name, tensor in self.tensors.items()}
        return stored | {name: stored[first] for name, first in self.ties.items()}

    def to_json(self) -> str:
        """The manifest's text; equal artefacts give equal text."""
        content = {
            "format": max((tensor.format for tensor in self.tensors.values()), default=1),
            "secateur": self.secateur,
            "torch": self.torch,
            "model": self.model,
            "form": self.form,
            "plan": json.loads(self.plan.to_json()),
            "tensors": {name: tensor.to_data() for name, tensor in self.tensors.items()},
            "ties": dict(self.ties),
            "weights": asdict(self.weights),
            "extra": dict(self.extra),
        }
        return _canonical(content | {"sha256": _digest(content)}) + "\n"

    @classmethod
    def from_json(cls, text: bytes, where: str) -> "Artefact":
        """Read what `to_json` wrote.

        Args:
            text: The manifest, UTF-8.
            where: The file's path, for the messages.

        Raises:
            ArtefactError: It is damaged, altered, no manifest at all, or from a newer format.
        """
        content = _parse(text, where)
        _refuse_newer(content, where)
        if content.pop("sha256", None) != _digest(content):
            raise ArtefactError(f"{where} was altered: its content is not what its sha256 says; save the model again")
        try:
            return cls(
                plan=Plan.from_data(content["plan"]),
                model=str(content["model"]),
                form=_form(content.get("form", "module")),
                tensors={str(name): _stored(tensor) for name, tensor in content["tensors"].items()},
                ties=_ties(content["ties"], content["tensors"]),
                weights=_weights(content["weights"]),
                secateur=str(content["secateur"]),
                torch=str(content["torch"]),
                extra=dict(content["extra"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError, PlanError) as error:
            raise ArtefactError(
                f"{where} is not an artefact's manifest: {type(error).__name__} {error}; save the model again"
            ) from error


def _parse(text: bytes, where: str) -> dict[str, Any]:
    try:
        content = json.loads(text.decode("utf-8"))
    except (ValueError, RecursionError) as error:  # not UTF-8, not JSON, or nested to exhaust the stack
        raise ArtefactError(f"{where} is damaged: {error}; save the model again, or copy the folder again") from error
    if not isinstance(content, dict) or "format" not in content:
        raise ArtefactError(f"{where} is not an artefact's manifest: it names no format; is this the right folder?")
    return content


def _refuse_newer(content: Mapping[str, Any], where: str) -> None:
    written = content["format"]
    if isinstance(written, bool) or not isinstance(written, int) or written < 1:
        raise ArtefactError(
            f"{where} is damaged: its format is {written!r}, not a whole number from 1; save the model again"
        )
    if written > FORMAT:
        raise ArtefactError(
            f"{where} has format {written}, written by secateur {content.get('secateur', '(unknown)')}; "
            f"this version reads formats up to {FORMAT}: install a newer secateur"
        )


def _stored(data: Mapping[str, Any]) -> StoredTensor:
    shape = tuple(int(n) for n in data["shape"])
    if min(shape, default=0) < 0:
        raise ValueError(f"a shape of {shape}")
    values = data.get("values")
    if values is not None and not 0 <= int(values) <= prod(shape):
        raise ValueError(f"{values} values in a shape of {shape}")
    bitmap = data.get("bitmap")
    if bitmap is not None and (values is None or not 0 < int(bitmap) <= -(-prod(shape) // 8)):
        raise ValueError(f"a bitmap of {bitmap} bytes for a shape of {shape}")
    return StoredTensor(
        str(data["dtype"]), shape, None if values is None else int(values), None if bitmap is None else int(bitmap)
    )


def _form(data: object) -> str:
    if data not in ("module", "graph"):
        raise ValueError(f"a form of {data!r}")
    return str(data)


def _ties(data: Mapping[str, Any], tensors: Mapping[str, Any]) -> dict[str, str]:
    ties = {str(name): str(first) for name, first in data.items()}
    for name, first in ties.items():
        if name in tensors or first not in tensors:
            raise ValueError(f"{name!r} tied to {first!r}, which contradicts the list of tensors")
    return ties


def _weights(data: Mapping[str, Any]) -> WeightsFile:
    weights = WeightsFile(int(data["size"]), str(data["sha256"]))
    if not re.fullmatch(
        "[0-9a-f]{64}", weights.sha256
    ):  # it becomes a file's name: it must never lead out of the folder
        raise ValueError(f"a sha256 of {weights.sha256!r}")
    return weights


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(_canonical(content).encode("utf-8")).hexdigest()


def _canonical(content: Mapping[str, Any]) -> str:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
