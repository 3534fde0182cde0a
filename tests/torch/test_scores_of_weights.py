"""Scores of single weights against loops over samples, finite differences and closed forms."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import DataError, ModelError
from secateur.torch.batches import Loss
from secateur.torch.scores import (
    Fisher,
    Gradient,
    GraSP,
    Magnitude,
    ModelScore,
    Movement,
    Normalised,
    Random,
    SignalToNoise,
    SynFlow,
    Taylor,
    Wald,
    Wanda,
)

Batch = tuple[Tensor, Tensor]
NAMES = ["0.weight", "3.weight"]
WITH_LOSS = [Taylor(), Fisher(), Gradient(), SignalToNoise(), Wald(), GraSP(temperature=1)]


@pytest.fixture
def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(12, 4)).double()


@pytest.fixture
def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(12, 2, 4, 4, generator=generator, dtype=torch.float64)
    y = torch.randint(4, (12,), generator=generator)
    return [(x[:8], y[:8]), (x[8:], y[8:])]


def sample_gradients(model: nn.Module, batches: list[Batch]) -> dict[str, Tensor]:
    """For each name the gradient of each sample's loss, `[samples, *shape]`: the oracle, one backward pass after the other."""
    found: dict[str, list[Tensor]] = {name: [] for name in NAMES}
    for x, y in batches:
        for image, label in zip(x, y, strict=True):
            model.zero_grad()
            (-torch.log_softmax(model(image[None]), dim=1)[0, label]).backward()
            for name in NAMES:
                gradient = model.get_parameter(name).grad
                assert gradient is not None
                found[name].append(gradient.clone())
    return {name: torch.stack(each) for name, each in found.items()}


def close(found: Any, expected: dict[str, Tensor], rtol: float = 1e-10) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=rtol, atol=1e-14)


@pytest.mark.parametrize("microbatch", [1, 5, 64])
def test_taylor_is_the_size_of_weight_times_mean_gradient(
    net: nn.Module, batches: list[Batch], microbatch: int
) -> None:
    expected = {
        name: (net.get_parameter(name).detach() * each.mean(0)).abs()
        for name, each in sample_gradients(net, batches).items()
    }
    close(Taylor(microbatch=microbatch).of_model(net, batches, NAMES), expected)


def test_signed_taylor_is_minus_weight_times_mean_gradient(net: nn.Module, batches: list[Batch]) -> None:
    expected = {
        name: -net.get_parameter(name).detach() * each.mean(0) for name, each in sample_gradients(net, batches).items()
    }
    close(Taylor(signed=True).of_model(net, batches, NAMES), expected)


def test_fisher_is_the_squared_weight_times_the_mean_of_squared_gradients(net: nn.Module, batches: list[Batch]) -> None:
    expected = {
        name: net.get_parameter(name).detach() ** 2 * (each**2).mean(0)
        for name, each in sample_gradients(net, batches).items()
    }
    close(Fisher().of_model(net, batches, NAMES), expected)


def test_fisher_at_the_noise_level_is_twice_the_saliency_of_optimal_brain_damage() -> None:
    """With residuals of size sigma, E[g^2] is the diagonal of the Hessian h of the likelihood; OBD is w^2 h / 2."""
    generator, sigma = torch.Generator().manual_seed(0), 0.5
    x = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    y = (model(x) + sigma * torch.tensor([1.0, -1.0]).repeat(20)[:, None]).detach()
    scores = Fisher(loss=likelihood(sigma)).of_model(model, [(x, y)], ["weight"])["weight"]
    hessian = torch.autograd.functional.hessian(lambda w: likelihood(sigma)(x @ w.T, y), model.weight.detach())
    saliency = model.weight.detach() ** 2 * hessian.view(3, 3).diagonal() / 2
    torch.testing.assert_close(scores / 2, saliency)


def test_gradient_and_signal_to_noise_are_moments_of_the_gradients_of_samples(
    net: nn.Module, batches: list[Batch]
) -> None:
    each = sample_gradients(net, batches)
    close(Gradient(microbatch=5).of_model(net, batches, NAMES), {name: g.mean(0).abs() for name, g in each.items()})
    ratio = {name: g.mean(0).abs() / g.std(0, correction=0) for name, g in each.items()}
    close(SignalToNoise().of_model(net, batches, NAMES), ratio)


