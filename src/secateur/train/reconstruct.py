"""Makes each block of a pruned model compute again what the dense model's computes: `Reconstruct`."""

import copy
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError, PlanError, RecoveryError
from secateur.torch.batches import Batches, is_out_of_memory, take
from secateur.torch.calibrate import undisturbed
from secateur.torch.replicate import replicate
from secateur.torch.side_by_side import Call, side_by_side, watch_modules
from secateur.torch.state import evaluating
from secateur.train.check import check_model, check_teacher
from secateur.train.finetune import FineTune
from secateur.train.held import is_masked
from secateur.train.protocol import Progress

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reconstruct:
    """Train block by block, so that each gives what the dense model's gives: no labels, and the memory of one block.

    A block reads what the pruned model gives it, in which the blocks before are mended already; it learns what the dense block
    gives in the dense model, by the square of the distance, relative to the square of that. Blocks run as in evaluation. Single
    weights stay zero inside `secateur.train.masked`.

    Args:
        blocks: Names of modules, in the order in which they run; None = the children of the `ModuleList` or `Sequential` with the
            most parameters.
        fit: How each is trained; its loss and its teacher are not used.
        samples: How many samples to use, at least 1.

    Raises:
        RecoveryError: There are no samples. When called: there is no teacher, or the model is one that `secateur.mask` made.
        PlanError: When called: a block is not there, or has nothing to train.
        DataError: When called: data that do not fit the model, or a block that does not run, or gives another shape.

    Example:
        >>> import secateur as sc
        >>> dense = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 4))
        >>> data = [torch.randn(64, 4)]
        >>> result = sc.sparsify(dense, data, sparsity=0.5)
        >>> with sc.train.masked(result.model, result.plan):
        ...     model = Reconstruct()(result.model, data, dense)
        >>> float((model[0].weight == 0).float().mean())
        0.5

    Source:
        S. Guo et al., "EBFT: Effective and Block-Wise Fine-Tuning for Sparse LLMs", 2024.
    """

    blocks: Sequence[str] | None = None
    fit: FineTune = FineTune(epochs=10, optimizer=torch.optim.AdamW, learning_rate=1e-3, weight_decay=0.0)  # noqa: RUF009
    samples: int = 128

    def __post_init__(self) -> None:
        if type(self.samples) is not int or self.samples < 1:
            raise RecoveryError(f"Reconstruct(samples={self.samples!r}): a whole number, at least 1")

    def __call__(
        self, model: nn.Module, data: Batches, teacher: nn.Module | None = None, progress: Progress | None = None
    ) -> nn.Module:
        """Train the blocks.

        Args:
            model: Trained in place.
            data: Batches; targets are not looked at.
            teacher: The dense model, with blocks of the same names.
            progress: Called after each update, and anew for each block.

        Returns:
            `model`.
        """
        check_model(model)
        if teacher is None:
            raise RecoveryError("reconstruction learns from the dense model: pass it as the teacher")
        check_teacher(model, teacher)
        if is_masked(model):
            raise RecoveryError("reconstruction cannot hold what secateur.mask set to zero; compact the model first")
        names = _largest(model) if self.blocks is None else _checked(self.blocks)
        blocks, dense = ({name: _module(whole, name) for name in names} for whole in (model, teacher))
        if len(set(map(id, blocks.values()))) < len(names):
            raise PlanError(f"blocks={names} names one module twice; name each once")
        for name, block in blocks.items():
            if not any(parameter.requires_grad for parameter in block.parameters()):
                raise PlanError(f"the block {name!r} has no trainable parameter; leave it out of blocks=")
        pieces = [inputs for inputs, _ in take(data, self.samples)]
        fit = replace(self.fit, loss=_distance, distill=None)
        models = [_copy(whole) for whole in (model, teacher) for _ in pieces]  # after the pruned ones, the dense ones
        left = dict.fromkeys(names)

        def mend(name: str, calls: Mapping[int, Call]) -> None:
            both = [number for number in range(len(pieces)) if number in calls and number + len(pieces) in calls]
            targets = [_output(name, dense[name], calls[number + len(pieces)]) for number in both]
            batches = [(torch.tensor([number]), target) for number, target in enumerate(targets)]
            if batches:
                with torch.enable_grad():
                    fit(_Replayed(blocks[name], [calls[number] for number in both]), batches, progress=progress)
                for copied in models[: len(pieces)]:
                    _share(blocks[name], copied.get_submodule(name))
                del left[name]
                logger.info("%s: reconstructed", name)

        with evaluating(model, teacher), undisturbed(model):
            side_by_side(models, pieces * 2, names, mend, partial(watch_modules, names))
        if left:
            raise DataError(
                f"{', '.join(map(repr, left))} did not run in {type(model).__name__}, or before those that blocks= names first; "
                "name blocks that run, in the order in which they do"
            )
        return model


