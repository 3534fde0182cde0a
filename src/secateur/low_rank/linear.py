"""The layer that stands where a linear layer of full rank stood."""

import torch
from torch import Tensor, nn
from torch.nn.utils import skip_init


class LowRankLinear(nn.Module):
    """`y = up(down(x))`: a linear layer whose weight is the product of two smaller ones; or that and `sparse(x)`.

    Args:
        in_features: What it reads.
        out_features: What it writes.
        rank: The width between the two, > 0.
        bias: Whether something is added in the end.
        device: Where it is.
        dtype: Of its parameters.
        beside: Whether there is a sparse weight beside the factors.

    Attributes:
        down: `in_features -> rank`, without a bias.
        up: `rank -> out_features`.
        sparse: `in_features -> out_features`, without a bias, or None.

    Example:
        >>> layer = LowRankLinear(8, 6, rank=2)
        >>> layer.down.weight.shape, layer.up.weight.shape, layer.weight.shape
        (torch.Size([2, 8]), torch.Size([6, 2]), torch.Size([6, 8]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rank: int,
        bias: bool = True,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        beside: bool = False,
    ) -> None:
        super().__init__()
        self.in_features, self.out_features, self.rank = in_features, out_features, rank
        # Values are filled in from elsewhere; drawing some would use up random numbers.
        self.down: nn.Linear = skip_init(nn.Linear, in_features, rank, bias=False, device=device, dtype=dtype)  # type: ignore[no-untyped-call]
        self.up: nn.Linear = skip_init(nn.Linear, rank, out_features, bias=bias, device=device, dtype=dtype)  # type: ignore[no-untyped-call]
        self.sparse: nn.Linear | None = None
        if beside:
            self.sparse = skip_init(nn.Linear, in_features, out_features, bias=False, device=device, dtype=dtype)  # type: ignore[no-untyped-call]

    @property
    def weight(self) -> Tensor:
        """The whole weight, `[out_features, in_features]`, for code that reads it by itself."""
        low = self.up.weight @ self.down.weight
        return low if self.sparse is None else self.sparse.weight + low

    @property
    def bias(self) -> Tensor | None:
        """What is added in the end, `[out_features]`, or None."""
        return self.up.bias

    def forward(self, x: Tensor) -> Tensor:
        """The output, `[..., out_features]`, of an input `[..., in_features]`."""
        low: Tensor = self.up(self.down(x))
        return low if self.sparse is None else self.sparse(x) + low

    def extra_repr(self) -> str:
        """What stands in the brackets."""
        return f"{self.in_features}, {self.out_features}, rank={self.rank}"
