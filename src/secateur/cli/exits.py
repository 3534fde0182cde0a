"""How a command ends: with an exit code that says what went wrong, and one readable paragraph."""

import json
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.text import Text

from secateur.errors import (
    ArtefactError,
    AttributeFollowError,
    BudgetError,
    CaptureError,
    DataError,
    JobError,
    MissingExtraError,
    ModelError,
    PlanError,
    RecoveryError,
    SecateurError,
    TargetError,
    VerificationError,
)

UNEXPECTED, INTERRUPTED = 1, 130

CODES: tuple[tuple[int, str, tuple[type[SecateurError], ...]], ...] = (
    (2, "the command or the job cannot be understood", (JobError, MissingExtraError)),
    (
        3,
        "the model cannot be captured or used, or not on the target",
        (CaptureError, ModelError, TargetError, AttributeFollowError),
    ),
    (4, "the budget cannot be met", (BudgetError,)),
    (5, "a proof failed", (VerificationError,)),
    (6, "the data does not fit", (DataError,)),
    (7, "an artefact or report is damaged, or cannot be written", (ArtefactError,)),
    (8, "the training to recover failed", (RecoveryError,)),
    (2, "", (PlanError,)),  # what is asked for does not fit the network, such as a pattern that names nothing
)
"""The first row whose class an error is an instance of decides."""


def table_of_codes() -> str:
    """The exit codes with their meanings, one a line."""
    rows = [(0, "all went well"), (UNEXPECTED, "anything else"), *((code, words) for code, words, _ in CODES if words)]
    return "\n".join(f"{code}  {words}" for code, words in rows)


def exit_code(error: BaseException) -> int:
    """The exit code that an error ends the command with."""
    return next((code for code, _, kinds in CODES if isinstance(error, kinds)), UNEXPECTED)


@contextmanager
def reported(*, as_json: bool, debug: bool) -> Iterator[None]:
    """Turn whatever is raised within into a message on stderr and an exit code.

    Args:
        as_json: Write the error as JSON.
        debug: Write the traceback, too.
    """
    try:
        yield
    except typer.Exit:
        raise
    except KeyboardInterrupt:
        say("interrupted", "stopped before it was done", INTERRUPTED, as_json=as_json)
        raise typer.Exit(INTERRUPTED) from None
    except Exception as error:  # noqa: BLE001  the last place where a person can be told what happened
        if debug:
            traceback.print_exc()
        code = exit_code(error)
        message = str(error) if isinstance(error, SecateurError) else _unexpected(error, debug)
        say(type(error).__name__, message, code, as_json=as_json)
        raise typer.Exit(code) from None


def _unexpected(error: Exception, debug: bool) -> str:
    hint = "" if debug else "; --debug shows how it came to that"
    innermost = traceback.extract_tb(error.__traceback__)[-1]
    return f"unexpected {type(error).__name__}: {error} ({innermost.filename}:{innermost.lineno}){hint}"


def say(kind: str, message: str, code: int, *, as_json: bool) -> None:
    """Tell of an error on stderr."""
    if as_json:
        sys.stderr.write(json.dumps({"error": kind, "message": message, "exit_code": code}) + "\n")
        return
    console = Console(stderr=True, highlight=False)
    # Only a person's terminal is wrapped: a log keeps one line for one error.
    console.print(Text.assemble((f"{kind}: ", "bold red"), message), soft_wrap=not console.is_terminal)
