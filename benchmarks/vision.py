"""Image classifiers whose weights become sparse, at once or while they train: accuracy at 80, 90, 95 and 98 % of zeros.

    python benchmarks/vision.py --data DIR                                          # everything; hours in one thread
    python benchmarks/vision.py --tasks fashion --quick --methods torch gradual     # few images: to see whether it runs

Every method gets the same trained network, the same calibration images and, if it trains, the same training. Networks that are
trained here, and records, are kept as they come: a run that was ended goes on from there; --report writes what is known.
"""

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch
from machine import load, machine, versions
from quality import accuracy, kept_records, spread
from reaching.counted import write
from safetensors.torch import load_file, save_file
from tasks.classifiers import ResNet, efficientnet, loaded_resnet
from tasks.images import BATCH, CIFAR_DEVIATION, CIFAR_MEAN, Images, MissingDataError, cifar, fashion
from tasks.tasks import Task
from tools.sparse import EVERY, METHODS, RAMP, Job, layers
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc

SPARSITIES: Mapping[str, float] = {"80 %": 0.8, "90 %": 0.9, "95 %": 0.95, "98 %": 0.98}
CALIBRATION = 512
"""Images to score and to mend with."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much there is of everything.

    Attributes:
        train: Images to calibrate on and to train on.
        test: Images to measure on.
        epochs: Of the training in which, or after which, weights go; 0 = what trains is left out.
        dense_epochs: Of the training before; 0 = weights come from elsewhere.
        seeds: How many; one where chance decides too little to be worth it.
    """

    train: int
    test: int
    epochs: int
    dense_epochs: int = 0
    seeds: int = 1


SIZES: Mapping[str, Sizes] = {
    "fashion": Sizes(5_000, 10_000, 3, dense_epochs=8, seeds=3),
    "cifar": Sizes(5_000, 2_000, 2),
    "lite": Sizes(500, 500, 0),
}
QUICK: Mapping[str, Sizes] = {
    "fashion": Sizes(500, 500, 1, dense_epochs=1),
    "cifar": Sizes(200, 200, 1),
    "lite": Sizes(50, 50, 0),
}
TITLES: Mapping[str, str] = {
    "fashion": "ResNet-20, Fashion-MNIST",
    "cifar": "ResNet-56, CIFAR-10 (JPEG copy)",
    "lite": "EfficientNet-Lite0, agreement",
}


def main() -> None:
    """Measure what is missing, then write all that is known."""
    options = parse()
    torch.set_num_threads(1)
    chosen = QUICK if options.quick else SIZES
    records = kept_records(options.records)
    records = [record for record in records if record["sizes"] == asdict(chosen[record["task"]])]
    for name in [] if options.report else options.tasks:
        sizes = chosen[name]
        try:
            task = TASKS[name](options, sizes)
            for record in missing(name, task, sizes, options, records):
                records.append({"task": name, "sizes": asdict(sizes), **record})
                with options.records.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(records[-1]) + "\n")
                print(json.dumps(records[-1]), flush=True)
        except MissingDataError as error:
            sys.exit(f"vision.py: {error}")
    write(report(records, options, chosen), options.output)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    folder = Path(__file__).parent
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="has cifar10-jpeg.tar.xz and resnet56-jpeg.safetensors"
    )
    parser.add_argument(
        "--fashion", type=Path, metavar="DIR", default=Path("/usr/share/datasets/fashion-mnist"), help="has *-ubyte.gz"
    )
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS), metavar="NAME")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), metavar="NAME")
    parser.add_argument("--sparsities", nargs="+", choices=SPARSITIES, default=list(SPARSITIES), metavar="SHARE")
    parser.add_argument("--seeds", type=int, help="how many at most")
    parser.add_argument("--report", action="store_true", help="measure nothing, and write what is known")
    parser.add_argument("--quick", action="store_true", help="few images: to see whether it runs")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/vision.json, if not --quick")
    parser.add_argument("--records", type=Path, default=folder.parent / "build" / "vision.jsonl", help="to go on from")
    options = parser.parse_args()
    if options.data is None and not options.report and {"cifar", "lite"} & set(options.tasks):
        print("cifar and lite are left out: no --data DIR with cifar10-jpeg.tar.xz and resnet56-jpeg.safetensors")
        options.tasks = [task for task in options.tasks if task == "fashion"]
    if not options.tasks:
        parser.error("nothing is left to measure")
    if options.output is None:
        options.output = options.records.with_suffix(".json") if options.quick else folder / "results" / "vision.json"
    return options


