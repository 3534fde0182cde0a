"""Pruned models of transformers in its own format: the configuration is found, and what differs is refused by name."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.artefact import save_pretrained
from secateur.artefact.pretrained import uniform_config
from secateur.errors import ArtefactError

TOKENS = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))


@dataclass
class Config:
    """One for all layers; where the width of the heads is left out, it is what the stream has for each."""

    dim: int = 12
    hidden: int = 10
    heads: int = 4
    head_dim: int | None = None
    hidden_layers: int = 2


class Layer(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.head_dim = config.head_dim or config.dim // config.heads
        self.qkv = nn.Linear(config.dim, 3 * config.heads * self.head_dim)
        self.proj = nn.Linear(config.heads * self.head_dim, config.dim)
        self.up, self.down = nn.Linear(config.dim, config.hidden), nn.Linear(config.hidden, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).view(*x.shape[:2], 3, -1, self.head_dim).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (0.3 * q @ k.transpose(-2, -1)).softmax(-1)
        x = x + self.proj((weights @ v).transpose(1, 2).flatten(2))
        out: Tensor = x + self.down(self.up(x).relu())
        return out


class Model(nn.Module):
    def __init__(self, config: Config) -> None:
        super().__init__()
        self.config = config
        self.embed, self.head = nn.Linear(5, config.dim), nn.Linear(config.dim, 2)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.hidden_layers))

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        out: Tensor = self.head(x)
        return out


def pruned(**left: tuple[int, ...]) -> Model:
    """A model in which of each axis through these tensors that many units are left, layer by layer."""
    model = Model(Config()).eval()
    network = sc.trace(model, torch.randn(2, 6, 5))
    kept: dict[str, range] = {}
    for i in range(2):
        slots = {
            "hidden": (f"layers.{i}.up.weight", 10),
            "heads": (f"layers.{i}.qkv.weight", 4),
            "dim": ("embed.weight", 12),
        }
        for name, numbers in left.items():
            tensor, size = slots[name]
            (axis,) = [
                a for a in network.axes if a.size == size and any(s.tensor == tensor and s.dim == 0 for s in a.slots)
            ]
            kept[axis.name] = range(numbers[i])
    small = sc.compact(model, network.plan(kept))
    assert isinstance(small, Model)
    return small


def test_the_configuration_of_a_uniform_model_is_found() -> None:
    assert uniform_config(pruned(hidden=(7, 7))) == Config(hidden=7)


def test_a_size_that_the_configuration_left_out_is_written_into_it() -> None:
    assert uniform_config(pruned(heads=(3, 3))) == Config(heads=3, head_dim=3)
    assert uniform_config(pruned(dim=(8, 8))) == Config(dim=8, head_dim=3)


def test_the_models_own_configuration_stays() -> None:
    small = pruned(hidden=(7, 7))
    uniform_config(small)

    assert small.config == Config()
    assert type(small.config.hidden) is int


def test_layers_that_differ_are_named() -> None:
    wanted = r"one config.hidden for all: it would have to be 6 for layers.1.up.weight:0; .* 7 for layers.0.up.weight:0"
    with pytest.raises(ArtefactError, match=wanted):
        uniform_config(pruned(hidden=(7, 6)))


def test_shapes_that_no_configuration_gives_are_named() -> None:
    model = Model(Config(head_dim=3)).eval()
    model.layers.append(Layer(model.config))

    with pytest.raises(ArtefactError, match=r"no configuration of .*Model gives .* layers.2.qkv.weight has \[36, 12\]"):
        uniform_config(model)


def test_a_model_of_no_library_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"Model is no model of transformers: save it with secateur.save"):
        save_pretrained(pruned(), tmp_path, torch.randn(2, 6, 5))


def tiny(architecture: str) -> Any:
    """A model of transformers with random weights, biases and gains."""
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    settings = {"vocab_size": 96, "bos_token_id": 1, "eos_token_id": None, "pad_token_id": 0, "use_cache": False}
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 8}
    grouped = settings | sizes | {"num_key_value_heads": 2}
    own = {
        "Llama": grouped,
        "Qwen3Moe": grouped | {"head_dim": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24},
        "Mixtral": grouped | {"num_local_experts": 4},
        "GPT2": settings | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        "T5": settings
        | {"d_model": 32, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 0},
    }[architecture]
    head = {"GPT2": "LMHeadModel", "T5": "ForConditionalGeneration"}.get(architecture, "ForCausalLM")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = getattr(transformers, architecture + head)(getattr(transformers, f"{architecture}Config")(**own)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def inputs_of(architecture: str) -> Any:
    if architecture == "T5":
        return {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5]}
    ragged = torch.ones_like(TOKENS)
    ragged[0, :3] = 0
    return [{"input_ids": TOKENS}, {"input_ids": TOKENS, "attention_mask": ragged}]


def generated(model: Any, **options: Any) -> Tensor:
    tokens: Tensor = model.generate(TOKENS, max_new_tokens=8, do_sample=False, **options)
    return tokens


def smaller(network: sc.TracedNetwork, exact: bool) -> dict[str, range]:
    """Two thirds of the units of the exact axes, or of all."""
    return {
        axis.name: range(max(axis.size * 2 // 3 // axis.step * axis.step, axis.least, 1))
        for axis in network.axes
        if axis.exact or not exact
    }


ARCHITECTURES = ["Llama", "Qwen3Moe", "Mixtral", "GPT2", "T5"]


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pruned_model_generates_with_its_cache_what_the_masked_one_does(architecture: str) -> None:
    model = tiny(architecture)
    network = sc.trace(model, inputs_of(architecture))
    plan = network.plan(smaller(network, exact=True))
    small, masked = sc.compact(model, plan), sc.mask(model, plan)

    assert len(plan.tensors) > 4
    assert torch.equal(generated(small, use_cache=True), generated(masked, use_cache=True))
    if architecture != "T5":
        mask = inputs_of(architecture)[1]["attention_mask"]
        assert torch.equal(generated(small, attention_mask=mask), generated(masked, attention_mask=mask))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_pruned_model_is_loaded_and_generates_as_without_a_cache(architecture: str, tmp_path: Path) -> None:
    model = tiny(architecture)
    network = sc.trace(model, inputs_of(architecture))
    small = sc.compact(model, network.plan(smaller(network, exact=False)))
    sc.save(small, tmp_path)
    again = sc.load(tiny(architecture), tmp_path)

    assert torch.equal(generated(again, use_cache=True), generated(small, use_cache=False))


@pytest.mark.parametrize(
    ("architecture", "exclude", "integers"),
    [
        # Its own rule: the stream is as wide as a multiple of the number of heads.
        ("Llama", ("model.rotary_emb.inv_freq", "model.embed_tokens"), {"intermediate_size", "num_attention_heads"}),
        ("Qwen3Moe", ("model.rotary_emb.inv_freq",), {"hidden_size", "moe_intermediate_size", "num_attention_heads"}),
        (
            "Mixtral",
            ("model.rotary_emb.inv_freq",),
            {"hidden_size", "intermediate_size", "num_attention_heads", "head_dim"},
        ),
        ("GPT2", ("*.attn", "*.wte"), {"n_inner"}),
        ("T5", (), {"d_ff", "num_heads", "d_kv"}),
    ],
)
def test_a_uniform_model_is_opened_by_transformers(
    architecture: str, exclude: tuple[str, ...], integers: set[str], tmp_path: Path
) -> None:
    model = tiny(architecture)
    inputs = inputs_of(architecture)
    network = sc.trace(model, inputs)
    scores = {axis.name: torch.rand(axis.size).numpy() for axis in network.axes}
    plan = sc.allocate.Uniform(sc.Budget(params=0.5), exclude=exclude, alike=True)(network, scores)
    small: Any = sc.compact(model, plan)
    config = save_pretrained(small, tmp_path, inputs)

    import transformers

    kind = transformers.AutoModelForSeq2SeqLM if architecture == "T5" else transformers.AutoModelForCausalLM
    opened = kind.from_pretrained(tmp_path)
    changed = {name for name, value in vars(model.config).items() if vars(config).get(name) != value}
    assert changed >= integers
    assert torch.equal(generated(opened), generated(small))


def test_what_the_class_computes_anew_is_refused_by_name(tmp_path: Path) -> None:
    model = tiny("Llama")
    network = sc.trace(model, {"input_ids": TOKENS})
    rotary = [a.name for a in network.axes if any(slot.tensor == "model.rotary_emb.inv_freq" for slot in a.slots)]
    small = sc.compact(model, network.plan({name: range(1) for name in rotary}))

    with pytest.raises(ArtefactError, match=r"other results .*; it computes .*inv_freq, which .*scaling, which is"):
        save_pretrained(small, tmp_path, {"input_ids": TOKENS})
    assert list(tmp_path.iterdir()) == []
