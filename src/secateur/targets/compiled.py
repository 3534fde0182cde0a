"""The target PyTorch compiled: models as `torch.compile` makes them, on the device they are on."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from secateur.targets.agreement import agreement
from secateur.targets.eager import Eager, finished
from secateur.targets.memory import memory_of_one_run
from secateur.targets.refusal import refusing
from secateur.targets.target import Loaded, check_threads
from secateur.torch import Inputs
from secateur.torch.capture import call
from secateur.torch.structure import tensors_in

_compile: Any = torch.compile  # whose types lack the last of the arguments that it is given here
Mode = Literal["default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs"]


@dataclass(frozen=True, slots=True)
class Compile:
    """PyTorch with `torch.compile`, for the shapes of the example inputs alone, on the device that the model is on.

    Needs PyTorch 2.12 or newer, and on a CPU a C++ compiler. The model itself is not compiled: it runs afterwards as before.

    Attributes:
        threads: CPU threads within an operator; by default as many as PyTorch is set to.
        mode: As `torch.compile` has it.

    Raises:
        DataError: Fewer than one thread.
    """

    threads: int | None = None
    mode: Mode = "default"

    def __post_init__(self) -> None:
        check_threads(self.threads)

    @contextmanager
    def load(self, model: nn.Module, inputs: Inputs) -> Iterator[Loaded]:
        """The model as it is compiled, in eval mode and without gradients; see `Target`."""
        target = "PyTorch compiled" if self.mode == "default" else f"PyTorch compiled, {self.mode}"
        with Eager(self.threads).load(model, inputs) as eager:
            device = torch.device(eager.device)
            with refusing(target, model):
                # By itself: torch keeps eight versions of a line of code, and silently runs the ninth as it is.
                compiled = _compile(model, mode=self.mode, dynamic=False, isolate_recompiles=True)
                expected = [tensor.clone() for tensor in tensors_in(call(model, inputs))]
                given = tensors_in(call(compiled, inputs))
            run = finished(partial(call, compiled, inputs), device)
            yield replace(
                eager,
                target=target,
                run=run,
                agreement=agreement(target, expected, given),
                memory=partial(memory_of_one_run, model, run, device),
            )
