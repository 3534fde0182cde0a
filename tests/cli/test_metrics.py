"""Accuracy, against counting by hand."""

import pytest
import torch
from torch import Tensor, nn

from secateur.cli.metrics import accuracy
from secateur.errors import DataError


class Answers(nn.Module):
    """Gives its inputs back as logits."""

    def forward(self, logits: Tensor) -> Tensor:
        return logits


def logits_of(answers: Tensor, classes: int) -> Tensor:
    return nn.functional.one_hot(answers, classes).float()


def test_accuracy_counts_right_answers_and_all_answers_over_all_batches() -> None:
    answers = torch.tensor([0, 1, 2, 1, 0])
    targets = torch.tensor([0, 1, 2, 2, 1])
    logits = logits_of(answers, 3)

    assert accuracy(Answers(), [(logits[:4], targets[:4]), (logits[4:], targets[4:])]) == (3, 5)


def test_targets_that_are_left_out_do_not_count() -> None:
    logits = logits_of(torch.tensor([[0, 1, 1]]), 2)

    assert accuracy(Answers(), [(logits, torch.tensor([[0, 0, -100]]))]) == (1, 2)


def test_classes_may_be_in_the_second_dim_as_in_segmentation() -> None:
    answers = torch.randint(3, (2, 4, 5), generator=torch.Generator().manual_seed(0))

    assert accuracy(Answers(), [(logits_of(answers, 3).movedim(-1, 1), answers)]) == (40, 40)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "there is nothing to evaluate on"),
        ([torch.zeros(2, 3)], "accuracy needs batches of"),
        (
            [(torch.zeros(2, 3), torch.tensor([0.5]))],
            r"targets of shape \[1\] are no classes for logits of shape \[2, 3\]",
        ),
        ([(torch.zeros(2, 3), torch.tensor([0, 3]))], "the target 3 is none of the model's 3 classes, 0 to 2"),
        ([(torch.zeros(2, 3), torch.tensor([0, -1]))], "the target -1 is none of the model's 3 classes"),
        ([(torch.zeros(2, 3), torch.tensor([-100, -100]))], "there is nothing to evaluate on"),
    ],
)
def test_batches_that_do_not_fit_are_refused(batches: list[object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        accuracy(Answers(), batches)
