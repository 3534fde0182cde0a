"""What is told where a runtime is missing, or does not take a model."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from secateur.errors import CaptureError, MissingExtraError, SecateurError, TargetError


def installed(module: str, extra: str) -> Any:
    """An optional package.

    Args:
        module: What is imported.
        extra: The extra of Secateur that brings it.

    Raises:
        MissingExtraError: It is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(
            f"{module} is needed here, and cannot be imported: pip install 'secateur[{extra}]' ({error})"
        ) from error


@contextmanager
def refusing(target: str, model: nn.Module) -> Iterator[None]:
    """Turn whatever a runtime raises, of whatever kind, into one error that says what it does not take.

    Warnings are not shown: exporters warn of their own code.

    Raises:
        TargetError: Something was raised.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except CaptureError as error:
        raise TargetError(f"{target}: {error}; {NEXT}") from error
    except SecateurError:
        raise
    except Exception as error:
        raise TargetError(f"{target} cannot run {type(model).__name__}: {_reason(error)}; {NEXT}") from error


NEXT = "change what it names, or take another target: secateur.targets.Eager() takes every model"


def _reason(error: BaseException) -> str:
    """The first line with words of the innermost error: what stands around it is about the runtime's own code."""
    while error.__cause__ is not None:
        error = error.__cause__
    lines = [line.strip() for line in str(error).splitlines()]
    return f"{type(error).__name__}: {next(filter(None, lines), 'it says nothing more')}"
