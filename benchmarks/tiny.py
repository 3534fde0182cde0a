"""Every architecture of transformers, small: one rule for all configurations.

All widths of a configuration are divided by one number, so that whatever was a multiple of something else, or its sum, still is:
heads times their width, a stack of projections, what one part of a model hands to another. Layers and experts become few, the
vocabulary short, images small.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

DIVISOR = 8
LAYERS, EXPERTS, CHOSEN, VOCABULARY, TOKENS = 2, 8, 2, 512, 12

NUMBERS: Mapping[str, Any] = {
    r"vocab": lambda n: min(n, VOCABULARY),
    r"(num_|n_)?(hidden_|encoder_|decoder_)?(layers?|blocks)$|^depth$|num_.*_layers$": lambda n: min(n, LAYERS),
    r"experts_per_tok|moe_k$|moe_topk|num_selected_experts": lambda n: min(n, CHOSEN),
    r"(num|n|routed|local).*experts$": lambda n: min(n, EXPERTS),
    r"^n_group$|^topk_group$": lambda n: min(n, 1),
    r"image_size|patch|kernel|window|position|token|length|chunk|codebook|group|stride|num_|n_heads|^max_": lambda n: n,
    r"(size|sizes|dim|dims|rank|width|d_model|n_embd|n_inner|d_ff|d_kv|channels|filters|hidden)(_\w+)?$": lambda n: (
        n // DIVISOR if n >= 4 * DIVISOR and n % DIVISOR == 0 else n
    ),
}
"""What becomes of a number, by the first pattern that its name fits."""


def tiny_transformer(architecture: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """A small model of an architecture, by its `model_type`, and the inputs of one call."""
    from transformers import CONFIG_MAPPING, AutoModel

    config = CONFIG_MAPPING[architecture]()
    shrink(config)
    model = AutoModel.from_config(config, attn_implementation="eager").eval()
    everything = inputs_of(model, every=True)
    for inputs in (inputs_of(model, every=False), everything):
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception:  # noqa: BLE001 - whatever it says, it wants something else
            continue
        return model, inputs
    raise UnknownInputsError(f"{architecture} runs neither on its main input nor on all of {', '.join(everything)}")


class UnknownInputsError(Exception):
    """A model wants inputs that nobody here knows how to make."""


def shrink(config: Any) -> None:
    """Make a configuration small, and those in it."""
    ids = 1
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrink(value)
        elif name.endswith(("_token_id", "_token_index")) and isinstance(value, int):
            ids += 1
            setattr(config, name, ids)
        elif not name.startswith("_"):
            setattr(config, name, shrunk(name, value))
    if vars(config).get("layer_types"):
        config.layer_types = config.layer_types[:LAYERS]
    for name in ("use_cache", "return_dict_in_generate"):
        if hasattr(config, name):
            setattr(config, name, False)


def shrunk(name: str, value: Any) -> Any:
    """What becomes of one entry of a configuration."""
    if name == "depths" and isinstance(value, (list, tuple)):
        return type(value)(min(n, LAYERS) for n in value)
    if isinstance(value, (list, tuple)) and value and all(type(n) is int for n in value):
        return type(value)(shrunk(name, n) for n in value)
    if type(value) is not int:
        return value
    rule = next((rule for pattern, rule in NUMBERS.items() if re.search(pattern, name)), None)
    return value if rule is None else rule(value)


def inputs_of(model: nn.Module, every: bool) -> dict[str, Tensor]:
    """What one call of a model takes, by the names of its arguments: its main input, or all that it has a name for."""
    config: Any = model.config
    names = inspect.signature(model.forward).parameters
    vision = getattr(config, "vision_config", config)
    side = getattr(vision, "image_size", 32) or 32
    height, width = side if isinstance(side, (list, tuple)) else (side, side)
    text = torch.arange(TOKENS).remainder(50).add(100)[None]
    found = {
        "input_ids": text,
        "pixel_values": torch.rand(1, getattr(vision, "num_channels", 3), height, width),
        "input_features": torch.rand(
            1, getattr(config, "num_mel_bins", 80), 2 * getattr(config, "max_source_positions", 100)
        ),
        "input_values": torch.rand(1, 4000),
    }
    main = getattr(model, "main_input_name", "input_ids")
    wanted = names if every or main not in found else [main]
    chosen = {name: found[name] for name in wanted if name in found}
    if "decoder_input_ids" in names:
        chosen["decoder_input_ids"] = text
    return chosen
