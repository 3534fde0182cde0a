"""The distance between a model's answers and its teacher's."""

import math

import pytest
import torch
from torch import Tensor

from secateur.errors import DataError, RecoveryError
from secateur.train.recover import Distill


def logits(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 3


def brute_force(student: Tensor, teacher: Tensor, temperature: float) -> float:
    """T^2 * KL(teacher || student), a mean over the rows, by the definition."""
    total = 0.0
    for s_row, t_row in zip(student.tolist(), teacher.tolist(), strict=True):
        s = [math.exp(x / temperature) for x in s_row]
        t = [math.exp(x / temperature) for x in t_row]
        total += sum(b / sum(t) * math.log((b / sum(t)) / (a / sum(s))) for a, b in zip(s, t, strict=True))
    return temperature**2 * total / len(student)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 7.0])
def test_the_distance_is_the_definition(temperature: float) -> None:
    student, teacher = logits(5, 4, seed=0), logits(5, 4, seed=1)

    distance = Distill(temperature=temperature)(student, teacher)

    assert float(distance) == pytest.approx(brute_force(student, teacher, temperature), rel=1e-12)  # float64


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_the_one_of_the_paper(temperature: float) -> None:
    """Equation 2 of Hinton et al., (softmax(z/T) - softmax(v/T)) / T for one example, times T^2."""
    student, teacher = logits(5, 4, seed=0).requires_grad_(), logits(5, 4, seed=1)
    Distill(temperature=temperature)(student, teacher).backward()

    expected = temperature * ((student / temperature).softmax(1) - (teacher / temperature).softmax(1)) / 5
    assert student.grad is not None
    torch.testing.assert_close(student.grad, expected.detach(), rtol=1e-12, atol=1e-15)


def test_tokens_count_like_examples() -> None:
    student, teacher = logits(2, 3, 4, seed=0), logits(2, 3, 4, seed=1)

    assert Distill()(student, teacher) == Distill()(student.reshape(6, 4), teacher.reshape(6, 4))


def test_pixels_count_like_examples_when_the_dim_of_the_classes_is_named() -> None:
    student, teacher = logits(2, 4, 3, 5, seed=0), logits(2, 4, 3, 5, seed=1)
    rows = [maps.movedim(1, -1).reshape(-1, 4) for maps in (student, teacher)]

    torch.testing.assert_close(Distill(dim=1)(student, teacher), Distill()(*rows), rtol=1e-12, atol=0)


def test_logits_in_16_bits_are_compared_in_32() -> None:
    student, teacher = logits(3, 4, seed=0).bfloat16(), logits(3, 4, seed=1).bfloat16()

    assert Distill()(student, teacher) == Distill()(student.float(), teacher.float())


def test_maps_need_the_dim_of_their_classes() -> None:
    with pytest.raises(DataError, match=r"\[2, 4, 3, 5\]: say which dim has the classes, for example Distill\(dim=1\)"):
        Distill()(logits(2, 4, 3, 5, seed=0), logits(2, 4, 3, 5, seed=1))


def test_one_class_alone_is_refused() -> None:
    with pytest.raises(DataError, match=r"\[8, 1\] have no two classes in dim -1"):
        Distill()(logits(8, 1, seed=0), logits(8, 1, seed=1))


def test_a_teacher_of_other_classes_is_refused() -> None:
    with pytest.raises(DataError, match=r"logits of shape \[8, 3\] and the teacher \[8, 5\]"):
        Distill()(logits(8, 3, seed=0), logits(8, 5, seed=1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": 0.0}, r"Distill\(temperature=0.0\): must be a number above 0"),
        ({"temperature": math.inf}, "temperature=inf"),
        ({"weight": 0.0}, r"Distill\(weight=0.0\): must be in \(0, 1\]; without distillation pass distill=None"),
        ({"weight": 1.5}, "weight=1.5"),
        ({"weight": math.nan}, "weight=nan"),
    ],
)
def test_a_value_out_of_range_is_refused(values: dict[str, float], message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        Distill(**values)  # type: ignore[arg-type]
