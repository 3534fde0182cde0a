"""Zeros take a bit each or less, and come back bit for bit."""

import hashlib
import json
import zlib
from collections.abc import Callable
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
from secateur.artefact.sparse import packed, restored
from secateur.errors import ArtefactError


def weights_of(folder: Path) -> Path:
    return next(folder.glob("weights-*.safetensors"))


@pytest.mark.parametrize(
    ("dtype", "sparsity", "share"),
    [
        (torch.float32, 0.5, 0.535),
        (torch.bfloat16, 0.5, 0.565),
        (torch.bfloat16, 0.9, 0.14),
        (torch.float16, 0.9, 0.14),
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


@pytest.mark.parametrize(
    ("pattern", "bits"),
    [
        (sc.patterns.NofM(2, 4), 0.75),  # a number of 3 bits for each cell
        (sc.patterns.NofM(1, 8), 0.47),
        (sc.patterns.Block(4, 4), 0.12),
        (sc.patterns.Block(16, 16), 0.03),
    ],
    ids=str,
)
def test_what_is_regular_takes_less_than_a_bit(pattern: sc.patterns.Pattern, bits: float, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(1024, 1024, bias=False)
    sparsity = None if isinstance(pattern, sc.patterns.NofM) else 0.5
    result = sc.sparsify(
        model, [torch.randn(8, 1024)], sparsity=sparsity, pattern=pattern, score=sc.scores.Magnitude(), solver=[]
    )
    stored = sc.save(result.model, tmp_path).tensors["weight"]
    assert stored.values == int(result.plan.stays["weight"].sum())
    assert stored.bitmap is not None
    assert stored.bitmap * 8 <= bits * 1024 * 1024
    assert sc.load(model, tmp_path).weight.equal(result.model.weight)
    assert json.loads((tmp_path / "secateur.json").read_text())["format"] == 3


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
        given_ = tensor.to(kind)
        how, entries = packed("x", given_, {})
        assert {name: tuple(entry.shape) for name, entry in entries.items()} == how.entries("x")
        bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[kind.itemsize]
        assert restored("x", entries, how).view(bits).equal(given_.view(bits))


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
    forged(tmp_path, weights={"size": found.size, "sha256": found.sha256})
    before = model.weight.clone()
    with pytest.raises(ArtefactError, match=message):
        sc.load(model, tmp_path)
    assert model.weight.equal(before)


def blocks() -> Tensor:
    weight = torch.randn(64, 64)
    weight[:32] = 0
    return weight


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda bitmap: bitmap.roll(1), "the bitmap of x is damaged: Error"),
        (lambda bitmap: bitmap[:-4], "the bitmap of x is damaged: it has not 512 bytes"),
        (lambda bitmap: deflated(bytes(511)), "the bitmap of x is damaged: it has not 512 bytes"),
        (lambda bitmap: deflated(bytes(1 << 26)), "the bitmap of x is damaged: it has not 512 bytes"),
        (lambda bitmap: torch.cat([bitmap, bitmap]), "the bitmap of x is damaged: it has not 512 bytes"),
        (lambda bitmap: deflated(bytes(512)), "the bitmap of x has 0 places for 2048 values"),
        (lambda bitmap: bitmap.char(), "is int8, not uint8"),
    ],
)
def test_a_deflated_bitmap_that_was_altered_is_refused(change: Callable[[Tensor], Tensor], message: str) -> None:
    how, entries = packed("x", blocks(), {})
    assert how.bitmap is not None
    entries["x#bitmap"] = change(entries["x#bitmap"])
    with pytest.raises(ArtefactError, match=message):
        restored("x", entries, how)


def deflated(plain: bytes) -> Tensor:
    return torch.frombuffer(bytearray(zlib.compress(plain)), dtype=torch.uint8)


@pytest.mark.parametrize("bitmap", [0, -1, 513, "many"])
def test_a_bitmap_of_no_sensible_size_is_refused(bitmap: object, tmp_path: Path) -> None:
    model = nn.Linear(64, 64, bias=False)
    model.weight.data = blocks()
    sc.save(model, tmp_path)
    tensors = json.loads((tmp_path / "secateur.json").read_text())["tensors"]
    tensors["weight"]["bitmap"] = bitmap
    forged(tmp_path, tensors=tensors)
    with pytest.raises(ArtefactError, match="is not an artefact's manifest: ValueError"):
        read(tmp_path)


def forged(folder: Path, **changes: object) -> None:
    """Change the manifest as somebody would who knows how it is sealed."""
    content = json.loads((folder / "secateur.json").read_text()) | changes
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "secateur.json").write_text(json.dumps(content))
