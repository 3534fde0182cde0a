"""Ways to make a network's weights sparse, at once or while it trains: Secateur's, torch's own, and a textbook's.

All of them get the same trained network, the same calibration images and the same training; the weights of all convolutions and
linear layers can go.
"""

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from tasks.images import Batches
from tools.pruners import measure_batch_norms
from torch import Tensor, nn
from torch.nn.utils import prune

import secateur as sc

RAMP = 0.75
"""The share of the training after which nothing goes any more."""

EVERY = 20
"""Steps between two changes of the masks."""

GLOBAL = sc.patterns.Unstructured("global")


@dataclass(frozen=True, slots=True)
class Job:
    """What a method is given.

    Attributes:
        dense: The trained network, which is not changed.
        calibration: Images to score and to mend with.
        training: What `FineTune` trains on, anew each time it is iterated.
        steps: How many batches all epochs have.
        sparsity: The share that goes.
        epochs: Of the training in which, or after which, weights go.
        seed: Of the order of the images.
    """

    dense: nn.Module
    calibration: Batches
    training: Any
    steps: int
    sparsity: float
    epochs: int
    seed: int

    def fit(self, model: nn.Module, progress: Any = None) -> nn.Module:
        """The training, the same for all."""
        return sc.recover.FineTune(self.epochs, seed=self.seed)(model, self.training, progress=progress)


Method = Callable[[Job], nn.Module]


def torch_global(job: Job, *, norms: bool = False, trained: bool = False) -> nn.Module:
    """The lowest magnitudes of all, by `torch.nn.utils.prune`."""
    model = deepcopy(job.dense)
    weights = [(layer, "weight") for layer in layers(model)]
    prune.global_unstructured(weights, prune.L1Unstructured, amount=job.sparsity)
    if trained:
        job.fit(model)
    for layer, name in weights:
        prune.remove(layer, name)
    if norms:
        measure_batch_norms(model, job.calibration)
    return model


def textbook_gradual(job: Job) -> nn.Module:
    """M. Zhu, S. Gupta, 2017, as a loop would do it: in each layer the lowest magnitudes, ever more of them."""
    model = deepcopy(job.dense)
    weights = [layer.weight for layer in layers(model)]
    masks: list[Tensor] = [torch.ones_like(weight) for weight in weights]
    end = int(RAMP * job.steps)

    @torch.no_grad()
    def after(step: sc.recover.Step) -> None:
        if step.step <= end and (step.step % EVERY == 0 or step.step == end):
            share = job.sparsity * (1 - (1 - step.step / end) ** 3)
            for weight, mask in zip(weights, masks, strict=True):
                gone = round(share * weight.numel())
                mask.fill_(1).view(-1)[weight.abs().flatten().argsort(stable=True)[:gone]] = 0
        for weight, mask in zip(weights, masks, strict=True):
            weight.mul_(mask)

    return job.fit(model, after)


def secateur_at_once(job: Job, *, trained: bool = False, **choices: Any) -> nn.Module:
    """`sparsify`, then batch norms, then perhaps training in which zeros stay zeros."""
    result = sc.sparsify(job.dense, job.calibration, sparsity=job.sparsity, pattern=GLOBAL, samples=10**6, **choices)
    measure_batch_norms(result.model, job.calibration)
    if trained:
        with sc.train.masked(result.model, result.plan):
            job.fit(result.model)
    return result.model


def secateur_alps(job: Job, *, blocks: bool = False) -> nn.Module:
    """`ALPS`, shares by the layers' shapes; then batch norms, or every residual block trained towards the dense one."""
    result = sc.sparsify(
        job.dense,
        job.calibration,
        sparsity=job.sparsity,
        pattern=sc.patterns.Unstructured("tensor"),
        solver=sc.solvers.ALPS(),
        allocation=sc.sparse.allocation.erdos_renyi,
        samples=10**6,
    )
    if not blocks:
        return sc.recover.MatchNorms()(result.model, job.calibration, job.dense)
    images = [part for pixels, _ in job.calibration for part in pixels.split(64)]
    names = [name for name, module in job.dense.named_modules() if type(module).__name__.endswith("Block")]
    fit = sc.recover.FineTune(epochs=20, optimizer=torch.optim.AdamW, learning_rate=1e-3, weight_decay=0.0)
    with sc.train.masked(result.model, result.plan):
        return sc.recover.Reconstruct(names, fit, samples=10**6)(result.model, images, job.dense)


def secateur_gradual(job: Job, pattern: sc.patterns.Pattern) -> nn.Module:
    """`Gradual`, while the training runs."""
    model = deepcopy(job.dense)
    method = sc.train.Gradual(job.sparsity, end=int(RAMP * job.steps), every=EVERY, pattern=pattern)
    with sc.train.masked(model, method, job.calibration[0][0][:1]):
        return job.fit(model)


@dataclass(frozen=True, slots=True)
class Row:
    """A method, and what the table calls its parts."""

    tool: str
    what: str
    mended: str
    trained: bool
    run: Method


MAGNITUDE, WANDA = sc.scores.Magnitude(), sc.scores.Wanda()
METHODS: Mapping[str, Row] = {
    "torch": Row("torch.nn.utils.prune", "magnitude, global", "-", False, torch_global),
    "torch, norms": Row(
        "torch.nn.utils.prune", "magnitude, global", "batch norms", False, partial(torch_global, norms=True)
    ),
    "magnitude": Row(
        "secateur",
        "magnitude, global",
        "batch norms",
        False,
        partial(secateur_at_once, score=MAGNITUDE, solver=sc.solvers.keep),
    ),
    "magnitude, refit": Row(
        "secateur", "magnitude, global", "refit, batch norms", False, partial(secateur_at_once, score=MAGNITUDE)
    ),
    "wanda, refit": Row(
        "secateur", "Wanda, global", "refit, batch norms", False, partial(secateur_at_once, score=WANDA)
    ),
    "alps": Row("secateur", "ALPS, by layer (ERK)", "ALPS, batch norms", False, secateur_alps),
    "alps, blocks": Row(
        "secateur", "ALPS, by layer (ERK)", "ALPS, blocks without labels", False, partial(secateur_alps, blocks=True)
    ),
    "torch, trained": Row("torch.nn.utils.prune", "magnitude, global", "-", True, partial(torch_global, trained=True)),
    "magnitude, refit, trained": Row(
        "secateur",
        "magnitude, global",
        "refit, batch norms",
        True,
        partial(secateur_at_once, score=MAGNITUDE, trained=True),
    ),
    "textbook gradual": Row("textbook", "gradual, by layer", "-", True, textbook_gradual),
    "gradual": Row(
        "secateur",
        "gradual, by layer",
        "-",
        True,
        partial(secateur_gradual, pattern=sc.patterns.Unstructured("tensor")),
    ),
    "gradual, global": Row("secateur", "gradual, global", "-", True, partial(secateur_gradual, pattern=GLOBAL)),
}


def layers(model: nn.Module) -> list[Any]:
    """The convolutions and linear layers."""
    return [layer for layer in model.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