def test_the_noise_of_passes_is_that_of_their_mean_gradients(net: nn.Module, batches: list[Batch]) -> None:
    """Passes of 8 and 4 samples: the mean counts samples, and so does the variance around it."""
    found = SignalToNoise(microbatch=8).of_model(net, batches, NAMES)
    for name, each in sample_gradients(net, batches).items():
        mean, (one, other) = each.mean(0), (each[:8].mean(0), each[8:].mean(0))
        variance = (8 * (one - mean) ** 2 + 4 * (other - mean) ** 2) / 12
        torch.testing.assert_close(found[name], mean.abs() / variance.sqrt(), rtol=1e-10, atol=0)


def test_gradients_that_do_not_vary_have_no_noise() -> None:
    model, x = nn.Linear(3, 1, bias=False), torch.tensor([[0.1, 0.0, 1.0], [0.1, 0.0, 3.0], [0.1, 0.0, 2.0]])
    score = SignalToNoise(loss=lambda output, _: output.mean())
    found = score.of_model(model, [x], ["weight"])["weight"]
    assert found[0].tolist() == pytest.approx([torch.inf, 0, 2 / (2 / 3) ** 0.5])
    for batches in ([x[:1]], [x[:1].repeat(4, 1)]):
        with pytest.raises(DataError, match=r"no gradient varies among \d samples in passes of 1"):
            score.of_model(model, batches, ["weight"])


