"""How much memory does one run of a PyTorch model need? The allocator's own count, not the process' size, which never shrinks."""

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn


@dataclass(frozen=True, slots=True)
class Memory:
    """The memory that one run needs, in bytes, as the runtime's allocator counts it.

    Attributes:
        weights: Parameters and buffers, shared ones once.
        activations: The most that was allocated at once during a run, beyond what was there before: activations, results and
            the kernels' scratch space. Inputs are not counted.
    """

    weights: int
    activations: int

    @property
    def peak(self) -> int:
        """Weights and activations together."""
        return self.weights + self.activations


def memory_of_one_run(model: nn.Module, run: Callable[[], object], device: torch.device) -> Memory:
    """Run once more and count.

    Args:
        model: Whose weights are counted.
        run: Runs it once, warm.
        device: Where it runs.
    """
    storages = [tensor.untyped_storage() for tensor in (*model.parameters(), *model.buffers())]
    weights = sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())
    return Memory(weights, _allocated_on_cpu(run) if device.type == "cpu" else _allocated_on_accelerator(run, device))


def _allocated_on_cpu(run: Callable[[], object]) -> int:
    """The peak over every allocation and release that PyTorch's CPU allocator reports to the profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    with _quiet(), torch.profiler.profile(activities=activities, profile_memory=True) as profiler:
        run()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    # Device type 0 is the CPU in c10::DeviceType.
    changes = [
        (event["ts"], event["args"]["Ev Idx"], event["args"]["Bytes"])
        for event in events
        if event["name"] == "[memory]" and event["args"]["Device Type"] == 0
    ]
    live = peak = 0
    for *_, change in sorted(changes):
        live += change
        peak = max(peak, live)
    return peak


def _allocated_on_accelerator(run: Callable[[], object], device: torch.device) -> int:
    torch.accelerator.reset_peak_memory_stats(device)
    before = torch.accelerator.memory_allocated(device)
    run()
    return torch.accelerator.max_memory_allocated(device) - before


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the profiler's library, which reads this level at its first use, from printing (pytorch/kineto#1325)."""
    before = os.environ.get("KINETO_LOG_LEVEL")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")
    try:
        yield
    finally:
        if before is None:
            del os.environ["KINETO_LOG_LEVEL"]
