"""The target ONNX Runtime: models as ONNX files, on the CPU."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from secateur.targets.agreement import agreement
from secateur.targets.refusal import installed, refusing
from secateur.targets.target import Loaded, check_threads
from secateur.torch import Inputs
from secateur.torch.program import Program, program_of


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU, one operator after the other: `pip install 'secateur[onnx]'`.

    The model is exported with the shapes of the example inputs, written as an ONNX file, and loaded from there.

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
        """The model in a session of its own; see `Target`."""
        runtime, _ = installed("onnxruntime", extra="onnx"), installed("onnxscript", extra="onnx")
        target = f"ONNX Runtime {runtime.__version__}"
        threads = self.threads or torch.get_num_threads()
        with TemporaryDirectory() as folder:
            with refusing(target, model):
                program = program_of(model, inputs)
            with refusing(target, model, program):
                session = _session(runtime, _written(program, Path(folder)), threads)
                names = [one.name for one in session.get_inputs()]
                arrays = [tensor.numpy() for tensor in program.inputs]
                run = partial(session.run, None, dict(zip(names, arrays, strict=True)))
                outputs = [torch.as_tensor(array) for array in run()]
            yield Loaded(
                target=target,
                run=run,
                stored=sum(file.stat().st_size for file in Path(folder).iterdir()),
                device="cpu",
                threads=threads,
                agreement=agreement(target, program.outputs, outputs),
            )


def _written(program: Program, folder: Path) -> Path:
    """The program as an ONNX file; where it is larger than ONNX allows, its weights are in a second one."""
    file, logger = folder / "model.onnx", logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)  # it tells which other packages it could use
    try:
        made: Any = torch.onnx.export(program.exported, dynamo=True, verbose=False)
        made.save(file)
    finally:
        logger.setLevel(before)
    return file


def _session(runtime: Any, file: Path, threads: int) -> Any:
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3  # errors; it warns of weights that it does not need
    # Its threads wait for work by spinning: between two runs, they would take the time of the network whose turn it is.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
