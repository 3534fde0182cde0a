"""Shapes as text."""

import pytest
import torch

from secateur.cli.inputs import parse_inputs
from secateur.errors import JobError


def test_one_text_is_one_tensor() -> None:
    inputs = parse_inputs(("2x3x4",))

    assert isinstance(inputs, torch.Tensor)
    assert inputs.shape == (2, 3, 4)
    assert inputs.dtype == torch.float32


def test_several_texts_are_positional_arguments() -> None:
    inputs = parse_inputs(("1x8:int64", "1x1x8x8:float64"))

    assert isinstance(inputs, tuple)
    assert [(tuple(tensor.shape), tensor.dtype) for tensor in inputs] == [
        ((1, 8), torch.int64),
        ((1, 1, 8, 8), torch.float64),
    ]


def test_values_are_the_same_each_time() -> None:
    assert torch.equal(torch.as_tensor(parse_inputs(("2x3",))), torch.as_tensor(parse_inputs(("2x3",))))


def test_tokens_are_zero_so_that_every_vocabulary_has_them() -> None:
    assert not torch.as_tensor(parse_inputs(("1x8:int64",))).any()


@pytest.mark.parametrize("text", ["", "3,224,224", "1x", "x3", "0x3", "-1x3", "1x3x224x224 ", "axb"])
def test_what_is_no_shape_is_refused(text: str) -> None:
    with pytest.raises(JobError, match=r"is not understood: write sizes such as 1x3x224x224"):
        parse_inputs((text,))


def test_an_unknown_dtype_is_refused() -> None:
    with pytest.raises(JobError, match=r"unknown dtype; there is float32"):
        parse_inputs(("1x3:complex",))
