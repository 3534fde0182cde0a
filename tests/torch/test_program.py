"""A program is the model as a function of its tensors, and leaves the model alone."""

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import CaptureError
from secateur.torch.program import program_of


class Counting(nn.Module):
    """Takes a number beside a tensor, gives a dict, and counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("runs", torch.zeros(()))

    def forward(self, x: Tensor, times: int = 1) -> dict[str, Tensor | int]:
        self.runs += 1
        return {"tripled": 3 * x, "times": times, "more": x * times}


def test_a_program_takes_and_gives_tensors_alone() -> None:
    program = program_of(Counting(), {"times": 5, "x": torch.ones(2)})

    given = program.exported.module()(*program.inputs)

    assert [one.tolist() for one in program.inputs] == [[1, 1]]
    assert [one.tolist() for one in program.outputs] == [one.tolist() for one in given] == [[3, 3], [5, 5]]


def test_the_model_is_not_run_itself() -> None:
    model = Counting().train()

    program_of(model, torch.ones(2))

    assert model.runs == 0
    assert model.training


def test_operators_that_words_name_are_found_with_their_lines() -> None:
    program = program_of(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()), torch.ones(1, 2))

    (found,) = program.named_in("there is no aten.sigmoid.default here")

    assert found.startswith("aten.sigmoid.default (")
    assert program.named_in("something else is wrong") == []


def test_a_program_is_that_of_one_call() -> None:
    with pytest.raises(CaptureError, match="a program is that of one call; give the inputs of one, not a list of 1"):
        program_of(nn.ReLU(), [torch.ones(2)])
