"""Seconds and memory to find out what can be removed from a model: Secateur against its peers.

    python benchmarks/trace.py                          # everything, some ten minutes
    python benchmarks/trace.py --models ResNet-50 --rounds 3 --output quick.json

Each model is analysed by each tool in a process of its own first, for the peak of the memory and to see whether the tool can do
it within the limits. Then those that can take turns in one process: after a warm-up, the median of several rounds counts.
"""

import argparse
import gc
import json
import os
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from machine import load, machine, memory, versions
from models.large import MODELS, TOKENS
from tools.analysers import TOOLS
from torch import nn

MEBIBYTE = 1 << 20
SLOW = 3.0
"""A tool that takes longer than so many seconds gets fewer rounds."""

GOALS: Mapping[str, tuple[float, float]] = {
    "ResNet-200": (2.0, float("inf")),
    "Llama 8B": (5.0, 2048.0),
    "Llama 70B": (15.0, float("inf")),
    "Llama 405B": (30.0, 4096.0),
}
"""The most wall seconds and the most MiB that Secateur may take."""


def main() -> None:
    """Measure, print, write."""
    options = parse()
    if options.worker:
        print(json.dumps(work(options)))
        return
    started = load()
    measured = {model: measure(model, options) for model in options.models}
    result = report(measured, options, (started, load()))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for goal, met in result["goals"].items():
        print(f"{'met   ' if met else 'MISSED'} {goal}")


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS), metavar="NAME")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="NAME")
    parser.add_argument("--rounds", type=int, default=11, help="a third of it for what takes long")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one analysis")
    parser.add_argument("--memory", type=float, default=8, help="GiB of address space for one analysis of a peer")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "trace.json")
    parser.add_argument("--worker", choices=("once", "turns"), help=argparse.SUPPRESS)
    return parser.parse_args()


