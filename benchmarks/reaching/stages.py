"""How far one model came with one tool, told as it goes, so that a process that is ended leaves an account."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

LONGEST_REASON = 400


class StageError(Exception):
    """A stage failed; the record says which and why."""


class Stages:
    """One record, and the stages that fill it.

    Args:
        model: `library/model`.
        tool: The tool's name.
        tell: Is handed the record whenever a stage begins.
    """

    def __init__(self, model: str, tool: str, tell: Callable[[dict[str, Any]], None]) -> None:
        self.record: dict[str, Any] = {"library": model.partition("/")[0], "model": model, "tool": tool, "ok": False}
        self.tell = tell

    def note(self, **found: Any) -> None:
        """Add to the record."""
        self.record |= found

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """One stage.

        Raises:
            StageError: Whatever went wrong in it.
        """
        self.note(stage=name)
        self.tell(self.record)
        try:
            yield
        except Exception as error:
            self.note(reason=" ".join(f"{type(error).__name__}: {error}".split())[:LONGEST_REASON])
            raise StageError(self.record["reason"]) from error
