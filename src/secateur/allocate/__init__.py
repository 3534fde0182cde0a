"""How much goes from where, so that a budget holds. Arrays in, a plan out; knows axes, no framework and no weights."""

from secateur.allocate import normalise
from secateur.allocate.allocators import Allocator, Global, Insignificant, Uniform
from secateur.allocate.budget import Budget

__all__ = ["Allocator", "Budget", "Global", "Insignificant", "Uniform", "normalise"]
