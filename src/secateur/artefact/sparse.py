"""How a tensor with many zeros is stored: the values that are none, and a bitmap that says where they lie.

The bitmap has a bit for each entry, and is deflated where that makes it smaller: cells and blocks then take about as little as
forms of their own would, and what is rare takes less as well.
"""

import zlib
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from secateur.artefact.manifest import StoredTensor, bitmap_of
from secateur.artefact.match import dtype_name
from secateur.errors import ArtefactError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def packed(name: str, tensor: Tensor, names: Mapping[str, object]) -> tuple[StoredTensor, dict[str, Tensor]]:
    """How a tensor is stored, as it is or without its zeros where that takes less, and what the weights file holds of it.

    Args:
        name: The tensor's name.
        tensor: The whole of it.
        names: The names of all tensors.
    """
    dense = StoredTensor(dtype_name(tensor.dtype), tuple(tensor.shape))
    if not tensor.is_floating_point() or tensor.itemsize not in _BITS or bitmap_of(name) in names:
        return dense, {name: tensor}
    bits = _bits(tensor).flatten()
    sparse = StoredTensor(dense.dtype, dense.shape, int(bits.count_nonzero()))
    if sparse.bytes(tensor.itemsize) >= dense.bytes(tensor.itemsize):
        return dense, {name: tensor}
    bits = bits.cpu()
    bitmap = np.packbits((bits != 0).numpy())
    deflated = np.frombuffer(bytearray(zlib.compress(bitmap.tobytes())), np.uint8)
    if len(deflated) < len(bitmap):
        sparse, bitmap = StoredTensor(dense.dtype, dense.shape, sparse.values, len(deflated)), deflated
    return sparse, {name: bits[bits != 0].view(tensor.dtype), bitmap_of(name): torch.from_numpy(bitmap)}


def stored_bytes(model: nn.Module) -> int:
    """How many bytes `save` needs for a model's tensors, tied ones once.

    Example:
        >>> layer = nn.Linear(32, 1, bias=False)
        >>> with torch.no_grad():
        ...     _ = layer.weight[:, 1:].zero_()
        >>> stored_bytes(layer)
        8
    """
    state = model.state_dict(keep_vars=True)
    named = {id(tensor): (name, tensor) for name, tensor in state.items() if isinstance(tensor, Tensor)}
    return sum(packed(name, tensor, state)[0].bytes(tensor.itemsize) for name, tensor in named.values())


def restored(name: str, entries: Mapping[str, Tensor], stored: StoredTensor) -> Tensor:
    """The tensor, bit for bit.

    Raises:
        ArtefactError: The bitmap does not say where as many values lie as there are.
    """
    if stored.values is None:
        return entries[name]
    bitmap, values = entries[bitmap_of(name)], entries[name]
    count = int(np.prod(stored.shape, dtype=np.int64))
    if bitmap.dtype != torch.uint8:
        raise ArtefactError(f"the bitmap of {name} is {dtype_name(bitmap.dtype)}, not uint8; save the model again")
    plain = bitmap.numpy() if stored.bitmap is None else _inflated(name, bitmap.numpy().tobytes(), -(-count // 8))
    bits = np.unpackbits(plain)
    if int(bits.sum()) != len(values) or bits[count:].any():
        raise ArtefactError(
            f"the bitmap of {name} has {int(bits.sum())} places for {len(values)} values; save the model again"
        )
    dense = torch.zeros(count, dtype=_BITS[values.itemsize])
    dense[torch.from_numpy(bits[:count].astype(bool))] = values.view(dense.dtype)
    return dense.view(values.dtype).view(stored.shape)


def _inflated(name: str, deflated: bytes, size: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """A bitmap of so many bytes; never more is made, whatever the file says."""
    stream = zlib.decompressobj()
    try:
        plain = stream.decompress(deflated, size + 1)
    except zlib.error as error:
        raise ArtefactError(f"the bitmap of {name} is damaged: {error}; save the model again") from error
    if len(plain) != size or not stream.eof or stream.unused_data:
        raise ArtefactError(f"the bitmap of {name} is damaged: it has not {size} bytes; save the model again")
    return np.frombuffer(plain, np.uint8)


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, zero where it is; a negative zero is a value."""
    return tensor.detach().contiguous().view(_BITS[tensor.itemsize])
