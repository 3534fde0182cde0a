"""Bars in a terminal, lines in a log, nothing for machines."""

import io
import re

import pytest
from rich.console import Console

from secateur.cli.progress import Stages, Style


def shown(*, terminal: bool, style: Style | None = None, lasting: bool = True) -> str:
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=terminal, width=100, color_system=None, highlight=False)
    with Stages(style, lasting=lasting, console=console) as stages:
        stages("score", 0, 1)
        stages("score", 1, 1)
        for step in range(1, 4):
            stages.note(f"loss {3 - step}")
            stages("recover", step, 3)
        stages("recover", 1, 1)
        with stages.stage("evaluate"):
            stages.note("accuracy 97 %")
    return stream.getvalue()


def test_a_log_has_a_line_for_each_finished_stage() -> None:
    lines = shown(terminal=False).splitlines()

    assert [re.sub(r" +\d+\.\d s", "", line) for line in lines] == [
        "score",
        "recover  loss 0",
        "evaluate  accuracy 97 %",
    ]


def test_a_terminal_has_bars_which_end_with_a_mark() -> None:
    text = shown(terminal=True)

    for line in ("score", "recover .*loss 0", "evaluate .*accuracy 97 %"):
        assert re.search(f"✓ {line}", text)


@pytest.mark.parametrize("terminal", [True, False])
def test_machines_see_nothing(terminal: bool) -> None:
    assert shown(terminal=terminal, style="none") == ""


def test_short_work_leaves_nothing_in_a_log() -> None:
    assert shown(terminal=False, lasting=False) == ""


def test_a_stage_may_come_again() -> None:
    stream = io.StringIO()
    with Stages(console=Console(file=stream, force_terminal=False, width=100)) as stages:
        for _ in range(2):
            with stages.stage("evaluate"):
                pass

    assert len(stream.getvalue().splitlines()) == 2
