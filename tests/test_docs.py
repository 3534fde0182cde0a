"""The code in README.md and docs/ runs, and prints what the pages say that it prints.

A `text` block right behind a `python` block is its output: `...` stands for anything, and numbers with a decimal point may
be off by a twentieth, because kernels round differently from processor to processor.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from secateur.cli.job import parse_job

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"

PYTHON = re.compile(r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL)
TOML = re.compile(r"^```toml\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
INCLUDED = "--8<--"
NUMBER = re.compile(r"\d+\.\d+")


class MyModel(nn.Module):
    """What the how-to pages call the reader's model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 16)
        self.norm = nn.BatchNorm1d(16)
        self.hidden = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.norm(self.embed(x))))))


def whatever_a_reader_has() -> dict[str, Any]:
    """The names that the pages use without a word: those of the reader's own model and data."""
    torch.manual_seed(0)
    batches = [(torch.randn(16, 6), torch.randint(4, (16,))) for _ in range(4)]

    def accuracy(model: nn.Module) -> float:
        return torch.cat([(model(x).argmax(1) == y).float() for x, y in batches]).mean().item()

    return {
        "model": MyModel().eval(), "MyModel": MyModel, "example_inputs": torch.zeros(2, 6),
        "train_batches": batches, "accuracy": accuracy,
    }  # fmt: skip


def pages_with(pattern: re.Pattern[str]) -> list[Any]:
    found = [page for page in PAGES if any(INCLUDED not in match[1] for match in pattern.finditer(page.read_text()))]
    slow = {TUTORIAL: pytest.mark.slow}  # it trains a model
    return [pytest.param(p, id=str(p.relative_to(ROOT)), marks=slow.get(p, ())) for p in found]


@pytest.mark.parametrize("page", pages_with(PYTHON))
def test_the_python_of_a_page_runs_and_prints_what_the_page_says(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(ROOT / "examples"), *sys.path])
    names = {"__name__": "page"} if page == TUTORIAL else whatever_a_reader_has()

    for match in PYTHON.finditer(page.read_text(encoding="utf-8")):
        code, said = match[1], match[2]
        if INCLUDED in code:
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"{page.name}: {code[:40]!r}", "exec"), names)
        if said is not None:
            assert agree(said, printed.getvalue()), f"the page says\n{said}\nand the code prints\n{printed.getvalue()}"


@pytest.mark.parametrize("page", pages_with(TOML))
def test_the_jobs_of_a_page_are_jobs(page: Path) -> None:
    for match in TOML.finditer(page.read_text(encoding="utf-8")):
        if INCLUDED not in match[1]:
            parse_job(match[1], page.name)


def agree(said: str, printed: str) -> bool:
    """Whether the words are the same, and the numbers nearly."""
    words = re.escape(NUMBER.sub("\0", " ".join(said.split())))
    words = words.replace(re.escape("..."), ".*").replace(re.escape("\0"), f"({NUMBER.pattern})")
    found = re.fullmatch(words, " ".join(printed.split()))
    expected = [float(number) for number in NUMBER.findall(said)]
    return found is not None and [float(number) for number in found.groups()] == pytest.approx(expected, rel=0.05)


def test_outputs_agree_in_words_and_nearly_in_numbers() -> None:
    assert agree("2 axes, 96.7 % ...\n", "2 axes,  96.9 % of them\n")
    assert not agree("2 axes, 96.7 %", "3 axes, 96.7 %")
    assert not agree("2 axes, 96.7 %", "2 axes, 80.1 %")
