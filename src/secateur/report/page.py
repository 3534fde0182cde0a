"""The report: one HTML file that needs no network, no script and no other file.

What is not in the record is left out of the page; nothing else is said in its place.
"""

import os
import re
import secrets
from datetime import datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from secateur.errors import ArtefactError
from secateur.report import quantity, summary
from secateur.report.record import RunRecord

PAGE = "report.html"
RECORD = "report.json"

FOLDERS = 1
"""So many folders are named before a file of source."""

NO_BREAK_SPACE, MINUS, INFINITY = "\N{NO-BREAK SPACE}", "\N{MINUS SIGN}", "\N{INFINITY}"


def render(record: RunRecord) -> str:
    """The page as HTML text; the same record gives the same text.

    Args:
        record: What the run recorded.

    Example:
        >>> page = render(RunRecord("A run", "resnet20", "2025-01-01T12:00:00+00:00"))
        >>> page.splitlines()[0]
        '<!doctype html>'
    """
    from secateur.report import view  # here, because matplotlib takes a second to import

    environment = Environment(
        loader=PackageLoader("secateur.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"breakable": _breakable, "line": _line, "moment": _moment, "typeset": _typeset}
    environment.globals |= {"quantity": quantity, "summary": summary, "view": view}
    return environment.get_template("page.html.j2").render(record=record)


def write(record: RunRecord, folder: str | Path) -> Path:
    """Write the page, and the record that it is drawn from, into a folder; each file appears whole or not at all.

    Args:
        record: What the run recorded.
        folder: Where `report.html` and `report.json` go; it is made if there is none.

    Returns:
        The path of the page.

    Raises:
        ArtefactError: The folder cannot be written to, or the record holds what JSON cannot keep.
    """
    folder = Path(folder)
    texts = {RECORD: record.to_json(), PAGE: render(record)}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            _write_whole(folder / name, text)
    except OSError as error:
        raise ArtefactError(
            f"cannot write the report into {folder}: {error}; make room or choose another folder, and write it again"
        ) from error
    return folder / PAGE


def _write_whole(path: Path, text: str) -> None:
    """Put the text in place in one step: whoever looks, and whenever the machine stops, finds the old file or the new."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if os.name == "posix":  # elsewhere a folder cannot be opened, nor need it be
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def _typeset(text: str) -> str:
    """A quantity that stays on one line, with minus signs for its minuses."""
    return re.sub(f"(^|(?<=e))-(?=[\\d{INFINITY}])", MINUS, text).replace(" ", NO_BREAK_SPACE)


def _moment(text: str) -> str:
    """A moment in ISO 8601 as people write it, to the minute; any other text as it is."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return text
    return f"{moment:%Y-%m-%d %H:%M} {moment.tzname() or ''}".rstrip()


def _line(where: str) -> Markup:
    """A line of source by the end of its path; the whole of it is there for who points at it."""
    path, colon, rest = where.partition(".py:")
    parts = path.split("/")
    if not colon or len(parts) <= FOLDERS + 1:
        return _breakable(where)
    short = "/".join(("\N{HORIZONTAL ELLIPSIS}", *parts[-FOLDERS - 1 :])) + colon + rest
    return Markup('<span title="{}">{}</span>').format(where, _breakable(short))


def _breakable(name: str) -> Markup:
    """A name or path that may be broken behind its dots, slashes and underscores."""
    return Markup(re.sub(r"([./_:])(?=\w)", r"\1<wbr>", str(escape(name))))
