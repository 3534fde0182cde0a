"""Secateur prunes neural networks so that they are really smaller and really faster, with proof."""

from secateur import allocate
from secateur.allocate import Budget
from secateur.artefact import load, save
from secateur.torch import Proof, TracedNetwork, compact, mask, trace, unmask, verify
from secateur.train import recover

__version__ = "0.1.0"

__all__ = [
    "Budget",
    "Proof",
    "TracedNetwork",
    "allocate",
    "compact",
    "load",
    "mask",
    "recover",
    "save",
    "trace",
    "unmask",
    "verify",
]