def fashion_task(options: argparse.Namespace, sizes: Sizes) -> Task:
    """A ResNet-20 that is trained here, on all images that there are to train on."""
    whole, test = (colourful(images) for images in fashion(options.fashion))

    def dense(seed: int) -> nn.Module:
        path = options.records.with_name(f"{options.records.stem}-fashion-{sizes.dense_epochs}-{seed}.safetensors")
        model = ResNet(20)
        if path.exists():
            model.load_state_dict(load_file(path))
        else:
            torch.manual_seed(seed)
            model = ResNet(20)
            images = whole.first(2 * sizes.train)
            sc.recover.FineTune(sizes.dense_epochs, learning_rate=0.1, seed=seed)(model, images.shuffled())
            save_file(model.state_dict(), path)
        return model.eval()

    return Task(whole.first(sizes.train), test.first(sizes.test), dense)


def cifar_task(options: argparse.Namespace, sizes: Sizes) -> Task:
    """A ResNet-56 with weights from elsewhere."""
    train, test = cifar(options.data, sizes.train, sizes.test)
    return Task(train, test, lambda _: loaded_resnet(56, options.data))


def lite_task(options: argparse.Namespace, sizes: Sizes) -> Task:
    """An EfficientNet-Lite0, on images that it was not trained on: what counts is the class that the dense network gives."""
    dense = efficientnet()

    def judged(images: Images) -> Images:
        with torch.no_grad():
            pixels = large(images.pixels)
            return Images(pixels, torch.cat([dense(part).argmax(1) for part in pixels.split(50)]))

    train, test = cifar(options.data, sizes.train, sizes.test)
    return Task(judged(train), judged(test), lambda _: dense)


TASKS: Mapping[str, Callable[[argparse.Namespace, Sizes], Task]] = {
    "fashion": fashion_task,
    "cifar": cifar_task,
    "lite": lite_task,
}


def colourful(images: Images) -> Images:
    """Grey images, in three channels."""
    return Images(images.pixels.expand(-1, 3, -1, -1), images.labels)


def large(pixels: Tensor) -> Tensor:
    """Images as EfficientNet-Lite0 takes them: 224 x 224, standardised in its way."""
    mean, deviation = torch.tensor(CIFAR_MEAN).view(3, 1, 1), torch.tensor(CIFAR_DEVIATION).view(3, 1, 1)
    grown = F.interpolate(pixels * deviation + mean, size=224, mode="bilinear", align_corners=False)
    return (grown - 0.498) / 0.502


def missing(
    name: str, task: Task, sizes: Sizes, options: argparse.Namespace, records: Sequence[Mapping[str, Any]]
) -> Iterable[dict[str, Any]]:
    """The records of one task that are not there yet."""
    wanted = [
        (method, at)
        for method in options.methods
        for at in options.sparsities
        if sizes.epochs or not METHODS[method].trained
    ]
    for seed in range(min(sizes.seeds, options.seeds or sizes.seeds)):
        done = {
            (record["method"], record["at"]) for record in records if (record["task"], record["seed"]) == (name, seed)
        }
        if todo := [each for each in wanted if each not in done]:
            yield from measured(task, sizes, seed, todo)


def measured(task: Task, sizes: Sizes, seed: int, todo: Sequence[tuple[str, str]]) -> Iterable[dict[str, Any]]:
    """One record for each method and sparsity, with one dense network for all."""
    dense = task.dense(seed)
    calibration, steps = task.train.sample(CALIBRATION, seed).batches(), sizes.epochs * len(task.train.shuffled())
    whole = accuracy(dense, task.test)
    for method, at in todo:
        started = time.process_time()
        job = Job(dense, calibration, task.train.shuffled(), steps, SPARSITIES[at], sizes.epochs, seed)
        model = METHODS[method].run(job)
        seconds = round(time.process_time() - started, 1)
        yield {
            "seed": seed,
            "method": method,
            "at": at,
            "zeros": zeros(model),
            "dense": whole,
            "accuracy": accuracy(model, task.test),
            "seconds": seconds,
            "load": load(),
        }


