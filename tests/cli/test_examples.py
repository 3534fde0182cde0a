"""The examples in the repository: they can be read, and they do what they say."""

import json
import re
from collections.abc import Callable
from importlib.resources import files
from pathlib import Path

import pytest
from tests.cli.conftest import Ended

from secateur.cli.job import parse_job, read_job

EXAMPLES = Path(__file__).parents[2] / "examples"


def test_the_example_of_mnist_is_the_job_of_the_demonstration() -> None:
    demonstration = parse_job(files("secateur.demo").joinpath("job.toml").read_text(), "job.toml")
    example = read_job(EXAMPLES / "mnist.toml").job

    paths = {"weights", "output"}
    assert example.model_dump(exclude=paths) == demonstration.model_dump(exclude=paths)


def test_the_jobs_of_the_page_run(
    tmp_path: Path, secateur: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (EXAMPLES.parent / "docs/howto/jobs.md").read_text()
    monkeypatch.chdir(tmp_path)
    code, *_ = re.findall(r"```python\n(# my_model.py\n.*?)```", page, re.DOTALL)
    jobs = re.findall(r'```toml\n(model = "my_model.py:build"\n.*?)```', page, re.DOTALL)
    Path("my_model.py").write_text(code)
    for job in jobs:
        Path("job.toml").write_text(f"measure = false\n{job}")
        ended = secateur("prune", "job.toml")
        assert ended.code == 0, ended.err
    assert len(jobs) == 2


@pytest.mark.slow
def test_a_model_of_ones_own_is_pruned_as_the_example_says(tmp_path: Path, secateur: Callable[..., Ended]) -> None:
    text = (EXAMPLES / "own_model.toml").read_text()
    (tmp_path / "own_model.toml").write_text(
        re.sub("^output.*$", 'output = "out"\nmeasure = false', text, flags=re.MULTILINE)
    )
    (tmp_path / "own_model.py").write_text((EXAMPLES / "own_model.py").read_text())

    ended = secateur("prune", tmp_path / "own_model.toml", "--json")

    assert ended.code == 0, ended.err
    rows = {row["name"]: row for row in json.loads(ended.out)["comparison"]}
    assert rows["MACs"]["change"] <= 0.5
    assert rows["accuracy"]["dense"] > 93
    assert rows["accuracy"]["change"] > -5
