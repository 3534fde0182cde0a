"""Which of many tests are significant together, so that few of them are so by chance?"""

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfc


def largest_discovery(p_values: NDArray[np.float64], rate: float) -> float:
    """The largest of the p-values that are discoveries at a false discovery rate; below zero where none is.

    Args:
        p_values: `[tests]`, in any order.
        rate: In (0, 1).

    Example:
        >>> p_values = np.array([0.04, 0.01, 0.02, 0.9])
        >>> largest_discovery(p_values, 0.05), largest_discovery(p_values, 0.001)
        (0.02, -1.0)

    Source:
        Y. Benjamini and Y. Hochberg, "Controlling the False Discovery Rate", Journal of the Royal Statistical Society B 1995.
    """
    ordered = np.sort(p_values)
    found = ordered[ordered <= rate * np.arange(1, len(ordered) + 1) / max(len(ordered), 1)]
    return float(found[-1]) if len(found) else -1.0


def two_sided(z: NDArray[np.float64]) -> NDArray[np.float64]:
    """How likely something that is zero looks at least so many standard errors away from it.

    Args:
        z: The sizes of z-values; below zero counts as zero.

    Example:
        >>> two_sided(np.array([0.0, 1.96])).round(3).tolist()
        [1.0, 0.05]
    """
    p_values: NDArray[np.float64] = erfc(np.maximum(z, 0) / np.sqrt(2))
    return p_values
