"""What a batch is, what a model makes of it, and what can be wrong with either.

A batch is `(inputs, targets)`; or a mapping of keyword arguments, for models that return an object with a `loss`; or bare inputs,
where no loss is needed. Inputs have any form that `trace` takes; the first dim of every tensor counts samples.

Batches are gone through several times, so they come as a list, a data loader, or another object that starts anew each time.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from secateur.errors import DataError, ModelError
from secateur.torch.capture import Inputs, call
from secateur.torch.places import cause_of

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


def take(
    batches: Batches, samples: int, at_most: int | None = None, labelled: bool = False
) -> Iterator[tuple[Inputs, Any]]:
    """The first `samples` samples of some batches, in pieces of `at_most` samples.

    Args:
        batches: What to take from.
        samples: How many samples to take in all; fewer where there are no more.
        at_most: The most samples in a piece; None = a batch stays whole.
        labelled: Whether targets matter, so that those of a batch that is cut must be cut as well.

    Yields:
        Inputs and targets (or None); none is empty.

    Raises:
        DataError: There are no samples, `batches` is no iterable of batches, or targets that matter cannot be cut.

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
        if labelled and targets is not None and min(step, size) < batch_size(inputs):
            _check_targets(targets, batch_size(inputs), step)
        for start in range(0, size, step):
            yield part(inputs, targets, start, min(start + step, size))
        left -= size
        if left <= 0:
            break
    if left == samples:
        raise DataError(
            "there is no data: the batches are empty or already used up; give a list or a data loader with samples"
        )


def check_repeatable(batches: Batches, times: int, what: str) -> None:
    """Refuse an iterator where batches are gone through several times: each pass would see other samples, the last none.

    Args:
        batches: What will be gone through.
        times: How often.
        what: By what, in the plural.

    Raises:
        DataError: It is an iterator, and `times` is above 1.
    """
    if times > 1 and isinstance(batches, Iterator):
        raise DataError(
            f"the batches are a one-time {type(batches).__name__}, and {times} {what} go through the batches anew; give a list "
            "or a data loader"
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
        return tensor[start:stop] if _counts(tensor, size) else tensor

    taken: tuple[Inputs, Any] = pytree.tree_map_only(Tensor, narrowed, (inputs, targets))
    return taken


def real_rows(inputs: Inputs, rows: Tensor) -> Tensor:
    """The rows that stand for tokens, without those of padding.

    Args:
        inputs: Keyword arguments with an `attention_mask` `[batch, length]`, 0 where there is padding; or any others.
        rows: What a linear layer reads or writes for them, `[batch x length, features]`; others go through as they are.

    Example:
        >>> real_rows({"attention_mask": torch.tensor([[1, 0]])}, torch.tensor([[3.0], [4.0]])).tolist()
        [[3.0]]
    """
    mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None
    if not isinstance(mask, Tensor) or mask.ndim != 2 or rows.ndim != 2 or len(rows) != mask.numel():
        return rows
    return rows[mask.flatten().to(rows.device) != 0]


def _check_targets(targets: Any, size: int, step: int) -> None:
    """Refuse targets that would go as they are with each part of a batch: a list of boxes, say."""
    if not any(_counts(leaf, size) for leaf in pytree.tree_leaves(targets)):
        raise DataError(
            f"a batch of {size} samples has to be cut into parts of {step}, but its targets, a {type(targets).__name__}, hold no "
            f"tensor with {size} along its first dim; give targets as tensors, or batches of {step} or fewer"
        )


def _counts(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.ndim > 0 and leaf.shape[0] == size


def run(model: nn.Module, inputs: Inputs) -> Any:
    """Run a model on the inputs of a batch, moved to the device of its parameters.

    Raises:
        DataError: The inputs do not fit the model.
        ModelError: The model is on the meta device.
        RuntimeError: There is not enough memory; as torch raised it.
    """
    device = next((tensor.device for tensor in model.parameters()), torch.device("cpu"))
    if device.type == "meta":
        raise ModelError(f"{type(model).__name__} is on the meta device and cannot compute; materialise it first")
    try:
        return call(model, pytree.tree_map_only(Tensor, lambda tensor: tensor.to(device), inputs))
    except (RuntimeError, ValueError, TypeError, IndexError) as error:
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(str(tuple(leaf.shape)) for leaf in pytree.tree_leaves(inputs) if isinstance(leaf, Tensor))
        raise DataError(
            f"{type(model).__name__} cannot run on a batch, or a part of one, with inputs of shape {shapes}: "
            f"{cause_of(error)}; give batches of what the model was traced with"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory is short, which smaller batches mend and other data do not."""
    # On the CPU torch raises a bare RuntimeError, so that the name of its allocator is all there is to tell it by.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "DefaultCPUAllocator" in str(error)


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
        output: Logits `[batch, classes, ...]`, in any form that `logits_of` knows.
        targets: Labels `[batch, ...]` of an integer type (-100 = leave out), or probabilities shaped like the logits.

    Returns:
        A scalar.

    Raises:
        DataError: There are no logits, they have fewer than two classes, or the targets do not fit them.

    Example:
        >>> round(cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3])).item(), 4)
        1.3863
    """
    logits = logits_of(output)
    if not isinstance(targets, Tensor):
        raise DataError(
            f"cross-entropy compares logits with a tensor of targets; got a {type(targets).__name__}; pass loss="
        )
    if logits.ndim > 1 and logits.shape[1] < 2:
        # It would be 0 whatever the model does: every unit worth nothing, and training without an effect.
        raise DataError(
            f"cross-entropy needs two classes or more, and the logits have the shape {list(logits.shape)}; pass loss=, for "
            "example a mean squared error, or a binary cross-entropy"
        )
    if not targets.is_floating_point():
        _check_labels(logits, targets)
    elif targets.shape != logits.shape:
        raise DataError(
            f"the targets {list(targets.shape)} of type {targets.dtype} do not fit the logits {list(logits.shape)}, "
            "of a batch or a part of one; give labels of an integer type, or pass loss="
        )
    logits = logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits
    return F.cross_entropy(logits, targets.to(logits.dtype if targets.is_floating_point() else torch.int64))


def logits_of(output: Any) -> Tensor:
    """The logits in what a model returned.

    Args:
        output: A tensor, an object or mapping with `logits`, or a tuple or list that starts with a tensor.

    Returns:
        The logits.

    Raises:
        DataError: None of these.

    Example:
        >>> logits_of((torch.zeros(2, 3), "attentions")).shape
        torch.Size([2, 3])
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, Mapping):
        logits = output.get("logits")
    else:
        logits = getattr(output, "logits", None)
    if logits is None and isinstance(output, (tuple, list)) and output:
        logits = output[0]
    if not isinstance(logits, Tensor):
        raise DataError(
            f"no logits in the model's output of type {type(output).__name__}; a tensor, an object with .logits or a tuple "
            "that starts with a tensor has some; wrap the model, or pass a loss that takes its output as it is"
        )
    return logits


def _check_labels(logits: Tensor, targets: Tensor) -> None:
    expected = (logits.shape[0], *logits.shape[2:])
    if logits.ndim < 2 or tuple(targets.shape) != expected:
        raise DataError(
            f"labels of shape {list(targets.shape)} do not fit logits of shape {list(logits.shape)} [batch, classes, ...], of a "
            "batch or a part of one; for another layout pass loss="
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
