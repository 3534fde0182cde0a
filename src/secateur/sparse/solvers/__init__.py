"""How the weights that stay are chosen and what they become, given what a layer reads: pure functions of small matrices."""

from secateur.sparse.problem import Problem, Solved, Solver, keep, output_error
from secateur.sparse.solvers.alps import ALPS
from secateur.sparse.solvers.obs import ExactOBS
from secateur.sparse.solvers.refit import Refit
from secateur.sparse.solvers.sparsegpt import SparseGPT
from secateur.sparse.solvers.swaps import Swaps

__all__ = [
    "ALPS",
    "ExactOBS",
    "Problem",
    "Refit",
    "Solved",
    "Solver",
    "SparseGPT",
    "Swaps",
    "keep",
    "output_error",
]
