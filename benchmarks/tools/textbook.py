"""Wanda and SparseGPT as their papers and reference scripts have them, in a few lines, to hold Secateur's against."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

Prune = Callable[[Tensor, Tensor], Tensor]
"""Takes a weight `[out, in]` and what the layer reads, `[rows, in]`; gives the sparse weight."""


def prune_in_place(model: nn.Module, inputs: dict[str, Tensor], prune: Prune, skip: str = "lm_head") -> None:
    """Prune each linear layer when it is its turn, on what the layers before give it, which are sparse already."""

    def before(layer: nn.Linear, given: tuple[Tensor, ...]) -> None:
        layer.weight.data = prune(layer.weight.data, given[0].reshape(-1, layer.in_features))

    handles = [
        layer.register_forward_pre_hook(before)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and skip not in name
    ]
    with torch.no_grad():
        model(**inputs)
    for handle in handles:
        handle.remove()


def wanda(weight: Tensor, x: Tensor, sparsity: float, n: int = 0, m: int = 0) -> Tensor:
    """M. Sun et al., ICLR 2024, algorithm 1."""
    score = weight.abs() * x.norm(dim=0)
    goes = torch.zeros_like(weight, dtype=torch.bool)
    if m:
        for start in range(0, weight.shape[1], m):
            lowest = score[:, start : start + m].topk(m - n, dim=1, largest=False).indices
            goes.scatter_(1, start + lowest, True)
    else:
        lowest = score.sort(dim=1, stable=True).indices[:, : int(weight.shape[1] * sparsity)]
        goes.scatter_(1, lowest, True)
    return weight.masked_fill(goes, 0)


def sparsegpt(
    weight: Tensor, x: Tensor, sparsity: float, n: int = 0, m: int = 0, block: int = 128, damping: float = 0.01
) -> Tensor:
    """E. Frantar and D. Alistarh, ICML 2023, algorithm 1, with the threshold of the reference script."""
    weight, hessian = weight.clone(), x.T @ x / len(x)
    dead = hessian.diagonal() == 0
    hessian[dead, dead], weight[:, dead] = 1, 0
    hessian.diagonal().add_(damping * hessian.diagonal().mean())
    inverse = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(hessian)), upper=True)
    columns = weight.shape[1]
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        part, factor = weight[:, start:stop].clone(), inverse[start:stop, start:stop]
        errors, goes = torch.zeros_like(part), torch.zeros_like(part, dtype=torch.bool)
        if not m:
            cost = part.square() / factor.diagonal().square()
            goes = cost <= cost.flatten().sort()[0][int(cost.numel() * sparsity)]
        for i in range(stop - start):
            if m and i % m == 0:
                cost = part[:, i : i + m].square() / factor.diagonal()[i : i + m].square()
                goes.scatter_(1, i + cost.topk(m - n, dim=1, largest=False).indices, True)
            new = part[:, i].masked_fill(goes[:, i], 0)
            errors[:, i] = (part[:, i] - new) / factor[i, i]
            part[:, i:] -= errors[:, i : i + 1] * factor[i, i:]
            part[:, i] = new
        weight[:, start:stop] = part
        weight[:, stop:] -= errors @ inverse[start:stop, stop:]
    return weight
