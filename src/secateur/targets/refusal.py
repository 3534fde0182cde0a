"""What is told where a runtime is missing, or does not take a model."""

import importlib
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from secateur.errors import CaptureError, MissingExtraError, SecateurError, TargetError
from secateur.torch.program import Program


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
def refusing(target: str, model: nn.Module, program: Program | None = None) -> Iterator[None]:
    """Turn whatever a runtime raises, of whatever kind, into one error that says what it does not take.

    Warnings are not shown: exporters warn of their own code.

    Args:
        target: What the runtime is called.
        model: What it is given.
        program: The program of the model, where there is one: says where an operator that the runtime names comes from.

    Raises:
        TargetError: Something was raised.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except CaptureError as error:
            raise TargetError(f"{target}: {error}; {NEXT}") from error
        except SecateurError:
            raise
        except Exception as error:
            raise TargetError(
                f"{target} cannot run {type(model).__name__}: {_reason(error, program)}; {NEXT}"
            ) from error


NEXT = "change what it names, or take another target: secateur.targets.Eager() takes every model"


def _reason(error: BaseException, program: Program | None) -> str:
    """The operators that are named, or else the first line of the innermost error: the rest is about the runtime's own code."""
    words = str(error)
    while error.__cause__ is not None:
        error = error.__cause__
        words += f"\n{error}"
    if program is not None and (named := program.named_in(words)):
        return f"{type(error).__name__} at {', '.join(named)}"
    lines = [line.strip() for line in str(error).splitlines()]
    return f"{type(error).__name__}: {next(filter(None, lines), 'it says nothing more')}"
