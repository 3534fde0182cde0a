"""What is pruned: a trained network, with images to mend, train and test it."""

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from tasks.classifiers import loaded_resnet, trained_cnn
from tasks.images import Images, cifar, fashion
from torch import nn

TITLES: Mapping[str, str] = {"fashion": "CNN, Fashion-MNIST", "cifar": "ResNet-20, CIFAR-10 (JPEG copy)"}

DENSE_EPOCHS = 3
"""Of the training of the CNN before it."""


@dataclass(frozen=True, slots=True)
class Task:
    """A network and its images.

    Attributes:
        train: What the calibration sample is drawn from, and what the network is trained on after pruning.
        test: What accuracy is measured on.
        dense: Gives the trained network of a seed.
        exclude: The axes that keep their width, for all tools.
    """

    train: Images
    test: Images
    dense: Callable[[int], nn.Module]
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many images are used: to train the dense network (0 = none), to train after pruning, and to test."""

    dense: int
    train: int
    test: int


SIZES: Mapping[str, Sizes] = {"fashion": Sizes(10_000, 2000, 4000), "cifar": Sizes(0, 2000, 1000)}
QUICK: Mapping[str, Sizes] = {"fashion": Sizes(1000, 500, 500), "cifar": Sizes(0, 200, 200)}


def fashion_task(options: argparse.Namespace, sizes: Sizes) -> Task:
    train, test = fashion(options.fashion)
    dense = train.first(sizes.dense)
    return Task(
        train.first(sizes.train),
        test.first(sizes.test),
        lambda seed: trained_cnn(dense, epochs=DENSE_EPOCHS, seed=seed),
    )


def cifar_task(options: argparse.Namespace, sizes: Sizes) -> Task:
    train, test = cifar(options.data, sizes.train, sizes.test)
    # The residual stream stays whole, because torch-pruning cannot follow shortcuts that are filled up with zeros.
    return Task(train, test, lambda _: loaded_resnet(20, options.data), exclude=("conv1",))


TASKS: Mapping[str, Callable[[argparse.Namespace, Sizes], Task]] = {"fashion": fashion_task, "cifar": cifar_task}
