"""Writes the tables of the benchmarks page from the results that the scripts in benchmarks/ leave behind.

A page that holds the line `<!-- benchmarks -->` gets one section in its place for each benchmarks/results/*.json, by
name. Such a file is one object:

    title     str           what was measured
    command   str           what reproduces it, from the root of the repository
    machine   str           processor, cores, versions that matter
    columns   list[str]     heads of the table
    rows      list[list]    cells, one list a row: text, integers, or floats (written with three significant digits)
    notes     list[str]     optional: how to read it, what the spread is, what it does not show
    parts     list[object]  optional: further tables, each with a title, columns and rows of its own
"""

import json
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import Files
from mkdocs.structure.pages import Page

PLACE = "<!-- benchmarks -->"


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Puts the tables where the page asks for them."""
    if PLACE not in markdown:
        return markdown
    results = Path(config.config_file_path).parent / "benchmarks" / "results"
    sections = [section_of(path) for path in sorted(results.glob("*.json"))]
    return markdown.replace(PLACE, "\n\n".join(sections) or "*No result has been recorded yet.*")


def section_of(path: Path) -> str:
    """One result as Markdown: title, table, notes, how to get the same numbers again, and further tables."""
    result = read_result(path)
    notes = "\n".join(f"- {note}" for note in result.get("notes", []))
    origin = f"Measured on {result['machine']}, with:\n\n```console\n$ {result['command']}\n```"
    further = [f"### {part['title']}\n\n{table_of(part)}" for part in result.get("parts", []) if part["rows"]]
    return "\n\n".join(part for part in (f"## {result['title']}", table_of(result), notes, origin, *further) if part)


def table_of(result: dict[str, Any]) -> str:
    """A table as Markdown."""
    rows = [result["columns"], ["---"] * len(result["columns"]), *result["rows"]]
    return "\n".join("| " + " | ".join(cell_of(value) for value in row) + " |" for row in rows)


def read_result(path: Path) -> dict[str, Any]:
    """Reads one result, and stops the build where it is not one."""
    result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    missing = {"title", "command", "machine", "columns", "rows"} - result.keys()
    if missing:
        raise PluginError(f"{path}: a result needs {', '.join(sorted(missing))} too; docs/hooks/benchmarks.py says how")
    for table in (result, *result.get("parts", [])):
        if any(len(row) != len(table["columns"]) for row in table["rows"]):
            raise PluginError(
                f"{path}: every row of {table['title']} needs {len(table['columns'])} cells, one for each column"
            )
    return result


def cell_of(value: object) -> str:
    """A cell as Markdown: three significant digits for a float, separated thousands for an integer."""
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(value).replace("|", "\\|")
