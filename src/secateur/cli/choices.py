"""The one table between names in a job file and objects of the library."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

import secateur as sc
from secateur.allocate import normalise
from secateur.cli import metrics
from secateur.cli.job import Choice, Sparsification
from secateur.cli.objects import nearest
from secateur.demo import mnist
from secateur.errors import JobError, SecateurError
from secateur.sparse.amounts import check_amount

NAMES: Mapping[str, Mapping[str, Callable[..., Any]]] = {
    "score": {
        "magnitude": sc.scores.Magnitude,
        "geometric-median": sc.scores.GeometricMedian,
        "batch-norm-scale": sc.scores.BatchNormScale,
        "energy": sc.scores.Energy,
        "fluctuation": sc.scores.Fluctuation,
        "activation-mean": sc.scores.ActivationMean,
        "activation-rate": sc.scores.ActivationRate,
        "channel-independence": sc.scores.ChannelIndependence,
        "router-weighted": sc.scores.RouterWeighted,
        "gradient": sc.scores.Gradient,
        "taylor": sc.scores.Taylor,
        "fisher": sc.scores.Fisher,
        "signal-to-noise": sc.scores.SignalToNoise,
        "t-test": sc.scores.TTest,
        "f-test": sc.scores.FTest,
        "normalised": sc.scores.Normalised,
        "random": sc.scores.Random,
    },
    "allocation": {
        "global": sc.allocate.Global,
        "uniform": sc.allocate.Uniform,
        "insignificant": sc.allocate.Insignificant,
    },
    "weight score": {
        "wanda": sc.scores.Wanda,
        "ria": sc.scores.RIA,
        "lamp": sc.scores.LAMP,
        "magnitude": sc.scores.Magnitude,
        "random": sc.scores.Random,
    },
    "pattern": {
        "unstructured": sc.patterns.Unstructured,
        "n-of-m": sc.patterns.NofM,
        "block": sc.patterns.Block,
    },
    "solver": {
        "keep": lambda: sc.solvers.keep,
        "refit": sc.solvers.Refit,
        "sparsegpt": sc.solvers.SparseGPT,
        "swaps": sc.solvers.Swaps,
        "alps": sc.solvers.ALPS,
        "exact-obs": sc.solvers.ExactOBS,
    },
    "weight allocation": {
        "even": lambda: sc.sparse.allocation.even,
        "erdos-renyi": lambda: sc.sparse.allocation.erdos_renyi,
        "outlier-weighted": sc.sparse.allocation.OutlierWeighted,
        "lowest": sc.sparse.allocation.Lowest,
        "below": sc.sparse.allocation.Below,
        "measured": sc.sparse.allocation.Measured,
    },
    "rounding": {
        "integer": sc.sparse.rounding.Integer,
    },
    "normalise": {
        "unchanged": normalise.unchanged,
        "mean": normalise.mean,
        "maximum": normalise.maximum,
        "standard": normalise.standard,
    },
    "compensation": {
        "refit": sc.compensation.Refit,
        "fold-mean": sc.compensation.FoldMean,
        "batch-norm": sc.compensation.ReestimateBatchNorm,
    },
    "target": {
        "eager": sc.targets.Eager,
        "compile": sc.targets.Compile,
        "onnxruntime": sc.targets.OnnxRuntime,
        "openvino": sc.targets.OpenVINO,
    },
    "optimizer": {
        "sgd": torch.optim.SGD,
        "adamw": torch.optim.AdamW,
    },
    "data": {
        "mnist-5k": mnist,
    },
    "evaluate": {
        "accuracy": metrics.accuracy,
    },
}
"""For each key of a job file, what its names stand for; options are the object's own arguments."""


ELSEWHERE = ("budget", "exclude", "multiple_of")
"""Arguments that a job gives as keys of their own, not as options."""

NESTED = ("otherwise", "score")
"""The options that are objects of the same kind: what takes over where this one has nothing to say, or what it is made of."""


def choose(key: str, name: str) -> Callable[..., Any]:
    """What a name stands for.

    Raises:
        JobError: It stands for nothing; says which one was meant.
    """
    if name not in NAMES[key]:
        raise JobError(f"{key}: there is no {name!r}{nearest(name, list(NAMES[key]))}")
    return NAMES[key][name]


def prepare(key: str, choice: Choice) -> Callable[..., Any]:
    """What a choice stands for, with its options filled in.

    Raises:
        JobError: The name or an option is unknown; says which one was meant.
    """
    chosen, options = choose(key, choice.name), dict(choice.options)
    known = [option for option in inspect.signature(chosen).parameters if option not in ELSEWHERE]
    for option, value in choice.options.items():
        if option not in known:
            takes = nearest(option, known) if known else "; it takes none"
            raise JobError(f"{key}: {choice.name!r} has no option {option!r}{takes}")
        if option in NESTED:
            named = Choice.model_validate({"name": value} if isinstance(value, str) else value)
            options[option] = attempt(prepare(key, named), f"{key}.{option}")
        elif option in NAMES:  # an option that is itself a choice
            options[option] = choose(option, value)
    return partial(chosen, **options)


def attempt(make: Callable[[], Any], key: str) -> Any:
    """Make what was prepared.

    Raises:
        JobError: A value is not one that it takes.
    """
    try:
        return make()
    except SecateurError:
        raise
    except (TypeError, ValueError) as error:
        raise JobError(f"{key}: a value does not fit: {error}") from error


def sparsification(table: Sparsification) -> dict[str, Any]:
    """Everything of a table that is an argument of `secateur.sparsify` as it is: all but what stays dense.

    Raises:
        BudgetError: How much goes is missing, out of range, or does not go with the pattern or the allocation.
        JobError: A name, an option or a value is not one that there is.
    """
    made = {
        name: attempt(prepare(key, choice), name)
        for name, key, choice in (
            ("score", "weight score", table.score),
            ("allocation", "weight allocation", table.allocation),
        )
    }
    pattern = _pattern(table.pattern)
    check_amount(pattern, table.sparsity, made["allocation"])
    return made | {
        "pattern": pattern,
        "solver": [attempt(prepare("solver", choice), "solver") for choice in table.solver],
        "rounding": table.rounding and attempt(prepare("rounding", table.rounding), "rounding"),
        "sparsity": table.sparsity,
        "include": table.include,
        "in_sequence": table.in_sequence,
        "samples": table.samples,
        "memory": int(table.memory * (1 << 30)),
    }


def _pattern(choice: Choice) -> Any:
    """A pattern by name, as "2:4", or as "16x1"."""
    if found := re.fullmatch(r"(\d+)(:|x)(\d+)", choice.name):
        numbers = int(found[1]), int(found[3])
        return sc.patterns.NofM(*numbers) if found[2] == ":" else sc.patterns.Block(*numbers)
    return attempt(prepare("pattern", choice), "pattern")
