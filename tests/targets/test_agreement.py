"""What a target computes is compared output by output, and refused where it is not what PyTorch computes."""

import pytest
import torch
from torch import Tensor

from secateur.errors import TargetError
from secateur.targets import Agreement, worst
from secateur.targets.agreement import TOLERANCES, agreement

A = torch.tensor([1.0, -8.0])


def test_the_difference_is_that_of_the_output_that_is_farthest_off_relative_to_its_largest() -> None:
    found = agreement("it", [A, 100 * A], [A + 0.004, 100 * A + 0.004])

    assert found.difference == pytest.approx(0.0005, rel=1e-4)  # float32
    assert found.tolerance == TOLERANCES[torch.float32]


def test_the_output_that_is_off_is_named_with_how_far() -> None:
    with pytest.raises(
        TargetError, match=r"it computes something else .* output 1 of 2, of shape \[2\], is off by 5.0e-01"
    ):
        agreement("it", [A, A], [A, A + 4])


@pytest.mark.parametrize(
    ("expected", "given", "agrees"),
    [
        ([1.0, float("-inf")], [1.0, float("-inf")], True),
        ([1.0, float("nan")], [1.0, float("nan")], True),
        ([1.0, float("inf")], [1.0, 9.0], False),
        ([1.0, 2.0], [1.0, float("nan")], False),
        ([0.0, 0.0], [0.0, 0.0], True),
        ([0.0, 0.0], [0.0, 1e-6], False),
        ([True, False], [True, True], False),
        ([3, 1], [3, 1], True),
        ([], [], True),
    ],
)
def test_numbers_that_are_not_finite_are_equal_or_wrong(
    expected: list[float], given: list[float], agrees: bool
) -> None:
    a, b = [torch.tensor(expected)], [torch.tensor(given)]
    if agrees:
        assert agreement("it", a, b).difference == 0
    else:
        with pytest.raises(TargetError, match="is off by"):
            agreement("it", a, b)


@pytest.mark.parametrize("given", [[], [A, A], [A[:1]], [A[None]]])
def test_other_outputs_than_those_of_pytorch_are_refused(given: list[Tensor]) -> None:
    with pytest.raises(TargetError, match=r"outputs of shapes .*, where PyTorch gives \[\[2\]\]"):
        agreement("it", [A], given)


def test_less_precise_arithmetic_may_be_farther_off() -> None:
    off = [A * 1.02]

    with pytest.raises(TargetError, match=r"where 0\.001 is allowed"):
        agreement("it", [A], off)
    assert agreement("it", [A], off, torch.bfloat16).tolerance == TOLERANCES[torch.bfloat16]
    assert agreement("it", [A.bfloat16()], off).tolerance == TOLERANCES[torch.bfloat16]


def test_the_worst_agreement_is_that_of_the_largest_difference() -> None:
    assert worst([Agreement(1e-6, 1e-3), None, Agreement(1e-5, 1e-3)]) == Agreement(1e-5, 1e-3)
    assert worst([None]) is None
