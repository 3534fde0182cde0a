"""Whoever saves and is killed, interrupted or out of space leaves the old artefact or the new one, whole."""

import contextlib
import json
import linecache
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import nn

from secateur.artefact import load, read, save
from secateur.artefact.commit import commit
from secateur.errors import ArtefactError

SAVERS = Path(__file__).parent / "killed_savers.py"

posix = pytest.mark.skipif(sys.platform == "win32", reason="fork and kill are POSIX")


def left_behind(mode: str, folder: Path) -> list[str]:
    done = subprocess.run(
        [sys.executable, SAVERS, mode, folder], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@posix
@pytest.mark.parametrize(
    ("mode", "before"), [("over-old", "old"), pytest.param("over-nothing", "none", marks=pytest.mark.slow)]
)
def test_killed_anywhere_in_the_commit_it_is_the_old_artefact_or_the_new(
    mode: str, before: str, tmp_path: Path
) -> None:
    found = left_behind(mode, tmp_path / "out")

    turn = found.index("new")
    assert turn > 20
    assert found[:turn] == [before] * turn
    assert found[turn:] == ["new"] * (len(found) - turn)


@pytest.mark.slow
@posix
def test_killed_at_any_moment_it_is_the_old_artefact_or_the_new(tmp_path: Path) -> None:
    found = left_behind("sometime", tmp_path / "out")

    assert set(found) <= {"old", "new"}
    assert found[0] == "old"


@posix
def test_when_the_system_takes_no_more_bytes_the_old_artefact_stays(tmp_path: Path) -> None:
    state, message, *names = left_behind("limit", tmp_path / "out")

    assert state == "old"
    assert "cannot save to" in message
    assert len(names) == 2


@pytest.mark.slow
@posix
def test_two_savers_and_a_reader_of_one_folder_never_meet_a_mixture(tmp_path: Path) -> None:
    assert set(left_behind("together", tmp_path / "out")) <= {"old", "new"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failure_at_any_line_leaves_the_old_artefact_or_the_new(error: BaseException, tmp_path: Path) -> None:
    for line in range(1, 200):
        save(filled(1.0), tmp_path)
        before = names(tmp_path)
        with failing_at(line, error) as failed, contextlib.suppress(ArtefactError, KeyboardInterrupt):
            save(filled(2.0), tmp_path)
        values = set(load(filled(0.0), tmp_path).weight.flatten().tolist())
        assert values in ({1.0}, {2.0}), f"line {failed}"
        assert values == {2.0} or before <= names(tmp_path), f"line {failed}"
        save(filled(2.0), tmp_path)
        assert names(tmp_path) == {"secateur.json", read(tmp_path).weights.name}
        if failed == []:
            break
    assert line > 20


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_without_space_nothing_changes_and_nothing_is_left_lying(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(filled(1.0), tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    monkeypatch.setattr(os, call, raiser(OSError(28, "No space left on device")))

    with pytest.raises(ArtefactError, match="No space left on device; no space is left there; free some"):
        save(filled(2.0), tmp_path)

    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_everything_is_on_the_disk_before_the_manifest_speaks_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def name_of(descriptor: int) -> str:
        number = os.fstat(descriptor).st_ino
        return next(path.name for path in (tmp_path, *tmp_path.rglob("*")) if path.stat().st_ino == number)

    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(f"flush {name_of(fd)}"), fsync(fd)))
    monkeypatch.setattr(os, "replace", lambda a, b: (done.append(f"rename {Path(a).name}"), replace(a, b)))

    save(filled(1.0), tmp_path / "out")

    assert done == [
        *("flush weights", "flush secateur.json", "rename weights", "flush out"),
        *("rename secateur.json", "flush out", f"flush {tmp_path.name}"),
    ]


def test_old_weights_that_cannot_be_removed_do_no_harm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    save(filled(1.0), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", raiser(PermissionError(13, "no")))
        save(filled(2.0), tmp_path)

    assert "could not remove the old weights" in caplog.text
    assert load(filled(0.0), tmp_path).weight[0, 0] == 2.0


def test_damaged_weights_are_mended_by_saving_the_same_model_again(tmp_path: Path) -> None:
    name = save(filled(1.0), tmp_path).weights.name
    (tmp_path / name).write_bytes(b"damaged")

    save(filled(1.0), tmp_path)

    assert load(filled(0.0), tmp_path).weight[0, 0] == 1.0


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def filled(value: float) -> nn.Linear:
    model = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        model.weight.fill_(value)
    return model


class failing_at:  # noqa: N801  read as a phrase
    """Raise an error before the n-th line that runs in the file of `commit`; says which it was."""

    def __init__(self, countdown: int, error: BaseException) -> None:
        self.countdown, self.error, self.failed = countdown, error, list[str]()

    def __enter__(self) -> list[str]:
        self.previous = sys.gettrace()
        sys.settrace(self.trace)
        return self.failed

    def __exit__(self, *_: object) -> None:
        sys.settrace(self.previous)

    def trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code.co_filename != commit.__code__.co_filename:
            return None
        # Nothing strikes between an exception and the close that it leads to: Python looks for signals after calls.
        if event == "line" and "os.close(" not in linecache.getline(frame.f_code.co_filename, frame.f_lineno):
            self.countdown -= 1
            if self.countdown == 0:
                self.failed.append(f"{frame.f_code.co_name}:{frame.f_lineno}")
                raise self.error
        return self.trace


def raiser(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail
