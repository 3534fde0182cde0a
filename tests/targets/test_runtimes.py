"""What holds for every runtime that takes a model from PyTorch: it computes the same, or says clearly why it cannot."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import DataError, MissingExtraError, TargetError
from secateur.targets import OnnxRuntime, OpenVINO, Target, measure
from secateur.testing.zoo import ZOO

PACKAGES: dict[type[Any], tuple[str, ...]] = {
    OnnxRuntime: ("onnxruntime", "onnx", "onnxscript"),
    OpenVINO: ("openvino",),
}
KINDS = ("plain_cnn", "mlp", "multihead_attention", "lstm", "several_inputs_and_outputs", "cross_attention")


@pytest.fixture(params=list(PACKAGES), ids=lambda kind: kind.__name__)
def runtime(request: pytest.FixtureRequest) -> type[Any]:
    """The class of a target whose packages are installed."""
    for package in PACKAGES[request.param]:
        pytest.importorskip(package, reason=f"{package} is not installed: make install")
    return request.param


class Forms(nn.Module):
    """Takes a number and None beside tensors, gives a dict with more than tensors, and counts its runs."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drop = nn.Linear(4, 3), nn.Dropout()
        self.register_buffer("runs", torch.zeros(()))

    def forward(
        self, x: Tensor, times: int = 1, mask: Tensor | None = None, bias: Tensor | None = None
    ) -> dict[str, Any]:
        self.runs += 1
        y = self.drop(self.layer(x)) * times
        return {"y": y if bias is None else y + bias, "x": x, "nothing": mask, "number": times, "largest": y.argmax(1)}


class Branching(nn.Module):
    """Asks what its values are."""

    def forward(self, x: Tensor) -> Tensor:
        return x if float(x.sum()) > 0 else -x


@pytest.mark.parametrize("name", KINDS)
def test_models_of_each_kind_load_and_agree(runtime: type[Any], name: str) -> None:
    entry = next(entry for entry in ZOO if entry.name == name)

    with runtime(threads=1).load(entry.build(), entry.inputs()) as loaded:
        loaded.run()

    assert loaded.agreement is not None
    assert loaded.agreement.difference < 1e-5  # the rounding of single precision in a few layers
    assert (loaded.device, loaded.threads) == ("cpu", 1)


@pytest.mark.parametrize(
    "inputs",
    [
        torch.ones(2, 4),
        (torch.ones(2, 4), 3),
        (torch.ones(2, 4), 3, None, torch.ones(3)),
        {"bias": torch.ones(3), "x": torch.ones(2, 4), "times": 5},
    ],
    ids=["tensor", "tuple", "all", "mapping"],
)
def test_inputs_and_outputs_may_be_more_than_tensors(runtime: type[Any], inputs: Any) -> None:
    with runtime().load(Forms(), inputs) as loaded:
        assert loaded.agreement is not None


def test_a_model_is_measured_as_it_is_used_and_stays_as_it_was(runtime: type[Any]) -> None:
    model = Forms().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    with runtime().load(model, torch.ones(2, 4)):
        pass

    assert all(module.training for module in model.modules())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_fewer_weights_make_a_smaller_file(runtime: type[Any]) -> None:
    models = {"wide": nn.Linear(64, 640), "narrow": nn.Linear(64, 64)}

    found = measure(models, torch.zeros(1, 64), target=runtime(threads=1), runs=2, seconds=0)

    for name, model in models.items():
        weights = sum(parameter.nbytes for parameter in model.parameters())
        assert weights < found[name].stored < weights + 20_000
    assert found["wide"].memory is None


def test_threads_are_those_of_pytorch_unless_they_are_given(runtime: type[Any]) -> None:
    with runtime().load(nn.Linear(4, 3), torch.ones(2, 4)) as loaded:
        assert loaded.threads == torch.get_num_threads()
    with pytest.raises(DataError, match="0 threads; give at least 1"):
        runtime(threads=0)


def test_nothing_is_printed_and_nothing_warned_of(runtime: type[Any], capfd: pytest.CaptureFixture[str]) -> None:
    with runtime().load(nn.Sequential(nn.MaxPool2d(2), nn.Flatten()), torch.ones(1, 1, 4, 4)) as loaded:
        loaded.run()

    assert capfd.readouterr() == ("", "")


