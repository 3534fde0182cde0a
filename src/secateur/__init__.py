"""Secateur prunes neural networks so that they are really smaller and really faster, with proof."""

from secateur import allocate, low_rank, targets, train
from secateur.allocate import Budget
from secateur.artefact import load, save
from secateur.low_rank import LowRankResult, factorise
from secateur.prune import PruneResult, prune
from secateur.sparse import SparseResult, WeightPlan, patterns, solvers, sparsify
from secateur.torch import Proof, TracedNetwork, as_graph, compact, mask, scores, trace, unmask, verify
from secateur.torch import compensate as compensation
from secateur.train import recover

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "LowRankResult",
    "Proof",
    "PruneResult",
    "SparseResult",
    "TracedNetwork",
    "WeightPlan",
    "allocate",
    "as_graph",
    "compact",
    "compensation",
    "factorise",
    "load",
    "low_rank",
    "mask",
    "patterns",
    "prune",
    "recover",
    "save",
    "scores",
    "solvers",
    "sparsify",
    "targets",
    "trace",
    "train",
    "unmask",
    "verify",
]
