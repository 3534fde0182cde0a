"""What a unit or a weight is worth: one number each, higher = keep."""

from secateur.torch.scores.activations import ActivationMean, ActivationRate, FTest
from secateur.torch.scores.batchnorm import BatchNormScale
from secateur.torch.scores.energy import Energy, Fluctuation
from secateur.torch.scores.flow import GraSP, SynFlow
from secateur.torch.scores.gradient import Fisher, Taylor
from secateur.torch.scores.mixture import RouterWeighted
from secateur.torch.scores.movement import Movement
from secateur.torch.scores.normalised import Normalised
from secateur.torch.scores.redundancy import ChannelIndependence, GeometricMedian
from secateur.torch.scores.score import Magnitude, Random, Score
from secateur.torch.scores.significance import Gradient, SignalToNoise, TTest, Wald
from secateur.torch.scores.weights import LAMP, RIA, ModelScore, Wanda, WeightScore

__all__ = [
    "LAMP",
    "RIA",
    "ActivationMean",
    "ActivationRate",
    "BatchNormScale",
    "ChannelIndependence",
    "Energy",
    "FTest",
    "Fisher",
    "Fluctuation",
    "GeometricMedian",
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
    "TTest",
    "Taylor",
    "Wald",
    "Wanda",
    "WeightScore",
]
