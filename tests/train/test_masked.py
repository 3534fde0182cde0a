"""Zeros stay zeros while a model is trained, whatever the optimiser does."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ModelError
from secateur.sparse import WeightPlan
from secateur.train.masked import masked

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def plan() -> WeightPlan:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (16, 6), "2.weight": (3, 16)}
    return WeightPlan({name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()})


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    x = torch.randn(32, 6)
    loss: Tensor = (model(x) - x[:, :3].sin()).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def zeros_of(model: nn.Module, masks: WeightPlan) -> bool:
    state = dict(model.named_parameters())
    return not any(bool(state[name][~stays].any()) for name, stays in masks.stays.items())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_stay_zeros_and_the_rest_learns(name: str) -> None:
    model, masks = network(), plan()
    optimizer = OPTIMISERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer)  # moments from before
    with masked(model, masks):
        losses = []
        for _ in range(60):
            losses.append(float(step(model, optimizer)))
            assert zeros_of(model, masks)
        state = optimizer.state[dict(model.named_parameters())["0.weight"]]
        for value in state.values():
            assert not isinstance(value, Tensor) or value.shape != (16, 6) or not value[~masks.stays["0.weight"]].any()
    assert sum(losses[-10:]) < sum(losses[:10])
    for parameter in model.parameters():
        assert not any(parameter._backward_hooks or {})
    step(model, optimizer)
    step(model, optimizer)
    assert not zeros_of(model, masks)


def test_accumulated_gradients_and_scaled_losses() -> None:
    model, masks = network(), plan()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    with masked(model, masks):
        for _ in range(5):
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(torch.randn(8, 6)).square().mean()
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert zeros_of(model, masks)


def test_a_resumed_training_goes_on_bit_for_bit() -> None:
    def trained(resume: bool) -> dict[str, Tensor]:
        model, masks = network(), plan()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        with masked(model, masks):
            for _ in range(4):
                step(model, optimizer)
        if resume:
            kept, moments = model.state_dict(), optimizer.state_dict()
            model = copy.deepcopy(model)
            model.load_state_dict(kept)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            optimizer.load_state_dict(moments)
        with masked(model, masks):
            for _ in range(4):
                step(model, optimizer)
        return model.state_dict()

    one, other = trained(False), trained(True)
    assert all(one[name].equal(other[name]) for name in one)


def test_other_models_are_left_alone() -> None:
    model, other = network(), network()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with masked(model, plan()):
        step(other, optimizer)
    assert bool(dict(other.named_parameters())["0.weight"].all())


def test_a_plan_of_another_model_is_refused() -> None:
    with pytest.raises(ModelError, match="for another model"), masked(nn.Linear(2, 2), plan()):
        pass
