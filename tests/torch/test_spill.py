"""Tensors that a run has made go to the disk and stay what they are; nobody else's do."""

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
from secateur.torch.spill import Spill


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
    with pytest.raises(DataError, match="No space left on device; use fewer samples"):
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