class _Replayed(nn.Module):
    """A block that runs on what it was called with before, by the number of the call, and always as in evaluation."""

    def __init__(self, block: nn.Module, calls: Sequence[Call]) -> None:
        super().__init__()
        self.block, self.calls = block, calls

    def forward(self, number: Tensor) -> Any:
        return _again(self.block, self.calls[int(number)])

    def train(self, mode: bool = True) -> "_Replayed":  # noqa: ARG002
        return self


def _copy(model: nn.Module) -> nn.Module:
    """A copy in eval mode, which shares the parameters."""
    return replicate(
        model, lambda tensor: tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.clone()
    ).eval()


def _share(block: nn.Module, copied: nn.Module) -> None:
    """Give a copy of a block the block's parameters."""
    for mine, other in zip(block.parameters(), copied.parameters(), strict=True):
        other.data = mine.detach()


@torch.no_grad()
def _output(name: str, block: nn.Module, call: Call) -> Tensor:
    """What a block returns first."""
    try:
        return _first(_again(block, call))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        raise DataError(
            f"the block {name!r} cannot run on what the model gives it: {error}; look at the batches, and at blocks="
        ) from error


def _again(block: nn.Module, call: Call) -> Any:
    """Run a block on copies of what it was called with, since it may write to them; hooks before it have run already."""
    arguments, keywords = pytree.tree_map(
        lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else copy.deepcopy(leaf), call
    )
    return block.forward(*arguments, **keywords)


def _distance(output: Any, target: Tensor) -> Tensor:
    """|y - z|^2 / |z|^2."""
    y = _first(output)
    if y.shape != target.shape:
        raise ValueError(f"the block gives {list(y.shape)}, and the dense model's {list(target.shape)}")
    kind = torch.promote_types(y.dtype, torch.float32)
    whole = target.to(kind).square().mean()
    return (y.to(kind) - target.to(kind)).square().mean() / torch.where(whole > 0, whole, 1.0)


def _first(output: Any) -> Tensor:
    """The first tensor of what a block returns."""
    tensor: Tensor = next(leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor))
    return tensor


def _largest(model: nn.Module) -> list[str]:
    """The children with trainable parameters of the list of modules that has the most parameters."""
    lists = [
        (name, module) for name, module in model.named_modules() if isinstance(module, (nn.ModuleList, nn.Sequential))
    ]
    sizes = [sum(parameter.numel() for parameter in module.parameters()) for _, module in lists]
    path, largest = lists[sizes.index(max(sizes))] if lists else ("", nn.Sequential())
    names = [
        f"{path}.{name}" if path else name
        for name, child in largest.named_children()
        if any(parameter.requires_grad for parameter in child.parameters())
    ]
    if not names:
        raise PlanError(f"{type(model).__name__} has no list of blocks to go through; name modules in blocks=")
    return names


def _checked(blocks: Sequence[str]) -> list[str]:
    if isinstance(blocks, str) or not blocks:
        raise PlanError(f"blocks= is a list of names of modules, such as ['layers.0', 'layers.1']; got {blocks!r}")
    return list(blocks)


def _module(model: nn.Module, name: str) -> nn.Module:
    try:
        return model.get_submodule(name)
    except AttributeError as error:
        raise PlanError(f"{type(model).__name__} has no block {name!r}: {error}; name modules in blocks=") from error
