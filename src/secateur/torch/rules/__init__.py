"""What each family of ATen operators does to labels; one file a family.

A rule is a function `(recorder, out, **arguments)` with the operator's own argument names that returns what the dims of its
result stand for. An operator without a rule freezes what it touches.
"""

from secateur.torch.rules import contraction, creation, image, lookup, movement, normalisation, parts, reduction
from secateur.torch.rules.dispatch import apply

__all__ = ["apply", "contraction", "creation", "image", "lookup", "movement", "normalisation", "parts", "reduction"]
