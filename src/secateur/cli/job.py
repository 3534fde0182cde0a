"""Job files: what to prune or to make sparse, on what, how far and how, as TOML; checked before anything is loaded."""

import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, ClassVar, Generic, Literal, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from secateur.allocate.budget import exact_share
from secateur.cli.objects import nearest
from secateur.errors import BudgetError, JobError


class _Table(BaseModel):
    """A table of the file: nothing is converted, nothing is ignored, nothing changes."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _share(value: float) -> float:
    """A share that a budget can have; else what is wrong with it, as pydantic tells it."""
    try:
        exact_share("it", value)
    except BudgetError as error:
        raise PydanticCustomError("share", "{wrong}", {"wrong": str(error)}) from error
    return value


Share = Annotated[float, AfterValidator(_share)]


class Shares(_Table):
    """`[budget]`: which share of the dense network's costs may stay."""

    params: Share | None = None
    macs: Share | None = None
    bytes: Share | None = None

    @model_validator(mode="after")
    def _limits(self) -> "Shares":
        if not any((self.params, self.macs, self.bytes)):
            raise PydanticCustomError("limits", "it limits nothing; give params, macs or bytes, such as macs = 0.5")
        return self


class Choice(BaseModel):
    """`[score]`, `[allocation]`: a name, and whatever options go with it."""

    model_config = ConfigDict(extra="allow", strict=True, frozen=True)

    name: str

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return self.model_extra or {}


class Distillation(_Table):
    """`[recovery.distillation]`: learn from the dense model, too."""

    temperature: float = 2.0
    weight: float = 0.5


def _switched(value: object) -> object:
    """`distillation = true` for a table with nothing in it."""
    return ({} if value else None) if isinstance(value, bool) else value


class Recovery(_Table):
    """`[recovery]`: train what was pruned, with the built-in training or with the user's own."""

    epochs: int = 1
    optimizer: str | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None
    batch_limit: int | None = None
    distillation: Annotated[Distillation | None, BeforeValidator(_switched)] = None
    function: str | None = None


def _named(value: object) -> object:
    """`score = "fisher"` for `[score]` with nothing but a name."""
    return {"name": value} if isinstance(value, str) else value


Named = Annotated[Choice, BeforeValidator(_named)]


Several = Annotated[
    tuple[Named, ...], BeforeValidator(lambda value: (value,) if isinstance(value, str | dict) else value)
]


class Sparsification(_Table):
    """`[sparsify]`: which weights become zero, and how. What is left out has the default that `secateur.sparsify` has."""

    sparsity: float | dict[str, float] | None = None
    pattern: Named = Choice(name="unstructured")
    score: Named = Choice(name="wanda")
    solver: Several = Field(default=(Choice(name="refit"),), strict=False)
    allocation: Named = Choice(name="even")
    rounding: Named | None = None
    exclude: tuple[str, ...] | None = Field(default=None, strict=False)
    include: tuple[str, ...] = Field(default=(), strict=False)
    in_sequence: bool = True
    samples: int = Field(default=128, ge=1)
    memory: float = Field(default=4.0, gt=0, allow_inf_nan=False)


class Work(_Table):
    """What every job says.

    Attributes:
        command: What does the job.
        model: What it is about.
        output: Where the result goes.
        relative_to: What paths are relative to, seen from the file.
    """

    command: ClassVar[str]

    model: str
    output: str
    relative_to: str = "."


class Job(Work):
    """A job of `secateur prune`. What is left out has the default that `secateur.prune` has."""

    command = "secateur prune"

    budget: Shares
    weights: str | None = None
    inputs: tuple[str, ...] = Field(default=(), strict=False)
    data: str | None = None
    evaluate: str | None = None
    score: Named | None = None
    allocation: Named = Choice(name="global")
    multiple_of: int = 1
    form: Literal["module", "graph"] = "module"
    export: bool = False
    exclude: tuple[str, ...] = Field(default=(), strict=False)
    compensation: tuple[str, ...] | None = Field(default=None, strict=False)
    sparsify: Sparsification | None = None
    recovery: Recovery | None = None
    measure: bool = True
    target: Named = Choice(name="eager")
    device: str = "cpu"
    seed: int = 0


class Reconstruction(_Table):
    """`[reconstruct]`: how blocks are trained to give what the dense model's give."""

    epochs: int = Field(default=3, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0, allow_inf_nan=False)