def test_wald_of_a_linear_regression_is_the_weight_over_its_closed_form_standard_error() -> None:
    """Orthogonal inputs, residuals of size sigma: the variance of the estimate is sigma^2 (X^T X)^-1, which is diagonal."""
    signs = torch.tensor([[a, b, c] for a in (-1.0, 1) for b in (-1.0, 1) for c in (-1.0, 1)]).double()
    x, sigma = (signs * torch.tensor([1.0, 2.0, 0.5])).repeat(2, 1), 0.5
    noise = sigma * signs.prod(1, keepdim=True).repeat(2, 1)  # orthogonal to each input
    y = x @ torch.tensor([[1.0], [-0.25], [0.0]]).double() + noise
    model = nn.Linear(3, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    error = (sigma**2 * torch.linalg.inv(x.T @ x)).diagonal().sqrt()
    found = Wald(loss=likelihood(sigma)).of_model(model, [(x, y)], ["weight"])["weight"]
    torch.testing.assert_close(found, model.weight.detach().abs() / error, rtol=1e-10, atol=1e-12)
    more = Wald(loss=likelihood(sigma), trained_on=64).of_model(model, [(x, y)], ["weight"])["weight"]
    torch.testing.assert_close(more, 2 * found)


def test_wald_is_the_root_of_fisher_on_another_scale(net: nn.Module, batches: list[Batch]) -> None:
    fisher = Fisher().of_model(net, batches, NAMES)
    close(Wald(trained_on=100).of_model(net, batches, NAMES), {name: 10 * each.sqrt() for name, each in fisher.items()})


def test_wald_rejects_as_many_true_zeros_as_its_level_says() -> None:
    """A regression on 400 inputs that have no effect, of 4000 samples: |z| > 1.96 for about 5 % of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 400, generator=generator, dtype=torch.float64)
    y = torch.randn(4000, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(400, 1, bias=False, dtype=torch.float64)
    with torch.no_grad():
        model.weight.copy_(torch.linalg.lstsq(x, y).solution.T)
    found = Wald(samples=4000, loss=likelihood(1.0)).of_model(model, [(x, y)], ["weight"])["weight"]
    assert 0.02 < (found > 1.96).double().mean() < 0.08  # three standard deviations of 400 tests


def test_normalised_scores_are_shares_of_their_tensor(net: nn.Module, batches: list[Batch]) -> None:
    with torch.no_grad():
        net[0].weight *= 1000
    sizes = {name: net.get_parameter(name).detach().abs() for name in NAMES}
    close(Normalised(Magnitude(1)).of_model(net, None, NAMES), {name: w / w.sum() for name, w in sizes.items()})
    slopes = {name: each.mean(0).abs() for name, each in sample_gradients(net, batches).items()}
    close(Normalised(Gradient()).of_model(net, batches, NAMES), {name: g / g.sum() for name, g in slopes.items()})


@pytest.mark.parametrize("score", [Taylor(), Fisher(), Wald(), SynFlow()], ids=repr)
def test_a_scale_that_moves_between_layers_changes_no_score(score: ModelScore) -> None:
    """The same function, so the same worth; the factor is a power of two, which rounds nothing."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    batches, names = [(torch.randn(10, 6), torch.randint(4, (10,)))], ["0.weight", "2.weight"]
    before = score.of_model(model, batches, names)
    with torch.no_grad():
        model[0].weight *= 4
        model[0].bias *= 4
        model[2].weight /= 4
    after = score.of_model(model, batches, names)
    assert all(after[name].equal(scores) for name, scores in before.items())


def test_a_tensor_of_zeros_has_no_shares() -> None:
    model = nn.Linear(2, 1)
    nn.init.zeros_(model.weight)
    assert Normalised(Magnitude()).of_model(model, None, ["weight"])["weight"].tolist() == [[0.0, 0.0]]


def test_magnitude_is_the_same_by_layer_and_by_model(net: nn.Module) -> None:
    found = Magnitude(3.0).of_model(net, None, NAMES)
    for name in NAMES:
        weight = net.get_parameter(name).detach().flatten(1)
        assert found[name].flatten(1).equal(Magnitude(3.0).of_weight(weight, None))


@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
def test_movement_adds_up_what_the_steps_of_training_find(net: nn.Module, batches: list[Batch], optimizer: Any) -> None:
    """Written out: at each step minus the weight before it times its gradient, accumulated over two batches."""
    by_hand = {name: torch.zeros_like(net.get_parameter(name)) for name in NAMES}
    net[0].bias.requires_grad_(False)
    steps, other = optimizer(net.parameters(), lr=0.1, weight_decay=0.01), nn.Linear(2, 2)
    with Movement(net) as movement:
        for _ in range(4):
            steps.zero_grad()
            for x, y in batches:
                F.cross_entropy(net(x), y).backward()
            for name in NAMES:
                parameter = net.get_parameter(name)
                assert parameter.grad is not None
                by_hand[name] -= (parameter * parameter.grad).detach()
            steps.step()
            other(torch.ones(2)).sum().backward()
            torch.optim.SGD(other.parameters(), lr=0.1).step()
    steps.step()  # outside nobody looks
    close(movement.of_model(copy.deepcopy(net), None, NAMES), by_hand)
    assert not movement.of_model(net, None, ["0.bias"])["0.bias"].any()


def test_movement_goes_on_where_it_is_opened_again_and_stops_at_an_error() -> None:
    model = nn.Linear(1, 1, bias=False)
    nn.init.ones_(model.weight)
    movement, optimizer = Movement(model), torch.optim.SGD(model.parameters(), lr=0.0)
    model(torch.ones(1, 1)).backward()

    def fails() -> None:
        with movement:
            optimizer.step()
            raise ZeroDivisionError

    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            fails()
        optimizer.step()
    assert movement.of_model(model, None, ["weight"])["weight"].tolist() == [[-2.0]]


def test_movement_of_nothing_or_of_another_model_is_refused() -> None:
    model = nn.Linear(2, 1)
    movement = Movement(model)
    with pytest.raises(DataError, match="no step of an optimiser was seen"):
        movement.of_model(model, None, ["weight"])
    for value in (1.0, torch.nan):
        model.weight.grad = torch.full((1, 2), value)
        with movement:
            torch.optim.SGD(model.parameters(), lr=0.0).step()
        with pytest.raises(ModelError, match=r"of another model: 'weight' was \[1, 2\] in training, and is \[1, 3\]"):
            movement.of_model(nn.Linear(3, 1), None, ["weight"])
    with pytest.raises(ModelError, match="the gradients of 'weight' were not finite"):
        movement.of_model(model, None, ["weight"])


@pytest.mark.parametrize("wrong", [Wanda(), Gradient, None])
def test_only_scores_of_units_and_of_models_can_be_normalised(wrong: Any) -> None:
    with pytest.raises(DataError, match="Normalised takes a score of units or of whole models"):
        Normalised(wrong)


def test_a_score_of_units_alone_has_no_shares_of_weights() -> None:
    with pytest.raises(DataError, match=r"Random\(seed=0\) does not score weights; normalise one that does"):
        Normalised(Random()).of_model(nn.Linear(2, 1), None, ["weight"])


@pytest.mark.parametrize("temperature", [1.0, 200.0])
def test_grasp_is_half_of_what_shrinking_a_weight_takes_from_the_squared_gradient(
    net: nn.Module, batches: list[Batch], temperature: float
) -> None:
    """Central differences of |g|^2 as each weight shrinks: their error is in proportion to epsilon squared."""
    scores = GraSP(temperature=temperature, microbatch=5).of_model(net, batches, NAMES)
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))

    def squared_gradient() -> float:
        loss = F.cross_entropy(net(x) / temperature, y)
        gradients = torch.autograd.grad(loss, [net.get_parameter(name) for name in NAMES])
        return float(sum(gradient.square().sum() for gradient in gradients))

    epsilon, largest = 1e-4, max(float(score.abs().max()) for score in scores.values())
    for name in NAMES:
        weight = net.get_parameter(name).detach().view(-1)
        for i in range(len(weight)):
            value, flows = float(weight[i]), []
            for scale in (1 + epsilon, 1 - epsilon):
                weight[i] = value * scale
                flows.append(squared_gradient())
            weight[i] = value
            taken = (flows[0] - flows[1]) / (2 * epsilon)
            assert float(scores[name].view(-1)[i]) == pytest.approx(taken / 2, abs=1e-6 * largest)


