"""What a router makes of each expert: `RouterWeighted`. Needs data, but no labels."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.axes import Integers, Scores
from secateur.errors import DataError, ModelError
from secateur.torch.batches import Batches, real_rows, run, take
from secateur.torch.calibrate import evaluation_copy, undisturbed
from secateur.torch.capture import Inputs, TracedNetwork
from secateur.torch.products import Product, WatchProducts
from secateur.torch.scores.otherwise import completed, where_known
from secateur.torch.scores.score import Score, needed, prunable
from secateur.torch.scores.units import add_at
from secateur.torch.side_by_side import watch_modules


@dataclass(frozen=True, slots=True)
class RouterWeighted:
    """How much an expert adds to a token that a router sends to it: the mean of `g |f(x)|` over those tokens.

    Experts are matrices of stacked parameters, whatever the code that goes through them looks like. The module that holds them
    runs again with matrices that let each expert write to outputs of its own, so that what each adds is seen by itself; where
    there are fewer outputs than that takes, lengths are estimated from projections on random directions.

    Args:
        samples: How many samples to use, > 0.
        directions: On how many directions what an expert adds is projected, > 0; as many as it has outputs = exactly.
        otherwise: Scores the axes that are not experts; None = such axes are an error.

    Raises:
        DataError: A field is out of range. When called: no data, or data that do not fit the model.
        ModelError: When called: weights are not finite; an axis that is not of experts, and no `otherwise`; or a module does more
            with what its experts write than to weigh it and add it up.

    Source:
        M. Lasby et al., "REAP the Experts: Why Pruning Prevails for One-Shot MoE Compression", arXiv:2510.13999, 2025.
    """

    samples: int = 64
    directions: int = 64
    otherwise: Score | None = None

    def __post_init__(self) -> None:
        if any(type(number) is not int or number < 1 for number in (self.samples, self.directions)):
            raise DataError(f"{self!r}: samples and directions are whole numbers, at least 1")

    def __call__(self, network: TracedNetwork, batches: Batches | None = None) -> Scores:
        """Score the units; see `Score`."""
        batches = needed(self, batches)
        prunable(network)
        taken = [inputs for inputs, _ in take(batches, self.samples)]
        copy = evaluation_copy(network.model)
        stacks = {stack.module: stack for stack in _stacks(network, copy, taken[0], self.directions)}
        with undisturbed(copy):
            for inputs in taken:
                with torch.no_grad(), watch_modules(list(stacks), copy, partial(_visit, stacks, inputs)):
                    run(copy, inputs)
        totals, known = np.zeros(network.unit_count), np.zeros(network.unit_count)
        for stack in stacks.values():
            units = network.units(stack.product.tensor)[0]
            assert units is not None
            add_at(totals, units, stack.means())
            add_at(known, units, np.ones(stack.experts))
        return completed(
            self, network, batches, where_known(network, totals, known), "no stacked experts are the units of"
        )


class _Stack:
    """The matrices with which the experts of a module write, and what was seen of each of them.

    Args:
        module: The path of the module that holds them.
        product: The product with one of them.
        weight: All of them.
        bias: What is added to what they give, `[experts, out]`, or None.
        directions: See `RouterWeighted`.
    """

    def __init__(
        self, module: str, product: Product, weight: nn.Parameter, bias: nn.Parameter | None, directions: int
    ) -> None:
        self.module, self.product, self.weight, self.bias = module, product, weight, bias
        self.experts, self.width = len(self.weight), self.weight.shape[product.out_dim]
        dense = self._matrices(self.weight).detach()
        self.dense = dense if self.bias is None else torch.cat([dense, self.bias.detach()[..., None]], 2)
        generator = torch.Generator().manual_seed(0)
        turned, _ = torch.linalg.qr(torch.randn(self.width, self.width, generator=generator))
        some = turned[:directions] if directions < self.width else torch.eye(self.width)
        self.directions = some.to(dense.device, dense.dtype)
        self.lengths, self.tokens = np.zeros(self.experts), np.zeros(self.experts)
        self.checked = False

    def means(self) -> Any:
        """The mean length of what each expert adds, over the tokens that it is given; 0 where there are none."""
        return self.lengths / np.maximum(self.tokens, 1)

    def look(self, inputs: Inputs, again: Callable[[], Any]) -> None:
        """Count in what the experts add in one call of the module, which can be run again."""
        self._put(torch.zeros_like(self.dense))
        nothing = self._written(again)
        if not self.checked:
            self._check(nothing, again)
        squares = torch.zeros(len(real_rows(inputs, nothing)), self.experts, dtype=torch.float64)
        for first, last, some in self._turns():
            step = len(some)
            moved = torch.zeros_like(self.dense)
            for place, expert in enumerate(range(first, last)):
                moved[expert, place * step : (place + 1) * step] = some @ self.dense[expert]
            self._put(moved)
            parts = real_rows(inputs, self._written(again) - nothing)[:, : (last - first) * step]
            squares[:, first:last] += parts.double().unflatten(1, (-1, step)).square().sum(2).cpu()  # type: ignore[no-untyped-call]
        self._put(self.dense)
        squares *= self.width / len(self.directions)
        self.lengths += squares.sqrt().sum(0).numpy()
        self.tokens += (squares > 0).sum(0).numpy()

    def _turns(self) -> Iterator[tuple[int, int, Tensor]]:
        """Runs of experts, and directions for all of them, that the outputs are enough for."""
        together = min(self.experts, self.width)
        for first in range(0, self.experts, together):
            for some in torch.split(self.directions, self.width // together):
                yield first, min(first + together, self.experts), some

    def _check(self, nothing: Tensor, again: Callable[[], Any]) -> None:
        """Refuse a module that mixes outputs, or whose output is not proportional to what experts write."""
        half = max(1, self.width // 2)
        left = self.dense.clone()
        left[:, half:] = 0
        self._put(left)
        once = self._written(again) - nothing
        self._put(-2 * left)
        twice = self._written(again) - nothing
        rounding = 8 * torch.finfo(nothing.dtype).eps * float(nothing.abs().max())
        least = 1e-2 * float(once.abs().max()) + rounding
        mixed = once[:, half:]
        if (mixed.numel() and float(mixed.abs().max()) > least) or float((twice + 2 * once).abs().max()) > least:
            self._put(self.dense)
            raise ModelError(
                f"the module {self.module!r} does more with what its experts write than to weigh it and add it up, so what each "
                "adds is not seen there; put the experts into a module of their own, or score them by Taylor()"
            )
        self.checked = True

    def _put(self, dense: Tensor) -> None:
        """Let the experts write with other matrices, and biases behind them."""
        columns = self._matrices(self.weight).shape[2]
        parts = dense[..., :columns]
        self.weight.data = (parts if self.product.out_dim < self.product.in_dim else parts.transpose(1, 2)).contiguous()
        if self.bias is not None:
            self.bias.data = dense[..., columns].contiguous()

    def _matrices(self, weight: Tensor) -> Tensor:
        """`[experts, out, in]`."""
        return weight if self.product.out_dim < self.product.in_dim else weight.transpose(1, 2)

    def _written(self, again: Callable[[], Any]) -> Tensor:
        """What the module writes, `[tokens, out]`."""
        leaves = [leaf for leaf in pytree.tree_leaves(again()) if isinstance(leaf, Tensor)]
        found = next((leaf for leaf in leaves if leaf.ndim > 1 and leaf.shape[-1] == self.width), None)
        if found is None:
            raise ModelError(
                f"the module {self.module!r} returns no tensor with the {self.width} outputs of its experts"
            )
        return found.detach().clone().flatten(0, -2)


def _visit(stacks: dict[str, _Stack], inputs: Inputs, name: str, _: Any, again: Callable[[], Any]) -> Any:
    stacks[name].look(inputs, again)
    return again()


def _stacks(network: TracedNetwork, copy: nn.Module, inputs: Inputs, directions: int) -> Iterator[_Stack]:
    """Of each module with stacked experts that are an axis, the stack that they write with last."""
    last: dict[str, Product] = {}

    def visit(product: Product, x: Tensor, run: Callable[..., Tensor]) -> Tensor:  # noqa: ARG001 - as Visit asks
        if product.stack is not None and network.units(product.tensor)[0] is not None:
            last[product.tensor.rpartition(".")[0]] = product
        return run()

    with torch.no_grad(), undisturbed(copy), WatchProducts(copy, visit):
        run(copy, inputs)
    parameters = dict(copy.named_parameters())
    for module, product in last.items():
        bias = _bias(network, parameters, module, product)
        yield _Stack(module, product, parameters[product.tensor], bias, directions)


def _bias(
    network: TracedNetwork, parameters: dict[str, nn.Parameter], module: str, product: Product
) -> nn.Parameter | None:
    """What a module adds to what its experts write: the last parameter with a row for each of them, of the same outputs."""
    weight, units = parameters[product.tensor], network.units(product.tensor)
    shape, wanted = (len(weight), weight.shape[product.out_dim]), (units[0], units[product.out_dim])
    found = None
    for name, parameter in parameters.items():
        if name.rpartition(".")[0] == module and parameter.shape == shape:
            pairs = zip(network.units(name), wanted, strict=True)
            if all(_same(mine, other) for mine, other in pairs):
                found = parameter
    return found


def _same(one: Integers | None, other: Integers | None) -> bool:
    return one is other or (one is not None and other is not None and np.array_equal(one, other))
