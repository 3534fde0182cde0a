"""What a batch is, what a model makes of it, and what can be wrong with either.

A batch is `(inputs, targets)`; or a mapping of keyword arguments, for models that return an object with a `loss`; or bare inputs,
where no loss is needed. Inputs have any form that `trace` takes; the first dim of every tensor counts samples.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from secateur.errors import DataError, ModelError
from secateur.torch.capture import Inputs, call
from secateur.torch.places import line_of

Batches = Iterable[Any]
"""Batches, as a loader gives them; see `split_batch`."""

Loss = Callable[[Any, Any], Tensor]
"""Takes what the model returned and the targets; gives the mean loss, a scalar."""


def split_batch(batch: Any) -> tuple[Inputs, Any]:
    """See a batch as inputs and targets.

    Args:
        batch: A pair `(inputs, targets)`, a mapping of keyword arguments, or a tensor. A list or tuple of one is that one.

    Returns:
        The inputs, and the targets or None. Several positional inputs come as `((a, b), targets)`, without targets as
        `((a, b), None)`.

    Raises:
        DataError: The batch has another form, or holds no tensor.

    Example:
        >>> inputs, targets = split_batch([torch.zeros(8, 3), torch.zeros(8)])
        >>> inputs.shape, targets.shape
        (torch.Size([8, 3]), torch.Size([8]))
    """
    targets = None
    if isinstance(batch, (tuple, list)) and len(batch) == 1:
        batch = batch[0]
    if isinstance(batch, (tuple, list)):
        if len(batch) != 2:
            raise DataError(
                f"a batch is (inputs, targets), a mapping or a tensor; got a {type(batch).__name__} of {len(batch)}; "
                "give several inputs as ((a, b), targets)"
            )
        batch, targets = batch
    inputs: Inputs = dict(batch) if isinstance(batch, Mapping) else tuple(batch) if isinstance(batch, list) else batch
    if not any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(inputs)):
        raise DataError(f"the inputs of a batch hold no tensor: {type(batch).__name__}; give what model(...) takes")
    return inputs, targets


def take(batches: Batches, samples: int, at_most: int | None = None) -> Iterator[tuple[Inputs, Any]]:
    """The first `samples` samples of some batches, in pieces of `at_most` samples.

    Args:
        batches: What to take from.
        samples: How many samples to take in all; fewer where there are no more.
        at_most: The most samples in a piece; None = a batch stays whole.

    Yields:
        Inputs and targets (or None); none is empty.

    Raises:
        DataError: There are no samples, or `batches` is no iterable of batches.

    Example:
        >>> [len(x) for x, _ in take([torch.zeros(4, 2), torch.zeros(4, 2)], samples=6, at_most=3)]
        [3, 1, 2]
    """
    if isinstance(batches, (Tensor, Mapping)) or not isinstance(batches, Iterable):
        raise DataError(f"batches is an iterable of batches, such as a data loader; got one {type(batches).__name__}")
    left = samples
    for batch in batches:
        inputs, targets = split_batch(batch)
        size = min(batch_size(inputs), left)
        step = at_most or max(size, 1)
        for start in range(0, size, step):
            yield part(inputs, targets, start, min(start + step, size))
        left -= size
        if left <= 0:
            break
    if left == samples:
        raise DataError(
            "there is no data: the batches are empty or already used up; give a list or a data loader with samples"
        )


def batch_size(inputs: Inputs) -> int:
    """The number of samples: the first dim of the first tensor."""
    first = next(leaf for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
    return first.shape[0] if first.ndim else 1


def part(inputs: Inputs, targets: Any, start: int, stop: int) -> tuple[Inputs, Any]:
    """Samples `start` to `stop` of a batch; tensors with another first dim are shared by all samples."""
    size = batch_size(inputs)
    if (start, stop) == (0, size):
        return inputs, targets

    def narrowed(tensor: Tensor) -> Tensor:
        return tensor[start:stop] if tensor.ndim and tensor.shape[0] == size else tensor

    taken: tuple[Inputs, Any] = pytree.tree_map_only(Tensor, narrowed, (inputs, targets))
    return taken


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model on the inputs of a batch, moved to the device of its parameters.

    Raises:
        DataError: The inputs do not fit the model.
        ModelError: The model is on the meta device.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        raise ModelError(f"{type(model).__name__} is on the meta device and cannot compute; materialise it first")
    try:
        return call(model, pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        shapes = [tuple(leaf.shape) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor)]
        raise DataError(
            f"{type(model).__name__} cannot run on a batch with inputs of shape {', '.join(map(str, shapes))}: "
            f"{type(error).__name__}: {error} ({line_of(error)}); give batches of what the model was traced with"
        ) from error


def loss_of(model: nn.Module, inputs: Inputs, targets: Any, loss: Loss | None = None) -> Tensor:
    """The loss of a model on a batch.

    Args:
        model: The model to run.
        inputs: The inputs of a batch.
        targets: Its targets; None where the model computes the loss itself and returns it as `loss`.
        loss: The loss function; None = cross-entropy.

    Returns:
        A scalar.

    Raises:
        DataError: The inputs do not fit the model, the targets do not fit its output, or there is no loss.
    """
    output = run(model, inputs)
    if targets is None and loss is None:
        found = output.get("loss") if isinstance(output, Mapping) else getattr(output, "loss", None)
        if not isinstance(found, Tensor):
            raise DataError(
                f"there is no loss: the batch has no targets, and {type(model).__name__} returned a {type(output).__name__} "
                "without one; give (inputs, targets) batches, or labels among the keyword arguments, or use a label-free score"
            )
        return _scalar(found)
    device = next((leaf.device for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)), None)
    targets = pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), targets)
    return _scalar((loss or cross_entropy)(output, targets))


def cross_entropy(output: Any, targets: Any) -> Tensor:
    """The mean cross-entropy, with the targets checked first.

    Args:
        output: Logits `[batch, classes, ...]`, or an object that holds them as `logits`.
        targets: Labels `[batch, ...]` of an integer type (-100 = leave out), or probabilities shaped like the logits.

    Returns:
        A scalar.

    Raises:
        DataError: The targets do not fit the logits.

    Example:
        >>> round(cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
        1.3863
    """
    logits = getattr(output, "logits", output)
    if not isinstance(logits, Tensor) or not isinstance(targets, Tensor):
        raise DataError(
            f"cross-entropy compares logits with targets; got {type(logits).__name__} and {type(targets).__name__}; pass loss="
        )
    if not targets.is_floating_point():
        _check_labels(logits, targets)
    elif targets.shape != logits.shape:
        raise DataError(
            f"the targets {list(targets.shape)} of type {targets.dtype} do not fit the logits {list(logits.shape)}; "
            "give labels of an integer type, or pass loss="
        )
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(logits, targets.to(logits.dtype if targets.is_floating_point() else torch.int64))


def _check_labels(logits: Tensor, targets: Tensor) -> None:
    expected = (logits.shape[0], *logits.shape[2:])
    if logits.ndim < 2 or tuple(targets.shape) != expected:
        raise DataError(
            f"labels of shape {list(targets.shape)} do not fit logits of shape {list(logits.shape)} [batch, classes, ...]; "
            "for another layout pass loss="
        )
    counted = targets[targets != -100]
    if counted.numel() and (counted.min() < 0 or counted.max() >= logits.shape[1]):
        raise DataError(
            f"the labels go from {int(counted.min())} to {int(counted.max())}, but the model has {logits.shape[1]} classes, "
            f"0 to {logits.shape[1] - 1}; is this the data the model was trained on?"
        )


def _scalar(loss: Any) -> Tensor:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        shape = f" of shape {list(loss.shape)}" if isinstance(loss, Tensor) else ""
        raise DataError(
            f"the loss came out as a {type(loss).__name__}{shape}; it is one number, the mean over the batch"
        )
    return loss.reshape(())
