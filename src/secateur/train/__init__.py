"""What happens to a model after pruning: recovery, and training in which zeros stay zeros."""

from secateur.train.masked import masked

__all__ = ["masked"]
