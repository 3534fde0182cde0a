"""Embeddings, which other code reads too, become sparse where somebody asks for it."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import PlanError
from secateur.sparse import sparsify
from secateur.sparse.patterns import NofM


class Tied(nn.Module):
    """Tokens through a table, a layer, and the table once more."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(12, 8), nn.Linear(8, 8), nn.Linear(8, 12, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(self.inner(self.table(ids)))
        return logits


@pytest.mark.parametrize("in_sequence", [True, False])
def test_embeddings_become_sparse_where_they_are_asked_for(in_sequence: bool) -> None:
    torch.manual_seed(0)
    model, ids = Tied(), torch.randint(0, 12, (6, 4))
    options: dict[str, Any] = {"pattern": NofM(2, 4), "in_sequence": in_sequence}
    assert list(sparsify(model, [ids], **options).plan.stays) == ["inner.weight"]
    result = sparsify(model, [ids], include=["table"], **options)
    table = result.model.table.weight
    assert result.model.head.weight is table
    best = model.table.weight.detach().abs().view(12, 2, 4).topk(2).indices
    assert (table.view(12, 2, 4).gather(2, best) != 0).all()
    assert int((table != 0).sum()) == 48
    assert table[table != 0].equal(model.table.weight[table != 0])
    assert [layer.error for layer in result.report] == [None, pytest.approx(result.report[1].error)]
    dense = Tied()
    dense.load_state_dict(model.state_dict())
    dense.table.weight.data = table.detach()
    alone = sparsify(dense, [ids], **options)
    same = alone.model.inner.weight.equal(result.model.inner.weight)
    assert same or not in_sequence, "the layer behind reads what the sparse table gives"


def test_what_is_included_is_a_matrix() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))
    with pytest.raises(PlanError, match=r"include=\['1'\] names no matrix"):
        sparsify(model, [torch.randn(4, 8)], sparsity=0.5, include=["1"])
    for wrong in (None, [3]):
        with pytest.raises(PlanError, match="include= is a list of name patterns"):
            sparsify(model, [torch.randn(4, 8)], sparsity=0.5, include=wrong)  # type: ignore[arg-type]
    with pytest.raises(PlanError, match="include= is a list"):
        sparsify(model, [torch.randn(4, 8)], sparsity=0.5, include="0")
    result = sparsify(model, [torch.randn(64, 8)], sparsity=0.5, include=["0"])
    assert result.report[0].error is not None, "it is a layer like others"
