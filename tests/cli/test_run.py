"""Jobs, run through the command line: what is written, what is printed, and how every fault ends."""

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from tests.cli.conftest import JOB, Ended

import secateur as sc
from secateur.cli.models import load_model
from secateur.report import RunRecord

Command = Callable[..., Ended]


def change(folder: Path, old: str, new: str) -> None:
    text = (folder / "job.toml").read_text()
    assert old in text
    (folder / "job.toml").write_text(text.replace(old, new))


def test_a_job_writes_model_report_record_and_itself(folder: Path, secateur: Command) -> None:
    ended = secateur("prune", "job.toml")

    assert ended.code == 0, ended.err
    written = {path.name for path in (folder / "out").iterdir()}
    assert {"job.toml", "report.html", "report.json"} < written
    assert any(name.endswith(".safetensors") for name in written)
    assert RunRecord.read(folder / "out/report.json").reproduction.job == (folder / "job.toml").read_text()


def test_the_artefact_is_what_the_library_gives(folder: Path, secateur: Command) -> None:
    """The command line does nothing of its own: the same call of `prune` gives the same bits."""
    secateur("prune", "job.toml")
    torch.manual_seed(0)
    subject = load_model("net.py:build_with_inputs", folder=folder)
    import net

    result = sc.prune(
        subject.model, subject.inputs, budget=sc.Budget(macs=0.5), data=net.batches()["train"], measure=False
    )
    again = sc.load(net.Net(), folder / "out")

    expected, found = result.model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


LITERAL = """
import torch
from torch import nn


class Literal(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Conv2d(1, 8, 3, padding=1), nn.Linear(8 * 36, 3)

    def forward(self, x):
        return self.last(self.first(x).relu().view(-1, 8 * 36))


def build():
    return Literal(), torch.zeros(1, 1, 6, 6)
"""


def test_code_whose_sizes_cannot_follow_prunes_in_graph_form(folder: Path, secateur: Command) -> None:
    (folder / "literal.py").write_text(LITERAL)
    change(folder, "net.py:build_with_inputs", "literal.py:build")
    refused = secateur("prune", "job.toml")
    assert refused.code == 4
    assert "form='graph'" in " ".join(refused.err.split())
    assert "1 axis with 8 units" in secateur("inspect", "literal.py:build", "--form", "graph").out

    change(folder, "measure = false", 'measure = false\nform = "graph"\nexport = true')
    ended = secateur("prune", "job.toml")

    assert ended.code == 0, ended.err
    subject = load_model("literal.py:build", folder=folder)
    images = torch.randn(5, 1, 6, 6)
    small = sc.load(subject.model, folder / "out", subject.inputs).eval()
    assert small.get_parameter("first.weight").shape == (4, 1, 3, 3)
    torch.testing.assert_close(torch.export.load(folder / "out/model.pt2").module()(images), small(images))

    change(folder, "export = true", "export = false")
    assert secateur("prune", "job.toml").code == 0
    assert not (folder / "out/model.pt2").exists(), "the program of an earlier run is not this model"


def test_the_last_lines_are_the_table(folder: Path, secateur: Command) -> None:
    lines = secateur("prune", "job.toml").out.splitlines()

    heading = next(i for i, line in enumerate(lines) if line.split() == ["dense", "pruned", "change"])
    names = [line.split("  ")[0] for line in lines[heading + 2 :]]
    assert names == ["accuracy on 40", "parameters", "MACs", "bytes of weights"]
    assert "%" in lines[heading + 2]


def test_json_is_the_whole_of_stdout(folder: Path, secateur: Command) -> None:
    ended = secateur("prune", "job.toml", "--json")

    result = json.loads(ended.out)
    assert ended.err == ""
    assert result["output"].endswith("out")
    assert Path(result["report"]).is_file()
    macs = next(row for row in result["comparison"] if row["name"] == "MACs")
    assert macs["change"] == macs["pruned"] / macs["dense"] <= 0.5
    assert all(goal["met"] for goal in result["goals"])
    assert all(proof["passed"] for proof in result["proofs"])
    assert result["steps"][0]["name"] == "dense"


