"""Every architecture of transformers, small: one rule for all configurations.

All widths of a configuration are divided by one number, so that whatever was a multiple of something else, or its sum, still is:
heads times their width, a stack of projections, what one part of a model hands to another. Of the layers a few of each kind
stay, experts become few, the vocabulary short.
"""

import copy
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
from models.tiny_calls import CannotBuildError, calls
from torch import nn

TASKS = (
    "ImageTextToText",
    "MaskedLM",
    "Seq2SeqLM",
    "SpeechSeq2Seq",
    "CausalLM",
    "CTC",
    "ImageClassification",
    "VideoClassification",
    "AudioClassification",
    "ObjectDetection",
    "SemanticSegmentation",
    "UniversalSegmentation",
    "DepthEstimation",
    "ImageToImage",
    "SequenceClassification",
)
"""What models are used for, the most telling first."""

DIVISORS, MORE = (16, 8, 4, 2, 1), (32,)
WIDTH, LAYERS, MANY, KINDS, EXPERTS, CHOSEN, VOCABULARY, POSITIONS, FRAMES = 16, 2, 12, 4, 8, 2, 512, 2048, 100
ENOUGH = 12
SMALL, LARGE = 36_000_000, 450_000_000

UNSET: Mapping[str, int | str] = {
    "default_language": "en_XX",
    "vocab_size": 64,
    "prediction_length": 16,
    "num_experts_per_tok": 2,
    "num_key_value_heads": 8,
    **{f"{kind}_token_{end}": 1 for kind in ("pad", "image", "video", "audio") for end in ("id", "index")},
}
"""What some configurations leave open."""

