"""How a tensor with many zeros is stored: the values that are none, and a bit for each entry that says where they lie."""

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from secateur.artefact.manifest import StoredTensor, bitmap_of
from secateur.artefact.match import dtype_name
from secateur.errors import ArtefactError

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def stored(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """How each tensor is stored: as it is, or without its zeros where that takes less."""
    return {name: _stored(name, tensor, tensors) for name, tensor in tensors.items()}


def entries(name: str, tensor: Tensor, stored: StoredTensor) -> dict[str, Tensor]:
    """What the weights file holds of a tensor.

    Args:
        name: The tensor's name.
        tensor: On the CPU.
        stored: How it is stored.
    """
    if stored.values is None:
        return {name: tensor}
    bits = _bits(tensor).flatten()
    bitmap = torch.from_numpy(np.packbits((bits != 0).numpy()))
    return {name: bits[bits != 0].view(tensor.dtype), bitmap_of(name): bitmap}


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
    bits = np.unpackbits(bitmap.numpy())
    if int(bits.sum()) != len(values) or bits[count:].any():
        raise ArtefactError(
            f"the bitmap of {name} has {int(bits.sum())} places for {len(values)} values; save the model again"
        )
    dense = torch.zeros(count, dtype=_BITS[values.itemsize])
    dense[torch.from_numpy(bits[:count].astype(bool))] = values.view(dense.dtype)
    return dense.view(values.dtype).view(stored.shape)


def _stored(name: str, tensor: Tensor, tensors: Mapping[str, Tensor]) -> StoredTensor:
    dense = StoredTensor(dtype_name(tensor.dtype), tuple(tensor.shape))
    if not tensor.is_floating_point() or tensor.itemsize not in _BITS or bitmap_of(name) in tensors:
        return dense
    values = int(_bits(tensor).count_nonzero())
    sparse = StoredTensor(dense.dtype, dense.shape, values)
    return sparse if sparse.bytes(tensor.itemsize) < dense.bytes(tensor.itemsize) else dense


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, zero where it is; a negative zero is a value."""
    return tensor.detach().contiguous().view(_BITS[tensor.itemsize])