def test_the_copy_of_the_job_gives_the_same_bits_again(folder: Path, secateur: Command) -> None:
    secateur("prune", "job.toml")
    first = {path.name: path.read_bytes() for path in (folder / "out").glob("*.safetensors")}

    ended = secateur("prune", "out/job.toml")

    assert ended.code == 0, ended.err
    assert {path.name: path.read_bytes() for path in (folder / "out").glob("*.safetensors")} == first


def test_recovery_with_distillation_is_a_step(folder: Path, secateur: Command) -> None:
    (folder / "job.toml").write_text(JOB + "\n[recovery]\nepochs = 2\ndistillation = true\n")

    result = json.loads(secateur("prune", "job.toml", "--json").out)

    assert result["steps"][-1]["name"] == "recovered"


def test_training_of_ones_own_is_a_recovery(folder: Path, secateur: Command) -> None:
    (folder / "training.py").write_text(
        "from pathlib import Path\ndef train(model, data):\n    Path('trained').write_text(str(len(list(data))))"
    )
    (folder / "job.toml").write_text(JOB + '\n[recovery]\nfunction = "training.py:train"\n')

    assert secateur("prune", "job.toml").code == 0
    assert (folder / "trained").read_text() == "4"


def test_compensation_is_chosen_by_name_or_left_out(folder: Path, secateur: Command) -> None:
    steps = {}
    for names in ("[]", '["fold-mean"]'):
        (folder / "job.toml").write_text(f"compensation = {names}\n" + JOB)
        steps[names] = [step["name"] for step in json.loads(secateur("prune", "job.toml", "--json").out)["steps"]]

    assert steps == {"[]": ["dense", "pruned"], '["fold-mean"]': ["dense", "pruned", sc.compensation.FoldMean().name]}


SPARSIFY = """
[sparsify]
sparsity = 0.5
score = "magnitude"
solver = "keep"
exclude = ["last"]
"""


def test_units_go_and_then_weights(folder: Path, secateur: Command) -> None:
    """The same call of `prune` gives the same bits, and what is trained keeps its zeros."""
    (folder / "job.toml").write_text(JOB + SPARSIFY)
    ended = secateur("prune", "job.toml", "--json")
    assert ended.code == 0, ended.err
    torch.manual_seed(0)
    subject = load_model("net.py:build_with_inputs", folder=folder)
    import net

    sparsify = partial(sc.sparsify, sparsity=0.5, score=sc.scores.Magnitude(), solver=sc.solvers.keep, exclude=["last"])
    result = sc.prune(
        subject.model, subject.inputs, budget=sc.Budget(macs=0.5), data=net.batches()["train"], sparsify=sparsify,
        measure=False,
    )  # fmt: skip
    again = sc.load(net.Net(), folder / "out")
    expected, found = result.model.state_dict(), again.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)

    (folder / "job.toml").write_text(JOB + SPARSIFY + "[recovery]\nepochs = 2\n")
    told = json.loads(secateur("prune", "job.toml", "--json").out)
    rows = {row["name"]: row for row in told["comparison"]}
    assert [step["name"] for step in told["steps"]] == ["dense", "pruned", "refit", "sparse", "recovered"]
    assert rows["nonzero weights"]["pruned"] == result.weights.total - result.weights.zeros
    assert rows["bytes as secateur.save stores them"]["pruned"] < rows["bytes of weights"]["pruned"]
    trained = sc.load(net.Net(), folder / "out")
    assert not torch.equal(trained.get_parameter("second.weight"), again.get_parameter("second.weight"))
    assert all(not parameter[~stays].any() for parameter, stays in result.weights.of(trained))
    assert [weight.name for weight in RunRecord.read(folder / "out/report.json").weights] == list(result.weights.stays)
    assert "Which weights are sparse" in (folder / "out/report.html").read_text()


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("sparsity = 0.5", "sparsity = 1.5", 4, "at least 0 and below 1"),
        ("sparsity = 0.5", "", 4, "needs a sparsity"),
        ('"last"', '"lsat"', 2, "'lsat' names no parameter or module"),
        ('"keep"', '"kepe"', 2, "solver: there is no 'kepe'"),
        ("sparsity = 0.5", 'pattern = "5:4"', 2, "at least 1 stays"),
        ('data = "net.py:batches"\nevaluate = "accuracy"', "", 6, "sparsify= needs data="),
    ],
)
def test_faults_of_sparse_weights_have_their_codes_too(
    folder: Path, secateur: Command, old: str, new: str, code: int, message: str
) -> None:
    (folder / "job.toml").write_text(JOB + SPARSIFY)
    change(folder, old, new)
    ended = secateur("prune", "job.toml")
    assert (ended.code, message in ended.err) == (code, True), ended.err


