"""A model as a program for a runtime: a function from tensors to tensors, with the shapes of the example inputs."""

import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from secateur.errors import CaptureError
from secateur.torch.capture import Inputs, call, open_paths
from secateur.torch.places import cause_of, line_in
from secateur.torch.replicate import replicate
from secateur.torch.structure import tensors_in


@dataclass(frozen=True, slots=True)
class Program:
    """A model in eval mode on the CPU, for one call.

    Attributes:
        exported: What `torch.export` wrote down; it takes `inputs` and gives `outputs`.
        inputs: The tensors among the example inputs, in the order of the arguments.
        outputs: What PyTorch gives for them: the tensors of the model's output, in a fixed order.
    """

    exported: ExportedProgram
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]

    def named_in(self, words: str) -> list[str]:
        """The operators that are named in the words of a runtime, each with the line of code that it comes from."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns of its own code
            apart = self.exported.run_decompositions()
        for exported in (self.exported, apart):  # a runtime may have taken it further apart
            nodes = [node for node in exported.graph.nodes if node.op == "call_function"]
            named = [node for node in nodes if re.search(rf"\b{re.escape(str(node.target))}\b", words)]
            if named:
                return list(dict.fromkeys(f"{node.target} ({line_in(node.stack_trace or '')})" for node in named))
        return []


def program_of(model: nn.Module, inputs: Inputs) -> Program:
    """Export a model for exactly these inputs. Whatever of them is no tensor is part of the program.

    Args:
        model: Any module; it stays as it is, and where it is.
        inputs: A tensor, a tuple of positional or a mapping of keyword arguments.

    Raises:
        CaptureError: `torch.export` cannot export the model; names its reason and the line. Or there are several calls.
    """
    if isinstance(inputs, list):
        raise CaptureError(f"a program is that of one call; give the inputs of one, not a list of {len(inputs)}")
    inputs = pytree.tree_map_only(Tensor, _on_cpu, inputs)
    function = _OfTensors(replicate(model, _on_cpu).eval(), inputs)
    tensors = function.tensors
    try:
        with torch.no_grad():
            outputs = function(*tensors)
            with open_paths():
                exported = torch.export.export(function, tensors)
    except Exception as error:
        raise CaptureError(f"{type(model).__name__} cannot be exported: {cause_of(error)}") from error
    return Program(exported, tensors, outputs)


class _OfTensors(nn.Module):
    """The model as a function: other inputs than tensors are as they were given, and other outputs are left out.

    Runtimes know no dicts and no classes of outputs, and each its own way with numbers and None.
    """

    def __init__(self, model: nn.Module, inputs: Inputs) -> None:
        super().__init__()
        self.model = model
        self.leaves, self.structure = pytree.tree_flatten(inputs)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return tuple(leaf for leaf in self.leaves if isinstance(leaf, Tensor))

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given: Iterator[Tensor] = iter(tensors)
        leaves = [next(given) if isinstance(leaf, Tensor) else leaf for leaf in self.leaves]
        return tuple(tensors_in(call(self.model, pytree.tree_unflatten(leaves, self.structure))))


def _on_cpu(tensor: Tensor) -> Tensor:
    """A copy, so that a model that writes to its buffers leaves ours alone."""
    return tensor.detach().to("cpu", copy=True)
