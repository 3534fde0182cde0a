"""What each family of ATen operators does to labels; one file a family.

A rule is a function `(recorder, out, **arguments)` with the operator's own argument names that returns what the dims of its
result stand for. An operator without a rule freezes what it touches.
"""

from secateur.torch.rules.registry import apply

__all__ = ["apply"]
