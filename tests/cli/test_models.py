"""What MODEL may be, and what is said where it is none."""

import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from secateur.cli import libraries
from secateur.cli.models import load_model
from secateur.errors import ArtefactError, JobError, MissingExtraError, ModelError


def test_a_factory_gives_model_and_inputs(folder: Path) -> None:
    subject = load_model("net.py:build_with_inputs", folder=folder)

    assert subject.name == "Net"
    assert isinstance(subject.inputs, torch.Tensor)
    assert subject.inputs.shape == (1, 1, 6, 6)
    assert not subject.model.training


def test_a_class_is_a_factory_and_inputs_are_written_down(folder: Path) -> None:
    subject = load_model("net.py:Net", inputs=("2x1x5x5",), folder=folder)

    assert isinstance(subject.inputs, torch.Tensor)
    assert subject.inputs.shape == (2, 1, 5, 5)


def test_inputs_that_are_written_down_win(folder: Path) -> None:
    subject = load_model("net.py:build_with_inputs", inputs=("3x1x9x9",), folder=folder)

    assert isinstance(subject.inputs, torch.Tensor)
    assert subject.inputs.shape == (3, 1, 9, 9)


def test_a_module_is_taken_as_it_is_not_called(folder: Path) -> None:
    (folder / "ready.py").write_text("from torch import nn\nmodel = nn.Linear(4, 2)")

    assert isinstance(load_model("ready.py:model", inputs=("1x4",), folder=folder).model, nn.Linear)


def test_weights_are_filled_in(folder: Path) -> None:
    dense = load_model("net.py:build_with_inputs", folder=folder).model
    save_file(dense.state_dict(), folder / "dense.safetensors")

    again = load_model("net.py:build_with_inputs", weights="dense.safetensors", folder=folder).model

    assert all(torch.equal(a, b) for a, b in zip(dense.parameters(), again.parameters(), strict=True))


def test_weights_that_run_code_are_refused(folder: Path) -> None:
    (folder / "dense.pt").write_bytes(b"cos\nsystem\n(S'touch owned'\ntR.")

    with pytest.raises(ArtefactError, match=r"dense.pt"):
        load_model("net.py:build_with_inputs", weights="dense.pt", folder=folder)
    assert not (folder / "owned").exists()


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        (
            "def build(): return 3",
            ModelError,
            r"gives a int; let it return an nn.Module, or \(module, example_inputs\)",
        ),
        ("def build(): pass", ModelError, "gives a None"),
        (
            "from torch import nn\ndef build(): return nn.Linear(2, 2), 3",
            ModelError,
            "example inputs of type int; make it a tensor",
        ),
        ("def build(): raise OSError('no disk')", ModelError, r"fails: OSError: no disk \(wrong.py:1\)"),
        ("def build(x): pass", ModelError, "fails: TypeError: .*missing 1 required positional argument: 'x'"),
        (
            "from torch import nn\ndef build(): return nn.Linear(2, 2)",
            JobError,
            "says nothing of its inputs: give their shapes",
        ),
    ],
)
def test_a_factory_that_gives_no_model_is_refused(
    folder: Path, text: str, error: type[Exception], message: str
) -> None:
    (folder / "wrong.py").write_text(text)

    with pytest.raises(error, match=message):
        load_model("wrong.py:build", folder=folder)
    sys.modules.pop("wrong", None)


@pytest.mark.parametrize(
    ("spec", "library", "package"),
    [
        ("timm/resnet18", "timm", "timm"),
        ("torchvision/resnet18", "torchvision", "torchvision"),
        ("hf/tiny", "transformers", "transformers"),
    ],
)
def test_a_library_that_is_not_installed_is_named_with_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch, spec: str, library: str, package: str
) -> None:
    (folder / "tiny").mkdir()
    (folder / "tiny" / "config.json").write_text("{}")
    monkeypatch.setitem(sys.modules, library, None)

    with pytest.raises(
        MissingExtraError, match=rf"models of {package} need it to be installed: pip install 'secateur\[zoo\]'"
    ):
        load_model(spec, folder=folder)


def test_a_library_that_does_not_fit_torch_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(libraries.importlib, "import_module", broken)

    with pytest.raises(
        MissingExtraError, match=r"torchvision is installed, but cannot be imported: .*nms.*; install the build"
    ):
        load_model("torchvision/resnet18")


def test_a_model_that_timm_does_not_have_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(list_models=lambda: ["resnet18", "vit_base"]))

    with pytest.raises(JobError, match=r"timm has no model 'resnet81'; did you mean 'resnet18'?"):
        load_model("timm/resnet81")


def test_a_folder_called_like_a_library_may_hold_models(folder: Path) -> None:
    (folder / "timm").mkdir()
    (folder / "timm" / "net_of_mine.py").write_text((folder / "net.py").read_text())

    assert load_model("timm/net_of_mine.py:build_with_inputs", folder=folder).name == "Net"


def test_a_folder_without_a_configuration_is_no_model_of_hugging_face(folder: Path) -> None:
    with pytest.raises(
        JobError, match=r"hf/nowhere: there is no .*nowhere/config.json; name a folder that save_pretrained wrote"
    ):
        load_model("hf/nowhere", folder=folder)


def test_weights_of_hugging_face_that_may_run_code_are_refused(folder: Path) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    save_tiny_llama(folder / "tiny", weights=False)
    (folder / "tiny" / "pytorch_model.bin").write_bytes(b"")

    with pytest.raises(ModelError, match=r"pytorch_model.bin, which may run code"):
        load_model("hf/tiny", folder=folder)


@pytest.mark.skipif(importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed: make zoo")
def test_models_of_torchvision_come_with_their_image_size() -> None:
    subject = load_model("torchvision/mobilenet_v3_small")

    assert isinstance(subject.inputs, torch.Tensor)
    assert subject.inputs.shape == (1, 3, 224, 224)
    assert subject.name == "mobilenet_v3_small"


@pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed: make zoo")
def test_models_of_timm_come_with_their_image_size() -> None:
    subject = load_model("timm/test_resnet")

    assert isinstance(subject.inputs, torch.Tensor)
    assert subject.inputs.shape == (1, 3, 160, 160)


@pytest.mark.parametrize("weights", [True, False])
def test_models_of_hugging_face_come_with_tokens(folder: Path, weights: bool) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    save_tiny_llama(folder / "tiny", weights=weights)

    subject = load_model("hf/tiny", folder=folder)

    assert isinstance(subject.inputs, dict)
    assert subject.inputs["input_ids"].shape == (1, 32)
    assert subject.model(**subject.inputs).logits.shape == (1, 32, 50)


def save_tiny_llama(folder: Path, *, weights: bool) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2,
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    if weights:
        LlamaForCausalLM(config).save_pretrained(folder)
    else:
        config.save_pretrained(folder)
