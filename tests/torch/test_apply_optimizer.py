"""An optimiser that is carried over to the compact model goes on as the formulas of its paper say, from moments cut by hand."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc

Values = dict[str, Tensor]
KEPT = {"0": [0, 2, 3], "3": [1, 4]}

# What each tensor loses, dim by dim: written by hand from the network below, not taken from the plan.
ROWS: dict[str, tuple[list[int] | None, ...]] = {
    "0.weight": ([0, 2, 3], None, None, None),
    "1.weight": ([0, 2, 3],),
    "1.bias": ([0, 2, 3],),
    "3.weight": ([1, 4], [0, 2, 3], None, None),
    "3.bias": ([1, 4],),
    "5.weight": (None, [n for unit in (1, 4) for n in range(4 * unit, 4 * unit + 4)]),
    "5.bias": (None,),
}


def network() -> nn.Sequential:
    """Convolution, batch norm, convolution, flatten: a removed channel of the last owns four columns."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.Conv2d(4, 5, 3), nn.Flatten())
    return nn.Sequential(*layers, nn.Linear(20, 3)).double()


def batches() -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    while True:
        x = torch.randn(16, 2, 6, 6, generator=generator, dtype=torch.float64)
        yield x, torch.randint(3, (16,), generator=generator)


def step(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Values:
    """The gradients of a batch, which are also left in the parameters."""
    model.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def taken(name: str, tensor: Tensor) -> Tensor:
    for dim, rows in enumerate(ROWS[name]):
        tensor = tensor if rows is None else tensor[(slice(None),) * dim + (rows,)]
    return tensor.clone()


class Momentum:
    """v = 0.9 v + g + decay w; w = w - rate (g + 0.9 v), with the v that is new: Nesterov's, as I. Sutskever et al. have it."""

    def __init__(self, values: Values) -> None:
        self.moments = [{name: torch.zeros_like(value) for name, value in values.items()}]

    def update(self, values: Values, gradients: Values) -> None:
        (velocity,) = self.moments
        for name, gradient in gradients.items():
            wanted = gradient + 0.01 * values[name]
            velocity[name] = 0.9 * velocity[name] + wanted
            values[name] = values[name] - 0.05 * (wanted + 0.9 * velocity[name])


class Adam:
    """D. P. Kingma, J. Ba, "Adam", algorithm 1, with the decoupled decay of AdamW."""

    def __init__(self, values: Values) -> None:
        self.moments = [{name: torch.zeros_like(value) for name, value in values.items()} for _ in range(2)]
        self.steps = 0

    def update(self, values: Values, gradients: Values) -> None:
        first, second = self.moments
        self.steps += 1
        for name, g in gradients.items():
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.99 * second[name] + 0.01 * g * g
            mean, power = first[name] / (1 - 0.9**self.steps), second[name] / (1 - 0.99**self.steps)
            values[name] = values[name] * (1 - 0.02 * 0.1) - 0.02 * mean / (power.sqrt() + 1e-8)


OPTIMISERS: list[tuple[Callable[..., torch.optim.Optimizer], Any]] = [
    (partial(torch.optim.SGD, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.01), Momentum),
    (partial(torch.optim.AdamW, lr=0.02, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.1), Adam),
]


@pytest.mark.parametrize(("make", "oracle"), OPTIMISERS, ids=["momentum", "adam"])
def test_each_step_after_the_cut_is_the_formula_on_moments_cut_by_hand(make: Any, oracle: Any) -> None:
    model, data = network(), batches()
    optimizer = make(model.parameters())
    values = {name: p.detach().clone() for name, p in model.named_parameters()}
    formula = oracle(values)
    for _ in range(4):
        formula.update(values, step(model, next(data)))
        optimizer.step()
    plan = sc.trace(model, next(data)[0]).plan(KEPT)
    small = sc.compact(model, plan, optimizer=optimizer)
    values = {name: taken(name, value) for name, value in values.items()}
    formula.moments = [{name: taken(name, value) for name, value in moments.items()} for moments in formula.moments]
    for _ in range(5):
        for name, parameter in small.named_parameters():
            torch.testing.assert_close(parameter.detach(), values[name], rtol=1e-12, atol=1e-14)  # rounding of float64
        formula.update(values, step(small, next(data)))
        optimizer.step()
    assert {name: p.shape for name, p in small.named_parameters()} == {name: v.shape for name, v in values.items()}


@pytest.mark.parametrize(("make", "oracle"), OPTIMISERS, ids=["momentum", "adam"])
def test_the_dense_model_no_longer_belongs_to_the_optimiser(make: Any, oracle: Any) -> None:
    model, data = network(), batches()
    optimizer = make(model.parameters())
    step(model, next(data))
    optimizer.step()
    small = sc.compact(model, sc.trace(model, next(data)[0]).plan(KEPT), optimizer=optimizer)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    step(small, next(data))
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters())
    assert set(optimizer.state) == set(small.parameters())


def test_groups_rates_and_parameters_of_others_are_left_as_they_are() -> None:
    """A schedule that holds the optimiser goes on, and so does a parameter that the plan knows nothing of."""
    model, data, other = network(), batches(), nn.Parameter(torch.ones(2, dtype=torch.float64))
    groups = [
        {"params": [model[0].weight], "lr": 0.5},
        {"params": [p for name, p in model.named_parameters() if name != "0.weight"]},
        {"params": [other], "lr": 1.0},
    ]
    optimizer = torch.optim.SGD(groups, lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    other.grad = torch.ones_like(other)
    step(model, next(data))
    optimizer.step()
    schedule.step()
    small = sc.compact(model, sc.trace(model, next(data)[0]).plan(KEPT), optimizer=optimizer)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.05, 0.5]
    assert optimizer.param_groups[0]["params"] == [small[0].weight]
    assert optimizer.param_groups[2]["params"] == [other]
    assert torch.equal(optimizer.state[other]["momentum_buffer"], torch.ones_like(other))
    step(small, next(data))
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.025, 0.25]


def test_an_optimiser_before_its_first_step_has_nothing_to_cut() -> None:
    model = network()
    optimizer = torch.optim.AdamW(model.parameters())
    small = sc.compact(model, sc.trace(model, next(batches())[0]).plan(KEPT), optimizer=optimizer)
    step(small, next(batches()))
    optimizer.step()
    assert set(optimizer.state) == set(small.parameters())
