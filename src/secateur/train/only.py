"""Which parameters are trained: all that are trainable, or some of them, such as `vectors`."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from torch import nn

from secateur.errors import RecoveryError

Only = Callable[[str, nn.Parameter], bool]
"""`(name, parameter) -> whether it is trained`."""


def vectors(name: str, parameter: nn.Parameter) -> bool:  # noqa: ARG001 - as Only asks
    """Biases, and the scales and shifts of normalisations: what has one dim, and no zeros to look after.

    Example:
        >>> {name: vectors(name, parameter) for name, parameter in nn.Linear(2, 3).named_parameters()}
        {'weight': False, 'bias': True}

    Source:
        M. Zimmer et al., "PERP: Rethinking the Prune-Retrain Paradigm in the Era of LLMs", 2023: biases and normalisations alone.
    """
    return parameter.ndim < 2


@contextmanager
def training_only(model: nn.Module, only: Only | None) -> Iterator[None]:
    """Inside, no other parameters are trainable than those chosen of the trainable ones; afterwards all are as they were.

    Raises:
        RecoveryError: None is chosen.
    """
    trainable = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    left_out = [parameter for name, parameter in trainable if only is not None and not only(name, parameter)]
    if trainable and len(left_out) == len(trainable):
        raise RecoveryError(
            f"nothing to train: only={only!r} chooses none of the {len(trainable)} trainable parameters of "
            f"{type(model).__name__}, such as {trainable[0][0]!r}"
        )
    try:
        for parameter in left_out:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in left_out:
            parameter.requires_grad_()
