"""Graph form: a model as the graph of its operators, in which every size is data that can follow.

A model's own code may hold sizes that nothing can change: `view(b, 8, 64)`, or `C // heads` where the width of the heads and
that of the stream must be allowed to differ. Its exported graph has the same operators with every size as a number; here each
of these numbers becomes an attribute, and attributes follow. What does something else in training, dropout and batch norms,
stays a layer.
"""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from itertools import count
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.export import Dim, ExportedProgram
from torch.fx import Graph, GraphModule, Node
from torch.utils import _pytree as pytree

from secateur.errors import CaptureError, ModelError
from secateur.torch.capture import Inputs, call, open_paths
from secateur.torch.places import line_of
from secateur.torch.provenance import TAKES_SIZES, name_of
from secateur.torch.replicate import replicate
from secateur.torch.structure import tensors_in

VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
"""Arguments of which torch.export wants another account; every dim of theirs stays."""

FORMS = ("module", "graph")
"""What a model can be pruned as: the user's own code, or its graph form."""

_WHOLE = 1 << 62
"""Bounds above it mean: to the end."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
_LAYERS = {
    "batch_norm": _BATCH_NORMS,
    **dict.fromkeys(("dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"), _DROPOUTS),
}
"""Operators that depend on the mode, and the layers of torch that are nothing but one of them."""


class Sizes(nn.Module):
    """The sizes of a graph form, as its attributes.

    Args:
        of: The class of the model that it is the graph form of.
    """

    def __init__(self, of: str) -> None:
        super().__init__()
        self.of = of


def as_graph(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """The graph form of a model: the same parameters under the same names, the same results, no code of its own.

    More of it can be pruned, and it exports. The first dim of each input, the batch, may vary; everything else keeps the shape of
    the example. It is the graph of eval mode; in training, torch's own layers of dropout and
    batch norm do what they do, and the rest runs as in eval mode.

    Args:
        model: Any module that `torch.export` can export; it stays as it is.
        example_inputs: A tensor, a tuple of positional arguments, or a mapping of keyword arguments.

    Returns:
        A module to be traced, pruned, saved and exported like any other; it takes what `model` takes.

    Raises:
        CaptureError: `torch.export` cannot export the model; names its reason and the line.
    """
    copy = replicate(model, lambda tensor: tensor.detach().clone()).eval()
    module: GraphModule = exported(copy, example_inputs).module(check_guards=False)
    for mode in ("train", "eval"):
        vars(module).pop(mode, None)  # torch's refusals, from before there were layers in it that know the mode
    sizes = Sizes(f"{type(model).__module__}.{type(model).__qualname__}")
    module.add_module("sizes", sizes)
    layers = dict(copy.named_modules(remove_duplicate=False))
    for node in list(module.graph.nodes):
        if node.op == "call_function" and isinstance(node.target, OpOverload):
            _fix_scale(node)
            _lift_sizes(module.graph, node, sizes)
            _keep_layer(module, node, layers)
    for node in list(module.graph.nodes):
        if node.op == "get_attr" and not node.users:
            module.graph.erase_node(node)
    module.recompile()
    return module.train(model.training)


def graph_of(model: nn.Module) -> str | None:
    """The class of the model that this is the graph form of; None for a model with its own code."""
    sizes = model._modules.get("sizes") if isinstance(model, GraphModule) else None
    return sizes.of if isinstance(sizes, Sizes) else None


def in_form(model: nn.Module, form: str, example_inputs: Inputs | None) -> nn.Module:
    """The model in this form; itself, where it has it.

    Raises:
        ModelError: There is no such form, or the graph form is asked for without inputs.
        CaptureError: As `as_graph`.
    """
    if form not in FORMS:
        raise ModelError(f"form= is one of {', '.join(map(repr, FORMS))}; got {form!r}")
    if form == "module" or graph_of(model) is not None:
        return model
    if example_inputs is None:
        raise ModelError("form='graph' needs example_inputs=: what model(...) takes, as for trace")
    return as_graph(model, example_inputs)


def exported(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    """The exported program, with the first dim of every input free where that is possible.

    A dim of 1 cannot be free, so a batch of one is exported as a batch of two, if that computes the same.

    Raises:
        CaptureError: `torch.export` cannot export the model; names its reason and the line.
    """
    if isinstance(inputs, list):
        raise CaptureError(f"a graph form is that of one call; give the inputs of one, not a list of {len(inputs)}")
    tensors = [x for x in pytree.tree_leaves(inputs) if isinstance(x, Tensor) and x.ndim]
    if tensors and all(len(x) == 1 for x in tensors):
        twice = pytree.tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.ndim else x, inputs)
        with suppress(CaptureError):
            program = _exported(model, twice)
            if _compute_alike(model, program.module(check_guards=False), inputs):
                return program
    return _exported(model, inputs)


def _compute_alike(model: nn.Module, graph: nn.Module, inputs: Inputs) -> bool:
    """Whether two models give the same on the inputs; by their shapes alone on the meta device."""
    with torch.no_grad(), open_paths():
        try:
            ours, theirs = tensors_in(call(model, inputs)), tensors_in(call(graph, inputs))
        except RuntimeError:
            return False
    return len(ours) == len(theirs) and all(
        a.shape == b.shape and (a.is_meta or torch.allclose(a, b, rtol=1e-3, atol=1e-5, equal_nan=True))
        for a, b in zip(ours, theirs, strict=True)
    )


def _exported(model: nn.Module, inputs: Inputs) -> ExportedProgram:
    args = () if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    kwargs = dict(inputs) if isinstance(inputs, Mapping) else {}
    free = pytree.tree_map(lambda x: {0: Dim.AUTO} if isinstance(x, Tensor) and x.ndim else None, kwargs or args)
    named = {p.kind for p in inspect.signature(model.forward).parameters.values()}.isdisjoint(VARIADIC)
    try:
        with torch.no_grad(), open_paths():
            return torch.export.export(model, args, kwargs, dynamic_shapes=free if named else None)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be exported: torch.export fails with {type(error).__name__}: {error} "
            f"({line_of(error)})"
        ) from error


def _fix_scale(node: Node) -> None:
    """Attention's default scale is computed from the width of the heads: write down what it was."""
    if name_of(node.target) == "scaled_dot_product_attention" and node.kwargs.get("scale") is None:
        query: Any = node.args[0]
        node.kwargs = {**node.kwargs, "scale": query.meta["val"].shape[-1] ** -0.5}


