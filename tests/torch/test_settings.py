"""Integers in settings that modules share: who gets a copy, and what is no settings at all."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import secateur as sc
from secateur.errors import ArtefactError
from secateur.testing.zoo import ZOO
from secateur.torch.settings import integers_of

ENTRIES = {entry.name: entry for entry in ZOO if entry.name.startswith("sizes_in_")}


def pruned(name: str, heads: tuple[int, int]) -> tuple[Any, Any]:
    """A model and the same with that many heads in its layers."""
    entry = ENTRIES[name]
    model = entry.build()
    network = sc.trace(model, entry.inputs())
    axes = {axis.slots[0].tensor.split(".")[1]: axis.name for axis in network.axes if axis.size == 3}
    return model, sc.compact(model, network.plan({axes["0"]: range(heads[0]), axes["1"]: range(heads[1])}))


@pytest.mark.parametrize("name", ENTRIES)
def test_layers_that_come_to_differ_get_settings_of_their_own(name: str) -> None:
    model, small = pruned(name, (1, 2))

    heads = [[n for (key, _), n in integers_of(layer).items() if "heads" in key] for layer in small.layers]
    before = [[n for (key, _), n in integers_of(layer).items() if "heads" in key] for layer in model.layers]
    assert (heads, before) == ([[1], [2]], [[3], [3]])
    assert model.layers[0].settings is model.layers[1].settings
    assert type(small.layers[0].settings) is type(model.layers[0].settings)


def test_layers_that_stay_alike_go_on_sharing() -> None:
    model, small = pruned("sizes_in_a_configuration", (2, 2))

    assert small.layers[0].settings is small.layers[1].settings
    assert (small.layers[0].settings.n_head, model.layers[0].settings.n_head) == (2, 3)


@pytest.mark.parametrize("name", ENTRIES)
def test_an_artefact_is_loaded_with_its_settings(name: str, tmp_path: Any) -> None:
    _, small = pruned(name, (1, 2))
    sc.save(small, tmp_path)
    again, inputs = sc.load(ENTRIES[name].build(), tmp_path), ENTRIES[name].inputs()

    assert torch.equal(again(inputs), small(inputs))


def test_an_artefact_of_other_settings_is_refused(tmp_path: Any) -> None:
    _, small = pruned("sizes_in_a_namespace", (1, 2))
    sc.save(small, tmp_path)
    other: Any = ENTRIES["sizes_in_a_namespace"].build()
    for layer in other.layers:
        layer.settings = SimpleNamespace(dim=7, heads=4, width=12)

    with pytest.raises(ArtefactError, match=r"layers\.0\.settings\.heads is 4 in the model, 3 in the plan"):
        sc.load(other, tmp_path)


class Counts(nn.Module):
    """A layer that leaves word for the next one in an object that both hold."""

    def __init__(self, board: dict[str, Any]) -> None:
        super().__init__()
        self.board, self.linear = board, nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        self.board["calls"] = self.board["calls"] + 1
        out: Tensor = self.linear(x) * self.board["calls"]
        return out


def test_what_the_run_writes_to_stays_shared() -> None:
    board = {"calls": 0}
    model = nn.Sequential(Counts(board), Counts(board), nn.Linear(6, 2)).eval()
    network = sc.trace(model, torch.randn(3, 6))

    assert board == {"calls": 0}
    assert [axis.size for axis in network.axes] == [6, 6]
    small: Any = sc.compact(model, network.plan({axis.name: range(4) for axis in network.axes}))
    small(torch.randn(3, 6))
    assert small[0].board is small[1].board
    assert small[0].board == {"calls": 2}


def test_a_module_with_integers_is_no_settings() -> None:
    class Holder:
        def __init__(self) -> None:
            self.width, self.weight = 4, torch.zeros(4)

    module: Any = nn.Module()
    module.holder, module.labels = Holder(), {f"label {i}": i for i in range(1000)}
    module.sizes, module.plain = {"a": [(2, 3), (4, 5)]}, 6

    assert integers_of(module) == {
        ("sizes['a'][0]", 0): 2,
        ("sizes['a'][0]", 1): 3,
        ("sizes['a'][1]", 0): 4,
        ("sizes['a'][1]", 1): 5,
        ("plain", None): 6,
    }
