"""The Python on the pages of the documentation runs, and prints what the pages say.

A page's ```python blocks run in order in one namespace, as if they stood in one file. A ```text block that comes next after
one of them is what it prints; `...` stands for what varies. The README's blocks are about a model and data of the reader's own.
"""

import doctest
import re
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import nn

ROOT = Path(__file__).parent.parent
WRITTEN_ELSEWHERE = ("reference", "decisions")
PAGES = [
    ROOT / "README.md",
    *(page for page in sorted((ROOT / "docs").rglob("*.md")) if page.parent.name not in WRITTEN_ELSEWHERE),
]

FENCED = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
VARIES = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


class MyModel(nn.Module):
    """What the README calls the reader's model."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.hidden, self.head = nn.Linear(16, 32), nn.Linear(32, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.hidden(torch.relu(self.norm(self.embed(x))))))
        return out


def what_a_reader_has() -> dict[str, Any]:
    """The names that the README uses without a word."""
    torch.manual_seed(0)
    batches = [(torch.randn(16, 6), torch.randint(4, (16,))) for _ in range(4)]

    def accuracy(model: nn.Module) -> float:
        return torch.cat([(model(x).argmax(1) == y).float() for x, y in batches]).mean().item()

    return {
        "MyModel": MyModel,
        "model": MyModel().eval(),
        "example_inputs": torch.zeros(2, 6),
        "train_batches": batches,
        "accuracy": accuracy,
    }


class Block(NamedTuple):
    """Some Python, the line of the page's Python that it begins at, from 0, and what it shall print, or None."""

    code: str
    line: int
    printed: str | None


@pytest.mark.parametrize(
    "page", [page for page in PAGES if "```python" in page.read_text()], ids=lambda page: page.name
)
def test_a_page_runs_and_prints_what_it_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page.stem == "transformers":
        pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    if page.stem == "targets":
        for package in ("onnxruntime", "onnxscript", "openvino"):
            pytest.importorskip(package, reason=f"{package} is not installed: make install")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": page.stem} if page.name != "README.md" else what_a_reader_has()

    for block in blocks_of(page.read_text()):
        printed = run(block, f"{page.stem}.py", namespace)

        if block.printed is not None:
            assert says(block.printed, printed), f"the page says:\n{block.printed}\nbut it prints:\n{printed}"


def test_a_block_that_prints_something_else_is_noticed() -> None:
    (block,) = blocks_of("```python\nprint(1 + 1)\n```\n\nprints\n\n```text\n3\n```\n")

    assert block.printed == "3\n"
    assert not says(block.printed, run(block, "page.py", {}))


def test_what_varies_may_be_left_out() -> None:
    assert says("accuracy  ... %\n", "accuracy   97.1 %\n")
    assert not says("accuracy  ... %\n", "loss   97.1 %\n")


def blocks_of(text: str) -> list[Block]:
    blocks: list[Block] = []
    line, before = 0, ""
    for language, content in FENCED.findall(text):
        if language == "python":
            blocks.append(Block(content, line, None))
            line += content.count("\n")
        elif language == "text" and before == "python":
            blocks[-1] = blocks[-1]._replace(printed=content)
        before = language
    return blocks


def run(block: Block, file: str, namespace: dict[str, Any]) -> str:
    """What a block prints."""
    with redirect_stdout(StringIO()) as output:
        exec(compile("\n" * block.line + block.code, file, "exec"), namespace)
    return output.getvalue()


def says(page: str, printed: str) -> bool:
    return doctest.OutputChecker().check_output(page, printed, VARIES)
