"""Trains a pruned model for a few epochs, on its own or with the dense model as a teacher: `FineTune`."""

from dataclasses import dataclass
from math import inf, isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError, RecoveryError, SecateurError
from secateur.torch.batches import Batches, Loss
from secateur.torch.state import evaluating
from secateur.train.best import Best
from secateur.train.check import check_data, check_model, check_teacher, not_finite
from secateur.train.distill import Distill
from secateur.train.feed import batches, step_count
from secateur.train.held import Held
from secateur.train.objective import Objective
from secateur.train.only import Only, training_only
from secateur.train.protocol import Progress, Step
from secateur.train.restore import seeded, training
from secateur.train.schedule import Schedule, cosine
from secateur.train.update import OptimizerFactory, Updater


@dataclass(frozen=True, slots=True)
class FineTune:
    """Train all trainable parameters, or some of them, for a few epochs.

    The model is trained in place. What training needs to change on the way is put back: every module's mode, the global random
    numbers, the gradients. The same seed, data and model give the same weights on the same device, as far as its kernels do.
    In a model that `secateur.mask` made, what is masked stays zero; so do single weights inside `secateur.train.masked`.

    Args:
        epochs: How often the data is gone through, at least 1.
        learning_rate: The highest, above 0; None = 0.03, or what a given optimiser has itself.
        optimizer: Called as `optimizer(parameter_groups, lr=learning_rate)`, without `lr` where there is none: a class of
            `torch.optim`, or a `functools.partial` of one; None = stochastic gradient descent with Nesterov's momentum of 0.9,
            which `benchmarks/recovery.py` compares with others. It needs gradients cut to `max_grad_norm`.
        loss: `(model's output, targets) -> scalar`; None = cross-entropy, or, for batches without targets, the `loss` in the
            model's output.
        distill: How to learn from the teacher; None = the teacher is not asked.
        schedule: `(step from 0, number of steps) -> factor of the learning rate`, at least 0.
        weight_decay: At least 0, and not for biases and other vectors; None = 5e-4, or what a given optimiser has itself.
        max_grad_norm: Longer gradients are scaled down to this norm, above 0; None = never.
        seed: For shuffling, augmentation and dropout, as far as they draw from the global random numbers.
        batch_limit: At most so many batches of each epoch, at least 1; None = all.
        only: `(name, parameter) -> whether it is trained`, of those that are trainable, such as `recover.vectors`; None = all.

    Raises:
        RecoveryError: A value is out of range. When called: a teacher is needed and missing, nothing can be trained, or the loss
            or a gradient is not finite; the model then has the weights with the lowest running mean of the loss.
        DataError: When called: data that is empty, cannot be iterated again, has no targets, holds NaN, or does not fit.
        ModelError: When called: the model has no values, or not-finite ones.

    Example:
        >>> import torch, secateur as sc
        >>> model = torch.nn.Linear(2, 2)
        >>> data = [(torch.tensor([[0.0, 1.0], [1.0, 0.0]]), torch.tensor([0, 1]))] * 8
        >>> losses = []
        >>> trained = sc.recover.FineTune(epochs=2)(model, data, progress=lambda step: losses.append(step.loss))
        >>> trained is model, len(losses), losses[-1] < losses[0]
        (True, 16, True)

    Source:
        Momentum: I. Sutskever et al., "On the Importance of Initialization and Momentum in Deep Learning", ICML 2013. The norm of
        gradients: R. Pascanu et al., "On the Difficulty of Training Recurrent Neural Networks", ICML 2013, algorithm 1.
    """

    epochs: int = 1
    learning_rate: float | None = None
    optimizer: OptimizerFactory | None = None
    loss: Loss | None = None
    distill: Distill | None = None
    schedule: Schedule = cosine
    weight_decay: float | None = None
    max_grad_norm: float | None = 1.0
    seed: int = 0
    batch_limit: int | None = None
    only: Only | None = None

    def __post_init__(self) -> None:
        whole, positive = "a whole number, at least 1", "a number above 0"
        checks = (
            ("epochs", whole, _is_whole(self.epochs, 1)),
            ("learning_rate", f"{positive}, or None", _is_positive(self.learning_rate, None)),
            ("weight_decay", "a number, at least 0, or None", _is_positive(self.weight_decay, 0, None)),
            ("max_grad_norm", f"{positive}, or None", _is_positive(self.max_grad_norm, None)),
            ("seed", "a whole number, at least 0", _is_whole(self.seed, 0)),
            ("batch_limit", f"{whole}, or None", self.batch_limit is None or _is_whole(self.batch_limit, 1)),
        )
        for name, what, fits in checks:
            if not fits:
                raise RecoveryError(f"FineTune({name}={getattr(self, name)!r}): must be {what}")

    def __call__(
        self, model: nn.Module, data: Batches, teacher: nn.Module | None = None, progress: Progress | None = None
    ) -> nn.Module:
        """Train the model.

        Args:
            model: Trained in place; parameters with `requires_grad=False` stay as they are.
            data: Batches: `(inputs, targets)`; a mapping of keyword arguments for a model that computes its own loss; or bare
                inputs, where only the teacher is learnt from. Tensors are moved to the model's device.
            teacher: The dense model; asked only if there is `distill`, in eval mode and without gradients.
            progress: Called after each update.

        Returns:
            `model`.
        """
        check_model(model)
        check_data(data, self.epochs)
        if self.distill is not None:
            check_teacher(model, teacher)
        asked = teacher if self.distill is not None else None
        with training_only(model, self.only), seeded(self.seed, model), evaluating(asked), training(model):
            self._train(model, data, Objective(self.loss, self.distill, asked), progress)
        return model

    def _train(self, model: nn.Module, data: Batches, objective: Objective, progress: Progress | None) -> None:
        steps = step_count(data, self.epochs, self.batch_limit)
        updater = Updater(model, self.optimizer, self.learning_rate, self.weight_decay)
        best, held = Best(model), Held(model)
        batch: Any = None
        try:
            for step, (epoch, where, batch) in enumerate(batches(data, self.epochs, self.batch_limit)):
                factor = _factor(self.schedule, step, steps)
                loss = objective(model, batch, where)
                value = _finite(loss, f"the loss is {{}} at {where}")
                torch.autograd.backward(loss)
                updater.make_dense()
                held.drop_gradients()
                norm = updater.gradient_norm()
                _finite(norm, f"the norm of the gradients is {{}} at {where}, with a loss of {value:.4g}")
                best.saw(value)
                updater.update(factor, norm, self.max_grad_norm)
                held.put_back()
                if progress is not None:
                    progress(Step(epoch, step + 1, steps, value))
            if bad := not_finite(model):
                raise _NotFiniteError(f"the last update left NaN or infinite values in {bad!r}")
        except _NotFiniteError as error:
            raise self._failure(str(error), batch, best.put_back(), max(updater.rates)) from error

    def _failure(self, what: str, batch: Any, state: str, rate: float) -> SecateurError:
        if any(_is_broken(leaf) for leaf in pytree.tree_leaves(batch)):
            return DataError(
                f"{what}, because the batch itself holds NaN or infinite values; mend the data. Until then {state}"
            )
        return RecoveryError(
            f"training diverged: {what}; {state}. Lower the learning_rate, which is {rate:g}, "
            f"or the max_grad_norm, which is {self.max_grad_norm}"
        )


def _factor(schedule: Schedule, step: int, steps: int | None) -> float:
    factor: object = schedule(step, steps)
    if not isinstance(factor, (int, float)) or not isfinite(factor) or factor < 0:
        raise RecoveryError(
            f"schedule={schedule!r} gave {factor!r} in step {step} of {steps}, counted from 0; a schedule gives the factor of "
            "the learning rate, a finite number of 0 or more"
        )
    return float(factor)


class _NotFiniteError(Exception):
    """A number that training cannot go on with."""


def _finite(value: Tensor, message: str) -> float:
    number = value.item()
    if not isfinite(number):
        raise _NotFiniteError(message.format(number))
    return float(number)


def _is_broken(leaf: Any) -> bool:
    """Whether a tensor of a batch holds NaN or infinity; minus infinity is a usual value of masks."""
    return isinstance(leaf, Tensor) and bool((leaf.isnan() | (leaf == inf)).any())


def _is_whole(value: Any, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _is_positive(value: Any, *others: float | None) -> bool:
    """Whether it is a finite number above 0, or one of some other allowed values."""
    return value in others or (isinstance(value, (int, float)) and isfinite(value) and value > 0)
