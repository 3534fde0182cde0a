"""How many weights go of each layer: divided among layers, or found by comparing the weights of all of them."""

from secateur.sparse.allocation.compare import Below, Cutoff, Insignificant, Lowest
from secateur.sparse.allocation.divide import Allocation, OutlierWeighted, Share, erdos_renyi, even

__all__ = [
    "Allocation",
    "Below",
    "Cutoff",
    "Insignificant",
    "Lowest",
    "OutlierWeighted",
    "Share",
    "erdos_renyi",
    "even",
]
