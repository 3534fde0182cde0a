"""Every model of the zoo that can be pruned can be saved and comes back."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from secateur.artefact import load, save
from secateur.testing.zoo import ZOO, ZooEntry, call
from secateur.torch import compact, trace


@pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN")
@pytest.mark.parametrize(
    "entry", [entry for entry in ZOO if entry.numeric and entry.axes], ids=lambda entry: entry.name
)
def test_a_model_of_the_zoo_comes_back_from_its_artefact(entry: ZooEntry, tmp_path: Path) -> None:
    network = trace(entry.build(), entry.inputs())
    small = compact(entry.build(), network.plan({axis.name: range(0, axis.size, 2) for axis in network.axes}))
    save(small, tmp_path)
    untrained = entry.build()
    with torch.no_grad():
        for tensor in untrained.state_dict().values():
            tensor.zero_()

    again = load(untrained, tmp_path)

    with torch.no_grad():
        before, after = (tree_leaves(call(model, entry.inputs())) for model in (small, again))
    assert any(isinstance(tensor, Tensor) for tensor in before)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True) if isinstance(a, Tensor))
