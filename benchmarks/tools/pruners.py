"""The tools that make a classifier smaller, each called as its own documentation says, all to the same widths."""

import copy
import importlib.util
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, partial

import torch
from tasks.images import Batches
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc


class MissingPackageError(Exception):
    """A tool is not installed; the message says how to."""


Widths = Mapping[str, int]
"""For each convolution that shrinks, by its path, the channels that stay."""


@dataclass(frozen=True, slots=True)
class Job:
    """What every tool is given.

    Attributes:
        dense: The trained network, in eval mode; tools work on copies.
        example: What it takes, float32 `[1, channels, height, width]`.
        batches: The calibration sample, the same for all tools.
        exclude: The axes that keep their width.
        seed: For chance.
    """

    dense: nn.Module
    example: Tensor
    batches: Batches
    exclude: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Goal:
    """What shall be left, said in two ways.

    Attributes:
        share: Of the multiply-adds.
        widths: What that share is when every layer keeps the same part of its channels.
    """

    share: float
    widths: Widths


Cut = Callable[[Goal], nn.Module]
"""Gives the smaller network, in eval mode."""


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool with its settings.

    Attributes:
        package: What to install.
        criterion: How it chooses what stays.
        mended: What it does, before any training, to make up for what goes.
        prepare: Does what is the same for all widths.
    """

    package: str
    criterion: str
    mended: str
    prepare: Callable[[Job], Cut]


def goal_of(job: Job, share: float) -> Goal:
    """The widths that leave such a share of the multiply-adds: the same part of every layer, as near as channels allow."""
    network = sc.trace(job.dense, job.example)
    uniform = sc.allocate.Uniform(sc.Budget(macs=share), exclude=job.exclude)
    cuts = uniform(network, sc.scores.Magnitude()(network)).tensors
    convolutions = [cut for cut in cuts if len(cut.shape) == 4 and cut.kept[0]]
    return Goal(share, {cut.name.removesuffix(".weight"): cut.shape_after[0] for cut in convolutions})


def secateur(
    job: Job,
    score: Callable[[int], sc.scores.Score],
    *,
    allocation: Callable[..., sc.allocate.Allocator] = sc.allocate.Uniform,
    exclude: tuple[str, ...] | None = None,
    mend: bool = True,
) -> Cut:
    """The one call; the scores, which are the same for all widths, are computed before."""
    scores = score(job.seed)(sc.trace(job.dense, job.example), job.batches)

    def cut(goal: Goal) -> nn.Module:
        return sc.prune(
            job.dense,
            job.example,
            budget=sc.Budget(macs=goal.share),
            data=job.batches,
            score=lambda *_: scores,
            allocation=allocation,
            exclude=job.exclude if exclude is None else exclude,
            measure=False,
            **({} if mend else {"compensation": ()}),
        ).model

    return cut


def fisher(_: int) -> sc.scores.Score:
    """What the call takes by itself where there are labels."""
    return sc.scores.Fisher()


def torch_pruning(job: Job, importance: str, *, norms: bool = False) -> Cut:
    """The high-level pruner, with a ratio for each layer."""
    import torch_pruning as tp

    importances = {"magnitude": tp.importance.GroupMagnitudeImportance, "taylor": tp.importance.GroupTaylorImportance}

    gradients = _gradients(job) if importance == "taylor" else {}

    def cut(goal: Goal) -> nn.Module:
        model = _copy(job.dense, gradients)
        layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pruner = tp.pruner.BasePruner(
                model,
                job.example,
                importance=importances[importance](),
                # Half a channel more than wanted, because the tool rounds down.
                pruning_ratio_dict={
                    layers[name]: 1 - (n + 0.5) / layers[name].out_channels for name, n in goal.widths.items()
                },
                ignored_layers=[layer for name, layer in layers.items() if name not in goal.widths],
            )
            pruner.step()
        model.zero_grad()
        if norms:
            measure_batch_norms(model, job.batches)
        return model

    return cut


def torch_kirigami(job: Job, metric: str) -> Cut:
    """The lowest scores of every layer, removed as one explicit plan.

    The same channels go as with its `Greedy` strategy under a `ChannelCount`, which analyses the whole network anew for each of
    them and takes many times as long.
    """
    from torch_kirigami import DependencyGraph
    from torch_kirigami import pruning as kirigami

    def opened(names: Iterable[str], model: nn.Module) -> tuple[kirigami.Pruner, kirigami.CandidateSpace]:
        pruner = kirigami.Pruner(model, graph=DependencyGraph.build(model, args=(job.example,)))
        return pruner, pruner.discover_candidates(targets=names)

    @cache
    def scored(names: tuple[str, ...]) -> list[float]:
        model = _copy(job.dense, _gradients(job) if metric == "taylor" else {})
        pruner, space = opened(names, model)
        budget, axes = kirigami.ChannelRatio(0.0), space.channel_axes
        context = kirigami.PlanningContext(pruner.graph, space.candidates, budget, axes, pruner.constraints)
        metrics = {"magnitude": kirigami.GroupMagnitude, "taylor": kirigami.WeightTaylor}
        return metrics[metric]().score(context, space.candidates, accepted_impact=context.impact(()))

    def cut(goal: Goal) -> nn.Module:
        model = copy.deepcopy(job.dense)
        pruner, space = opened(goal.widths, model)
        worst_first = sorted(zip(scored(tuple(goal.widths)), space.candidates, strict=True), key=lambda pair: pair[0])
        gone = []
        for axis in space.channel_axes:
            layer = axis.tensor.paths[0].removesuffix(".weight")
            own = [candidate for _, candidate in worst_first if candidate.axis == axis]
            gone += [part for candidate in own[: len(own) - goal.widths[layer]] for part in candidate.remove]
        return pruner.apply(pruner.plan_remove(gone))[0]

    return cut


TOOLS: Mapping[str, Tool] = {
    "torch-pruning, magnitude": Tool(
        "torch-pruning", "group magnitude, L2", "-", partial(torch_pruning, importance="magnitude")
    ),
    "torch-pruning, Taylor": Tool("torch-pruning", "group Taylor", "-", partial(torch_pruning, importance="taylor")),
    "torch-pruning, Taylor, norms": Tool(
        "torch-pruning", "group Taylor", "batch norms", partial(torch_pruning, importance="taylor", norms=True)
    ),
    "torch-kirigami, magnitude": Tool(
        "torch-kirigami", "group magnitude, L2", "-", partial(torch_kirigami, metric="magnitude")
    ),
    "torch-kirigami, Taylor": Tool("torch-kirigami", "Taylor", "-", partial(torch_kirigami, metric="taylor")),
    "secateur, bare": Tool("secateur", "Fisher", "-", partial(secateur, score=fisher, mend=False)),
    "secateur, random": Tool("secateur", "random", "refit, batch norms", partial(secateur, score=sc.scores.Random)),
    "secateur, Fisher": Tool("secateur", "Fisher", "refit, batch norms", partial(secateur, score=fisher)),
    "secateur, default": Tool(
        "secateur",
        "Fisher, all axes, widths its own",
        "refit, batch norms",
        partial(secateur, score=fisher, allocation=sc.allocate.Global, exclude=()),
    ),
}

OWN_WIDTHS = {"secateur, default"}
"""The tools that choose the widths themselves."""


def check_installed(packages: Iterable[str]) -> None:
    """Check that the packages are there.

    Raises:
        MissingPackageError: One is not.
    """
    for package in packages:
        if importlib.util.find_spec(package.replace("-", "_")) is None:
            raise MissingPackageError(
                f"{package} is not installed: pip install 'secateur[bench]', or leave it out with --tools"
            )


def _gradients(job: Job) -> dict[str, Tensor]:
    """Of the mean loss over the calibration sample, by parameter."""
    model = copy.deepcopy(job.dense)
    count = sum(len(labels) for _, labels in job.batches)
    for pixels, labels in job.batches:
        (F.cross_entropy(model(pixels), labels, reduction="sum") / count).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters() if parameter.grad is not None}


def _copy(model: nn.Module, gradients: Mapping[str, Tensor]) -> nn.Module:
    """A copy that has gradients, which `deepcopy` leaves out."""
    copied = copy.deepcopy(model)
    for name, parameter in copied.named_parameters():
        parameter.grad = gradients[name].clone() if name in gradients else None
    return copied


def measure_batch_norms(model: nn.Module, batches: Batches) -> None:
    """New running statistics: the plain means over the batches."""
    norms = [layer for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    with torch.no_grad():
        model.train()
        for pixels, _ in batches:
            model(pixels)
    for norm in norms:
        norm.momentum = 0.1
    model.eval()
