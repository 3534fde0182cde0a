"""The target PyTorch eager: models run as they are, on the device they are on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from secateur.targets.memory import memory_of_one_run
from secateur.targets.target import Loaded, check_threads
from secateur.torch import Inputs
from secateur.torch.capture import call
from secateur.torch.state import evaluating


@dataclass(frozen=True, slots=True)
class Eager:
    """PyTorch as it is, operator by operator, on the device that the model is on.

    Modes and the number of threads are put back afterwards.

    Attributes:
        threads: CPU threads within an operator; by default as many as PyTorch is set to.

    Raises:
        DataError: Fewer than one thread.
    """

    threads: int | None = None

    def __post_init__(self) -> None:
        check_threads(self.threads)

    @contextmanager
    def load(self, model: nn.Module, inputs: Inputs) -> Iterator[Loaded]:
        """The model, in eval mode and without gradients; see `Target`."""
        # Not inference mode: what a model caches in it could never be trained with afterwards. The times are the same.
        with torch_threads(self.threads), evaluating(model), torch.no_grad():
            device = _device(model)
            run = finished(partial(call, model, inputs), device)
            yield Loaded(
                target="PyTorch eager",
                run=run,
                stored=_stored_bytes(model),
                device=str(device),
                threads=torch.get_num_threads(),
                memory=partial(memory_of_one_run, model, run, device),
            )


EAGER = Eager()
"""What is measured on where no target is named."""


def finished(run: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """The same run, which returns when its device has done all of it."""
    if device.type == "cpu":
        return run

    def waited() -> None:
        run()
        torch.accelerator.synchronize(device)

    return waited


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """So many threads within an operator; afterwards as many as before."""
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)


def _stored_bytes(model: nn.Module) -> int:
    distinct = {id(value): value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in distinct.values())


def _device(model: nn.Module) -> torch.device:
    devices = [tensor.device for tensor in (*model.parameters(), *model.buffers())]
    return devices[0] if devices else torch.device("cpu")
