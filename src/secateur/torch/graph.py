"""Graph form: a model as the graph of its operators, in which every size is data that can follow.

A model's own code may hold sizes that nothing can change: `view(b, 8, 64)`, or `C // heads` where the width of the heads and
that of the stream must be allowed to differ. Its exported graph has the same operators with every size as a number; here each
of these numbers becomes an attribute, and attributes follow.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from secateur.errors import CaptureError
from secateur.torch.capture import Inputs, open_paths
from secateur.torch.places import line_of
from secateur.torch.provenance import TAKES_SIZES, name_of
from secateur.torch.replicate import replicate

_WHOLE = 1 << 62
"""Bounds above it mean: to the end."""


def as_graph(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """The graph form of a model: the same parameters under the same names, the same results, no code of its own.

    More of it can be pruned, and it exports. The first dim of each input may vary where it is 2 or more in the example;
    everything else keeps the shape of the example, and the mode is eval.

    Args:
        model: Any module that `torch.export` can export; it stays as it is.
        example_inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Returns:
        A module to be traced, pruned, saved and exported like any other; it takes what `model` takes.

    Raises:
        CaptureError: `torch.export` cannot export the model; names its reason and the line.
    """
    copy = replicate(model, lambda tensor: tensor.detach().clone()).eval()
    module: GraphModule = _exported(copy, example_inputs).module(check_guards=False)
    sizes = nn.Module()
    module.add_module("sizes", sizes)
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            _fix_scale(node)
            _lift_sizes(module.graph, node, sizes)
    module.recompile()
    return module


def _exported(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The exported program, with the first dim of every input free where that is possible."""
    if isinstance(inputs, list):
        raise CaptureError(f"a graph form is that of one call; give the inputs of one, not a list of {len(inputs)}")
    args = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    free = pytree.tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.ndim else None, kwargs or args)
    try:
        with torch.no_grad(), open_paths():
            return torch.export.export(model, args, kwargs, dynamic_shapes=free)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} has no graph form: torch.export fails with {type(error).__name__}: {error} "
            f"({line_of(error)})"
        ) from error


def _fix_scale(node: Node) -> None:
    """Attention's default scale is computed from the width of the heads: write down what it was."""
    if name_of(node.target) == "scaled_dot_product_attention" and node.kwargs.get("scale") is None:
        query: Any = node.args[0]
        node.kwargs = {**node.kwargs, "scale": query.meta["val"].shape[-1] ** -0.5}


def _lift_sizes(graph: Graph, node: Node, sizes: nn.Module) -> None:
    """Replace each number that a node takes as a size by an attribute of `sizes`."""
    where, keyword = TAKES_SIZES.get(name_of(node.target), (slice(0, 0), ""))

    def lift(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(lift, value))
        if type(value) is not int or not 0 <= value < _WHOLE:
            return value
        name = f"{node.name}_{len(vars(sizes))}"
        setattr(sizes, name, value)
        with graph.inserting_before(node):
            return graph.create_node("get_attr", f"sizes.{name}")

    args: list[Any] = list(node.args)
    args[where] = [lift(value) for value in args[where]]
    node.args = tuple(args)
    node.kwargs = {key: lift(value) if key == keyword else value for key, value in node.kwargs.items()}
