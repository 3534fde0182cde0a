"""Batch norms whose running statistics are measured anew, or moved so that they write what those of the dense model write."""

import logging
from collections.abc import Callable, Iterator, Mapping
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
from secateur.torch.join import together

logger = logging.getLogger(__name__)

AT_ONCE = 128
"""Samples by which batch norms are measured at a time, at least: smaller batches are joined."""
FEW = 32
"""Values of a channel in a batch, by whose own mean and variance it should not be normalised."""


@dataclass(frozen=True, slots=True)
class ReestimateBatchNorm:
    """Measures the running statistics of every batch norm anew, on data, without changing a weight.

    While it runs, each batch is normalised by its own mean and variance; what is kept is the mean and the unbiased variance over
    all samples. Consecutive batches of fewer than 128 samples are joined. Batch norms without running statistics stay as they
    are.

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
        pieces = [inputs for inputs, _ in take(batches, self.samples)]
        with measured(small), undisturbed(small):
            for inputs in together(pieces, AT_ONCE):
                run(small, inputs)


@contextmanager
def measured(model: nn.Module, goals: Mapping[str, "Written"] | None = None) -> Iterator[None]:
    """Within, batch norms of a model in eval mode normalise each batch by its own statistics; after, they hold those of all.

    Args:
        model: Whose batch norms.
        goals: By the path of a batch norm what it wrote when the model was dense: it then gets the statistics with which it
            writes the same mean and variance, on the data that both were shown. Others stay as they are. None = all batch norms
            shall write mean 0 and variance 1.
    """
    norms = {path: norm for path, norm in model.named_modules() if _has_statistics(norm)}
    wanted: Mapping[str, Written | _Standard] = dict.fromkeys(norms, _Standard()) if goals is None else goals
    norms = {path: norm for path, norm in norms.items() if path in wanted}
    found = {path: _Statistics() for path in norms}
    before = {path: (_mean(norm).clone(), _variance(norm).clone()) for path, norm in norms.items()}
    handles = [
        norm.register_forward_pre_hook(_normalise_anew(found[path], wanted[path]), with_kwargs=True)
        for path, norm in norms.items()
    ]
    finished = False
    try:
        yield
        finished = True
    finally:
        for handle in handles:
            handle.remove()
        for path, norm in norms.items():
            enough = finished and found[path].count > 1
            _set(norm, *(wanted[path].statistics(*found[path].result()) if enough else before[path]))


@contextmanager
def observed(model: nn.Module, runs: int = 1) -> Iterator[dict[str, "Written"]]:
    """After it, the mapping says what each batch norm of a model in eval mode has read, and made of it, by its path.

    Batch norms that run several times in a run of the model are left out: what each wrote is not known apart.

    Args:
        model: Whose batch norms.
        runs: How often the model runs meanwhile.
    """
    norms = {path: norm for path, norm in model.named_modules() if _has_statistics(norm)}
    found = {path: _Statistics() for path in norms}
    written: dict[str, Written] = {}
    handles = [norm.register_forward_pre_hook(_look(found[path]), with_kwargs=True) for path, norm in norms.items()]
    try:
        yield written
    finally:
        for handle in handles:
            handle.remove()
    for path, norm in norms.items():
        if found[path].runs == runs and found[path].count > 1:
            running = (_mean(norm).to(torch.float64), _variance(norm).to(torch.float64))
            written[path] = Written(*found[path].result(), *running, float(getattr(norm, "eps", 0.0)))


@dataclass(frozen=True, slots=True, eq=False)
class Written:
    """What a batch norm read, and how it normalised that; `[channels]` float64.

    Attributes:
        mean: The mean of what it read.
        variance: The variance of what it read.
        running_mean: What it subtracted.
        running_variance: What it divided by the root of.
        eps: What it added to that before.
    """

    mean: Tensor
    variance: Tensor
    running_mean: Tensor
    running_variance: Tensor
    eps: float

    def of(self, channels: tuple[int, ...] | None) -> "Written":
        """The same of some channels; None = all."""
        if channels is None:
            return self
        index = torch.tensor(channels, device=self.mean.device)
        read = self.mean[index], self.variance[index]
        return Written(*read, self.running_mean[index], self.running_variance[index], self.eps)

    def statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        """The running statistics that give data of another mean and variance the mean and variance written here.

        Where nothing changed, they are the running statistics as they were.
        """
        wide = self.running_variance + self.eps
        share = torch.where(self.variance > 0, variance / self.variance, torch.ones_like(variance))
        other = (wide * share - self.eps).clamp_min(0)
        return mean - (self.mean - self.running_mean) * ((other + self.eps) / wide).sqrt(), other


class _Standard:
    """Mean 0 and variance 1, whatever the dense model wrote."""

    def statistics(self, mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor]:
        return mean, variance


@dataclass(slots=True)
class _Statistics:
    """Sums over everything that a batch norm has read, `[channels]` float64."""

    runs: int = 0
    count: int = 0
    total: Tensor | float = 0.0
    squares: Tensor | float = 0.0

    def add(self, count: int, mean: Tensor, variance: Tensor) -> None:
        """Count in so many values a channel, with their unbiased variance."""
        self.runs += 1
        self.count += count
        self.total = self.total + count * mean
        self.squares = self.squares + (count - 1) * variance + count * mean.square()

    def result(self) -> tuple[Tensor, Tensor]:
        """The mean and the unbiased variance of all."""
        mean = torch.as_tensor(self.total) / self.count
        return mean, (self.squares - self.count * mean.square()).clamp_min(0) / (self.count - 1)


def _normalise_anew(found: _Statistics, goal: "Written | _Standard") -> Callable[..., None]:
    def before_forward(norm: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        count, mean, variance = _moments(args, kwargs)
        if count < FEW and not found.runs:
            logger.warning("a batch has %d values of a channel to measure it by; give larger batches", count)
        found.add(count, mean, variance)
        if count > 1:  # one value has no variance: it counts, but is normalised as it was
            _set(norm, *goal.statistics(mean, variance))

    return before_forward


def _look(found: _Statistics) -> Callable[..., None]:
    def before_forward(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found.add(*_moments(args, kwargs))

    return before_forward


def _moments(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, Tensor, Tensor]:
    """How many values a channel has, their mean, and their unbiased variance (0 of one value), `[channels]` float64."""
    x = (args[0] if args else kwargs["input"]).detach()
    values = x.to(torch.float32) if x.dtype in (torch.float16, torch.bfloat16) else x
    count, dims = x.numel() // x.shape[1], (0, *range(2, x.ndim))
    mean = values.mean(dims).to(torch.float64)
    if not bool(torch.isfinite(mean).all()):
        raise DataError("a batch norm reads values that are not finite; look at the data and the weights")
    return count, mean, values.var(dims).to(torch.float64) if count > 1 else torch.zeros_like(mean)


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, BATCH_NORMS) and module.running_mean is not None


def _mean(norm: nn.Module) -> Tensor:
    assert isinstance(norm.running_mean, Tensor)
    return norm.running_mean


def _variance(norm: nn.Module) -> Tensor:
    assert isinstance(norm.running_var, Tensor)
    return norm.running_var


def _set(norm: nn.Module, mean: Tensor, variance: Tensor) -> None:
    _mean(norm).copy_(mean)
    _variance(norm).copy_(variance)
