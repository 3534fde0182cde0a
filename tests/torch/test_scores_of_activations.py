"""Scores of what is read of units against the activations themselves, brute force, and SciPy."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import DataError, ModelError
from secateur.torch.scores import (
    ActivationMean,
    ActivationRate,
    ChannelIndependence,
    Energy,
    Fluctuation,
    FTest,
    GeometricMedian,
    Magnitude,
)


class Net(nn.Module):
    """A convolution read by a padded one, whose channels own four columns each of a linear layer, and another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 3, 3, padding=1)
        self.fc, self.head = nn.Linear(12, 5), nn.Linear(5, 3)

    def parts(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the last three layers read."""
        one = F.relu(self.first(x))
        two = F.adaptive_avg_pool2d(F.relu(self.second(one)), 2).flatten(1)
        return one, two, F.relu(self.fc(two))

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.parts(x)[-1])
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().double().requires_grad_(False)


@pytest.fixture
def x() -> Tensor:
    return torch.randn(30, 1, 7, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def y() -> Tensor:
    return torch.randint(3, (30,), generator=torch.Generator().manual_seed(2))


def activations(net: Net, x: Tensor) -> dict[str, Tensor]:
    """For each axis what is read of each unit in each sample, `[units, samples, positions]`."""
    one, two, three = net.parts(x)
    return {
        "first": one.flatten(2).transpose(0, 1),
        "second": two.unflatten(1, (3, 4)).transpose(0, 1),
        "fc": three.T[:, :, None],
    }


def read(score: Any, net: Net, x: Tensor, y: Tensor | None = None) -> Any:
    pieces = [x[:20], x[20:]] if y is None else [(x[:20], y[:20]), (x[20:], y[20:])]
    return score(sc.trace(net, x[:1]), pieces)


def test_mean_and_rate_are_those_of_what_is_read(net: Net, x: Tensor) -> None:
    mean, rate = read(ActivationMean(), net, x), read(ActivationRate(), net, x)
    for name, each in activations(net, x).items():
        np.testing.assert_allclose(mean[name], each.abs().mean((1, 2)), rtol=1e-12)
        np.testing.assert_allclose(rate[name], 1 - (each == 0).double().mean((1, 2)), rtol=1e-12)


def test_fluctuation_is_the_exact_error_that_folding_the_mean_leaves(net: Net, x: Tensor) -> None:
    scores = read(Fluctuation(), net, x)
    last = net.parts(x)[-1]
    for unit in range(5):
        folded = last.clone()
        folded[:, unit] = last[:, unit].mean()
        error = (net.head(folded) - net.head(last)).square().sum(1).mean()
        assert scores["fc"][unit] == pytest.approx(error.item(), rel=1e-10)


def test_fluctuation_is_energy_but_for_the_mean(net: Net, x: Tensor) -> None:
    """Windows of a convolution, zeros of the padding included; four columns of a linear layer for each channel."""
    scores, energy = read(Fluctuation(), net, x), read(Energy(), net, x)
    taps = F.unfold(net.parts(x)[0], 3, padding=1).transpose(0, 1).flatten(1)
    means = (net.second.weight.flatten(1) * taps.mean(1)).square().sum(0).unflatten(0, (4, 9)).sum(1)
    np.testing.assert_allclose(scores["first"], energy["first"] - means.numpy(), rtol=1e-9)
    columns = (net.fc.weight.square() * net.parts(x)[1].var(0, correction=0)).sum(0).unflatten(0, (3, 4)).sum(1)
    np.testing.assert_allclose(scores["second"], columns, rtol=1e-9)


def test_a_constant_unit_has_energy_and_no_fluctuation(net: Net, x: Tensor) -> None:
    net.fc.weight[2] = 0
    net.fc.bias[2] = 3.7
    assert read(Energy(), net, x)["fc"][2] > 1
    assert read(Fluctuation(), net, x)["fc"][2] < 1e-12


def test_f_values_are_those_of_scipy(net: Net, x: Tensor, y: Tensor) -> None:
    scores = read(FTest(), net, x, y)
    for name, each in activations(net, x).items():
        means = each.mean(2).T
        expected = stats.f_oneway(*(means[y == c].numpy() for c in range(3))).statistic
        np.testing.assert_allclose(scores[name], np.nan_to_num(expected), rtol=1e-9)  # dead units: 0


def test_f_of_two_classes_is_the_square_of_t(net: Net, x: Tensor, y: Tensor) -> None:
    scores = read(FTest(), net, x, y % 2)["fc"]
    last = net.parts(x)[-1].numpy()
    t_values = stats.ttest_ind(last[y % 2 == 0], last[y % 2 == 1]).statistic
    np.testing.assert_allclose(scores, np.nan_to_num(t_values**2), rtol=1e-9)


def test_a_constant_unit_tells_no_classes_apart(net: Net, x: Tensor, y: Tensor) -> None:
    net.fc.weight[2] = 0
    net.fc.bias[2] = 0.1  # three of them do not add up to 0.3 in binary
    assert read(FTest(), net, x, y)["fc"][2] == 0


def test_f_needs_a_class_for_each_sample_and_several_of_them(net: Net, x: Tensor, y: Tensor) -> None:
    network = sc.trace(net, x[:1])
    with pytest.raises(DataError, match="the target of a sample is None; give one whole number a sample"):
        FTest()(network, [x])
    with pytest.raises(DataError, match=r"the target of a sample is a tensor of shape \[1, 3\], torch.float64"):
        FTest()(network, [(x, F.one_hot(y).double())])
    with pytest.raises(DataError, match="found 30 samples of 1; give it two classes or more"):
        FTest()(network, [(x, torch.zeros_like(y))])
    with pytest.raises(DataError, match="found 3 samples of 3; give it two classes or more, and more samples"):
        FTest()(network, [(x[:3], torch.arange(3))])


def test_independence_is_what_a_row_adds_to_the_nuclear_norm(net: Net, x: Tensor) -> None:
    scores = read(ChannelIndependence(), net, x)
    for name, each in activations(net, x).items():
        rows = each.flatten(1)
        for unit in range(len(rows)):
            masked = rows.clone()
            masked[unit] = 0
            added = torch.linalg.matrix_norm(rows, "nuc") - torch.linalg.matrix_norm(masked, "nuc")
            assert scores[name][unit] == pytest.approx(added.item(), rel=1e-6)


def test_a_unit_that_others_can_make_up_for_is_less_independent() -> None:
    """Of three orthogonal units of the same size one has a twin: each of the two adds sqrt(2) - 1 of what the others add."""
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 0, 1]]))
    x = torch.eye(3).double()
    (scores,) = ChannelIndependence()(sc.trace(model, x[:1]), [x]).values()
    np.testing.assert_allclose(scores, [1, 1, 2**0.5 - 1, 2**0.5 - 1], rtol=1e-7)


def test_distances_are_those_of_all_the_weights_of_two_units(net: Net, x: Tensor) -> None:
    scores = GeometricMedian()(sc.trace(net, x[:1]))
    first = torch.cat(
        [net.first.weight.flatten(1), net.first.bias[:, None], net.second.weight.transpose(0, 1).flatten(1)], 1
    )
    second = [
        torch.cat([net.second.weight[u].flatten(), net.second.bias[[u]], net.fc.weight[:, 4 * u : 4 * u + 4].flatten()])
        for u in range(3)
    ]
    for name, vectors in {"first": first, "second": torch.stack(second)}.items():
        expected = [sum(float((a - b).norm()) for b in vectors) for a in vectors]
        np.testing.assert_allclose(scores[name], expected, rtol=1e-9)


def test_the_geometric_median_itself_goes_first_however_large() -> None:
    """Five filters on a line, far from zero: the sum of distances is least in the middle."""
    model = nn.Sequential(nn.Linear(1, 5, bias=False), nn.Linear(5, 1)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[10.0], [11.0], [12.0], [13.0], [20.0]]))
        model[1].weight.fill_(1)
    (scores,) = GeometricMedian()(sc.trace(model, torch.ones(1, 1, dtype=torch.float64))).values()
    np.testing.assert_allclose(scores, [16, 13, 12, 13, 34], rtol=1e-9)


class Attention(nn.Module):
    """The width of q and k is read by a product of activations alone."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        weights = torch.softmax(self.q(x) @ self.k(x).mT, dim=-1)
        out: Tensor = self.out(weights @ x)
        return out


def test_where_only_activations_read_an_axis_what_is_written_counts() -> None:
    torch.manual_seed(0)
    model = Attention().double().requires_grad_(False)
    x = torch.randn(6, 5, 3, dtype=torch.float64)
    y = torch.arange(6) % 2
    network, (q, k) = sc.trace(model, x), (model.q(x), model.k(x))
    both = torch.stack([q, k])
    expected = {
        ActivationMean(): both.abs().mean((0, 1, 2)),
        ActivationRate(): (both > 0).double().mean((0, 1, 2)),
        Fluctuation(): q.var((0, 1), correction=0) + k.var((0, 1), correction=0),
    }
    for score, values in expected.items():
        np.testing.assert_allclose(score(network, [x])["q"], values, rtol=1e-10)
    means = both.mean((0, 2)).numpy()
    np.testing.assert_allclose(
        FTest()(network, [(x, y)])["q"], stats.f_oneway(means[::2], means[1::2]).statistic, rtol=1e-9
    )
    rows = both.flatten(0, 2).T
    added = torch.linalg.matrix_norm(rows, "nuc") - torch.linalg.matrix_norm(rows[1:], "nuc")
    assert ChannelIndependence()(network, [x])["q"][0] == pytest.approx(added.item(), rel=1e-6)


def test_padding_is_no_activation() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(2, 3), nn.Linear(3, 2)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.down(torch.relu(self.up(x)))
            return out

    model, x = Masked().double(), torch.randn(2, 3, 2, dtype=torch.float64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    batch = {"x": x, "attention_mask": mask}
    with torch.no_grad():
        hidden = torch.relu(model.up(x))[mask == 1]
    (scores,) = ActivationMean()(sc.trace(model, batch), [batch]).values()
    np.testing.assert_allclose(scores, hidden.mean(0), rtol=1e-12)


class Scaled(nn.Module):
    """A table that no linear layer or convolution reads."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = (self.table(x) ** 2).sum(-1)
        return out


@pytest.mark.parametrize(
    "score",
    [Energy, Fluctuation, ActivationMean, ActivationRate, FTest, ChannelIndependence],
    ids=lambda score: score.__name__,
)
def test_axes_that_no_layer_reads_or_writes_go_to_another_score(score: Any) -> None:
    tokens = torch.tensor([[0, 1], [2, 3], [4, 5], [6, 0]])
    network = sc.trace(Scaled(), tokens)
    batches = [(tokens, torch.tensor([0, 1, 0, 1]))]
    (axis,) = network.axes
    with pytest.raises(
        ModelError,
        match=rf"no linear layer or convolution reads or writes the units of 'table'; give {score.__name__}\(otherwise=",
    ):
        score()(network, batches)
    found = score(otherwise=Magnitude())(network, batches)
    np.testing.assert_array_equal(found[axis.name], Magnitude()(network)[axis.name])


def test_modules_of_a_list_have_no_weights_to_compare() -> None:
    class Mean(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.nets = nn.ModuleList(nn.Linear(3, 2) for _ in range(4))

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([net(x) for net in self.nets]).mean(0)

    network = sc.trace(Mean(), torch.zeros(2, 3))
    (axis,) = network.axes
    with pytest.raises(ModelError, match=r"no weights compare the units of 'nets'; give GeometricMedian\(otherwise="):
        GeometricMedian()(network)
    np.testing.assert_array_equal(GeometricMedian(Magnitude())(network)["nets"], Magnitude()(network)["nets"])
    assert axis.name == "nets"
