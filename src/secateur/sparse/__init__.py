"""Weight sparsity: single weights, N of M, or blocks go; shapes stay."""

from secateur.sparse import allocation, patterns, rounding, solvers
from secateur.sparse.plan import WeightPlan
from secateur.sparse.result import LayerReport, SparseResult
from secateur.sparse.sparsify import sparsify

__all__ = ["LayerReport", "SparseResult", "WeightPlan", "allocation", "patterns", "rounding", "solvers", "sparsify"]
