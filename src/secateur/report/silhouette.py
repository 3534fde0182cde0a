"""The picture of kept and removed units: the outline of what stays, as an SVG path over a ground that stands for what goes.

Only the kept part is drawn, from the bottom up; the page shows the ground behind it hatched. So a picture of hundreds of
units is one short path, and it is read by shape and hatching, not by colour alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

EXACT_UNITS = 256
"""Up to so many units each has a cell of its own: more than a screen's strip has room for cannot be told apart."""

CELLS = 128
"""How many cells there are for more units than that."""

SEPARATED_CELLS = 64
"""Up to so many cells are drawn with a gap between them."""

HEIGHT = 100


@dataclass(frozen=True, slots=True)
class Silhouette:
    """A picture, `width` by 100.

    Attributes:
        width: Its width: the number of units or bars.
        kept: The path around what stays.
        gaps: The path along the gaps between cells; empty where cells touch.
        cells: How many cells it has.
    """

    width: int
    kept: str
    gaps: str
    cells: int

    @property
    def height_is_share(self) -> bool:
        """Whether a cell stands for several units."""
        return self.cells < self.width


def units(size: int, kept: Sequence[int]) -> Silhouette:
    """Draw which units of one axis stay, in their order.

    With many units, a cell stands for several, and the height of what is drawn there is the share of them that stays.

    Args:
        size: The number of units.
        kept: Those that stay, in `0..size - 1`.

    Example:
        >>> units(4, (0, 1, 3)).kept
        'M0 100V0H2V100H3V0H4V100z'
    """
    stays = np.zeros(size)
    stays[list(kept)] = 1
    edges = np.arange(size + 1) if size <= EXACT_UNITS else np.arange(CELLS + 1) * size // CELLS
    return _draw(edges.tolist(), [float(stays[a:b].mean()) for a, b in pairwise(edges)])


def profile(shares: Sequence[float]) -> Silhouette:
    """Draw a row of bars.

    Args:
        shares: The height of each bar, 0 to 1.
    """
    return _draw(list(range(len(shares) + 1)), shares)


def _draw(edges: Sequence[int], shares: Sequence[float]) -> Silhouette:
    path, height = [f"M0 {HEIGHT}"], 0.0
    for start, share in zip(edges, shares, strict=False):
        if share != height:
            path.append(f"{f'H{start}' if start else ''}V{HEIGHT * (1 - share):.4g}")
            height = share
    path.append(f"H{edges[-1]}V{HEIGHT}z")
    separated = len(shares) <= SEPARATED_CELLS
    gaps = "".join(f"M{edge} 0V{HEIGHT}" for edge in edges[1:-1]) if separated else ""
    return Silhouette(edges[-1], "".join(path), gaps, len(shares))
