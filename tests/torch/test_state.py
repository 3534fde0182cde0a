"""What a model is besides its code is read in one way, and its modes come back whatever happens."""

import pytest
import torch
from torch import nn

from secateur.torch.state import evaluating, state_of


class Tied(nn.Module):
    """Two names of one weight, and a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3, bias=False)
        self.second.weight = self.first.weight
        self.register_buffer("scale", torch.ones(3), persistent=False)


def test_tied_tensors_count_once_under_their_first_name() -> None:
    model = Tied()
    assert list(state_of(model)) == ["first.weight", "first.bias", "scale"]
    assert state_of(model) == {**dict(model.named_parameters()), **dict(model.named_buffers())}


def test_tied_tensors_can_be_had_under_each_of_their_names() -> None:
    state = state_of(Tied(), each_name=True)
    assert list(state) == ["first.weight", "first.bias", "second.weight", "scale"]
    assert state["first.weight"] is state["second.weight"]


def test_every_module_is_in_its_own_mode_again_after_an_error() -> None:
    one, other = Tied().train(), Tied().train()
    one.second.eval()
    with pytest.raises(ZeroDivisionError), evaluating(one, None, other):  # noqa: PT012
        assert not any(module.training for model in (one, other) for module in model.modules())
        raise ZeroDivisionError
    assert [module.training for module in one.modules()] == [True, True, False]
    assert all(module.training for module in other.modules())
