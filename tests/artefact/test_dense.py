"""Weights that a user brings fill the model they belong to, in every usual wrapping, and no other; any model writes its own."""

import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.artefact import load_weights, save_weights
from secateur.errors import ArtefactError

Weights = dict[str, Tensor]


def dense(seed: int = 1) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(OrderedDict(conv=nn.Conv2d(3, 4, 1), norm=nn.BatchNorm2d(4)))


@pytest.fixture
def weights() -> Weights:
    return dict(dense(seed=0).state_dict())


def plain(weights: Weights) -> object:
    return weights


def in_state_dict(weights: Weights) -> object:
    return {"state_dict": weights, "epoch": 3}


def in_model(weights: Weights) -> object:
    return {"model": weights, "optimizer": {"state": {}}, "args": "--lr 1"}


def of_data_parallel(weights: Weights) -> object:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def of_compiled_data_parallel(weights: Weights) -> object:
    return {"state_dict": {f"_orig_mod.module.{name}": tensor for name, tensor in weights.items()}}


def without_counters(weights: Weights) -> object:
    return {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize(
    "wrapped", [plain, in_state_dict, in_model, of_data_parallel, of_compiled_data_parallel, without_counters]
)
@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt"])
def test_a_state_dict_of_torch_fills_the_model(
    wrapped: Callable[[Weights], object], suffix: str, weights: Weights, tmp_path: Path
) -> None:
    torch.save(wrapped(weights), tmp_path / f"dense{suffix}")
    model = dense()

    load_weights(model, tmp_path / f"dense{suffix}")

    assert_equal(model, weights)


@pytest.mark.parametrize("wrapped", [plain, of_data_parallel, without_counters])
def test_safetensors_fill_the_model(wrapped: Callable[[Weights], Weights], weights: Weights, tmp_path: Path) -> None:
    save_file(wrapped(weights), tmp_path / "dense.safetensors")
    model = dense()

    load_weights(model, tmp_path / "dense.safetensors")

    assert_equal(model, weights)


def test_a_model_with_a_module_of_its_own_called_module_keeps_its_names(tmp_path: Path) -> None:
    model, trained = nn.Module(), nn.Module()
    model.module, trained.module = nn.Linear(2, 2), nn.Linear(2, 2)
    torch.save(trained.state_dict(), tmp_path / "dense.pt")

    load_weights(model, tmp_path / "dense.pt")

    assert torch.equal(model.module.weight, trained.module.weight)


def test_half_precision_weights_fill_a_single_precision_model(weights: Weights, tmp_path: Path) -> None:
    half = {name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    save_file(half, tmp_path / "dense.safetensors")
    model = dense()

    load_weights(model, tmp_path / "dense.safetensors")

    assert model.conv.weight.dtype == torch.float32
    assert torch.equal(model.conv.weight, half["conv.weight"].float())


def cut_short(weights: Weights, path: Path) -> None:
    torch.save(weights, path)
    path.write_bytes(path.read_bytes()[:200])


def empty(weights: Weights, path: Path) -> None:
    path.touch()


def whole_model(weights: Weights, path: Path) -> None:
    torch.save(dense(), path)


def none_at_all(weights: Weights, path: Path) -> None: ...


def saved(change: Callable[[dict[str, Any]], object]) -> Callable[[Weights, Path], None]:
    def save(weights: Weights, path: Path) -> None:
        torch.save(change(dict(weights)), path)

    return save


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (none_at_all, "there is no file .*dense.pt"),
        (cut_short, "dense.pt cannot be read as weights: .*; is it damaged or cut short"),
        (empty, "dense.pt (cannot be read as weights|holds more than weights, or is damaged)"),
        (whole_model, "dense.pt holds more than weights, or is damaged; save model.state_dict"),
        (saved(lambda w: {"epoch": 3, "weights": w}), r"holds keys \['epoch', 'weights'\] and no state dict"),
        (saved(lambda w: {"model": w, "state_dict": w}), r"holds keys \['model', 'state_dict'\] and no state dict"),
        (saved(lambda w: [*w.values()]), "holds a list and no state dict"),
        (saved(lambda w: {}), "and no state dict"),
        (
            saved(lambda w: {k: v for k, v in w.items() if k != "conv.bias"}),
            "Sequential: conv.bias is missing in the file",
        ),
        (saved(lambda w: w | {"fc.weight": torch.ones(1)}), "fc.weight is missing in the model"),
        (
            saved(lambda w: w | {"conv.bias": torch.ones(5)}),
            r"conv.bias has shape \(5,\) in the file, \(4,\) in the model",
        ),
        (
            saved(lambda w: w | {"conv.bias": torch.ones(4).int()}),
            "conv.bias is int32 in the file, float32 in the model",
        ),
        (saved(lambda w: {f"net.{k}": v for k, v in w.items()}), "conv.weight is missing in the file; .* and 8 more"),
    ],
)
def test_what_does_not_fit_is_named_and_the_model_untouched(
    spoil: Callable[[Weights, Path], None], message: str, weights: Weights, tmp_path: Path
) -> None:
    model = dense()
    before = copy.deepcopy(model.state_dict())
    spoil(weights, tmp_path / "dense.pt")

    with pytest.raises(ArtefactError, match=f"(?s){message}"):
        load_weights(model, tmp_path / "dense.pt")

    assert_equal(model, before)


def test_damaged_safetensors_and_unknown_kinds_are_refused(tmp_path: Path) -> None:
    for name, message in (
        ("dense.safetensors", "cannot be read as weights"),
        ("dense.h5", "of unknown kind; weights come as"),
    ):
        (tmp_path / name).write_bytes(b"\0" * 20)
        with pytest.raises(ArtefactError, match=message):
            load_weights(dense(), tmp_path / name)


def test_a_model_on_the_meta_device_cannot_be_filled(weights: Weights, tmp_path: Path) -> None:
    save_file(weights, tmp_path / "dense.safetensors")

    with pytest.raises(ArtefactError, match=r"conv\.weight is on the meta device"):
        load_weights(dense().to("meta"), tmp_path / "dense.safetensors")


def test_written_weights_are_the_state_dict_and_fill_the_model(weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    path.write_text("what was there before")
    save_weights(dense(seed=0), path)
    found, model = load_file(path), dense()
    assert found.keys() == weights.keys()
    assert all(found[name].equal(tensor) for name, tensor in weights.items())
    load_weights(model, path)
    assert_equal(model, weights)
    assert list(tmp_path.iterdir()) == [path]


def test_tied_and_sparse_weights_are_written_in_full(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)).bfloat16()
    model[1].weight = model[0].weight
    model[0].weight.data[:3] = 0
    save_weights(model, tmp_path / "small.safetensors")
    found = load_file(tmp_path / "small.safetensors")
    assert found["0.weight"].equal(model[0].weight)
    assert found["1.weight"].equal(model[0].weight)


@pytest.mark.parametrize(
    ("name", "message"),
    [("small.pt", "weights are written as .safetensors, not as 'small.pt'"), ("no/small.safetensors", "cannot write")],
)
def test_weights_that_cannot_be_written_are_refused(name: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=message):
        save_weights(dense(), tmp_path / name)


def assert_equal(model: nn.Module, weights: Weights) -> None:
    state = model.state_dict()
    assert list(state) == list(weights)
    assert all(torch.equal(state[name], tensor) for name, tensor in weights.items())
