"""What one run recorded: plain data, from which a report is drawn, now or later.

A record holds no tensors and needs no framework. Its JSON lies beside the pruned model, so that the report can be drawn
again without the model, the data or the machine of the run.
"""

from dataclasses import dataclass, field
from functools import cache
from itertools import pairwise
from pathlib import Path

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import PydanticSerializationError, from_json

from secateur.errors import ArtefactError
from secateur.report.comparison import Goal, LatencyRecord, Row

FORMAT = 2
"""The format of the JSON. A reader refuses a higher number."""


@dataclass(frozen=True, slots=True)
class Step:
    """The network's metrics after one step of the run.

    Attributes:
        name: The step: `dense`, `pruned`, `refit`, `recovered, epoch 1`.
        metrics: Each metric by its name, in the unit of the row with this name.
    """

    name: str
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class AxisRecord:
    """What became of one axis.

    Attributes:
        name: The axis' name in its network.
        size: Its number of units before.
        kept: The units that stay, ascending, each in `0..size - 1`.
        exact: Whether removing a unit equals zeroing it; otherwise the axis is normalised.
        slots: Where its units live, as text: `layer1.0.conv1.weight:0`.
        scores: One number a unit, higher = keep; None where no scores chose.
        cost_share: The part of the dense network's MACs that depends on the axis, 0 to 1; None where unknown. The parts
            of different axes overlap, because a product has two sides.
        kind: What the units are, such as `channels`; empty where unknown.
    """

    name: str
    size: int
    kept: tuple[int, ...]
    exact: bool = True
    slots: tuple[str, ...] = ()
    scores: tuple[float, ...] | None = None
    cost_share: float | None = None
    kind: str = ""

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ArtefactError(f"axis {self.name!r} of the record has {self.size} units: an axis has at least one")
        ascending = all(a < b for a, b in pairwise(self.kept))
        if not ascending or (self.kept and not 0 <= self.kept[0] <= self.kept[-1] < self.size):
            raise ArtefactError(
                f"axis {self.name!r} of the record: the kept units must be ascending and lie in 0..{self.size - 1}"
            )
        if self.scores is not None and len(self.scores) != self.size:
            raise ArtefactError(
                f"axis {self.name!r} of the record has {self.size} units and {len(self.scores)} scores: give each unit one"
            )

    @property
    def removed(self) -> tuple[int, ...]:
        """The units that go, ascending."""
        return tuple(sorted(set(range(self.size)).difference(self.kept)))


@dataclass(frozen=True, slots=True)
class BranchRecord:
    """What became of one branch, of which all goes or nothing.

    Attributes:
        name: The smallest module that holds most of it.
        where: The line of code that joins it.
        stays: Whether it stays.
        parameters: The dense network's parameters that go with it.
        macs: The MACs that do.
    """

    name: str
    where: str
    stays: bool
    parameters: int
    macs: int


@dataclass(frozen=True, slots=True)
class WeightRecord:
    """What became of one weight, of which single entries went.

    Attributes:
        name: The parameter, or the part of it.
        size: Its number of entries.
        zeros: How many of them are zero.
        error: The squared error of what its layer writes, relative to what it wrote; None where it was not measured.
    """

    name: str
    size: int
    zeros: int
    error: float | None = None


@dataclass(frozen=True, slots=True)
class FrozenRecord:
    """Positions that had to stay, for one reason, at one place.

    Attributes:
        reason: Why, in words.
        where: The line of code that decides it, `file:line`; empty where there is none.
        tensors: The parameters and buffers concerned.
        positions: How many of their positions, all dims together.
    """

    reason: str
    where: str
    tensors: tuple[str, ...]
    positions: int


@dataclass(frozen=True, slots=True)
class Proof:
    """One proof that was run on the result.

    Attributes:
        name: Which: `permutation`, `zero = prune`, `same operators`.
        value: The error that was measured; 0 where there is nothing to measure.
        tolerance: The largest error that is allowed; 0 where there is nothing to measure.
        passed: Whether it held.
        detail: What was done, in a sentence.
    """

    name: str
    value: float
    tolerance: float
    passed: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Machine:
    """What the run ran on.

    Attributes:
        cpu: The processor's model name.
        threads: How many threads the framework used.
        system: Operating system and architecture.
        accelerator: The name of the GPU, if one was used.
    """

    cpu: str
    threads: int
    system: str = ""
    accelerator: str = ""


