"""Everything that is done with one model: find its axes, remove 30 % of each, prove it, save and reload it, export it."""

import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from analysed import Inputs
from catalogue import build
from machine import memory
from torch import nn

import secateur as sc
from secateur.torch.capture import call
from secateur.torch.structure import tensors_in

SHARE = 0.7
"""What stays of each axis."""

ENDS = ("the model's input", "the model's output")
"""Reasons that are no fault of anybody."""

MOST_REASONS = 8


def reach(name: str) -> dict[str, Any]:
    """The record of one model: how far it got, and what was found.

    Args:
        name: `library/model`.
    """
    record: dict[str, Any] = {"model": name, "tool": "secateur", "ok": False}
    with _stage(record, "build"):
        model, inputs = build(name)
    with _stage(record, "trace"):
        before, started = memory("VmRSS"), time.process_time()
        network = sc.trace(model, inputs)
        record |= {"seconds": time.process_time() - started, "peak_mb": memory("VmHWM") - before}
        record |= {"axes": len(network.axes), "free_share": free_share(network), "frozen": frozen(network)}
        if not network.axes:
            raise LookupError("no axis is free")
    with _stage(record, "plan"):
        generator = np.random.default_rng(0)
        plan = network.plan(
            {a.name: np.sort(generator.choice(a.size, a.near(SHARE * a.size), replace=False)) for a in network.axes}
        )
    with _stage(record, "run"):
        small = sc.compact(model, plan)
        outputs = run(small, inputs)
    with _stage(record, "verify"):
        proof = sc.verify(model, plan, inputs)
        record["max_error"] = max(proof.permutation, proof.zero_is_prune)
    with _stage(record, "reload"), tempfile.TemporaryDirectory() as folder:
        sc.save(small, folder, plan)
        again = run(sc.load(build(name)[0], folder), inputs)
        if not all(map(_equal, tensors_in(outputs), tensors_in(again))):
            raise ArithmeticError("the reloaded model gives other results")
    record |= {"ok": True, "exports": exports(small, inputs)}
    return record


class StageError(Exception):
    """What went wrong, with the record so far."""

    def __init__(self, record: dict[str, Any]) -> None:
        super().__init__(record["reason"])
        self.record = record


@contextmanager
def _stage(record: dict[str, Any], name: str) -> Iterator[None]:
    record["stage"] = name
    try:
        yield
    except Exception as error:
        record["reason"] = " ".join(f"{type(error).__name__}: {error}".split())[:400]
        raise StageError(record) from error


def run(model: nn.Module, inputs: Inputs) -> Any:
    """One call, without gradients; random numbers are the same in each."""
    torch.manual_seed(0)
    with torch.no_grad():
        return call(model, inputs)


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return torch.equal(left.nan_to_num(), right.nan_to_num()) if left.is_floating_point() else torch.equal(left, right)


def exports(model: nn.Module, inputs: Inputs) -> bool:
    """Whether `torch.export` exports the model, and what it exports runs."""
    args = () if isinstance(inputs, dict) else inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    try:
        torch.export.export(model, args, kwargs).module()(*args, **kwargs)
    except Exception:  # noqa: BLE001 - it also fails for many dense models
        return False
    return True


def free_share(network: Any) -> float:
    """The share of the parameters that go with some unit."""
    whole = fixed = 0
    for name, spec in network.tensors.items():
        if spec.parameter:
            whole += prod(spec.shape)
            fixed += prod(
                n if units is None else int((units < 0).all(axis=0).sum())
                for n, units in zip(spec.shape, network.dims[name], strict=True)
            )
    return 1 - fixed / whole if whole else 0.0


def frozen(network: Any) -> list[tuple[int, str, str]]:
    """The reasons that hold most parameters: how many, why, and the line."""
    held: Counter[tuple[str, str]] = Counter()
    for item in network.frozen:
        if item.reason not in ENDS:
            shape = network.tensors[item.tensor].shape
            held[item.reason[:200], item.where.partition(" in ")[0]] += prod(shape) * item.count // shape[item.dim]
    return [(count, *why) for why, count in held.most_common(MOST_REASONS)]


def results(path: Path) -> list[dict[str, Any]]:
    """The records of a file, one JSON object a line; a line that a kill cut short is left out."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found
