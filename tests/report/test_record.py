"""The record: what is written is read again, and what is damaged is refused."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from secateur.errors import ArtefactError
from secateur.report import AxisRecord, Row, RunRecord, Step


def test_reading_gives_back_what_was_written(
    record: RunRecord, large_record: RunRecord, bare_record: RunRecord
) -> None:
    for each in (record, large_record, bare_record):
        assert RunRecord.from_json(each.to_json()) == each


def test_equal_records_give_equal_text(record: RunRecord) -> None:
    assert RunRecord.from_json(record.to_json()).to_json() == record.to_json()


def test_the_text_is_json_by_the_standard_even_with_numbers_that_are_not_finite(bare_record: RunRecord) -> None:
    diverged = replace(bare_record, steps=(Step("pruned", {"accuracy": math.nan, "loss": math.inf}),))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    json.loads(diverged.to_json(), parse_constant=refuse)
    metrics = RunRecord.from_json(diverged.to_json()).steps[0].metrics
    assert math.isnan(metrics["accuracy"])
    assert metrics["loss"] == math.inf


def test_a_record_is_read_from_its_file(record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text(record.to_json(), encoding="utf-8")

    assert RunRecord.read(tmp_path / "report.json") == record


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match=r"report\.json.*No such file"):
        RunRecord.read(tmp_path / "report.json")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    for content in (b"{", b"\xff\xfe\xfa"):
        (tmp_path / "report.json").write_bytes(content)
        with pytest.raises(ArtefactError, match=r"report\.json"):
            RunRecord.read(tmp_path / "report.json")


@pytest.mark.parametrize("length", [0, 1, 100, -1])
def test_a_record_cut_short_is_refused(record: RunRecord, length: int) -> None:
    with pytest.raises(ArtefactError, match="not the record of a run"):
        RunRecord.from_json(record.to_json()[:length])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"title": None}, "title"),
        ({"unheard_of": 1}, "unheard_of"),
        ({"rows": [{"name": "MACs"}]}, r"rows\.0\.unit"),
        ({"axes": [{"name": "fc", "size": 4, "kept": [1, 0]}]}, "'fc'.*ascending"),
        ({"format": 3}, "format 3.*newer"),
    ],
)
def test_a_record_with_a_wrong_field_is_refused_by_its_name(
    bare_record: RunRecord, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ArtefactError, match=message):
        RunRecord.from_json(json.dumps(json.loads(bare_record.to_json()) | change))


@pytest.mark.parametrize("text", ["[]", "3", '"record"', "null"])
def test_json_that_is_no_record_is_refused(text: str) -> None:
    with pytest.raises(ArtefactError, match="not the record of a run"):
        RunRecord.from_json(text)


@pytest.mark.parametrize(
    ("size", "kept", "scores", "message"),
    [
        (0, (), None, "at least one"),
        (4, (0, 4), None, r"0\.\.3"),
        (4, (-1,), None, r"0\.\.3"),
        (4, (2, 2), None, "ascending"),
        (4, (0,), (1.0, 2.0), "4 units and 2 scores"),
    ],
)
def test_an_axis_that_cannot_be_is_refused(size: int, kept: tuple[int, ...], scores, message: str) -> None:
    with pytest.raises(ArtefactError, match=message):
        AxisRecord("fc", size, kept, scores=scores)


def test_an_array_in_a_record_is_refused_when_it_is_written(bare_record: RunRecord) -> None:
    row = Row("accuracy", "%", np.array([1.0, 2.0]), 1.0, "higher")  # type: ignore[arg-type]

    with pytest.raises(ArtefactError, match="'resnet20' holds a value"):
        replace(bare_record, rows=(row,)).to_json()


def test_removed_and_kept_units_make_up_the_axis() -> None:
    assert AxisRecord("fc", 6, (0, 3, 4)).removed == (1, 2, 5)
