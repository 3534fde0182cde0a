"""How the optimiser is made and used."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from secateur.errors import RecoveryError
from secateur.train.recover import FineTune, constant
from secateur.train.update import Updater


def line() -> nn.Linear:
    """Y = x, with a bias of 0."""
    layer = nn.Linear(1, 1)
    nn.init.ones_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class TestFactory:
    def test_it_gets_vectors_without_weight_decay(self) -> None:
        made: list[Any] = []

        def factory(*args: Any, **keywords: Any) -> torch.optim.Optimizer:
            made.extend((args, keywords))
            return torch.optim.SGD(*args, **keywords)

        Updater(layer := line(), factory, 0.1, 0.25)

        groups = [{"params": [layer.weight], "weight_decay": 0.25}, {"params": [layer.bias], "weight_decay": 0.0}]
        assert [{name: group[name] for name in ("params", "weight_decay")} for group in made[0][0]] == groups
        assert made[1] == {"lr": 0.1}

    def test_it_has_its_own_values_where_none_is_given(self) -> None:
        optimizer = Updater(line(), partial(torch.optim.AdamW, lr=0.3, weight_decay=0.7)).optimizer

        assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.3, 0.7)]

    def test_a_given_rate_comes_before_its_own(self) -> None:
        assert Updater(line(), partial(torch.optim.AdamW, lr=0.3), learning_rate=0.2).rates == [0.2]

    def test_the_default_is_nesterovs_momentum(self) -> None:
        """The rate and the decay belong to it, and come to no other optimiser."""
        optimizer = Updater(line()).optimizer

        assert isinstance(optimizer, torch.optim.SGD)
        names = ("lr", "weight_decay", "momentum", "nesterov")
        assert [[group[name] for name in names] for group in optimizer.param_groups] == [
            [0.03, 5e-4, 0.9, True],
            [0.03, 0.0, 0.9, True],
        ]
        assert Updater(line(), torch.optim.AdamW).rates == [1e-3]

    def test_frozen_and_tied_parameters_come_never_and_once(self) -> None:
        model = nn.Sequential(line(), line(), line())
        model[1].weight = model[0].weight
        model[2].requires_grad_(False)

        assert len(Updater(model, torch.optim.SGD, 0.1, 0.0).parameters) == 3

    @pytest.mark.parametrize(
        ("factory", "message"),
        [
            (
                lambda params: torch.optim.SGD(params, lr=0.1),
                r"cannot be called as optimizer\(parameter_groups, lr=0.001\)",
            ),
            (lambda params, lr: None, "made a NoneType, not a torch.optim.Optimizer"),
            (
                lambda params, lr: torch.optim.SGD(line().parameters(), lr=lr),
                "over other parameters than the 2 it was given",
            ),
            (lambda params, lr: torch.optim.SGD(params[0]["params"][:1], lr=lr), "let it use its first argument"),
        ],
    )
    def test_one_that_makes_something_else_is_refused(self, factory: Any, message: str) -> None:
        with pytest.raises(RecoveryError, match=message):
            FineTune(learning_rate=1e-3, optimizer=factory)(line(), [(torch.ones(1, 1), torch.ones(1, 1))])

    def test_one_that_asks_for_the_loss_again_is_refused(self) -> None:
        with pytest.raises(
            RecoveryError, match=r"LBFGS wants to compute the loss several times in one step, .* own training"
        ):
            FineTune(optimizer=torch.optim.LBFGS)(line(), [(torch.ones(1, 1), torch.ones(1, 1))])

    def test_what_it_says_of_its_own_options_is_passed_on(self) -> None:
        recipe = FineTune(optimizer=partial(torch.optim.SGD, momentum=-1.0))
        with pytest.raises(RecoveryError, match=r"cannot be called as optimizer\(parameter_groups\): Invalid momentum"):
            recipe(line(), [(torch.ones(1, 1), torch.ones(1, 1))])

    def test_rates_of_its_own_are_scaled_by_the_schedule(self) -> None:
        rates: list[float] = []

        class Noting(torch.optim.SGD):
            def step(self, closure: Any = None) -> None:  # type: ignore[override]
                rates.append(self.param_groups[0]["lr"])

        recipe = FineTune(
            optimizer=partial(Noting, lr=8.0),
            schedule=lambda step, steps: 0.5**step,
            loss=nn.functional.mse_loss,
        )
        recipe(line(), [(torch.ones(1, 1), torch.ones(1, 1))] * 3)

        assert rates == [8.0, 4.0, 2.0]


def test_sparse_gradients_count_like_dense_ones() -> None:
    def table(sparse: bool) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Embedding(5, 3, sparse=sparse), nn.Flatten(), nn.Linear(6, 2))

    data = [(torch.tensor([[0, 1], [1, 4]]), torch.tensor([0, 1]))] * 3
    one, other = (FineTune(max_grad_norm=0.1)(table(sparse), data) for sparse in (True, False))

    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_too_small_for_16_bits_add_up(dtype: torch.dtype) -> None:
    """Each of 40 updates moves the weight by 2^-11: a quarter of the distance to the next number below 1 in bfloat16."""
    layer = line().to(dtype)
    recipe = FineTune(
        learning_rate=2.0**-11,
        optimizer=partial(torch.optim.SGD, momentum=0.0),
        loss=lambda output, targets: output.sum(),
        schedule=constant,
        weight_decay=0.0,
        max_grad_norm=None,
    )
    recipe(layer, [(torch.ones(1, 1, dtype=dtype), torch.ones(1))] * 40)

    assert layer.weight.dtype is dtype
    assert layer.weight.item() == pytest.approx(1 - 40 * 2.0**-11, rel=2.0**-8)  # bfloat16's precision
    assert layer.weight.item() < 1 - 30 * 2.0**-11
