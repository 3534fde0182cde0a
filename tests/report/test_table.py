"""The last lines in the terminal."""

import io
from dataclasses import replace

from rich.console import Console

from secateur.report import Row, RunRecord, comparison_table


def test_the_table_has_a_line_for_each_row_of_the_record(record: RunRecord) -> None:
    lines = printed(record)

    assert lines[0].split() == ["dense", "pruned", "change"]
    assert lines[2].split() == ["accuracy", "92.58", "%", "91.34", "%", "-1.24", "points", "worse"]
    assert lines[-1].split()[:2] == ["peak", "memory"]
    assert len(lines) == 2 + len(record.rows)


def test_names_are_printed_as_they_are(bare_record: RunRecord) -> None:
    row = Row("[red]loss[/red]", "", 1.0, 2.0, "lower")

    assert "[red]loss[/red]" in printed(replace(bare_record, rows=(row,)))[2]


def printed(record: RunRecord) -> list[str]:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table(record))
    return console.export_text().rstrip().splitlines()


def test_a_record_prints_as_its_table_and_shows_no_samples(record: RunRecord) -> None:
    lines = str(record).splitlines()

    assert lines[0] == record.title
    assert lines[2].split() == ["dense", "pruned", "change"]
    assert len(repr(record)) < 200
