"""Which optimiser and learning rate get most back of what pruning took: the default of `recover.FineTune`.

    python benchmarks/recovery.py                # everything, some ten minutes in one thread
    python benchmarks/recovery.py --seeds 1      # a first look

For each seed two networks are trained on the demonstration's images, pruned to three tenths of their MACs, and refitted: the
demonstration's own, and a plain one without batch norms. Each candidate then trains a copy, with the same images in the same
order.
"""

import argparse
import copy
import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from machine import load, machine
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.demo import ResidualNet, mnist
from secateur.demo.data import Batches
from secateur.train.update import OptimizerFactory

SHARE = 0.3
"""Of the MACs, which stay."""

EPOCHS = 2

SGD: OptimizerFactory = partial(torch.optim.SGD, momentum=0.9, nesterov=True)
ADAMW: OptimizerFactory = torch.optim.AdamW


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to train."""

    name: str
    optimizer: OptimizerFactory
    learning_rate: float
    clip: float | None = 1.0

    def recipe(self, seed: int) -> sc.recover.FineTune:
        decay = 5e-4 if self.optimizer is SGD else 0.01  # what each is usually given
        return sc.recover.FineTune(
            EPOCHS, self.learning_rate, self.optimizer, weight_decay=decay, max_grad_norm=self.clip, seed=seed
        )


CANDIDATES = (
    *(Candidate("SGD, Nesterov", SGD, rate) for rate in (0.01, 0.03, 0.1, 0.3)),
    *(Candidate("SGD, Nesterov", SGD, rate, None) for rate in (0.03, 0.1)),
    *(Candidate("AdamW", ADAMW, rate) for rate in (1e-3, 3e-3, 1e-2)),
)


def plain() -> nn.Sequential:
    """Convolutions and linear layers with ReLUs, and nothing that normalises."""
    wide = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    deep = [nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()]
    return nn.Sequential(*wide, *deep, nn.Linear(256, 64), nn.ReLU(), nn.Linear(64, 10))


NETWORKS: Mapping[str, tuple[Callable[[], nn.Module], float]] = {
    "residual": (ResidualNet, 1e-2),
    "plain": (plain, 3e-3),
}
"""How each network is made, and AdamW's learning rate for the dense one."""


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "recovery.json")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began, started = time.perf_counter(), load()
    rounds = [one_round(seed) for seed in range(options.seeds)]
    result = report(rounds, time.perf_counter() - began, (started, load()))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def one_round(seed: int) -> dict[str, dict[str, dict[str, float]]]:
    """For each network the accuracy and the loss: of the dense one, the refitted one, and after each candidate's training."""
    return {name: one_network(name, seed) for name in NETWORKS}


def one_network(name: str, seed: int) -> dict[str, dict[str, float]]:
    make, rate = NETWORKS[name]
    data = mnist(seed)
    torch.manual_seed(seed)
    dense = sc.recover.FineTune(3, rate, ADAMW, seed=seed)(make(), data["train"])
    images = list(data["train"])
    result = sc.prune(dense, torch.zeros(2, 1, 28, 28), budget=sc.Budget(macs=SHARE), data=images, measure=False)
    found = {"dense": quality(dense, data["evaluate"]), "refitted": quality(result.model, data["evaluate"])}
    for candidate in CANDIDATES:
        trained = candidate.recipe(seed)(copy.deepcopy(result.model), data["train"])
        found[label(candidate)] = quality(trained, data["evaluate"])
    for what, values in found.items():
        print(f"seed {seed}: {name}: {what}: {values['accuracy']:.1f} %, loss {values['loss']:.4f}", flush=True)
    return found


def quality(model: nn.Module, batches: Batches) -> dict[str, float]:
    """The accuracy in percent, and the mean cross-entropy, on images that were not trained on."""
    model.eval()
    with torch.no_grad():
        logits, labels = (torch.cat(parts) for parts in zip(*answers(model, batches), strict=True))
    right = (logits.argmax(1) == labels).double().mean()
    return {"accuracy": 100 * right.item(), "loss": F.cross_entropy(logits, labels).item()}


def answers(model: nn.Module, batches: Batches) -> list[tuple[Tensor, Tensor]]:
    return [(model(images), labels) for images, labels in batches]


def label(candidate: Candidate) -> str:
    clip = "no clipping" if candidate.clip is None else f"clipped at {candidate.clip:g}"
    return f"{candidate.name}, {candidate.learning_rate:g}, {clip}"


def report(rounds: Sequence[Mapping[str, Any]], seconds: float, loads: tuple[float, float]) -> dict[str, Any]:
    """The result as docs/hooks/benchmarks.py wants it, with all single measurements."""
    trained = [[c.name, f"{c.learning_rate:g}", "-" if c.clip is None else f"{c.clip:g}"] for c in CANDIDATES]
    heads = [["dense, not pruned", "-", "-"], ["refitted, not trained", "-", "-"], *trained]
    names = ["dense", "refitted", *map(label, CANDIDATES)]
    return {
        "title": "Optimisers to recover with",
        "command": "python benchmarks/recovery.py",
        "machine": f"{machine()}; one thread; load {loads[0]} at the start and {loads[1]} at the end; {seconds:.0f} s in all",
        "columns": ["network", "optimiser", "learning rate", "clip", "accuracy %", "least - most", "loss"],
        "rows": [
            [network, *head, *cells([found[network][name] for found in rounds])]
            for network in NETWORKS
            for head, name in zip(heads, names, strict=True)
        ],
        "notes": [
            f"Each network is trained on 4,000 images of MNIST, pruned to {SHARE:g} of its MACs and refitted; then it is "
            f"trained for {EPOCHS} epochs. Measured on 1,000 other images. Means over {len(rounds)} seeds, each with its own "
            "split and networks.",
            "Clip: the norm that longer gradients are scaled down to. Weight decay is 5e-4 for SGD and 0.01 for AdamW.",
            "One image is 0.1 %, and one seed's accuracy has a standard error of about 0.5 %; but within a seed all train the "
            "same network on the same images. The loss tells more apart.",
            "The dense plain network has not learnt all it could in three epochs, so that training gets more than pruning took.",
            "Small networks say little about large ones, and images little about text.",
        ],
        "values": list(rounds),
    }


def cells(seeds: Sequence[Mapping[str, float]]) -> list[Any]:
    accuracies = [found["accuracy"] for found in seeds]
    loss = statistics.mean(found["loss"] for found in seeds)
    return [f"{statistics.mean(accuracies):.1f}", f"{min(accuracies):.1f} - {max(accuracies):.1f}", loss]


if __name__ == "__main__":
    main()
