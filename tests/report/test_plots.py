"""The plots of scores and steps draw what there is, whatever it is."""

import math
import re
from typing import Any
from xml.etree import ElementTree as ET

import matplotlib as mpl
import numpy as np
import pytest

from secateur.report import AxisRecord, LatencyRecord, Step
from secateur.report.latency import distribution_plot, order_plot, outside, undrawn
from secateur.report.plots import cut, scores_plot, steps_plot
from secateur.report.svg import COLOURS

STEADY = LatencyRecord("batch of 1", (2.0, 2.1, 2.2) * 40, (1.0, 1.1, 1.2) * 40)


def test_the_cut_lies_between_what_goes_and_what_stays() -> None:
    assert cut(AxisRecord("fc", 4, (1, 3), scores=(0.1, 0.5, 0.2, 0.4))) == pytest.approx(0.3)


def test_scores_that_overlap_have_no_cut() -> None:
    assert cut(AxisRecord("fc", 4, (0, 1), scores=(0.1, 0.5, 0.2, 0.4))) is None


@pytest.mark.parametrize("kept", [(), (0, 1, 2, 3)])
def test_where_all_share_one_fate_there_is_no_cut(kept: tuple[int, ...]) -> None:
    assert cut(AxisRecord("fc", 4, kept, scores=(0.1, 0.5, 0.2, 0.4))) is None


@pytest.mark.parametrize(
    "scores",
    [
        (0.0, 0.0, 0.0, 0.0),
        (1.0, 1.0, 2.0, 2.0),
        (1e-9, 1e-3, 1.0, 1e6),
        (-3.0, -1.0, 0.0, 5.0),
        (math.nan, math.nan, 1.0, math.inf),
        (math.nan,) * 4,
        (5e-324, 1e-300, 1e300, 1.7e308),
    ],
)
def test_scores_of_any_kind_are_drawn(scores: tuple[float, ...]) -> None:
    assert parsed(scores_plot(AxisRecord("fc", 4, (2, 3), scores=scores), "scores")) is not None


def test_one_unit_is_drawn() -> None:
    assert "1 of 1 units stay" in scores_plot(AxisRecord("fc", 1, (0,), scores=(0.5,)), "scores")


@pytest.mark.parametrize("size", [2, 3, 17, 64, 999])
def test_every_unit_is_in_the_histogram(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []
    histogram = np.histogram

    def count(*arguments: Any) -> Any:
        result = histogram(*arguments)
        counted.append(int(result[0].sum()))
        return result

    monkeypatch.setattr(np, "histogram", count)
    generator = np.random.default_rng(size)
    for scores in (generator.lognormal(0, 3, size), generator.normal(0, 1, size)):
        kept = sorted(np.argsort(scores)[size // 2 :].tolist())
        scores_plot(AxisRecord("fc", size, tuple(kept), scores=tuple(scores.tolist())), "scores")
    assert counted == [size // 2, size - size // 2] * 2


def test_a_diverged_metric_is_said_not_drawn() -> None:
    steps = (Step("dense", {"loss": 1.0}), Step("pruned", {"loss": math.nan}), Step("refit", {"loss": math.inf}))
    svg = steps_plot("loss", "", steps, "steps")

    assert "not a number" in svg
    assert "\N{INFINITY}" in svg
    assert parsed(svg) is not None


def test_a_step_is_named_with_its_value() -> None:
    svg = steps_plot("accuracy", "%", (Step("dense", {"accuracy": 92.58}), Step("x$_1$", {"accuracy": 61.9})), "steps")

    assert texts(svg) >= {"dense", "x$_1$", "92.58 %", "61.90 %"}


def test_of_very_many_steps_every_so_many_are_named() -> None:
    steps = tuple(Step(f"epoch {n}", {"loss": 1 / (n + 1)}) for n in range(500))
    svg = steps_plot("loss", "", steps, "steps")

    assert 10 < sum(text.startswith("epoch") for text in texts(svg)) <= 24


def test_steady_times_are_drawn_whole() -> None:
    assert outside(STEADY) == 0
    assert not undrawn(STEADY)
    assert {"dense", "pruned"} <= texts(order_plot(STEADY, "order"))
    assert "median 2.10 ms" in distribution_plot(STEADY, "distribution")


def test_stragglers_are_counted() -> None:
    assert outside(LatencyRecord("batch of 1", (*STEADY.dense * 10, 90.0, 95.0), STEADY.pruned)) == 2


def test_thousands_of_samples_are_thinned_and_that_is_said() -> None:
    many = LatencyRecord("batch of 1", STEADY.dense * 100, STEADY.pruned)

    assert undrawn(many)
    assert len(order_plot(many, "order")) < 100_000
    assert len(distribution_plot(many, "distribution")) < 60_000


@pytest.mark.parametrize("times", [(1.0,), (0.0,), (2.0, 2.0)])
def test_few_equal_times_are_drawn(times: tuple[float, ...]) -> None:
    for plot in (order_plot, distribution_plot):
        assert parsed(plot(LatencyRecord("batch of 1", times, times), "latency")) is not None


def test_pictures_take_their_colours_from_the_page() -> None:
    svg = distribution_plot(STEADY, "distribution")

    assert "var(--kept)" in svg
    assert not set(COLOURS.values()) & set(re.findall(r"#[0-9a-f]{6}", svg))


def test_ids_start_with_the_name_of_the_picture() -> None:
    svg = distribution_plot(STEADY, "distribution")

    assert all(name.startswith("distribution-") for name in re.findall(r'\bid="([^"]*)"', svg))
    assert set(re.findall(r"url\(#([^)]*)\)", svg)) <= set(re.findall(r'\bid="([^"]*)"', svg))


def test_the_users_settings_of_matplotlib_change_nothing_and_stay() -> None:
    before = order_plot(STEADY, "order")
    with mpl.rc_context({"font.size": 40, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert order_plot(STEADY, "order") == before
        assert mpl.rcParams["font.size"] == 40


def parsed(svg: str) -> ET.Element:
    return ET.fromstring(re.sub(r"\bxlink:", "", svg))


def texts(svg: str) -> set[str]:
    return {"".join(element.itertext()) for element in parsed(svg).iter() if element.tag.endswith("text")}
