"""The models that the tools analyse, and example inputs for each."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Inputs = torch.Tensor | Mapping[str, torch.Tensor]
TOKENS = 128

LLAMA: Mapping[str, Mapping[str, Any]] = {
    "Llama 1B": {
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "tie_word_embeddings": True,
    },
    "Llama 8B": {
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "Llama 70B": {
        "hidden_size": 8192,
        "intermediate_size": 28672,
        "num_hidden_layers": 80,
        "num_attention_heads": 64,
        "num_key_value_heads": 8,
    },
    "Llama 405B": {
        "hidden_size": 16384,
        "intermediate_size": 53248,
        "num_hidden_layers": 126,
        "num_attention_heads": 128,
        "num_key_value_heads": 8,
    },
}
"""The sizes of Llama 3.2 1B, Llama 3.1 8B, 70B and 405B."""


def image_model(name: str) -> tuple[nn.Module, Inputs]:
    """A model of torchvision, not pretrained, on the CPU."""
    allow_torchvision()
    import torchvision

    return torchvision.models.get_model(name, weights=None), torch.zeros(1, 3, 224, 224)


def bert() -> tuple[nn.Module, Inputs]:
    """BERT-base, not pretrained, on the CPU."""
    allow_torchvision()
    from transformers import BertConfig, BertModel

    return BertModel(BertConfig()), {"input_ids": torch.ones(1, TOKENS, dtype=torch.int64)}


def llama(name: str) -> tuple[nn.Module, Inputs]:
    """A language model of the Llama architecture, without memory for its weights."""
    allow_torchvision()
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**LLAMA[name], vocab_size=128256, max_position_embeddings=131072, use_cache=False)
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    return model, {"input_ids": torch.ones(1, TOKENS, dtype=torch.int64)}


def mixture() -> tuple[nn.Module, Inputs]:
    """A mixture of 256 experts in 58 of 61 layers: the sizes of DeepSeek-V3, without memory for its weights."""
    allow_torchvision()
    from transformers import DeepseekV3Config, DeepseekV3ForCausalLM

    with torch.device("meta"):
        model = DeepseekV3ForCausalLM(DeepseekV3Config(use_cache=False)).to(torch.bfloat16)
    return model, {"input_ids": torch.ones(1, TOKENS, dtype=torch.int64)}


def denoiser() -> tuple[nn.Module, Inputs]:
    """The U-Net of Stable Diffusion 1.5, without memory for its weights."""
    allow_torchvision()
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        model = UNet2DConditionModel(
            sample_size=64, cross_attention_dim=768, attention_head_dim=8, block_out_channels=(320, 640, 1280, 1280)
        )
    return model, {
        "sample": torch.zeros(1, 4, 64, 64),
        "timestep": torch.tensor([10]),
        "encoder_hidden_states": torch.zeros(1, 77, 768),
    }


def deep_network() -> tuple[nn.Module, Inputs]:
    """A ResNet of 200 layers (He et al. 2016, Identity Mappings), not pretrained, on the CPU."""
    allow_torchvision()
    from torchvision.models.resnet import Bottleneck, ResNet

    return ResNet(Bottleneck, [3, 24, 36, 3]), torch.zeros(1, 3, 224, 224)


MODELS: Mapping[str, Callable[[], tuple[nn.Module, Inputs]]] = {
    "ResNet-50": lambda: image_model("resnet50"),
    "MobileNetV3-Large": lambda: image_model("mobilenet_v3_large"),
    "ViT-B/16": lambda: image_model("vit_b_16"),
    "Swin-T": lambda: image_model("swin_t"),
    "BERT-base": bert,
    "ResNet-200": deep_network,
    "Stable Diffusion U-Net": denoiser,
    "DeepSeek-V3": mixture,
    **{name: lambda name=name: llama(name) for name in LLAMA},
}


def allow_torchvision() -> None:
    """Declare the operators without which torchvision cannot be imported beside a torch built for the CPU alone."""
    if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _KEPT.append(library)


_KEPT: list[object] = []
"""A library's declarations last as long as the object."""
