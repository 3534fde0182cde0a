"""What a unit is worth: one number a unit, higher = keep."""

from secateur.torch.scores.batchnorm import BatchNormScale
from secateur.torch.scores.energy import Energy
from secateur.torch.scores.gradient import Fisher, Taylor
from secateur.torch.scores.score import Magnitude, Random, Score

__all__ = ["BatchNormScale", "Energy", "Fisher", "Magnitude", "Random", "Score", "Taylor"]
