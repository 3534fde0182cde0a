"""Compensation against least squares, and constants that fold exactly."""

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import secateur as sc
from secateur.axes import Plan
from secateur.errors import DataError, ModelError
from secateur.testing.zoo import ZOO, ZooEntry, in_float64
from secateur.torch import TracedNetwork
from secateur.torch.apply import plan_of
from secateur.torch.calibrate import Calibrate
from secateur.torch.capture import call
from secateur.torch.compensate import Compensation, FoldMean, ReestimateBatchNorm, Refit, compensate
from secateur.torch.least_squares import refit
from secateur.torch.state import state_of

EXACT = Refit(ridge=0)
PARALLEL = Refit(ridge=0, in_sequence=False)


class Chain(nn.Module):
    """Convolutions with and without bias and batch norm, grouped and depth-wise ones, flatten, linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.depthwise = nn.Conv2d(6, 6, 3, padding=1, groups=6)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.conv3 = nn.Conv2d(8, 4, 3, stride=2, bias=False)
        self.fc = nn.Linear(4 * 4, 5)
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(F.relu(self.conv1(x)))
        x = self.grouped(F.relu(self.norm(self.conv2(x))))
        x = F.relu(self.conv3(F.relu(x)))
        out: Tensor = self.head(F.relu(self.fc(x.flatten(1))))
        return out


@pytest.fixture
def model() -> Chain:
    torch.manual_seed(0)
    model = Chain().double()
    with torch.no_grad():
        model.train()(torch.randn(64, 2, 5, 5, dtype=torch.float64))
        model.fc.bias.fill_(1)  # no unit is dead: all that go are missed
    return model.eval()


@pytest.fixture
def data() -> list[Tensor]:
    x = torch.randn(120, 2, 5, 5, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return list(x.split(50))


def pruned(model: nn.Module, data: list[Any], kept: dict[str, Any]) -> tuple[TracedNetwork, Plan, nn.Module]:
    network = sc.trace(model, data[0])
    plan = network.plan(kept)
    return network, plan, sc.compact(model, plan)


def outputs(model: nn.Module, data: list[Tensor]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(x) for x in data])


def error(model: nn.Module, other: nn.Module, data: list[Tensor]) -> float:
    goal = outputs(model, data)
    return float((goal - outputs(other, data)).square().mean() / goal.square().mean())


@pytest.mark.parametrize("step", [EXACT, PARALLEL], ids=["in sequence", "in parallel"])
@pytest.mark.parametrize("axis", ["conv1", "conv2.channels", "conv3", "fc"])
def test_a_duplicated_unit_of_any_layer_goes_without_a_trace(
    model: Chain, data: list[Tensor], axis: str, step: Compensation
) -> None:
    """Two units are made alike wherever they are made, and read differently: the reader of one does the work of both."""
    network = sc.trace(model, data[0])
    make_alike(network, axis, 0, 1)
    network, plan, small = pruned(model, data, {axis: [0, *range(2, network.axis(axis).size)]})
    assert error(model, small, data) > 1e-6
    mended = compensate(network, small, plan, data, [step])
    # The square of what rounding in float64 leaves, with room for Gram matrices of a condition of 1e4.
    assert error(model, mended, data) < 1e-24


def make_alike(network: TracedNetwork, axis: str, one: int, other: int) -> None:
    """Give a unit the values of another one in every tensor that makes it: along the first dim of each."""
    start = network.unit_range(axis).start
    with torch.no_grad():
        for name, tensor in state_of(network.model).items():
            units = network.units(name)[0] if tensor.ndim else None
            if units is not None:
                (first,), (second,) = ((units == start + unit).any(axis=0).nonzero() for unit in (one, other))
                tensor[torch.from_numpy(second)] = tensor[torch.from_numpy(first)]


@pytest.mark.parametrize("step", [FoldMean(), EXACT, PARALLEL, Refit()], ids=["fold", "sequence", "parallel", "ridge"])
def test_a_constant_unit_folds_exactly_into_a_bias(model: Chain, data: list[Tensor], step: Compensation) -> None:
    with torch.no_grad():
        model.fc.weight[2] = 0
        model.fc.bias[2] = 1.5
    network, plan, small = pruned(model, data, {"fc": [0, 1, 3, 4]})
    assert error(model, small, data) > 1e-3
    assert error(model, compensate(network, small, plan, data, [step]), data) < 1e-20


def test_a_constant_unit_folds_exactly_into_a_running_mean() -> None:
    """A convolution without bias has nowhere to put a constant but the batch norm behind it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.Conv2d(3, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 2, 1))
    model = model.double().eval()
    x = torch.randn(8, 1, 3, 3, dtype=torch.float64)
    with torch.no_grad():
        model[0].weight[1] = 0
        model[0].bias[1] = 2.0
    network, plan, small = pruned(model, [x], {"0": [0, 2]})
    assert error(model, small, [x]) > 1e-3
    mended = compensate(network, small, plan, [x], [FoldMean()])
    assert error(model, mended, [x]) < 1e-20
    assert torch.equal(mended[1].weight, small[1].weight)


