"""Texts as sequences of tokens, all of one length."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from secateur.errors import DataError

CHARACTERS = 12
"""So many characters of a text are read for each token that is wanted; if they are too few, all of it."""


def sequences(text: str, tokenizer: Any, length: int, at_most: int | None = None) -> Tensor:
    """Cut a text into sequences, one behind the other; what is left at the end is too short and goes.

    Args:
        text: Any text.
        tokenizer: One of `transformers`, or what is called like it: `tokenizer(text)["input_ids"]` is a list of numbers.
        length: Tokens of a sequence, at least 2.
        at_most: How many sequences; None = all.

    Returns:
        `[sequences, length]` int64.

    Raises:
        DataError: The length is below 2, or the text is too short for one sequence.

    Example:
        >>> sequences("abcdefg", lambda text: {"input_ids": [ord(c) - 97 for c in text]}, length=3).tolist()
        [[0, 1, 2], [3, 4, 5]]
    """
    if length < 2 or (at_most is not None and at_most < 1):
        raise DataError(f"sequences have at least 2 tokens, and there is at least one; got {length=}, {at_most=}")
    start = text if at_most is None else text[: CHARACTERS * at_most * length]
    tokens = _tokens(tokenizer, start)
    if at_most is not None and len(tokens) < at_most * length and len(start) < len(text):
        tokens = _tokens(tokenizer, text)
    count = len(tokens) // length
    if not count:
        raise DataError(
            f"the text has {len(tokens)} tokens, too few for one sequence of {length}; give a longer text or a lower length"
        )
    count = count if at_most is None else min(count, at_most)
    return tokens[: count * length].view(count, length)


def read_text(path: Path) -> str:
    """Read a text file.

    Raises:
        DataError: It cannot be read, is no UTF-8, or has nothing in it.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"the text {path} cannot be read: {error}; name a file of plain text in UTF-8") from error
    if not text.strip():
        raise DataError(f"the text {path} is empty")
    return text


def _tokens(tokenizer: Any, text: str) -> Tensor:
    return torch.tensor(tokenizer(text)["input_ids"], dtype=torch.int64)
