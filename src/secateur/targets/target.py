"""What a target is: whatever can load a model, and run it."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from secateur.errors import DataError
from secateur.targets.agreement import Agreement
from secateur.targets.memory import Memory
from secateur.torch import Inputs


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model on a target, ready to run.

    Attributes:
        target: What runs it: `PyTorch eager`, `ONNX Runtime 1.32.0`.
        run: Runs it once on the example inputs; returns when that is done.
        stored: Bytes of what the target loads: of its file, or of the tensors that a file of it holds, tied ones once.
        device: Where it runs: `cpu`, `cuda:0`.
        threads: How many CPU threads the runtime uses within an operator.
        agreement: How near its outputs are to PyTorch's; None where PyTorch runs the model as it is.
        memory: Runs it once more, and counts; None where the runtime does not tell.
    """

    target: str
    run: Callable[[], object]
    stored: int
    device: str
    threads: int
    agreement: Agreement | None = None
    memory: Callable[[], Memory] | None = None


class Target(Protocol):
    """A runtime on a device, with its options."""

    def load(self, model: nn.Module, inputs: Inputs) -> AbstractContextManager[Loaded]:
        """Bring a model there, and compare what it computes there with PyTorch; within the context it can be run.

        Args:
            model: Any module; it is not changed.
            inputs: What every run takes.

        Raises:
            TargetError: The target cannot run the model, or computes something else.
            MissingExtraError: The runtime is not installed.
        """
        ...


def check_threads(threads: int | None) -> None:
    """Refuse a number of threads that is none.

    Raises:
        DataError: There are fewer than one.
    """
    if threads is not None and threads < 1:
        raise DataError(f"{threads} threads; give at least 1")
