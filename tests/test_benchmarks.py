"""What the benchmarks leave behind becomes tables, and the counts in them are right."""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
RESULT = {"title": "T", "command": "c", "machine": "m", "columns": ["a", "b"], "rows": [["x|y", 1234567]]}


def loaded(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def hook() -> ModuleType:
    pytest.importorskip("mkdocs", reason="needs mkdocs: pip install 'secateur[docs]'")
    return loaded(ROOT / "docs" / "hooks" / "benchmarks.py")


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield loaded(ROOT / "benchmarks" / "reaching" / "counted.py")
    sys.modules.pop("machine", None)


def written(folder: Path, **result: Any) -> Path:
    path = folder / "result.json"
    path.write_text(json.dumps(RESULT | result), encoding="utf-8")
    return path


def test_further_tables_follow_the_result_that_they_belong_to(hook: ModuleType, tmp_path: Path) -> None:
    parts = [{"title": "More", "columns": ["c"], "rows": [[0.12345]]}, {"title": "None", "columns": ["c"], "rows": []}]
    section = hook.section_of(written(tmp_path, parts=parts))
    assert "| x\\|y | 1,234,567 |" in section
    assert section.endswith("### More\n\n| c |\n| --- |\n| 0.123 |")


def test_a_row_that_does_not_fit_its_table_stops_the_build(hook: ModuleType, tmp_path: Path) -> None:
    parts = [{"title": "More", "columns": ["c"], "rows": [[1, 2]]}]
    with pytest.raises(Exception, match="every row of More needs 1 cells"):
        hook.section_of(written(tmp_path, parts=parts))


def record(model: str, tool: str = "secateur", **found: Any) -> dict[str, Any]:
    return {"library": "zoo", "model": f"zoo/{model}", "tool": tool, "ok": False, "stage": "run", "reason": "?"} | found


def test_later_records_hold_and_a_line_that_was_cut_short_is_left_out(counted: Any, tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_text(json.dumps(record("m")) + '\n{"model": "zoo', encoding="utf-8")
    second.write_text(json.dumps(record("m", ok=True)) + "\n", encoding="utf-8")
    found = counted.known([first, second, tmp_path / "none"])
    assert {key: value["ok"] for key, value in found.items()} == {("zoo/m", "secateur"): True}


def test_failures_that_differ_by_names_and_numbers_are_one_cause(counted: Any) -> None:
    records = [
        record("a", reason="Error: net.py:12 in layers.0: shape '[1, 2]' for 34"),
        record("b", reason="Error: other.py:7 in layers.11: shape '[3]' for 5"),
        record("c", reason="Error: something else"),
        record("d", ok=True),
    ]
    rows = counted.causes(records)["rows"]
    assert [row[3:] for row in rows] == [[2, "zoo/a, zoo/b"], [1, "zoo/c"]]


def test_a_model_that_runs_and_differs_is_counted_as_wrong(counted: Any) -> None:
    records = [
        record("a", "peer", ok=True, stage="verify", unchecked="softmax"),
        record("b", "peer", stage="verify", max_error=0.3),
        record("c", "peer", stage="build"),
    ]
    assert counted.row("zoo", "peer", records)[2:8] == [3, 2, 1, 50.0, 1, 1]


def test_every_record_has_all_fields_of_a_result(counted: Any, tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    counted.write({"title": "T", "values": [counted.trimmed(record("a", "peer", ok=True, reason=None))]}, path)
    (value,) = json.loads(path.read_text(encoding="utf-8"))["values"]
    assert set(value) == set(counted.FIELDS)
    assert value["free_share"] is None


Work = Callable[[str, str, argparse.Namespace, Connection], None]
OPTIONS = argparse.Namespace(limit=1.0, memory=1.0)


def answers(model: str, tool: str, options: argparse.Namespace, writing: Connection) -> None:
    writing.send({"model": model, "tool": tool, "ok": False, "stage": "trace"})
    writing.send({"model": model, "tool": tool, "ok": True, "stage": "verify"})


def dies(model: str, tool: str, options: argparse.Namespace, writing: Connection) -> None:
    writing.send({"model": model, "tool": tool, "ok": False, "stage": "trace"})
    os.kill(os.getpid(), signal.SIGKILL)


def waits_with_a_child(model: str, tool: str, options: argparse.Namespace, writing: Connection) -> None:
    os.setsid()
    child = subprocess.Popen(["sleep", "60"])
    writing.send({"model": model, "tool": tool, "ok": False, "stage": "plan", "child": child.pid})
    time.sleep(60)


def computes(model: str, tool: str, options: argparse.Namespace, writing: Connection) -> None:
    writing.send({"model": model, "tool": tool, "ok": False, "stage": "trace"})
    loaded(ROOT / "benchmarks" / "reach.py").limit_processor(options.limit)
    while True:
        pass


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """The record of a worker that does this."""
    reach = loaded(ROOT / "benchmarks" / "reach.py")

    def told(work: Work, patience: int = 4) -> dict[str, Any]:
        monkeypatch.setattr(reach, "work", work)
        monkeypatch.setattr(reach, "PATIENCE", patience)
        found: dict[str, Any] = reach.one("zoo/m", "peer", OPTIONS)
        return found

    return told


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # it forks while torch has threads
class TestWorkers:
    def test_the_last_word_of_a_worker_is_its_record(self, told: Callable[[Work], dict[str, Any]]) -> None:
        found = told(answers)
        assert found["ok"]
        assert found["stage"] == "verify"

    def test_a_crash_becomes_a_record_with_its_stage(self, told: Callable[[Work], dict[str, Any]]) -> None:
        found = told(dies)
        assert (found["ok"], found["stage"], found["reason"]) == (False, "trace", "the process ended with SIGKILL")

    def test_a_worker_that_is_late_is_ended_with_its_children(self, told: Callable[[Work], dict[str, Any]]) -> None:
        found = told(waits_with_a_child)
        assert (found["stage"], found["reason"]) == ("plan", "did not finish in 4 s")
        late = time.monotonic() + 10
        while runs(found["child"]) and time.monotonic() < late:
            time.sleep(0.05)  # a process that was killed is still there for a moment
        assert not runs(found["child"])

    def test_a_worker_that_computes_for_too_long_is_ended(self, told: Callable[..., dict[str, Any]]) -> None:
        found = told(computes, patience=120)
        assert (found["stage"], found["reason"]) == ("trace", "did not finish in 1 CPU s")


def runs(process: int) -> bool:
    """Whether a process is there, and is more than its own remains."""
    try:
        return Path(f"/proc/{process}/stat").read_text().split()[2] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_record_never_joins_a_line_that_was_cut_short(counted: Any, tmp_path: Path) -> None:
    path = tmp_path / "records"
    path.write_text('{"model": "zoo', encoding="utf-8")
    reach = loaded(ROOT / "benchmarks" / "reach.py")
    for model in "ab":
        reach.keep(record(model), path)
    assert [model for model, _ in counted.known([path])] == ["zoo/a", "zoo/b"]