def test_an_evaluation_of_ones_own_is_reported(folder: Path, secateur: Command) -> None:
    change(folder, 'evaluate = "accuracy"', 'evaluate = "net.py:quality"')

    result = json.loads(secateur("prune", "job.toml", "--json").out)

    assert result["comparison"][0]["name"] == "margin"
    assert result["comparison"][0]["dense"] == 50


@pytest.mark.parametrize(
    "score",
    [
        'name = "t-test"',
        'name = "f-test"\nsamples = 32',
        'name = "fluctuation"\notherwise = "random"',
        'name = "activation-rate"',
        'name = "geometric-median"',
        'name = "normalised"\nscore = {name = "taylor", signed = true}',
    ],
)
def test_a_job_names_its_score(folder: Path, secateur: Command, score: str) -> None:
    (folder / "job.toml").write_text(f"{JOB}[score]\n{score}")

    ended = secateur("prune", "job.toml")

    assert ended.code == 0, ended.err
    assert (folder / "out/report.json").exists()


def test_a_job_leaves_it_to_a_test_how_much_goes(folder: Path, secateur: Command) -> None:
    change(folder, "macs = 0.5", "macs = 1.0")
    text = (folder / "job.toml").read_text()
    (folder / "job.toml").write_text(
        f'{text}[score]\nname = "t-test"\n[allocation]\nname = "insignificant"\nrate = 1e-300'
    )

    ended = secateur("prune", "job.toml")

    assert ended.code == 0, ended.err
    assert all(len(axis.kept) == 1 for axis in RunRecord.read(folder / "out/report.json").axes)


