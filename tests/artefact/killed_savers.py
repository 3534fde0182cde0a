"""Run by test_commit.py in a process of its own: forks savers, kills them, and prints as JSON what they left behind.

    python killed_savers.py over-old|over-nothing|sometime|limit|together FOLDER

A process of its own because a test runner has threads and may not fork.
"""

import itertools
import json
import os
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch import nn

from secateur.artefact import load, save
from secateur.artefact.commit import commit
from secateur.errors import ArtefactError

OLD, NEW = 1.0, 2.0


def everywhere(folder: Path, before: str) -> list[str]:
    """Kill before every line of the commit, and before every file operation that it leads to."""
    found = []
    for point in itertools.count(1):
        prepare(folder, before)
        if not forked(lambda point=point: save_and_die(folder, point)):
            return [*found, state(folder)]
        found.append(state(folder))
        save(filled(NEW), folder, extra={"value": NEW})
        assert len(list(folder.iterdir())) == 2, f"killed at point {point}, leaves {list(folder.iterdir())}"
    raise AssertionError


def sometime(folder: Path) -> list[str]:
    """Kill at moments spread over the time that a save of 4 MiB takes, most of it inside one call of safetensors."""
    prepare(folder, "old", size=1024)
    started = time.perf_counter()
    assert not forked(lambda: save(filled(NEW, 1024), folder, extra={"value": NEW}))
    whole = time.perf_counter() - started
    found = []
    for part in range(12):
        prepare(folder, "old", size=1024)
        forked(lambda: save(filled(NEW, 1024), folder, extra={"value": NEW}), patience=whole * part / 10)
        found.append(state(folder, size=1024))
    return found


def limit(folder: Path) -> list[str]:
    """Save while the system refuses to write more than 4 KiB into a file."""
    prepare(folder, "old")
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
    try:
        save(filled(NEW, 256), folder, extra={"value": NEW})
    except ArtefactError as error:
        return [state(folder), str(error), *sorted(path.name for path in folder.iterdir())]
    raise AssertionError


def together(folder: Path) -> list[str]:
    """Two save into one folder, again and again, while a third reads."""
    prepare(folder, "old")
    savers = [
        fork(lambda value=value: [save(filled(value), folder, extra={"value": value}) for _ in range(40)])
        for value in (OLD, NEW)
    ]
    found = [state(folder) for _ in range(40)]
    exits = [os.waitpid(saver, 0)[1] for saver in savers]
    return [*found, *("failed" for code in exits if code)]


def state(folder: Path, size: int = 8) -> str:
    """Which artefact lies there, read as a user would; a mixture shows in the weights or makes `load` refuse."""
    if not (folder / "secateur.json").exists():
        return "none"
    values = set(load(filled(0.0, size), folder).weight.flatten().tolist())
    return {(OLD,): "old", (NEW,): "new"}[tuple(values)]


def prepare(folder: Path, before: str, size: int = 8) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    if before == "old":
        save(filled(OLD, size), folder, extra={"value": OLD})


def filled(value: float, size: int = 8) -> nn.Linear:
    model = nn.Linear(size, size, bias=False)
    nn.init.constant_(model.weight, value)
    return model


def save_and_die(folder: Path, point: int) -> None:
    points = itertools.count(1)

    def step() -> None:
        if next(points) == point:
            os.kill(os.getpid(), signal.SIGKILL)

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != commit.__code__.co_filename:
            return None
        if event == "line":
            step()
        return trace

    file_operations = ("open", "os.", "shutil.", "fcntl.")
    sys.addaudithook(lambda event, _: step() if event.startswith(file_operations) else None)
    sys.settrace(trace)
    save(filled(NEW), folder, extra={"value": NEW})
    os._exit(0)


def fork(work: Callable[[], object]) -> int:
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:  # noqa: BLE001  whatever it is, the fork must not run on as a second parent
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return process


def forked(work: Callable[[], object], patience: float | None = None) -> bool:
    """Do the work in a process of its own; kill it when patience ends. True if it was killed."""
    process = fork(work)
    if patience is not None:
        time.sleep(patience)
        os.kill(process, signal.SIGKILL)
    status = os.waitpid(process, 0)[1]
    assert not os.WIFEXITED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def main(mode: str, folder: Path) -> Iterator[str]:
    torch.set_num_threads(1)
    match mode:
        case "over-old":
            yield from everywhere(folder, "old")
        case "over-nothing":
            yield from everywhere(folder, "none")
        case "sometime":
            yield from sometime(folder)
        case "limit":
            yield from limit(folder)
        case "together":
            yield from together(folder)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(list(main(sys.argv[1], Path(sys.argv[2])))))
