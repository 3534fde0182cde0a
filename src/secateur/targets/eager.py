"""The target PyTorch eager: models run as they are, on the device they are on."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.targets.measure import Effort, Measurement, take_turns
from secateur.targets.memory import memory_of_one_run
from secateur.torch import Inputs
from secateur.torch.capture import call
from secateur.torch.state import evaluating


def measure(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    runs: int = 30,
    seconds: float = 10.0,
    threads: int | None = None,
) -> dict[str, Measurement]:
    """Measure models side by side: latency, peak memory, size.

    They take turns in one process, in eval mode and without gradients: first until their times are stable, then for the
    record. Modes and the number of threads are put back.

    Args:
        models: By name, for example `{"dense": model, "pruned": small}`; each on its device.
        inputs: What every `model(...)` takes, on the models' device: a tensor, a tuple of positional or a mapping of keyword
            arguments; or a list of several such calls, which are measured together.
        runs: At least so many timed runs of each, at least 2.
        seconds: When these are done, go on until so much time has passed, or 1000 runs were made.
        threads: CPU threads within an operator; by default as many as PyTorch is set to.

    Returns:
        For each name what was measured, in the order given.

    Raises:
        DataError: No models, inputs of an unknown kind, or a number out of its range.

    Example:
        >>> import torch
        >>> models = {"dense": torch.nn.Linear(64, 64), "pruned": torch.nn.Linear(64, 16)}
        >>> measured = measure(models, torch.zeros(1, 64), runs=5, seconds=0)
        >>> measured["pruned"].stored
        4160
    """
    effort = Effort(runs, seconds)
    if not isinstance(inputs, (Tensor, tuple, Mapping, list)):
        raise DataError(
            f"inputs of type {type(inputs).__name__}; give a tensor, a tuple of positional or a dict of keyword arguments, "
            "or a list of such calls"
        )
    if threads is not None and threads < 1:
        raise DataError(f"{threads} threads; give at least 1")
    # Not inference mode: what a model caches in it could never be trained with afterwards. The times are the same.
    with _threads(threads), evaluating(*models.values()), torch.no_grad():
        calls = {name: _run_of(model, inputs) for name, model in models.items()}
        latencies = take_turns(calls, effort)
        return {
            name: Measurement(
                latency=latencies[name],
                memory=memory_of_one_run(model, calls[name], _device(model)),
                stored=_stored_bytes(model),
                device=str(_device(model)),
                threads=torch.get_num_threads(),
            )
            for name, model in models.items()
        }


def _run_of(model: nn.Module, inputs: Inputs) -> Callable[[], object]:
    """One run of the model, done when it returns."""
    device = _device(model)

    def run() -> None:
        call(model, inputs)
        if device.type != "cpu":
            torch.accelerator.synchronize(device)

    return run


def _stored_bytes(model: nn.Module) -> int:
    distinct = {id(value): value for value in model.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    return sum(tensor.nbytes for tensor in distinct.values())


def _device(model: nn.Module) -> torch.device:
    devices = [tensor.device for tensor in (*model.parameters(), *model.buffers())]
    return devices[0] if devices else torch.device("cpu")


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    try:
        if count is not None:
            torch.set_num_threads(count)
        yield
    finally:
        torch.set_num_threads(before)
