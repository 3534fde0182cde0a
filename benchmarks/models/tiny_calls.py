"""What to call a model of transformers with: candidates, by the names of its arguments and the sizes in its configuration."""

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

TOKENS, SAMPLES, FRAMES, GRID = 12, 7680, 200, 4
KINDS = ("image", "video", "audio")
SPARE = {"attention_mask", "inputs_embeds", "hidden_states", "query_embeds", "encoder_hidden_states"}
"""What is given only where it must be."""

Inputs = dict[str, Any]
Maker = Callable[["Sizes"], Inputs]


class CannotBuildError(Exception):
    """An architecture that cannot be made small, or wants inputs that nobody here knows how to make."""


def calls(model: nn.Module, rich: bool) -> Iterator[Inputs]:
    """Inputs to try.

    Args:
        model: A model of transformers.
        rich: Whether to give what it takes, or what it must have.

    Raises:
        CannotBuildError: It wants something that is not known here.
    """
    sizes = Sizes(model.config)
    arguments = inspect.signature(model.forward).parameters
    required = {n for n, p in arguments.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD}
    main = getattr(model, "main_input_name", "input_ids")
    required |= ({main} if isinstance(main, str) else set(main)) & arguments.keys()
    known_names = {name for maker in (text, series, *SIGHTS, *SOUNDS, *ANSWERS) for name in maker(sizes)}
    if not required <= known_names or not known_names & arguments.keys():
        raise CannotBuildError(
            f"it wants {', '.join(required - known_names) or 'inputs'} that nobody here knows how to make"
        )
    sights, sounds = (
        seen_by(model, kind, makers) or (() if rich else (nothing,))
        for kind, makers in (("image", SIGHTS), ("audio", SOUNDS))
    )
    seen = set()
    for only in (arguments.keys() - SPARE, arguments.keys()) if rich else (required | {"decoder_input_ids"},):
        for makers in product(sights, sounds, ANSWERS):
            known = (
                text(sizes) | series(sizes) | {name: value for maker in makers for name, value in maker(sizes).items()}
            )
            known = {n: v for n, v in known.items() if n in arguments and n in required | only}
            if "pixel_values" in known:
                known.pop("pixel_values_videos", None)
            shapes = str([(n, v.shape if isinstance(v, Tensor) else v) for n, v in known.items()])
            if known and required <= known.keys() and shapes not in seen:
                seen.add(shapes)
                yield with_places(model, known, arguments.keys(), sizes)


class Sizes:
    """Looks numbers up in a configuration and those in it."""

    def __init__(self, config: Any) -> None:
        self.parts = list(_parts(config, ""))

    def __call__(self, names: str, fallback: int, part: str = "") -> int:
        """The first of some numbers that is set, first in parts of a kind (`vision`, `audio`, `text`), then in any."""
        value = self.entry(names, part)
        while isinstance(value, (list, tuple)):
            value = value[0]
        return fallback if value is None else int(value)

    def entry(self, names: str, part: str = "") -> Any:
        near = [config for path, config in self.parts if part in path]
        for config in [*near, *(config for _, config in self.parts)]:
            for name in names.split():
                value = getattr(config, name, None)
                if value is not None and not isinstance(value, (bool, str)):
                    return value
        return None


def _parts(config: Any, path: str) -> Iterator[tuple[str, Any]]:
    yield path, config
    for name, value in vars(config).items():
        if hasattr(value, "to_dict"):
            yield from _parts(value, f"{path}.{name}")


