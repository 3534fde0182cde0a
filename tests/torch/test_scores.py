"""Scores against formulas, finite differences and symmetries."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import secateur as sc
from secateur.axes import Scores
from secateur.errors import DataError, ModelError
from secateur.testing.zoo import ZOO, ZooEntry, in_float64
from secateur.torch import TracedNetwork
from secateur.torch.batches import loss_of
from secateur.torch.capture import call
from secateur.torch.scores import (
    ActivationMean,
    ActivationRate,
    BatchNormScale,
    ChannelIndependence,
    Energy,
    Fisher,
    Fluctuation,
    FTest,
    GeometricMedian,
    Gradient,
    Magnitude,
    Normalised,
    Random,
    Score,
    SignalToNoise,
    SynFlow,
    Taylor,
    TTest,
)
from secateur.torch.state import state_of
from secateur.torch.verify import permute

Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A convolution whose channels pass a batch norm, own four columns each of a linear layer, and another linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(4)
        self.fc = nn.Linear(16, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x)))
        x = F.adaptive_avg_pool2d(x, 2).flatten(1)
        out: Tensor = self.head(torch.tanh(self.fc(x)))
        return out


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    model = Net().double().eval()
    with torch.no_grad():
        model.norm.weight.uniform_(-1, 1)
        model.norm.bias.normal_()
    return model


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (12,), generator=generator)
    return [(x[:8], y[:8]), (x[8:], y[8:])]


def traced(model: nn.Module, batches: list[Batch]) -> TracedNetwork:
    return sc.trace(model, batches[0][0][:1])


def slots_of(network: TracedNetwork, axis: str, unit: int) -> dict[str, Tensor]:
    """For each parameter which entries go with a unit: the oracle that every sum is compared with."""
    number = network.unit_range(axis).start + unit
    goes = {}
    for name, parameter in network.model.named_parameters():
        gone = torch.zeros(parameter.shape, dtype=torch.bool)
        for d, units in enumerate(network.units(name)):
            if units is not None:
                here = torch.from_numpy((units == number).any(axis=0))
                gone |= here.reshape([-1 if i == d else 1 for i in range(parameter.ndim)])
        goes[name] = gone
    return goes


def test_magnitude_is_the_norm_over_every_slot_of_a_unit(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    for p in (1.0, 2.0):
        scores = Magnitude(p)(network)
        for axis in network.axes:
            for unit in range(axis.size):
                entries = [net.get_parameter(name)[gone] for name, gone in slots_of(network, axis.name, unit).items()]
                assert scores[axis.name][unit] == pytest.approx(torch.cat(entries).norm(p).item(), rel=1e-12)


def test_an_entry_that_two_dims_remove_with_one_unit_counts_once() -> None:
    class Square(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.mix, self.head = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.embed(x)
            out: Tensor = self.head(x + self.mix(x))
            return out

    model = Square().double()
    network = sc.trace(model, torch.zeros(1, 3, dtype=torch.float64))
    (axis,) = network.axes
    for unit, score in enumerate(Magnitude()(network)[axis.name]):
        entries = [model.get_parameter(name)[gone] for name, gone in slots_of(network, axis.name, unit).items()]
        assert score == pytest.approx(torch.cat(entries).norm().item(), rel=1e-12)


@pytest.mark.parametrize("epsilon", [0.01, 0.001, 0.0001])
def test_taylor_is_the_slope_of_the_loss_as_a_unit_shrinks(net: Net, batches: list[Batch], epsilon: float) -> None:
    """(L(w) - L(w (1 - epsilon))) / epsilon -> E[sum w g], with an error in proportion to epsilon."""
    network = traced(net, batches)
    scores = Taylor()(network, batches)

    def mean_loss(model: nn.Module) -> float:
        with torch.no_grad():
            return float(sum(len(x) * F.cross_entropy(model(x), y) for x, y in batches)) / 12

    for axis in network.axes:
        for unit in range(axis.size):
            shrunk = copy.deepcopy(net)
            with torch.no_grad():
                for name, gone in slots_of(network, axis.name, unit).items():
                    shrunk.get_parameter(name)[gone] *= 1 - epsilon
            slope = (mean_loss(net) - mean_loss(shrunk)) / epsilon
            assert scores[axis.name][unit] == pytest.approx(abs(slope), abs=10 * epsilon, rel=0)


def test_fisher_of_a_linear_gaussian_model_is_its_closed_form() -> None:
    """With residuals e of y = w2 w1 x, the sum of w g over a unit is -2 e w2 w1 x: made once, read once."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 1, bias=False)).double()
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = torch.randn(20, 1, generator=generator, dtype=torch.float64)
    network = sc.trace(model, x[:1])

    def gaussian(output: Any, target: Any) -> Tensor:
        return 0.5 * (output - target).square().mean()

    scores = Fisher(microbatch=1, loss=gaussian)(network, [(x, y)])["0"]
    with torch.no_grad():
        hidden = model[0](x)
        residual = y - model[1](hidden)
        expected = (2 * residual * hidden * model[1].weight[0]).square().mean(0)
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-12)


