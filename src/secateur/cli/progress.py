"""Shows how far the work is: bars in a terminal, one line for each finished stage in a log, nothing where nobody reads."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TaskID, TextColumn
from rich.text import Text

Style = Literal["bars", "lines", "none"]
WIDTH = 22
"""Of a stage's name."""


class Stages:
    """The stages of the work, in their order; a context in which they are shown on stderr.

    Call it as `stages(name, done, total)`: with 0 done a stage begins, with all done it ends.

    Args:
        style: How; by default bars in a terminal, else lines.
        lasting: Whether what was shown stays; for work of a few seconds it does not.
        console: Where; by default stderr.
    """

    def __init__(self, style: Style | None = None, *, lasting: bool = True, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, highlight=False)
        self._style: Style = style or ("bars" if self._console.is_terminal else "lines" if lasting else "none")
        self._bars = Progress(
            SpinnerColumn(finished_text=Text("✓", style="green")),
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            _Seconds(),
            TextColumn("{task.fields[note]}", style="bold"),
            console=self._console,
            transient=not lasting,
        )
        self._current: tuple[str, TaskID, float] | None = None
        self._ended = ""

    def __enter__(self) -> Self:
        if self._style == "bars":
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._style == "bars":
            self._bars.stop()

    def __call__(self, stage: str, done: int, total: int) -> None:
        """A stage is so far.

        Args:
            stage: Its name.
            done: How many of its parts are done; where a stage has one part alone, its bar does not tell how far it is.
            total: How many there are, at least 1.
        """
        if self._current is None and done and stage == self._ended:
            return  # told twice: by the last of its parts, and as a whole
        if self._current is None or self._current[0] != stage or done == 0:
            task = self._bars.add_task(f"{stage:<{WIDTH}}", total=total if total > 1 else None, note="")
            self._current = (stage, task, time.monotonic())
        _, task, started = self._current
        self._bars.update(task, completed=done, total=total if total > 1 or done else None)
        if done >= total:
            self._finished(stage, time.monotonic() - started)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """A stage of one part: it begins, and it is done."""
        self(name, 0, 1)
        yield
        self(name, 1, 1)

    def note(self, text: str) -> None:
        """Put a few words behind the stage that is running."""
        if self._current is not None:
            self._bars.update(self._current[1], note=text)

    def _finished(self, stage: str, seconds: float) -> None:
        if self._style == "lines" and self._current is not None:
            note = self._bars.tasks[self._current[1]].fields["note"]
            self._console.print(f"{stage:<{WIDTH}} {seconds:6.1f} s  {note}".rstrip(), soft_wrap=True)
        self._current, self._ended = None, stage


class _Seconds(ProgressColumn):
    """How long a stage has taken so far, to a tenth of a second."""

    def render(self, task: Task) -> Text:
        seconds = task.finished_time if task.finished else task.elapsed
        return Text(f"{seconds or 0:6.1f} s", style="dim")
