"""Goes through a model and makes each layer sparse on what it reads; a journal, where there is one, keeps what is done."""

import hashlib
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from secateur.errors import DataError, PlanError
from secateur.sparse.journal import Entry, Journal, Masks, digest
from secateur.sparse.layers import Layer, Survey
from secateur.sparse.plan import WeightPlan
from secateur.sparse.procedure import Procedure, Worth, ordered
from secateur.sparse.result import LayerReport, SparseResult
from secateur.torch.batches import batch_size, part, real_rows
from secateur.torch.calibrate import Calibrate, evaluation_copy, undisturbed
from secateur.torch.capture import Inputs
from secateur.torch.products import Product
from secateur.torch.side_by_side import side_by_side
from secateur.torch.spill import give_back
from secateur.torch.state import state_of

logger = logging.getLogger(__name__)

WINDOWS = 8
"""Windows of an image that a convolution is solved on, for each of its inputs; and so many more."""
LEAST_ROWS = 4096
CACHED = 256
"""Rows that are squared at a time."""
LIVE = 3
"""About how many times the largest input and output of a layer are alive at once."""

Progress = Callable[[str, int, int], None]
"""Called with what was done last, how much is done and how much there is."""


class Job:
    """Layers that are to become sparse, and what became of those that are."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        counts: Mapping[Product, list[int]],
        procedure: Procedure,
        journal: Journal | None,
        progress: Progress | None,
    ) -> None:
        self.model, self.layers, self.counts, self.procedure = model, layers, counts, procedure
        self.journal, self.progress = journal, progress
        self.running = evaluation_copy(model)
        self.copies: list[nn.Module] = []
        self.todo = {layer.product: layer for layer in layers}
        self.dense = {name: tensor.detach() for name, tensor in state_of(model).items()}
        self.parts = Counter(layer.product.tensor for layer in layers)
        self.entries: dict[str, Entry] = {}
        self.reports: dict[str, LayerReport] = {}

    def by_weights(self, products: Iterable[Product]) -> None:
        """Make layers sparse without a look at what they read."""
        for product in products:
            layer = self.todo.pop(product)
            self._settled(layer, partial(self._white, layer))

    def in_sequence(self, pieces: Sequence[Inputs], repeated: Collection[Product], room: Path | None) -> None:
        """One run, in which each layer becomes sparse when it is its turn; those that run several times are left.

        Args:
            pieces: The data.
            repeated: The products that run several times.
            room: A folder for activations that do not fit in memory; None = they do.
        """

        def change(product: Product, read: Mapping[int, Tensor]) -> Tensor:
            layer = self.todo.pop(product)
            rows = (real_rows(pieces[number], x) for number, x in read.items())
            return self._settled(layer, lambda: self._moments(layer, rows, len(read)))

        order = [product for product in self.todo if product not in repeated]
        self.copies = [evaluation_copy(self.model) for _ in pieces]
        with undisturbed(self.running):
            side_by_side(self.copies, pieces, order, change, room=room)
        self.copies = []
        self._settle_unread([product for product in order if product in self.todo])

    def from_moments(self, pieces: Sequence[Inputs]) -> None:
        """All layers that are left, on what the model as it is now gives them."""
        if not self.todo:
            return
        calibrate = Calibrate(samples=sum(map(batch_size, pieces)), gram=self.procedure.needs_gram)
        tensors = {product.tensor for product in self.todo}
        for moments in calibrate(self.running, [(piece, None) for piece in pieces], tensors):
            layer = self.todo.pop(moments.product, None)
            if layer is not None:
                self._settled(layer, partial(ordered, layer, moments))
        self._settle_unread(list(self.todo))

    def result(self, samples: int) -> SparseResult:
        """What became of the model."""
        names = list(dict.fromkeys(layer.product.tensor for layer in self.layers))
        if self.journal is None:
            masks: Mapping[str, Tensor] = {name: self.entries[name].stays for name in names}
            for name, tensor in state_of(self.model).items():
                if name not in masks and isinstance(tensor, nn.Parameter):
                    tensor.data = tensor.detach().clone()
        else:
            masks = Masks(self.journal, names)
            for tensor in self.model.parameters():
                if tensor.ndim < 2:
                    tensor.data = tensor.detach().clone()
        reports = tuple(self.reports[layer.name] for layer in self.layers)
        return SparseResult(self.model, WeightPlan(masks), reports, samples, self.procedure.rounding)

    def _moments(self, layer: Layer, read: Iterable[Tensor], parts: int) -> tuple[Tensor, Tensor | None]:
        """E[x^2] and E[x x^T] of what a layer reads, in so many parts: `[groups, in]`, `[groups, in, in]`."""
        at_most = None if layer.product.window is None else max(LEAST_ROWS, WINDOWS * layer.shape[2]) // parts + 1
        total, count = None, 0
        for x in read:
            rows = layer.read(x, at_most)
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            more = rows.mT @ rows if self.procedure.needs_gram else _squares(rows)
            total = more if total is None else total.add_(more)
            count += rows.shape[1]
        if total is None or not count:
            if layer.product.stack is None:
                raise DataError(f"{layer.name!r} reads nothing: all of the data is padding")
            return self._unread(layer)
        if not bool(torch.isfinite(total).all()):
            raise DataError(
                f"{layer.name!r} reads values that are not finite, or too large to be squared; look at the data and the weights"
            )
        total /= count
        return (total.diagonal(dim1=1, dim2=2), total) if self.procedure.needs_gram else (total, None)

    def _settle_unread(self, products: Iterable[Product]) -> None:
        """Make layers sparse that no row has reached."""
        for product in products:
            layer = self.todo.pop(product)
            self._settled(layer, partial(self._unread, layer))

    def _unread(self, layer: Layer) -> tuple[Tensor, None]:
        logger.warning("%s reads nothing of the data: what goes is chosen by its weights alone", layer.name)
        return self._white(layer)

    def _white(self, layer: Layer) -> tuple[Tensor, None]:
        """What is taken for the moments of a layer of which nothing is known: E[x^2] is 1 for all inputs."""
        (groups, _, columns), dense = layer.shape, self.dense[layer.product.tensor]
        return dense.new_ones(groups, columns, dtype=torch.promote_types(dense.dtype, torch.float32)), None

    def _settled(self, layer: Layer, moments: Callable[[], tuple[Tensor, Tensor | None]]) -> Tensor:
        """Make a layer sparse, or look up what became of it in an earlier run; gives the parameter."""
        name = layer.product.tensor
        if (
            self.journal is not None
            and name not in self.entries
            and (kept := self.journal.find(name, self.dense[name]))
        ):
            self.entries[name] = kept
            self.reports.update((report.name, report) for report in kept.reports)
        solved = layer.name not in self.reports
        if solved:
            self.entries[name] = self._solved(layer, self.entries.get(name), *moments())
            self.reports[layer.name] = self.entries[name].reports[-1]
        entry = self.entries[name]
        self.parts[name] -= 1
        if self.journal is not None and not self.parts[name]:
            del self.entries[name]
            entry = self.journal.add(name, self.dense[name], entry) if solved else entry
            give_back()
        for model in (self.model, *self.copies, self.running):
            parameter = model.get_parameter(name)
            parameter.data = entry.weight.to(parameter.device)
        if self.progress is not None:
            self.progress(layer.name, len(self.layers) - len(self.todo), len(self.layers))
        return parameter

    def _solved(self, layer: Layer, entry: Entry | None, power: Tensor, gram: Tensor | None) -> Entry:
        """Make a layer sparse in what is known of its parameter."""
        dense = self.dense[layer.product.tensor]
        kind = power.dtype
        weights, kept, error = self.procedure(
            layer, layer.matrices(dense).to(kind), power, gram, self.counts[layer.product]
        )
        weight, stays = (
            (dense.clone(), torch.ones_like(dense, dtype=torch.bool)) if entry is None else (entry.weight, entry.stays)
        )
        layer.put(weights, weight)
        layer.put(kept, stays)
        report = LayerReport(layer.name, layer.shape, int((~kept).sum()), error)
        logger.info("%s: %s", layer.name, "solved" if error is None else f"relative error {error:.2e}")
        return Entry(weight, stays, (*(() if entry is None else entry.reports), report))


def _squares(rows: Tensor) -> Tensor:
    """The sum of the squares of each column, `[groups, in]`, by parts that a processor's cache can hold."""
    parts = [part.square().sum(1) for part in torch.split(rows, CACHED, dim=1)]
    return torch.stack(parts).sum(0)


