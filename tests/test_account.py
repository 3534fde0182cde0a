"""The record of a run says what it ran with, as far as that can be known."""

from importlib.metadata import PackageNotFoundError

import pytest
import torch

import secateur as sc
from secateur import account


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
