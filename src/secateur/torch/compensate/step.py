"""What a compensation is, and how several are applied to a compact model: `compensate`."""

from collections.abc import Iterable
from typing import Protocol

from torch import nn

from secateur.axes import Plan
from secateur.errors import ModelError
from secateur.torch.batches import Batches, check_repeatable
from secateur.torch.capture import TracedNetwork
from secateur.torch.replicate import replicate
from secateur.torch.state import evaluating, state_of


class Compensation(Protocol):
    """Changes what stays, to make up for what goes."""

    @property
    def name(self) -> str:
        """What a report calls the step."""
        ...

    def __call__(self, network: TracedNetwork, small: nn.Module, plan: Plan, batches: Batches) -> None:
        """Change the compact model in place.

        Args:
            network: The dense network; not changed.
            small: The compact model, in eval mode.
            plan: What stays of the network.
            batches: Data; see `secateur.torch.batches`.
        """
        ...


def compensate(
    network: TracedNetwork, small: nn.Module, plan: Plan, batches: Batches, steps: Iterable[Compensation]
) -> nn.Module:
    """Change the parameters and running statistics of a compact model, to make up for what went.

    Args:
        network: The dense network that the plan was made for; its model is not changed.
        small: What `compact(network.model, plan)` gave; not changed.
        plan: What stays.
        batches: Data; see `secateur.torch.batches`. Each step goes through them anew, so that an iterator serves one step.
        steps: What to do, in this order: `Refit()` or `FoldMean()`, then `ReestimateBatchNorm()`.

    Returns:
        A new compact model in the mode of `small`, on its device and with its dtypes.

    Raises:
        ModelError: The compact model is not what the plan makes of the network.
        DataError: There are no data, they do not fit the model, or there are more steps than they can be gone through.

    Example:
        >>> import torch
        >>> from secateur.torch import compact, trace
        >>> from secateur.torch.compensate import Refit
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Linear(4, 1))
        >>> network, data = trace(model, torch.zeros(1, 2)), [torch.randn(64, 2)]
        >>> plan = network.plan({"0": [0, 1]})  # two of four linear units carry all there is of two inputs
        >>> mended = compensate(network, compact(model, plan), plan, data, [Refit(ridge=0)])
        >>> torch.allclose(mended(data[0]), model(data[0]), atol=1e-4)
        True
    """
    _check(network, small, plan)
    steps = list(steps)
    check_repeatable(batches, len(steps), "steps")
    mended = replicate(small, lambda tensor: tensor.detach().clone())
    with evaluating(mended):
        for step in steps:
            step(network, mended, plan, batches)
    return mended


def _check(network: TracedNetwork, small: nn.Module, plan: Plan) -> None:
    """The compact model must have the shapes of the plan, and the dense one's elsewhere."""
    cuts, state = {cut.name: cut for cut in plan.tensors}, state_of(small)
    for name, spec in network.tensors.items():
        if name in plan.removal.tensors:
            continue
        expected = cuts[name].shape_after if name in cuts else spec.shape
        if name not in state or tuple(state[name].shape) != expected:
            got = list(state[name].shape) if name in state else "missing"
            raise ModelError(
                f"{name!r} of the compact model is {got}, but the plan makes it {list(expected)}; compensate what "
                "compact(network.model, plan) gave"
            )