def test_grasp_is_weight_times_hessian_times_gradient(net: nn.Module, batches: list[Batch]) -> None:
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    weight = net[3].weight.detach()

    def loss(flat: Tensor) -> Tensor:
        return F.cross_entropy(F.linear(net[2](net[1](net[0](x))), flat.view_as(weight), net[3].bias), y)

    flat = weight.flatten()
    hessian = torch.autograd.functional.hessian(loss, flat)
    gradient = torch.autograd.functional.jacobian(loss, flat)
    expected = (flat * (hessian @ gradient)).view_as(weight)
    close(GraSP(temperature=1).of_model(net, batches, ["3.weight"]), {"3.weight": expected})


def test_a_loss_without_curvature_takes_no_gradient_away() -> None:
    model, x = nn.Linear(3, 1), torch.ones(2, 3)
    assert not GraSP(loss=lambda output, _: output.sum()).of_model(model, [x], ["weight"])["weight"].any()


def test_attention_can_be_differentiated_twice() -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.out(F.scaled_dot_product_attention(self.q(x), x, x).mean(1))
            return out

    batches = [(torch.randn(6, 5, 4), torch.randint(3, (6,)))]
    assert GraSP().of_model(Attention(), batches, ["q.weight"])["q.weight"].any()


@pytest.mark.parametrize("temperature", [0.0, -1.0, torch.inf, torch.nan])
def test_a_temperature_is_positive_and_finite(temperature: float) -> None:
    with pytest.raises(DataError, match="the temperature is positive and finite"):
        GraSP(temperature=temperature)


def test_two_passes_need_batches_that_start_anew(net: nn.Module, batches: list[Batch]) -> None:
    with pytest.raises(DataError, match="a one-time list_iterator, and 2 passes of GraSP"):
        GraSP().of_model(net, iter(batches), NAMES)


