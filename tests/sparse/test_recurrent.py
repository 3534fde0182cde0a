"""Recurrent layers become sparse like all others: the weights that read the input, and those that read the last step."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.sparse import sparsify
from secateur.sparse.patterns import NofM, Unstructured
from secateur.sparse.problem import Problem
from secateur.sparse.solvers import Refit, keep
from secateur.torch.calibrate import undisturbed


class Reader(nn.Module):
    """A recurrent layer between two linear ones."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.embed, self.layer, self.head = nn.Linear(4, 6), layer, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.layer(self.embed(x).tanh())[0][..., :8])
        return out


class Steps(nn.Module):
    """A cell that is called once for each step."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Linear(4, 6), cell, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        state = None
        for step in self.embed(x).tanh().unbind(1):
            state = self.cell(step, state)
        out: Tensor = self.head(state[0] if isinstance(state, tuple) else state)
        return out


LAYERS: dict[str, Any] = {
    "lstm": lambda: Reader(nn.LSTM(6, 8, batch_first=True)),
    "gru": lambda: Reader(nn.GRU(6, 8, batch_first=True, bias=False)),
    "rnn": lambda: Reader(nn.RNN(6, 8, batch_first=True, nonlinearity="relu")),
    "stacked in both directions": lambda: Reader(nn.LSTM(6, 8, num_layers=2, bidirectional=True, batch_first=True)),
    "lstm cell": lambda: Steps(nn.LSTMCell(6, 8)),
    "gru cell": lambda: Steps(nn.GRUCell(6, 8)),
    "rnn cell": lambda: Steps(nn.RNNCell(6, 8)),
}


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    model: nn.Module = LAYERS[name]().eval()
    return model


def data(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(60, 5, 4, generator=torch.Generator().manual_seed(1), dtype=dtype)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("pattern", [Unstructured(), Unstructured("global"), NofM(1, 2)], ids=repr)
@pytest.mark.parametrize("in_sequence", [True, False])
def test_all_weights_of_recurrent_layers_become_sparse(name: str, pattern: Any, in_sequence: bool) -> None:
    model = made(name)
    sparsity = None if isinstance(pattern, NofM) else 0.5
    result = sparsify(model, data().split(20), sparsity=sparsity, pattern=pattern, in_sequence=in_sequence)
    weights = {key: weight for key, weight in model.named_parameters() if weight.ndim == 2}
    assert set(result.plan.stays) == set(weights)
    assert sum(int((weight == 0).sum()) for weight in result.model.parameters() if weight.ndim == 2) == sum(
        weight.numel() // 2 for weight in weights.values()
    )
    assert all(layer.error is not None for layer in result.report)
    with torch.no_grad():
        assert result.model(data()).isfinite().all()


def by_hand(weight: Tensor, read: Tensor) -> Tensor:
    """Least squares on what Wanda keeps of a weight `[out, in]`."""
    stays = Unstructured().choose(weight.abs() * read.square().mean(0).sqrt(), weight.numel() // 2)
    gram = read.T @ read / len(read)
    return Refit()(Problem(weight, gram, Unstructured(), weight.numel() // 2, stays)).weight


@pytest.mark.parametrize("kind", ["lstm", "rnn"])
def test_weights_are_solved_on_what_they_read_in_all_steps(kind: str) -> None:
    model, x = made(kind).double(), data(torch.float64)
    layer: Any = model.get_submodule("layer")
    result = sparsify(model, x.split(20), sparsity=0.5, exclude=["embed", "head"])
    sparse: Any = result.model.get_submodule("layer")
    with torch.no_grad():
        read = model.get_submodule("embed")(x).tanh()
        given = sparse.weight_ih_l0.detach()
        torch.testing.assert_close(given, by_hand(layer.weight_ih_l0.detach(), read.flatten(0, 1)))
        layer.weight_ih_l0.copy_(given)
        states = layer(read)[0]
        states = torch.cat([torch.zeros(60, 1, 8, dtype=x.dtype), states[:, :-1]], 1)
        torch.testing.assert_close(
            sparse.weight_hh_l0.detach(), by_hand(layer.weight_hh_l0.detach(), states.flatten(0, 1))
        )


def test_fused_kernels_are_back_afterwards() -> None:
    backends: Any = (torch.backends.mkldnn, torch.backends.cudnn)
    before = [backend.enabled for backend in backends]
    with undisturbed(nn.LSTM(2, 2)):
        assert not any(backend.enabled for backend in backends)
    assert [backend.enabled for backend in backends] == before
    with undisturbed(nn.Linear(2, 2)):
        assert [backend.enabled for backend in backends] == before


def test_keeping_masked_weights_in_an_lstm_gives_the_masked_lstm() -> None:
    model, x = made("lstm"), data()
    result = sparsify(model, [x], sparsity=0.5, solver=keep)
    result.plan.apply(model)
    with torch.no_grad():
        torch.testing.assert_close(result.model(x), model(x))
