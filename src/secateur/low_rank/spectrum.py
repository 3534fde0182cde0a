"""A weight as a sum of products of two vectors, ordered by what each gives to the layer's output."""

from dataclasses import dataclass

import torch
from torch import Tensor

from secateur.sparse.problem import damped_inverse_factor


@dataclass(frozen=True, slots=True, eq=False)
class Spectrum:
    """A weight `W = left diag(values) right`.

    Attributes:
        left: `[out, k]`, orthonormal columns.
        values: `[k]`, descending; their squares add up to E|W x|^2, damped.
        right: `[k, in]`; what it makes of the input has variances of 1 and no correlations, damped.
    """

    left: Tensor
    values: Tensor
    right: Tensor

    def errors(self) -> Tensor:
        """E|(W - W') x|^2, damped, of the best W' of each rank from 0 to k, `[k + 1]`."""
        rest = self.values.square().flip(0).cumsum(0).flip(0)
        return torch.cat([rest, rest.new_zeros(1)])

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """The best `W' = up @ down` of a rank: `[rank, in]` and `[out, rank]`, with the values divided evenly."""
        root = self.values[:rank].sqrt()
        return root[:, None] * self.right[:rank], self.left[:, :rank] * root


def spectrum(weight: Tensor, gram: Tensor, damping: float) -> Spectrum:
    """The singular value decomposition of a weight, whitened by what the layer reads.

    With `gram = F F^T`, E|(W - W') x|^2 is the squared Frobenius norm of (W - W') F, so that the truncated decomposition of W F
    is the best there is.

    Args:
        weight: W, `[out, in]` float32 or float64.
        gram: E[x x^T], `[in, in]`, in the same type.
        damping: Added to its diagonal, as a share of the mean of the diagonal, >= 0; ten times as much where there is no F.

    Example:
        >>> found = spectrum(torch.diag(torch.tensor([1.0, 2.0])), torch.diag(torch.tensor([9.0, 1.0])), 0.0)
        >>> found.values.tolist(), found.errors().tolist()
        ([3.0, 2.0], [13.0, 4.0, 0.0])

    Source:
        C. Eckart and G. Young, "The Approximation of One Matrix by Another of Lower Rank", Psychometrika 1936. Whitened: X. Wang
        et al., "SVD-LLM: Truncation-aware Singular Value Decomposition for Large Language Model Compression", ICLR 2025.
    """
    damped = gram + damping * gram.diagonal().mean() * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
    upper, _ = damped_inverse_factor(damped, 0.0)
    whitened = torch.linalg.solve_triangular(upper, weight, upper=True, left=False)
    left, values, right = torch.linalg.svd(whitened, full_matrices=False)
    return Spectrum(left, values, right @ upper)
