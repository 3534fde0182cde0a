"""What may be removed from a network: labels, units, axes, plans. Integers only; knows no framework."""

from secateur.axes.blocks import Integers
from secateur.axes.branches import BRANCHES, Branch, Branches, FrozenBranch, Joint, Removal, StandIn
from secateur.axes.build import Run, build_network
from secateur.axes.cost import Contraction, Cost, TensorSpec
from secateur.axes.entries import Entry, ModuleList
from secateur.axes.kinds import KINDS, Kind, Role
from secateur.axes.labels import ONE, Dim, Dims, Fixed, Labels, Reason
from secateur.axes.network import Axis, Frozen, Network, Scores, Slot
from secateur.axes.plan import AttributeChange, AxisCut, Plan, TensorCut
from secateur.axes.sizes import Attribute, Comparison, Expression, Operation, SizeUse, Width

__all__ = [
    "BRANCHES",
    "KINDS",
    "ONE",
    "Attribute",
    "AttributeChange",
    "Axis",
    "AxisCut",
    "Branch",
    "Branches",
    "Comparison",
    "Contraction",
    "Cost",
    "Dim",
    "Dims",
    "Entry",
    "Expression",
    "Fixed",
    "Frozen",
    "FrozenBranch",
    "Integers",
    "Joint",
    "Kind",
    "Labels",
    "ModuleList",
    "Network",
    "Operation",
    "Plan",
    "Reason",
    "Removal",
    "Role",
    "Run",
    "Scores",
    "SizeUse",
    "Slot",
    "StandIn",
    "TensorCut",
    "TensorSpec",
    "Width",
    "build_network",
]
