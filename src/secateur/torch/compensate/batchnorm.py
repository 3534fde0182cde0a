"""Batch norms whose running statistics are measured anew."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from secateur.axes import Plan
from secateur.errors import DataError
from secateur.torch.batches import Batches, run, take
from secateur.torch.calibrate import undisturbed
from secateur.torch.capture import TracedNetwork
from secateur.torch.compensate.consumer import BATCH_NORMS


@dataclass(frozen=True, slots=True)
class ReestimateBatchNorm:
    """Measures the running statistics of every batch norm anew, on data, without changing a weight.

    While it runs, each batch is normalised by its own mean and variance; what is kept is the mean and the unbiased variance over
    all samples. Batch norms without running statistics stay as they are.

    Args:
        samples: How many samples to use, > 0.

    Raises:
        DataError: `samples` is not positive. When called: no data, or data that do not fit the model.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> with measured(model):
        ...     _ = model.eval()(torch.tensor([[1.0, 0.0], [3.0, 4.0]]))
        >>> model[0].running_mean.tolist(), model[0].running_var.tolist()
        ([2.0, 2.0], [2.0, 8.0])

    Source:
        Re-estimation after pruning: Y. Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV
        2020, section 3.3; here over a fixed set and exact, not a moving average.
    """

    samples: int = 2048

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise DataError(f"{self!r}: samples is at least 1")

    @property
    def name(self) -> str:
        """What a report calls the step."""
        return "batch norm"

    def __call__(self, network: TracedNetwork, small: nn.Module, plan: Plan, batches: Batches) -> None:  # noqa: ARG002 - as Compensation asks
        """Change the compact model in place; see `Compensation`."""
        with measured(small), undisturbed():
            for inputs, _ in take(batches, self.samples):
                run(small, inputs)


@contextmanager
def measured(model: nn.Module) -> Iterator[None]:
    """Within, batch norms of a model in eval mode normalise each batch by its own statistics; after, they hold those of all."""
    norms = {
        module: _Statistics()
        for module in model.modules()
        if isinstance(module, BATCH_NORMS) and module.track_running_stats
    }
    before = {norm: (_mean(norm).clone(), _variance(norm).clone()) for norm in norms}
    handles = [norm.register_forward_pre_hook(_hook(found), with_kwargs=True) for norm, found in norms.items()]
    finished = False
    try:
        yield
        finished = True
    finally:
        for handle in handles:
            handle.remove()
        for norm, found in norms.items():
            _set(norm, *(found.result() if finished and found.count > 1 else before[norm]))


@dataclass(slots=True)
class _Statistics:
    """Sums over everything that a batch norm has read, `[channels]` float64."""

    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Count in so many values a channel, with their unbiased variance."""
        self.count += count
        self.total = self.total + count * mean
        self.squares = self.squares + (count - 1) * variance + count * mean.square()

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean and the unbiased variance of all."""
        mean = torch.as_tensor(self.total) / self.count
        return mean, (self.squares - self.count * mean.square()).clamp_min(0) / (self.count - 1)


def _hook(found: _Statistics) -> Callable[..., None]:
    def before_forward(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        x = (args[0] if args else kwargs["input"]).detach()
        values = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
        count, dims = x.numel() // x.shape[1], (0, *range(2, x.ndim))
        mean = values.mean(dims).to(torch.float64)
        if count < 2:  # one value has no variance: it counts, but is normalised as it was
            found.add(count, mean, torch.zeros_like(mean))
            return
        variance = values.var(dims).to(torch.float64)
        found.add(count, mean, variance)
        _set(norm, mean, variance)

    return before_forward


def _mean(norm: nn.Module) -> Tensor:
    assert isinstance(norm.running_mean, Tensor)
    return norm.running_mean


def _variance(norm: nn.Module) -> Tensor:
    assert isinstance(norm.running_var, Tensor)
    return norm.running_var


def _set(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    _mean(norm).copy_(mean)
    _variance(norm).copy_(variance)