def test_a_model_that_cannot_be_exported_is_refused_with_the_line(runtime: type[Any]) -> None:
    with (
        pytest.raises(
            TargetError, match=r"Branching cannot be exported: .*test_runtimes.py:\d+.*Eager\(\) takes every"
        ),
        runtime().load(Branching(), torch.ones(2)),
    ):
        pass


def test_an_operator_that_the_runtime_has_not_is_named_with_its_line(runtime: type[Any]) -> None:
    class Eigenvalues(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.eigvals(x).abs()

    with (
        pytest.raises(TargetError, match=r"cannot run Eigenvalues: .* at aten.*eig.* \(.*test_runtimes.py:\d+\)"),
        runtime().load(Eigenvalues(), torch.eye(3)),
    ):
        pass


def test_several_calls_are_refused(runtime: type[Any]) -> None:
    with (
        pytest.raises(TargetError, match="a program is that of one call; give the inputs of one, not a list of 2"),
        runtime().load(nn.ReLU(), [torch.ones(2), torch.ones(3)]),
    ):
        pass


def test_what_the_runtime_cannot_do_is_told_in_its_own_words(runtime: type[Any]) -> None:
    with (
        pytest.raises(TargetError, match=r"cannot run Linear: .+; change what it names, or take another target"),
        runtime().load(nn.Linear(4, 3).bfloat16(), torch.ones(2, 4).bfloat16()),
    ):
        pass


@pytest.mark.parametrize("kind", PACKAGES)
def test_a_missing_package_is_named_with_what_installs_it(kind: type[Target], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES[kind]:
        monkeypatch.setitem(sys.modules, package, None)
    extra = {OnnxRuntime: "onnx", OpenVINO: "openvino"}[kind]

    with (
        pytest.raises(
            MissingExtraError, match=rf"{PACKAGES[kind][0]} is needed here.*pip install 'secateur\[{extra}\]'"
        ),
        kind().load(nn.Linear(4, 3), torch.ones(2, 4)),
    ):
        pass


def test_other_numbers_than_those_of_pytorch_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ort = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make install")

    class Wrong:
        """A session that is off by a hundredth."""

        def __init__(self, *arguments: Any, **settings: Any) -> None:
            self.right = session(*arguments, **settings)

        def get_inputs(self) -> Any:
            return self.right.get_inputs()

        def run(self, *arguments: Any) -> list[Any]:
            return [1.01 * output for output in self.right.run(*arguments)]

    session = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", Wrong)

    with pytest.raises(
        TargetError, match=r"ONNX Runtime .* computes something else than PyTorch: output 0 of 1, .* 1\.0e-02"
    ):
        measure({"dense": nn.Linear(4, 3)}, torch.ones(2, 4), target=OnnxRuntime())


def test_openvino_computes_in_bf16_where_the_processor_can() -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: make install")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("this processor has no arithmetic in bf16")
    generator = torch.Generator().manual_seed(0)
    model, x = nn.Linear(256, 64), torch.randn(8, 256, generator=generator)

    with OpenVINO(precision="bf16").load(model, x) as loaded:
        pass

    assert loaded.target.endswith("in bf16")
    assert loaded.agreement is not None
    # A weight and an input are rounded by 2^-9 each at most.
    assert 1e-4 < loaded.agreement.difference < loaded.agreement.tolerance == 5e-2


def test_openvino_refuses_a_precision_that_the_processor_or_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    openvino = pytest.importorskip("openvino", reason="openvino is not installed: make install")
    with pytest.raises(DataError, match="precision 'int4'; OpenVINO is measured in fp32 or bf16"):
        OpenVINO(precision="int4")  # type: ignore[arg-type]
    old = SimpleNamespace(get_property=lambda name: openvino.Type.f32)
    monkeypatch.setattr(openvino, "Core", lambda: SimpleNamespace(compile_model=lambda *arguments: old))

    with (
        pytest.raises(TargetError, match="this processor computes in f32 where OpenVINO is asked for bf16"),
        OpenVINO(precision="bf16").load(nn.Linear(4, 3), torch.ones(2, 4)),
    ):
        pass
