"""The demonstration: real images, and a small residual network that is trained on them in a minute."""

from secateur.demo.data import mnist
from secateur.demo.model import ResidualNet, example
from secateur.demo.train import train

__all__ = ["ResidualNet", "example", "mnist", "train"]