class Rectified(nn.Module):
    """Two convolutions with a batch norm that has seen data, biases, and a linear layer: every path passes all three."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.second, self.head = nn.Conv2d(4, 6, 3, stride=2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.second(self.norm(self.first(x)).relu()).relu()
        out: Tensor = self.head(x.mean((2, 3)))
        return out


LAYERS = ["first.weight", "second.weight", "head.weight"]


@pytest.fixture
def rectified() -> nn.Module:
    torch.manual_seed(0)
    model = Rectified()
    with torch.no_grad():
        for tensor in (model.norm.running_mean, model.norm.weight, model.norm.bias, model.first.bias, model.head.bias):
            assert tensor is not None
            tensor.normal_(std=3)
        assert model.norm.running_var is not None
        model.norm.running_var.uniform_(0.5, 2)
    return model


def test_all_that_flows_through_one_layer_flows_through_the_next(rectified: nn.Module) -> None:
    scores = SynFlow().of_model(rectified, [torch.zeros(1, 2, 9, 9)], [*LAYERS, "norm.weight", "first.bias"])
    flows = {name: float(score.sum()) for name, score in scores.items()}
    for name in (*LAYERS, "norm.weight"):
        assert flows[name] == pytest.approx(flows["head.weight"], rel=1e-12)
        assert (scores[name] >= 0).all()
    assert flows["head.weight"] > 0
    assert flows["first.bias"] == 0


def test_what_flows_is_the_product_of_the_sizes_of_all_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)).bfloat16()
    a, b, c = (model[i].weight.detach().double().abs() for i in (0, 2, 4))
    ones, ends = torch.ones(3).double(), torch.ones(2).double()
    expected = {
        "0.weight": a * torch.outer(ends @ c @ b, ones),
        "2.weight": b * torch.outer(ends @ c, a @ ones),
        "4.weight": c * torch.outer(ends, b @ a @ ones),
    }
    close(SynFlow().of_model(model, [torch.randn(4, 3).bfloat16()], list(expected)), expected, rtol=1e-12)


def test_the_values_of_data_do_not_matter_to_synflow_and_the_model_stays(rectified: nn.Module) -> None:
    before = copy.deepcopy(rectified.state_dict())
    one, other = (SynFlow().of_model(rectified, [x], LAYERS) for x in (torch.randn(4, 2, 9, 9), torch.ones(1, 2, 9, 9)))
    assert all(scores.equal(other[name]) for name, scores in one.items())
    assert all(value.equal(before[name]) for name, value in rectified.state_dict().items())


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (None, "needs the shape of a sample"),
        ([], "there is no data"),
        ([torch.zeros(2, 3, dtype=torch.int64)], "this one reads integers alone"),
    ],
)
def test_synflow_needs_real_numbers_to_put_ones_in_place_of(batches: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        SynFlow().of_model(nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 1)), batches, ["1.weight"])


@pytest.mark.parametrize("score", [Gradient, SignalToNoise, Wald, GraSP])
def test_counts_of_samples_must_be_positive(score: Any) -> None:
    for settings in ({"samples": 0}, {"microbatch": 0}):
        with pytest.raises(DataError, match="samples and microbatch are at least 1"):
            score(**settings)
    with pytest.raises(DataError, match="trained_on is at least 1"):
        Wald(trained_on=0)


def likelihood(sigma: float) -> Loss:
    """Minus the logarithm of the density of Gaussian residuals, but for a constant."""
    return lambda output, target: 0.5 * (output - target).square().mean() / sigma**2


@pytest.mark.parametrize("score", WITH_LOSS, ids=repr)
def test_scores_of_models_leave_them_alone(net: nn.Module, batches: list[Batch], score: ModelScore) -> None:
    for parameter in net.parameters():
        parameter.requires_grad_(False)
    before = copy.deepcopy(net.train().state_dict())
    found = score.of_model(net, batches, ["3.weight"])
    assert list(found) == ["3.weight"]
    assert found["3.weight"].any()
    assert net.training
    assert all(value.equal(before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None and not parameter.requires_grad for parameter in net.parameters())


@pytest.mark.parametrize("score", WITH_LOSS, ids=repr)
def test_what_the_loss_does_not_see_is_worth_nothing(batches: list[Batch], score: ModelScore) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(32, 4), nn.Linear(32, 4)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.used(x.flatten(1))
            return out

    found = score.of_model(Idle().double(), batches, ["used.weight", "idle.weight"])
    assert found["used.weight"].any()
    assert not found["idle.weight"].any()


def test_half_precision_is_averaged_in_more_digits() -> None:
    model = nn.Linear(2, 1, bias=False).bfloat16()
    with torch.no_grad():
        model.weight.fill_(1.0)
    x = torch.tensor([[1.0, 0.0]]).repeat(256, 1).bfloat16()
    x[0] = 3.0
    found = Taylor(microbatch=1, loss=lambda output, _: output.sum()).of_model(model, [x], ["weight"])["weight"]
    assert found.dtype == torch.float32
    assert found[0].tolist() == pytest.approx([258 / 256, 3 / 256], rel=1e-6)  # bfloat16 has three digits


@pytest.mark.parametrize("score", WITH_LOSS, ids=repr)
def test_what_a_score_of_models_cannot_do_is_refused(net: nn.Module, batches: list[Batch], score: ModelScore) -> None:
    with pytest.raises(ModelError, match=r"Sequential has no parameter 'nothing'; it has 0\.weight"):
        score.of_model(net, batches, ["nothing"])
    with pytest.raises(DataError, match=f"{type(score).__name__} needs data"):
        score.of_model(net, None, NAMES)
    with pytest.raises(DataError, match="there is no data"):
        score.of_model(net, [], NAMES)
    with pytest.raises(DataError, match="the loss is nan on a batch"):
        score.of_model(net, [(x * torch.nan, y) for x, y in batches], NAMES)