def measure(model: str, options: argparse.Namespace) -> dict[str, Any]:
    """All tools on one model."""
    found = {}
    for tool in options.tools:
        found[tool] = run(options, "once", model, [tool], options.limit + 60)
        print(f"{model}: {tool}: {describe(found[tool])}", flush=True)
    able = [tool for tool in options.tools if "error" not in found[tool]]
    slowest = max((found[tool]["wall"] for tool in able), default=0.0)
    rounds = options.rounds if slowest < SLOW else max(3, options.rounds // 3)
    turns = run(
        options, "turns", model, able, 60 + (rounds + 1) * sum(4 * found[tool]["wall"] for tool in able), rounds
    )
    for tool in able:
        found[tool]["turns"] = turns.get(tool, [])
        if found[tool]["turns"]:
            print(f"{model}: {tool}: {seconds(found[tool], 0):.3f} CPU s, {seconds(found[tool], 1):.3f} s", flush=True)
    return found


def run(
    options: argparse.Namespace, job: str, model: str, tools: Sequence[str], limit: float, rounds: int = 0
) -> dict[str, Any]:
    """One process; what it prints last is its result."""
    command = [sys.executable, __file__, "--worker", job, "--models", model, "--tools", *tools]
    command += ["--rounds", str(rounds), "--limit", str(options.limit), "--memory", str(options.memory)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"did not finish in {options.limit:.0f} s"}
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or [f"the process ended with {done.returncode}"]
        return {"error": last[0][:300]}
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def work(options: argparse.Namespace) -> dict[str, Any]:
    """What a worker process does."""
    torch.set_num_threads(1)
    name, tools = options.models[0], options.tools
    if options.worker == "turns":
        return take_turns(name, tools, options.rounds)
    if tools != ["secateur"]:
        allowed = int(options.memory * 1024 * MEBIBYTE)
        resource.setrlimit(resource.RLIMIT_AS, (allowed, allowed))
    return once(name, tools[0], options.limit)


def once(name: str, tool: str, limit: float) -> dict[str, Any]:
    """One analysis in a fresh process, after the tool has seen a tiny model, so that its imports do not count."""
    chosen, (model, inputs) = TOOLS[tool], MODELS[name]()
    model.eval()
    chosen.analyse(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), torch.zeros(1, 4))
    gc.collect()
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak counts from here
    before = memory("VmRSS")
    cpu, wall = time.process_time(), time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            found = chosen.analyse(model, inputs)
    except Exception as error:  # noqa: BLE001 - whatever a tool says goes into the table
        return {"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    if wall > limit:
        return {"error": f"took {wall:.0f} s, more than {limit:.0f} s"}
    peak = memory("VmHWM")
    return {
        "cpu": cpu,
        "wall": wall,
        "added": peak - before,
        "peak": peak,
        "found": chosen.found(found),
        "said": len(said),
    }


def take_turns(name: str, tools: Sequence[str], rounds: int) -> dict[str, list[tuple[float, float]]]:
    """CPU and wall seconds of each round, each tool on a model of its own."""
    jobs: dict[str, Callable[[], Any]] = {}
    for tool in tools:
        model, inputs = MODELS[name]()
        model.eval()
        jobs[tool] = lambda tool=tool, model=model, inputs=inputs: TOOLS[tool].analyse(model, inputs)
    times: dict[str, list[tuple[float, float]]] = {tool: [] for tool in tools}
    for turn in range(rounds + 1):
        start = turn % len(tools)
        for tool in [*tools[start:], *tools[:start]]:
            gc.collect()
            cpu, wall = time.process_time(), time.perf_counter()
            found = jobs[tool]()
            times[tool].append((time.process_time() - cpu, time.perf_counter() - wall))
            del found
    return {tool: pairs[1:] for tool, pairs in times.items()}


def seconds(result: Mapping[str, Any], which: int) -> float:
    """The median of the rounds: of CPU seconds (0) or wall seconds (1)."""
    return statistics.median(pair[which] for pair in result["turns"])


def describe(result: Mapping[str, Any]) -> str:
    if "error" in result:
        return str(result["error"])
    return f"{result['cpu']:.3f} CPU s, {result['wall']:.3f} s, {result['peak']:.0f} MiB, {result['found']}"


def report(measured: Mapping[str, Any], options: argparse.Namespace, loads: tuple[float, float]) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it, with all single measurements."""
    rows = [row(model, tool, found) for model, tools in measured.items() for tool, found in tools.items()]
    return {
        "title": "Time and memory to analyse a model",
        "command": "python benchmarks/trace.py",
        "machine": f"{machine()}; one thread; load {loads[0]} at the start and {loads[1]} at the end",
        "columns": [
            "model",
            "tool",
            "CPU s",
            "least - most",
            "wall s",
            "first call, CPU s",
            "adds MiB",
            "peak MiB",
            "result",
        ],
        "rows": rows,
        "notes": [
            "CPU s and wall s: medians after one warm-up; the tools take turns in one process. Least - most: of the CPU seconds.",
            "First call: in a fresh process that has analysed a three-layer model before. Its memory: what the analysis adds to "
            "the resident memory at its peak, and the peak of the whole process, in which the model is.",
            "torch-pruning and torch-kirigami build a graph first and ask it for what goes together later. Both are measured of "
            "torch-pruning; torch-kirigami's candidates did not come within 120 s on ResNet-50, and are left out. secateur's one "
            "call gives all axes with their units, and the reason of whatever is frozen.",
            f"A tool may take {options.limit:.0f} s, and a peer {options.memory:g} GiB of address space; where it fails, the "
            "result is its own error.",
            f"Models are not pretrained, batch size 1, images 224 x 224, texts of {TOKENS} tokens; Llama models, DeepSeek-V3 and the U-Net are on the meta device.",  # noqa: E501
        ],
        "goals": goals(measured),
        "versions": versions(
            (
                "torch",
                "torchvision",
                "transformers",
                "diffusers",
                "numpy",
                *sorted({tool.package for tool in TOOLS.values()}),
            )
        ),
        "values": measured,
    }


def row(model: str, tool: str, found: Mapping[str, Any]) -> list[Any]:
    if "error" in found or not found["turns"]:
        return [model, tool, *["-"] * 6, found.get("error", "failed when it took turns")]
    cpu = [pair[0] for pair in found["turns"]]
    spread = f"{min(cpu):.3g} - {max(cpu):.3g}"
    times = (seconds(found, 0), spread, seconds(found, 1), found["cpu"])
    return [model, tool, *times, round(found["added"]), round(found["peak"]), found["found"]]


def goals(measured: Mapping[str, Any]) -> dict[str, bool]:
    """What the project promises, and whether it was so this time."""
    met = {}
    for model, tools in measured.items():
        ours = tools.get("secateur", {})
        for tool, found in tools.items():
            if tool != "secateur" and found.get("turns"):
                met[f"{model}: not slower than {tool}"] = bool(ours.get("turns")) and seconds(ours, 0) <= seconds(
                    found, 0
                )
        if model in GOALS:
            most_seconds, most_memory = GOALS[model]
            fine = bool(ours.get("turns")) and seconds(ours, 1) < most_seconds and ours["peak"] < most_memory
            met[f"{model}: in {most_seconds:g} s and {most_memory:g} MiB"] = fine
    return met


if __name__ == "__main__":
    main()
