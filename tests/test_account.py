"""The record of a run says what it ran with, as far as that can be known."""

from importlib.metadata import PackageNotFoundError
from typing import Any

import pytest
import torch

import secateur as sc
from secateur import account
from secateur.errors import DataError
from secateur.report import render


def test_a_source_tree_that_is_not_installed_can_prune(monkeypatch: pytest.MonkeyPatch) -> None:
    """The record is written last: without a version the whole run was lost."""

    def version(package: str) -> str:
        if package == "secateur":
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(account, "version", version)
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    result = sc.prune(model, torch.zeros(1, 4), budget=sc.Budget(macs=0.5), measure=False)
    assert result.report.reproduction.versions["secateur"] == "unknown"


class Residual(torch.nn.Module):
    """Adds what a hidden layer makes of its input."""

    def __init__(self) -> None:
        super().__init__()
        self.mlp = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.mlp(x)
        return out


def test_the_report_lists_the_branches_that_a_plan_chose_among() -> None:
    def second_goes(*_: object, **__: object) -> Any:
        return lambda network, scores: network.plan({"branches": [0]})

    model = torch.nn.Sequential(Residual(), Residual())
    result = sc.prune(
        model,
        torch.zeros(1, 4),
        budget=sc.Budget(macs=0.5),
        allocation=second_goes,
        score=sc.scores.Magnitude(),
        measure=False,
    )
    first, second = result.report.branches
    assert (first.name, first.stays, second.name, second.stays) == ("0.mlp", True, "1.mlp", False)
    assert (second.parameters, second.macs) == (4 * 8 + 8 + 8 * 4 + 4, 2 * 4 * 8)
    page = render(result.report)
    assert "Which branches stay" in page
    assert "account.<wbr>py:" in page  # the line that joins it


def test_branches_that_no_plan_names_are_not_looked_for() -> None:
    model = torch.nn.Sequential(Residual(), Residual())
    result = sc.prune(model, torch.zeros(1, 4), budget=sc.Budget(macs=0.5), measure=False)
    assert result.report.branches == ()
    assert not result.network.knows_branches


@pytest.mark.parametrize("measure", [(9, 12), {"accuracy": (9, 12), "margin": 0.5}])
def test_a_measure_can_say_on_how_many_answers_it_rests(measure: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    budget = sc.Budget(macs=0.5)
    report = sc.prune(model, torch.zeros(1, 4), budget=budget, evaluate=lambda _: measure, measure=False).report
    rows = {row.name: row for row in report.rows}
    assert (rows["accuracy"].dense, rows["accuracy"].samples) == (75, 12)
    assert "accuracy on 12" in render(report)
    assert "accuracy on 12" in str(report)
    assert "margin" not in rows or rows["margin"].samples is None


@pytest.mark.parametrize("measure", ["much", (1, 0), (1, 2, 3), None])
def test_what_is_no_share_is_refused(measure: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    with pytest.raises(DataError, match=r"a number or a pair \(right, all\), or such by name"):
        sc.prune(model, torch.zeros(1, 4), budget=sc.Budget(macs=0.5), evaluate=lambda _: measure)
