"""Odd things between two layers: whatever is found free can be removed; the rest is frozen, with a reason that is read."""

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from torch.utils.checkpoint import checkpoint

from secateur.testing.zoo.entry import randomised

ROWS, TOKENS, IMAGES, IMAGE = (3, 4), (2, 5, 4), (2, 4, 8, 8), (1, 4, 8, 8)
"""Shapes of inputs; the units of the first layer lie in the last dim, of images in the second."""

Middle = Callable[[Any, Tensor], Tensor]


@dataclass(frozen=True, slots=True)
class Case:
    """What stands between two layers, as `middle(model, x)`, and what is expected.

    Attributes:
        shape: Of the inputs.
        middle: The odd thing.
        parts: Attributes of the model: numbers, or functions that make a layer.
        frozen: Part of the reason why no unit of the first layer can go; empty where they can.
    """

    shape: tuple[int, ...]
    middle: Middle
    parts: dict[str, Any]
    frozen: str


class Odd(nn.Module):
    """A layer of 8 units, what is odd, and a layer that reads whatever came out."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        images = len(case.shape) == 4
        self.middle = case.middle
        self.first: nn.Module = nn.Conv2d(4, 8, 1) if images else nn.Linear(4, 8)
        for name, part in case.parts.items():
            setattr(self, name, part() if callable(part) else part)
        with torch.no_grad():
            width = self.middle(self, self.first(torch.zeros(case.shape))).shape[1 if images else -1]
        self.last: nn.Module = nn.Conv2d(width, 3, 1) if images else nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.middle(self, self.first(x)))
        return out


def odd(name: str, shape: tuple[int, ...], middle: Middle, frozen: str = "", **parts: Any) -> Any:
    return pytest.param(Case(shape, middle, parts, frozen), id=name)


def linear(*sizes: int) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(*sizes)


def norm(groups: int, units: int) -> Callable[[], nn.Module]:
    return lambda: nn.GroupNorm(groups, units)


def norm_along_inputs() -> nn.Module:
    layer: nn.Module = parametrizations.weight_norm(nn.ConvTranspose2d(8, 8, 2), dim=1)
    return layer


def conv(*sizes: int, **options: Any) -> Callable[[], nn.Module]:
    return lambda: nn.Conv2d(*sizes, **options)


def through(m: Any, x: Tensor) -> Tensor:
    out: Tensor = m.layer(x)
    return out


def total(x: Tensor) -> Tensor:
    """A sum over the units shows whether a removed unit would have added something."""
    return x.sum(-1, keepdim=True)


def heads(m: Any, x: Tensor) -> Tensor:
    """A softmax within each head: what the heads hold must not get mixed."""
    return x.unflatten(-1, (m.heads, -1)).softmax(-1).flatten(-2)


def summed_over_heads(m: Any, x: Tensor) -> Tensor:
    return x.unflatten(-1, (m.heads, -1)).softmax(-1).sum(1)


def channel_heads(m: Any, x: Tensor) -> Tensor:
    return x.unflatten(1, (m.heads, -1)).softmax(2).flatten(1, 2)


def softmax_in_groups(m: Any, x: Tensor) -> Tensor:
    grouped: Tensor = m.layer(x)
    return grouped.softmax(2).flatten(1, 2)


def swapped(x: Tensor) -> Tensor:
    return torch.cat(x.chunk(2, -1)[::-1], -1)


def fused(left: Tensor, right: Tensor) -> Tensor:
    return left.sigmoid() * right


def a_half_of_a_half(m: Any, x: Tensor) -> Tensor:
    x = torch.mul(*F.glu(m.layer(x)).chunk(2, -1))
    return torch.cat([x, x[:, x.shape[-1] // 2 :].sum(-1, keepdim=True)], -1)


def masked_by_another(m: Any, x: Tensor) -> Tensor:
    return total(torch.where(m.layer(x) > 0, x, 3.0))


def written_in_part(m: Any, x: Tensor) -> Tensor:
    x[:2].add_(1)
    return total(x)


def channel_gate(m: Any, x: Tensor) -> Tensor:
    return x * (x.max(1, keepdim=True)[0] + x.mean(1, keepdim=True)).sigmoid()


def linear_attention(m: Any, x: Tensor) -> Tensor:
    read: Tensor = m.keys(x).softmax(1).mT @ m.values(x)
    return (F.elu(x) + 1) @ read


def first_token(m: Any, x: Tensor) -> Tensor:
    return x.gather(1, torch.zeros(2, 1, 8, dtype=torch.long, device=x.device))


def unpooled(m: Any, x: Tensor) -> Tensor:
    pooled, places = F.max_pool2d(x, 2, return_indices=True)
    return F.max_unpool2d(m.layer(pooled).relu(), places, 2)


def sampled(m: Any, x: Tensor) -> Tensor:
    return F.grid_sample(x, m.layer(x).permute(0, 2, 3, 1), align_corners=False)


def attention_function(m: Any, x: Tensor) -> Tensor:
    own = (m.layer.weight, m.layer.bias, None, None, False, 0.0, m.out.weight, m.out.bias)
    mixed: Tensor = F.multi_head_attention_forward(x, x, x, 8, 2, *own)[0]
    return mixed


class Attention(nn.MultiheadAttention):
    """A subclass: its forward might do anything."""


def attention() -> nn.Module:
    return Attention(8, 2, batch_first=True)


class Squared(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x


@functools.lru_cache(maxsize=1)
def half(size: int) -> int:
    return size // 2


def folded(x: Tensor, at: Any) -> Tensor:
    half = x[:, at:] + x[:, :at]
    return torch.cat([half, half], 1)


AS_NUMBERS = "takes these sizes as numbers"

SIZES = [
    odd("a branch on a large width", ROWS, lambda m, x: x if x.shape[-1] > 7 else -x, "the code branches on"),
    odd("a branch on one width", ROWS, lambda m, x: x * 2 if x.shape[-1] == 8 else x, "the code branches on"),
    odd("a branch on an even width", ROWS, lambda m, x: x if x.shape[-1] % 2 == 0 else -x),
    odd("a mean by hand", ROWS, lambda m, x: x - total(x) / x.shape[-1], "as a number"),
    odd("a mean by a tensor", ROWS, lambda m, x: x - total(x) / torch.tensor(x.shape[-1]), "as a number"),
    odd("narrow to an attribute", ROWS, lambda m, x: x.narrow(1, 0, m.width), width=8),
    odd(
        "slices at a number in a tensor",
        ROWS,
        lambda m, x: folded(x, torch.tensor([m.width])[0]),
        "the number 4",
        width=4,
    ),
    odd("a split larger than what there is", ROWS, lambda m, x: torch.cat(x.split(m.most, 1), 1), most=100),
    odd("narrow to the end", ROWS, lambda m, x: x.narrow(-1, 4, 4), "the number 4"),
    odd("a literal view", ROWS, lambda m, x: x.view(-1, 2, 4).flatten(1), "the number 4"),
    odd("tensor_split in two", ROWS, lambda m, x: torch.add(*x.tensor_split(2, 1)), "cut by tensor_split"),
    odd("tensor_split at a place", ROWS, lambda m, x: x.tensor_split([3], 1)[1], "cut by tensor_split"),
    odd("hsplit", ROWS, lambda m, x: torch.mul(*torch.hsplit(x, 2)), "cut by hsplit"),
    odd("a split by a cached half", ROWS, lambda m, x: torch.mul(*x.split(half(x.shape[-1]), -1))),
    odd("a pad up to an attribute", ROWS, lambda m, x: F.pad(x, (0, m.width - x.shape[-1])), "computes with", width=10),
    odd("all numbers over the batch", IMAGES, lambda m, x: x.view(len(x), x.numel() // len(x)).view_as(x)),
    odd("the root of all numbers", IMAGES, lambda m, x: x / x.numel() ** 0.5, "computes with"),
    odd("an attribute that is numpy's", ROWS, heads, heads=np.int64(2)),
    odd("an attribute that is also a kernel", IMAGE, lambda m, x: F.avg_pool2d(channel_heads(m, x), m.heads), heads=2),
    odd("as many groups as the stride", IMAGES, through, layer=conv(8, 12, 2, stride=2, groups=2)),
    odd("as wide groups as the stride", IMAGES, through, layer=conv(8, 8, 4, stride=4, groups=4)),
    odd("transposed", IMAGES, through, layer=lambda: nn.ConvTranspose2d(8, 12, 2, stride=2, groups=2)),
    odd("as many channels as the dilation", IMAGES, through, layer=conv(8, 8, 3, padding=8, dilation=8, groups=8)),
    odd("a factor equal to the batch", IMAGES, softmax_in_groups, layer=lambda: nn.Unflatten(1, (2, 4))),
    odd("a half of a half", ROWS, a_half_of_a_half, layer=linear(8, 24)),
    odd("groups and halves of the same units", ROWS, lambda m, x: swapped(m.layer(x)) + x, layer=norm(4, 8)),
    odd("halves of a few", ROWS, lambda m, x: torch.mul(*m.layer(x).chunk(2, -1)), layer=linear(8, 4)),
    odd("halves of one unit each", ROWS, lambda m, x: torch.mul(*m.layer(x).chunk(2, -1)), layer=linear(8, 2)),
    odd("parts of one unit each", ROWS, lambda m, x: fused(*m.layer(x).split(1, -1)), layer=linear(8, 2)),
    odd("a squeeze in place", ROWS, lambda m, x: x.unsqueeze(1).squeeze_(1)),
    odd("a squeeze in place of another dim", ROWS, lambda m, x: x.squeeze_(0) if x.shape[0] == 1 else x),
]
VALUES = [
    odd("one where a unit is negative", ROWS, lambda m, x: torch.where(x > 0, x, 3.0)),
    odd("a number for whole examples, summed", ROWS, lambda m, x: total(torch.where(x[:, :1] > 0, x, 3.0))),
    odd("a number by a mask from elsewhere, summed", TOKENS, masked_by_another, layer=linear(8, 1)),
    odd("ones", ROWS, lambda m, x: x + torch.ones_like(x)),
    odd("ones like the units, summed", ROWS, lambda m, x: total(x + torch.ones_like(x))),
    odd("as many ones as units, summed", ROWS, lambda m, x: total(x + torch.ones(x.shape[-1]))),
    odd("a border of twos, summed", IMAGES, lambda m, x: F.pad(x, (1, 1, 1, 1), value=2.0).sum(1, keepdim=True)),
    odd("a write through a view", ROWS, lambda m, x: (x[:1].add_(1), x)[1]),
    odd("a write through a view, summed", ROWS, written_in_part),
    odd("a softmax over tokens", TOKENS, linear_attention, keys=linear(8, 8), values=linear(8, 6)),
    odd("a softmax within heads, summed over heads", ROWS, summed_over_heads, heads=2),
    odd("a norm", ROWS, lambda m, x: F.normalize(x, dim=1)),
    odd("a cosine", ROWS, lambda m, x: x * F.cosine_similarity(x, m.layer(x))[:, None], layer=linear(8, 8)),
    odd("a weight norm along the inputs", IMAGES, through, layer=norm_along_inputs),
    odd("a maximum over the units", ROWS, lambda m, x: x + x.max(dim=1, keepdim=True).values),
    odd("a maximum and a mean over the channels", IMAGES, channel_gate),
    odd("a quantile of all", ROWS, lambda m, x: x - x.quantile(0.5), "depends on the order of these positions"),
    odd("an operator with several results", ROWS, lambda m, x: F.logsigmoid(x)),
    odd("one of several results", ROWS, lambda m, x: torch.frexp(x)[0]),
    odd("a gram matrix", TOKENS, lambda m, x: (x.mT @ x).flatten(1)),
]
FLOWS = [
    odd("torch's own channel shuffle", IMAGES, lambda m, x: torch.native_channel_shuffle(x, 2), AS_NUMBERS),
    odd("indices of a pool in another's unpool", IMAGES, unpooled, layer=conv(8, 8, 3, padding=1)),
    odd("a learnt grid to sample at", IMAGES, sampled, layer=conv(8, 2, 1)),
    odd("expand_as", ROWS, lambda m, x: torch.cat([x, m.layer(x).expand_as(x)], -1), layer=linear(8, 1)),
    odd("view_as", ROWS, lambda m, x: x.view_as(m.layer(x)) + m.layer(x).relu(), layer=linear(8, 8)),
    odd("every unit twice", ROWS, lambda m, x: x.repeat_interleave(2, -1)),
    odd("every unit twice, summed", ROWS, lambda m, x: x.repeat_interleave(2, 1).view(x.shape[0], -1, 2).sum(2)),
    odd("a mesh", ROWS, lambda m, x: x + torch.meshgrid(x[0], x[1], indexing="ij")[1].mean(0)),
    odd("a lookup by constants", ROWS, lambda m, x: x[:, torch.tensor([1, 0, 2, 3])], "looked up by index"),
    odd("a gather of a literal width", TOKENS, first_token, "the number 8"),
    odd("a gather along the batch", ROWS, lambda m, x: x.gather(0, torch.zeros_like(x, dtype=torch.long))),
    odd("a lookup along the units", ROWS, lambda m, x: x[:, torch.arange(x.shape[1])], "positions of an index"),
    odd("through numpy", ROWS, lambda m, x: torch.from_numpy(x.detach().numpy() * 2).to(x), "leave torch by numpy"),
    odd("through lists", ROWS, lambda m, x: torch.tensor(x.tolist(), dtype=x.dtype), "leave torch by tolist"),
    odd("through vmap", ROWS, lambda m, x: torch.vmap(lambda row: m.layer(row).relu())(x), layer=linear(8, 8)),
    odd("through a function of one's own", ROWS, lambda m, x: Squared.apply(x)),
    odd("through a checkpoint", ROWS, lambda m, x: checkpoint(m.layer, x, use_reentrant=False), layer=linear(8, 8)),
    odd("a subclass of attention", TOKENS, lambda m, x: m.layer(x, x, x)[0], AS_NUMBERS, layer=attention),
    odd("the function of attention", TOKENS, attention_function, AS_NUMBERS, layer=linear(8, 24), out=linear(8, 8)),
]


@pytest.mark.parametrize("case", [*SIZES, *VALUES, *FLOWS])
def test_what_is_free_prunes_right_and_the_rest_says_why(case: Case, prune_every_way: Any) -> None:
    model = randomised(lambda: Odd(case))()
    pruned = prune_every_way(model, torch.randn(case.shape, generator=torch.Generator().manual_seed(0)))
    if case.frozen:
        assert "first.weight:0" not in pruned.shrunk
        assert case.frozen in "\n".join(pruned.reasons("first.weight", 0))
    else:
        assert "first.weight:0" in pruned.shrunk
