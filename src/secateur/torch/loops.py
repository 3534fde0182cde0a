"""Tries out whether code goes through a list of modules that lost its first entry as it went through the whole list."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from secateur.axes import Attribute, Axis, Network, Reason, Run, SizeUse, build_network
from secateur.axes.sizes import attributes_of
from secateur.errors import SecateurError
from secateur.torch.apply import compact
from secateur.torch.capture import Inputs
from secateur.torch.operators import Recording
from secateur.torch.rerun import compare_operators, expected_steps
from secateur.torch.settings import integers_of


@dataclass(slots=True)
class Loops:
    """The lists of a network, and what it takes to run without some of their entries.

    Attributes:
        run: What was seen of the model; what is found out of lists is added to it.
        recording: The operators of that run.
        model: The model.
        inputs: Its example inputs.
    """

    run: Run
    recording: Recording
    model: nn.Module
    inputs: Inputs

    def tried(self, network: Network) -> Network:
        """The network in which all lists that have units can lose them.

        A loop over `range(self.experts)` says in no operator that this number is how many there are. So where the code fails, the
        numbers of the module that holds the list, as large as the list is long, are taken for its length.
        """
        axes = self._axes(network)
        if not self._fault(network, [axis for axis, _ in axes]):
            return network
        for _, lists in axes:
            network = self._with_lengths(network, lists)
        return network

    def _with_lengths(self, network: Network, lists: Sequence[str]) -> Network:
        """Find the lengths of lists that go together, or freeze them."""
        axis = next((axis for axis, others in self._axes(network) if others == lists), None)
        if axis is None or not (fault := self._fault(network, [axis])):
            return network
        uses, lengths = list(self.run.uses), self._lengths(lists)
        for taken in [lengths, *([one] for one in lengths)]:
            self.run.uses[:] = [*uses, *taken]
            found = build_network(self.run)
            if not self._fault(found, [axis for axis, others in self._axes(found) if others == lists]):
                return found
        self.run.uses[:] = uses
        for path in lists:
            self.run.labels.freeze(
                self.run.lists[path].dim, Reason(f"without the first entry of {path}, the compact model {fault}")
            )
        return build_network(self.run)

    def _axes(self, network: Network) -> list[tuple[Axis, list[str]]]:
        """The axes of lists, with the paths of these."""
        found = [(axis, [slot.tensor for slot in axis.slots if slot.tensor in self.run.lists]) for axis in network.axes]
        return [(axis, lists) for axis, lists in found if lists]

    def _fault(self, network: Network, axes: Sequence[Axis]) -> str:
        """What goes wrong without the first units of these axes: all that come after them move up."""
        kept = {axis.name: range(axis.size - axis.near(axis.size - axis.step), axis.size) for axis in axes}
        try:
            plan = network.plan(kept)
            small = compact(self.model, plan)
        except SecateurError as error:
            return str(error)
        return compare_operators(self.recording, expected_steps(network, self.recording, plan), small, self.inputs)[1]

    def _lengths(self, lists: Sequence[str]) -> list[SizeUse]:
        """The numbers that may be the lengths of lists: nothing else is known of them."""
        known = {attribute for use in self.run.uses for attribute in attributes_of(use.expression)}
        found = []
        for path in lists:
            owner, one = path.rpartition(".")[0], self.run.lists[path]
            for (name, index), value in integers_of(self.model.get_submodule(owner)).items():
                attribute = Attribute(owner, name, index, value)
                if value == len(one.entries) and attribute not in known:
                    found.append(SizeUse(attribute, one.dim, f"the length of {path}"))
        return found
