"""What a person looks at after a run: the record of it, the page drawn from the record, and a table for the terminal."""

from secateur.report.comparison import Goal, LatencyRecord, Row, Times
from secateur.report.page import PAGE, RECORD, render, write
from secateur.report.record import (
    AxisRecord,
    BranchRecord,
    FrozenRecord,
    Machine,
    Proof,
    Reproduction,
    RunRecord,
    Step,
    WeightRecord,
)
from secateur.report.table import comparison_table

__all__ = [
    "PAGE",
    "RECORD",
    "AxisRecord",
    "BranchRecord",
    "FrozenRecord",
    "Goal",
    "LatencyRecord",
    "Machine",
    "Proof",
    "Reproduction",
    "Row",
    "RunRecord",
    "Step",
    "Times",
    "WeightRecord",
    "comparison_table",
    "render",
    "write",
]
