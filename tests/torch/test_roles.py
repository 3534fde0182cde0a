"""What kind of units an axis has: stated by hand for every model of the zoo; here, what is told apart by little."""

from collections import Counter

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.axes import KINDS
from secateur.testing.zoo import ZOO
from secateur.torch import trace


def test_every_kind_is_that_of_some_axis_of_the_zoo() -> None:
    assert {axis.kind for entry in ZOO for axis in entry.axes} == {kind for kind, _ in KINDS}


class Conditioned(nn.Module):
    """A block as in diffusion models: the time is added to the hidden channels, the block to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.time = nn.Conv2d(3, 8, 3, padding=1), nn.Linear(4, 6)
        self.first, self.second = nn.Conv2d(8, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        x = self.stem(x)
        hidden = F.silu(self.first(x) + self.time(time)[:, :, None, None])
        out: Tensor = self.head((x + self.second(hidden)).mean((2, 3)))
        return out


def test_an_addition_makes_a_residual_stream_only_where_a_branch_comes_back() -> None:
    network = trace(Conditioned(), (torch.randn(2, 3, 6, 6), torch.randn(2, 4)))
    assert {axis.name: axis.kind for axis in network.axes} == {"stem": "residual", "time": "channels"}


class Modulated(nn.Module):
    """Classes are looked up, and scale what a convolution writes; another table is read as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.words = nn.Embedding(5, 6), nn.Embedding(7, 4)
        self.conv, self.head = nn.Conv1d(3, 6, 3), nn.Conv1d(6, 2, 1)
        self.text = nn.Conv1d(4, 2, 3)

    def forward(self, x: Tensor, label: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        return self.head(self.conv(x) * self.scale(label)[..., None]), self.text(self.words(words).mT)


def test_a_table_that_modulates_channels_leaves_them_channels() -> None:
    inputs = (torch.randn(2, 3, 9), torch.tensor([1, 2]), torch.ones(2, 6, dtype=torch.int64))
    network = trace(Modulated(), inputs)
    assert {axis.name: axis.kind for axis in network.axes} == {"scale": "channels", "words": "embedding"}


class Normalised(nn.Module):
    """Weights divided by a norm that products compute, as by spectral normalisation: they are weights all the same."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(6, 4)), nn.Linear(6, 2)
        self.register_buffer("left", torch.randn(6))
        self.register_buffer("right", torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        norm = torch.dot(self.left, self.weight @ self.right)
        out: Tensor = self.head(F.relu(F.linear(x, self.weight / norm)))
        return out


def test_weights_divided_by_a_computed_number_are_weights() -> None:
    assert [axis.kind for axis in trace(Normalised(), torch.randn(2, 4)).axes] == ["neurons"]


class Attention(nn.Module):
    """Attention of 8 query heads over as many key-value heads as asked for, with a mask that is repeated for each head."""

    def __init__(self, shared: int) -> None:
        super().__init__()
        self.heads, self.shared = 8, shared
        self.q, self.k, self.v = nn.Linear(6, 8 * 3), nn.Linear(6, shared * 3, bias=False), nn.Linear(6, shared * 3)
        self.out = nn.Linear(8 * 3, 6)

    def forward(self, x: Tensor) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
        k, v = (layer(x).unflatten(-1, (self.shared, -1)).transpose(1, 2) for layer in (self.k, self.v))
        k, v = (t[:, :, None].expand(-1, -1, self.heads // self.shared, -1, -1).flatten(1, 2) for t in (k, v))
        mask = torch.zeros(x.shape[0], 1, x.shape[1], x.shape[1]).expand(-1, self.heads, -1, -1)
        y = torch.softmax(q @ k.mT + mask, dim=-1) @ v
        out: Tensor = self.out(y.transpose(1, 2).flatten(2))
        return out


@pytest.mark.parametrize(("shared", "kinds"), [(1, {"heads": 8}), (2, {"kv_groups": 2, "heads": 4}), (8, {"heads": 8})])
def test_query_heads_are_told_from_groups_that_share_keys_and_values(shared: int, kinds: dict[str, int]) -> None:
    axes = trace(Attention(shared), torch.randn(2, 5, 6)).axes
    assert {axis.kind: axis.size for axis in axes if axis.size != 3} == kinds
    assert {axis.kind for axis in axes if axis.size == 3} == {"qk_width", "v_width"}


def test_axes_that_one_module_holds_first_are_told_apart_by_their_kinds() -> None:
    names = [axis.name for axis in trace(Attention(2), torch.randn(2, 5, 6)).axes]
    assert sorted(names) == ["q.heads", "q.kv_groups", "q.qk_width", "v"]


def test_resnets_have_residual_streams_and_vision_transformers_heads() -> None:
    models = pytest.importorskip("timm.models", reason="timm is not installed: make zoo")
    resnet = trace(models.create_model("resnet18"), torch.zeros(1, 3, 64, 64))
    assert Counter((axis.kind, axis.size) for axis in resnet.axes) == {
        **{("channels", width): 2 for width in (64, 128, 256, 512)},
        **{("residual", width): 1 for width in (64, 128, 256, 512)},
    }
    transformer = trace(models.create_model("vit_tiny_patch16_224"), torch.zeros(1, 3, 224, 224))
    assert Counter((axis.kind, axis.size) for axis in transformer.axes) == {
        ("residual", 192): 1, ("heads", 3): 12, ("neurons", 768): 12,
    }  # fmt: skip


def test_llamas_have_groups_of_heads_that_share_keys_and_values() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    config = transformers.LlamaConfig(
        hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=6, num_key_value_heads=3,
        vocab_size=50,
        use_cache=False,
    )  # fmt: skip
    network = trace(transformers.LlamaForCausalLM(config), {"input_ids": torch.ones(1, 5, dtype=torch.int64)})
    found = {axis.name: axis.kind for axis in network.axes if ".1." in axis.name}
    assert found == {
        "model.layers.1.mlp.gate_proj": "neurons",
        "model.layers.1.self_attn.q_proj.kv_groups": "kv_groups",
        "model.layers.1.self_attn.q_proj.heads": "heads",
    }
