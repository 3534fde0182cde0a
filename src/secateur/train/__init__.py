"""What happens to a model after pruning: recovery, and training with masks."""

from secateur.train.callbacks import lightning_callback, trainer_callback
from secateur.train.gradual import ACDC, Gradual
from secateur.train.iterative import Iterative
from secateur.train.masked import Training, masked
from secateur.train.method import Constant, Method, Weights
from secateur.train.regrow import SET, RigL

__all__ = [
    "ACDC",
    "SET",
    "Constant",
    "Gradual",
    "Iterative",
    "Method",
    "RigL",
    "Training",
    "Weights",
    "lightning_callback",
    "masked",
    "trainer_callback",
]
