"""Branches of models of other libraries, untouched; without these libraries the tests are skipped."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.axes import BRANCHES
from secateur.torch.verify import difference


def check(model: nn.Module, inputs: Tensor | Mapping[str, Tensor], names: list[str]) -> None:
    """The branches have these names; without every other one, parameters, outputs and proof are as predicted."""
    network = sc.trace(model.eval(), inputs)
    assert [branch.name for branch in network.branches] == names
    plan = network.plan({BRANCHES: range(0, len(names), 2)})
    proof, small = sc.verify(model, plan, inputs), sc.compact(model, plan)
    assert proof.zero_is_prune <= proof.tolerance
    assert sum(p.numel() for p in small.parameters()) == network.cost(plan).parameters
    run = small(**inputs) if isinstance(inputs, Mapping) else small(inputs)
    dense = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    assert difference(run, dense) > 1e-6


def test_blocks_of_a_resnet_but_those_that_downsample() -> None:
    models = pytest.importorskip("torchvision", reason="torchvision is not installed: make zoo").models
    names = ["layer1.0", "layer1.1", "layer2.1", "layer3.1", "layer4.1"]
    check(models.resnet18(), torch.randn(1, 3, 32, 32), names)


def test_attention_and_mlp_of_a_vision_transformer() -> None:
    models = pytest.importorskip("timm.models", reason="timm is not installed: make zoo")
    names = [f"blocks.{i}.{part}" for i in range(6) for part in ("attn", "mlp")]
    check(models.create_model("test_vit"), torch.randn(1, 3, 160, 160), names)


def test_attention_and_mlp_of_a_llama() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    config = transformers.LlamaConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=50,
        use_cache=False,
    )
    names = [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn", "mlp")]
    check(transformers.LlamaForCausalLM(config), {"input_ids": torch.arange(6)[None]}, names)