class SparseJob(Work, Sparsification):
    """A job of `secateur sparsify`: what else it says stands above its tables."""

    command = "secateur sparsify"

    calibrate: str
    evaluate: str | None = None
    length: int = Field(default=512, ge=2)
    evaluate_samples: int = Field(default=64, ge=1)
    reconstruct: Reconstruction | None = None


JobKind = TypeVar("JobKind", bound=Work)


@dataclass(frozen=True, slots=True)
class JobFile(Generic[JobKind]):
    """A job, and the file that it was read from.

    Attributes:
        job: What it says.
        path: Where it is.
        text: All of it.
    """

    job: JobKind
    path: Path
    text: str

    @property
    def folder(self) -> Path:
        """What the paths in it are relative to."""
        return self.path.parent / self.job.relative_to

    @property
    def output(self) -> Path:
        """Where the result goes."""
        return self.folder / self.job.output


def read_job(path: Path) -> JobFile[Job]:
    """Read a job of `secateur prune`.

    Raises:
        JobError: It cannot be read, is not TOML, or has a key or value that does not belong there. All such are named.
    """
    return _read(path, Job)


def read_sparse_job(path: Path) -> JobFile[SparseJob]:
    """Read a job of `secateur sparsify`.

    Raises:
        JobError: As for `read_job`.
    """
    return _read(path, SparseJob)


def parse_job(text: str, name: str) -> Job:
    r"""Understand the text of a job of `secateur prune`.

    Args:
        text: TOML.
        name: What to call it in an error.

    Raises:
        JobError: See `read_job`.

    Example:
        >>> parse_job('model = "net.py:build"\noutput = "out"\n[budget]\nmacs = 0.5', "job.toml").budget.macs
        0.5
    """
    return _parsed(text, name, Job)


def _read(path: Path, kind: type[JobKind]) -> JobFile[JobKind]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise JobError(f"there is no job file {path}; {kind.command} --help shows what one looks like") from error
    except (OSError, UnicodeDecodeError) as error:
        raise JobError(f"the job file {path} cannot be read: {error}") from error
    return JobFile(_parsed(text, str(path), kind), path, text)


def _parsed(text: str, name: str, kind: type[JobKind]) -> JobKind:
    try:
        return kind.model_validate(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise JobError(f"{name} is not TOML: {error}; {kind.command} --help shows a job file") from error
    except ValidationError as error:
        raise JobError(f"{name}: {'; '.join(dict.fromkeys(_complaints(error, kind)))}") from None


def _complaints(error: ValidationError, kind: type[BaseModel]) -> Iterator[str]:
    for detail in error.errors(include_url=False):
        path = [str(part) for part in detail["loc"]]
        key = ".".join(part for part in path if part not in VARIANTS)
        if detail["type"] == "extra_forbidden":
            misplaced = len(path) > 1 and path[-1] in kind.model_fields
            hint = "; it belongs above the first [table]" if misplaced else nearest(path[-1], _known(kind, path[:-1]))
            yield f"there is no key {key!r}{hint}"
        elif detail["type"] == "missing":
            yield f"the key {key!r} is missing"
        else:
            yield f"{key} = {detail['input']!r}: {_wanted(detail)}"


VARIANTS = ("Distillation", "Choice", "float", "dict[str,float]")
"""Parts of a place that name a type, not a key."""

WORDS = {
    "a valid integer": "a whole number",
    "a valid number": "a number",
    "a valid dictionary": "a table",
    "a valid tuple": "a list",
}
"""What pydantic calls the things of a TOML file."""


def _wanted(detail: ErrorDetails) -> str:
    message = detail["msg"].replace("Input should be", "it must be")
    for theirs, ours in WORDS.items():
        message = message.replace(theirs, ours)
    return message.replace("a valid ", "a ")


def _known(kind: type[BaseModel], path: list[str]) -> list[str]:
    """The keys that are allowed in the table at this place."""
    table: type[BaseModel] | None = kind
    for part in (part for part in path if part not in VARIANTS):
        field = table.model_fields.get(part) if table is not None else None
        table = next(_tables(field.annotation), None) if field is not None else None
    return list(table.model_fields) if table is not None else []


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    """The tables that a value of this type may be."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _tables(inner)
