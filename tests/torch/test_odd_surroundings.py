"""What is odd about a model is not always between its layers: what it keeps, holds, returns, and does only while it trains."""

import functools
import logging
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import CaptureError, ModelError, PlanError, VerificationError
from secateur.testing.zoo.entry import randomised
from secateur.torch.attention import open_module

ROWS = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
TOKENS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(1))
EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


class Two(nn.Module):
    """A hidden layer with `middle` between its halves."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        return self.last(self.middle(self.first(x)))

    def middle(self, x: Tensor) -> Tensor:
        return x.relu()


# What the code keeps outside the model


def test_a_hook_that_writes_to_a_dict_leaves_no_tensor_without_values_there() -> None:
    seen: dict[str, Any] = {}
    model = Two()
    model.first.register_forward_hook(lambda module, args, out: seen.update(alone=out, pair=(out, args[0])))
    sc.trace(model, ROWS)
    assert not seen
    model(ROWS)
    assert not seen["alone"].is_meta


def of_a_dict(table: MutableMapping[int, Any], wrap: Callable[[Tensor], Any]) -> Callable[[int], Tensor]:
    def ones(size: int) -> Tensor:
        if size not in table:
            table[size] = wrap(torch.ones(size))
        found: Tensor = table[size][0] if isinstance(table[size], tuple) else table[size]
        return found

    return ones


@pytest.mark.parametrize(
    "cached",
    [
        of_a_dict({}, lambda tensor: tensor),
        of_a_dict({}, lambda tensor: (tensor, "spare")),
        functools.lru_cache(torch.ones),
        functools.lru_cache(lambda size: (torch.ones(size), None)),
    ],
    ids=["a dict", "a tuple in a dict", "lru_cache", "a tuple in lru_cache"],
)
def test_a_cache_outside_the_model_is_good_for_the_model_afterwards(cached: Any) -> None:
    class Cached(Two):
        def middle(self, x: Tensor) -> Tensor:
            factor = cached(x.shape[-1])
            return x * (factor[0] if isinstance(factor, tuple) else factor)

    model = Cached()
    sc.trace(model, ROWS)
    assert torch.isfinite(model(ROWS)).all()


def test_a_list_that_keeps_a_tensor_without_values_is_named_in_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Tensor] = []
    model = Two()
    model.first.register_forward_hook(lambda module, args, out: seen.append(out))
    with caplog.at_level(logging.WARNING, "secateur"):
        sc.trace(model, ROWS)
    assert "a tensor (3, 8) without values" in caplog.text
    assert "kept outside the model" in caplog.text


def test_a_closure_over_the_model_does_not_run_the_callers_model() -> None:
    class Closed(Two):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(8)
            self.function = lambda x: self.norm(x)

        def middle(self, x: Tensor) -> Tensor:
            out: Tensor = self.function(x)
            return out

    model = Closed().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(
        ModelError, match=r"reaches the model itself instead of its copy \(.*test_odd_surroundings.py:\d+\)"
    ):
        sc.trace(model, ROWS)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


# What the model holds


def test_an_attribute_that_cannot_be_copied_is_refused_with_the_way_out() -> None:
    model = Two()
    model.positions = (i for i in range(3))
    with pytest.raises(ModelError, match=r"Two cannot be copied .* give the attribute .* a __deepcopy__ method"):
        sc.trace(model, ROWS)


def test_a_lazy_layer_is_refused_with_the_way_out() -> None:
    with pytest.raises(CaptureError, match="'1' is lazy and has no shapes yet; run the model once first"):
        sc.trace(nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(5)), ROWS)


@pytest.mark.parametrize(
    "look",
    [
        lambda model: sc.trace(model, ROWS),
        lambda model: sc.sparsify(model, [ROWS], sparsity=0.5),
        lambda model: sc.factorise(model, [ROWS], rank=1),
    ],
    ids=["trace", "sparsify", "factorise"],
)
def test_inference_mode_is_refused_with_the_way_out(look: Callable[[nn.Module], object]) -> None:
    with torch.inference_mode(), pytest.raises(CaptureError, match=r"outside of it, or use torch.no_grad\(\)"):
        look(Two())
    with torch.no_grad():
        look(Two())


@pytest.mark.parametrize("score", [sc.scores.Taylor(), sc.scores.Fisher(), sc.scores.Energy()], ids=repr)
def test_scores_on_data_are_refused_in_inference_mode(score: Any) -> None:
    network = sc.trace(Two(), ROWS)
    with torch.inference_mode(), pytest.raises(CaptureError, match=r"Two cannot be looked into inside"):
        score(network, [(ROWS, torch.tensor([0, 1, 2]))])


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_a_scripted_part_is_refused_with_the_way_out() -> None:
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))
    with pytest.raises(CaptureError, match="'1' is TorchScript, which hides its operators; pass the eager module"):
        sc.trace(nn.Sequential(nn.Linear(8, 8), scripted, nn.Linear(8, 5)), ROWS)


def test_a_plain_tensor_keeps_its_gradient_flag() -> None:
    class Scaled(Two):
        def __init__(self) -> None:
            super().__init__()
            self.scale = torch.ones(8, requires_grad=True)

        def middle(self, x: Tensor) -> Tensor:
            return x * self.scale

    model = Scaled()
    assert sc.compact(model, sc.trace(model, ROWS).plan({})).scale.requires_grad


# What the model returns


@dataclass
class Output:
    logits: Tensor


@pytest.mark.parametrize(
    "wrap",
    [Output, lambda x: SimpleNamespace(logits=x), lambda x: torch.distributions.Categorical(logits=x)],
    ids=["a dataclass", "a namespace", "a distribution"],
)
def test_an_output_inside_an_object_is_frozen(wrap: Callable[[Tensor], Any], prune_every_way: Any) -> None:
    class Wrapped(Two):
        def forward(self, x: Tensor) -> Any:
            return wrap(super().forward(x))

    pruned = prune_every_way(randomised(Wrapped)(), ROWS)
    assert "first.weight:0" in pruned.shrunk
    assert "last.weight:0" not in pruned.shrunk


def test_an_output_without_a_tensor_is_refused() -> None:
    class Silent(Two):
        def forward(self, x: Tensor) -> Any:
            return super().forward(x).tolist()

    with pytest.raises(CaptureError, match="returns no tensor: list"):
        sc.trace(Silent(), ROWS)


def test_an_output_that_is_random_cannot_be_proved_and_nobody_is_blamed() -> None:
    class Random(Two):
        def middle(self, x: Tensor) -> Tensor:
            return F.dropout(x, 0.5, training=True)

    model = Random()
    with pytest.raises(VerificationError, match="switch its randomness off"):
        sc.verify(model, sc.trace(model, ROWS).plan({"first": range(4)}), ROWS)


# What the model does


def test_a_branch_of_training_alone_still_runs() -> None:
    class Helped(Two):
        def __init__(self) -> None:
            super().__init__()
            self.helper = nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Any:
            x = self.first(x).relu()
            return (self.last(x), self.helper(x)) if self.training else self.last(x)

    model = Helped()
    small = sc.compact(model, sc.trace(model, ROWS).plan({"first": range(4)}))
    assert [out.shape for out in small.train()(ROWS)] == [(3, 5), (3, 5)]


@pytest.mark.parametrize("gather", ["index_add_", "scatter_add"])
def test_message_passing_leaves_the_features_free(gather: str, prune_every_way: Any) -> None:
    class Messages(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.node, self.message, self.out = nn.Linear(8, 8), nn.Linear(16, 8), nn.Linear(8, 5)

        def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
            x = self.node(nodes)
            source, target = edges
            messages = self.message(torch.cat([x[source], x[target]], -1)).relu()
            if gather == "index_add_":
                received = torch.zeros_like(x).index_add_(0, target, messages)
            else:
                received = torch.zeros_like(x).scatter_add(0, target[:, None].expand(-1, x.shape[1]), messages)
            out: Tensor = self.out(x + received)
            return out

    pruned = prune_every_way(randomised(Messages)(), (ROWS, EDGES))
    assert {"node.weight:0", "message.weight:0", "message.weight:1", "out.weight:1"} <= pruned.shrunk


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported:UserWarning")
def test_a_projection_as_wide_as_its_cell_is_refused_by_the_plan() -> None:
    class Projected(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm, self.last = nn.LSTM(8, 6, proj_size=3, batch_first=True), nn.Linear(3, 5)

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.last(self.lstm(x)[0])
            return out

    network = sc.trace(Projected(), TOKENS)
    cell = next(axis.name for axis in network.axes if axis.size == 6)
    assert network.plan({cell: range(4)})
    with pytest.raises(PlanError, match=r"projection narrower than its cell .*; the plan makes that 3 and 3"):
        network.plan({cell: range(3)})


@pytest.mark.filterwarnings("ignore::UserWarning:torch.nn.modules.transformer")
def test_an_encoder_with_padding_runs_without_a_head() -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
            self.encoder, self.last = nn.TransformerEncoder(layer, 2), nn.Linear(8, 5)

        def forward(self, x: Tensor, padding: Tensor) -> Tensor:
            out: Tensor = self.last(self.encoder(x, src_key_padding_mask=padding))
            return out

    model, inputs = randomised(Padded)(), (TOKENS, torch.tensor([[0, 0, 0, 1], [0, 0, 1, 1]]).bool())
    network = sc.trace(model, inputs)
    heads = next(axis.name for axis in network.axes if "self_attn" in axis.name and axis.size == 2)
    with torch.no_grad():
        assert sc.compact(model, network.plan({heads: [0]}))(*inputs).shape == (2, 4, 5)


def test_opened_attention_gives_what_the_layer_gives_where_all_keys_are_masked() -> None:
    layer = randomised(lambda: nn.MultiheadAttention(8, 2))()
    opened = randomised(lambda: nn.MultiheadAttention(8, 2))()
    open_module(opened)
    masked = {"key_padding_mask": torch.tensor([[0, 1], [0, 0], [1, 1], [0, 0]]).bool(), "need_weights": False}
    with torch.no_grad():
        # float32, values of order 1
        torch.testing.assert_close(
            opened(*[TOKENS] * 3, **masked)[0], layer(*[TOKENS] * 3, **masked)[0], rtol=0, atol=1e-6
        )