def test_fisher_at_the_noise_level_is_the_information_matrix() -> None:
    """With residuals of size sigma, E[g^2] is the diagonal of X^T X / (n sigma^2), and the score of a unit w^2 times that."""
    generator = torch.Generator().manual_seed(0)
    weight, sigma = torch.tensor([[1.0, -2.0, 0.5]], dtype=torch.float64), 0.5

    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate = nn.Parameter(torch.ones(3, dtype=torch.float64))
            self.read = nn.Linear(3, 1, bias=False, dtype=torch.float64)
            self.make = nn.Linear(3, 3, bias=False, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.read(self.make(x) * self.gate)
            return out

    model = Gated()
    with torch.no_grad():
        model.make.weight.copy_(torch.eye(3))
        model.read.weight.copy_(weight)
    x = torch.randn(20, 3, generator=generator, dtype=torch.float64)
    y = x @ weight.T + sigma * torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(10)[:, None]

    def likelihood(output: Any, target: Any) -> Tensor:
        return 0.5 * (output - target).square().mean() / sigma**2

    scores = Fisher(microbatch=1, loss=likelihood)(sc.trace(model, x[:1]), [(x, y)])
    expected = weight[0].square() * (x.T @ x).diagonal() / (len(x) * sigma**2)
    # Made, gated and read: each of the three shrinks the unit once, hence 3^2.
    np.testing.assert_allclose(next(iter(scores.values())), 9 * expected.numpy(), rtol=1e-12)


def test_a_larger_microbatch_squares_the_mean_of_its_gradients(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    whole = [(torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches]))]
    fisher, taylor = Fisher(microbatch=12)(network, whole), Taylor()(network, whole)
    for axis in network.axes:
        np.testing.assert_allclose(fisher[axis.name], taylor[axis.name] ** 2, rtol=1e-12)


def sample_gradients(net: Net, batches: list[Batch]) -> list[dict[str, Tensor]]:
    """The gradient of each sample's loss alone, by a loop over them."""
    parameters, found = dict(net.named_parameters()), []
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    for image, label in zip(images, labels, strict=True):
        loss = -torch.log_softmax(net(image[None]), dim=1)[0, label]
        found.append(dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True)))
    return found


def effects_one_by_one(net: Net, network: TracedNetwork, batches: list[Batch]) -> dict[str, Any]:
    """For each axis the sum of w g of each unit in each sample, `[units, samples]`, by a loop over its slots."""
    gradients, slopes = sample_gradients(net, batches), {}
    for axis in network.axes:
        gone = [slots_of(network, axis.name, unit) for unit in range(axis.size)]
        slopes[axis.name] = np.array(
            [
                [
                    sum(float((p.detach() * each[n])[unit[n]].sum()) for n, p in net.named_parameters())
                    for each in gradients
                ]
                for unit in gone
            ]
        )
    return slopes


