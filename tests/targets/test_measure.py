"""All models are loaded on a target, take turns there, and are gone from it afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
import torch
from torch import nn

from secateur.errors import TargetError
from secateur.targets import Agreement, Latency, Loaded, Measurement, Memory, measure
from secateur.torch import Inputs

X = torch.zeros(2, 4)


@dataclass(frozen=True)
class Device:
    """A target that writes down what is done on it."""

    log: list[str] = field(default_factory=list)

    @contextmanager
    def load(self, model: nn.Module, inputs: Inputs) -> Iterator[Loaded]:
        name = str(getattr(model, "out_features", "it cannot do this"))
        if not name.isdigit():
            raise TargetError(f"{type(model).__name__} cannot be loaded")
        self.log.append(f"load {name}")
        try:
            yield Loaded("a device", lambda: self.log.append(name), 10, "device:0", 3, Agreement(1e-6, 1e-3))
        finally:
            self.log.append(f"leave {name}")


def test_all_models_are_loaded_before_they_take_turns_and_leave_in_the_end() -> None:
    device = Device()

    measure({"a": nn.Linear(4, 1), "b": nn.Linear(4, 2)}, X, target=device, runs=2, seconds=0)

    assert device.log == ["load 1", "load 2", *["1", "2"] * 3, "leave 2", "leave 1"]


def test_a_measurement_says_what_the_target_says_of_itself() -> None:
    one = measure({"a": nn.Linear(4, 1)}, X, target=Device(), runs=2, seconds=0)["a"]

    assert (one.target, one.device, one.threads, one.stored) == ("a device", "device:0", 3, 10)
    assert one.agreement == Agreement(1e-6, 1e-3)
    assert one.memory is None


def test_where_one_model_is_refused_the_others_leave_and_nothing_is_run() -> None:
    device = Device()

    with pytest.raises(TargetError, match="ReLU cannot be loaded"):
        measure({"good": nn.Linear(4, 1), "bad": nn.ReLU()}, X, target=device)

    assert device.log == ["load 1", "leave 1"]


def test_a_measurement_reads_as_one_line() -> None:
    latency = Latency((0.001, 0.002, 0.003))
    first = Measurement(latency, Memory(2**20, 2**20), stored=2**19, target="PyTorch eager", device="cpu", threads=2)
    second = Measurement(latency, None, stored=2**19, target="ONNX Runtime 1.32.0", device="cpu", threads=1)

    assert str(first) == (
        "median 2.000 ms (quartiles 1.500 to 2.500, p99 2.980, 3 runs, PyTorch eager on cpu, 2 threads), "
        "peak memory 2.0 MiB, 0.5 MiB stored"
    )
    assert str(second).endswith("ONNX Runtime 1.32.0 on cpu, 1 threads), 0.5 MiB stored")
