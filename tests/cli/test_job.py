"""The job file: what is taken, and what is refused with the key that was meant."""

from pathlib import Path

import pytest

from secateur.cli.app import EXAMPLE
from secateur.cli.job import Distillation, Job, Recovery, Shares, Sparsification, parse_job, read_job
from secateur.errors import JobError

LEAST = 'model = "net.py:build"\noutput = "out"\n'


def test_model_output_and_budget_are_enough() -> None:
    job = parse_job(LEAST + "[budget]\nmacs = 0.5", "job.toml")

    assert job == Job(model="net.py:build", output="out", budget=Shares(macs=0.5))
    assert job.seed == 0
    assert job.compensation is None
    assert job.recovery is None


def test_the_example_of_the_help_has_every_key() -> None:
    job = parse_job(EXAMPLE, "example.toml")
    assert job.recovery is not None
    assert isinstance(job.recovery.distillation, Distillation)

    assert set(Job.model_fields) - job.model_fields_set == {"relative_to"}
    assert job.budget.model_fields_set == set(Shares.model_fields)
    assert job.sparsify is not None
    assert job.sparsify.model_fields_set == set(Sparsification.model_fields)
    assert set(Recovery.model_fields) - job.recovery.model_fields_set == {"function"}
    assert job.recovery.distillation.model_fields_set == set(Distillation.model_fields)


def test_the_example_of_the_help_fits_a_terminal() -> None:
    assert max(map(len, EXAMPLE.splitlines())) <= 78


def test_a_choice_is_a_name_or_a_table_with_options() -> None:
    short = parse_job(LEAST + 'score = "fisher"\n[budget]\nmacs = 0.5', "job.toml")
    long = parse_job(LEAST + '[budget]\nmacs = 0.5\n[score]\nname = "magnitude"\np = 2', "job.toml")

    assert short.score is not None
    assert (short.score.name, short.score.options) == ("fisher", {})
    assert long.score is not None
    assert (long.score.name, long.score.options) == ("magnitude", {"p": 2})


def test_distillation_is_a_switch_or_a_table() -> None:
    switch = parse_job(LEAST + "[budget]\nmacs = 0.5\n[recovery]\ndistillation = true", "job.toml")
    table = parse_job(LEAST + "[budget]\nmacs = 0.5\n[recovery.distillation]\nweight = 0.9", "job.toml")

    assert switch.recovery is not None
    assert switch.recovery.distillation == Distillation()
    assert table.recovery is not None
    assert table.recovery.distillation == Distillation(weight=0.9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle = 'x'\n[budget]\n", "there is no key 'modle'; did you mean 'model'?"),
        ("[budget]\nmac = 0.5", "there is no key 'budget.mac'; did you mean 'macs'?"),
        ("[budget]\nlatency = 0.5", "there is no key 'budget.latency'; there is bytes, macs, params"),
        ("[budget]\nmacs = 0.5\nseed = 3", "there is no key 'budget.seed'; it belongs above the first [table]"),
        ("[budget]\n[recovery]\nepoch = 2", "there is no key 'recovery.epoch'; did you mean 'epochs'?"),
        (
            "[budget]\n[recovery.distillation]\ntempreature = 2.0",
            "there is no key 'recovery.distillation.tempreature'; did you mean 'temperature'?",
        ),
        ("seed = 'three'\n[budget]", "seed = 'three': it must be a whole number"),
        ("seed = 3.5\n[budget]", "seed = 3.5: it must be a whole number"),
        ("form = 'grpah'\n[budget]", "form = 'grpah': it must be 'module' or 'graph'"),
        ("measure = 1\n[budget]", "measure = 1: it must be a boolean"),
        ("compensation = true\n[budget]", "compensation = True: it must be a list"),
        ("budget = 0.5", "budget = 0.5: it must be a"),
        ("inputs = '1x3'\n[budget]", "inputs = '1x3': it must be a list"),
        ("[budget]\nmacs = '0.5'", "budget.macs = '0.5': it must be a number"),
        (
            "[budget]\nmacs = 50",
            "budget.macs = 50: it is a share of the dense network, a number in (0, 1]; got 50.0; for 50 %",
        ),
        ("[budget]\nmacs = nan", "budget.macs = nan: it is a share"),
        ("[budget]\nbytes = 0", "budget.bytes = 0: it is a share"),
        ("[budget]", "budget = {}: it limits nothing; give params, macs or bytes"),
        ("[budget]\n[sparsify]\nsparsiti = 0.5", "there is no key 'sparsify.sparsiti'; did you mean 'sparsity'?"),
        ("[budget]\n[sparsify]\nlength = 512", "there is no key 'sparsify.length'"),
        ("[budget]\n[sparsify]\nsamples = 0", "sparsify.samples = 0: it must be greater than or equal to 1"),
        ("[budget]\n[sparsify]\nsparsity = 'half'", "sparsify.sparsity = 'half': it must be a number"),
        ("[budget]\n[score]\np = 1", "the key 'score.name' is missing"),
        ("", "the key 'budget' is missing"),
    ],
)
def test_what_does_not_belong_is_refused(text: str, message: str) -> None:
    with pytest.raises(JobError) as refused:
        parse_job(LEAST + text, "my.toml")

    assert str(refused.value).startswith("my.toml: ")
    assert message in str(refused.value)


def test_all_faults_are_named_at_once() -> None:
    with pytest.raises(JobError) as refused:
        parse_job('model = "x"\nsed = 1\n[budget]\nmac = 0.5', "my.toml")
    for fault in ("'output' is missing", "no key 'sed'", "no key 'budget.mac'"):
        assert fault in str(refused.value)


def test_what_is_no_toml_names_the_line() -> None:
    with pytest.raises(JobError, match=r"my.toml is not TOML: .*line 1.*secateur prune --help"):
        parse_job("model = net.py", "my.toml")


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"there is no job file .*nowhere.toml; secateur prune --help shows"):
        read_job(tmp_path / "nowhere.toml")


def test_a_folder_is_no_job_file(tmp_path: Path) -> None:
    with pytest.raises(JobError, match=r"cannot be read"):
        read_job(tmp_path)


def test_bytes_that_are_no_text_are_no_job_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(JobError, match=r"cannot be read"):
        read_job(tmp_path / "job.toml")


def test_paths_are_relative_to_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(LEAST + "[budget]\nmacs = 0.5")

    assert read_job(tmp_path / "job.toml").output == tmp_path / "out"


def test_paths_can_be_relative_to_another_folder(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text('relative_to = "../elsewhere"\n' + LEAST + "[budget]\nmacs = 0.5")

    assert read_job(tmp_path / "job.toml").output == tmp_path / "../elsewhere" / "out"
