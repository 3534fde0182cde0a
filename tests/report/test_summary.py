"""The sentences say what was recorded, and no more."""

from dataclasses import replace

from secateur.report import AxisRecord, Goal, Proof, Row, RunRecord
from secateur.report.summary import goals_met, proofs_hold, summary


def test_the_summary_names_sizes_metrics_and_units(record: RunRecord) -> None:
    text = " ".join(summary(record))

    assert "52 % of the parameters, 50 % of the MACs" in text
    assert "Accuracy goes from 92.58 % to 91.34 % (-1.24 points)." in text
    assert "141 of 448 units (31 %) go, from all 12 axes." in text
    assert "memory" not in text, "it was not measured on both"


def test_without_data_there_is_no_sentence(bare_record: RunRecord) -> None:
    assert summary(bare_record) == ()


def test_a_network_that_lost_nothing_is_said_to_be_whole(bare_record: RunRecord) -> None:
    whole = replace(
        bare_record,
        rows=(Row("accuracy", "%", 90.0, 90.0, "higher", "difference"),),
        axes=(AxisRecord("fc", 4, (0, 1, 2, 3)),),
    )

    assert summary(whole) == ("Accuracy stays at 90.00 %.", "All 4 units of 1 axis stay.")


def test_one_axis_among_others_is_counted() -> None:
    axes = (AxisRecord("a", 4, (0, 1)), AxisRecord("b", 4, (0, 1, 2, 3)))

    assert summary(RunRecord("run", "model", "", axes=axes)) == ("2 of 8 units (25 %) go, from 1 of 2 axes.",)


def test_a_missed_goal_and_a_failed_proof_are_never_called_good() -> None:
    assert goals_met((Goal("MACs", "", 1.0, 0.5), Goal("drop", "", 1.0, 2.0))) == (False, "1 of 2 goals missed")
    assert proofs_hold((Proof("shape", 1, 0, False),)) == (False, "1 of 1 proof failed")


def test_goals_that_were_not_measured_are_not_counted_as_met() -> None:
    assert goals_met((Goal("MACs", "", 1.0, None),)) is None
    assert goals_met((Goal("MACs", "", 1.0, 0.5), Goal("drop", "", 1.0, None))) == (
        True,
        "goal met, 1 not measured",
    )


def test_goals_and_proofs_that_hold_are_counted() -> None:
    assert proofs_hold(()) is None
    assert goals_met((Goal("MACs", "", 1.0, 0.5),) * 2) == (True, "both goals met")
    assert proofs_hold((Proof("shape", 0, 0, True),) * 3) == (True, "all 3 proofs held")


def test_a_change_within_the_spread_is_not_claimed() -> None:
    rows = (Row("median latency", "ms", 4.0, 2.0, "lower", spread=(1.5, 1.0)),)

    assert summary(RunRecord("run", "model", "", rows=rows)) == ()


def test_one_latency_is_enough_for_a_sentence() -> None:
    rows = (Row("median latency", "ms", 4.0, 2.0, "lower"), Row("p99 latency", "ms", 8.0, 4.0, "lower"))

    assert summary(RunRecord("run", "model", "", rows=rows)) == (
        "The pruned network has 50 % of the median latency of the dense one.",
    )
