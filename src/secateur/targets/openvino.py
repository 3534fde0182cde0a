"""The target OpenVINO: models as its own files, on the CPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import nn

from secateur.errors import DataError, TargetError
from secateur.targets.agreement import agreement
from secateur.targets.refusal import installed, refusing
from secateur.targets.target import Loaded, check_threads
from secateur.torch import Inputs
from secateur.torch.program import program_of

Precision = Literal["fp32", "bf16"]
PRECISIONS = {"fp32": ("f32", torch.float32), "bf16": ("bf16", torch.bfloat16)}
"""What OpenVINO and what PyTorch call a precision."""


@dataclass(frozen=True, slots=True)
class OpenVINO:
    """OpenVINO on the CPU, set for latency: `pip install 'secateur[openvino]'`.

    The model is exported with the shapes of the example inputs, written as OpenVINO's files, and loaded from there.

    Attributes:
        threads: CPU threads; by default as many as PyTorch is set to.
        precision: What it computes in: `fp32`, or `bf16` where the processor can. Files hold the weights as the model has them.

    Raises:
        DataError: Fewer than one thread, or another precision.
    """

    threads: int | None = None
    precision: Precision = "fp32"

    def __post_init__(self) -> None:
        check_threads(self.threads)
        if self.precision not in PRECISIONS:
            raise DataError(f"precision {self.precision!r}; OpenVINO is measured in {' or '.join(PRECISIONS)}")

    @contextmanager
    def load(self, model: nn.Module, inputs: Inputs) -> Iterator[Loaded]:
        """The model, compiled by OpenVINO; see `Target`."""
        runtime = installed("openvino", extra="openvino")
        target = f"OpenVINO {runtime.__version__.partition('-')[0]} in {self.precision}"
        hint, dtype = PRECISIONS[self.precision]
        with TemporaryDirectory() as folder:
            with refusing(target, model):
                program = program_of(model, inputs)
            with refusing(target, model, program):
                file = Path(folder, "model.xml")
                runtime.save_model(runtime.convert_model(program.exported), file, compress_to_fp16=False)
                compiled = _compiled(runtime, file, self.threads or torch.get_num_threads(), hint)
                run = partial(compiled, [tensor.numpy() for tensor in program.inputs])
                outputs = [torch.as_tensor(array) for array in run().values()]
            yield Loaded(
                target=target,
                run=run,
                stored=sum(part.stat().st_size for part in Path(folder).iterdir()),
                device="cpu",
                threads=compiled.get_property("INFERENCE_NUM_THREADS"),
                agreement=agreement(target, program.outputs, outputs, dtype),
            )


def _compiled(runtime: Any, file: Path, threads: int, hint: str) -> Any:
    wanted = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_NUM_THREADS": threads}
    compiled = runtime.Core().compile_model(file, "CPU", {**wanted, "INFERENCE_PRECISION_HINT": hint})
    used = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    if used != hint:
        raise TargetError(
            f"this processor computes in {used} where OpenVINO is asked for {hint}; leave precision= at fp32"
        )
    return compiled
