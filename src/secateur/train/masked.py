"""Training with masks, whatever the loop, the optimiser or the library around it: zeros stay zeros, and masks change on time."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from secateur.errors import ModelError, PlanError
from secateur.sparse import WeightPlan
from secateur.sparse.layers import Layer, survey
from secateur.torch.capture import Inputs
from secateur.train.method import Constant, Method, Weights
from secateur.train.update import original

logger = logging.getLogger(__name__)

_STEP, _MASKS = "step", "masks."


@contextmanager
def masked(
    model: nn.Module,
    masks: WeightPlan | Method,
    inputs: Inputs | None = None,
    *,
    exclude: Sequence[str] = (),
    state: Mapping[str, Tensor] | None = None,
) -> Iterator["Training"]:
    """While it is open, weights that went stay exactly zero after each step of any optimiser over the model's parameters.

    Their gradients are zero too, so that moments gather nothing; after each step weights and moments are masked once more, for
    what was in them before. A weight that comes back begins at zero, and so do its moments. Mixed precision, accumulated
    gradients, weight decay, several optimisers and `torch.compile` need nothing else.

    A step counts when an optimiser over the model's own parameters took it: not when a gradient scaler left it out. Of several
    optimisers, the one with the first sparse weights that are updated counts.

    Args:
        model: What is trained, itself and not what `torch.compile` or another wrapper made of it; what goes is set to zero at
            once.
        masks: Which weights stay: a plan, or a method by which they change.
        inputs: What the model takes; a method finds by a run on it which weights can become sparse, those of all matrix products
            and convolutions. Not needed for a plan.
        exclude: Parameters or modules that stay dense, as name patterns.
        state: What `Training.state_dict` gave, to go on from there; the model's weights are those of the same moment.

    Yields:
        The training: its step, its plan and its state.

    Raises:
        ModelError: The plan or the state is for another model, or weights that masks are chosen by are not finite.
        PlanError: `masks` is neither; or a method finds no weights, or they do not fit its pattern.

    Example:
        >>> model = nn.Linear(2, 1)
        >>> optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
        >>> with masked(model, WeightPlan({"weight": torch.tensor([[True, False]])})) as training:
        ...     model(torch.ones(1, 2)).sum().backward()
        ...     _ = optimizer.step()
        >>> model.weight[0, 1].item(), training.step
        (0.0, 1)
    """
    method = Constant(masks) if isinstance(masks, WeightPlan) else masks
    if isinstance(method, type) or not isinstance(method, Method):
        raise PlanError(
            f"masks is a plan, such as that of a SparseResult, or a method, such as Gradual(); got {method!r}"
        )
    layers = [] if inputs is None else survey(model, inputs, exclude).layers
    training = Training(model, method, layers, state)
    hooks = training._hooks()
    first = training.step
    try:
        yield training
        if training._held and training.step == first:
            logger.warning("no optimiser over the sparse weights of %s took a step", type(model).__name__)
    finally:
        for hook in hooks:
            hook.remove()
        training.plan.apply(model)


class Training:
    """A model's masks while it is trained; `masked` makes it.

    Args:
        model: What is trained.
        method: Which weights stay, and when that changes.
        layers: The products whose weights can become sparse.
        state: Where to go on from; None = at the beginning.

    Attributes:
        step: How many steps were taken.
    """

    def __init__(
        self, model: nn.Module, method: Method, layers: Sequence[Layer], state: Mapping[str, Tensor] | None
    ) -> None:
        self.step = 0
        self._model, self._method, self._layers = model, method, layers
        self._gradients: dict[str, Tensor] = {}
        self._clock: str | None = None
        if state is not None:
            self.step, stays = _read(state, type(model).__name__, {layer.product.tensor for layer in layers})
            self._put_on(stays)
            return
        parameters = dict(model.named_parameters())
        tensors = {layer.product.tensor: parameters[layer.product.tensor] for layer in layers}
        self._put_on({name: torch.ones_like(tensor, dtype=torch.bool) for name, tensor in tensors.items()})
        if method.changes(0):
            self._put_on(self._chosen())

    @property
    def plan(self) -> WeightPlan:
        """Which weights stay now."""
        return WeightPlan({name: ~gone for name, _, gone in self._held.values()})

    def state_dict(self) -> dict[str, Tensor]:
        """The step and the masks, as tensors: what `masked(state=...)` takes to go on bit for bit."""
        masks = {f"{_MASKS}{name}": mask for name, mask in self.plan.stays.items()}
        return {_STEP: torch.tensor(self.step), **masks}

    def _hooks(self) -> list[Any]:
        """Hold the masks from now on, until all of what is returned is removed."""

        def masked_gradient(key: int, gradient: Tensor) -> Tensor | None:
            name, _, gone = self._held[key]
            self._gradients.pop(name, None)  # of a step before
            return None if self._looks_next else gradient.masked_fill(gone, 0)

        return [
            *(
                parameter.register_hook(lambda gradient, key=key: masked_gradient(key, gradient))  # type: ignore[no-untyped-call]
                for key, (_, parameter, _) in self._held.items()
                if parameter.requires_grad
            ),
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    @property
    def _looks_next(self) -> bool:
        """Whether the method looks at the dense gradients of the next step."""
        return self._method.needs_gradients and self._method.changes(self.step + 1)

    def _before_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        for name, parameter, gone in self._held_by(optimizer):
            if parameter.grad is not None:
                if self._looks_next:
                    self._gradients[name] = parameter.grad.clone()
                parameter.grad.masked_fill_(gone, 0)

    def _after_step(self, optimizer: torch.optim.Optimizer, _args: Any, _kwargs: Any) -> None:
        held = self._held_by(optimizer)
        if held and not _left_out(optimizer):
            self._clock = held[0][0] if self._clock is None else self._clock
            if any(name == self._clock for name, _, _ in held):
                self._count()
        for _, parameter, gone in self._held_by(optimizer):
            values = optimizer.state.get(parameter, {}).values()
            for tensor in (parameter.detach(), original(parameter).detach(), *values):
                if isinstance(tensor, Tensor) and tensor.shape == gone.shape:
                    tensor.masked_fill_(gone, 0)

    def _count(self) -> None:
        self.step += 1
        if self._method.changes(self.step):
            self._put_on(self._chosen())
            logger.info("step %d: %.1f %% of the weights are zero", self.step, 100 * self.plan.sparsity)

    def _chosen(self) -> Mapping[str, Tensor]:
        values = {name: parameter.detach() for name, parameter, _ in self._held.values()}
        # Weights whose optimiser has not stepped yet still have the dense gradient.
        left = {
            name: p.grad for name, p, _ in self._held.values() if p.grad is not None and self._method.needs_gradients
        }
        return self._method.choose(
            self.step, Weights(self._layers, values, self.plan.stays, {**left, **self._gradients})
        )

    def _put_on(self, stays: Mapping[str, Tensor]) -> None:
        """Hold these masks from now on, and set to zero what goes and its gradients."""
        plan = WeightPlan(stays)
        pairs = zip(plan.stays, plan.of(self._model), strict=True)
        self._held = {id(parameter): (name, parameter, ~mask) for name, (parameter, mask) in pairs}
        plan.apply(self._model)
        for _, parameter, gone in self._held.values():
            if parameter.grad is not None:
                parameter.grad.masked_fill_(gone, 0)

    def _held_by(self, optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter, Tensor]]:
        """The sparse parameters that an optimiser updates: names, what it updates, and what is gone of each."""
        found = []
        for parameter in (parameter for group in optimizer.param_groups for parameter in group["params"]):
            if (key := id(original(parameter))) in self._held:
                name, _, gone = self._held[key]
                found.append((name, parameter, gone))
        return found


def _left_out(optimizer: torch.optim.Optimizer) -> bool:
    """Whether a gradient scaler told the optimiser to leave this step out, which fused ones find out by themselves."""
    found = getattr(optimizer, "found_inf", None)
    return isinstance(found, Tensor) and bool(found.any())


def _read(state: Mapping[str, Tensor], model: str, names: set[str]) -> tuple[int, dict[str, Tensor]]:
    """The step and the masks of a state, which has one for each of these names at least."""
    masks = {name.removeprefix(_MASKS): mask for name, mask in state.items() if name.startswith(_MASKS)}
    if _STEP not in state or len(masks) + 1 != len(state) or any(mask.dtype != torch.bool for mask in masks.values()):
        raise ModelError(
            f"state= is what Training.state_dict() gave, a step and masks; got {', '.join(list(state)[:5])}, for a {model}"
        )
    if missing := sorted(names - masks.keys()):
        raise ModelError(f"state= has no mask for {missing[0]!r} of this {model}; give the same inputs= and exclude=")
    return int(state[_STEP]), masks
