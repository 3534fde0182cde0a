"""What kind of units an axis has: it follows from the parts that the axis plays in a network's operators.

A frontend marks labels with roles as it interprets operators (`Labels.mark`); a label that was split hands most of its roles on
to its factors. The first row of `KINDS` whose roles an axis has all of says its kind.
"""

from enum import Flag, auto
from typing import Literal

Kind = Literal[
    "cells", "kv_groups", "heads", "groups", "experts", "qkv_width", "qk_width", "v_width",
    "residual", "embedding", "channels", "neurons",
]  # fmt: skip
"""What the units of an axis are."""


class Role(Flag):
    """A part that a dim plays in an operator.

    A product is a matrix product or a convolution. Tensors that come from products, lookups or the model's input are computed;
    parameters, and what element-wise operators make of them alone, are weights.
    """

    WRITTEN = auto()
    """A product with a weight has it as its output."""
    READ = auto()
    """A product with a weight sums over it."""
    CONVOLVED = auto()
    """It is the input or the output of a convolution."""
    GROUPED = auto()
    """A grouped convolution, a batch of products with a stack of weights, or a group norm goes through it one by one."""
    CHOSEN = auto()
    """A softmax runs along it, or the largest of its values are chosen."""
    BATCH = auto()
    """Two computed tensors are multiplied for each of its positions."""
    REPEATED = auto()
    """It was made by repeating a tensor."""
    SHARED = auto()
    """A batch of computed products is made of it and of something repeated."""
    INNER = auto()
    """A product of two computed tensors sums over it, in a batch or before a softmax."""
    OUTER = auto()
    """A product of two computed tensors has it as its output."""
    JOINED = auto()
    """An addition puts something together with what was computed from it."""
    LOOKED_UP = auto()
    """It is the width of a table that is looked up by index."""
    RECURRENT = auto()
    """A recurrent layer has it as its state."""


WHOLE = Role.REPEATED | Role.JOINED
"""Roles that the factors of a split dim do not inherit."""

KINDS: tuple[tuple[Kind, Role], ...] = (
    ("cells", Role.RECURRENT),
    ("kv_groups", Role.BATCH | Role.SHARED),
    ("heads", Role.BATCH),
    ("groups", Role.GROUPED | Role.CONVOLVED),
    ("experts", Role.GROUPED | Role.CHOSEN),
    ("groups", Role.GROUPED),
    ("residual", Role.JOINED),
    ("qkv_width", Role.INNER | Role.OUTER | Role.READ),
    ("qk_width", Role.INNER),
    ("v_width", Role.OUTER | Role.READ),
    ("channels", Role.CONVOLVED | Role.WRITTEN),
    ("embedding", Role.LOOKED_UP),
    ("channels", Role.CONVOLVED),
    ("neurons", Role(0)),
)
"""Kinds and the roles that make them, the most telling first."""


def kind_of(roles: Role) -> Kind:
    """The kind of an axis that plays these parts.

    Example:
        >>> kind_of(Role.WRITTEN | Role.READ), kind_of(Role.WRITTEN | Role.CONVOLVED)
        ('neurons', 'channels')
    """
    return next(kind for kind, needed in KINDS if needed in roles)