@dataclass(frozen=True, slots=True)
class Reproduction:
    """How to get the same result again.

    Attributes:
        command: The command line; empty where there was none.
        job: The text of the job file.
        seed: The seed of every random choice; None where there was none.
        versions: The version of each library, by its name.
        machine: What it ran on.
    """

    command: str = ""
    job: str = ""
    seed: int | None = None
    versions: dict[str, str] = field(default_factory=dict)
    machine: Machine | None = None


@dataclass(frozen=True, slots=True, repr=False)
class RunRecord:
    """What one run recorded. Whatever is left empty is left out of the report.

    Attributes:
        title: The report's heading.
        model: The model's name.
        created: When, as ISO 8601 text.
        rows: Dense against pruned.
        goals: What was asked for.
        steps: The metrics through the run, in its order; the first step is the dense network.
        axes: What became of each axis, in the order in which the network meets them.
        branches: What became of each branch, where the plan says so.
        weights: What became of each weight that is sparse, in the order in which they run.
        frozen: What had to stay, and why.
        latency: Measured times.
        proofs: The proofs that were run.
        reproduction: How to get the same result again.
        notes: Whatever else the reader should know, one sentence each.
        format: The format of the JSON.

    Example:
        >>> record = RunRecord("A run", "resnet20", "2025-01-01T12:00:00+00:00", axes=(AxisRecord("conv1", 4, (0, 3)),))
        >>> RunRecord.from_json(record.to_json()) == record
        True
    """

    # Unknown keys are refused; infinities and NaN are strings in the file, because JSON has no such numbers.
    __pydantic_config__ = ConfigDict(extra="forbid", ser_json_inf_nan="strings")

    title: str
    model: str
    created: str
    rows: tuple[Row, ...] = ()
    goals: tuple[Goal, ...] = ()
    steps: tuple[Step, ...] = ()
    axes: tuple[AxisRecord, ...] = ()
    branches: tuple[BranchRecord, ...] = ()
    weights: tuple[WeightRecord, ...] = ()
    frozen: tuple[FrozenRecord, ...] = ()
    latency: tuple[LatencyRecord, ...] = ()
    proofs: tuple[Proof, ...] = ()
    reproduction: Reproduction = field(default_factory=Reproduction)
    notes: tuple[str, ...] = ()
    format: int = FORMAT

    def __repr__(self) -> str:
        return f"<RunRecord of {self.model}, {self.created}>"

    def __str__(self) -> str:
        from rich.console import Console

        from secateur.report.table import comparison_table

        with (console := Console(width=100, no_color=True)).capture() as text:
            console.print(f"{self.title}\n", comparison_table(self), sep="\n")
        return "\n".join(line.rstrip() for line in text.get().splitlines())

    def to_json(self) -> str:
        """The record as JSON text; equal records give equal text.

        Raises:
            ArtefactError: A field holds a value of another type, such as an array.
        """
        try:
            return _adapter().dump_json(self, warnings="error").decode()
        except PydanticSerializationError as error:
            raise ArtefactError(f"the record of {self.model!r} holds a value that JSON cannot keep: {error}") from error

    @classmethod
    def from_json(cls, text: str) -> "RunRecord":
        """Read what `to_json` wrote.

        Raises:
            ArtefactError: The text is no record, is damaged, or comes from a newer version.
        """
        try:
            data = from_json(text)
        except ValueError as error:
            raise ArtefactError(f"not the record of a run: {error}; run the job again to write a new one") from error
        number = data.get("format") if isinstance(data, dict) else None
        if isinstance(number, int) and number > FORMAT:
            raise ArtefactError(
                f"the record has format {number}, and this version of Secateur reads up to {FORMAT}; install a newer one"
            )
        try:
            return _adapter().validate_python(data)
        except ValidationError as error:
            raise ArtefactError(f"not the record of a run: {_first(error)}; run the job again to write one") from error

    @classmethod
    def read(cls, path: Path) -> "RunRecord":
        """Read a file that holds what `to_json` wrote.

        Raises:
            ArtefactError: There is no such file, or it is no record.
        """
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ArtefactError(
                f"cannot read the record of a run in {path}: {error}; name the output folder of a run"
            ) from error
        try:
            return cls.from_json(text)
        except ArtefactError as error:
            raise ArtefactError(f"{path}: {error}") from error


@cache
def _adapter() -> TypeAdapter[RunRecord]:
    return TypeAdapter(RunRecord)


def _first(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in first['loc']) or 'the whole'}: {first['msg']}"
