"""What a norm hides: no unit of its axis can be zeroed to compare, so that only a reference tells a wrong model from a right one.

Each model does something that depends on a width or on a number of heads. Either these are frozen, or the compact model gives
what the reference gives, which does the same as the dense model did.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import secateur as sc
from secateur.errors import VerificationError
from secateur.testing.zoo.entry import randomised
from secateur.torch.verify import difference

Forward = Callable[[Any, Tensor], Tensor]

# float64; what is wrong is wrong by the order of the outputs
TOLERANCE = 1e-10


class Normed(nn.Module):
    """A layer of 8 units, a norm over them, something, and a last layer; heads are an attribute."""

    def __init__(self, after: Forward, heads: Any, images: bool) -> None:
        super().__init__()
        self.first: nn.Module = nn.Conv2d(3, 8, 1) if images else nn.Linear(4, 8)
        self.norm: nn.Module = nn.GroupNorm(1, 8) if images else nn.LayerNorm(8)
        self.last: nn.Module = nn.Conv2d(8, 5, 1) if images else nn.Linear(8, 5)
        self.after, self.heads = after, heads

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.last(self.after(self, self.norm(self.first(x))))
        return out


def in_heads(x: Tensor, heads: int) -> Tensor:
    return x.unflatten(-1, (heads, -1)).softmax(-1).flatten(-2)


def silent(name: str, units: int, kept: list[int], after: Forward, right: Forward) -> Any:
    return pytest.param(units, kept, after, right, id=name)


def of_heads(name: str, use: Callable[[Tensor, int], Tensor]) -> Any:
    """Two of four heads go, and `use` has something else to do with how many heads there are: `use(x, heads)`."""

    def after(m: Any, x: Tensor) -> Tensor:
        return use(in_heads(x, m.heads), m.heads)

    return silent(name, 4, [0, 2], after, lambda m, x: use(in_heads(x, 2), 4))


@pytest.mark.parametrize(
    ("units", "kept", "after", "right"),
    [
        silent("a large width", 8, [0, 1, 2, 3], lambda m, x: x * 2 if x.shape[-1] > 7 else x, lambda m, x: x * 2),
        silent("an even width", 8, [0, 1, 2, 5], lambda m, x: x if x.shape[-1] % 2 == 0 else -x, lambda m, x: x),
        of_heads("heads alone", lambda x, heads: x),
        of_heads("a factor", lambda x, heads: x * heads),
        of_heads("a shift", lambda x, heads: x.roll(heads, 1)),
        of_heads("tokens at places", lambda x, heads: x[:, torch.arange(heads)]),
        of_heads("the first tokens", lambda x, heads: x[:, :heads]),
        of_heads("every so many tokens", lambda x, heads: x[:, ::heads]),
        of_heads("a token at a place", lambda x, heads: x[:, heads]),
        of_heads("copies of all tokens", lambda x, heads: x.repeat(1, heads, 1)),
    ],
)
def test_a_number_that_depends_on_a_width_is_not_silently_another(
    units: int, kept: list[int], after: Forward, right: Forward
) -> None:
    compare_with_the_reference(
        Normed(after, 4, images=False), torch.randn(2, 6, 4), units, kept, Normed(right, 0, images=False)
    )


# Python does not tell that it uses these attributes as numbers; `verify` looks at what is run.
@pytest.mark.parametrize(
    ("use", "fault"),
    [
        pytest.param(
            lambda x, heads: sum((x for _ in range(heads)), x),
            r"the compact model runs linear where the model runs add \(.* in last\)",
            id="rounds of a loop",
        ),
        pytest.param(
            lambda x, heads: x * [1.0, 1.0, 2.0, 2.0, 4.0][heads],
            r"runs mul with other=2.0 where the model has other=4.0 \(tests.*test_odd_behind_a_norm.py:\d+\)",
            id="a place in a list",
        ),
        pytest.param(
            lambda x, heads: x[:, : [0, 1, 2, 4, 5][heads]].repeat(1, 6, 1)[:, :6],
            r"gets a result of shape \[2, 2, 4\] of slice where \[2, 5, 4\] was predicted",
            id="how many tokens",
        ),
        pytest.param(
            lambda x, heads: x[:, [0, 1, 2, 3, 4][heads] :][:, :1].expand(-1, 6, -1),
            r"gets a result of shape \[2, 4, 4\] of slice where \[2, 2, 4\] was predicted",
            id="the first token",
        ),
        pytest.param(
            lambda x, heads: x[:, ([0, 1, 2, 3, 4][heads]) : ([1, 2, 3, 4, 5][heads])].expand(-1, 6, -1),
            r"runs slice with start=2 where the model has start=4, and nothing is cut",
            id="which token",
        ),
    ],
)
def test_what_python_does_not_tell_is_caught_by_the_proof(use: Callable[[Tensor, int], Tensor], fault: str) -> None:
    model = randomised(lambda: Normed(lambda m, x: use(in_heads(x, m.heads), m.heads), 4, images=False))()
    inputs = torch.randn(2, 6, 4)
    network = sc.trace(model, inputs)
    axis = next(axis for axis in network.axes if axis.size == 4)
    with pytest.raises(VerificationError, match=fault):
        sc.verify(model, network.plan({axis.name: [0, 2]}), inputs)


@pytest.mark.parametrize(
    ("after", "right"),
    [
        (lambda m, x: torch.native_channel_shuffle(x, 2), lambda m, x: x),
        (lambda m, x: F.channel_shuffle(x, m.heads), lambda m, x: x),
    ],
    ids=["torch's own", "by an attribute"],
)
def test_one_group_that_is_left_is_not_silently_shuffled(after: Forward, right: Forward) -> None:
    compare_with_the_reference(
        Normed(after, 2, images=True), torch.randn(2, 3, 4, 4), 2, [0], Normed(right, 0, images=True)
    )


def compare_with_the_reference(model: nn.Module, inputs: Tensor, units: int, kept: list[int], right: Any) -> None:
    model, inputs = randomised(lambda: model)().double(), inputs.double()
    network = sc.trace(model, inputs)
    for axis in network.axes:
        if axis.size == units and any(str(slot) == "first.weight:0" for slot in axis.slots):
            plan = network.plan({axis.name: kept})
            sc.verify(model, plan, inputs)
            small = sc.compact(model, plan)
            right.first, right.norm, right.last = small.first, small.norm, small.last
            with torch.no_grad():
                assert difference(right(inputs), small(inputs)) < TOLERANCE