def arranged(pieces: Sequence[Inputs], found: Survey, memory: int, *, spills: bool) -> tuple[list[Inputs], bool]:
    """The data in pieces that are small enough to work on, and whether all of them fit in memory while they wait.

    Args:
        pieces: The data.
        found: How much a sample takes.
        memory: Bytes, half of them for what waits, half for what works.
        spills: Whether what does not fit can go to the disk; if not, as many samples are taken as fit.
    """
    most, step = (max(1, memory // (2 * LIVE * size)) for size in (found.waiting, found.working))
    total = sum(map(batch_size, pieces))
    left = total if spills else min(total, most)
    if left < total:
        logger.info("%d samples of %d are used; for more, the memory would have to be larger", left, total)
    taken = []
    for piece in pieces:
        for start in range(0, min(batch_size(piece), left), step):
            taken.append(part(piece, None, start, min(start + step, batch_size(piece), start + left))[0])
            left -= batch_size(taken[-1])
    return taken, total <= most


def identity(
    model: nn.Module,
    layers: Sequence[Layer],
    procedure: Procedure,
    counts: Mapping[Product, list[int]],
    pieces: Sequence[Inputs],
    *,
    in_sequence: bool,
) -> dict[str, str]:
    """All that decides what becomes of a model's weights, each with a name of its own.

    Raises:
        PlanError: A solver or a score has no words that are the same in another process.
    """
    return {
        "pattern": repr(procedure.pattern),
        "score": _told(procedure.worth),
        "solver": ", ".join(map(_words, procedure.solvers)),
        "rounding": repr(procedure.rounding),
        "in sequence": str(in_sequence),
        "torch": torch.__version__,
        "the model's structure": _of_all([repr(model)]),
        **{f"what goes of {layer.name}": f"{_alike(counts[layer.product])} of {layer.shape}" for layer in layers},
        **{f"the model's {name}": digest(tensor) for name, tensor in state_of(model).items()},
        **{f"piece {number} of the data": _of_piece(piece) for number, piece in enumerate(pieces)},
    }


def _told(worth: Worth) -> str:
    """A score in words, or a number for those of whole parameters."""
    return (
        _of_all(f"{name} {digest(scores)}" for name, scores in worth.items())
        if isinstance(worth, Mapping)
        else _words(worth)
    )


def _words(choice: object) -> str:
    """An object or a function in words that are the same in another process."""
    named = f"{getattr(choice, '__module__', '')}.{getattr(choice, '__qualname__', '')}"
    words = named if callable(choice) and hasattr(choice, "__qualname__") else repr(choice)
    if "<lambda>" in words or "<locals>" in words or " at 0x" in words:
        raise PlanError(
            f"a journal has to know {words} again; give a function of a module, or an object whose repr says what it does"
        )
    return words


def _of_piece(piece: Inputs) -> str:
    leaves = pytree.tree_leaves(piece)
    return _of_all(digest(leaf) if isinstance(leaf, Tensor) else repr(leaf) for leaf in leaves)


def _alike(counts: Sequence[int]) -> int | list[int]:
    """How many units go of each group of a layer; one number where it is the same of all."""
    return counts[0] if len(set(counts)) == 1 else list(counts)


def _of_all(texts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
