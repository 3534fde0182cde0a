"""Gets back what pruning took: `FineTune`, alone or with a teacher, `Reconstruct`, block by block, `MatchNorms`, or one's own."""

from secateur.train.distill import Distill
from secateur.train.finetune import FineTune
from secateur.train.norms import MatchNorms
from secateur.train.only import Only, vectors
from secateur.train.own import as_recovery
from secateur.train.protocol import Progress, Recovery, Step
from secateur.train.reconstruct import Reconstruct
from secateur.train.schedule import Schedule, constant, cosine
from secateur.train.update import OptimizerFactory

__all__ = [
    "Distill",
    "FineTune",
    "MatchNorms",
    "Only",
    "OptimizerFactory",
    "Progress",
    "Reconstruct",
    "Recovery",
    "Schedule",
    "Step",
    "as_recovery",
    "constant",
    "cosine",
    "vectors",
]