def test_without_bias_or_batch_norm_no_constant_is_folded() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.Sigmoid(), nn.Linear(4, 3, bias=False)).double()
    x = torch.randn(30, 2, dtype=torch.float64)
    network, plan, small = pruned(model, [x], {"0": [0, 3]})
    folded = compensate(network, small, plan, [x], [FoldMean()])
    assert all(torch.equal(a, b) for a, b in zip(state_of(folded).values(), state_of(small).values(), strict=True))
    mended = compensate(network, small, plan, [x], [EXACT])
    with torch.no_grad():
        hidden = model[1](model[0](x))
        solution = torch.linalg.lstsq(hidden[:, [0, 3]], model(x)).solution.T
    torch.testing.assert_close(mended[2].weight.detach(), solution)


@pytest.mark.parametrize("step", [Refit(), Refit(in_sequence=False)], ids=["in sequence", "in parallel"])
def test_a_refit_brings_the_output_closer(model: Chain, data: list[Tensor], step: Compensation) -> None:
    network = sc.trace(model, data[0])
    kept = {
        axis.name: np.arange(axis.size)[::2] if axis.size > 4 else np.arange(axis.size)[1:] for axis in network.axes
    }
    network, plan, small = pruned(model, data, kept)
    mended = compensate(network, small, plan, data, [step])
    assert error(model, mended, data) < 0.7 * error(model, small, data)


def test_one_layer_is_fitted_exactly_by_least_squares_in_sequence_and_in_parallel(
    model: Chain, data: list[Tensor]
) -> None:
    """Flatten to linear: each removed channel owns four inputs. With one cut both ways see the same inputs."""
    network, plan, small = pruned(model, data, {"conv3": [0, 3]})
    with torch.no_grad():
        x = torch.cat(data)
        hidden = F.relu(
            model.conv3(F.relu(model.grouped(F.relu(model.norm(model.conv2(model.depthwise(F.relu(model.conv1(x)))))))))
        ).flatten(1)
        kept = hidden[:, [0, 1, 2, 3, 12, 13, 14, 15]]
        seen = torch.cat([kept, torch.ones(len(kept), 1, dtype=torch.float64)], dim=1)
        solution = torch.linalg.lstsq(seen, model.fc(hidden)).solution.T
    for step in (EXACT, PARALLEL):
        mended = compensate(network, small, plan, data, [step])
        assert isinstance(mended, Chain)
        torch.testing.assert_close(mended.fc.weight.detach(), solution[:, :-1])
        torch.testing.assert_close(mended.fc.bias.detach(), solution[:, -1])


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.numeric], ids=lambda entry: entry.name)
def test_every_model_of_the_zoo_can_be_compensated(entry: ZooEntry) -> None:
    """A plan that removes a unit of each axis; the steps run, keep shapes and stay finite; the user's model is untouched."""
    model, inputs = entry.build().double(), in_float64(entry.inputs())
    network = sc.trace(model, inputs)
    plan = network.plan({axis.name: np.arange(axis.size - 1) for axis in network.axes})
    small, before = sc.compact(model, plan), copy.deepcopy(model.state_dict())
    for step in (Refit(), Refit(in_sequence=False), FoldMean(), ReestimateBatchNorm()):
        mended = compensate(network, small, plan, [(inputs, None)], [step])
        shapes = {name: tensor.shape for name, tensor in state_of(small).items()}
        assert {name: tensor.shape for name, tensor in state_of(mended).items()} == shapes
        assert all(torch.isfinite(tensor).all() for tensor in state_of(mended).values())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.numeric], ids=lambda entry: entry.name)
