"""The tools that find out what can be removed from a model, each called as its own documentation says."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from models.large import Inputs
from torch import nn

Analyse = Callable[[nn.Module, Inputs], Any]


@dataclass(frozen=True, slots=True)
class Tool:
    """One tool.

    Attributes:
        analyse: Builds its picture of the model.
        found: What is in that picture, in words.
        package: What to install.
    """

    analyse: Analyse
    found: Callable[[Any], str]
    package: str


def secateur(model: nn.Module, inputs: Inputs) -> Any:
    """Everything: axes, their units and slots, what is frozen and why."""
    import secateur as sc

    return sc.trace(model, inputs)


def torch_pruning(model: nn.Module, inputs: Inputs) -> Any:
    """The dependency graph, which does not yet say what goes together."""
    import torch_pruning as tp

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.DependencyGraph().build_dependency(model, example_inputs=inputs)


def torch_pruning_groups(model: nn.Module, inputs: Inputs) -> Any:
    """The dependency graph and all groups of layers in it."""
    graph = torch_pruning(model, inputs)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return list(graph.get_all_groups(root_module_types=[nn.Conv2d, nn.Linear]))


def torch_kirigami(model: nn.Module, inputs: Inputs) -> Any:
    """The dependency graph."""
    from torch_kirigami import DependencyGraph

    if isinstance(inputs, Mapping):
        return DependencyGraph.build(model, kwargs=dict(inputs))
    return DependencyGraph.build(model, args=(inputs,))


def _network(network: Any) -> str:
    return f"{len(network.axes)} axes, {network.unit_count} units"


TOOLS: Mapping[str, Tool] = {
    "secateur": Tool(secateur, _network, "secateur"),
    "torch-pruning": Tool(torch_pruning, lambda graph: f"graph of {len(graph.module2node)} nodes", "torch-pruning"),
    "torch-pruning, groups too": Tool(torch_pruning_groups, lambda groups: f"{len(groups)} groups", "torch-pruning"),
    "torch-kirigami": Tool(
        torch_kirigami, lambda graph: f"graph of {len(graph.relations)} relations", "torch-kirigami"
    ),
}
