"""What a unit or a weight is worth: one number each, higher = keep."""

from secateur.torch.scores.batchnorm import BatchNormScale
from secateur.torch.scores.energy import Energy
from secateur.torch.scores.flow import GraSP, SynFlow
from secateur.torch.scores.gradient import Fisher, Taylor
from secateur.torch.scores.mixture import RouterWeighted
from secateur.torch.scores.movement import Movement
from secateur.torch.scores.normalised import Normalised
from secateur.torch.scores.score import Magnitude, Random, Score
from secateur.torch.scores.significance import Gradient, SignalToNoise, Wald
from secateur.torch.scores.weights import LAMP, RIA, ModelScore, Wanda, WeightScore

__all__ = [
    "LAMP",
    "RIA",
    "BatchNormScale",
    "Energy",
    "Fisher",
    "GraSP",
    "Gradient",
    "Magnitude",
    "ModelScore",
    "Movement",
    "Normalised",
    "Random",
    "RouterWeighted",
    "Score",
    "SignalToNoise",
    "SynFlow",
    "Taylor",
    "Wald",
    "Wanda",
    "WeightScore",
]
