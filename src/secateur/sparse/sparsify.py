"""The main job for single weights: score, choose, solve, layer by layer, on what each layer reads."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import gettempdir

import torch
from torch import Tensor, nn

from secateur.errors import DataError, ModelError
from secateur.sparse.allocation import Allocation, Cutoff, even
from secateur.sparse.alone import EachAlone
from secateur.sparse.amounts import Sparsity, check_amount, check_fit, counts_of
from secateur.sparse.job import Job, Progress, arranged, identity
from secateur.sparse.journal import Journal
from secateur.sparse.layers import Layer, survey
from secateur.sparse.patterns import Pattern, Unstructured
from secateur.sparse.problem import Solver
from secateur.sparse.procedure import Procedure, check_choices, listed, of_model, ordered, scored
from secateur.sparse.result import SparseResult
from secateur.sparse.rounding import Rounding
from secateur.sparse.solvers import Refit
from secateur.torch import scores as criteria
from secateur.torch.batches import Batches, batch_size, take
from secateur.torch.calibrate import Calibrate
from secateur.torch.capture import Inputs
from secateur.torch.products import Product
from secateur.torch.replicate import replicate
from secateur.torch.state import state_of


def sparsify(
    model: nn.Module,
    batches: Batches,
    *,
    sparsity: Sparsity | None = None,
    pattern: Pattern | None = None,
    score: criteria.WeightScore | criteria.ModelScore | None = None,
    solver: Solver | Iterable[Solver] | None = None,
    allocation: Allocation | Cutoff = even,
    rounding: Rounding | None = None,
    exclude: Sequence[str] = (),
    include: Sequence[str] = (),
    in_sequence: bool = True,
    samples: int = 128,
    memory: int = 4 << 30,
    journal: str | Path | None = None,
    progress: Progress | None = None,
) -> SparseResult:
    """Set weights to zero, and let the others make up for it.

    The weights of all matrix products and convolutions can become sparse, but for those that something else reads too, such as an
    embedding that is tied to the last layer; and for embeddings: those that `include` names.

    Args:
        model: Any module; it is not changed.
        batches: What the model reads; with targets, where the score needs a loss. See `secateur.torch.batches`.
        sparsity: The share that goes, in [0, 1), or shares by name patterns. None where the pattern or the allocation
            says how much.
        pattern: What goes together; by default each weight by itself, as many in each row.
        score: What a weight is worth; by default `scores.Wanda()`. One of whole models is asked once, before anything goes.
        solver: What is done with the choice, one after the other; by default `solvers.Refit()`. `solvers.keep` does nothing.
        allocation: How what goes is divided among the layers, where `sparsity` is one number; or what decides how much goes.
        rounding: What the weights that stay are rounded to while they are solved, such as `rounding.Integer(bits=4)`.
        exclude: Parameters or modules that stay dense, as name patterns.
        include: Embeddings and other matrices that would stay dense, as name patterns of parameters or modules. They become
            sparse before all others, by a score of their weights alone (E[x^2] is 1), and no solver changes what is left.
        in_sequence: Solve each layer on what the model gives it in which the layers before are sparse already. Otherwise all are
            solved on what the dense model gives them.
        samples: How many samples to use, > 0. In sequence, on other devices than the CPU, fewer are used where the memory is too
            small for what they all read; the result says how many.
        memory: About how many bytes of activations may be kept, in sequence; half of them while layers wait for each other, half
            while operators work. On the CPU, activations that do not fit wait in files without a name, in the folder of the
            journal, or where the system has its temporary files. And of Gram matrices that an allocation measures with.
        journal: A folder that gets each weight as soon as it is solved. A job that was killed goes on where it stopped when it
            is started again as it was, and comes to the same bytes. The weights of the result are then mapped from these files,
            matrices that did not change are the model's own (train neither in place), and one layer with its Gram matrix is in
            memory at a time.
        progress: Called as `progress(layer, done, total)` after each layer.

    Returns:
        The sparse model with its plan and a report.

    Raises:
        ArtefactError: The journal has the work of another job, or is damaged.
        BudgetError: A sparsity is missing, out of range, or not the pattern's; or an allocation does not go with the pattern, or
            lets everything go.
        DataError: There are no data, they do not fit the model, or activations are not finite; names the layer. Or activations
            fit neither in memory nor on the disk.
        ModelError: Weights are not finite.
        PlanError: The pattern does not fit a weight, a name pattern fits nothing, a solver does not know the pattern, or a score
            scores no single weights.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 4))
        >>> result = sparsify(model, [torch.randn(64, 8)], sparsity=0.5)
        >>> result.plan.zeros, int((result.model[0].weight == 0).sum())
        (96, 64)
    """
    pattern = Unstructured() if pattern is None else pattern
    score = criteria.Wanda() if score is None else score
    solvers = listed(Refit() if solver is None else solver)
    check_choices(pattern, score, rounding)
    check_amount(pattern, sparsity, allocation)
    if any(type(number) is not int or number < 1 for number in (samples, memory)):
        raise DataError(f"samples and memory are whole numbers, at least 1; got {samples=}, {memory=}")
    taken = list(take(batches, samples, labelled=not isinstance(score, criteria.WeightScore)))
    pieces = [inputs for inputs, _ in taken]
    _check_weights(model)
    small = replicate(model, _shared)
    found = survey(small, pieces[0], exclude, include)
    layers = found.layers
    check_fit(layers, pattern)
    worth = score if isinstance(score, criteria.WeightScore) else of_model(score, small, taken, layers)
    procedure = Procedure(pattern, worth, solvers, rounding)
    scores = cache(lambda: _scores(small, layers, procedure, pieces))
    alone = EachAlone(small, layers, pieces, procedure.on_moments, memory)
    counts = counts_of(layers, pattern, sparsity, allocation, scores, alone)
    room = None
    if in_sequence:
        on_cpu = all(tensor.device.type == "cpu" for tensor in small.parameters())
        pieces, fits = arranged(pieces, found, memory, spills=on_cpu)
        room = None if fits or not on_cpu else Path(journal or gettempdir())
    book = (
        None
        if journal is None
        else Journal(Path(journal), identity(small, layers, procedure, counts, pieces, in_sequence=in_sequence))
    )
    job = Job(small, layers, counts, procedure, book, progress)
    job.by_weights(found.included)
    if in_sequence:
        job.in_sequence(pieces, found.repeated, room)
    job.from_moments(pieces)
    return job.result(sum(map(batch_size, pieces)))


def _shared(tensor: Tensor) -> Tensor:
    """Parameters as they are, until they change; copies of all others."""
    return tensor.detach() if isinstance(tensor, nn.Parameter) else tensor.detach().clone()


def _scores(
    model: nn.Module, layers: Sequence[Layer], procedure: Procedure, pieces: Sequence[Inputs]
) -> dict[Product, Tensor]:
    """The scores of all layers, on what the dense model gives them."""
    powers: dict[Product, Tensor] = {}
    by_product = {layer.product: layer for layer in layers}
    worth = procedure.worth
    if not isinstance(worth, Mapping) and worth.needs_data:
        calibrate = Calibrate(samples=sum(map(batch_size, pieces)), gram=False)
        for moments in calibrate(model, [(piece, None) for piece in pieces]):
            if moments.product in by_product:
                powers[moments.product] = ordered(by_product[moments.product], moments)[0].float()
    state, found = state_of(model), {}
    for layer in layers:
        weights = layer.matrices(state[layer.product.tensor].detach()).float()
        found[layer.product] = scored(worth, layer, weights, powers.get(layer.product))
    return found


def _check_weights(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        if parameter.is_meta:
            raise ModelError(f"{name!r} is on the meta device and has no values; materialise the model first")
        if parameter.is_floating_point() and not bool(torch.isfinite(parameter.detach()).all()):
            raise ModelError(f"{name!r} has NaN or infinite values; load finite weights first")
