"""`secateur sparsify`: a folder of transformers becomes a sparse one; wrong jobs end before anything is loaded."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.cli.conftest import Ended

from secateur.cli.app import SPARSE_EXAMPLE
from secateur.cli.choices import NAMES, sparsification
from secateur.cli.job import SparseJob, read_sparse_job
from secateur.cli.sparse_run import LAYERS
from secateur.errors import JobError
from secateur.report import RunRecord
from secateur.sparse.patterns import Block, NofM, Unstructured

Command = Callable[..., Ended]

JOB = """
model = "model"
calibrate = "text.txt"
evaluate = "text.txt"
output = "out"
sparsity = 0.5
length = 8
samples = 4
evaluate_samples = 4
"""


@pytest.fixture
def language(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny language model, its tokenizer, a text and a job."""
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    tokenizers = pytest.importorskip("tokenizers")
    monkeypatch.chdir(tmp_path)
    words = [f"w{number}" for number in range(30)]
    vocabulary = {word: number for number, word in enumerate(["[UNK]", *words])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer).save_pretrained(tmp_path / "model")
    torch.manual_seed(0)
    settings = {"vocab_size": 31, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = transformers.LlamaConfig(
        **settings, num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=16, tie_word_embeddings=False
    )
    transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(" ".join(words * 20))
    (tmp_path / "job.toml").write_text(JOB)
    return tmp_path


def loaded(folder: Path) -> Any:
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)


