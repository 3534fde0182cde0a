"""Factors with a sparse weight beside them: both together come nearer than either alone, and zeros stay where they are."""

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import BudgetError, DataError, PlanError
from secateur.low_rank import LowRankLinear, Sparse
from secateur.sparse.patterns import NofM, Unstructured


def data() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(16, 16, generator=generator, dtype=torch.float64)
    return torch.randn(400, 16, generator=generator, dtype=torch.float64) @ mixed


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 16)).double()


def test_a_sum_of_both_is_found_again() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False)).double()
    spikes = torch.zeros(16, 16, dtype=torch.float64)
    spikes[torch.arange(16), torch.randperm(16)] = 20.0
    low = torch.randn(16, 2, dtype=torch.float64) @ torch.randn(2, 16, dtype=torch.float64)
    model[0].weight.data = spikes + low
    x = torch.randn(2000, 16, dtype=torch.float64)
    found = sc.factorise(model, [x], rank=2, beside=Sparse(15 / 16, rounds=30), samples=2000, damping=0.0)
    layer = found.model[0]
    assert isinstance(layer, LowRankLinear)
    assert found.report[0].error < 1e-6
    assert (layer.sparse.weight != 0).equal(spikes != 0)
    torch.testing.assert_close(layer(x), model(x), atol=1e-1, rtol=0)


def test_both_are_nearer_than_either() -> None:
    model, x = network(), data()
    both = sc.factorise(model, [x], rank=2, beside=Sparse(0.6))
    assert both.share == pytest.approx(0.4 + 2 * 40 / 384, abs=1e-2)
    sparse = sc.sparsify(model, [x], sparsity=0.6, in_sequence=False)
    low = sc.factorise(model, [x], rank=2)
    errors = [sum(layer.error or 0.0 for layer in result.report) for result in (both, sparse, low)]
    assert errors[0] < 0.9 * min(errors[1:])


def test_more_rounds_are_never_worse() -> None:
    errors = [
        sc.factorise(network(), [data()], rank=3, beside=Sparse(0.7, rounds=n)).report[0].error for n in (1, 4, 16)
    ]
    assert errors[0] >= errors[1] >= errors[2]
    assert errors[2] < errors[0]


def test_patterns_hold_and_go_on_holding_in_training() -> None:
    model, x = network(), data()
    found = sc.factorise(
        model, [x], rank=2, beside=Sparse(pattern=NofM(2, 4), solver=[sc.solvers.Swaps(), sc.solvers.Refit()])
    )
    assert list(found.plan.stays) == ["0.sparse.weight", "2.sparse.weight"]
    assert str(found.report[0]).endswith(f"error {found.report[0].error:.2e}")
    assert "rank 2 of 16 and 192 weights" in str(found)
    assert sum(p.count_nonzero() for n, p in found.model.named_parameters() if "bias" not in n) == sum(
        layer.parameters for layer in found.report
    )
    optimizer = torch.optim.Adam(found.model.parameters(), lr=0.1)
    with sc.train.masked(found.model, found.plan):
        for _ in range(3):
            found.model(x).square().mean().backward()
            optimizer.step()
    for layer in (found.model[0], found.model[2]):
        assert ((layer.sparse.weight.view(-1, 4) != 0).sum(1) == 2).all()
    assert model[0].weight.equal(network()[0].weight)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(BudgetError, match="wants rank="):
        sc.factorise(network(), [data()], share=0.5, beside=Sparse(0.5))
    with pytest.raises(BudgetError, match=r"such as low_rank\.Sparse"):
        sc.factorise(network(), [data()], rank=2, beside=0.5)  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="needs a sparsity"):
        sc.factorise(network(), [data()], rank=2, beside=Sparse())
    with pytest.raises(PlanError, match="16 inputs are no multiple of 5"):
        sc.factorise(network(), [data()], rank=2, beside=Sparse(pattern=NofM(1, 5)))
    with pytest.raises(PlanError, match="by itself"):
        Sparse(0.5, pattern=Unstructured("global"))
    with pytest.raises(DataError, match="at least 1"):
        Sparse(0.5, rounds=0)
    with pytest.raises(PlanError, match="pattern= is an object"):
        Sparse(0.5, pattern=Unstructured)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="solver= is an object"):
        Sparse(0.5, solver=sc.solvers.Refit)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="a score of the weights alone"):
        Sparse(0.5, score=sc.scores.Taylor())  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="no layer gets smaller"):
        sc.factorise(network(), [data()], rank=8, beside=Sparse(0.1))
