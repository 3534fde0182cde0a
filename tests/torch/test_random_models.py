"""Random models out of ordinary pieces: every plan of them is right.

A model keeps a list of results, each of shape `[batch, tokens, width]`. Each step reads one of them, or two of the same width,
and adds another; the last layer reads the last three. Seeds are fixed, so that a failure comes back by its number.
"""

from collections.abc import Callable
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.testing.zoo.entry import randomised

INPUTS = torch.randn(2, 4, 8, generator=torch.Generator().manual_seed(0))


class Step(nn.Module):
    """One piece: `function(step, x, another)`, where `another` is as wide as `x`, with the layers and numbers it needs."""

    def __init__(self, function: Callable[[Any, Tensor, Tensor], Tensor], **parts: nn.Module | int) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x: Tensor, another: Tensor) -> Tensor:
        return self.function(self, x, another)


class RandomModel(nn.Module):
    """A first layer, three to eight random steps, and a last layer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        random = Random(seed)
        self.first = nn.Linear(8, random.choice([8, 12]))
        self.steps, self.reads = nn.ModuleList(), list[tuple[int, int]]()
        results = [self.first(INPUTS)]
        while len(self.steps) < 3 + seed % 6:
            x = random.randrange(len(results))
            another = random.choice([i for i, result in enumerate(results) if result.shape == results[x].shape])
            if (step := random.choice(PIECES)(random, results[x].shape[-1])) is not None:
                self.steps.append(step)
                self.reads.append((x, another))
                results.append(step(results[x], results[another]))
        self.last = nn.Linear(sum(result.shape[-1] for result in results[-3:]), 5)

    def forward(self, inputs: Tensor) -> Tensor:
        results = [self.first(inputs)]
        for step, (x, another) in zip(self.steps, self.reads, strict=True):
            results.append(step(results[x], results[another]))
        out: Tensor = self.last(torch.cat(results[-3:], -1))
        return out


Piece = Callable[[Random, int], Step | None]
"""Makes a step that reads so many units, or nothing where their number does not allow it."""


def always(function: Callable[[Tensor, Tensor], Tensor]) -> Piece:
    return lambda random, width: Step(lambda m, x, another: function(x, another))


def of_halves(function: Callable[[Tensor, Tensor], Tensor]) -> Piece:
    """Each half has two units at least: test_odd_models.py has what happens to a half of one."""
    return lambda random, width: (
        None if width % 2 or width < 4 else Step(lambda m, x, another: function(*x.chunk(2, -1)))
    )


def of_heads(function: Callable[[Any, Tensor], Tensor]) -> Piece:
    def piece(random: Random, width: int) -> Step | None:
        heads = random.choice([2, 4])
        return None if width % heads else Step(lambda m, x, another: function(m, x), heads=heads)

    return piece


def linear(random: Random, width: int) -> Step:
    return Step(lambda m, x, another: m.layer(x), layer=nn.Linear(width, random.choice([4, 8, 12, width])))


def layer_norm(random: Random, width: int) -> Step:
    return Step(lambda m, x, another: m.layer(x), layer=nn.LayerNorm(width))


def prelu(random: Random, width: int) -> Step:
    return Step(over_tokens, layer=nn.PReLU(width))


def group_norm(random: Random, width: int) -> Step | None:
    return None if width % 4 else Step(over_tokens, layer=nn.GroupNorm(random.choice([1, 2, 4]), width))


def convolution(random: Random, width: int) -> Step | None:
    groups = random.choice([1, 1, 2, width])
    if width % groups:
        return None
    return Step(over_tokens, layer=nn.Conv1d(width, random.choice([1, 2]) * width, 3, padding=1, groups=groups))


def attention(random: Random, width: int) -> Step | None:
    def mixed(m: Any, x: Tensor, another: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (m.heads, -1)).transpose(1, 2) for layer in (m.q, m.k, m.v))
        return ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2)

    layers = {name: nn.Linear(width, width) for name in "qkv"}
    return None if width % 2 else Step(mixed, heads=2, **layers)


def half(random: Random, width: int) -> Step | None:
    first = random.random() < 0.5

    def sliced(m: Any, x: Tensor, another: Tensor) -> Tensor:
        middle = x.shape[-1] // 2
        return x[..., :middle] if first else x[..., middle:]

    return None if width % 2 else Step(sliced)


def over_tokens(m: Any, x: Tensor, another: Tensor) -> Tensor:
    """A layer of `[batch, units, tokens]`."""
    out: Tensor = m.layer(x.transpose(1, 2)).transpose(1, 2)
    return out


def softmax_in_heads(m: Any, x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], m.heads, -1).softmax(-1).flatten(2)


def softmax_over_heads(m: Any, x: Tensor) -> Tensor:
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, m.heads, width // m.heads).softmax(2).reshape(batch, tokens, width)


def sum_over_heads(m: Any, x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], m.heads, -1).sum(2)


def shuffle(m: Any, x: Tensor) -> Tensor:
    return x.view(*x.shape[:2], m.heads, -1).transpose(2, 3).reshape(*x.shape[:2], -1)


PIECES: tuple[Piece, ...] = (
    *(linear, linear, linear, layer_norm, group_norm, prelu, convolution, attention, half),
    *(of_heads(softmax_in_heads), of_heads(softmax_over_heads), of_heads(sum_over_heads), of_heads(shuffle)),
    of_halves(lambda left, right: left * right),
    of_halves(lambda left, right: left * right.sigmoid()),
    of_halves(lambda left, right: torch.cat([right, left], -1)),
    always(lambda x, another: x + another),
    always(lambda x, another: x * another),
    always(lambda x, another: x * torch.sigmoid(another)),
    always(lambda x, another: torch.maximum(x, another)),
    always(lambda x, another: torch.cat([x, another], -1)),
    always(lambda x, another: torch.stack([x, another], -1).flatten(2)),
    always(lambda x, another: torch.stack([x, another], -2).flatten(2)),
    always(lambda x, another: x * torch.einsum("btc,btc->bt", x, another)[..., None]),
    always(lambda x, another: x.repeat(1, 1, 2)),
    always(lambda x, another: torch.cat([x, x], -1)),
    always(lambda x, another: torch.stack([x, x.relu()], -1).sum(-1)),
    always(lambda x, another: F.normalize(x, dim=-1)),
    always(lambda x, another: x - x.mean(-1, keepdim=True)),
    always(lambda x, another: x.softmax(-1)),
    always(lambda x, another: x + x.flip(-1)),
    always(lambda x, another: x.relu()),
)


@pytest.mark.parametrize("seed", range(40))
def test_every_plan_of_a_random_model_is_right(seed: int, prune_every_way: Any) -> None:
    prune_every_way(randomised(lambda: RandomModel(seed), seed)(), INPUTS)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(40, 240, 20))
def test_every_plan_of_many_random_models_is_right(first: int, prune_every_way: Any) -> None:
    for seed in range(first, first + 20):
        prune_every_way(randomised(lambda: RandomModel(seed), seed)(), INPUTS)  # noqa: B023 - called at once
