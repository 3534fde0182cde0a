"""The folder that a job writes into: taken before the work starts, so that hours are never lost to a foreign one."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from secateur.cli.job import JobFile
from secateur.errors import ArtefactError, JobError

JOB = "job.toml"
STAMP = "# Written by Secateur beside the result of this job, which can be run again.\n"


@contextmanager
def claim(file: JobFile[Any]) -> Iterator[Path]:
    """Make the output folder, with a copy of the job in it; a folder that was not there goes again if the job fails.

    The copy begins with a line that marks the folder as ours, and its paths lead to where those of the original do.

    Args:
        file: The job.

    Yields:
        The folder.

    Raises:
        JobError: The folder holds other files, or is no folder.
        ArtefactError: It cannot be written to.
    """
    folder = file.output
    refuse_foreign(folder)
    new = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        copy = folder / JOB
        if not (copy.exists() and copy.samefile(file.path)):
            copy.write_text(_copied(file, folder), encoding="utf-8")
        elif not os.access(folder, os.W_OK):
            raise PermissionError("it may not be written to")
    except OSError as error:
        raise ArtefactError(
            f"cannot write into {folder}: {error.strerror or error}; choose another output folder"
        ) from error
    try:
        yield folder
    except BaseException:
        if new and [path for path in folder.rglob("*") if path.is_file()] == [folder / JOB]:
            shutil.rmtree(folder)
        raise


def refuse_foreign(folder: Path) -> None:
    """Refuse a folder that holds anything but what a job of ours wrote.

    Raises:
        JobError: It does, or it is no folder.
    """
    if folder.exists() and not folder.is_dir():
        raise JobError(f"the output {folder} is a file; name a folder")
    if not folder.is_dir() or _is_ours(folder):
        return
    names = sorted(path.name for path in folder.iterdir())
    if names:
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        raise JobError(f"the output folder {folder} already holds other files ({shown}); name a new or an empty one")


def _is_ours(folder: Path) -> bool:
    try:
        with (folder / JOB).open(encoding="utf-8") as job:
            return job.readline() == STAMP
    except (OSError, UnicodeDecodeError):
        return False


def _copied(file: JobFile[Any], folder: Path) -> str:
    # Keys before the first table are the whole file's, so a new one can always be put on top.
    text = re.sub(r"^relative_to\s*=.*\n", "", file.text.removeprefix(STAMP), flags=re.MULTILINE)
    base = Path(os.path.relpath(file.folder.resolve(), folder.resolve())).as_posix()
    return f'{STAMP}relative_to = "{base}"\n{text}'
