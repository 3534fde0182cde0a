"""The commands: their help, their results, and how they end."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.cli.conftest import Ended

import secateur as sc
from secateur.cli import main
from secateur.cli.app import EXAMPLE
from secateur.cli.models import load_model

Command = Callable[..., Ended]


def test_the_help_names_every_command_and_exit_code(secateur: Command) -> None:
    text = secateur("--help").out

    for word in ("demo", "inspect", "prune", "bench", "report", "7  an artefact or report is damaged"):
        assert word in text


def test_the_help_of_prune_shows_a_complete_job_as_it_is(secateur: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    lines = [line.strip() for line in secateur("prune", "--help").out.splitlines()]

    assert [line for line in EXAMPLE.splitlines() if line and line.strip() not in lines] == []


@pytest.mark.parametrize(
    "arguments", [("prunee",), ("inspect",), ("inspect", "a", "b"), ("bench", "a"), ("prune", "--seed", "3")]
)
def test_a_wrong_command_line_ends_with_2(secateur: Command, arguments: tuple[str, ...]) -> None:
    assert secateur(*arguments).code == 2


@pytest.mark.parametrize("arguments", [("prunee",), ("inspect",), ("prune", "--seed", "3")])
def test_machines_are_told_of_a_wrong_command_line_in_json(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["secateur", *arguments, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    said = json.loads(err)
    assert (ended.value.code, out, said["error"], said["exit_code"]) == (2, "", "JobError", 2)
    assert said["message"].endswith("See secateur --help")


def test_a_command_with_json_ends_with_its_own_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, code in (("net.py:build_with_inputs", None), ("net.py:nothing", 2)):
        monkeypatch.setattr(sys, "argv", ["secateur", "inspect", model, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code == code
        json.loads("".join(capsys.readouterr()))


def test_inspect_shows_axes_costs_and_what_is_frozen(folder: Path, secateur: Command) -> None:
    ended = secateur("inspect", "net.py:build_with_inputs")

    assert ended.code == 0, ended.err
    for words in (
        "Net: 1 axis with 8 units",
        "What can be pruned",
        "first",
        "What cannot be pruned",
        "the model's output",
        "net.py:",
    ):
        assert words in ended.out
    assert ended.err == ""


def test_inspect_takes_inputs_that_fit_in_no_memory(folder: Path, secateur: Command) -> None:
    ended = secateur("inspect", "net.py:Net", "--input", "1000000x1x1000x1000")

    assert ended.code == 0, ended.err
    assert "Net: 1 axis with 8 units" in ended.out


def test_inspect_gives_machines_everything(folder: Path, secateur: Command) -> None:
    found = json.loads(secateur("inspect", "net.py:Net", "--input", "1x1x6x6", "--json").out)

    [axis] = found["axes"]
    assert (axis["name"], axis["units"], axis["kind"], axis["exact"]) == ("first", 8, "residual", True)
    assert {slot["tensor"] for slot in axis["slots"]} == {
        "first.weight", "first.bias", "second.weight", "second.bias", "last.weight",
    }  # fmt: skip
    assert (
        axis["unit_cost"]["parameters"] == (9 + 1) + (8 * 9 + 7 * 9 + 1) + 3
    )  # the last unit's, with seven others there
    assert axis["cost"] == {
        **found["cost"],
        "parameters": found["cost"]["parameters"] - 3,
        "bytes": found["cost"]["bytes"] - 12,
    }
    assert all(item["reason"] for item in found["frozen"])


RESIDUAL = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.inner, self.last = nn.Linear(3, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        x = self.first(x)
        return self.last(x + self.inner(x).relu())
"""


def test_inspect_shows_what_can_be_removed_whole(folder: Path, secateur: Command) -> None:
    (folder / "residual.py").write_text(RESIDUAL)
    assert "0 inner" in secateur("inspect", "residual.py:Net", "--input", "1x3").out
    (branch,) = json.loads(secateur("inspect", "residual.py:Net", "--input", "1x3", "--json").out)["branches"]
    assert branch["cost"] == {"parameters": 72, "macs": 64, "bytes": 288}


def test_inspect_says_when_nothing_can_be_pruned(folder: Path, secateur: Command) -> None:
    (folder / "small.py").write_text("from torch import nn\ndef build(): return nn.Linear(3, 2)")

    assert "Nothing can be pruned." in secateur("inspect", "small.py:build", "--input", "1x3").out