def _keep_layer(module: GraphModule, node: Node, layers: Mapping[str, nn.Module]) -> None:
    """Call the layer, where all that it does is this operator."""
    path, _ = list(node.meta.get("nn_module_stack", {"": ("", "")}).values())[-1]
    layer = layers.get(path)
    if type(layer) not in _LAYERS.get(name_of(node.target), ()) or layer is None:
        return
    if layer._forward_hooks or layer._forward_pre_hooks:
        return  # what they do is in the graph
    module.add_submodule(path, layer)
    with module.graph.inserting_before(node):
        call = module.graph.call_module(path, (node.args[0],))
    call.meta = dict(node.meta)
    node.replace_all_uses_with(call)
    module.graph.erase_node(node)


def _lift_sizes(graph: Graph, node: Node, sizes: Sizes) -> None:
    """Replace each number that a node takes as a size by an attribute of `sizes`."""
    where, *keywords = TAKES_SIZES.get(name_of(node.target), (slice(0, 0),))
    numbers = count()

    def lift(value: Any) -> Any:
        if isinstance(value, (list, tuple)):
            return type(value)(map(lift, value))
        if type(value) is not int or not 0 <= value < _WHOLE:
            return value
        name = f"{node.name}_{next(numbers)}"
        setattr(sizes, name, value)
        with graph.inserting_before(node):
            return graph.create_node("get_attr", f"sizes.{name}")

    args: list[Any] = list(node.args)
    args[where] = [lift(value) for value in args[where]]
    node.args = tuple(args)
    node.kwargs = {key: lift(value) if key in keywords else value for key, value in node.kwargs.items()}
