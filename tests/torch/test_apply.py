"""Mask and compact leave the caller's model alone and carry everything over."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import ModelError, PlanError
from secateur.torch.apply import plan_of
from secateur.torch.state import state_of


def network_of(model: nn.Module, inputs: object = None) -> sc.TracedNetwork:
    return sc.trace(model, torch.randn(2, 4) if inputs is None else inputs)


@pytest.fixture
def model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))


def test_the_callers_model_is_not_changed(model: nn.Sequential) -> None:
    before = copy.deepcopy(model.state_dict())
    model.train()
    plan = network_of(model).plan({"0": [1, 2]})
    sc.compact(model, plan)
    sc.mask(model, plan)
    sc.verify(model, plan, torch.randn(2, 4))
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model[0].out_features == 6
    assert type(model[0].out_features) is int


def test_modes_dtypes_gradient_flags_and_hooks_are_carried_over(model: nn.Sequential) -> None:
    calls: list[str] = []
    model.double().train()
    model[2].eval()
    model[0].bias.requires_grad_(False)
    model[4].register_forward_hook(lambda *_: calls.append("seen"))
    small = sc.compact(model, network_of(model, torch.randn(2, 4, dtype=torch.float64)).plan({"0": [0, 3], "2": [1]}))
    assert [m.training for m in small.modules()] == [m.training for m in model.modules()]
    assert [(p.dtype, p.requires_grad) for p in small.parameters()] == [
        (p.dtype, p.requires_grad) for p in model.parameters()
    ]
    calls.clear()
    small(torch.randn(1, 4, dtype=torch.float64))
    assert calls == ["seen"]


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 6)
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = self.head(self.embed(tokens))
            return out

    model = Tied()
    network = sc.trace(model, torch.tensor([[1, 2]]))
    small = sc.compact(model, network.plan({"embed": [0, 5]}))
    assert small.head.weight is small.embed.weight
    assert small.head.in_features == 2
    assert small.embed.embedding_dim == 2


def test_mask_is_reversible(model: nn.Sequential) -> None:
    masked = sc.mask(model, network_of(model).plan({"0": [1], "2": [0, 4]}))
    assert (masked[0].weight[[0, 2, 3, 4, 5]] == 0).all()
    restored = sc.unmask(masked)
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), restored.state_dict().values(), strict=True)
    )
    with pytest.raises(ModelError, match="was not made by mask"):
        sc.unmask(model)


def test_a_plan_for_another_model_is_refused(model: nn.Sequential) -> None:
    plan = network_of(model).plan({"0": [1, 2]})
    with pytest.raises(ModelError, match=r"plan is for '0.weight' of shape \[6, 4\], but this Sequential has \[8, 4\]"):
        sc.compact(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), plan)
    with pytest.raises(ModelError, match=r"cuts '0.weight', which Linear does not have"):
        sc.compact(nn.Linear(4, 6), plan)


@pytest.mark.parametrize(
    "make", [torch.optim.AdamW, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)], ids=["adamw", "sgd"]
)
def test_training_goes_on_with_the_optimiser_as_if_the_units_had_never_been(model: nn.Sequential, make: object) -> None:
    """Masked training with frozen zeros and compact training must give the same weights."""
    x, y = torch.randn(16, 4), torch.randint(0, 3, (16,))

    def step(net: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    kept = [0, 2, 5]
    optimizer = make(list(model.parameters()))
    for _ in range(3):
        step(model, optimizer)
    gone = [1, 3, 4]
    with torch.no_grad():
        model[2].weight[:, gone] = 0  # what the consumers read of the removed units
        for state in (optimizer.state[model[2].weight],):
            for value in state.values():
                if isinstance(value, torch.Tensor) and value.ndim:
                    value[:, gone] = 0
    plan = network_of(model).plan({"0": kept})
    reference = copy.deepcopy(model)
    reference_optimizer = make(list(reference.parameters()))
    reference_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    small = sc.compact(model, plan, optimizer=optimizer)
    assert {id(p) for group in optimizer.param_groups for p in group["params"]} == {id(p) for p in small.parameters()}
    step(small, optimizer)
    step(reference, reference_optimizer)
    # the consumer's column is zero, so nothing flows through the removed units in this one step
    assert torch.allclose(small[0].weight, reference[0].weight[kept], atol=1e-7)
    assert torch.allclose(small[2].weight, reference[2].weight[:, kept], atol=1e-7)


def test_an_optimiser_state_that_cannot_be_cut_is_refused(model: nn.Sequential) -> None:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model[0].weight]["factored"] = torch.zeros(6)
    with pytest.raises(PlanError, match=r"keeps 'factored' of shape \[6\] for '0.weight'"):
        sc.compact(model, network_of(model).plan({"0": [1]}), optimizer=optimizer)
    assert optimizer.param_groups[0]["params"][0] is model[0].weight


def test_pruning_twice_gives_one_plan_for_the_dense_model(model: nn.Sequential) -> None:
    first = sc.compact(model, network_of(model).plan({"0": [0, 2, 4, 5]}))
    second = sc.compact(first, network_of(first).plan({"0": [1, 3], "2": [0, 1, 2]}))
    plan = plan_of(second)
    assert plan is not None
    at_once = sc.compact(model, plan)
    assert plan.counts == {"0": 2, "2": 3}
    assert all(torch.equal(a, b) for a, b in zip(state_of(at_once).values(), state_of(second).values(), strict=True))


def test_the_memory_layout_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    small = sc.compact(model, sc.trace(model, torch.zeros(1, 3, 8, 8)).plan({"0": range(4)}))
    assert small[2].weight.is_contiguous(memory_format=torch.channels_last)


def test_a_plan_survives_json(model: nn.Sequential) -> None:
    plan = network_of(model).plan({"0": np.array([1, 2])})
    again = type(plan).from_json(plan.to_json())
    assert again == plan
    with pytest.raises(PlanError, match="not a plan"):
        type(plan).from_json("{}")
    with pytest.raises(PlanError, match="not a plan"):
        type(plan).from_json("nonsense")
