"""Each block of a sparse model comes as near to the dense one as it can, after those before it, and zeros stay zeros."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import DataError, PlanError, RecoveryError
from secateur.sparse import SparseResult, WeightPlan
from secateur.torch.calibrate import undisturbed
from secateur.train import masked
from secateur.train.recover import FineTune, Reconstruct, as_recovery

LONG = FineTune(epochs=100, optimizer=torch.optim.AdamW, learning_rate=1e-2, weight_decay=0.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(8, 16), nn.Tanh(), nn.Sequential(nn.Linear(16, 16), nn.Dropout(0.5)), nn.Linear(16, 4)
    )


def data() -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    mixed = torch.randn(3, 8, generator=generator)
    return [
        torch.randn(64, 3, generator=generator) @ mixed + 0.3 * torch.randn(64, 8, generator=generator)
        for _ in range(2)
    ]


def sparse(model: nn.Module) -> SparseResult:
    return sc.sparsify(model, data(), sparsity=0.5, score=sc.scores.Magnitude(), solver=sc.solvers.keep)


def error(model: nn.Module, dense: nn.Module) -> float:
    x = torch.cat(data())
    with torch.no_grad():
        return float((model.eval()(x) - dense.eval()(x)).square().sum() / dense(x).square().sum())


def test_a_linear_block_ends_at_the_least_squares_solution() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(6, 4))
    x = torch.randn(128, 6) @ torch.randn(6, 6)
    stays = torch.rand(4, 6, generator=torch.Generator().manual_seed(2)) < 0.5
    model = nn.Sequential(nn.Linear(6, 4))
    model.load_state_dict(dense.state_dict())
    steep = FineTune(epochs=1500, optimizer=torch.optim.Adam, learning_rate=0.05, weight_decay=0.0)
    with masked(model, WeightPlan({"0.weight": stays})):
        Reconstruct(fit=steep, samples=128)(model, [x], dense)
    y = dense(x).detach()
    for row in range(4):
        inputs = torch.cat([x[:, stays[row]], torch.ones(128, 1)], 1)
        best = torch.linalg.lstsq(inputs, y[:, row : row + 1]).solution.flatten()
        found = torch.cat([model[0].weight[row, stays[row]], model[0].bias[row : row + 1]])
        assert torch.allclose(found, best, atol=1e-3)  # a first-order method
    assert not model[0].weight[~stays].any()


def test_a_sparse_model_comes_nearer_and_stays_sparse() -> None:
    dense = network()
    result = sparse(dense)
    before, weights = error(result.model, dense), {name: p.clone() for name, p in dense.state_dict().items()}
    result.model.train()
    steps: list[int] = []
    with masked(result.model, result.plan):
        trained = Reconstruct(fit=LONG)(result.model, data(), dense, progress=lambda step: steps.append(step.step))
    assert trained is result.model
    assert result.model.training
    assert steps == list(range(1, 201)) * 3
    assert error(result.model, dense) < 0.5 * before
    for name, stays in result.plan.stays.items():
        assert not dict(result.model.named_parameters())[name][~stays].any()
    assert all(p.equal(weights[name]) for name, p in dense.state_dict().items())


def test_a_block_reads_what_the_mended_blocks_before_give_it() -> None:
    dense = network()
    result = sparse(dense)
    read: list[tuple[Tensor, Tensor]] = []

    def watched(block: nn.Module, arguments: Any) -> None:
        with torch.no_grad():
            read.append((arguments[0], torch.tanh(result.model[0](data()[0]))))

    result.model[2].register_forward_pre_hook(watched)
    before = torch.tanh(result.model[0](data()[0])).detach()
    Reconstruct(samples=64)(result.model, data(), dense)
    (inputs, mended), *_ = read
    assert inputs.equal(mended)
    assert not inputs.equal(before)


class Layer(nn.Module):
    """Takes keywords, writes to a cache that it is given, and returns several things."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor, *, cache: list[Tensor], scale: float) -> tuple[Tensor, str]:
        cache.append(x)
        return x + scale * self.linear(sum(cache)), "more"


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.layers = nn.Linear(8, 8), nn.ModuleList(Layer() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x, cache = self.first(x), list[Tensor]()
        for layer in self.layers:
            x, _ = layer(x, cache=cache, scale=0.5)
        return x


def test_blocks_may_take_and_return_anything() -> None:
    torch.manual_seed(0)
    dense = Deep()
    result = sparse(dense)
    before = error(result.model, dense)
    kept = result.model.first.weight.detach().clone()
    with masked(result.model, result.plan):
        Reconstruct()(result.model, data(), dense)
        assert result.model.first.weight.equal(kept), "it is in no list"
        Reconstruct(blocks=["first"])(result.model, data(), dense)
        assert not result.model.first.weight.equal(kept)
    assert error(result.model, dense) < before


def test_units_may_be_gone_inside_a_block() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)) for _ in range(2)])
    network = sc.trace(model, data()[0])
    small = sc.compact(model, network.plan({"0.0": range(12), "1.0": range(12)}))
    before = error(small, model)
    assert error(as_recovery(Reconstruct(fit=LONG))(small, data(), model), model) < 0.5 * before


