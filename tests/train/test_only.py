"""Some parameters are trained, the others stay as they are."""

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import RecoveryError
from secateur.sparse import WeightPlan
from secateur.train import masked
from secateur.train.recover import FineTune, vectors


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.randn(32, 6, generator=generator) for _ in range(6)]
    return [(x, x[:, :3].argmax(1)) for x in inputs]


def copied(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.named_parameters()}


def test_norms_and_biases_alone_learn() -> None:
    model, losses = network(), list[float]()
    before = copied(model)
    FineTune(epochs=8, learning_rate=0.1, only=vectors)(
        model, batches(), progress=lambda step: losses.append(step.loss)
    )
    changed = {name for name, tensor in model.named_parameters() if not tensor.equal(before[name])}
    assert changed == {"0.bias", "1.weight", "1.bias", "3.bias"}
    assert sum(losses[-6:]) < sum(losses[:6])
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_what_is_frozen_stays_frozen() -> None:
    model = network()
    model[3].requires_grad_(False)
    before = copied(model)
    FineTune(only=lambda name, _: not name.startswith("0"))(model, batches())
    assert {name for name, p in model.named_parameters() if not p.equal(before[name])} == {"1.weight", "1.bias"}
    assert [name for name, p in model.named_parameters() if not p.requires_grad] == ["3.weight", "3.bias"]


def test_inside_masked_zeros_stay_zeros_before_and_after() -> None:
    model = network()
    stays = torch.rand(16, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    with masked(model, WeightPlan({"0.weight": stays})):
        for only in (vectors, None, vectors):
            before = model[0].weight.detach().clone()
            FineTune(epochs=2, only=only)(model, batches())
            assert model[0].weight.equal(before) == (only is vectors)
            assert not model[0].weight[~stays].any()


def test_to_choose_none_is_refused_and_changes_nothing() -> None:
    model = network()
    with pytest.raises(
        RecoveryError, match=r"chooses none of the 6 trainable parameters of Sequential, such as '0.weight'"
    ):
        FineTune(only=lambda name, _: False)(model, batches())
    assert all(parameter.requires_grad for parameter in model.parameters())
