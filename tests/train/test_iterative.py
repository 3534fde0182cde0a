"""Rounds of pruning and training end at exactly the sparsity that was asked for, with weights where they belong."""

from fractions import Fraction
from itertools import pairwise

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import BudgetError, ModelError, PlanError, RecoveryError
from secateur.sparse.counts import count_of
from secateur.sparse.patterns import NofM, Pattern, Unstructured
from secateur.torch.scores import Wanda
from secateur.train import Iterative

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 3))


class Training:
    """Remembers the weights that it was given, and those that it left."""

    def __init__(self) -> None:
        self.given: list[dict[str, Tensor]] = []
        self.left: list[dict[str, Tensor]] = []

    def __call__(self, model: nn.Module) -> None:
        self.given.append(copied(model))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        for _ in range(5):
            optimizer.zero_grad()
            (model(X) - X[:, :3].sin()).square().mean().backward()
            optimizer.step()
        self.left.append(copied(model))


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def by_hand(weights: dict[str, Tensor], gone: int) -> dict[str, Tensor]:
    """What stays where so many of the smallest of all go; what is zero is the smallest."""
    names = ["0.weight", "3.weight"]
    order = sorted((abs(float(w)), name, i) for name in names for i, w in enumerate(weights[name].flatten()))
    masks = {name: torch.ones(weights[name].numel(), dtype=torch.bool) for name in names}
    for _, name, i in order[:gone]:
        masks[name][i] = False
    return {name: mask.view(weights[name].shape) for name, mask in masks.items()}


@pytest.mark.parametrize("rewound", [False, True])
def test_each_round_prunes_what_the_last_one_trained_and_goes_back(rewound: bool) -> None:
    model, train = network(), Training()
    early = copied(network())
    Training()(model)
    dense = copied(model)
    method = Iterative(0.9, rounds=3, rewind=early if rewound else None)

    result = method(model, train, X)

    assert all(tensor.equal(dense[name]) for name, tensor in model.state_dict().items())
    before = dense
    for number, (given, left) in enumerate(zip(train.given, train.left, strict=True), 1):
        share = Fraction(9, 10) if number == 3 else 1 - 0.1 ** (number / 3)
        masks = by_hand(before, count_of(share, 176))
        source = early if rewound else before
        for name, tensor in given.items():
            assert tensor.equal(source[name] * masks.get(name, 1))
        for name, mask in masks.items():
            assert not left[name][~mask].any()
        before = left
    assert all(result.plan.stays[name].equal(mask) for name, mask in masks.items())
    assert sum(layer.zeros for layer in result.report) == result.plan.zeros == 158
    assert all(tensor.equal(train.left[-1][name]) for name, tensor in result.model.state_dict().items())


@pytest.mark.parametrize("pattern", [NofM(1, 4), Unstructured("row")])
@pytest.mark.parametrize("rounds", [1, 4])
def test_any_pattern_is_reached(pattern: Pattern, rounds: int) -> None:
    result = Iterative(0.75, rounds=rounds, pattern=pattern)(network(), lambda model: model, X)
    assert result.plan.zeros == count_of(0.75, 176)
    assert bool((result.plan.stays["0.weight"].sum(1) == 2).all())


def test_as_much_of_what_is_left_goes_in_each_round() -> None:
    method = Iterative(0.9, rounds=5)
    left = [1.0, *(1 - float(method.sparsity_after(number)) for number in range(1, 6))]
    assert [b / a for a, b in pairwise(left)] == pytest.approx([0.1**0.2] * 5)
    assert method.sparsity_after(5) == Fraction(9, 10)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(PlanError, match="at least one round"):
        Iterative(0.5, rounds=0)
    with pytest.raises(PlanError, match="needs data"):
        Iterative(0.5, score=Wanda())
    with pytest.raises(BudgetError, match=r"0.5 in each layer"):
        Iterative(0.6, pattern=NofM(2, 4))
    with pytest.raises(BudgetError, match="below 1"):
        Iterative(1.0)
    with pytest.raises(RecoveryError, match="gave back another Sequential"):
        Iterative(0.5)(network(), lambda model: network(), X)
    with pytest.raises(ModelError, match="state of another model"):
        Iterative(0.5, rewind=nn.Linear(2, 2).state_dict())(network(), Training(), X)
