"""Pieces of data go through a model in step: each product waits for all of them, and an error ends them all."""

import threading
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.torch.products import Product, WatchProducts
from secateur.torch.side_by_side import side_by_side


class Routed(nn.Module):
    """The sign of the first number decides which of two layers a sample goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.last((self.first if x[0, 0] > 0 else self.second)(x))
        return y


def products_of(model: nn.Module, *inputs: Tensor) -> list[Product]:
    found: dict[Product, None] = {}

    def visit(product: Product, x: Tensor, run: object) -> Tensor:
        found[product] = None
        y: Tensor = run()  # type: ignore[operator]
        return y

    for x in inputs:
        with torch.no_grad(), WatchProducts(model, visit):  # type: ignore[arg-type]
            model(x)
    return list(found)


def test_each_product_waits_until_all_pieces_have_come_to_it() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2))
    pieces = [torch.randn(n, 3) for n in (1, 4, 2)]
    seen = []

    def change(product: Product, read: Mapping[int, Tensor]) -> None:
        seen.append((product.tensor, {number: x.clone() for number, x in read.items()}))

    side_by_side([model] * 3, pieces, products_of(model, pieces[0]), change)
    assert [name for name, _ in seen] == ["0.weight", "2.weight"]
    assert all(seen[0][1][number].equal(piece) for number, piece in enumerate(pieces))
    with torch.no_grad():
        assert all(torch.equal(seen[1][1][number], model[:2](piece)) for number, piece in enumerate(pieces))


def test_what_comes_behind_reads_what_the_changed_product_writes() -> None:
    model = nn.Sequential(nn.Linear(3, 5), nn.Conv1d(1, 2, 1), nn.Flatten(1), nn.Linear(10, 2))
    model[1].forward = lambda x: nn.Conv1d.forward(model[1], x[:, None])  # type: ignore[method-assign]
    other = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    x, seen = torch.randn(4, 3), {}

    def change(product: Product, read: Mapping[int, Tensor]) -> Tensor:
        seen[product.tensor] = torch.cat(list(read.values()))
        return other[product.tensor]

    with torch.no_grad():
        side_by_side([model] * 2, x.split(2), products_of(model, x), change)
        assert seen["1.weight"].allclose(nn.functional.linear(x, other["0.weight"], model[0].bias)[:, None])
        expected = nn.functional.conv1d(seen["1.weight"], other["1.weight"], model[1].bias).flatten(1)
    assert seen["3.weight"].allclose(expected)


def test_pieces_may_take_different_ways() -> None:
    model, pieces = Routed(), [torch.ones(1, 4), -torch.ones(1, 4), torch.ones(2, 4)]
    order = [Product(f"{name}.weight", 1, 0, 0, 4, bias=f"{name}.bias") for name in ("first", "second", "last")]
    assert set(products_of(model, *pieces)) == set(order)
    seen = {}

    def change(product: Product, read: Mapping[int, Tensor]) -> None:
        seen[product.tensor] = list(read)

    side_by_side([model] * 3, pieces, order, change)
    assert seen == {"first.weight": [0, 2], "second.weight": [1], "last.weight": [0, 1, 2]}


def test_an_error_in_one_piece_ends_all_of_them() -> None:
    model, before = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 2)), threading.active_count()
    with pytest.raises(DataError, match="cannot run on a batch"):
        side_by_side(
            [model] * 2, [torch.randn(2, 3), torch.randn(2, 4)], products_of(model, torch.randn(1, 3)), lambda *_: None
        )
    assert threading.active_count() == before


def test_an_error_in_what_changes_ends_all_pieces() -> None:
    model, before = nn.Linear(3, 5), threading.active_count()

    def change(product: Product, read: Mapping[int, Tensor]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        side_by_side([model] * 3, [torch.randn(2, 3)] * 3, products_of(model, torch.randn(1, 3)), change)
    assert threading.active_count() == before


def test_nothing_is_computed_behind_the_last_place() -> None:
    """Logits of a language model take more memory than all that is before them."""
    model, ran = nn.Sequential(nn.Linear(3, 5), nn.ReLU(), nn.Linear(5, 2)), []
    model[1].register_forward_hook(lambda *_: ran.append(1))
    pieces = list(torch.randn(4, 3).split(2))
    first, last = products_of(model, pieces[0])
    ran.clear()
    side_by_side([model] * 2, pieces, [first], lambda *_: None)
    assert not ran
    side_by_side([model] * 2, pieces, [first, last], lambda *_: None)
    assert len(ran) == 2