DEPTH = r"^(num_hidden_layers|num_layers|n_layers?|depth|layers|encoder_layers)$"
CHOICE = r"(indices|indexes|idxs|layer_ids|_layers)$"
TOKEN = r"(_token_(id|ids|index)|_id|mask_index|unk_index)$"
HEAD = r"head|rank|kv|rope|state|section"
HEAD_WIDTH = r"head_(dim|size)|headdim|_section$|d_kv|(dim|d)_head$|kv_channels|rotary_dim"
INSIDE = r"intermediate_size|ffn_(hidden_)?(dim|size)$|^d_(ff|inner)$|^n_inner$|^dff$"
HEADS = r"heads(_|$)|n_heads?$"
STACKS = r"(layers?|blocks|depths?|blocks_per_stage|attends_per_block)$|num_(encoder|decoder|hidden)?_?(layers|blocks)|layers_per"
NUMBERS: Mapping[str, Any] = {
    r"vocab(_|$)": lambda n, _: min(n, VOCABULARY),
    r"^max_source_positions$": lambda n, _: min(n, FRAMES),
    r"(max|n)_.*position": lambda n, _: min(n, POSITIONS),
    STACKS: None,
    r"(period|interval|every_n|sparse_step)": lambda n, _: min(n, 2),
    r"first_k_dense|(layer|period)_offset$": lambda n, _: min(n, 1),
    r"^(image|img|max_image|pretrain_image)_size$": lambda n, _: n // 4 if n >= 512 and n % 128 == 0 else n,
    r"^image_embedding_size$": lambda n, _: n // 4 or n,
    r"tokens_per_image": lambda n, _: n // 16 or n,
    r"experts_per_tok|moe_(top_?)?k$|num_selected_experts": lambda n, _: min(n, CHOSEN),
    r"experts$": lambda n, _: min(n, EXPERTS),
    r"^n_group$|^topk_group$|expert_group": lambda n, _: min(n, 1),
    r"groups$": lambda n, divisor: max(min(n, 2), n // divisor),
    r"image|patch_(?!embed)|patches|kernel|window|chunk|codebook_size|block_size|batch|crop|mask_size|merge_size|spec_size|frame_size|stride"
    r"|audio_channels|(feature|input|freq)_size|num_.*heads|factor|max_|token|feat_sizes|roi_|position": (
        lambda n, _: n
    ),
    r"(size|sizes|dim|dims|rank|width|section)(_\w+)?$|dim|channel|hidden|planes|filters|units$|feats$"
    r"|^(d_(model|latents)|n_embd|mamba_d_ssm)$": (
        lambda n, divisor: n // divisor if n % divisor == 0 and n // divisor >= WIDTH // 2 else n
    ),
}
"""What becomes of a number when widths are divided, by the first pattern that its name fits."""

WIDE = list(NUMBERS)[-1]


def tiny_transformer(architecture: str) -> tuple[nn.Module, dict[str, Any]]:
    """A small model of an architecture, by its `model_type`, and the inputs of one call.

    Raises:
        CannotBuildError: No size that was tried makes a model that runs; it says what the attempts ended with.
    """
    failures: Counter[str] = Counter()
    refused: set[tuple[Scale, int]] = set()
    for (rich, most), scale in product(((True, SMALL), (True, LARGE), (False, LARGE)), scales(architecture)):
        if (scale, most) in refused:
            continue
        try:
            model = small(architecture, scale, most)
        except ImportError as error:
            raise CannotBuildError(f"{architecture} needs another package: {first_line(error)}") from error
        except Exception as error:  # noqa: BLE001 - a configuration may refuse sizes in any way
            refused.add((scale, most))
            failures[first_line(error)] += 1
            if failures[first_line(error)] == ENOUGH:
                break
            continue
        for inputs in calls(model, rich):
            try:
                with torch.no_grad():
                    copy.deepcopy(model)(**inputs)  # a model may keep what it computes
            except Exception as error:  # noqa: BLE001 - whatever it says, it wants something else
                failures[f"called with {', '.join(inputs)}: {first_line(error)}"] += 1
                continue
            return with_head(model, inputs), inputs
    raise CannotBuildError(f"{architecture}: {'; '.join(failures)}")


def with_head(model: Any, inputs: dict[str, Any]) -> nn.Module:
    """The model for the first of the tasks that has one; itself where none runs on the same inputs.

    What a bare model gives are its hidden states, so that their width has to stay.
    """
    import transformers

    for task in TASKS:
        try:
            whole = getattr(transformers, f"AutoModelFor{task}").from_config(model.config, attn_implementation="eager")
            with torch.no_grad():
                copy.deepcopy(whole.eval())(**inputs)
        except Exception:  # noqa: BLE001 - there is no such head, or it wants something else
            continue
        return whole
    return model


def first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')[:200]}"


class Scale(NamedTuple):
    """What widths are divided by, and whether heads become narrower or fewer."""

    divisor: int
    narrow_heads: bool
    layers: int = LAYERS


def scales(architecture: str) -> list[Scale]:
    """How small a model may be, best first: nothing becomes narrower than `WIDTH` but what was, if that is enough."""
    entries = default(architecture)
    widths = [n for n in _widths(entries, within_heads=False) if n >= 4 * WIDTH]
    heads = [n for n in _widths(entries, within_heads=True) if n >= 2 * WIDTH]
    good = [divisor for divisor in DIVISORS if min(widths, default=divisor * WIDTH) // divisor >= WIDTH] or [1]
    narrow = [d for d in good if all(n % (4 * d) == 0 and n // d >= WIDTH // 2 for n in heads)]
    best = [Scale(divisor, kind) for divisor in good for kind in (True, False) if divisor in narrow or not kind]
    rest = [Scale(divisor, kind) for divisor in (*MORE, *reversed(DIVISORS)) for kind in (True, False)]
    return [*best[:2], Scale(good[0], True, MANY), *best[2:], *(scale for scale in rest if scale not in best)]


def _widths(entries: Any, within_heads: bool) -> Iterator[int]:
    for name, value in dict(entries).items():
        if hasattr(value, "to_dict"):
            yield from _widths(vars(value), within_heads)
        elif isinstance(value, dict):
            yield from _widths(value, within_heads)
        elif (
            re.search(HEAD_WIDTH, str(name)) if within_heads else _rule(str(name)) == WIDE and not re.search(HEAD, name)
        ):
            yield from (n for n in (value if isinstance(value, (list, tuple)) else [value]) if type(n) is int)
    heads = entries.get("num_attention_heads", entries.get("num_heads"))
    width = entries.get("embed_dim", entries.get("hidden_size", entries.get("d_model")))
    if within_heads and type(heads) is int and type(width) is int and entries.get("head_dim") is None:
        yield width // heads


def default(architecture: str) -> dict[str, Any]:
    """The entries of an architecture's configuration as it comes."""
    return vars(configuration(architecture))


def configuration(architecture: str) -> Any:
    """An architecture's configuration as it comes, with what it leaves open set."""
    from transformers import CONFIG_MAPPING

    cls = CONFIG_MAPPING[architecture]
    config = cls()
    unset = {name: value for name, value in UNSET.items() if vars(config).get(name, value) is None}
    return cls(**unset) if unset else config


def small(architecture: str, scale: Scale, most: int) -> nn.Module:
    """A model of an architecture with few layers and at most so many parameters, its widths divided."""
    config = configuration(architecture)
    shrink(config, scale, {})
    make = maker_of(config)
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in make().parameters())
    if size > most:
        raise CannotBuildError(f"{size:,} parameters")
    return make(attn_implementation="eager").eval()


def maker_of(config: Any) -> Callable[..., Any]:
    """Makes the model of a configuration, which may be of a part of the configuration only."""
    from transformers import MODEL_MAPPING, AutoModel

    model = MODEL_MAPPING[type(config)]
    kind = getattr(model, "config_class", None)
    parts = [part for part in vars(config).values() if kind is not None and isinstance(part, kind)]
    if kind is None or isinstance(config, kind) or not parts:
        return partial(AutoModel.from_config, config)
    return partial(model._from_config, parts[0])


def shrink(config: Any, scale: Scale, tokens: dict[str, int]) -> None:
    """Make a configuration small, and those in it; tokens of one name have one id."""
    for name, value in UNSET.items():
        if vars(config).get(name, value) is None:
            setattr(config, name, value)
    kept = keep_layers(config)
    for name, value in list(vars(config).items()):
        if hasattr(value, "to_dict"):
            shrink(value, scale, tokens)
        elif re.search(TOKEN, name) and _ids(value):
            ids = [tokens.setdefault(f"{name}{n}", len(tokens) + 2) for n in _ids(value)]
            setattr(config, name, ids if isinstance(value, list) else ids[0])
        elif not name.startswith("_") and name not in kept:
            setattr(config, name, shrunk(name, value, scale))
    if (
        hasattr(config, "vision_config")
        and hasattr(config, "text_config")
        and hasattr(config.vision_config, "out_hidden_size")
    ):
        config.vision_config.out_hidden_size = config.text_config.hidden_size
    heads, width = (vars(config).get(name) for name in ("num_attention_heads", "hidden_size"))
    if type(heads) is int and type(width) is int and vars(config).get("head_dim") is None:
        config.num_attention_heads = next(n for n in range(heads, 0, -1) if width % n == 0)
        if "head_dim" in vars(config):
            config.head_dim = width // config.num_attention_heads
    side, patch = (getattr(config, name, None) for name in ("image_size", "patch_size"))
    if type(side) is int and type(patch) is int and side > 4 * patch:
        config.image_size = side // patch // 4 * 4 * patch
    for name in ("use_cache", "return_dict_in_generate"):
        if hasattr(config, name):
            setattr(config, name, False)


def _ids(value: Any) -> list[int]:
    found = value if isinstance(value, list) else [value]
    return found if all(type(n) is int and n >= 0 for n in found) else []


def keep_layers(config: Any) -> set[str]:
    """Keep a few layers of each kind: what differs by layer are lists as long as there are layers, and lists of indices.

    Returns:
        The names of the entries that were set.
    """
    entries = vars(config)
    depths = [n for n in entries if re.search(DEPTH, n) and type(entries[n]) is int and entries[n] > 0]
    if not depths:
        return set()
    depth = entries[depths[0]]
    lists = {n: v for n, v in entries.items() if isinstance(v, (list, tuple)) and v}
    by_layer = {n: v for n, v in lists.items() if len(v) == depth > LAYERS}
    chosen = {
        n: v
        for n, v in lists.items()
        if n not in by_layer and re.search(CHOICE, n) and all(type(i) is int and -depth <= i <= depth for i in v)
    }
    all_of = {i for v in chosen.values() if len(v) <= KINDS for i in v if 0 <= i < depth}
    kinds: dict[str, int] = {}
    for layer in range(depth):
        kinds.setdefault(str([v[layer] for v in by_layer.values()] + [layer in v for v in chosen.values()]), layer)
    kept = sorted(all_of | set(list(kinds.values())[:KINDS]))
    kept = sorted({*kept, *[i for i in range(depth) if i not in kept][: max(0, LAYERS - len(kept))]})
    for name, value in by_layer.items():
        setattr(config, name, type(value)(value[i] for i in kept))
    for name, value in chosen.items():
        places = [
            i if i < 0 else len(kept) if i == depth else kept.index(i) for i in value if i in kept or not 0 <= i < depth
        ]
        setattr(config, name, type(value)(places))
    setattr(config, depths[0], len(kept))
    return {depths[0], *by_layer, *chosen}


def _rule(name: str) -> str | None:
    return next((pattern for pattern in NUMBERS if re.search(pattern, name)), None)


def shrunk(name: str, value: Any, scale: Scale) -> Any:
    """What becomes of one entry of a configuration."""
    if isinstance(value, dict):
        return {key: shrunk(str(key), entry, scale) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(shrunk(name, entry, scale) for entry in value)
    if type(value) is not int:
        return value
    if re.search(HEAD_WIDTH, name):
        return value // scale.divisor if scale.narrow_heads and value % scale.divisor == 0 else value
    if re.search(HEADS, name):
        return value if scale.narrow_heads else max(min(value, 2), value // scale.divisor)
    if re.search(INSIDE, name) and value >= 2 * WIDTH:
        return max(WIDTH, round(value / scale.divisor / WIDTH) * WIDTH)
    rule = _rule(name)
    return (
        value if rule is None else min(value, scale.layers) if rule == STACKS else NUMBERS[rule](value, scale.divisor)
    )
