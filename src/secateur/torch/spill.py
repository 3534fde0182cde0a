"""Moves what a run of a model has in memory to the disk while the run waits."""

import tempfile
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.errors import DataError

LEAST = 1 << 14
"""Bytes that are worth a place on the disk."""

ALIGNED = 64
"""Where the numbers of a tensor may begin in a file: at multiples of so many bytes."""


class Spill(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the tensors that operators made while it was on, and moves those that are still there into a file.

    They stay what they are, for all that hold them, but their numbers lie in a mapping of the file, from which the system reads
    them when they are used. The file loses its name at once, and goes with the last of them. Tensors on other devices stay in
    memory.

    Args:
        folder: Where there is room for files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder = folder
        self._made = WeakTensorKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        read = {_memory(x): x for x in _plain((args, kwargs))}
        for y in _plain(found):
            x = read.get(_memory(y))
            if x is None or x in self._made:  # not a view of what somebody else made
                self._made[y] = True
        return found

    def spill(self) -> None:
        """Move what was made since the last time and is still there.

        Raises:
            DataError: There is no room.
        """
        together = defaultdict(list)
        for tensor in list(self._made):
            if tensor.untyped_storage().nbytes() >= LEAST:
                together[_memory(tensor)].append(tensor)
        if together:
            self._move(list(together.values()))
        self._made.clear()  # of the mapping's own tensors too

    def _move(self, together: Sequence[Sequence[Tensor]]) -> None:
        """Move tensors, those with the same memory together."""
        try:
            with tempfile.NamedTemporaryFile(dir=self._folder, buffering=0) as file:
                starts = [_append(file, tensors[0].untyped_storage()) for tensors in together]
                mapped = torch.from_file(file.name, True, file.tell(), dtype=torch.uint8).untyped_storage()
        except (OSError, RuntimeError) as error:  # the latter where it cannot be mapped
            raise DataError(
                f"activations do not fit in memory, nor in {self._folder}: {error}; use fewer samples, or allow more memory"
            ) from error
        for start, tensors in zip(starts, together, strict=True):
            for tensor in tensors:
                place = start // tensor.itemsize + tensor.storage_offset()
                tensor.set_(mapped, place, tensor.shape, tensor.stride())


def _append(file: IO[bytes], storage: torch.UntypedStorage) -> int:
    """Write the bytes of a storage at the end of a file; gives where they begin."""
    file.write(bytes(-file.tell() % ALIGNED))
    start, left = file.tell(), memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
    while len(left):
        left = left[file.write(left) :]
    return start


def _plain(values: Any) -> Iterable[Tensor]:
    """The ordinary tensors on the CPU among some values."""
    leaves: Sequence[Any] = pytree.tree_leaves(values)
    return [
        leaf
        for leaf in leaves
        if type(leaf) is Tensor and leaf.device.type == "cpu" and leaf.layout == torch.strided and not leaf.is_quantized
    ]


def _memory(tensor: Tensor) -> int:
    """The same for all tensors whose numbers lie in the same memory."""
    return tensor.untyped_storage().data_ptr()
