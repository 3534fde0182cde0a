"""Prune a little, go back, train again, several times over: with weights rewound, or the learning rate alone."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn

from secateur.errors import ModelError, PlanError, RecoveryError
from secateur.sparse import SparseResult, WeightPlan
from secateur.sparse.allocation import Allocation, even
from secateur.sparse.counts import share_of
from secateur.sparse.layers import survey
from secateur.sparse.patterns import Pattern, Unstructured
from secateur.sparse.result import LayerReport
from secateur.torch.capture import Inputs
from secateur.torch.replicate import replicate
from secateur.torch.scores import Magnitude, WeightScore
from secateur.torch.state import state_of
from secateur.train.gradual import towards
from secateur.train.masked import masked
from secateur.train.method import Weights, check_choice, lowest

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Iterative:
    """Rounds in which the lowest weights go, the others are rewound, and the model is trained again.

    Each round takes the same share of what is left, so that the sparsity after the last is exact: with five rounds to 0.9, each
    takes 37 %.

    Args:
        sparsity: The share that goes in the end, in [0, 1).
        rounds: How many there are, at least 1.
        rewind: The state of the model to go back to in each round, such as one from early in its training; None = weights stay as
            they are. The learning rate starts anew either way, if the training function does that.
        pattern: What goes together.
        score: What a weight is worth; one that needs no data.
        allocation: How what goes is divided among the layers.

    Raises:
        BudgetError: The sparsity is out of range, or not the pattern's.
        PlanError: There are no rounds, or the score needs data.
        RecoveryError: When called: the training gave back another model.
        ModelError: When called: the state to go back to is of another model.

    Example:
        >>> def train(model):
        ...     optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        ...     for x in torch.randn(8, 16, 4):
        ...         optimizer.zero_grad()
        ...         (model(x) - x.sum(1, keepdim=True)).square().mean().backward()
        ...         optimizer.step()
        >>> result = Iterative(0.75, rounds=2)(nn.Linear(4, 1), train, torch.zeros(1, 4))
        >>> result.plan.zeros, int((result.model.weight == 0).sum())
        (3, 3)

    Source:
        Weights: J. Frankle, M. Carbin, "The Lottery Ticket Hypothesis", ICLR 2019; to an early state: J. Frankle et al., "Linear
        Mode Connectivity and the Lottery Ticket Hypothesis", ICML 2020. The learning rate alone: A. Renda et al., "Comparing
        Rewinding and Fine-tuning in Neural Network Pruning", ICLR 2020.
    """

    sparsity: float | Fraction
    rounds: int = 5
    rewind: Mapping[str, Tensor] | None = None
    pattern: Pattern = Unstructured("global")  # noqa: RUF009 - frozen
    score: WeightScore = Magnitude()  # noqa: RUF009 - frozen
    allocation: Allocation = even

    def __post_init__(self) -> None:
        check_choice(self.sparsity, self.pattern, self.score, self.allocation)
        if self.rounds < 1:
            raise PlanError(f"Iterative(rounds={self.rounds!r}): there is at least one round")

    def __call__(
        self,
        model: nn.Module,
        train: Callable[[nn.Module], nn.Module | None],
        inputs: Inputs,
        *,
        exclude: Sequence[str] = (),
    ) -> SparseResult:
        """Prune and train, round by round.

        Args:
            model: A trained model; it is not changed.
            train: Trains the model that it is given, in place, from the first step of its schedule to the last.
            inputs: What the model takes; weights that can become sparse are found by a run on it.
            exclude: Parameters or modules that stay dense, as name patterns.

        Returns:
            The sparse model with its plan and a report.
        """
        model = replicate(model, lambda tensor: tensor.detach().clone())
        layers, state = survey(model, inputs, exclude).layers, state_of(model)
        values = {layer.product.tensor: state[layer.product.tensor].detach() for layer in layers}
        stays = {name: torch.ones_like(value, dtype=torch.bool) for name, value in values.items()}
        for number in range(1, self.rounds + 1):
            weights = Weights(layers, values, stays, {})
            stays = lowest(weights, self.sparsity_after(number), towards(self.pattern), self.score, self.allocation)
            self._go_back(model)
            with masked(model, WeightPlan(stays)) as training:
                trained = train(model)
                plan = training.plan
            if trained is not None and trained is not model:
                raise RecoveryError(
                    f"the training gave back another {type(trained).__name__}, whose zeros nobody held; train the model that "
                    "it is given, in place"
                )
            logger.info("round %d of %d: %.1f %% of the weights are zero", number, self.rounds, 100 * plan.sparsity)
        report = [LayerReport(x.name, x.shape, int((~x.matrices(stays[x.product.tensor])).sum()), None) for x in layers]
        return SparseResult(model, WeightPlan(stays), tuple(report))

    def sparsity_after(self, number: int) -> float | Fraction:
        """The share that is gone after so many rounds, in [0, 1)."""
        whole = share_of(self.sparsity)
        return whole if number == self.rounds else 1 - float(1 - whole) ** (number / self.rounds)

    def _go_back(self, model: nn.Module) -> None:
        if self.rewind is not None:
            try:
                model.load_state_dict(self.rewind)
            except RuntimeError as error:
                raise ModelError(
                    f"rewind= is the state of another model than this {type(model).__name__}: {error}"
                ) from error