def zeros(model: nn.Module) -> float:
    """The share of the weights of convolutions and linear layers that are zero."""
    weights = torch.cat([layer.weight.detach().flatten() for layer in layers(model)])
    return float((weights == 0).double().mean())


def report(
    records: Sequence[Mapping[str, Any]], options: argparse.Namespace, chosen: Mapping[str, Sizes]
) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it, with all single measurements."""
    rows = [row for task in TASKS for row in rows_of(task, [r for r in records if r["task"] == task], options)]
    loads = [record["load"] for record in records]
    fashion_sizes, cifar_sizes, lite_sizes = chosen["fashion"], chosen["cifar"], chosen["lite"]
    return {
        "title": "Accuracy of classifiers with zeros",
        "command": "python benchmarks/vision.py --data DIR",
        "machine": f"{machine()}; one thread; load {min(loads)} to {max(loads)}",
        "columns": ["network", "tool", "what goes", "mended", "trained", *options.sparsities],
        "rows": rows,
        "notes": [
            "Accuracy in per cent: the mean over the seeds (least - most), of which there are "
            + ", ".join(f"{len({r['seed'] for r in records if r['task'] == t})} for {TITLES[t]}" for t in TASKS)
            + ". A seed decides the calibration images, the order of the data, and for Fashion-MNIST the dense network.",
            f"Fashion-MNIST: the dense network is trained on {2 * fashion_sizes.train:,} images for "
            f"{fashion_sizes.dense_epochs} epochs in batches of {BATCH}; what is trained goes on for {fashion_sizes.epochs} "
            f"epochs of {fashion_sizes.train:,} images; {fashion_sizes.test:,} test images. CIFAR-10: a copy that went through "
            f"JPEG, and weights from elsewhere; {cifar_sizes.epochs} epochs of {cifar_sizes.train:,} images; "
            f"{cifar_sizes.test:,} test images. Training is alike for all, with the default of `secateur.recover.FineTune`.",
            "EfficientNet-Lite0: there are no images of ImageNet, so what counts is how often a network gives the class that "
            f"the dense one gives, on {lite_sizes.test} images of the copy of CIFAR-10, enlarged; nothing is trained.",
            f"Gradual: the sparsity rises from 0 along the cubic of Zhu and Gupta over the first {RAMP:.0%} of the training, "
            f"every {EVERY} steps. Mended: on {CALIBRATION} training images, without labels.",
            f"Zeros were counted: the share was missed by at most {missed(records):.2%} of the weights.",
        ],
        "versions": versions(("torch", "numpy", "efficientnet-lite-pytorch")),
        "values": list(records),
    }


def rows_of(task: str, records: Sequence[Mapping[str, Any]], options: argparse.Namespace) -> list[list[Any]]:
    """The table's rows of one task: the dense network, then the methods."""
    if not records:
        return []
    seeds = {record["seed"]: record["dense"] for record in records}
    epochs = records[0]["sizes"]["epochs"]
    rows = [[TITLES[task], "dense", "-", "-", "-", spread(seeds.values()), *["-"] * (len(options.sparsities) - 1)]]
    for name in options.methods:
        row = METHODS[name]
        found = [[r for r in records if (r["method"], r["at"]) == (name, at)] for at in options.sparsities]
        cells = [spread(record["accuracy"] for record in each) if each else "-" for each in found]
        if any(found):
            rows.append(
                [TITLES[task], row.tool, row.what, row.mended, f"{epochs} epochs" if row.trained else "-", *cells]
            )
    return rows


def missed(records: Iterable[Mapping[str, Any]]) -> float:
    """By how much the share of zeros differs from what was asked for, at most."""
    return max(abs(record["zeros"] - SPARSITIES[record["at"]]) for record in records)


if __name__ == "__main__":
    main()
