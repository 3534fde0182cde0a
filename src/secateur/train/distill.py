"""How far a model's answers are from its teacher's: knowledge distillation."""

from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor
from torch.nn import functional as F

from secateur.errors import DataError, RecoveryError


@dataclass(frozen=True, slots=True)
class Distill:
    """Learn from the answers of a teacher, the dense model, besides the targets.

    The whole loss is `(1 - weight) * task + weight * distance`, where the distance is `T^2 * KL(teacher || student)` between the
    class probabilities that both models give at temperature `T`, a mean over the examples (and over the tokens of a sequence).

    Args:
        temperature: `T`, above 0; the higher, the more the unlikely classes count.
        weight: The share of the distance in the whole loss, in (0, 1]; at 1 no targets are needed.
        dim: The dim of the logits that has the classes; None = the last. Logits of four dims or more, such as a segmentation's
            `[batch, classes, height, width]`, need it to be said.

    Raises:
        RecoveryError: A value is out of range.
        DataError: When called: logits that do not fit each other, or fewer than two classes.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[2.0, 0.0, -1.0]])
        >>> Distill(temperature=2.0)(logits, logits).item()
        0.0

    Source:
        G. Hinton, O. Vinyals, J. Dean, "Distilling the Knowledge in a Neural Network", 2015, section 2: the soft targets, and the
        factor T^2 that keeps their gradients as large as the hard ones'. KL instead of cross-entropy: the gradient is the
        same, and equal answers give 0.
    """

    temperature: float = 2.0
    weight: float = 0.5
    dim: int | None = None

    def __post_init__(self) -> None:
        if not (isfinite(self.temperature) and self.temperature > 0):
            raise RecoveryError(f"Distill(temperature={self.temperature!r}): must be a number above 0; 1 to 4 is usual")
        if not 0 < self.weight <= 1:
            raise RecoveryError(
                f"Distill(weight={self.weight!r}): must be in (0, 1]; without distillation pass distill=None"
            )

    def __call__(self, student: Tensor, teacher: Tensor) -> Tensor:
        """The distance, at least 0.

        Args:
            student: Logits, floating point, `[..., classes]`.
            teacher: Logits of the same shape.

        Returns:
            A scalar, in float32 at least.

        Raises:
            DataError: The shapes differ, there are fewer than two classes, or it is not clear which dim has the classes.
        """
        dim = self._class_dim(student, teacher)
        wide = torch.promote_types(student.dtype, torch.float32)
        log_student = F.log_softmax(student.to(wide) / self.temperature, dim)
        log_teacher = F.log_softmax(teacher.to(log_student) / self.temperature, dim)
        divergence = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(dim)
        return divergence.mean() * self.temperature**2

    def _class_dim(self, student: Tensor, teacher: Tensor) -> int:
        shape = list(student.shape)
        if student.shape != teacher.shape:
            raise DataError(
                f"the model gives logits of shape {shape} and the teacher {list(teacher.shape)} for the same inputs; "
                "distillation needs a teacher with the same classes"
            )
        if self.dim is None and student.ndim > 3:
            raise DataError(f"logits of shape {shape}: say which dim has the classes, for example Distill(dim=1)")
        dim = -1 if self.dim is None else self.dim
        if not -student.ndim <= dim < student.ndim or student.shape[dim] < 2:
            raise DataError(
                f"logits of shape {shape} have no two classes in dim {dim} to compare the probabilities of; "
                "name another with Distill(dim=...), or train without distillation"
            )
        return dim
