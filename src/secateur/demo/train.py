"""Trains the dense network of the demonstration."""

from torch.optim import AdamW

from secateur.demo.data import Batches
from secateur.demo.model import ResidualNet
from secateur.train.protocol import Progress
from secateur.train.recover import FineTune

EPOCHS = 3


def train(
    model: ResidualNet, batches: Batches, *, epochs: int = EPOCHS, seed: int = 0, progress: Progress | None = None
) -> None:
    """Train a new network until it reads about 97 of 100 digits.

    Args:
        model: Trained in place, and left in eval mode.
        batches: Images and labels.
        epochs: How often to go through them, at least 1.
        seed: For the order of the images.
        progress: Called after each update.
    """
    FineTune(epochs=epochs, optimizer=AdamW, learning_rate=1e-2, seed=seed)(model, batches, progress=progress)
    model.eval()
