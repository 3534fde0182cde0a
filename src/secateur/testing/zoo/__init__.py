"""The zoo: tiny models, each with the axes it must be found to have, stated by hand.

What the proofs (permutation, zeroing, mutation) cannot see is an axis that was needlessly frozen or tied, so every entry
says what is right. Every proof runs over every entry.
"""

from secateur.testing.zoo import (
    attention,
    convolutions,
    grouped,
    lists,
    mixtures,
    mlp,
    normalisation,
    recurrent,
    rotary,
    settings,
    shared_widths,
    special,
    transformers,
    upsampling,
    windows,
)
from secateur.testing.zoo.entry import ExpectedAxis, Inputs, ZooEntry, call, in_float64

__all__ = ["ZOO", "ExpectedAxis", "Inputs", "ZooEntry", "call", "in_float64"]

ZOO: tuple[ZooEntry, ...] = (
    *convolutions.ENTRIES,
    *upsampling.ENTRIES,
    *grouped.ENTRIES,
    *normalisation.ENTRIES,
    *mlp.ENTRIES,
    *attention.ENTRIES,
    *rotary.ENTRIES,
    *settings.ENTRIES,
    *shared_widths.ENTRIES,
    *mixtures.ENTRIES,
    *lists.ENTRIES,
    *transformers.ENTRIES,
    *windows.ENTRIES,
    *recurrent.ENTRIES,
    *special.ENTRIES,
)
"""Every entry, in a fixed order, with unique names."""
