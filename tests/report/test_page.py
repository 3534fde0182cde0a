"""The page holds everything that was recorded, nothing that was not, and needs nothing but itself."""

import os
import stat
from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from functools import cached_property
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from secateur.errors import ArtefactError
from secateur.report import AxisRecord, FrozenRecord, RunRecord, render, write
from secateur.report.view import MOST_SCORE_PLOTS

SECTIONS = ("goals", "comparison", "units", "scores", "steps", "latency", "proofs", "frozen", "reproduce", "notes")
HOSTILE = "<script>alert(1)</script>\"'><img src=https://example.org/x onerror=alert(2)>&amp;{{ 7 * 7 }}$\\frac"


class Page(HTMLParser):
    """What a page holds: its elements with their attributes, and its text with that of labels."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        self.words += [str(value) for name, value in attrs if name == "aria-label"]
        self.words += [] if tag == "wbr" else [" "]

    def handle_data(self, data: str) -> None:
        if self.elements and self.elements[-1][0] != "style":
            self.words.append(data)

    @cached_property
    def tags(self) -> set[str]:
        return {tag for tag, _ in self.elements}

    @cached_property
    def ids(self) -> list[str]:
        return [attributes["id"] or "" for _, attributes in self.elements if "id" in attributes]

    @cached_property
    def text(self) -> str:
        return " ".join("".join(self.words).replace("\N{NO-BREAK SPACE}", " ").split())


@pytest.fixture(scope="module")
def light(record: RunRecord) -> RunRecord:
    """Every section has something, and no more than that."""
    return replace(record, axes=record.axes[:2], steps=tuple(replace(s, metrics={"loss": 1.0}) for s in record.steps))


@pytest.fixture(scope="module")
def large_text(large_record: RunRecord) -> str:
    return render(large_record)


@pytest.fixture(scope="module")
def text(record: RunRecord) -> str:
    return render(record)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_section_with_data_is_there_and_can_be_reached(page: Page) -> None:
    links = [attributes["href"] for tag, attributes in page.elements if tag == "a"]

    assert set(SECTIONS) <= set(page.ids)
    assert set(links) == {f"#{section}" for section in SECTIONS}


def test_a_section_without_data_is_left_out(bare_record: RunRecord) -> None:
    page = Page(render(bare_record))

    assert not set(SECTIONS) & set(page.ids)
    assert not {"h2", "table", "nav"} & page.tags
    assert "A bare run" in page.text


@pytest.mark.parametrize(
    ("field", "section"),
    [
        ("rows", "comparison"),
        ("goals", "goals"),
        ("steps", "steps"),
        ("latency", "latency"),
        ("proofs", "proofs"),
        ("frozen", "frozen"),
        ("notes", "notes"),
    ],
)
def test_a_part_that_is_missing_takes_its_section_and_no_other(light: RunRecord, field: str, section: str) -> None:
    page = Page(render(replace(light, **{field: ()})))

    assert set(SECTIONS) - set(page.ids) == {section}


def test_each_axis_has_a_row_with_its_counts(page: Page, record: RunRecord) -> None:
    for axis in record.axes:
        assert f"{axis.name}: {len(axis.kept)} of {axis.size} units stay" in page.text


def test_four_hundred_axes_are_all_there_in_a_page_that_stays_small(large_record: RunRecord, large_text: str) -> None:
    page = Page(large_text)

    for axis in large_record.axes:
        assert f"{axis.name}: {len(axis.kept)} of {axis.size} units stay" in page.text
    assert len(large_text) < 2_000_000
    assert f"{400 - MOST_SCORE_PLOTS} further axes have scores and are not shown here" in page.text
    assert "each cell stands for several" in page.text


def test_each_frozen_reason_has_its_lines_and_tensors(page: Page, record: RunRecord) -> None:
    for frozen in record.frozen:
        assert frozen.reason in page.text
        assert frozen.where in page.text
        assert all(tensor in page.text for tensor in frozen.tensors)


def test_a_reason_is_headed_once_with_all_of_its_positions(bare_record: RunRecord) -> None:
    frozen = (FrozenRecord("a", "x.py:1", ("w",), 2), FrozenRecord("b", "", ("v",), 9), FrozenRecord("a", "", (), 5))
    page = Page(render(replace(bare_record, frozen=frozen)))

    assert [tag for tag, attributes in page.elements if attributes.get("scope") == "rowgroup"] == ["th", "th"]
    assert "b 9" in page.text
    assert "a 7" in page.text


def test_a_failed_proof_and_a_missed_goal_stand_in_the_head(light: RunRecord) -> None:
    failed = tuple(replace(proof, passed=False, value=0.5) for proof in light.proofs)
    text = Page(render(replace(light, proofs=failed))).text

    assert "1 of 2 goals missed" in text
    assert "3 of 3 proofs failed" in text


def test_units_that_go_are_listed_by_number(bare_record: RunRecord) -> None:
    axis = AxisRecord("fc", 8, (0, 4, 7), slots=("fc.weight:0",))
    text = Page(render(replace(bare_record, axes=(axis,)))).text

    assert "1-3, 5, 6" in text
    assert "fc.weight:0" in text


def test_without_scores_no_histogram_and_without_costs_no_column(bare_record: RunRecord) -> None:
    page = Page(render(replace(bare_record, axes=(AxisRecord("fc", 8, (0,)),))))

    assert "scores" not in page.ids
    assert "MACs" not in page.text


def test_the_way_to_reproduce_it_is_there(page: Page, record: RunRecord) -> None:
    how = record.reproduction

    for part in (how.command, "accuracy_drop: 1.0", "torch 2.13.0", "Intel Xeon E-2388G, 2 threads", "Seed 7"):
        assert part in page.text


def test_the_page_loads_nothing(text: str, large_text: str) -> None:
    for each in (text, large_text):
        page = Page(each)
        assert "http://" not in each
        assert "https://" not in each
        assert "@import" not in each
        assert not {"script", "iframe", "img", "object", "embed", "base", "form"} & page.tags
        for _, attributes in page.elements:
            for name in ("src", "href", "xlink:href", "action", "data"):
                assert (attributes.get(name) or "#").startswith(("#", "data:,"))


def test_a_policy_in_the_page_forbids_to_load_or_to_run_anything(page: Page) -> None:
    policies = [a["content"] for _, a in page.elements if a.get("http-equiv") == "Content-Security-Policy"]

    assert policies == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]


def test_no_text_of_the_user_becomes_markup(record: RunRecord, page: Page) -> None:
    """Every string of the record is hostile, each in its own way; the page has the elements that it always has."""
    hostile = hostile_copy(record)
    text = render(hostile)
    attacked = Page(text)

    assert attacked.tags == page.tags
    assert not any(name.startswith("on") for _, attributes in attacked.elements for name in attributes)
    assert not any((a.get("href") or "#")[:1] not in "#d" for _, a in attacked.elements)
    assert "<script" not in text
    plain = attacked.text
    assert plain.count(HOSTILE) > 100
    assert "49" not in plain.replace("149", "").split(HOSTILE)[1]


def test_ids_are_unique_and_labels_point_to_them(page: Page) -> None:
    assert len(page.ids) == len(set(page.ids))
    for _, attributes in page.elements:
        if "aria-labelledby" in attributes:
            assert attributes["aria-labelledby"] in page.ids


def test_pictures_and_tables_can_be_read_aloud(page: Page) -> None:
    assert ("html", {"lang": "en"}) in page.elements
    for tag, attributes in page.elements:
        if tag == "svg":
            assert attributes["role"] == "img"
            assert attributes["aria-label"]
        if tag == "th":
            assert attributes["scope"] in ("col", "row", "rowgroup")
    assert [tag for tag, _ in page.elements].count("h1") == 1


def test_the_same_record_gives_the_same_bytes(record: RunRecord, text: str) -> None:
    assert render(RunRecord.from_json(record.to_json())) == text


def test_the_page_and_its_record_are_written_side_by_side(light: RunRecord, tmp_path: Path) -> None:
    path = write(light, tmp_path / "runs" / "one")

    assert path.read_text(encoding="utf-8") == render(light)
    assert RunRecord.read(path.with_name("report.json")) == light
    assert sorted(file.name for file in path.parent.iterdir()) == ["report.html", "report.json"]


def test_a_written_page_has_the_permissions_of_any_new_file(bare_record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "other").touch()

    assert stat.S_IMODE(write(bare_record, tmp_path).stat().st_mode) == stat.S_IMODE(
        (tmp_path / "other").stat().st_mode
    )


def test_a_full_disk_leaves_the_old_page_and_nothing_else(
    bare_record: RunRecord, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(bare_record, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def fail(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ArtefactError, match=r"cannot write the report into .*No space left.*make room"):
        write(replace(bare_record, title="Another run"), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_a_folder_may_be_given_as_text(bare_record: RunRecord, tmp_path: Path) -> None:
    assert write(bare_record, str(tmp_path / "run")) == tmp_path / "run" / "report.html"


def test_a_folder_that_is_a_file_is_named(bare_record: RunRecord, tmp_path: Path) -> None:
    (tmp_path / "report").touch()

    with pytest.raises(ArtefactError, match="cannot write the report into"):
        write(bare_record, tmp_path / "report")


def hostile_copy(record: RunRecord) -> RunRecord:
    """The record with hostile text behind every string, but for the words that stand for a choice."""
    copied = with_strings(record, lambda text: f"{text}{HOSTILE}")
    assert isinstance(copied, RunRecord)
    return copied


def with_strings(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, tuple):
        return tuple(with_strings(item, change) for item in value)
    if isinstance(value, dict):
        return {with_strings(key, change): with_strings(item, change) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: getattr(value, field.name) for field in fields(value)}
        return replace(
            value, **{k: v if k in ("better", "compare") else with_strings(v, change) for k, v in named.items()}
        )
    return value


def test_a_line_of_source_is_named_by_the_end_of_its_path(bare_record: RunRecord) -> None:
    places = ("/home/somebody/project/net/model.py:41 in stage1.0", "model.py:7 in head")
    frozen = tuple(FrozenRecord("a window", where, ("weight",), 6) for where in places)

    page = render(replace(bare_record, frozen=frozen)).replace("<wbr>", "")

    assert f'<span title="{places[0]}">\N{HORIZONTAL ELLIPSIS}/net/model.py:41 in stage1.0</span>' in page
    assert "<code>model.py:7 in head</code>" in page