def text(sizes: Sizes) -> Inputs:
    """Tokens, and what goes with each."""
    words = sizes("vocab_size", 512, "text")
    start = min(100, words // 2)
    tokens = (torch.arange(TOKENS) % (words - start) + start)[None]
    ones = torch.ones_like(tokens)
    width = sizes("hidden_size d_model", 64)
    boxes = torch.tensor([1, 2, 30, 40]).expand(1, TOKENS, 4)
    return {
        "input_ids": tokens,
        "attention_mask": ones,
        "bbox": boxes,
        "qformer_input_ids": tokens,
        "task_inputs": torch.ones(1, sizes("task_seq_len", TOKENS), dtype=torch.int64),
        "inputs": torch.rand(1, TOKENS, sizes("d_model hidden_size", 64)),
        "query_embeds": torch.rand(1, TOKENS, width),
        "inputs_embeds": torch.rand(1, TOKENS, width),
        "encoder_hidden_states": torch.rand(1, TOKENS, sizes("encoder_hidden_size hidden_size d_model", 64)),
    }


def grids(sizes: Sizes) -> tuple[int, int, int]:
    """How many patches an image is high and wide when they come in a row, and how many numbers one is."""
    merge = sizes("spatial_merge_size merge_size", 1, "vision")
    side = sizes("patch_size", 14, "vision")
    return GRID * merge, side, sizes("num_channels in_channels in_chans", 3, "vision")


def picture(sizes: Sizes) -> Tensor:
    side = sizes.entry("image_size img_size", "vision") or 224
    height, width = (
        side[-2:] if isinstance(side, (list, tuple)) and len(side) > 1 else (sizes("image_size", 224, "vision"),) * 2
    )
    return torch.rand(1, sizes("num_channels in_channels in_chans", 3, "vision"), int(height), int(width))


def plane(sizes: Sizes) -> Inputs:
    """An image."""
    image = picture(sizes)
    return {"pixel_values": image, "input": image, "prompt_pixel_values": image, "prompt_masks": image}


def sized(sizes: Sizes) -> Inputs:
    """An image and its height and width."""
    image = picture(sizes)
    return {"pixel_values": image, "image_sizes": torch.tensor([image.shape[-2:]])}


def clip(sizes: Sizes) -> Inputs:
    """A short film."""
    frames = sizes("num_frames frames_per_clip", 4, "vision")
    image = picture(sizes)[:, None].expand(1, frames, -1, -1, -1).contiguous()
    return {"pixel_values": image, "pixel_values_videos": image}


def tiles(sizes: Sizes) -> Inputs:
    """An image in parts."""
    image = picture(sizes)
    size = torch.tensor([image.shape[-2:]])
    return {"pixel_values": image[:, None].expand(1, 3, -1, -1, -1).contiguous(), "image_sizes": size}


def pair(sizes: Sizes) -> Inputs:
    """Two images to compare."""
    return {"pixel_values": picture(sizes)[:, None].expand(1, 2, -1, -1, -1).contiguous()}


def row(sizes: Sizes) -> Inputs:
    """Patches in a row, all images after one another."""
    side, patch, channels = grids(sizes)
    patches = torch.rand(
        side * side, channels * sizes("temporal_patch_size patch_temporal", 1, "vision") * patch * patch
    )
    return {"pixel_values": patches, "hidden_states": patches} | grid(sizes)


def squares(sizes: Sizes) -> Inputs:
    """Patches in a row, each a small image."""
    side, patch, channels = grids(sizes)
    return {"pixel_values": torch.rand(side * side, channels, patch, patch)} | grid(sizes)


def grid(sizes: Sizes) -> Inputs:
    """How many frames, rows and columns of patches there are."""
    merge = sizes("spatial_merge_size merge_size", 1, "vision")
    sides = torch.tensor([[1, GRID * merge, GRID * merge]])
    merges = torch.tensor([merge])
    return {"image_grid_thw": sides, "grid_thw": sides, "merge_sizes": merges, "image_merge_sizes": merges}


def patches(sizes: Sizes) -> Inputs:
    """Patches of one image, padded to a number of them."""
    side, patch, channels = grids(sizes)
    places = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij"), -1).reshape(1, -1, 2)
    return {
        "pixel_values": torch.rand(1, side * side, channels * patch * patch),
        "pixel_attention_mask": torch.ones(1, side * side, dtype=torch.int64),
        "spatial_shapes": torch.tensor([[side, side]]),
        "pixel_position_ids": places,
        "image_position_ids": places,
    }


def bins(sizes: Sizes) -> int:
    names = (
        "num_mel_bins feature_size input_feat_per_channel feature_projection_input_dim input_feat_size input_dim n_mels"
    )
    return sizes(names, 80, "audio") * sizes("num_stacked_frames", 1, "audio")


def bins_first(sizes: Sizes) -> Inputs:
    """A spectrogram, bins by frames, and a wave."""
    frames = 2 * sizes("max_source_positions", FRAMES // 2, "audio")
    return heard(torch.rand(1, bins(sizes), frames), frames) | {"input_values": torch.rand(1, SAMPLES)}


def frames_first(sizes: Sizes) -> Inputs:
    """A spectrogram, frames by bins, and a wave with a channel."""
    return heard(torch.rand(1, FRAMES, bins(sizes)), FRAMES) | {
        "input_values": torch.rand(1, sizes("audio_channels", 1, "audio"), SAMPLES)
    }


def frames_of(count: int) -> Maker:
    """Frames of a number of bins that no configuration says."""
    return lambda _: heard(torch.rand(1, FRAMES, count), FRAMES)


def plane_of_sound(sizes: Sizes) -> Inputs:
    """A spectrogram as an image."""
    frames = sizes("max_length", 1001, "audio")
    return heard(torch.rand(1, 1, 1001, bins(sizes)), 1001) | {"input_values": torch.rand(1, frames, bins(sizes))}


def heard(features: Tensor, frames: int) -> Inputs:
    mask = torch.ones(1, frames, dtype=torch.int64)
    lengths = torch.tensor([frames])
    return {
        "input_features": features,
        "input_features_mask": mask,
        "feature_attention_mask": mask,
        "audio_feature_lengths": lengths,
        "audio_mel": features,
        "audio_mel_mask": mask.bool(),
    }


def tokens_out(sizes: Sizes) -> Inputs:
    """Tokens so far."""
    return {"decoder_input_ids": text(sizes)["input_ids"]}


def codes_out(sizes: Sizes) -> Inputs:
    """Tokens so far, of several code books at a time."""
    books = sizes("num_channels num_codebooks num_quantizers", 8, "decoder")
    return {"decoder_input_ids": tokens_out(sizes)["decoder_input_ids"][..., None].expand(1, TOKENS, books)}


def codes_in(sizes: Sizes) -> Inputs:
    """A row of tokens for each of several code books."""
    return {"input_ids": text(sizes)["input_ids"].expand(sizes("num_codebooks", 1), TOKENS).contiguous()}


def frames_out(sizes: Sizes) -> Inputs:
    """Frames so far."""
    return {"decoder_input_values": torch.rand(1, TOKENS, sizes("num_mel_bins", 80))}


def nothing(sizes: Sizes) -> Inputs:  # noqa: ARG001 - it is called as the others are
    return {}


def series(sizes: Sizes) -> Inputs:
    """Past and future of a quantity."""
    future = sizes("prediction_length", 8)
    past = sizes("context_length", 8) + max(sizes.entry("lags_sequence") or [0])
    channels = sizes("input_size num_input_channels", 1)
    shape = (past, channels) if channels > 1 or sizes.entry("num_input_channels") else (past,)
    features = sizes("num_time_features", 0)
    horizon = sizes("num_frames", TOKENS)
    return {
        "states": torch.rand(1, horizon, sizes("state_dim", 16)),
        "actions": torch.rand(1, horizon, sizes("act_dim", 16)),
        "rewards": torch.rand(1, horizon, 1),
        "returns_to_go": torch.rand(1, horizon, 1),
        "timesteps": torch.arange(horizon)[None],
        "past_values": torch.rand(1, *shape),
        "past_observed_mask": torch.ones(1, *shape),
        "past_values_padding": torch.zeros(1, past),
        "freq": torch.zeros(1, 1, dtype=torch.int64),
        "past_time_features": torch.rand(1, past, features),
        "future_values": torch.rand(1, future, *shape[1:]),
        "future_time_features": torch.rand(1, future, features),
    }


def seen_by(model: nn.Module, kind: str, makers: Sequence[Maker]) -> Sequence[Maker]:
    """Those that a model makes features of, where it puts features into its text."""
    if not hasattr(model, f"get_{kind}_features") or not isinstance(token_of(Sizes(model.config), kind), int):
        return makers
    sizes = Sizes(model.config)
    return [maker for maker in makers if features(model, kind, maker(sizes))]


def token_of(sizes: Sizes, kind: str) -> Any:
    """The token that stands for a feature of an image, a film or a sound."""
    return sizes.entry(f"{kind}_token_id {kind}_token_index")


SIGHTS: tuple[Maker, ...] = (plane, sized, row, squares, patches, clip, tiles, pair, nothing)
SOUNDS: tuple[Maker, ...] = (bins_first, frames_first, plane_of_sound, *map(frames_of, (128, 160, 320)))
ANSWERS: tuple[Maker, ...] = (tokens_out, codes_out, frames_out, codes_in)


def with_places(model: nn.Module, inputs: Inputs, arguments: Any, sizes: Sizes) -> Inputs:
    """Inputs in whose text there is a token for every feature of an image, a film or a sound."""
    if "input_ids" not in inputs:
        return inputs
    pieces, kinds = [inputs["input_ids"]], [torch.zeros_like(inputs["input_ids"])]
    for number, kind in enumerate(KINDS, start=1):
        token = token_of(sizes, kind)
        count = features(model, kind, inputs) if isinstance(token, int) else 0
        if count:
            pieces.insert(1, torch.full((1, count), token))
            kinds.insert(1, torch.full((1, count), number))
    if len(pieces) == 1:
        return inputs
    ids, kind_ids = torch.cat(pieces, 1), torch.cat(kinds, 1)
    more = {"input_ids": ids, "mm_token_type_ids": kind_ids, "token_type_ids": kind_ids}
    if "attention_mask" in inputs:
        more["attention_mask"] = torch.ones_like(ids)
    return inputs | {name: value for name, value in more.items() if name in arguments}


def features(model: nn.Module, kind: str, inputs: Mapping[str, Any]) -> int:
    """How many features of an image, a film or a sound a model puts into its text."""
    encode = getattr(model, f"get_{kind}_features", None)
    if encode is None:
        return 0
    names = inspect.signature(encode).parameters
    try:
        with torch.no_grad():
            found = encode(**{name: value for name, value in inputs.items() if name in names})
    except Exception:  # noqa: BLE001 - these inputs are not for it
        return 0
    found = getattr(found, "pooler_output", found)
    return sum(each.numel() // each.shape[-1] for each in ([found] if isinstance(found, Tensor) else found))
