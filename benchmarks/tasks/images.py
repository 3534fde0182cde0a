"""The images that classifiers are trained, pruned and measured on: Fashion-MNIST, and a JPEG copy of CIFAR-10."""

import gzip
import io
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

BATCH = 50
CIFAR_MEAN, CIFAR_DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""Those of ImageNet, with which the weights were trained."""

Batches = list[tuple[Tensor, Tensor]]


class MissingDataError(Exception):
    """A file that has to be there is not; the message says where to get it."""


@dataclass(frozen=True, slots=True)
class Images:
    """Images and their labels.

    Attributes:
        pixels: Standardised, float32 `[images, channels, height, width]`.
        labels: The classes, int64 `[images]`.
    """

    pixels: Tensor
    labels: Tensor

    def first(self, count: int) -> "Images":
        """The first images."""
        return Images(self.pixels[:count], self.labels[:count])

    def sample(self, count: int, seed: int) -> "Images":
        """Some images, drawn without putting back."""
        chosen = torch.randperm(len(self.labels), generator=torch.Generator().manual_seed(seed))[:count]
        return Images(self.pixels[chosen], self.labels[chosen])

    def batches(self, size: int = 128) -> Batches:
        """All images in their order."""
        return list(zip(self.pixels.split(size), self.labels.split(size), strict=True))

    def shuffled(self) -> DataLoader[tuple[Tensor, ...]]:
        """Batches in a new order each time, drawn from torch's global random numbers."""
        return DataLoader(TensorDataset(self.pixels, self.labels), BATCH, shuffle=True)


def fashion(folder: Path) -> tuple[Images, Images]:
    """Fashion-MNIST, to train on and to test on.

    Source:
        H. Xiao et al., "Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine Learning Algorithms", arXiv:1708.07747,
        as the Debian package `dataset-fashion-mnist` has it.
    """
    return _read_split(folder, "train"), _read_split(folder, "t10k")


def cifar(folder: Path, training: int, test: int) -> tuple[Images, Images]:
    """The first images of each class of a copy of CIFAR-10 that went through JPEG.

    Args:
        folder: Where `cifar10-jpeg.tar.xz` is, with `train/CLASS/NNNN.jpg` and `test/CLASS/NNNN.jpg` in it.
        training: How many images to train on, a multiple of 10.
        test: How many to test on, a multiple of 10.

    Source:
        A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. JPEG loses a part: compare accuracies with
        those of a dense network on the same copy alone.
    """
    wanted = {"train": training // 10, "test": test // 10}
    found: dict[str, list[tuple[str, bytes]]] = {split: [] for split in wanted}
    with tarfile.open(_existing(folder / "cifar10-jpeg.tar.xz", "pass its folder with --data")) as archive:
        for member in archive:
            split, _, rest = member.name.partition("/")
            if rest.endswith(".jpg") and int(Path(rest).stem) < wanted[split]:
                file = archive.extractfile(member)
                assert file is not None
                found[split].append((rest, file.read()))
    return _decoded(found["train"]), _decoded(found["test"])


def _decoded(files: list[tuple[str, bytes]]) -> Images:
    from PIL import Image

    classes = sorted({name.partition("/")[0] for name, _ in files})
    arrays = [np.asarray(Image.open(io.BytesIO(content)).convert("RGB")) for _, content in files]
    pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).float() / 255
    mean, deviation = torch.tensor(CIFAR_MEAN).view(3, 1, 1), torch.tensor(CIFAR_DEVIATION).view(3, 1, 1)
    labels = torch.tensor([classes.index(name.partition("/")[0]) for name, _ in files])
    return Images((pixels - mean) / deviation, labels)


def _read_split(folder: Path, split: str) -> Images:
    pixels = torch.from_numpy(_read_idx(folder / f"{split}-images-idx3-ubyte.gz")).float()[:, None] / 255
    labels = torch.from_numpy(_read_idx(folder / f"{split}-labels-idx1-ubyte.gz")).long()
    return Images((pixels - 0.286) / 0.353, labels)


def _read_idx(path: Path) -> NDArray[np.uint8]:
    """An array in the format of MNIST: its rank in byte 3, its sizes as big-endian 32-bit numbers, its bytes."""
    hint = (
        "apt-get install dataset-fashion-mnist puts it there; without root: apt-get download dataset-fashion-mnist, "
        "dpkg -x dataset-fashion-mnist_*.deb FOLDER, and --fashion FOLDER/usr/share/datasets/fashion-mnist"
    )
    content = gzip.decompress(_existing(path, hint).read_bytes())
    rank = content[3]
    shape = np.frombuffer(content, dtype=">u4", count=rank, offset=4)
    return np.frombuffer(content, dtype=np.uint8, offset=4 + 4 * rank).reshape(shape).copy()


def _existing(path: Path, hint: str) -> Path:
    if not path.is_file():
        raise MissingDataError(f"there is no {path}: {hint}")
    return path