def test_fisher_and_taylor_are_moments_over_samples_one_by_one(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    fisher, taylor = Fisher()(network, batches), Taylor(microbatch=5)(network, batches)
    signed = Taylor(microbatch=5, signed=True)(network, batches)
    for name, each in effects_one_by_one(net, network, batches).items():
        assert each.shape == (network.axis(name).size, 12)
        np.testing.assert_allclose(fisher[name], (each**2).mean(1), rtol=1e-10)
        np.testing.assert_allclose(taylor[name], np.abs(each.mean(1)), rtol=1e-10, atol=1e-16)
        np.testing.assert_allclose(signed[name], -each.mean(1), rtol=1e-10, atol=1e-16)


def test_signal_to_noise_and_t_values_compare_the_mean_effect_with_its_spread(net: Net, batches: list[Batch]) -> None:
    """The t-values are those of SciPy."""
    network = traced(net, batches)
    ratio, t_values = SignalToNoise()(network, batches), TTest()(network, batches)
    for name, each in effects_one_by_one(net, network, batches).items():
        alive = each.any(1)
        np.testing.assert_allclose(
            ratio[name][alive], np.abs(each.mean(1) / each.std(1).clip(1e-300))[alive], rtol=1e-9
        )
        expected = np.abs(stats.ttest_1samp(each[alive], 0, axis=1).statistic)
        np.testing.assert_allclose(t_values[name][alive], expected, rtol=1e-9)
        assert not ratio[name][~alive].any()
        assert not t_values[name][~alive].any()


def test_the_t_test_rejects_as_many_units_without_effect_as_its_level_says() -> None:
    """Units that are read with random signs of no meaning: |t| > 1.97 in about 5 % of 400 tests with 255 degrees of freedom."""
    generator = torch.Generator().manual_seed(0)

    class Gates(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.make, self.read = nn.Linear(400, 400, bias=False), nn.Linear(400, 1, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.read(self.make(x))
            return out

    model = Gates().double()
    with torch.no_grad():
        model.make.weight.copy_(torch.eye(400))
    x = torch.randn(256, 400, generator=generator, dtype=torch.float64)
    score = TTest(loss=lambda output, _: output.mean())
    (t_values,) = score(sc.trace(model, x[:1]), [x]).values()
    assert 0.02 < (t_values > 1.97).mean() < 0.08  # three standard deviations of 400 tests


def test_the_gradient_of_a_unit_is_the_norm_over_all_of_its_entries(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    scores, each = Gradient(microbatch=5)(network, batches), sample_gradients(net, batches)
    mean = {name: torch.stack([one[name] for one in each]).mean(0) for name in each[0]}
    for axis in network.axes:
        for unit in range(axis.size):
            entries = [mean[name][gone] for name, gone in slots_of(network, axis.name, unit).items()]
            assert scores[axis.name][unit] == pytest.approx(torch.cat(entries).norm().item(), rel=1e-10)


def test_effects_that_do_not_vary_have_no_noise(net: Net, batches: list[Batch]) -> None:
    one = [(batches[0][0][:1].repeat(4, 1, 1, 1), batches[0][1][:1].repeat(4))]
    for score in (SignalToNoise(), TTest()):
        with pytest.raises(DataError, match="the effect of no unit varies among 4 passes of up to 1 samples"):
            score(traced(net, batches), one)


def test_normalised_scores_are_shares_of_their_axis(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    for score in (Magnitude(), Taylor(signed=True)):
        shares = Normalised(score)(network, batches)
        for name, values in score(network, batches).items():
            np.testing.assert_allclose(shares[name], values / np.abs(values).sum(), rtol=1e-12)


def test_an_axis_of_zeros_has_no_shares(net: Net, batches: list[Batch]) -> None:
    for parameter in net.requires_grad_(False).parameters():
        parameter.zero_()
    assert not any(values.any() for values in Normalised(Magnitude())(traced(net, batches)).values())


def test_a_score_of_weights_alone_has_no_shares_of_units(net: Net, batches: list[Batch]) -> None:
    with pytest.raises(DataError, match=r"SynFlow\(.*\) does not score units; normalise one that does"):
        Normalised(SynFlow())(traced(net, batches), batches)


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.numeric], ids=lambda entry: entry.name)
def test_every_entry_that_goes_with_a_unit_counts_once_on_every_model(entry: ZooEntry) -> None:
    """Magnitude and Taylor over the slots of each unit, entry by entry, whatever splits, merges and ties there are."""
    model, inputs = entry.build().double().eval(), in_float64(entry.inputs())
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    network = sc.trace(model, inputs)
    if not network.axes:
        return
    magnitude, taylor = Magnitude()(network), Taylor(microbatch=999, loss=power)(network, [(inputs, torch.zeros(1))])
    state = {name: p for name, p in model.named_parameters() if p.is_floating_point()}
    torch.manual_seed(0)
    loss = power(call(model, inputs), None)
    gradients = torch.autograd.grad(loss, list(state.values()), allow_unused=True)
    slopes = {
        name: torch.zeros_like(p) if g is None else (p * g).detach()
        for (name, p), g in zip(state.items(), gradients, strict=True)
    }
    for axis in network.axes:
        for unit in {0, axis.size - 1}:
            gone = slots_of(network, axis.name, unit)
            weights = torch.cat([p.detach()[gone[name]] for name, p in state.items()])
            assert magnitude[axis.name][unit] == pytest.approx(weights.norm().item(), rel=1e-10)
            slope = sum(float(slopes[name][gone[name]].sum()) for name in state)
            assert taylor[axis.name][unit] == pytest.approx(abs(slope), rel=1e-7, abs=1e-12)


def test_energy_is_the_exact_error_of_zeroing_a_unit(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    data = [x for x, _ in batches]
    scores = Energy()(network, data)
    with torch.no_grad():
        x = torch.cat(data)
        hidden = F.adaptive_avg_pool2d(F.relu(net.norm(net.conv(x))), 2).flatten(1)
        last = torch.tanh(net.fc(hidden))
    for unit in range(5):
        error = (last[:, unit, None] * net.head.weight[:, unit]).square().sum(1).mean()
        assert scores["fc"][unit] == pytest.approx(error.item(), rel=1e-12)
    for unit in range(4):
        columns = slice(4 * unit, 4 * unit + 4)
        # Four columns of one unit are correlated: their energies add up, their errors need not.
        energy = (hidden[:, columns].square().mean(0) * net.fc.weight[:, columns].square()).sum()
        assert scores["conv"][unit] == pytest.approx(energy.item(), rel=1e-12)


def test_the_energies_of_uncorrelated_units_add_up_to_their_error() -> None:
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3)).double()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    signs = torch.tensor([[a, b, c, d] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-2.0, 2) for d in (-3.0, 3)])
    x = signs.double()
    scores = Energy()(sc.trace(model, x[:1]), [x])["0"]
    with torch.no_grad():
        error = (x[:, [1, 3]] @ model[1].weight[:, [1, 3]].T).square().sum(1).mean()
    assert scores[[1, 3]].sum() == pytest.approx(error.item(), rel=1e-12)


def test_energy_of_a_convolution_counts_its_windows() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 3, stride=2, padding=1, groups=1)).double()
    x = torch.randn(2, 1, 5, 6, dtype=torch.float64)
    scores = Energy()(sc.trace(model, x), [x])["0"]
    with torch.no_grad():
        hidden = model[0](x)
        for unit in range(3):
            taps = F.unfold(hidden[:, [unit]], 3, padding=1, stride=2)
            weight = model[1].weight[:, unit].flatten(1)
            energy = (weight.square() * taps.square().mean((0, 2))).sum()
            assert scores[unit] == pytest.approx(energy.item(), rel=1e-12)


