"""Zeros take a bit each, and come back bit for bit."""

import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import secateur as sc
from secateur.artefact import read
from secateur.artefact.commit import describe
from secateur.artefact.sparse import entries, restored, stored
from secateur.errors import ArtefactError


def weights_of(folder: Path) -> Path:
    return next(folder.glob("weights-*.safetensors"))


@pytest.mark.parametrize(
    ("dtype", "sparsity", "share"),
    [
        (torch.float32, 0.5, 0.535),
        (torch.bfloat16, 0.5, 0.565),
        (torch.bfloat16, 0.9, 0.165),
        (torch.float16, 0.9, 0.165),
    ],
)
def test_what_zeros_save(dtype: torch.dtype, sparsity: float, share: float, tmp_path: Path) -> None:
    model = nn.Linear(512, 512, bias=False).to(dtype)
    sc.save(model, tmp_path / "dense")
    result = sc.sparsify(model, [torch.randn(64, 512).to(dtype)], sparsity=sparsity, solver=sc.solvers.keep)
    sc.save(result.model, tmp_path / "sparse")
    before, after = (weights_of(tmp_path / name).stat().st_size for name in ("dense", "sparse"))
    assert after <= share * before
    again = sc.load(nn.Linear(512, 512, bias=False).to(dtype), tmp_path / "sparse")
    assert again.weight.equal(result.model.weight)


def test_a_model_of_both_halves_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)

    def model() -> nn.Module:
        return nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))

    dense, x = model(), torch.randn(32, 16)
    small = sc.compact(dense, sc.trace(dense, x).plan({"0": range(40)}))
    result = sc.sparsify(small, [x], sparsity=0.75)
    sc.save(result.model, tmp_path)
    assert {name: tensor.values for name, tensor in read(tmp_path).tensors.items()} == {
        "0.weight": 160, "0.bias": None, "2.weight": 80, "2.bias": None,
    }  # fmt: skip
    again = sc.load(model(), tmp_path)
    assert again(x).equal(result.model(x))
    assert json.loads((tmp_path / "secateur.json").read_text())["format"] == 2


def test_dense_models_are_stored_as_before(tmp_path: Path) -> None:
    sc.save(nn.Linear(4, 4), tmp_path)
    assert json.loads((tmp_path / "secateur.json").read_text())["format"] == 1
    assert load_file(weights_of(tmp_path)).keys() == {"weight", "bias"}


@given(
    st.lists(st.sampled_from([0.0, -0.0, 1.5, -2.0, float("inf"), float("nan"), 1e-40]), max_size=60),
    st.sampled_from([1, 3]),
)
def test_every_bit_comes_back(values: list[float], rows: int) -> None:
    tensor = torch.tensor(values[: len(values) // rows * rows], dtype=torch.float32).view(rows, -1)
    for kind in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
        given_ = {"x": tensor.to(kind)}
        how = stored(given_)["x"]
        found = restored("x", entries("x", given_["x"], how), how)
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.itemsize]
        assert found.view(bits).equal(given_["x"].view(bits))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors["weight#bitmap"].fill_(255), "has 256 places for 64 values"),
        (lambda tensors: tensors.pop("weight#bitmap"), "not those of the manifest: weight#bitmap"),
        (lambda tensors: tensors.update({"weight#bitmap": tensors["weight#bitmap"].char()}), "is int8, not uint8"),
        (lambda tensors: tensors.update(weight=tensors["weight"][1:]), "not those of the manifest: weight"),
    ],
)
def test_a_bitmap_that_was_altered_is_refused(change: object, message: str, tmp_path: Path) -> None:
    model = nn.Linear(16, 16)
    sc.save(sc.sparsify(model, [torch.randn(8, 16)], sparsity=0.75).model, tmp_path)
    tensors: dict[str, Tensor] = load_file(weights_of(tmp_path))
    change(tensors)  # type: ignore[operator]
    weights_of(tmp_path).unlink()
    save_file(tensors, tmp_path / "new")
    found = describe(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / found.name)
    forged(tmp_path, {"size": found.size, "sha256": found.sha256})
    before = model.weight.clone()
    with pytest.raises(ArtefactError, match=message):
        sc.load(model, tmp_path)
    assert model.weight.equal(before)


def forged(folder: Path, weights: dict[str, object]) -> None:
    """Change the manifest as somebody would who knows how it is sealed."""
    import hashlib

    content = json.loads((folder / "secateur.json").read_text()) | {"weights": weights}
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "secateur.json").write_text(json.dumps(content))
