"""Which axes do weights have that are stacked: experts of a mixture, and layers that see a part of the width each?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


class SoftMixture(nn.Module):
    """Every expert sees every token, and a softmax weighs them: an expert can go, and its row of the router with it."""

    def __init__(self, dim: int = 7, experts: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(6, dim)
        self.router = nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.empty(experts, dim, hidden))
        self.down = nn.Parameter(torch.empty(experts, hidden, dim))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        chosen = self.router(x).softmax(dim=-1)
        hidden = F.relu(torch.einsum("bnc,ech->benh", x, self.up))
        out = torch.einsum("benh,ehc->benc", hidden, self.down)
        return self.head(x + torch.einsum("bne,benc->bnc", chosen, out))


class BlockDiagonal(nn.Module):
    """The width is cut into blocks, each with a matrix of its own."""

    def __init__(self, blocks: int = 3, width: int = 4, out: int = 5) -> None:
        super().__init__()
        self.blocks = blocks
        self.embed = nn.Linear(6, blocks * width)
        self.matrices = nn.Parameter(torch.empty(blocks, width, out))
        self.head = nn.Linear(blocks * out, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).view(x.shape[0], self.blocks, -1)
        return self.head(F.relu(torch.einsum("bki,kio->bko", x, self.matrices)).flatten(1))


ENTRIES = (
    ZooEntry(
        "soft_mixture_of_experts",
        randomised(SoftMixture),
        normal((2, 8, 6)),
        (
            axis("residual", 7, "embed.{weight,bias}:0 {router,head}.weight:1 up:1 down:2"),
            axis("experts", 4, "router.{weight,bias}:0 {up,down}:0", exact=False),
            axis("neurons", 5, "up:2 down:1"),
        ),
    ),
    ZooEntry(
        "block_diagonal",
        randomised(BlockDiagonal),
        normal((2, 6)),
        (
            axis("groups", 3, "embed.{weight,bias}:0 matrices:0 head.weight:1"),
            axis("neurons", 4, "embed.{weight,bias}:0 matrices:1"),
            axis("neurons", 5, "matrices:2 head.weight:1"),
        ),
    ),
)
