"""Tensors that a run has made go to the disk and stay what they are; nobody else's do."""

import ctypes
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.torch.products import Product, WatchProducts
from secateur.torch.side_by_side import side_by_side
from secateur.torch.spill import Spill, give_back, spilling


def test_all_that_see_the_same_memory_go_on_doing_so(tmp_path: Path) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(100, 300), torch.randn(300, 300)
    spill = Spill(tmp_path)
    with spill:
        y = x @ weight
        view, half, turned = y[1:, :200], y.half()[:, 3], weight.T
        small = torch.ones(3)
    tensors = [x, weight, y, view, half, turned, small]
    before, places = [tensor.clone() for tensor in tensors], [tensor.data_ptr() for tensor in tensors]
    spill.spill()
    assert all(map(torch.equal, tensors, before))
    moved = [tensor.data_ptr() != place for tensor, place in zip(tensors, places, strict=True)]
    assert moved == [False, False, True, True, True, False, False]
    y.add_(1)
    assert view.equal(before[3] + 1)
    assert not list(tmp_path.iterdir()), "the file has no name"
    again = [tensor.data_ptr() for tensor in tensors]
    spill.spill()
    assert [tensor.data_ptr() for tensor in tensors] == again, "what is there already is not moved again"


def test_parameters_go_with_what_they_were_made_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, parts = nn.Linear(100, 300), torch.randn(2, 150, 100)
    with spilling(tmp_path, at_once=150_000):
        made = torch.cat(list(parts))
        kept = made.data_ptr()
        model.weight = nn.Parameter(made)
        again = nn.Linear(100, 300)  # with it, too much is made
        again.weight = model.weight
    assert model.weight.equal(parts.view(300, 100))
    assert model.weight is again.weight
    assert model.weight.requires_grad
    assert model.weight.data_ptr() == made.data_ptr() != kept
    model.weight.data.add_(1)
    assert made.equal(parts.view(300, 100) + 1)
    assert not list(tmp_path.iterdir()), "the file has no name"


def test_views_of_parameters_stay_where_they_are(tmp_path: Path) -> None:
    parameter = nn.Parameter(torch.randn(100, 300))
    place = parameter.data_ptr()
    with spilling(tmp_path, at_once=0):
        view, turned = parameter.detach(), parameter.T
        copy = parameter.clone()
    assert view.data_ptr() == turned.data_ptr() == parameter.data_ptr() == place
    assert copy.equal(parameter)


def test_little_stays_in_memory_and_no_folder_is_made(tmp_path: Path) -> None:
    with spilling(tmp_path / "new", at_once=1 << 20):
        x = torch.ones(100, 300)
        place = x.data_ptr()
    assert x.data_ptr() == place
    assert not (tmp_path / "new").exists()


def test_modules_are_watched_no_longer_than_asked(tmp_path: Path) -> None:
    hooks = torch.nn.modules.module._global_parameter_registration_hooks
    with pytest.raises(KeyError), spilling(tmp_path, at_once=0):
        raise KeyError
    assert not hooks


def test_a_full_disk_is_said_to_who_asked_whatever_others_make_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    def careless() -> None:
        try:
            torch.ones(100, 300)
        except DataError as error:
            raise RuntimeError("something went wrong") from error

    monkeypatch.setattr(tempfile, "NamedTemporaryFile", full)
    with pytest.raises(DataError, match="No space left on device; make room there"), spilling(tmp_path, at_once=0):
        careless()


def test_memory_that_was_freed_goes_back_though_something_lies_behind_it() -> None:
    if sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "malloc_trim"):
        pytest.skip("the C library gives memory back by itself")

    def in_memory() -> int:
        return next(
            int(line.split()[1]) for line in Path("/proc/self/status").read_text().splitlines() if "RssAnon" in line
        )

    tensors = [torch.ones(25_000) for _ in range(500)]  # 50 MB, in pieces that come from the heap
    del tensors[::2], tensors[:-1]
    before = in_memory()
    give_back()
    assert before - in_memory() > 20_000
    assert tensors[0].sum() == 25_000


class Odd(nn.Module):
    """Writes in place, keeps things in the module, and goes on with views."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(96, 96), nn.Linear(96, 192), nn.Linear(96, 96)
        self.kept: Any = None

    def forward(self, x: Tensor) -> Tensor:
        self.kept = x = self.first(x)
        left, right = self.second(x.relu()).chunk(2, dim=-1)
        left.mul_(right.sigmoid())
        y: Tensor = self.last(left + self.kept)
        return y


def test_runs_are_the_same_with_and_without_the_disk(tmp_path: Path) -> None:
    torch.manual_seed(0)
    pieces = list(torch.randn(6, 50, 96).split(2))

    def seen(room: Path | None) -> list[tuple[str, dict[int, Tensor]]]:
        models, found = [Odd() for _ in pieces], []
        for model in models[1:]:
            model.load_state_dict(models[0].state_dict())

        def change(product: Product, read: Mapping[int, Tensor]) -> None:
            found.append((product.tensor, {number: x.clone() for number, x in read.items()}))

        products = [
            Product(f"{name}.weight", 1, 0, 0, size) for name, size in (("first", 96), ("second", 192), ("last", 96))
        ]
        side_by_side(models, pieces, products, change, WatchProducts, room)
        return found

    torch.manual_seed(1)
    inside = seen(None)
    torch.manual_seed(1)
    outside = seen(tmp_path)
    assert (
        [name for name, _ in inside]
        == [name for name, _ in outside]
        == ["first.weight", "second.weight", "last.weight"]
    )
    for (_, one), (_, other) in zip(inside, outside, strict=True):
        assert all(one[number].equal(other[number]) for number in range(3))


def test_no_room_on_the_disk_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        def __init__(self, **_: Any) -> None:
            raise OSError(28, "No space left on device")

    spill = Spill(tmp_path)
    with spill:
        y = torch.randn(100, 300)
    monkeypatch.setattr(tempfile, "NamedTemporaryFile", Full)
    with pytest.raises(DataError, match="No space left on device; make room there, or use fewer samples"):
        spill.spill()
    assert y.isfinite().all()


def test_files_are_closed(tmp_path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        pytest.skip("the system does not tell open files")
    before, kept = len(list(folder.iterdir())), []
    for _ in range(20):
        spill = Spill(tmp_path)
        with spill:
            kept.append(torch.randn(100, 300))
        spill.spill()
    assert len(list(folder.iterdir())) == before
