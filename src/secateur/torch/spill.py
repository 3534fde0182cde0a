"""Moves what operators have made to the disk: that of a run while it waits, that of other code as soon as it is much."""

import ctypes
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

from secateur.errors import DataError

LEAST = 1 << 14
"""Bytes that are worth a place on the disk."""

ALIGNED = 64
"""Where the numbers of a tensor may begin in a file: at multiples of so many bytes."""


@contextmanager
def spilling(folder: Path, at_once: int) -> Iterator[None]:
    """Move what operators make in this thread into files, parameters made of it included, as soon as it is much.

    Args:
        folder: Where there is room for files; made when the first is written.
        at_once: So many bytes may be made before those that are still there are moved.

    Raises:
        DataError: There is no room.
    """
    spill = Spill(folder, at_once)
    hook = register_module_parameter_registration_hook(lambda module, name, parameter: spill.follow(parameter))  # noqa: ARG005
    try:
        with spill:
            yield
    finally:
        hook.remove()
        if spill.refused is not None:  # who called the operator may have made another error of it, or none
            raise spill.refused


class Spill(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Knows the tensors that operators made while it was on, and moves those that are still there into a file.

    They stay what they are, for all that hold them, but their numbers lie in a mapping of the file, from which the system reads
    them when they are used. The file loses its name at once, and goes with the last of them. Tensors on other devices stay in
    memory.

    Args:
        folder: Where there is room for files; made when the first is written.
        at_once: So many bytes may be made before it spills by itself; None = only when it is told to.

    Attributes:
        refused: Why something could not be moved.
    """

    def __init__(self, folder: Path, at_once: int | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._folder, self._at_once, self._new = folder, at_once, 0
        self._made = WeakTensorKeyDictionary()
        self.refused: DataError | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        read = {_memory(x): x for x in _ordinary((args, kwargs))}
        for y in _ordinary(found):
            x = read.get(_memory(y))
            if type(y) is Tensor and (x is None or x in self._made):  # not a view of what somebody else made
                self._made[y] = True
                self._new += y.untyped_storage().nbytes() if x is None else 0
        if self._at_once is not None and self._new > self._at_once:
            self.spill()
        return found

    def follow(self, parameter: nn.Parameter | None) -> None:
        """Move a parameter with the tensor that it was made of; no operator makes parameters."""
        made = {_memory(x) for x in _ordinary(list(self._made))}
        for x in _ordinary(parameter):
            if _memory(x) in made:
                self._made[x] = True

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
            with torch.no_grad():
                self._move(list(together.values()))
            give_back()
        self._made.clear()  # of the mapping's own tensors too
        self._new = 0

    def _move(self, together: Sequence[Sequence[Tensor]]) -> None:
        """Move tensors, those with the same memory together."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=self._folder, buffering=0) as file:
                starts = [_append(file, tensors[0].untyped_storage()) for tensors in together]
                mapped = torch.from_file(file.name, True, file.tell(), dtype=torch.uint8).untyped_storage()
        except (OSError, RuntimeError) as error:  # the latter where it cannot be mapped
            self.refused = DataError(
                f"what does not fit in memory does not fit in {self._folder}: {error}; make room there, or use fewer samples"
            )
            raise self.refused from error
        for start, tensors in zip(starts, together, strict=True):
            for tensor in tensors:
                place = start // tensor.itemsize + tensor.storage_offset()
                tensor.set_(mapped, place, tensor.shape, tensor.stride())


def give_back() -> None:
    """Give the system the memory that was freed; glibc keeps holes in its heap, which aligned tensors seldom fit into."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


def _append(file: IO[bytes], storage: torch.UntypedStorage) -> int:
    """Write the bytes of a storage at the end of a file; gives where they begin."""
    file.write(bytes(-file.tell() % ALIGNED))
    start, left = file.tell(), memoryview(torch.empty(0, dtype=torch.uint8).set_(storage).numpy().data)
    while len(left):
        left = left[file.write(left) :]
    return start


def _ordinary(values: Any) -> Iterable[Tensor]:
    """The ordinary tensors and parameters on the CPU among some values."""
    leaves: Sequence[Any] = pytree.tree_leaves(values)
    return [
        leaf
        for leaf in leaves
        if type(leaf) in (Tensor, nn.Parameter)
        and leaf.device.type == "cpu"
        and leaf.layout == torch.strided
        and not leaf.is_quantized
    ]


def _memory(tensor: Tensor) -> int:
    """The same for all tensors whose numbers lie in the same memory."""
    return tensor.untyped_storage().data_ptr()
