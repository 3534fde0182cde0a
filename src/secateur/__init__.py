"""Secateur prunes neural networks so that they are really smaller and really faster, with proof."""

from secateur.torch import Proof, TracedNetwork, compact, mask, trace, unmask, verify

__version__ = "0.1.0"

__all__ = ["Proof", "TracedNetwork", "compact", "mask", "trace", "unmask", "verify"]
