"""Movement over image axes: padding, pooling, resampling, and channels that turn into pixels."""

from typing import Any

from torch import Tensor

from secateur.axes import Dims, Fixed
from secateur.torch.recorder import Recorder
from secateur.torch.rules.registry import rule


@rule("constant_pad_nd", keeps_zero=True)
def pad(recorder: Recorder, out: Tensor, input: Tensor, pad: list[int], value: float = 0, **_: Any) -> Dims:
    """Literal numbers put before and after: those positions stay, the ones between run through."""
    if value != 0:
        recorder.result_zero = False
    found, constant = list(recorder.dims(input)), Fixed(recorder.reason("padding"))
    for d, (before, after) in enumerate(zip(pad[::2], pad[1::2], strict=True), start=1):
        if min(before, after) < 0:
            recorder.labels.freeze(found[-d], recorder.reason("cropped by a number of positions"))
            found[-d] = constant
        elif before or after:
            parts = (constant, found[-d], constant)
            found[-d] = recorder.labels.concatenate(parts, (before, input.shape[-d], after))
    return tuple(found)


@rule(
    "reflection_pad1d",
    "reflection_pad2d",
    "reflection_pad3d",
    "replication_pad1d",
    "replication_pad2d",
    keeps_zero=True,
)
@rule("replication_pad3d", keeps_zero=True)
@rule(
    "max_pool2d_with_indices",
    "max_pool3d_with_indices",
    "avg_pool1d",
    "avg_pool2d",
    "avg_pool3d",
    "max_pool1d",
    keeps_zero=True,
)
@rule("max_pool2d", "max_pool3d", keeps_zero=True)
@rule("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "adaptive_max_pool2d", "adaptive_max_pool3d", keeps_zero=True)
@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "fractional_max_pool2d", keeps_zero=True)
@rule("upsample_nearest1d", "upsample_nearest2d", "upsample_nearest3d", "_upsample_nearest_exact1d", keeps_zero=True)
@rule("_upsample_nearest_exact2d", "_upsample_nearest_exact3d", keeps_zero=True)
@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_bicubic2d", "upsample_trilinear3d", keeps_zero=True)
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa", "grid_sampler_2d", "grid_sampler_3d", keeps_zero=True)
def image(recorder: Recorder, out: Any, input: Tensor, **_: Any) -> Any:
    """Windows over the image axes, each channel by itself."""
    outs = [out] if isinstance(out, Tensor) else list(out)
    spatial = {"1": 1, "2": 2, "3": 3}
    name = recorder.operator
    rank = next((spatial[c] for c in name if c in spatial), input.ndim - 2)
    dims, reason = recorder.dims(input), recorder.reason("an image axis")
    for dim in dims[input.ndim - rank :]:
        recorder.labels.freeze(dim, reason)
    result: list[Dims] = [(*dims[: input.ndim - rank], *[Fixed(reason)] * rank) for _ in outs]
    return result[0] if isinstance(out, Tensor) else result


@rule("max_unpool2d", "max_unpool3d", keeps_zero=True)
def unpool(recorder: Recorder, out: Tensor, input: Tensor, indices: Tensor, **_: Any) -> Dims:
    """Values put back where a pooling took them from: the indices have the same channels."""
    rank = 3 if recorder.operator.endswith("3d") else 2
    reason, dims = recorder.reason("an image axis"), recorder.dims(input)
    for ours, theirs in zip(dims, recorder.dims(indices), strict=True):
        recorder.labels.tie(ours, theirs, reason)
    for dim in dims[input.ndim - rank :]:
        recorder.labels.freeze(dim, reason)
    return (*dims[: input.ndim - rank], *[Fixed(reason)] * rank)


@rule("pixel_shuffle", keeps_zero=True)
def pixel_shuffle(recorder: Recorder, out: Tensor, input: Tensor, upscale_factor: int, **_: Any) -> Dims:
    """Channels seen as (channels, r, r), with r moved to the image axes."""
    dims, reason = recorder.dims(input), recorder.reason("moved to an image axis")
    sizes = (out.shape[-3], upscale_factor, upscale_factor)
    channels, *factors = recorder.labels.split_square(dims[-3], sizes, reason)
    for dim in (*factors, *dims[-2:]):
        recorder.labels.freeze(dim, reason)
    return (*dims[:-3], channels, Fixed(reason), Fixed(reason))


@rule("pixel_unshuffle", keeps_zero=True)
def pixel_unshuffle(recorder: Recorder, out: Tensor, input: Tensor, downscale_factor: int, **_: Any) -> Dims:
    """Image axes cut by r, with r moved to the channels."""
    dims, reason = recorder.dims(input), recorder.reason("moved to a channel axis")
    for dim in dims[-2:]:
        recorder.labels.freeze(dim, reason)
    sizes = (input.shape[-3], downscale_factor, downscale_factor)
    (channels,) = recorder.labels.reshape((dims[-3], Fixed(reason), Fixed(reason)), sizes, (out.shape[-3],), reason)
    return (*dims[:-3], channels, Fixed(reason), Fixed(reason))


@rule("channel_shuffle", "native_channel_shuffle", keeps_zero=True)
def channel_shuffle(recorder: Recorder, out: Tensor, input: Tensor, groups: int, **_: Any) -> Dims:
    """Channels seen as (groups, rest), transposed."""
    dims = recorder.dims(input)
    group, rest = recorder.labels.split_square(
        dims[1], (groups, input.shape[1] // groups), recorder.reason("a channel shuffle")
    )
    recorder.labels.freeze(group, recorder.reason("the number of groups of a channel shuffle"))
    shape = (input.shape[1] // groups, groups)
    merged = recorder.labels.reshape((rest, group), shape, (input.shape[1],), recorder.reason("a channel shuffle"))
    return (dims[0], merged[0], *dims[2:])


@rule("unfold", "unfold_copy", keeps_zero=True)
def unfold(recorder: Recorder, out: Tensor, input: Tensor, dimension: int, **_: Any) -> Dims:
    """Windows along one dim: its positions must stay."""
    dims, reason = list(recorder.dims(input)), recorder.reason("cut into windows")
    recorder.labels.freeze(dims[dimension], reason)
    dims[dimension] = Fixed(reason)
    return (*dims, Fixed(reason))
