"""Which of two models is faster, and how sure is that?"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from secateur.artefact import load
from secateur.artefact.manifest import MANIFEST
from secateur.cli import choices
from secateur.cli.job import Choice, read_job
from secateur.cli.models import Subject, load_model
from secateur.cli.output import JOB
from secateur.errors import JobError
from secateur.report.quantity import TIMES, quantity
from secateur.targets import Measurement, Ratio, Target, measure, ratio_of_medians, worst


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two models, measured in turns.

    Attributes:
        names: What they are called.
        measured: What was measured of each, in the same order.
        speed_up: The median time of the first over that of the second.
    """

    names: tuple[str, str]
    measured: tuple[Measurement, Measurement]
    speed_up: Ratio

    def to_json(self) -> dict[str, Any]:
        """All numbers, times in ms."""
        return {
            "models": [_numbers(name, one) for name, one in zip(self.names, self.measured, strict=True)],
            "speed_up": {
                "value": self.speed_up.value, "low": self.speed_up.low, "high": self.speed_up.high, "level": self.speed_up.level,
            },
        }  # fmt: skip

    def __rich__(self) -> RenderableType:
        """What a terminal shows."""
        return Group(_table(self), "", _verdict(self))


def load_subject(spec: str, *, inputs: tuple[str, ...] = (), model: str | None = None) -> Subject:
    """A model to measure: an artefact's folder, or whatever `load_model` takes.

    Args:
        spec: The folder, or MODEL.
        inputs: The shapes of the model's arguments; by default those that the job or the model says.
        model: How an artefact's dense model is built, where no job lies beside it.

    Raises:
        JobError: It is not known how to build the artefact's model.
        ArtefactError: The artefact is damaged.
    """
    folder = Path(spec)
    if not folder.is_dir():
        return load_model(spec, inputs=inputs)
    if model is not None:
        dense = load_model(model, inputs=inputs)
    elif (folder / JOB).is_file() or not (folder / MANIFEST).is_file():
        file = read_job(folder / JOB)
        dense = load_model(file.job.model, inputs=inputs or file.job.inputs, folder=file.folder)
    else:
        raise JobError(
            f"{folder} has no {JOB} that says how its model is built: give --model, such as --model my_model.py:build"
        )
    return Subject(spec.rstrip("/"), load(dense.model, folder).eval(), dense.inputs)


def find_target(name: str, *, threads: int | None, precision: str | None) -> Target:
    """The target that the options of the command line name; by default each is the target's own.

    Raises:
        JobError: There is no such target, or it has no such option.
        DataError: An option has a value that it cannot have.
    """
    options = {"threads": threads, "precision": precision}
    choice = Choice(name=name, **{option: value for option, value in options.items() if value is not None})
    target: Target = choices.attempt(choices.prepare("target", choice), "target")
    return target


def compare(first: Subject, second: Subject, *, target: Target, runs: int, seconds: float) -> Comparison:
    """Measure two models in turns, on the inputs of the first.

    Args:
        first: The one that is compared with.
        second: The one of interest.
        target: Where.
        runs: At least so many timed runs of each.
        seconds: At least so long.
    """
    measured = measure({"A": first.model, "B": second.model}, first.inputs, target=target, runs=runs, seconds=seconds)
    one, other = measured["A"], measured["B"]
    ratio = ratio_of_medians(one.latency, other.latency, np.random.default_rng(0))
    return Comparison((first.name, second.name), (one, other), ratio)


def _table(comparison: Comparison) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, header_style="bold")
    table.add_column("")
    for heading in ("median", "quartiles", "p99", "peak memory", "stored"):
        table.add_column(heading, justify="right")
    for letter, name, one in zip("AB", comparison.names, comparison.measured, strict=True):
        low, high = one.latency.quartiles
        table.add_row(
            Text(f"{letter}  {name}"),
            quantity(1e3 * one.latency.median, "ms"),
            f"{quantity(1e3 * low)} to {quantity(1e3 * high, 'ms')}",
            quantity(1e3 * one.latency.p99, "ms"),
            quantity(one.memory.peak if one.memory else None, "B"),
            quantity(one.stored, "B"),
        )
    return table


def _verdict(comparison: Comparison) -> str:
    ratio, one = comparison.speed_up, comparison.measured[0]
    if ratio.low > 1:
        words = f"B is {ratio.value:.2f} {TIMES} as fast as A"
    elif ratio.high < 1:
        words = f"B is slower: {ratio.value:.2f} {TIMES} as fast as A"
    else:
        words = f"no difference is certain: B is {ratio.value:.2f} {TIMES} as fast as A"
    steady = "" if one.latency.settled else " The times had not settled when the warm-up ended."
    return (
        f"{words} ({100 * ratio.level:.0f} % confidence: {ratio.low:.2f} to {ratio.high:.2f}), "
        f"by {len(one.latency.samples)} runs of each in turns by {one.target} on {one.device}, "
        f"{one.threads} thread{'s' if one.threads != 1 else ''}.{_nearness(comparison.measured)}{steady}"
    )


def _nearness(measured: tuple[Measurement, ...]) -> str:
    found = worst(one.agreement for one in measured)
    if found is None:
        return ""
    return f" Outputs are at most {found.difference:.0e} off PyTorch's, where {found.tolerance:.0e} is allowed."


def _numbers(name: str, one: Measurement) -> dict[str, Any]:
    low, high = one.latency.quartiles
    return {
        "name": name,
        "median_ms": 1e3 * one.latency.median,
        "quartiles_ms": [1e3 * low, 1e3 * high],
        "p99_ms": 1e3 * one.latency.p99,
        "runs": len(one.latency.samples),
        "settled": one.latency.settled,
        "peak_memory_bytes": one.memory.peak if one.memory else None,
        "stored_bytes": one.stored,
        "target": one.target,
        "device": one.device,
        "threads": one.threads,
        "difference": one.agreement and one.agreement.difference,
        "tolerance": one.agreement and one.agreement.tolerance,
    }
