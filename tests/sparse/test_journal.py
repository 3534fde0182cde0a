"""A job that was killed goes on where it stopped, comes to the same bytes, and refuses what is not its own."""

from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import ArtefactError, DataError, PlanError
from secateur.sparse import SparseResult, job, sparsify
from secateur.sparse.patterns import NofM
from secateur.sparse.problem import Problem, Solved
from secateur.sparse.solvers import Refit, SparseGPT


class Packed(nn.Module):
    """One weight that is used in three parts, and a product that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.packed = nn.Parameter(torch.randn(24, 8))
        self.twice, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (x @ part.T for part in self.packed.chunk(3))
        y: Tensor = self.last(self.twice(self.twice(q.tanh() * k + v).relu()))
        return y


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Packed().eval()


DATA = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))


def run(model: nn.Module, journal: Path | None, **options: Any) -> SparseResult:
    settings: dict[str, Any] = {"sparsity": 0.5, "solver": SparseGPT()} | options
    return sparsify(model, DATA.split(16), journal=journal, **settings)


def same(one: SparseResult, other: SparseResult) -> bool:
    states = one.model.state_dict(), other.model.state_dict()
    return (
        all(states[0][name].equal(states[1][name]) for name in states[0])
        and all(one.plan.stays[name].equal(mask) for name, mask in other.plan.stays.items())
        and one.report == other.report
    )


def test_with_a_journal_comes_what_comes_without(model: nn.Module, tmp_path: Path) -> None:
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert same(run(model, tmp_path / "journal"), run(model, None))
    assert all(tensor.equal(before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("done", range(1, 6))
def test_a_killed_job_goes_on_and_comes_to_the_same_bytes(model: nn.Module, tmp_path: Path, done: int) -> None:
    def kill(_layer: str, count: int, _total: int) -> None:
        if count == done:
            raise KeyboardInterrupt

    solved = []

    class Counting(SparseGPT):
        def __call__(self, problem: Problem) -> Solved:
            solved.append(problem.weight.shape)
            return super().__call__(problem)

        def __repr__(self) -> str:
            return "SparseGPT()"

    with pytest.raises(KeyboardInterrupt):
        run(model, tmp_path, progress=kill, solver=Counting())
    assert len(solved) == done
    resumed = run(model, tmp_path, solver=Counting())
    assert len(solved) == 5 + (done if done < 3 else 0)  # a weight is kept when all of its parts are solved
    assert same(resumed, run(model, None))


def test_a_file_that_was_not_finished_does_not_count(model: nn.Module, tmp_path: Path) -> None:
    whole = run(model, tmp_path)
    place = tmp_path / "last.weight.safetensors"
    place.rename(place.with_name(f".{place.name}.123"))
    assert same(run(model, tmp_path), whole)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sparsity": 0.6}, r"what goes of packed was 32 of \(1, 8, 8\) and is 38 of \(1, 8, 8\); .* and 2 more"),
        ({"solver": Refit()}, r"solver was SparseGPT\(.*\) and is Refit\("),
        ({"pattern": NofM(2, 4), "sparsity": None}, "pattern was Unstructured"),
        ({"samples": 32}, "piece 2 of the data is missing; piece 3 of the data is missing"),
        ({"exclude": ["last"]}, "what goes of last.weight is missing"),
    ],
)
def test_the_work_of_another_job_is_refused(
    model: nn.Module, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    run(model, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(ArtefactError, match=message):
        run(model, tmp_path, **options)
    assert before == {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def test_other_weights_are_refused(model: nn.Module, tmp_path: Path) -> None:
    run(model, tmp_path)
    for name, parameter in model.last.named_parameters():
        before, parameter.data = parameter.data, parameter.data + 1
        with pytest.raises(ArtefactError, match=f"another job: the model's last.{name} has changed; remove"):
            run(model, tmp_path)
        parameter.data = before


def test_of_many_differences_three_are_named(model: nn.Module, tmp_path: Path) -> None:
    run(model, tmp_path)
    for parameter in model.parameters():
        parameter.data = parameter.data + 1
    with pytest.raises(ArtefactError, match=r"packed has changed; .*twice.bias has changed; and 2 more; remove"):
        run(model, tmp_path)


@pytest.mark.parametrize("damage", ["cut", "nonsense", "empty", "one byte"])
def test_a_damaged_file_is_refused_by_name(model: nn.Module, tmp_path: Path, damage: str) -> None:
    run(model, tmp_path)
    place = tmp_path / "twice.weight.safetensors"
    content = place.read_bytes()
    changed = content[:-1] + bytes([content[-1] ^ 1])
    place.write_bytes({"cut": content[:-8], "nonsense": b"x" * len(content), "empty": b"", "one byte": changed}[damage])
    with pytest.raises(ArtefactError, match=r"twice\.weight\.safetensors is damaged"):
        run(model, tmp_path)


def test_solvers_that_cannot_be_told_again_are_refused(model: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a journal has to know"):
        run(model, tmp_path, solver=lambda problem: SparseGPT()(problem))


def test_weights_without_a_job_are_refused(model: nn.Module, tmp_path: Path) -> None:
    run(model, tmp_path)
    (tmp_path / "job.json").unlink()
    with pytest.raises(ArtefactError, match=r"no job\.json"):
        run(model, tmp_path)


def test_a_damaged_job_is_refused(model: nn.Module, tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("{")
    with pytest.raises(ArtefactError, match=r"job\.json cannot be read"):
        run(model, tmp_path)


def test_a_full_disk_loses_nothing(model: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from secateur.sparse import journal

    real, left = journal.save_file, [2]

    def full(*arguments: Any) -> None:
        if not left[0]:
            raise OSError(28, "No space left on device")
        left[0] -= 1
        real(*arguments)

    monkeypatch.setattr(journal, "save_file", full)
    with pytest.raises(OSError, match="No space left"):
        run(model, tmp_path)
    monkeypatch.undo()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
    assert same(run(model, tmp_path), run(model, None))


@pytest.mark.parametrize("memory", [1, 3000, 1 << 30])
def test_pieces_of_any_size_come_to_the_same_choice(model: nn.Module, memory: int) -> None:
    """What does not fit in memory waits on the disk."""
    result = run(model, None, memory=memory, solver=Refit())
    assert result.samples == 64
    whole = sparsify(model, [DATA], sparsity=0.5, solver=Refit())
    for name, mask in whole.plan.stays.items():
        assert result.plan.stays[name].equal(mask)
        assert result.model.get_parameter(name).allclose(whole.model.get_parameter(name), atol=1e-4)


def test_padding_is_not_learnt_from() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
            y: Tensor = self.layer(x) * attention_mask[..., None]
            return y

    torch.manual_seed(0)
    model, x, mask = Masked(), torch.randn(6, 5, 8), torch.ones(6, 5)
    mask[:, 3:] = 0
    loud = torch.where(mask[..., None] == 0, 100 * x, x)
    for sequence in (True, False):
        one, other = (
            sparsify(model, [{"x": data, "attention_mask": mask}], sparsity=0.5, in_sequence=sequence)
            for data in (x, loud)
        )
        assert one.model.layer.weight.equal(other.model.layer.weight)
    with pytest.raises(DataError, match="all of the data is padding"):
        sparsify(model, [{"x": x, "attention_mask": torch.zeros(6, 5)}], sparsity=0.5)


class Keeps(nn.Module):
    """Keeps what it computes in itself, in a buffer or in a hook of its own, for later layers."""

    def __init__(self, way: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second, self.last = (nn.Linear(8, 8) for _ in range(3))
        self.way = way
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        skip = self.first(x).relu()
        if self.way == "attribute":
            self.skip = skip
        if self.way == "buffer":
            self.mean.copy_(skip.mean(0))
        h = self.second(skip).relu()
        if self.way == "buffer":
            skip = skip + self.mean
        y: Tensor = self.last(h + 3 * (self.skip if self.way == "attribute" else skip))
        return y


@pytest.mark.parametrize("way", ["attribute", "buffer"])
def test_pieces_do_not_see_what_others_keep_in_the_model(way: str) -> None:
    several = sparsify(Keeps(way), [DATA[:16], DATA[16:32]], sparsity=0.5)
    mixed = sparsify(Keeps(way), [DATA[16:32], DATA[:16]], sparsity=0.5)
    for one, other in zip(several.report, mixed.report, strict=True):
        assert one.error == pytest.approx(other.error, rel=1e-4)  # whoever comes last


def test_a_weight_that_is_read_in_two_ways_stays_dense() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tied, self.other = nn.Parameter(torch.randn(6, 8)), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y: Tensor = (self.other(x) @ self.tied.T).relu() @ self.tied
            return y

    assert list(sparsify(Tied(), [DATA], sparsity=0.5).plan.stays) == ["other.weight"]


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("solver", [SparseGPT(), Refit()])
def test_what_is_too_large_to_be_squared_is_refused(model: nn.Module, sequence: bool, solver: Any) -> None:
    with pytest.raises(DataError, match="too large to be squared"):
        sparsify(nn.Linear(8, 8), [DATA * 5e18], sparsity=0.5, in_sequence=sequence, solver=solver)


def test_what_runs_behind_the_last_sparse_layer_takes_no_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not run at all: wide logits must not send a language model's activations to the disk."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 10_000))
    rooms = []
    monkeypatch.setattr(job, "side_by_side", lambda *_, room: rooms.append(room))
    for exclude in ([], ["3"]):
        sparsify(wide, [torch.randn(32, 8)], sparsity=0.5, memory=50_000, exclude=exclude)
    assert rooms == [Path(gettempdir()), None]


@pytest.mark.parametrize("options", [{"samples": 0}, {"samples": -1}, {"memory": 0}, {"memory": "4G"}])
def test_numbers_out_of_range_are_refused(model: nn.Module, options: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="samples and memory are whole numbers, at least 1"):
        run(model, None, **options)


def test_one_text_is_no_list_of_names(model: nn.Module) -> None:
    with pytest.raises(PlanError, match="exclude= is a list"):
        run(model, None, exclude="last")
