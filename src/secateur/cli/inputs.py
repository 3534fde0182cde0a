"""Example inputs as text: `1x3x224x224`, or with a dtype `1x128:int64`."""

import re

import torch
from torch import Tensor

from secateur.errors import JobError
from secateur.torch import Inputs

DTYPES = {
    name: getattr(torch, name)
    for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")
}


def parse_inputs(texts: tuple[str, ...], *, drawn: bool = True) -> Inputs:
    """Tensors of the shapes and dtypes that were written down.

    Args:
        texts: One for each positional argument: sizes with an x between them, then a colon and a dtype where it is not float32.
        drawn: Whether values are wanted; without them, inputs of any size take no memory.

    Returns:
        One tensor, or a tuple of several. Floating-point values are normally distributed, the same ones each time, if they are
        drawn; others are 0.

    Raises:
        JobError: A text is no shape, or names an unknown dtype.

    Example:
        >>> parse_inputs(("1x16:int64",)).shape
        torch.Size([1, 16])
    """
    generator = torch.Generator().manual_seed(0)
    tensors = tuple(_tensor(text, generator if drawn else None) for text in texts)
    return tensors[0] if len(tensors) == 1 else tensors


def _tensor(text: str, generator: torch.Generator | None) -> Tensor:
    shape, _, dtype = text.partition(":")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", shape):
        raise JobError(
            f"the input {text!r} is not understood: write sizes such as 1x3x224x224, or with a dtype 1x128:int64"
        )
    if dtype and dtype not in DTYPES:
        raise JobError(f"the input {text!r} has an unknown dtype; there is {', '.join(DTYPES)}")
    sizes = [int(size) for size in shape.split("x")]
    kind = DTYPES[dtype or "float32"]
    if generator is None:
        return torch.zeros((), dtype=kind).expand(sizes)
    if kind.is_floating_point:
        return torch.randn(sizes, generator=generator).to(kind)
    return torch.zeros(sizes, dtype=kind)
