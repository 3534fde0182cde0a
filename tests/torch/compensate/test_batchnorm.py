"""Batch norms measured anew hold what they read, and what the statistics are that write the same as before."""

import copy

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError
from secateur.torch.compensate import ReestimateBatchNorm, compensate
from secateur.torch.compensate.batchnorm import Written


def test_a_channel_that_never_varied_keeps_its_variance_and_follows_its_mean() -> None:
    one = torch.ones(2, dtype=torch.float64)
    written = Written(
        mean=3 * one, variance=torch.tensor([0.0, 4.0]).double(), running_mean=one, running_variance=one, eps=0
    )
    mean, variance = written.statistics(5 * one, torch.tensor([2.0, 1.0]).double())
    assert variance.tolist() == [1.0, 0.25]
    # What was 2 deviations above the running mean still is: a deviation is 1, and 1/2.
    assert mean.tolist() == [3.0, 4.0]


def test_a_channel_that_no_longer_varies_is_still_divided_by_a_number() -> None:
    one = torch.ones(1, dtype=torch.float64)
    written = Written(mean=3 * one, variance=4 * one, running_mean=one, running_variance=one, eps=0.01)
    mean, variance = written.statistics(5 * one, 0 * one)
    assert variance.tolist() == [0.0]
    torch.testing.assert_close((5 - mean) / (variance + 0.01).sqrt(), (one * 3 - 1) / 1.01**0.5)


def network() -> nn.Sequential:
    """A convolution, and one with a batch norm behind it that has seen other data of the same kind."""
    torch.manual_seed(0)
    layers = [
        nn.Conv2d(2, 6, 3),
        nn.ReLU(),
        nn.Conv2d(6, 8, 3, bias=False),
        nn.BatchNorm2d(8, momentum=None),
        nn.ReLU(),
    ]
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, 3)).double()
    with torch.no_grad():
        model(torch.randn(64, 2, 5, 5, dtype=torch.float64))
    return model.eval()


def data() -> Tensor:
    return torch.randn(120, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def measured_anew(
    model: nn.Module, batches: list[Tensor], kept: dict[str, list[int]] | None = None
) -> tuple[nn.Module, nn.Module]:
    """A model of which some units are gone, before and after."""
    network = sc.trace(model, batches[0])
    plan = network.plan(kept or {})
    small = sc.compact(model, plan)
    return small, compensate(network, small, plan, batches, [ReestimateBatchNorm()])


def test_one_batch_norm_gets_the_mean_and_variance_of_what_it_reads() -> None:
    """Over batches of unequal size, together with one of a single sample: exactly those of all samples."""
    x = data()
    small, mended = measured_anew(network(), list(x.split([1, 49, 50, 20])), {"0": [0, 1, 4]})
    assert isinstance(small, nn.Sequential)
    with torch.no_grad():
        read = small[:3](x)
    torch.testing.assert_close(mended.get_buffer("3.running_mean"), read.mean((0, 2, 3)))
    torch.testing.assert_close(mended.get_buffer("3.running_var"), read.var((0, 2, 3)))
    assert all(torch.equal(a, b) for a, b in zip(mended.parameters(), small.parameters(), strict=True))


def test_deep_batch_norms_agree_with_torchs_own_training_mode_on_one_batch() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6), nn.Flatten()]
    model = nn.Sequential(*layers, nn.BatchNorm1d(6), nn.Linear(6, 2)).double().eval()
    x = torch.randn(40, 1, 5, 5, dtype=torch.float64)
    small, mended = measured_anew(model, [x], {"0": [0, 1], "3": [0, 2, 4]})
    expected = copy.deepcopy(small)
    for module in expected.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.momentum = 1.0
    expected.train()(x)
    for name, buffer in expected.named_buffers():
        if "running" in name:
            # Torch normalises with the biased variance on the way: one part in the number of values.
            torch.testing.assert_close(mended.get_buffer(name), buffer, rtol=0.05, atol=0.05)
    torch.testing.assert_close(mended.get_buffer("1.running_var"), expected.get_buffer("1.running_var"))


def test_the_dense_model_is_hardly_changed_by_re_estimation_on_its_own_data() -> None:
    model, x = network(), data()
    with torch.no_grad():
        before, after = model(x), measured_anew(model, list(x.split(50)))[1](x)
    assert (after - before).square().mean() < 0.1 * before.square().mean()


def test_batch_norms_without_running_statistics_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 2))
    _, mended = measured_anew(model, [torch.randn(10, 2)], {"0": [0, 1]})
    assert dict(mended.named_buffers()) == {}


def test_a_single_value_a_channel_leaves_statistics_as_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).eval()
    small, mended = measured_anew(model, [torch.randn(1, 2)], {"0": [0, 1]})
    assert all(torch.equal(a, b) for a, b in zip(mended.buffers(), small.buffers(), strict=True))


def test_statistics_are_put_back_when_the_data_do_not_fit() -> None:
    model, x = network(), data()
    traced = sc.trace(model, x)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(DataError, match="cannot run on a batch"):
        ReestimateBatchNorm()(traced, model, traced.plan({}), [x, torch.zeros(2, 9, 5, 5, dtype=torch.float64)])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
