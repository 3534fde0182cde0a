"""`secateur sparsify`: a folder of transformers becomes a sparse one; wrong jobs end before anything is loaded."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from tests.cli.conftest import Ended
from torch import Tensor

from secateur.cli import sparse_run
from secateur.cli.app import SPARSE_EXAMPLE
from secateur.cli.choices import NAMES, sparsification
from secateur.cli.job import SparseJob, read_sparse_job
from secateur.cli.sparse_run import LAYERS
from secateur.errors import JobError
from secateur.report import RunRecord
from secateur.sparse.patterns import Block, NofM, Unstructured
from secateur.torch import spill

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


COMMON: dict[str, Any] = {
    "vocab_size": 31,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 16,
    "tie_word_embeddings": False,
}
LATENT = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8}
MIXTURES: dict[str, dict[str, Any]] = {
    "mixtral": {"num_local_experts": 4},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "head_dim": 8},
    "deepseek_v3": {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8, "n_group": 2}
    | {"topk_group": 1, "first_k_dense_replace": 1}
    | LATENT,
}
"""Their checkpoints have a tensor for each expert."""


@pytest.fixture(params=MIXTURES)
def mixture(request: pytest.FixtureRequest, language: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same with a mixture of experts, in several files, whose changed weights go to the disk however small they are."""
    import transformers

    (language / "model" / "model.safetensors").unlink()
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **COMMON, **MIXTURES[request.param])
    model = transformers.AutoModelForCausalLM.from_config(config)
    model.save_pretrained(language / "model", max_shard_size="10kB")
    monkeypatch.setattr(spill, "LEAST", 0)
    monkeypatch.setattr(sparse_run, "AT_ONCE", 0)
    return language


only = pytest.mark.parametrize("mixture", ["mixtral"], indirect=True)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("model*")}


def names(folder: Path) -> set[str]:
    return {name for path in folder.glob("*.safetensors") for name in safe_open(path, "pt").keys()}  # noqa: SIM118


def mapped(tensor: Tensor) -> str:
    """The file that a tensor's numbers lie in; nothing for those in memory."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        place, *_, file = line.split(maxsplit=5) if "/" in line else (line.split()[0], "")
        first, last = (int(number, 16) for number in place.split("-"))
        if first <= tensor.data_ptr() < last:
            return file
    return ""


@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what is mapped")
def test_weights_that_are_changed_are_mapped_from_a_file_and_others_from_the_checkpoint(mixture: Path) -> None:
    theirs = loaded(mixture / "model")
    (mixture / "room").mkdir()
    (mixture / "room" / "tmpkilled").write_bytes(b"half of a file that a killed job wrote")
    ours = sparse_run._model(read_sparse_job(mixture / "job.toml"), mixture / "room")
    for name, parameter in theirs.named_parameters():
        file = mapped(ours.get_parameter(name))
        assert file.startswith(str(mixture / ("room" if ".experts." in name else "model"))), name
        assert parameter.equal(ours.get_parameter(name))
    assert not list((mixture / "room").iterdir()), "the files have no names"


@only
@pytest.mark.skipif(sys.platform != "linux", reason="the system does not tell what is mapped")
def test_weights_of_another_type_are_changed_too(mixture: Path) -> None:
    config = mixture / "model" / "config.json"
    config.write_text(config.read_text().replace('"float32"', '"float16"'))
    model = sparse_run._model(read_sparse_job(mixture / "job.toml"), mixture / "room")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float16}
    assert all(mapped(parameter).startswith(str(mixture / "room")) for parameter in model.parameters())


def test_a_mixture_comes_out_the_same_as_in_memory(
    mixture: Path, secateur: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert secateur("sparsify", "job.toml").code == 0
    monkeypatch.setattr(sparse_run, "AT_ONCE", 1 << 40)
    (mixture / "memory.toml").write_text(JOB.replace('"out"', '"memory"'))
    assert secateur("sparsify", "memory.toml").code == 0
    assert files(mixture / "out") == files(mixture / "memory")
    assert names(mixture / "out") == names(mixture / "model")
    experts = [x for name, x in loaded(mixture / "out").named_parameters() if "experts.gate_up_proj" in name]
    assert all(0.4 < float((x == 0).float().mean()) < 0.6 for x in experts)


@only
@pytest.mark.parametrize("moment", ["_shown", "_save"])
def test_a_killed_mixture_goes_on(
    mixture: Path, secateur: Command, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    assert secateur("sparsify", "job.toml").code == 0
    (mixture / "other.toml").write_text(JOB.replace('"out"', '"again"'))

    def kill(*arguments: Any) -> None:
        if moment == "_save" or arguments[2] == 15:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(sparse_run, moment, kill)
        assert secateur("sparsify", "other.toml").code == 130
    left = sorted(path.suffix for path in (mixture / "again" / LAYERS).iterdir())
    assert left == [".json", *[".safetensors"] * (len(left) - 1)]
    assert secateur("sparsify", "other.toml").code == 0
    assert files(mixture / "again") == files(mixture / "out")
    assert not (mixture / "again" / LAYERS).exists()


@only
def test_a_full_disk_is_said(mixture: Path, secateur: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(**_: Any) -> None:
        raise OSError(28, "No space left on device")

    save = sparse_run._save
    with monkeypatch.context() as patched:
        patched.setattr(tempfile, "NamedTemporaryFile", full)
        ended = secateur("sparsify", "job.toml")
        assert (ended.code, "No space left on device; make room there" in ended.err) == (6, True), ended.err
        assert not (mixture / "out").exists()
    with monkeypatch.context() as patched:

        def filled(*arguments: Any) -> None:
            patched.setattr(tempfile, "NamedTemporaryFile", full)
            save(*arguments)

        patched.setattr(sparse_run, "_save", filled)
        ended = secateur("sparsify", "job.toml")
        assert (ended.code, "No space left on device; make room there" in ended.err) == (6, True), ended.err
        assert list((mixture / "out" / LAYERS).glob("*.safetensors")), "what is solved is kept"
    assert secateur("sparsify", "job.toml").code == 0


@only
def test_a_damaged_mixture_is_refused(mixture: Path, secateur: Command) -> None:
    shard = next(path for path in (mixture / "model").glob("*.safetensors") if b"experts.3.w1" in path.read_bytes())
    whole = shard.read_bytes()
    for damaged in (whole[:-100], whole.replace(b"experts.3.w1", b"experts.3.w9")):
        shard.write_bytes(damaged)
        ended = secateur("sparsify", "job.toml")
        assert (ended.code, "the model in model fails" in ended.err) == (3, True), ended.err
        assert not (mixture / "out").exists()


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
