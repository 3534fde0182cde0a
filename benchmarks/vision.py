"""A ResNet-20 whose weights become sparse, at once or while it trains: accuracy at 80, 90, 95 and 98 % of zeros.

    python benchmarks/vision.py                                     # everything; hours in one thread
    python benchmarks/vision.py --quick --methods torch gradual     # few images: to see whether it runs

Images are those of Fashion-MNIST, grey repeated in three channels. Every method gets the same trained network, the same
calibration images and, if it trains, the same training. Records are kept as they come: a run that was ended goes on from there.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import load, machine, versions
from quality import accuracy, kept_records, spread
from reaching.counted import write
from tasks.classifiers import ResNet20
from tasks.images import BATCH, Images, MissingDataError, fashion
from tools.sparse import EPOCHS, EVERY, METHODS, RAMP, Job, layers
from torch import nn

import secateur as sc

SPARSITIES: Mapping[str, float] = {"80 %": 0.8, "90 %": 0.9, "95 %": 0.95, "98 %": 0.98}

CALIBRATION = 512
"""Images to score and to mend with."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many images there are to train on, before and after, and to test on, and how many epochs before."""

    train: int
    test: int
    dense_epochs: int


FULL, QUICK = Sizes(20_000, 10_000, 8), Sizes(500, 500, 1)


def main() -> None:
    """Measure what is missing, then write all that is known."""
    options = parse()
    torch.set_num_threads(1)
    sizes = QUICK if options.quick else FULL
    try:
        train, test = (colourful(images) for images in fashion(options.fashion))
    except MissingDataError as error:
        sys.exit(f"vision.py: {error}")
    records = [record for record in kept_records(options.records) if record["sizes"] == asdict(sizes)]
    for seed in range(options.seeds):
        wanted = [(method, at) for method in options.methods for at in options.sparsities]
        done = {(record["method"], record["at"]) for record in records if record["seed"] == seed}
        if todo := [each for each in wanted if each not in done]:
            for record in measured(seed, todo, train.first(sizes.train), test.first(sizes.test), sizes.dense_epochs):
                records.append(record | {"sizes": asdict(sizes)})
                with options.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                print(json.dumps(records[-1]), flush=True)
    write(report(records, options, sizes), options.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent
    parser.add_argument(
        "--fashion", type=Path, metavar="DIR", default=Path("/usr/share/datasets/fashion-mnist"), help="has *-ubyte.gz"
    )
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--sparsities", nargs="+", choices=SPARSITIES, default=list(SPARSITIES), metavar="SHARE")
    parser.add_argument("--seeds", type=int, default=3, help="how many")
    parser.add_argument("--quick", action="store_true", help="few images: to see whether it runs")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/vision.json, if not --quick")
    parser.add_argument("--records", type=Path, default=folder.parent / "build" / "vision.jsonl", help="to go on from")
    options = parser.parse_args()
    if options.output is None:
        options.output = options.records.with_suffix(".json") if options.quick else folder / "results" / "vision.json"
    return options


def measured(
    seed: int, todo: Sequence[tuple[str, str]], train: Images, test: Images, epochs: int
) -> Iterable[dict[str, Any]]:
    """One record for each method and sparsity, with one dense network for all."""
    torch.manual_seed(seed)
    dense = sc.recover.FineTune(epochs, learning_rate=0.1, seed=seed)(ResNet20(), train.shuffled()).eval()
    calibration, steps = train.sample(CALIBRATION, seed).batches(), EPOCHS * len(train.shuffled())
    whole = accuracy(dense, test)
    for method, at in todo:
        started = time.process_time()
        job = Job(dense, calibration, train.shuffled(), steps, SPARSITIES[at], seed)
        model = METHODS[method].run(job)
        seconds = round(time.process_time() - started, 1)
        yield {
            "seed": seed,
            "method": method,
            "at": at,
            "zeros": zeros(model),
            "dense": whole,
            "accuracy": accuracy(model, test),
            "seconds": seconds,
            "load": load(),
        }


def zeros(model: nn.Module) -> float:
    """The share of the weights of convolutions and linear layers that are zero."""
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers(model)])
    return float((weights == 0).double().mean())


def colourful(images: Images) -> Images:
    """Grey images, in the three channels that the network reads."""
    return Images(images.pixels.expand(-1, 3, -1, -1), images.labels)


def report(records: Sequence[Mapping[str, Any]], options: argparse.Namespace, sizes: Sizes) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it, with all single measurements."""
    seeds = {record["seed"]: record["dense"] for record in records}
    blank = ["-"] * (len(options.sparsities) - 1)
    rows = [["dense", "-", "-", "-", spread(seeds.values()), *blank]]
    for name in options.methods:
        row = METHODS[name]
        found = [[r for r in records if (r["method"], r["at"]) == (name, at)] for at in options.sparsities]
        cells = [spread(record["accuracy"] for record in each) if each else "-" for each in found]
        rows.append([row.tool, row.what, row.mended, f"{EPOCHS} epochs" if row.trained else "-", *cells])
    loads = [record["load"] for record in records]
    return {
        "title": "Accuracy of a ResNet-20 with zeros",
        "command": "python benchmarks/vision.py",
        "machine": f"{machine()}; one thread; load {min(loads)} to {max(loads)}",
        "columns": ["tool", "what goes", "mended", "trained", *options.sparsities],
        "rows": rows,
        "notes": [
            f"Accuracy in per cent: the mean over {len(seeds)} seeds (least - most), on {sizes.test:,} test images of "
            "Fashion-MNIST. A seed decides the dense network, the calibration images and the order of the data.",
            f"The dense network is trained on {sizes.train:,} images for {sizes.dense_epochs} epochs in batches of {BATCH}. What "
            f"is trained goes on for {EPOCHS} epochs, all alike, with the default of `secateur.recover.FineTune`.",
            f"Gradual: the sparsity rises from 0 along the cubic of Zhu and Gupta over the first {RAMP:.0%} of that, every "
            f"{EVERY} steps. Mended: on {CALIBRATION} training images, without labels.",
            f"Zeros were counted: the share was missed by at most {missed(records):.2%} of the weights.",
        ],
        "versions": versions(("torch", "numpy")),
        "values": list(records),
    }


def missed(records: Iterable[Mapping[str, Any]]) -> float:
    """By how much the share of zeros differs from what was asked for, at most."""
    return max(abs(record["zeros"] - SPARSITIES[record["at"]]) for record in records)


if __name__ == "__main__":
    main()
