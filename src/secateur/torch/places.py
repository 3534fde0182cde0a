"""Where in the user's code something happens: the line and the module that are running."""

import os
import re
import sys
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from types import FrameType

import torch

_TORCH = f"{Path(torch.__file__).parent}/"
_OURS = f"{Path(__file__).parent}/"
_BOUNDARY = f"{_OURS}capture.py"


def running(paths: Mapping[int, str]) -> str:
    """The innermost line that is neither torch's nor ours, and the innermost module, of the model that `trace` runs.

    Args:
        paths: The path of each module, by `id(module)`.
    """
    frame: FrameType | None = sys._getframe(1)
    line = module = ""
    while frame is not None and not (line and module):
        code = frame.f_code
        if code.co_filename == _BOUNDARY and code.co_name == "call":
            break  # the frames below are those that called trace()
        if not module and code.co_varnames[:1] == ("self",):
            module = paths.get(id(frame.f_locals["self"]), "")
        if not line and is_users(code.co_filename):
            line = f"{short(code.co_filename)}:{frame.f_lineno}"
        frame = frame.f_back
    return f"{line} in {module}" if module and line else line or module


@cache
def is_users(file: str) -> bool:
    """Whether a file holds neither torch's code nor ours."""
    return not file.startswith((_TORCH, _OURS, "<"))


def cause_of(error: BaseException) -> str:
    """An error of torch or of the user's code in one line: its type, what it says first, and the line of the user's code.

    Below its first line, torch lists every form in which an operator can be called.
    """
    said = str(error).partition("\n")[0].removesuffix(", but expected one of:")
    return f"{type(error).__name__}: {said} ({line_of(error)})"


def line_of(error: BaseException) -> str:
    """The innermost line of the user's code in a traceback."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if is_users(trace.tb_frame.f_code.co_filename):
            line = f"{short(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line or "inside torch"


def line_in(stack: str) -> str:
    """The innermost line of a stack that is the user's: a graph remembers the code that it was made of."""
    lines = [f"{short(file)}:{line}" for file, line in re.findall(r'File "(.+)", line (\d+)', stack) if is_users(file)]
    return lines[-1] if lines else ""


def short(file: str) -> str:
    """A path as a person would name it: relative to the working directory, or below site-packages."""
    return _short(file, os.getcwd())  # noqa: PTH109 - asked a thousand times a trace; a string is cheap to compare


@cache
def _short(file: str, folder: str) -> str:
    for marker in ("site-packages/", "dist-packages/"):
        if marker in file:
            return file.split(marker, 1)[1]
    path = Path(file)
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else file
