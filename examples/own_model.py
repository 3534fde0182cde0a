"""A model of one's own, for `secateur prune examples/own_model.toml`: attention over the rows of 8x8 images of digits.

Nothing here imports Secateur. `build` gives the model, `batches` the data, and `accuracy` says how good a model is.
"""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn


# --8<-- [start:model]
class Attention(nn.Module):
    """Multi-head attention, as it is written everywhere: its head count is an integer in the code."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.query, self.key, self.value = nn.Linear(width, width), nn.Linear(width, width), nn.Linear(width, width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        """Tokens `[batch, tokens, width]` to tokens."""
        query, key, value = (
            project(x).view(len(x), -1, self.heads, self.head_width).transpose(1, 2)
            for project in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        return self.out(mixed.transpose(1, 2).flatten(2))


class DigitReader(nn.Module):
    """Reads a digit row by row: two blocks of attention and of an MLP, around a residual stream."""

    def __init__(self, width: int = 64, heads: int = 4):
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.zeros(8, width))
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {
                    "attention": nn.Sequential(nn.LayerNorm(width), Attention(width, heads)),
                    "mlp": nn.Sequential(
                        nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
                    ),
                }
            )
            for _ in range(2)
        )
        self.classify = nn.Linear(width, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Images `[batch, 8, 8]` to logits `[batch, 10]`."""
        x = self.embed(images) + self.place
        for block in self.blocks:
            x = x + block["attention"](x)
            x = x + block["mlp"](x)
        return self.classify(x.mean(1))


# --8<-- [end:model]


def build() -> tuple[DigitReader, Tensor]:
    """The model and its example inputs. Yours would read its weights from a file; this one learns them in some seconds."""
    torch.manual_seed(0)
    model = DigitReader()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    for _ in range(20):
        for images, labels in batches()["train"]:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
    return model, torch.zeros(1, 8, 8)


@cache
def batches() -> dict[str, list[tuple[Tensor, Tensor]]]:
    """Images `[batch, 8, 8]` from 0 to 1, and labels `[batch]`."""
    digits = load_digits()
    order = torch.randperm(len(digits.target), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(digits.images, dtype=torch.float32)[order] / 16
    labels = torch.tensor(digits.target)[order]
    pairs = list(zip(images.split(50), labels.split(50), strict=True))
    return {"train": pairs[:-8], "evaluate": pairs[-8:]}


def accuracy(model: nn.Module) -> float:
    """The share of the test images that the model reads rightly."""
    right = [(model(images).argmax(1) == labels).float() for images, labels in batches()["evaluate"]]
    return torch.cat(right).mean().item()
