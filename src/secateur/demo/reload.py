"""Loads the demonstration's pruned network in a process of its own: `python -m secateur.demo.reload FOLDER`.

A new process knows nothing of the pruning: it has the class and the folder, as whoever uses the network will.
"""

import hashlib
import sys

import torch
from torch import nn

from secateur.artefact import load
from secateur.demo.model import ResidualNet


def fingerprint(model: nn.Module) -> str:
    """The SHA-256 of every bit of what a model in eval mode answers to a hundred images of noise, always the same ones."""
    images = torch.randn(100, 1, 28, 28, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return hashlib.sha256(model(images).numpy().tobytes()).hexdigest()


def main(folder: str, threads: str) -> None:
    """Load the network from a folder, and write its fingerprint to stdout.

    Args:
        folder: Where the artefact is.
        threads: How many threads to compute with: kernels may add up in another order with another number of them.
    """
    torch.set_num_threads(int(threads))
    sys.stdout.write(fingerprint(load(ResidualNet().eval(), folder)))


if __name__ == "__main__":
    main(*sys.argv[1:])
