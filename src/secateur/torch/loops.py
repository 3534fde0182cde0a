"""Tries out whether code goes through lists of modules that lost some as it goes through the whole lists."""

from collections.abc import Iterator, Sequence

import torch
from torch import nn

from secateur.axes import Attribute, Axis, Network, Reason, Run, SizeUse, build_network
from secateur.axes.sizes import attributes_of
from secateur.errors import SecateurError
from secateur.torch.apply import compact
from secateur.torch.capture import Inputs
from secateur.torch.operators import Recording
from secateur.torch.replicate import replicate
from secateur.torch.rerun import compare_operators, expected_steps
from secateur.torch.settings import integers_of


class Loops:
    """The lists of a network, and what it takes to run without some of their entries.

    Args:
        run: What was seen of the model; what is found out of lists is added to it.
        recording: The operators of that run.
        model: The model.
        inputs: Its example inputs.
    """

    def __init__(self, run: Run, recording: Recording, model: nn.Module, inputs: Inputs) -> None:
        self.run, self.recording, self.inputs = run, recording, inputs
        light = not recording.has_values
        self.model = replicate(model, lambda tensor: torch.empty_like(tensor, device="meta")) if light else model

    def tried(self, network: Network) -> Network:
        """The network in which all lists that have units can lose them.

        A loop over `range(self.experts)` says in no operator that this number is how many there are. So where the code fails, a
        number of the module that holds the list, as large as the list is long, is taken for its length; or if none does, all are.
        Lists of the same name in modules of the same class are gone through by the same code, and tried together.
        """
        for alike in self._alike(network):
            network = self._settled(network, alike)
        return network

    def _settled(self, network: Network, lists: Sequence[str]) -> Network:
        """Find the lengths of lists, or freeze them, all together if they behave alike, or else one by one."""
        if not (fault := self._fault(network, lists)):
            return network
        uses = list(self.run.uses)
        names = self._names(lists)
        for taken in [*([name] for name in names), names]:
            self.run.uses[:] = [*uses, *self._lengths(lists, taken)]
            found = build_network(self.run)
            if not self._fault(found, lists):
                return found
        self.run.uses[:] = uses
        if len(lists) > 1 and not (self._fault(network, lists[:1]) and self._fault(network, lists[-1:])):
            for one in lists:
                network = self._settled(network, [one])
            return network
        for path in lists:
            self.run.labels.freeze(
                self.run.lists[path].dim, Reason(f"without some entries of {path}, the compact model {fault}")
            )
        return build_network(self.run)

    def _alike(self, network: Network) -> list[list[str]]:
        """The lists that have units, by the class that holds them and their name there."""
        found: dict[tuple[type[nn.Module], str], list[str]] = {}
        for path in [slot.tensor for axis in network.axes for slot in axis.slots if slot.tensor in self.run.lists]:
            owner, _, name = path.rpartition(".")
            found.setdefault((type(self.model.get_submodule(owner)), name), []).append(path)
        return list(found.values())

    def _fault(self, network: Network, lists: Sequence[str]) -> str:
        """What goes wrong without the first units of the axes of these lists, or without the last."""
        axes = [axis for axis in network.axes if any(slot.tensor in lists for slot in axis.slots)]
        for first in (True, False):
            kept = {axis.name: _kept(axis, first) for axis in axes}
            try:
                plan = network.plan(kept)
                small = compact(self.model, plan)
            except SecateurError as error:
                return f"cannot be made: {error}"
            steps = expected_steps(network, self.recording, plan)
            if fault := compare_operators(self.recording, steps, small, self.inputs)[1]:
                return fault
        return ""

    def _names(self, lists: Sequence[str]) -> list[tuple[str, int | None]]:
        """The numbers that may be the lengths of all these lists: nothing else is known of them."""
        known = {attribute for use in self.run.uses for attribute in attributes_of(use.expression)}
        found: list[tuple[str, int | None]] = []
        for number, path in enumerate(lists):
            owner, size = path.rpartition(".")[0], len(self.run.lists[path].entries)
            integers = integers_of(self.model.get_submodule(owner))
            mine = [
                key for key, value in integers.items() if value == size and Attribute(owner, *key, value) not in known
            ]
            found = [key for key in found if key in mine] if number else mine
        return found

    def _lengths(self, lists: Sequence[str], names: Sequence[tuple[str, int | None]]) -> Iterator[SizeUse]:
        for path in lists:
            owner, one = path.rpartition(".")[0], self.run.lists[path]
            for name, index in names:
                yield SizeUse(Attribute(owner, name, index, len(one.entries)), one.dim, f"the length of {path}")


def _kept(axis: Axis, first: bool) -> range:
    """All units but the first ones that can go, or but the last."""
    count = axis.near(axis.size - axis.step)
    return range(axis.size - count, axis.size) if first else range(count)