def test_inspect_of_a_model_that_does_not_run_ends_with_3(folder: Path, secateur: Command) -> None:
    ended = secateur("inspect", "net.py:Net", "--input", "1x5x6x6")

    assert ended.code == 3
    assert "net.py:" in ended.err


def test_bench_compares_two_models(folder: Path, secateur: Command) -> None:
    ended = secateur("bench", "net.py:build_with_inputs", "net.py:build_with_inputs", "--runs", 12, "--seconds", 0)

    assert ended.code == 0, ended.err
    for words in (
        "A  Net",
        "B  Net",
        "median",
        "p99",
        "as fast as A (95 % confidence: ",
        "by 12 runs of each in turns by PyTorch eager on cpu",
    ):
        assert words in ended.out.replace("turns by \n", "turns by ")  # where the line ends


def test_bench_takes_the_folder_of_a_job_and_its_inputs(folder: Path, secateur: Command) -> None:
    assert secateur("prune", "job.toml").code == 0
    ended = secateur("bench", "net.py:build_with_inputs", "out", "--runs", 5, "--seconds", 0, "--json")

    found = json.loads(ended.out)
    dense, pruned = found["models"]
    assert pruned["name"] == "out"
    assert pruned["stored_bytes"] < dense["stored_bytes"]
    assert found["speed_up"]["low"] <= found["speed_up"]["value"] <= found["speed_up"]["high"]
    assert dense["runs"] == pruned["runs"] == 5


def test_bench_asks_how_a_folder_without_a_job_is_built(folder: Path, secateur: Command) -> None:
    subject = load_model("net.py:build_with_inputs", folder=folder)
    small = sc.compact(subject.model, sc.trace(subject.model, subject.inputs).plan({"first": range(4)}))
    sc.save(small, folder / "artefact")

    refused = secateur("bench", "net.py:build_with_inputs", "artefact")
    told = secateur("bench", "artefact", "artefact", "--model", "net.py:build_with_inputs", "--runs", 5, "--seconds", 0)

    assert refused.code == 2
    assert "give --model" in refused.err
    assert told.code == 0, told.err


def test_bench_of_a_damaged_artefact_ends_with_7(folder: Path, secateur: Command) -> None:
    secateur("prune", "job.toml")
    [weights] = (folder / "out").glob("*.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])

    ended = secateur("bench", "net.py:build_with_inputs", "out")

    assert ended.code == 7
    assert "truncated or altered" in ended.err


def test_report_draws_the_page_again(folder: Path, secateur: Command) -> None:
    secateur("prune", "job.toml")
    before = (folder / "out/report.html").read_bytes()
    (folder / "out/report.html").unlink()

    ended = secateur("report", "out")

    assert ended.code == 0, ended.err
    assert (folder / "out/report.html").read_bytes() == before
    assert ended.out.strip() == "out/report.html"


def test_report_of_no_run_ends_with_7(folder: Path, secateur: Command) -> None:
    ended = secateur("report", "nowhere")

    assert ended.code == 7
    assert "cannot read the record of a run in nowhere/report.json" in ended.err


def test_the_program_runs_as_a_module_and_keeps_its_exit_code(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "secateur", "prune", "nowhere.toml"], capture_output=True, text=True, check=False
    )

    assert done.returncode == 2
    assert done.stdout == ""
    assert (
        done.stderr == "JobError: there is no job file nowhere.toml; secateur prune --help shows what one looks like\n"
    )


def test_bench_measures_on_a_runtime(folder: Path, secateur: Command) -> None:
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: make install")
    models = "net.py:build_with_inputs", "net.py:build_with_inputs"
    quick = "--runs", 5, "--seconds", 0, "--target", "onnxruntime", "--threads", 1

    told, found = secateur("bench", *models, *quick), secateur("bench", *models, *quick, "--json")

    assert told.code == 0, told.err
    words = " ".join(told.out.split())
    assert "not measured" in words, "the runtime does not tell its memory"
    assert re.search(r"in turns by ONNX Runtime [\d.]+ on cpu, 1 thread\. Outputs are at most .* off PyTorch's", words)
    for one in json.loads(found.out)["models"]:
        assert one["target"].startswith("ONNX Runtime")
        assert one["difference"] < one["tolerance"]
        assert one["peak_memory_bytes"] is None


def test_bench_refuses_an_option_that_the_target_has_not(folder: Path, secateur: Command) -> None:
    ended = secateur("bench", "net.py:build_with_inputs", "net.py:build_with_inputs", "--precision", "bf16")

    assert ended.code == 2
    assert "target: 'eager' has no option 'precision'" in " ".join(ended.err.split())