def test_a_refit_in_sequence_brings_every_model_closer_to_the_dense_one(entry: ZooEntry) -> None:
    """Half of every axis goes, at random. No theorem: layers are fitted one by one; but a wrong index would show here."""
    model, inputs = entry.build().double().eval(), in_float64(entry.inputs())
    generator, units = torch.Generator().manual_seed(1), np.random.default_rng(0)

    def noise(tensor: Tensor) -> Tensor:
        return torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)

    data = [pytree.tree_map_only(torch.DoubleTensor, noise, inputs) for _ in range(24)]
    network = sc.trace(model, inputs)
    plan = network.plan({a.name: np.sort(units.permutation(a.size)[: (a.size + 1) // 2]) for a in network.axes})
    small = sc.compact(model, plan)
    mended = compensate(network, small, plan, [(each, None) for each in data], [Refit()])
    goal, alone, after = (torch.cat([everything(m, each) for each in data]) for m in (model, small, mended))
    # Layers with tied weights cannot be fitted, and may make a little more of what others mended.
    assert (after - goal).square().sum() <= 1.1 * (alone - goal).square().sum()


def everything(model: nn.Module, inputs: Any) -> Tensor:
    """All numbers that a model returns."""
    torch.manual_seed(0)
    with torch.no_grad():
        leaves = pytree.tree_leaves(call(model, inputs))
    return torch.cat([leaf.flatten() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point()])


def test_what_the_error_of_a_layer_was_is_corrected_by_the_layers_after_it(model: Chain, data: list[Tensor]) -> None:
    """In sequence, a layer is fitted on what the compact model gives it: better than on the inputs of the dense model."""
    kept = {"conv1": [0, 1, 4], "conv3": [0, 1, 2], "fc": [1, 3, 4]}
    network, plan, small = pruned(model, data, kept)
    sequence, parallel = (error(model, compensate(network, small, plan, data, [s]), data) for s in (EXACT, PARALLEL))
    assert sequence < parallel


def test_the_outputs_of_attention_are_fitted() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoderLayer(8, 4, 16, batch_first=True, norm_first=True).double().eval()
    x = torch.randn(64, 5, 8, dtype=torch.float64)
    network = sc.trace(model, x[:2])
    heads = next(a for a in network.axes if a.size == 4)
    network, plan, small = pruned(model, [x], {heads.name: [0, 2, 3]})
    mended = compensate(network, small, plan, [x], [Refit()])
    assert error(model, mended, [x]) < 0.8 * error(model, small, [x])


def test_a_weight_that_serves_in_several_places_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(7, 6)
            self.head = nn.Linear(6, 7, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.head(torch.relu(self.embed(x)))
            return out

    tokens = torch.randint(7, (20, 3))
    network, plan, small = pruned(Tied(), [tokens], {"embed": [0, 1, 2]})
    with caplog.at_level(logging.INFO, logger="secateur"):
        mended = compensate(network, small, plan, [tokens], [Refit()])
    assert torch.equal(mended.get_parameter("embed.weight"), small.get_parameter("embed.weight"))
    assert "embed.weight is not compensated: it serves in several places" in caplog.text


def test_a_layer_that_runs_twice_is_left_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(3, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            for _ in range(2):
                x = self.down(torch.relu(self.up(x)))
            return x

    x = torch.randn(20, 3)
    network, plan, small = pruned(Twice(), [x], {"up": [0, 1, 2]})
    with caplog.at_level(logging.INFO, logger="secateur"):
        mended = compensate(network, small, plan, [x], [Refit()])
    assert torch.equal(mended.get_parameter("down.weight"), small.get_parameter("down.weight"))
    assert "down.weight is not compensated" in caplog.text


@pytest.mark.parametrize("step", [Refit(), Refit(in_sequence=False), FoldMean()], ids=repr)
def test_where_nothing_goes_nothing_changes(model: Chain, data: list[Tensor], step: Compensation) -> None:
    """Though the data are not those of which the batch norm has its running statistics."""
    network, plan, small = pruned(model, data, {})
    mended = compensate(network, small, plan, data, [step])
    for name, tensor in state_of(small).items():
        # Rounding: running statistics are measured, and put back relative to what was measured.
        torch.testing.assert_close(state_of(mended)[name], tensor, rtol=1e-14, atol=1e-14)


def test_in_sequence_batch_norms_write_the_mean_and_variance_that_the_dense_ones_write(
    model: Chain, data: list[Tensor]
) -> None:
    network, plan, small = pruned(model, data, {"conv1": [0, 3], "conv2.channels": [0, 2, 3]})
    mended = compensate(network, small, plan, data, [Refit()])
    dense, compact = (norm_output(each, torch.cat(data)) for each in (model, mended))
    kept = dense[:, [0, 2, 3, 4, 6, 7]]
    torch.testing.assert_close(compact.mean((0, 2, 3)), kept.mean((0, 2, 3)))
    torch.testing.assert_close(compact.var((0, 2, 3)), kept.var((0, 2, 3)))
    assert not torch.allclose(norm_output(small, torch.cat(data)).var((0, 2, 3)), kept.var((0, 2, 3)), rtol=0.1)


def test_a_batch_norm_that_runs_twice_is_left_alone_in_sequence() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Linear(3, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.norm = nn.BatchNorm1d(6)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.tanh(self.norm(self.one(x)))
            out: Tensor = self.head(torch.tanh(self.norm(self.two(x))))
            return out

    torch.manual_seed(0)
    model, x = Twice().double().eval(), torch.randn(60, 3, dtype=torch.float64)
    network = sc.trace(model, x)
    make_alike(network, "one", 0, 1)
    network, plan, small = pruned(model, [x], {"one": [0, 2, 3, 4, 5]})
    mended = compensate(network, small, plan, [x], [EXACT])
    assert all(torch.equal(a, b) for a, b in zip(mended.buffers(), small.buffers(), strict=True))
    assert error(model, small, [x]) > 1e-6
    assert error(model, mended, [x]) < 1e-24


def norm_output(model: nn.Module, x: Tensor) -> Tensor:
    found = []
    handle = model.get_submodule("norm").register_forward_hook(lambda module, args, output: found.append(output))
    with torch.no_grad():
        model(x)
    handle.remove()
    return found[0]


# What every step promises


STEPS = [Refit(), Refit(in_sequence=False), FoldMean(), ReestimateBatchNorm()]


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_neither_model_is_changed_and_modes_flags_and_plan_are_kept(
    model: Chain, data: list[Tensor], step: Compensation
) -> None:
    model.train()
    model.norm.eval()
    model.fc.bias.requires_grad_(False)
    network, plan, small = pruned(model, data, {"conv1": [0, 1, 4], "conv3": [0, 1, 2]})
    dense_before, small_before = copy.deepcopy(model.state_dict()), copy.deepcopy(small.state_dict())
    mended = compensate(network, small, plan, data, [step])
    assert all(torch.equal(dense_before[name], tensor) for name, tensor in model.state_dict().items())
    assert all(torch.equal(small_before[name], tensor) for name, tensor in small.state_dict().items())
    assert [m.training for m in mended.modules()] == [m.training for m in small.modules()]
    assert [p.requires_grad for p in mended.parameters()] == [p.requires_grad for p in small.parameters()]
    assert plan_of(mended) == plan
    assert type(mended) is Chain


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_the_same_data_give_the_same_bytes(model: Chain, data: list[Tensor], step: Compensation) -> None:
    network, plan, small = pruned(model, data, {"conv1": [0, 1, 4], "conv3": [0, 1, 2]})
    one, other = (compensate(network, small, plan, data, [step]) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(state_of(one).values(), state_of(other).values(), strict=True))


@pytest.mark.parametrize("step", STEPS, ids=repr)
def test_empty_data_are_refused(model: Chain, data: list[Tensor], step: Compensation) -> None:
    network, plan, small = pruned(model, data, {"fc": [0, 1]})
    with pytest.raises(DataError, match="there is no data"):
        compensate(network, small, plan, [], [step])


@pytest.mark.parametrize("step", [Refit(), Refit(in_sequence=False), FoldMean()], ids=repr)
def test_data_that_are_not_finite_are_refused(model: Chain, data: list[Tensor], step: Compensation) -> None:
    network, plan, small = pruned(model, data, {"fc": [0, 1]})
    with pytest.raises(DataError, match="not finite"):
        compensate(network, small, plan, [torch.full_like(data[0], float("nan"))], [step])


@pytest.mark.parametrize("step", [Refit(), Refit(in_sequence=False)], ids=["in sequence", "in parallel"])
def test_activations_whose_squares_overflow_are_refused(step: Compensation) -> None:
    """1e20 is a number in float32, and its square is not: no damping would ever be enough."""
    model, x = nn.Sequential(nn.Linear(2, 4), nn.Linear(4, 1)), torch.randn(20, 2) * 1e20
    network, plan, small = pruned(model, [x], {"0": [0, 1]})
    with pytest.raises(
        DataError, match=r"the moments of 2 inputs are not finite, so large are the activations|too large to be squared"
    ):
        compensate(network, small, plan, [x], [step])


def test_a_model_of_another_plan_is_refused(model: Chain, data: list[Tensor]) -> None:
    network, _, small = pruned(model, data, {"fc": [0, 1]})
    other = network.plan({"fc": [0, 1, 2]})
    with pytest.raises(
        ModelError, match=r"'fc\.weight' of the compact model is \[2, 16\], but the plan makes it \[3, 16\]"
    ):
        compensate(network, small, other, data, [Refit()])


@pytest.mark.parametrize(
    "make",
    [
        lambda: Refit(ridge=-1),
        lambda: Refit(ridge=float("nan")),
        lambda: Refit(samples=0),
        lambda: Refit(rows_per_input=0),
        lambda: Refit(memory=0),
        lambda: FoldMean(samples=0),
        lambda: ReestimateBatchNorm(samples=0),
    ],
)
def test_fields_out_of_range_are_refused(make: Any) -> None:
    with pytest.raises(DataError, match="at least"):
        make()


def test_memory_bounds_how_many_samples_run_at_once(model: Chain, data: list[Tensor], monkeypatch: Any) -> None:
    network, plan, small = pruned(model, data, {"fc": [0, 1]})
    sizes = []
    monkeypatch.setattr(
        Chain, "forward", lambda self, x, forward=Chain.forward: (sizes.append(len(x)), forward(self, x))[1]
    )
    compensate(network, small, plan, data, [Refit(memory=200_000)])
    # The grouped layer reads 8 channels of 25 float64 pixels, and writes as many: 3,200 bytes a sample, 3 times alive.
    assert max(sizes) == 200_000 // (3 * 3_200)


def test_half_precision_models_are_fitted_in_more_digits() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).bfloat16()
    x = torch.randn(200, 4).bfloat16()
    network, plan, small = pruned(model, [x], {"0": [0, 1, 2, 3, 4]})
    mended = compensate(network, small, plan, [x], [Refit()])
    assert {p.dtype for p in mended.parameters()} == {torch.bfloat16}
    assert error(model.double(), mended.double(), [x.double()]) < error(model.double(), small.double(), [x.double()])


def test_calibration_sees_what_a_refit_uses(model: Chain, data: list[Tensor]) -> None:
    """The pure refit on calibrated moments is the parallel step."""
    network, plan, small = pruned(model, data, {"fc": [0, 1, 4]})
    (moments,) = Calibrate()(network.model, data, {"head.weight"})
    assert moments.gram is not None
    kept = torch.tensor([0, 1, 4])
    fit = refit(model.head.weight, moments.gram[0], moments.mean[0], kept, 0.01, constant=True)
    mended = compensate(network, small, plan, data, [Refit(in_sequence=False)])
    torch.testing.assert_close(
        mended.get_parameter("head.weight").detach(), model.head.weight.detach()[:, kept] + fit.change
    )
