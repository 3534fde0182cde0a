"""Batch norms of a sparse model write what those of the dense model wrote, and nothing else changes."""

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, RecoveryError


def network() -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()
    )
    for _ in range(3):
        model(torch.randn(32, 3, 8, 8))
    return model.eval()


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(n, 3, 8, 8, generator=generator) for n in (32, 16)]


def written(model: nn.Module) -> tuple[Tensor, Tensor]:
    """The mean and the deviation of what the second batch norm writes."""
    with torch.no_grad():
        y = model[:5](torch.cat(data()))  # type: ignore[index]
    return y.mean((0, 2, 3)), y.std((0, 2, 3))


def test_what_is_written_has_the_mean_and_the_variance_of_the_dense_model() -> None:
    dense = network()
    small = sc.sparsify(dense, data(), sparsity=0.8, score=sc.scores.Magnitude(), solver=sc.solvers.keep).model
    assert not written(small)[1].allclose(written(dense)[1], rtol=0.1)
    before = copy.deepcopy(small.state_dict())
    small.train()
    assert sc.recover.MatchNorms()(small, data(), dense) is small
    assert small.training
    for found, wanted in zip(written(small.eval()), written(dense), strict=True):
        torch.testing.assert_close(found, wanted, atol=2e-3, rtol=2e-2)
    changed = {name for name, tensor in small.state_dict().items() if not tensor.equal(before[name])}
    assert changed == {f"{layer}.running_{kind}" for layer in (1, 4) for kind in ("mean", "var")}


@pytest.mark.parametrize("size", [1, 2, 7])
def test_small_batches_are_measured_as_one_large_one(size: int) -> None:
    dense, x = network(), torch.cat(data())
    small = sc.sparsify(dense, [x], sparsity=0.8, score=sc.scores.Magnitude(), solver=sc.solvers.keep).model
    one, other = (
        sc.recover.MatchNorms()(copy.deepcopy(small), batches, dense).state_dict() for batches in (x.split(size), [x])
    )
    assert all(tensor.equal(other[name]) for name, tensor in one.items())


def test_without_a_dense_model_it_is_what_is_read_that_counts() -> None:
    small = sc.recover.MatchNorms()(network(), data())
    assert isinstance(small, nn.Sequential)
    mean, deviation = written(small)
    torch.testing.assert_close(mean, torch.zeros(8), atol=1e-2, rtol=0)
    torch.testing.assert_close(deviation, torch.ones(8), atol=1e-2, rtol=0)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(RecoveryError, match="at least 1"):
        sc.recover.MatchNorms(samples=0)
    with pytest.raises(RecoveryError, match="no batch norm of the teacher"):
        sc.recover.MatchNorms()(network(), data(), nn.Sequential(nn.Conv2d(3, 8, 3)))
    with pytest.raises(RecoveryError, match="has 8 channels, and the teacher's 3"):
        sc.recover.MatchNorms()(network(), data(), nn.Sequential(nn.Identity(), nn.BatchNorm2d(3)))
    with pytest.raises(DataError, match="not finite"):
        sc.recover.MatchNorms()(network(), [torch.full((4, 3, 8, 8), torch.nan)])
    with pytest.raises(DataError, match="no data"):
        sc.recover.MatchNorms()(network(), [])
