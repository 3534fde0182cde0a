"""Accuracy at a half, a quarter and an eighth of the multiply-adds: Secateur against its peers, at the same widths.

    python benchmarks/quality.py --data DIR             # everything, some thirty minutes in one idle thread
    python benchmarks/quality.py --tasks fashion --quick --output quick.json

Every tool gets the same trained network, the same calibration sample and the widths to leave; then the same short training
follows. Each measurement is kept as it comes: a run that was ended goes on from there, a finished one starts anew.
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import machine, versions
from rich.console import Console
from rich.progress import Progress
from tasks.images import BATCH, Images, MissingDataError
from tasks.tasks import DENSE_EPOCHS, QUICK, SIZES, TASKS, TITLES, Sizes, Task
from tools.pruners import OWN_WIDTHS, TOOLS, Cut, Job, MissingPackageError, check_installed, goal_of
from torch import nn

import secateur as sc

SHARES: Mapping[str, float] = {"2x": 1 / 2, "4x": 1 / 4, "8x": 1 / 8}
"""What stays of the multiply-adds."""

CALIBRATION = 512
"""Images to score and to mend with."""

EPOCHS = 1
"""Of the training after pruning."""

STREAM = (
    "The weights of the ResNet-20 are the same for all seeds. Its residual stream stays whole, but for the row with all axes: "
    "torch-pruning stops with an error at shortcuts that are padded with zeros, and torch-kirigami finds no plan to narrow them."
)


def main() -> None:
    """Measure, print, write."""
    options = parse()
    torch.set_num_threads(1)
    try:
        check_installed(TOOLS[tool].package for tool in options.tools)
        records = measure(options)
    except (MissingDataError, MissingPackageError) as error:
        sys.exit(f"quality.py: {error}")
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(report(records, options), indent=1) + "\n", encoding="utf-8")
    options.records.unlink(missing_ok=True)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="has cifar10-jpeg.tar.xz and resnet20-jpeg.safetensors"
    )
    parser.add_argument(
        "--fashion", type=Path, metavar="DIR", default=Path("/usr/share/datasets/fashion-mnist"), help="has *-ubyte.gz"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS), metavar="NAME")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--quick", action="store_true", help="few images: to see whether it runs")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/quality.json, if not --quick")
    parser.add_argument("--records", type=Path, default=folder.parent / "build" / "quality.jsonl", help="to go on from")
    options = parser.parse_args()
    if options.seeds < 1:
        parser.error(f"--seeds {options.seeds}: at least one")
    if options.data is None and "cifar" in options.tasks:
        print("ResNet-20 on CIFAR-10 is left out: no --data DIR with cifar10-jpeg.tar.xz and resnet20-jpeg.safetensors")
        options.tasks.remove("cifar")
    if not options.tasks:
        parser.error("nothing is left to measure")
    if options.output is None:
        options.output = options.records.with_suffix(".json") if options.quick else folder / "results" / "quality.json"
    return options


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All records: those of an earlier run with the same settings, and the missing ones."""
    sizes = QUICK if options.quick else SIZES
    tasks = {name: TASKS[name](options, sizes[name]) for name in options.tasks}
    wanted = {(task, seed, tool) for task in tasks for seed in range(options.seeds) for tool in options.tools}
    records = [
        record
        for record in kept_records(options.records)
        if (record["task"], record["seed"], record["tool"]) in wanted
        and record["sizes"] == asdict(sizes[record["task"]])
    ]
    with Progress(*Progress.get_default_columns(), console=Console(stderr=True)) as progress:
        bar = progress.add_task("", total=len(wanted) * len(SHARES), completed=len(records))
        for name, task in tasks.items():
            done = {(r["seed"], r["tool"], r["share"]) for r in records if r["task"] == name}
            for record in measure_task(task, options, done):
                records.append({"task": name, "sizes": asdict(sizes[name]), **record})
                with options.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                progress.update(bar, advance=1, description=f"{name}, {record['tool']}")
                progress.console.print(f"{name:8} {describe(record)}", soft_wrap=True, highlight=False)
    return records


def measure_task(task: Task, options: argparse.Namespace, done: Set[tuple[int, str, str]]) -> Iterator[dict[str, Any]]:
    """The records of one task that are not done yet."""
    for seed in range(options.seeds):
        todo = [tool for tool in options.tools if any((seed, tool, share) not in done for share in SHARES)]
        if not todo:
            continue
        dense = task.dense(seed)
        job = Job(dense, task.train.pixels[:1], task.train.sample(CALIBRATION, seed).batches(), task.exclude, seed)
        whole = {"dense": accuracy(dense, task.test), "dense macs": macs(dense, job)}
        for tool in todo:
            cut = TOOLS[tool].prepare(job)
            for share, part in SHARES.items():
                if (seed, tool, share) not in done:
                    yield {"seed": seed, "tool": tool, "share": share, **whole, **pruned(cut, part, job, task)}


