"""One layer of a model becomes sparse and all others stay dense, again and again: what allocations by measurement are given."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.sparse.allocation import Alone
from secateur.sparse.layers import Layer
from secateur.torch.batches import batch_size
from secateur.torch.calibrate import Calibrate, Moments
from secateur.torch.capture import Inputs
from secateur.torch.products import Product
from secateur.torch.replicate import replicate
from secateur.torch.state import state_of

Solve = Callable[[Layer, Tensor, Moments, Sequence[int]], tuple[Tensor, float]]
"""The sparse weight of a layer and its relative error, of the dense weight, moments, and how many units go of each group."""


class EachAlone:
    """Makes single layers of a dense model sparse.

    Args:
        model: The dense model; it is not changed.
        layers: What can become sparse, best asked for in this order.
        pieces: What the model reads.
        solve: Makes a layer sparse.
        memory: How many bytes of Gram matrices are held at a time; the model runs again where they do not all fit, > 0.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[Layer], pieces: Sequence[Inputs], solve: Solve, memory: int
    ) -> None:
        self._model, self._layers, self._pieces = model, layers, pieces
        self._solve, self._memory = solve, memory
        self._state = state_of(model)
        self._held: dict[Product, Moments] = {}

    def __call__(self, layer: Layer, counts: Sequence[int]) -> Alone:
        """Make one layer sparse.

        Args:
            layer: Which one.
            counts: How many units of the pattern go of each of its groups.

        Raises:
            DataError: Its Gram matrix does not fit in memory, or activations are not finite.
        """
        if layer.product not in self._held:
            self._gather(self._layers.index(layer))
        dense = self._state[layer.product.tensor]
        matrices, error = self._solve(layer, dense.detach(), self._held[layer.product], counts)
        return Alone(error, lambda: self._model_with(layer, dense, matrices))

    def _gather(self, first: int) -> None:
        """Hold the moments of this layer and of as many behind it as fit."""
        chosen, left = [], self._memory
        for layer in self._layers[first:]:
            left -= self._bytes(layer)
            if left < 0:
                break
            chosen.append(layer.product)
        if not chosen:
            layer = self._layers[first]
            raise DataError(
                f"{layer.name!r} cannot be measured: its Gram matrix takes {self._bytes(layer):,} bytes, and "
                f"memory={self._memory:,}; allow more, exclude it, or allocate without measuring"
            )
        self._held = {}
        calibrate = Calibrate(samples=sum(map(batch_size, self._pieces)), limit=self._memory)
        tensors = {product.tensor for product in chosen}
        for moments in calibrate(self._model, [(piece, None) for piece in self._pieces], tensors):
            if moments.product in chosen:
                self._held[moments.product] = moments
        for layer in self._layers:
            if layer.product in chosen and layer.product not in self._held:
                self._held[layer.product] = _white(layer, self._state[layer.product.tensor])

    def _bytes(self, layer: Layer) -> int:
        groups, _, columns = layer.shape
        kind = torch.promote_types(self._state[layer.product.tensor].dtype, torch.float32)
        return groups * columns**2 * kind.itemsize

    def _model_with(self, layer: Layer, dense: Tensor, matrices: Tensor) -> nn.Module:
        """The model with other numbers in one weight."""
        changed = dense.detach().clone()
        layer.put(matrices, changed)

        def copied(tensor: Tensor) -> Tensor:
            if tensor is dense:
                return changed
            return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()

        return replicate(self._model, copied).eval()


def _white(layer: Layer, weight: Tensor) -> Moments:
    """What is taken for the moments of a layer that reads nothing of the data: inputs that know nothing of each other."""
    groups, out, columns = layer.shape
    zeros = torch.zeros(groups, columns, dtype=torch.float64, device=weight.device)
    eye = torch.eye(columns, dtype=torch.promote_types(weight.dtype, torch.float32), device=weight.device)
    nothing = zeros.new_zeros(groups, out)
    return Moments(layer.product, 0, zeros, zeros + 1, nothing, nothing, eye.repeat(groups, 1, 1))