def test_what_cannot_be_is_refused() -> None:
    dense = network()
    model = sparse(dense).model
    with pytest.raises(RecoveryError, match="pass it as the teacher"):
        Reconstruct()(model, data())
    with pytest.raises(RecoveryError, match="at least 1"):
        Reconstruct(samples=0)
    with pytest.raises(PlanError, match="no block 'nine'"):
        Reconstruct(blocks=["nine"])(model, data(), dense)
    with pytest.raises(PlanError, match="'1' has no trainable parameter"):
        Reconstruct(blocks=["1"])(model, data(), dense)
    with pytest.raises(PlanError, match="no list of blocks"):
        Reconstruct()(nn.Linear(8, 4), data(), nn.Linear(8, 4))
    with pytest.raises(DataError, match=r"gives \[64, 16\], and the dense model's \[64, 7\]"):
        Reconstruct(blocks=["0"])(model, data(), nn.Sequential(nn.Linear(8, 7)))
    with pytest.raises(DataError, match="no data"):
        Reconstruct()(model, [], dense)
    unused = Deep()
    unused.spare = nn.Linear(2, 2)
    with pytest.raises(DataError, match="'spare' did not run in Deep"):
        Reconstruct(blocks=["spare"])(unused, data(), copy.deepcopy(unused))
    made_by_mask = sc.mask(dense, sc.trace(dense, data()[0]).plan({"0": [0]}))
    with pytest.raises(RecoveryError, match="compact the model first"):
        Reconstruct()(made_by_mask, data(), model)


class Twofold(nn.Module):
    """A block that halves what it reads: in place, or not."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.linear, self.in_place = nn.Linear(8, 8), in_place

    def forward(self, x: Tensor) -> Tensor:
        x = x.mul_(0.5) if self.in_place else x * 0.5
        y: Tensor = x + self.linear(x).tanh()
        return y


def test_blocks_may_write_to_what_they_read() -> None:
    found = []
    for in_place in (True, False):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(8, 8), Twofold(in_place), Twofold(in_place))
        result = sparse(dense)
        with masked(result.model, result.plan):
            Reconstruct()(result.model, data(), dense)
        found.append(result.model.state_dict())
    assert all(tensor.equal(found[1][name]) for name, tensor in found[0].items())


def test_hooks_of_a_block_run_once() -> None:
    found = []
    for hooked in (True, False):
        torch.manual_seed(0)
        dense = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        small = copy.deepcopy(dense)
        with torch.no_grad():
            small[1].weight.add_(0.1)
        inputs = data()
        for model in (dense, small):
            if hooked:
                model[1].register_forward_pre_hook(lambda _, arguments: (arguments[0] * 3,))
            else:
                model[0].weight.data *= 3
                model[0].bias.data *= 3
        Reconstruct(blocks=["1"])(small, inputs, dense)
        found.append(small[1].weight)
    torch.testing.assert_close(found[0], found[1], atol=1e-4, rtol=1e-3)


def test_an_encoder_with_padding_comes_nearer() -> None:
    torch.manual_seed(0)
    dense = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), 2)
    batch = {"src": torch.randn(4, 5, 8), "src_key_padding_mask": torch.tensor([[False] * 3 + [True] * 2] * 4)}
    result = sc.sparsify(dense, [batch], sparsity=0.5, score=sc.scores.Magnitude(), solver=sc.solvers.keep)

    def distance() -> float:
        with undisturbed(dense):
            return float((result.model(**batch) - dense(**batch))[:, :3].square().mean())

    dense.eval()
    result.model.eval()
    before = distance()
    with masked(result.model, result.plan):
        Reconstruct(fit=LONG)(result.model, [batch], dense)
    assert distance() < 0.5 * before


def test_names_of_blocks_are_a_list_without_repetition() -> None:
    dense = nn.Sequential(layer := nn.Linear(8, 8), nn.Tanh(), layer)
    model = copy.deepcopy(dense)
    with pytest.raises(PlanError, match="names one module twice"):
        Reconstruct(blocks=["0", "2"])(model, data(), dense)
    for wrong in ("0", []):
        with pytest.raises(PlanError, match="is a list of names"):
            Reconstruct(blocks=wrong)(model, data(), dense)
    with pytest.raises(DataError, match="cannot run on what the model gives it"):
        Reconstruct(blocks=["0"])(model, [torch.randn(4, 7)], dense)