def pruned(cut: Cut, part: float, job: Job, task: Task) -> dict[str, Any]:
    """One tool at one share: what it leaves, before and after the short training."""
    goal = goal_of(job, part)
    started = time.process_time()
    small = cut(goal)
    seconds = time.process_time() - started
    at_once = accuracy(small, task.test)
    layers = {name: layer for name, layer in small.named_modules() if isinstance(layer, nn.Conv2d)}
    found = {
        "same widths": all(
            layer.out_channels == goal.widths.get(name, job.dense.get_submodule(name).out_channels)
            for name, layer in layers.items()
        ),
        "macs": macs(small, job),
        "seconds": seconds,
        "at once": at_once,
    }
    sc.recover.FineTune(epochs=EPOCHS, seed=job.seed)(small, task.train.shuffled())
    return {**found, "recovered": accuracy(small, task.test)}


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """The share of images whose class has the highest output."""
    model.eval()
    right = sum(int((model(pixels).argmax(1) == labels).sum()) for pixels, labels in images.batches())
    return right / len(images.labels)


def macs(model: nn.Module, job: Job) -> int:
    """The multiply-adds of one image, counted alike whoever made the model."""
    return sc.trace(model, job.example).cost().macs


def kept_records(path: Path) -> list[dict[str, Any]]:
    """What an earlier run left, without a last line that was cut off, which is removed from the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    whole = text[: text.rfind("\n") + 1]
    if whole != text:
        path.write_text(whole, encoding="utf-8")
    return [json.loads(line) for line in whole.splitlines()]


def describe(record: Mapping[str, Any]) -> str:
    return (
        f"seed {record['seed']} {record['tool']:28} {record['share']}: {record['macs'] / record['dense macs']:6.1%} of "
        f"{record['dense macs']:,} multiply-adds, {record['dense']:.1%} -> {record['at once']:.1%}, "
        f"trained {record['recovered']:.1%} ({record['seconds']:.1f} CPU s)"
    )


def report(records: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it, with all single measurements."""
    rows = [row for task in options.tasks for row in rows_of(task, [r for r in records if r["task"] == task], options)]
    return {
        "title": "Accuracy after pruning, at the same widths",
        "command": "python benchmarks/quality.py" + " --data DIR" * ("cifar" in options.tasks),
        "machine": f"{machine()}; one thread",
        "columns": ["network", "tool", "criterion", "mended", *SHARES, *(f"{share}, trained" for share in SHARES)],
        "rows": rows,
        "notes": notes(records),
        "versions": versions(("torch", "numpy", *sorted({TOOLS[tool].package for tool in options.tools}))),
        "values": list(records),
    }


def rows_of(task: str, records: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[list[Any]]:
    """The table's rows of one task: the dense network, then the tools."""
    dense = {record["seed"]: record["dense"] for record in records}
    rows: list[list[Any]] = [[TITLES[task], "dense", "-", "-", spread(dense.values()), *["-"] * (2 * len(SHARES) - 1)]]
    for tool in options.tools:
        cells = [
            spread(record[when] for record in records if record["tool"] == tool and record["share"] == share)
            for when in ("at once", "recovered")
            for share in SHARES
        ]
        rows.append([TITLES[task], TOOLS[tool].package, TOOLS[tool].criterion, TOOLS[tool].mended, *cells])
    return rows


def notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    """How to read the table, as the records say."""
    sizes = {record["task"]: Sizes(**record["sizes"]) for record in records}
    seeds = len({record["seed"] for record in records})
    others = [record for record in records if record["tool"] not in OWN_WIDTHS]
    same = sum(record["same widths"] for record in others)
    told = [
        f"Accuracy in per cent: the mean over {seeds} seeds (least - most). A seed decides the calibration sample, the order of "
        "the data after pruning, the random scores, and the training of the dense CNN.",
        "2x, 4x, 8x: as many times fewer multiply-adds. Every tool leaves the same part of every layer: "
        f"{same} of {len(others)} networks have exactly the wanted widths. Only the rows that say so choose their own, as "
        "`secateur.prune` does by itself, within the same multiply-adds.",
        f"Every tool gets the same {CALIBRATION} training images to score and to mend with. Mended: what is done to the weights "
        "and running statistics before any training; the peers do nothing of that kind. In one row the batch norms are measured "
        "anew by the benchmark, as anybody can in a few lines.",
        f"Trained: {EPOCHS} epoch in batches of {BATCH}, the same for all: stochastic gradient descent with a learning rate of "
        "0.03 that falls to 0 along a cosine, the default of `secateur.recover.FineTune`.",
    ]
    told += [f"{TITLES[task]}: {described(size)}." for task, size in sizes.items()]
    return told + ([STREAM] if "cifar" in sizes else [])


def described(sizes: Sizes) -> str:
    """The numbers of images in words."""
    dense = f"dense network trained on {sizes.dense:,} images for {DENSE_EPOCHS} epochs; " if sizes.dense else ""
    return f"{dense}{sizes.train:,} images to train on after pruning, {sizes.test:,} test images"


def spread(values: Iterable[float]) -> str:
    """The mean in per cent, and between which values it lies."""
    found = [100 * value for value in values]
    return f"{statistics.mean(found):.1f} ({min(found):.1f} - {max(found):.1f})"


if __name__ == "__main__":
    main()
