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


class ChosenMixture(nn.Module):
    """Each token sees the experts that a router ranks highest, whose matrices are looked up by the router's choice."""

    def __init__(self, dim: int = 7, experts: int = 6, chosen: int = 2, hidden: int = 5) -> None:
        super().__init__()
        self.chosen = chosen
        self.embed = nn.Linear(6, dim)
        self.router = nn.Linear(dim, experts)
        self.up = nn.Parameter(torch.empty(experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(experts, dim, hidden))
        self.scale = nn.Parameter(torch.empty(experts))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        weights = self.router(x).sigmoid()
        places = weights.topk(self.chosen, dim=-1, sorted=False)[1]
        gathered = weights.gather(1, places) * self.scale[places]
        hidden = F.relu((self.up[places] @ x[:, None, :, None]).squeeze(-1))
        out = (self.down[places] @ hidden[..., None]).squeeze(-1)
        return self.head(x + (gathered[..., None] * out).sum(1))


class LimitedMixture(nn.Module):
    """Experts in groups: the best groups are chosen first, by their two best experts, and experts from those alone."""

    def __init__(self, dim: int = 7, groups: int = 4, experts: int = 3, hidden: int = 5) -> None:
        super().__init__()
        self.groups, self.experts = groups, groups * experts
        self.embed = nn.Linear(6, dim)
        self.router = nn.Linear(dim, groups * experts)
        self.up = nn.Parameter(torch.empty(groups * experts, hidden, dim))
        self.down = nn.Parameter(torch.empty(groups * experts, dim, hidden))
        self.head = nn.Linear(dim, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        weights = self.router(x).sigmoid()
        best = weights.view(-1, self.groups, self.experts // self.groups).topk(2, dim=-1)[0].sum(dim=-1)
        mask = torch.zeros_like(best).scatter_(1, best.topk(2, dim=-1)[1], 1)
        allowed = mask.unsqueeze(-1).expand(-1, self.groups, self.experts // self.groups).reshape(-1, self.experts)
        places = weights.masked_fill(~allowed.bool(), 0.0).topk(2, dim=-1)[1]
        chosen = F.one_hot(places, num_classes=self.experts).sum(1)
        out = torch.einsum("nc,ehc->neh", x, self.up).relu()
        return self.head(x + torch.einsum("neh,ech,ne->nc", out, self.down, chosen * weights))


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
        "mixture_of_chosen_experts",
        randomised(ChosenMixture),
        normal((2, 8, 6)),
        (
            axis("residual", 7, "embed.{weight,bias}:0 {router,head}.weight:1 up:2 down:1"),
            axis("experts", 6, "router.{weight,bias}:0 {up,down,scale}:0", exact=False),
            axis("neurons", 5, "up:1 down:2"),
        ),
    ),
    ZooEntry(
        "mixture_of_limited_groups",
        randomised(LimitedMixture),
        normal((2, 8, 6)),
        (
            axis("residual", 7, "embed.{weight,bias}:0 {router,head}.weight:1 up:2 down:1"),
            axis("experts", 4, "router.{weight,bias}:0 {up,down}:0", exact=False),
            axis("experts", 3, "router.{weight,bias}:0 {up,down}:0", exact=False),
            axis("neurons", 5, "up:1 down:2"),
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
