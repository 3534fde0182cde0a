"""Low rank: a linear layer becomes two smaller ones, the best pair of their size for what the layer reads."""

from secateur.low_rank.beside import Sparse
from secateur.low_rank.factorise import FactorReport, LowRankResult, factorise
from secateur.low_rank.linear import LowRankLinear

__all__ = ["FactorReport", "LowRankLinear", "LowRankResult", "Sparse", "factorise"]
