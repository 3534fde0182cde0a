"""What takes the place of modules whose branch is removed, and how a branch is silenced without removing it."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch._ops import OpOverload
from torch.fx import GraphModule, Node
from torch.utils.hooks import RemovableHandle

from secateur.axes import Removal, StandIn
from secateur.errors import ModelError
from secateur.torch.short_list import without_entries
from secateur.torch.structure import tensors_in

_PLAIN = frozenset({int, float, bool, str, type(None), torch.dtype})


class Skipped(nn.Module):
    """Gives zeros shaped like the first tensor that it takes. It keeps the plain attributes of the module that stood here."""

    def __init__(self, module: nn.Module, stand_in: StandIn) -> None:
        super().__init__()
        own = vars(self)
        for name, value in vars(module).items():
            if name not in own and (type(value) in _PLAIN or not (isinstance(value, nn.Module) or tensors_in(value))):
                own[name] = value
        for name in module._parameters:
            self.register_parameter(name, None)
        for name in module._buffers:
            self.register_buffer(name, None)
        self.training = module.training
        self.skipped_class, self.skipped_results = type(module).__name__, stand_in.results

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Zeros, in the form in which the module that stood here gave its results."""
        zeros = torch.zeros_like(tensors_in((args, kwargs))[0])
        if self.skipped_results is None:
            return zeros
        given: dict[str, Any] = {**{str(i): value for i, value in enumerate(args)}, **kwargs}
        return tuple(zeros if item == "zeros" else given.get(item) for item in self.skipped_results)

    def extra_repr(self) -> str:
        """What stood here."""
        return self.skipped_class


@dataclass(frozen=True, slots=True)
class _Silence:
    """A forward hook that puts zeros in the place of a module's results."""

    results: tuple[str, ...] | None

    def __call__(self, module: nn.Module, args: Any, output: Any) -> Any:  # noqa: ARG002 - as a hook is called
        if self.results is None:
            return torch.zeros_like(output)
        pairs = zip(output, self.results, strict=True)
        return tuple(torch.zeros_like(value) if item == "zeros" else value for value, item in pairs)


def remove(model: nn.Module, removal: Removal) -> None:
    """Take what goes out of a model, in place.

    Raises:
        ModelError: It is not there: the plan is for another model.
    """
    held = holders(model) if removal.modules else {}
    for stand_in in removal.modules:
        module = _module(model, stand_in.module)
        skipped = Skipped(module, stand_in)
        for parent, name in held[module]:
            parent.register_module(name, skipped)
    without_entries(model, removal.entries)
    if removal.joints:
        graph = _graph_of(model, removal)
        _join_without(graph, removal)
        for name in removal.tensors:
            path, _, attribute = name.rpartition(".")
            delattr(model.get_submodule(path), attribute)
        graph.recompile()


def silence(model: nn.Module, removal: Removal) -> list[RemovableHandle]:
    """Make what goes join zeros, in place; returns the handles of the hooks that do so."""
    handles = [
        _module(model, one.module).register_forward_hook(_Silence(one.results)) for one in removal.modules if one.last
    ]
    if removal.joints:
        graph = _graph_of(model, removal)
        nodes = {node.name: node for node in graph.graph.nodes}
        for joint in removal.joints:
            node = nodes[joint.node]
            with graph.graph.inserting_before(node):
                zeros = graph.graph.call_function(torch.ops.aten.zeros_like.default, (node.args[joint.goes],))
            node.update_arg(joint.goes, zeros)
        graph.recompile()
    return handles


def unsilence(model: nn.Module, removal: Removal) -> None:
    """Undo in a graph what `silence` did to it."""
    if removal.joints:
        graph = _graph_of(model, removal)
        nodes = {node.name: node for node in graph.graph.nodes}
        for joint in removal.joints:
            zeros = nodes[joint.node].args[joint.goes]
            assert isinstance(zeros, Node)
            nodes[joint.node].update_arg(joint.goes, zeros.args[0])
            graph.graph.erase_node(zeros)
        graph.recompile()


def holders(model: nn.Module) -> dict[nn.Module, list[tuple[nn.Module, str]]]:
    """For each module of a model, who holds it, and under which names."""
    found: dict[nn.Module, list[tuple[nn.Module, str]]] = {}
    for parent in model.modules():
        for name, child in parent._modules.items():
            if child is not None:
                found.setdefault(child, []).append((parent, name))
    return found


def _module(model: nn.Module, path: str) -> nn.Module:
    try:
        return model.get_submodule(path)
    except AttributeError as error:
        raise ModelError(
            f"the plan removes {path!r}, which {type(model).__name__} does not have; it is for another model"
        ) from error


def _graph_of(model: nn.Module, removal: Removal) -> GraphModule:
    """The model, which must be a graph with all that goes."""
    names = {node.name for node in model.graph.nodes} if isinstance(model, GraphModule) else set()
    missing = [name for joint in removal.joints for name in (joint.node, *joint.nodes) if name not in names]
    if missing or not isinstance(model, GraphModule):
        raise ModelError(
            f"the plan removes the node {missing[0]!r} of a graph, which {type(model).__name__} does not have; it is for "
            "another model, or for one that another version of torch made a graph of"
        )
    return model


def _join_without(graph: GraphModule, removal: Removal) -> None:
    """Let each joint be what stays, and erase what goes; a sum all of whose sides go goes itself."""
    nodes: dict[str, Node] = {node.name: node for node in graph.graph.nodes}
    goes: dict[Node, set[int]] = {}
    for joint in removal.joints:
        goes.setdefault(nodes[joint.node], set()).add(joint.goes)
    writes = any(_writes(node) for node in nodes.values())
    for node in nodes.values():
        if node not in goes:
            continue
        if len(goes[node]) > 1:
            for user in node.users:
                goes.setdefault(user, set()).update(i for i, argument in enumerate(user.args) if argument is node)
            continue
        (stays,) = (node.args[side] for side in (0, 1) if side not in goes[node])
        if writes:  # what is written into the sum must not be written into what was added up
            with graph.graph.inserting_before(node):
                stays = graph.graph.call_function(torch.ops.aten.clone.default, (stays,))
        assert isinstance(stays, Node)
        node.replace_all_uses_with(stays)
    erased = {node.name for node in goes}.union(*(joint.nodes for joint in removal.joints))
    served = {node for node in graph.graph.nodes if node.users and node.op != "placeholder" and not _writes(node)}
    for node in reversed(graph.graph.nodes):
        checks = node.target is torch.ops.aten._assert_tensor_metadata.default
        if node.name in erased or checks or (node in served and not node.users):
            graph.graph.erase_node(node)


def _writes(node: Node) -> bool:
    return isinstance(node.target, OpOverload) and node.target._schema.is_mutable