def test_a_folder_becomes_a_sparse_one(language: Path, secateur: Command) -> None:
    ended = secateur("sparsify", "job.toml", "--json")
    assert ended.code == 0, ended.err
    rows = {row["name"]: row for row in json.loads(ended.out)["comparison"]}
    assert rows["perplexity"]["pruned"] > 1
    assert 0 < rows["same first token"]["pruned"] < 100
    dense, sparse = loaded(language / "model"), loaded(language / "out")
    for name, parameter in sparse.named_parameters():
        half = "proj" in name
        assert int((parameter == 0).sum()) == (parameter.numel() // 2 if half else 0)
        assert half or parameter.equal(dense.get_parameter(name))
    record = RunRecord.read(language / "out" / "report.json")
    assert len(record.weights) == 14
    assert rows["nonzero weights"]["pruned"] * 2 == rows["nonzero weights"]["dense"]
    assert "4 sequences of 8 tokens" in record.notes[0]
    assert "Which weights are sparse" in (language / "out" / "report.html").read_text()
    assert not (language / "out" / LAYERS).exists()


def test_blocks_come_nearer_to_the_dense_ones(language: Path, secateur: Command) -> None:
    found = []
    for name, more in (("out", ""), ("nearer", "[reconstruct]\nepochs = 20\nlearning_rate = 1e-2\n")):
        (language / "job.toml").write_text(JOB.replace('"out"', f'"{name}"') + more)
        ended = secateur("sparsify", "job.toml", "--json")
        assert ended.code == 0, ended.err
        found.append({row["name"]: row["pruned"] for row in json.loads(ended.out)["comparison"]}["divergence"])
    assert found[1] < 0.7 * found[0]
    before, after = loaded(language / "out"), loaded(language / "nearer")
    for name, parameter in after.named_parameters():
        assert not parameter[before.get_parameter(name) == 0].any()
    assert "20 epochs" in RunRecord.read(language / "nearer" / "report.json").notes[1]
    assert loaded(language / "model").lm_head.weight.equal(after.lm_head.weight)


def test_a_killed_job_goes_on(language: Path, secateur: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.cli import sparse_run

    assert secateur("sparsify", "job.toml").code == 0
    whole = loaded(language / "out").state_dict()
    (language / "other.toml").write_text(JOB.replace('"out"', '"again"'))
    shown = sparse_run._shown

    def kill(stages: Any, layer: str, done: int, total: int) -> None:
        if done == 5:
            raise KeyboardInterrupt
        shown(stages, layer, done, total)

    monkeypatch.setattr(sparse_run, "_shown", kill)
    assert secateur("sparsify", "other.toml").code == 130
    assert len(list((language / "again" / LAYERS).glob("*.safetensors"))) == 5
    monkeypatch.undo()
    monkeypatch.chdir(language)
    assert secateur("sparsify", "other.toml").code == 0
    again = loaded(language / "again").state_dict()
    assert all(tensor.equal(again[name]) for name, tensor in whole.items())


@pytest.mark.parametrize(
    ("old", "new", "code", "message"),
    [
        ("evaluate_samples = 4", "rounding = 'integer'\n[reconstruct]", 2, "leave one of both out"),
        ("sparsity = 0.5", "sparsity = 1.5", 4, "at least 0 and below 1"),
        ("sparsity = 0.5", "", 4, "needs a sparsity"),
        ("sparsity = 0.5", 'sparsity = 0.5\nsolver = "sparse-gpt"', 2, "did you mean 'sparsegpt'?"),
        ("sparsity = 0.5", 'sparsity = 0.5\npattern = "5:4"', 2, "at least 1 stays"),
        ("sparsity = 0.5", "sparsiti = 0.5", 2, "did you mean 'sparsity'?"),
        ("length = 8", "length = 17", 6, "at most 16 tokens"),
        ("length = 8", "length = 1", 2, "length = 1"),
        ('calibrate = "text.txt"', 'calibrate = "none.txt"', 6, "none.txt cannot be read"),
        ('calibrate = "text.txt"', 'calibrate = "empty.txt"', 6, "empty.txt is empty"),
        ('calibrate = "text.txt"', 'calibrate = "short.txt"', 6, "too few for one sequence of 8"),
        ('model = "model"', 'model = "nowhere"', 2, "there is no"),
    ],
)
def test_a_wrong_job_ends_with_what_to_do(
    language: Path, secateur: Command, old: str, new: str, code: int, message: str
) -> None:
    (language / "empty.txt").write_text(" \n")
    (language / "short.txt").write_text("w1 w2 w3")
    (language / "job.toml").write_text(JOB.replace(old, new))
    ended = secateur("sparsify", "job.toml")
    assert (ended.code, message in ended.err.replace("\n", " ")) == (code, True), ended.err


def test_the_example_is_a_whole_job(tmp_path: Path) -> None:
    (tmp_path / "job.toml").write_text(SPARSE_EXAMPLE)
    job = read_sparse_job(tmp_path / "job.toml").job
    assert job.model_fields_set == SparseJob.model_fields.keys() - {"relative_to"}
    assert sparsification(job)["score"].power == 0.5


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ('pattern = "2:4"', NofM(2, 4)),
        ('pattern = "16x1"', Block(16, 1)),
        ("", Unstructured()),
        ('pattern = {name = "unstructured", scope = "tensor"}', Unstructured("tensor")),
        ('pattern = {name = "n-of-m", n = 4, m = 8}', NofM(4, 8)),
    ],
)
def test_patterns_have_short_names(tmp_path: Path, text: str, pattern: object) -> None:
    (tmp_path / "job.toml").write_text(f"{JOB}{text}")
    assert sparsification(read_sparse_job(tmp_path / "job.toml").job)["pattern"] == pattern


@pytest.mark.parametrize(("key", "name"), [(key, name) for key in ("solver", "score") for name in ("nothing", "")])
def test_unknown_names_are_refused(tmp_path: Path, key: str, name: str) -> None:
    (tmp_path / "job.toml").write_text(f'{JOB}{key} = "{name}"')
    with pytest.raises(JobError, match="there is no"):
        sparsification(read_sparse_job(tmp_path / "job.toml").job)


def test_every_solver_of_the_library_has_a_name() -> None:
    import secateur.sparse.solvers as solvers

    made = {type(make()).__name__ for name, make in NAMES["solver"].items() if name != "keep"}
    assert made == set(solvers.__all__) - {"keep", "output_error", "Problem", "Solved", "Solver"}
