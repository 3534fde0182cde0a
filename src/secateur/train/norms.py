"""Gives batch norms the statistics of a model whose weights have changed: `MatchNorms`."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import nn

from secateur.errors import RecoveryError
from secateur.torch.batches import Batches, run, take
from secateur.torch.calibrate import undisturbed
from secateur.torch.compensate.batchnorm import AT_ONCE, Written, measured, observed
from secateur.torch.join import together
from secateur.torch.state import evaluating
from secateur.train.check import check_model, check_teacher
from secateur.train.protocol import Progress


@dataclass(frozen=True, slots=True)
class MatchNorms:
    """Measure the running statistics of all batch norms anew: no labels, no gradients, one run of the data.

    While it is measured, each batch is normalised by its own statistics, which those of a small one would blur: consecutive
    batches of fewer than 128 samples are joined. Nothing is kept for gradients, so they take less memory than in training.

    With a teacher, every batch norm gets the statistics with which it writes the mean and the variance that the dense model's
    wrote; those that run several times in it stay as they are. Without one, mean 0 and variance 1, before scale and bias.

    Args:
        samples: How many samples to use, at least 1.

    Raises:
        RecoveryError: There are no samples. When called: the teacher's batch norms are others.
        DataError: When called: no data, or data that do not fit the model.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> model = MatchNorms()(model, [torch.tensor([[1.0, 0.0], [3.0, 4.0]])])
        >>> model[0].running_mean.tolist(), model[0].running_var.tolist()
        ([2.0, 2.0], [2.0, 8.0])

    Source:
        Y. Li et al., "EagleEye: Fast Sub-net Evaluation for Efficient Neural Network Pruning", ECCV 2020, section 3.3.
    """

    samples: int = 2048

    def __post_init__(self) -> None:
        if type(self.samples) is not int or self.samples < 1:
            raise RecoveryError(f"MatchNorms(samples={self.samples!r}): a whole number, at least 1")

    def __call__(
        self, model: nn.Module, data: Batches, teacher: nn.Module | None = None, progress: Progress | None = None
    ) -> nn.Module:
        """Measure.

        Args:
            model: Changed in place; in eval mode while it runs.
            data: Batches; targets are not looked at.
            teacher: The dense model, with batch norms of the same names; or None.
            progress: Not called: there are no updates.

        Returns:
            `model`.
        """
        del progress
        check_model(model)
        pieces = together([inputs for inputs, _ in take(data, self.samples)], AT_ONCE)
        goals: dict[str, Written] | None = None
        if teacher is not None:
            check_teacher(model, teacher)
            with evaluating(teacher), undisturbed(teacher), observed(teacher, len(pieces)) as goals:
                for inputs in pieces:
                    run(teacher, inputs)
            _check_names(model, goals)
        with evaluating(model), undisturbed(model), measured(model, goals):
            for inputs in pieces:
                run(model, inputs)
        return model


def _check_names(model: nn.Module, goals: Mapping[str, Written]) -> None:
    """Refuse a teacher whose batch norms are others."""
    norms = {name: tensor for name, tensor in model.named_buffers() if name.endswith("running_mean")}
    both = {name: norms[f"{name}.running_mean"] for name in goals if f"{name}.running_mean" in norms}
    if norms and not both:
        raise RecoveryError(
            "no batch norm of the teacher that runs once has the name of one of the model; leave it out"
        )
    for name, mean in both.items():
        if len(mean) != len(goals[name].mean):
            raise RecoveryError(
                f"the batch norm {name!r} has {len(mean)} channels, and the teacher's {len(goals[name].mean)}; leave the teacher "
                "out, as where channels are gone"
            )
