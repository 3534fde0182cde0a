"""Which axes do lists of modules have, through which code goes one by one?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ExpectedAxis, ZooEntry, axis, normal, randomised


class Expert(nn.Module):
    """Two layers."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.up = nn.Linear(dim, hidden)
        self.down = nn.Linear(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(F.silu(self.up(x)))


class Listed(nn.Module):
    """Layers around a router and a list of experts."""

    def __init__(self, dim: int = 7, experts: int = 4, hidden: int = 5) -> None:
        super().__init__()
        self.embed = nn.Linear(6, dim)
        self.router = nn.Linear(dim, experts)
        self.experts = nn.ModuleList(Expert(dim, hidden) for _ in range(experts))
        self.head = nn.Linear(dim, 3)


class WeightedLoop(Listed):
    """Every expert sees every token; the loop adds up what they make."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        weights, out = self.router(x).softmax(dim=-1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            out = out + weights[..., i : i + 1] * expert(x)
        return self.head(x + out)


class StackedResults(Listed):
    """What the experts make is stacked, and a product with the weights sums over it."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x))
        made = torch.stack([expert(x) for expert in self.experts], dim=2)
        return self.head(x + torch.einsum("bne,bnec->bnc", self.router(x).softmax(dim=-1), made))


class ComparedChoice(Listed):
    """Each expert is given the tokens that chose it, found by comparing their choices with its number."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        weights, chosen = torch.topk(self.router(x), 2)
        weights, out = weights.softmax(dim=1), torch.zeros_like(x)
        for i, expert in enumerate(self.experts):
            token, place = torch.where(chosen == i)
            out[token] += weights[token, place, None] * expert(x[token])
        return self.head(x + out)


class MaskedChoice(Listed):
    """The same by a mask, in a loop over a number that the module keeps, and nothing else uses."""

    def __init__(self) -> None:
        super().__init__()
        self.count = len(self.experts)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.embed(x)).flatten(0, 1)
        weights, chosen = torch.topk(self.router(x).softmax(dim=1), 2, dim=-1)
        weights = weights / weights.sum(dim=-1, keepdim=True)
        mask = F.one_hot(chosen, num_classes=self.router.out_features).permute(2, 1, 0)
        out = torch.zeros_like(x)
        for i in range(self.count):
            place, token = torch.where(mask[i])
            out.index_add_(0, token, self.experts[i](x[token]) * weights[token, place, None])
        return self.head(x + out)


class TwoLists(nn.Module):
    """Each expert is an entry of two lists; what the first makes has no name before there is a second."""

    def __init__(self, experts: int = 3) -> None:
        super().__init__()
        self.router = nn.Linear(6, experts)
        self.ups = nn.ModuleList(nn.Linear(6, 5) for _ in range(experts))
        self.downs = nn.ModuleList(nn.Linear(5, 4) for _ in range(experts))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out = None
        for weight, up, down in zip(self.router(x).sigmoid().unbind(-1), self.ups, self.downs, strict=True):
            made = weight.unsqueeze(-1) * down(up(x).relu())
            out = made if out is None else out + made
        return self.head(out)


class SeveralGates(nn.Module):
    """Each task weighs the same experts by a gate of its own."""

    def __init__(self, experts: int = 4, tasks: int = 2) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(6, 5), nn.ReLU()) for _ in range(experts))
        self.gates = nn.ModuleList(nn.Linear(6, experts) for _ in range(tasks))
        self.towers = nn.ModuleList(nn.Linear(5, 1) for _ in range(tasks))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        made = torch.stack([expert(x) for expert in self.experts], dim=1)
        pairs = zip(self.gates, self.towers, strict=True)
        return tuple(tower((gate(x).softmax(dim=-1).unsqueeze(-1) * made).sum(1)) for gate, tower in pairs)


def _listed(router: str = "router.{weight,bias}:0") -> tuple[ExpectedAxis, ...]:
    """The axes of a router with a list of four experts."""
    each = "experts.{0,1,2,3}"
    return (
        axis(
            "residual",
            7,
            f"embed.{{weight,bias}}:0 {{router,head}}.weight:1 {each}.up.weight:1 {each}.down.{{weight,bias}}:0",
        ),
        axis("experts", 4, f"{router} experts:0", exact=False),
        *(axis("neurons", 5, f"experts.{i}.up.{{weight,bias}}:0 experts.{i}.down.weight:1") for i in range(4)),
    )


ENTRIES = (
    ZooEntry("mixture_in_a_loop", randomised(WeightedLoop), normal((2, 8, 6)), _listed()),
    ZooEntry("mixture_stacked_by_the_code", randomised(StackedResults), normal((2, 8, 6)), _listed()),
    ZooEntry("mixture_of_compared_choices", randomised(ComparedChoice), normal((2, 8, 6)), _listed()),
    ZooEntry("mixture_of_masked_choices", randomised(MaskedChoice), normal((2, 8, 6)), _listed()),
    ZooEntry(
        "mixture_of_two_lists",
        randomised(TwoLists),
        normal((2, 6)),
        (
            axis("groups", 3, "router.{weight,bias}:0 ups:0 downs:0", exact=False),
            *(axis("neurons", 5, f"ups.{i}.{{weight,bias}}:0 downs.{i}.weight:1") for i in range(3)),
            axis("neurons", 4, "downs.{0,1,2}.{weight,bias}:0 head.weight:1"),
        ),
    ),
    ZooEntry(
        "mixture_of_several_gates",
        randomised(SeveralGates),
        normal((2, 6)),
        (
            axis("experts", 4, "gates.{0,1}.{weight,bias}:0 experts:0", exact=False),
            axis("neurons", 5, "experts.{0,1,2,3}.0.{weight,bias}:0 towers.{0,1}.weight:1"),
        ),
    ),
)
