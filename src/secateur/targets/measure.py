"""Models measured side by side on a target: latency, peak memory, size."""

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass

from torch import Tensor, nn

from secateur.errors import DataError
from secateur.targets.agreement import Agreement
from secateur.targets.eager import EAGER
from secateur.targets.memory import Memory
from secateur.targets.target import Target
from secateur.targets.turns import Effort, Latency, take_turns
from secateur.torch import Inputs


@dataclass(frozen=True, slots=True)
class Measurement:
    """What was measured of one network.

    Attributes:
        latency: How long a run takes.
        memory: What a run needs; None where the runtime does not tell.
        stored: Bytes of what the target loads: of its file, or of the tensors that a file of it holds, tied ones once.
        target: What ran it: `PyTorch eager`, `ONNX Runtime 1.32.0`.
        device: Where it ran: `cpu`, `cuda:0`.
        threads: How many CPU threads the runtime used within an operator.
        agreement: How near its outputs were to PyTorch's; None where PyTorch ran the model as it is.
    """

    latency: Latency
    memory: Memory | None
    stored: int
    target: str
    device: str
    threads: int
    agreement: Agreement | None = None

    def __str__(self) -> str:
        low, high = self.latency.quartiles
        memory = f"peak memory {self.memory.peak / 2**20:.1f} MiB, " if self.memory is not None else ""
        return (
            f"median {self.latency.median * 1e3:.3f} ms (quartiles {low * 1e3:.3f} to {high * 1e3:.3f}, "
            f"p99 {self.latency.p99 * 1e3:.3f}, {len(self.latency.samples)} runs, {self.target} on {self.device}, "
            f"{self.threads} threads), {memory}{self.stored / 2**20:.1f} MiB stored"
        )


def measure(
    models: Mapping[str, nn.Module],
    inputs: Inputs,
    *,
    target: Target = EAGER,
    runs: int = 30,
    seconds: float = 10.0,
) -> dict[str, Measurement]:
    """Measure models side by side: latency, peak memory, size.

    All are loaded, and each is compared with PyTorch on the inputs. Then they take turns in one process: first until their times
    are stable, then for the record.

    Args:
        models: By name, for example `{"dense": model, "pruned": small}`.
        inputs: What every `model(...)` takes, on the models' device: a tensor, a tuple of positional or a mapping of keyword
            arguments; in PyTorch also a list of several such calls, which are measured together.
        target: Where: `Eager()`, `Compile()`, `OnnxRuntime()` or `OpenVINO()`, with its threads.
        runs: At least so many timed runs of each, at least 2.
        seconds: When these are done, go on until so much time has passed, or 1000 runs were made.

    Returns:
        For each name what was measured, in the order given.

    Raises:
        DataError: No models, inputs of an unknown kind, or a number out of its range.
        TargetError: The target cannot run a model, or computes something else than PyTorch.
        MissingExtraError: The runtime is not installed.

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
    with ExitStack() as stack:
        loaded = {name: stack.enter_context(target.load(model, inputs)) for name, model in models.items()}
        latencies = take_turns({name: one.run for name, one in loaded.items()}, effort)
        return {
            name: Measurement(
                latency=latencies[name],
                memory=one.memory() if one.memory is not None else None,
                stored=one.stored,
                target=one.target,
                device=one.device,
                threads=one.threads,
                agreement=one.agreement,
            )
            for name, one in loaded.items()
        }