def test_options_of_the_choices_are_followed(folder: Path, secateur: Command) -> None:
    (folder / "job.toml").write_text(
        'multiple_of = 4\nexclude = ["second"]\n' + JOB + '[score]\nname = "magnitude"\n[allocation]\nname = "uniform"'
    )

    ended = secateur("prune", "job.toml")

    # The residual stream is the only axis, and the excluded module is on it: nothing is left to prune.
    assert ended.code == 4
    assert "multiple_of=4, 1 of 1 axes excluded" in ended.err


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("macs = 0.5", "macs = 0.0001", 4, "BudgetError: "),
        ("macs = 0.5", "macs = 50", 2, "job.toml: budget.macs = 50: it is a share"),
        ("macs = 0.5", "", 2, "budget = {}: it limits nothing"),
        ("macs = 0.5", "mac = 0.5", 2, "did you mean 'macs'?"),
        ("output =", 'exclude = ["nothing_like_it*"]\noutput =', 2, "nothing_like_it"),
        ("net.py:batches", "net.py:batchs", 2, "did you mean 'batches'?"),
        ("net.py:batches", "mnist", 2, "data: there is no 'mnist'; did you mean 'mnist-5k'?"),
        ("net.py:batches", "net.py:train_batches", 2, "needs data to evaluate on"),
        (
            'evaluate = "accuracy"',
            'evaluate = "acuracy"',
            2,
            "evaluate: there is no 'acuracy'; did you mean 'accuracy'?",
        ),
        ('evaluate = "accuracy"', 'evaluate = "net.py:batches"', 3, "evaluate 'net.py:batches' fails: TypeError"),
        ("build_with_inputs", "build", 2, "says nothing of its inputs"),
        ("output =", 'inputs = ["1x7x6x6"]\noutput =', 3, "CaptureError: "),
        ("output =", 'device = "warp"\noutput =', 2, "device = 'warp' is not usable here"),
        ("output =", 'weights = "none.safetensors"\noutput =', 7, "none.safetensors"),
    ],
)
def test_every_fault_has_its_code_and_its_words(
    folder: Path, secateur: Command, old: str, new: str, code: int, message: str
) -> None:
    change(folder, old, new)

    ended = secateur("prune", "job.toml")

    assert message in ended.err
    assert "Traceback" not in ended.err
    assert ended.code == code


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return []", "no batch"),
        ("return {}", "a dict with nothing; it may have train and evaluate"),
        ("return {'test': []}", "a dict with test"),
        ("return 3", "a int cannot be iterated over"),
        ("return iter([])", "runs out after one time"),
        ("return {'train': [(torch.zeros(2, 1, 6, 6), torch.tensor([0, 9]))]}", "9"),
        ("return {'train': [(torch.full((2, 1, 6, 6), float('nan')), torch.tensor([0, 1]))]}", "not finite"),
    ],
)
def test_data_that_do_not_fit_end_with_their_own_code(folder: Path, secateur: Command, body: str, message: str) -> None:
    (folder / "wrong_data.py").write_text(f"import torch\ndef batches():\n    {body}")
    (folder / "job.toml").write_text(
        JOB.replace("net.py:batches", "wrong_data.py:batches").replace('evaluate = "accuracy"', "")
    )

    ended = secateur("prune", "job.toml")

    assert message in ended.err
    assert ended.code == 6


def test_a_foreign_folder_is_refused_before_the_work_starts(folder: Path, secateur: Command) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "thesis.tex").write_text("years")
    change(folder, "net.py:batches", "net.py:not_there")

    ended = secateur("prune", "job.toml")

    assert ended.code == 2
    assert "already holds other files (thesis.tex)" in ended.err


def test_errors_are_json_too(folder: Path, secateur: Command) -> None:
    change(folder, "macs = 0.5", "macs = 0.0001")

    ended = secateur("prune", "job.toml", "--json")

    assert json.loads(ended.err)["exit_code"] == ended.code == 4
    assert ended.out == ""


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[target]\nname = "onnxruntme"', "target: there is no 'onnxruntme'; did you mean 'onnxruntime'?"),
        ('[target]\nname = "eager"\nprecision = "bf16"', "target: 'eager' has no option 'precision'"),
        ('[target]\nname = "openvino"\nprecision = "int4"', "precision 'int4'; OpenVINO is measured in fp32 or bf16"),
    ],
)
def test_a_target_that_there_is_not_is_refused(folder: Path, secateur: Command, table: str, message: str) -> None:
    (folder / "job.toml").write_text(JOB + table)

    ended = secateur("prune", "job.toml")

    assert ended.code in (2, 6)
    assert message in " ".join(ended.err.split())


def test_a_job_measures_on_the_target_that_it_names(folder: Path, secateur: Command) -> None:
    pytest.importorskip("openvino", reason="openvino is not installed: make install")
    job = JOB.replace("measure = false", "")
    (folder / "job.toml").write_text(job + '[target]\nname = "openvino"\nthreads = 1\n')

    ended = secateur("prune", "job.toml", "--json")

    assert ended.code == 0, ended.err
    (latency,) = RunRecord.read(folder / "out/report.json").latency
    assert re.match(r"OpenVINO [\d.]+ in fp32 on cpu, 1 thread, inputs 1.1.6.6", latency.name)
    assert json.loads(ended.out)["proofs"][-1]["name"] == "target = PyTorch"