def test_where_only_activations_read_an_axis_its_energy_is_what_is_written() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.k, self.out = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(3, 2)

        def forward(self, x: Tensor) -> Tensor:
            weights = torch.softmax(self.q(x) @ self.k(x).mT, dim=-1)
            out: Tensor = self.out(weights @ x)
            return out

    model = Attention().double()
    x = torch.randn(2, 5, 3, dtype=torch.float64)
    scores = Energy()(sc.trace(model, x), [x])["q"]
    with torch.no_grad():
        expected = model.q(x).square().mean((0, 1)) + model.k(x).square().mean((0, 1))
    np.testing.assert_allclose(scores, expected.numpy(), rtol=1e-12)


def test_batch_norm_scale_is_the_size_of_gamma(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    scores = BatchNormScale(otherwise=Magnitude())(network)
    np.testing.assert_array_equal(scores["conv"], net.norm.weight.detach().abs().numpy())
    np.testing.assert_array_equal(scores["fc"], Magnitude()(network)["fc"])


def test_where_several_batch_norms_scale_a_unit_their_mean_counts() -> None:
    class Residual(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.mix, self.head = nn.Conv2d(1, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
            self.one, self.two, self.plain = nn.BatchNorm2d(4), nn.BatchNorm2d(4), nn.BatchNorm2d(4, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            x = self.one(self.stem(x))
            out: Tensor = self.head(self.plain(x + self.two(self.mix(x))))
            return out

    model = Residual().eval()
    with torch.no_grad():
        model.one.weight.copy_(torch.tensor([1.0, -2.0, 3.0, 0.0]))
        model.two.weight.copy_(torch.tensor([0.5, 4.0, -1.0, 0.0]))
    (scores,) = BatchNormScale()(sc.trace(model, torch.zeros(1, 1, 2, 2))).values()
    assert scores.tolist() == [0.75, 3.0, 2.0, 0.0]


def test_batch_norm_scale_names_the_axes_without_one(net: Net, batches: list[Batch]) -> None:
    with pytest.raises(ModelError, match="no batch norm scales the units of 'fc'; give BatchNormScale"):
        BatchNormScale()(traced(net, batches))


def test_random_scores_depend_on_the_seed_alone(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    assert equal(Random(3)(network), Random(3)(network))
    assert equal(Random(3)(network), Random(3)(network, batches))
    assert not equal(Random(3)(network), Random(4)(network))


WITH_LOSS: list[Score] = [Taylor(), Taylor(signed=True), Fisher(), Gradient(), SignalToNoise(), TTest()]
WITH_INPUTS: list[Score] = [Energy(), Fluctuation(), ActivationMean(), ActivationRate(), ChannelIndependence()]
WITHOUT_DATA: list[Score] = [Magnitude(), Magnitude(1), BatchNormScale(Random()), GeometricMedian()]
SCORES: list[Score] = [*WITH_LOSS, *WITH_INPUTS, FTest(), *WITHOUT_DATA, Normalised(Magnitude())]


@pytest.mark.parametrize("score", SCORES, ids=repr)
def test_the_same_data_give_the_same_bytes(net: Net, batches: list[Batch], score: Score) -> None:
    network = traced(net, batches)
    assert equal(score(network, batches), score(network, batches))


@pytest.mark.parametrize("score", [*SCORES, Random()], ids=repr)
def test_there_is_one_finite_float64_for_each_unit_of_each_axis(net: Net, batches: list[Batch], score: Score) -> None:
    network = traced(net, batches)
    scores = score(network, batches)
    assert {name: values.shape for name, values in scores.items()} == {"conv": (4,), "fc": (5,)}
    assert all(values.dtype == np.float64 and np.isfinite(values).all() for values in scores.values())


@pytest.mark.parametrize("score", SCORES, ids=repr)
def test_the_callers_model_is_not_changed(net: Net, batches: list[Batch], score: Score) -> None:
    net.train()
    net.fc.weight.requires_grad_(False)
    before = copy.deepcopy(net.state_dict())
    score(traced(net, batches), batches)
    assert all(torch.equal(before[name], tensor) for name, tensor in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert [name for name, parameter in net.named_parameters() if not parameter.requires_grad] == ["fc.weight"]
    assert all(module.training for module in net.modules())


@pytest.mark.parametrize("score", WITH_LOSS, ids=repr)
def test_frozen_parameters_are_scored_too(net: Net, batches: list[Batch], score: Score) -> None:
    network = traced(net, batches)
    expected = score(network, batches)
    net.requires_grad_(False)
    assert equal(score(network, batches), expected)


@pytest.mark.parametrize(
    "score", [Taylor(), Fisher(), TTest(), Energy(), Fluctuation(), ActivationRate(), FTest()], ids=repr
)
def test_a_scale_that_moves_between_layers_changes_no_score_of_data(
    net: Net, batches: list[Batch], score: Score
) -> None:
    """Batch norm's gamma and beta times c, its reader over c: the same function (relu), so the same worth."""
    network = traced(net, batches)
    before = score(network, batches)["conv"]
    with torch.no_grad():
        net.norm.weight *= 3
        net.norm.bias *= 3
        net.fc.weight /= 3
    np.testing.assert_allclose(score(network, batches)["conv"], before, rtol=1e-10)


def test_a_scale_that_moves_between_layers_changes_magnitude(net: Net, batches: list[Batch]) -> None:
    """A weakness of the criterion, stated."""
    network = traced(net, batches)
    before = Magnitude()(network)["conv"]
    with torch.no_grad():
        net.norm.weight *= 3
        net.norm.bias *= 3
        net.fc.weight /= 3
    assert not np.allclose(Magnitude()(network)["conv"], before)


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.numeric], ids=lambda entry: entry.name)
def test_permuted_units_take_their_scores_along(entry: ZooEntry) -> None:
    model, inputs = entry.build().double(), in_float64(entry.inputs())
    network = sc.trace(model, inputs)
    if not network.axes:
        return
    generator, order = np.random.default_rng(0), np.arange(network.unit_count)
    for axis in network.axes:
        if axis.name not in network.axes_of_lists:  # there the units of other axes move along, to other names
            units = network.unit_range(axis.name)
            order[units] = generator.permutation(order[units])
    permuted = replace(network, model=permute(model, network, order))
    batches = [(inputs, 0)]
    read = (Energy(otherwise=Random()), Fluctuation(otherwise=Random()), ActivationMean(otherwise=Random()))
    compared = GeometricMedian(otherwise=Magnitude())
    for score in (Magnitude(), *read, compared, Taylor(loss=power), Fisher(microbatch=64, loss=power)):
        one, other = (np.concatenate(list(score(n, batches).values())) for n in (network, permuted))
        written_by_chance = score in read and ("mixture" in entry.name or entry.name == "einsum_attention")
        if not written_by_chance:
            np.testing.assert_allclose(other, one[order], rtol=1e-6, atol=1e-9 * np.abs(one).max())


def power(output: Any, targets: Any) -> Tensor:
    """A loss for any model: the mean square of all it returns."""
    leaves = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor) and leaf.is_floating_point()]
    return torch.stack([leaf.square().mean() for leaf in leaves]).sum()


def test_tied_weights_count_once() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 4)
            self.head = nn.Linear(4, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.embed(x)))
            return out

    model = Tied()
    network = sc.trace(model, torch.zeros(1, 2, dtype=torch.int64))
    expected = model.embed.weight.detach().double().norm(dim=0)
    np.testing.assert_allclose(Magnitude()(network)["embed"], expected.numpy(), rtol=1e-6)
    tokens = torch.tensor([[0, 1, 2], [3, 4, 5]])
    for score in (Taylor(loss=power), Energy()):
        assert score(network, [(tokens, tokens)])["embed"].shape == (4,)


