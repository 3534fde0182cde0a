"""How many weights go of each layer: divided among layers, or found by comparing the weights of all of them."""

from secateur.sparse.allocation.compare import Below, Cutoff, Insignificant, Lowest
from secateur.sparse.allocation.divide import Allocation, Alone, OutlierWeighted, Share, erdos_renyi, even
from secateur.sparse.allocation.measure import Measured, Sensitivity

__all__ = [
    "Allocation",
    "Alone",
    "Below",
    "Cutoff",
    "Insignificant",
    "Lowest",
    "Measured",
    "OutlierWeighted",
    "Sensitivity",
    "Share",
    "erdos_renyi",
    "even",
]
