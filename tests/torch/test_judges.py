"""A check that never fails proves nothing: each judge of `prune_every_way` finds the fault that is made for it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import VerificationError


class Between(nn.Module):
    """Two layers and whatever is between them, so that one model can be pruned by the network of another."""

    def __init__(self, middle: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.last, self.middle = nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 3), middle

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, self.first(x)))
        return out


INPUTS = torch.randn(3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def pruned_by_the_network_of(honest: Callable[[Any, Tensor], Tensor], model: nn.Module, check_plan: Any) -> None:
    network = sc.trace(Between(honest).double(), INPUTS)
    check_plan(model, network, network.plan({"first": [0, 2, 5]}), INPUTS)


def test_an_honest_model_passes(check_plan: Any) -> None:
    pruned_by_the_network_of(lambda m, x: x.relu(), Between(lambda m, x: x.relu()).double(), check_plan)


def test_numbers_see_a_branch(check_plan: Any) -> None:
    branching = Between(lambda m, x: x if x.shape[1] == 8 else -x).double()
    with pytest.raises(AssertionError, match=r"difference\("):
        pruned_by_the_network_of(lambda m, x: x, branching, check_plan)


def test_counts_see_a_parameter_that_was_forgotten(check_plan: Any) -> None:
    model = Between(lambda m, x: x).double()
    model.forgotten = nn.Parameter(torch.zeros(1))
    with pytest.raises(AssertionError, match="parameters"):
        pruned_by_the_network_of(lambda m, x: x, model, check_plan)


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, x: m.norm(x) if x.shape[1] == 8 else -m.norm(x),
        lambda m, x: m.norm(x) * (2 if x.shape[1] == 8 else 3),
        lambda m, x: m.norm(x).roll(x.shape[1] // 4, 0),
        lambda m, x: m.norm(x)[:, None].select(1, 0 if x.shape[1] == 8 else -1),
    ],
    ids=["one more operator", "another factor", "another shift", "another place"],
)
def test_operators_see_what_a_norm_hides_from_the_numbers(
    middle: Callable[[Any, Tensor], Tensor], check_plan: Any
) -> None:
    with pytest.raises(VerificationError, match=r"the compact model runs \w+ .*\(tests.*test_judges.py:\d+"):
        pruned_by_the_network_of(lambda m, x: m.norm(x), Between(middle).double(), check_plan)