def test_half_precision_is_added_up_in_more_digits() -> None:
    """4096 weights of 0.1 in bfloat16: adding up in bfloat16 would stop growing at a few hundred."""
    model = nn.Sequential(nn.Linear(4096, 2, bias=False), nn.Linear(2, 1, bias=False)).bfloat16()
    with torch.no_grad():
        model[0].weight.fill_(0.1)
        model[1].weight.fill_(0)
    network = sc.trace(model, torch.zeros(1, 4096, dtype=torch.bfloat16))
    weight = float(torch.tensor(0.1).bfloat16())
    np.testing.assert_allclose(Magnitude(1)(network)["0"], 4096 * weight, rtol=1e-6)


def test_batches_may_be_keyword_arguments_of_a_model_with_its_own_loss(net: Net, batches: list[Batch]) -> None:
    class WithLoss(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, pixels: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
            logits = self.net(pixels)
            return {"logits": logits} | ({} if labels is None else {"loss": F.cross_entropy(logits, labels)})

    network = sc.trace(WithLoss(), {"pixels": batches[0][0][:1]})
    scores = Fisher(samples=12)(network, [{"pixels": x, "labels": y} for x, y in batches])
    expected = Fisher(samples=12)(traced(net, batches), batches)
    for name, values in expected.items():
        np.testing.assert_allclose(scores[f"net.{name}"], values, rtol=1e-12)


def test_no_more_samples_are_used_than_asked_for(net: Net, batches: list[Batch]) -> None:
    network = traced(net, batches)
    first = [(batches[0][0][:5], batches[0][1][:5])]
    for score in (Taylor(samples=5), Fisher(samples=5), Energy(samples=5), ActivationMean(samples=5), FTest(samples=5)):
        assert equal(score(network, batches), score(network, first))


def test_weights_that_are_not_finite_are_named(net: Net, batches: list[Batch]) -> None:
    with torch.no_grad():
        net.fc.weight[0, 0] = float("nan")
    for score in SCORES:
        with pytest.raises(ModelError, match=r"'fc\.weight' holds 1 values that are NaN or infinite"):
            score(traced(net, batches), batches)


def test_data_that_are_not_finite_are_refused(net: Net, batches: list[Batch]) -> None:
    broken = [(torch.full_like(x, float("nan")), y) for x, y in batches]
    with pytest.raises(DataError, match="the loss is nan on a batch"):
        Fisher()(traced(net, batches), broken)
    for score in WITH_INPUTS:
        with pytest.raises(DataError, match=r"'conv\.weight' reads values that are not finite"):
            score(traced(net, batches), broken)


@pytest.mark.parametrize("score", [*WITH_LOSS, *WITH_INPUTS, FTest()], ids=repr)
def test_scores_that_need_data_say_so(net: Net, batches: list[Batch], score: Score) -> None:
    with pytest.raises(DataError, match=f"{type(score).__name__} needs data"):
        score(traced(net, batches))
    with pytest.raises(DataError, match="there is no data"):
        score(traced(net, batches), [])
    with pytest.raises(DataError, match="there is no data"):
        score(traced(net, batches), iter([]))


def test_labels_that_are_no_class_are_refused_with_both_numbers(net: Net, batches: list[Batch]) -> None:
    with pytest.raises(DataError, match="labels go from 0 to 7, but the model has 3 classes"):
        Taylor()(traced(net, batches), [(batches[0][0], torch.arange(8))])


def test_inputs_that_do_not_fit_are_refused_with_their_shape(net: Net, batches: list[Batch]) -> None:
    wrong = [(torch.zeros(2, 5, 4, 4, dtype=torch.float64), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(
        DataError, match=r"Net cannot run on a batch, or a part of one, with inputs of shape \(1, 5, 4, 4\)"
    ):
        Fisher(microbatch=1)(traced(net, batches), wrong)


def test_a_loss_that_is_cut_off_from_the_parameters_is_refused(net: Net, batches: list[Batch]) -> None:
    with pytest.raises(DataError, match="does not depend on the parameters"):
        Taylor(loss=lambda output, _: output.detach().mean())(traced(net, batches), batches)


def test_a_loss_that_is_no_number_is_refused(net: Net, batches: list[Batch]) -> None:
    with pytest.raises(DataError, match=r"Tensor of shape \[8, 3\]; it is one number"):
        loss_of(net, *batches[0], loss=lambda output, _: output)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Fisher(samples=0),
        lambda: Taylor(microbatch=0),
        lambda: TTest(samples=0),
        lambda: Energy(rows=0),
        lambda: Fluctuation(samples=0),
        lambda: ActivationMean(rows=0),
        lambda: ActivationRate(rows=0),
        lambda: FTest(samples=0),
        lambda: ChannelIndependence(samples=0),
    ],
)
def test_counts_must_be_positive(make: Any) -> None:
    with pytest.raises(DataError, match="at least 1"):
        make()


@pytest.mark.parametrize("p", [0, -1, float("inf"), float("nan")])
def test_the_order_of_a_norm_must_be_positive_and_finite(p: float) -> None:
    with pytest.raises(ModelError, match="positive and finite"):
        Magnitude(p)


def test_a_seed_must_not_be_negative() -> None:
    with pytest.raises(DataError, match=r"Random\(seed=-1\): seed is at least 0"):
        Random(-1)


def test_meta_models_are_refused(net: Net) -> None:
    network = sc.trace(copy.deepcopy(net).to("meta"), torch.zeros(1, 1, 4, 4, dtype=torch.float64))
    assert all(tensor.is_meta for tensor in state_of(network.model).values())
    with pytest.raises(ModelError, match="meta device"):
        Magnitude()(network)


def equal(one: Scores, other: Scores) -> bool:
    return one.keys() == other.keys() and all((one[name] == other[name]).all() for name in one)
