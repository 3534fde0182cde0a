"""Batches that are joined into larger ones: every sample once, in order, and only with its like."""

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from secateur.torch.batches import batch_size
from secateur.torch.join import joined, together


def test_batches_of_one_shape_are_joined_and_others_left_out(caplog: pytest.LogCaptureFixture) -> None:
    x = torch.arange(20.0).reshape(10, 2)
    pieces = [{"x": x[:4], "scale": torch.tensor(2.0)}, {"x": torch.zeros(3, 5), "scale": torch.tensor(2.0)}]
    pieces += [{"x": x[4:], "scale": torch.tensor(2.0)}]
    with caplog.at_level(logging.WARNING, logger="secateur"):
        whole = joined(pieces, at_most=100)
    assert isinstance(whole, dict)
    assert torch.equal(whole["x"], x)
    assert whole["scale"].shape == ()
    assert "1 of 3 batches are left out" in caplog.text
    short = joined([pieces[0], pieces[2]], at_most=6)
    assert isinstance(short, dict)
    assert torch.equal(short["x"], x[:6])


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 12))
def test_batches_that_are_joined_hold_the_same_samples_and_are_large_enough(sizes: list[int], least: int) -> None:
    x = torch.arange(2.0 * sum(sizes)).view(-1, 2)
    whole = together(x.split(sizes), least)
    assert torch.equal(torch.cat(whole), x)
    assert all(len(piece) >= least for piece in whole) or len(whole) == 1
    assert max(map(len, whole)) < 2 * least + max(sizes)


def test_batches_of_another_shape_are_not_joined() -> None:
    pieces = [{"x": torch.zeros(2, width)} for width in (3, 3, 4, 3)]
    assert [batch_size(piece) for piece in together(pieces, 128)] == [4, 2, 2]
