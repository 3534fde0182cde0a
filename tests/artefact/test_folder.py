"""A model that is saved comes back equal, and anything that is not exactly that artefact is refused with nothing half-loaded."""

import copy
import errno
import hashlib
import json
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.artefact import load, read, save
from secateur.axes import Plan
from secateur.errors import ArtefactError
from secateur.torch import trace
from secateur.torch.apply import compact, plan_of


class Net(nn.Module):
    """A convolution, a norm, a buffer that no state dict holds, heads counted in an attribute, and a tied embedding."""

    def __init__(self, channels: int = 8, heads: int = 4, tied: bool = True) -> None:
        super().__init__()
        self.heads = heads
        self.conv = nn.Conv2d(3, channels, 3, padding=1)
        self.norm = nn.BatchNorm2d(channels)
        self.register_buffer("gain", torch.linspace(1, 2, channels)[:, None, None], persistent=False)
        self.query = nn.Linear(channels, 16)
        self.embed = nn.Embedding(5, 16)
        self.head = nn.Linear(16, 5, bias=False)
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, image: Tensor) -> Tensor:
        x = (torch.relu(self.norm(self.conv(image))) * self.gain).mean((2, 3))
        x = self.query(x)
        by_head = torch.softmax(x.view(x.shape[0], self.heads, -1), dim=-1)
        out: Tensor = self.head(by_head.flatten(1) + self.embed(torch.zeros(1, dtype=torch.int64)))
        return out


IMAGE = torch.linspace(-1, 1, 2 * 3 * 4 * 4).reshape(2, 3, 4, 4)


def dense(seed: int = 0, **settings: Any) -> Net:
    torch.manual_seed(seed)
    return Net(**settings).eval()


@pytest.fixture
def small() -> nn.Module:
    model = dense()
    network = trace(model, IMAGE)
    return compact(model, network.plan({axis.name: range(0, axis.size, 2) for axis in network.axes}))


@pytest.fixture
def folder(small: nn.Module, tmp_path: Path) -> Path:
    save(small, tmp_path / "out")
    return tmp_path / "out"


def test_a_pruned_model_comes_back_with_its_plan_and_the_same_output(small: nn.Module, folder: Path) -> None:
    again = load(dense(seed=1), folder)

    assert type(again) is Net
    assert torch.equal(again(IMAGE), small(IMAGE))
    assert plan_of(again) == plan_of(small)
    assert again.heads == 2


def test_what_comes_back_is_saved_to_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    save(load(dense(seed=1), folder), tmp_path / "twice")

    assert contents(folder) == contents(tmp_path / "twice")


def test_a_dense_model_comes_back_too(tmp_path: Path) -> None:
    model = dense()
    assert save(model, tmp_path).plan == Plan(axes=(), tensors=())

    again = load(dense(seed=1), tmp_path)

    assert torch.equal(again(IMAGE), model(IMAGE))


class Versioned(nn.Linear):
    """A module that reads the version of its own format, as MNASNet does."""

    _version = 2

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: dict[str, Any], *rest: Any) -> None:
        assert metadata.get("version") == 2
        super()._load_from_state_dict(state, prefix, metadata, *rest)


def test_modules_are_told_the_version_of_their_format(tmp_path: Path) -> None:
    model = Versioned(3, 2)
    save(model, tmp_path)
    assert torch.equal(load(Versioned(3, 2), tmp_path).weight, model.weight)  # type: ignore[arg-type]


def test_a_plan_that_is_given_counts_more_than_the_one_remembered(tmp_path: Path) -> None:
    model = dense()
    network = trace(model, IMAGE)
    plan = network.plan({network.axes[0].name: [1, 2]})
    forgotten = compact(model, plan)
    forgotten.__dict__.pop("secateur_plan")

    save(forgotten, tmp_path, plan)

    assert torch.equal(load(dense(seed=1), tmp_path)(IMAGE), forgotten(IMAGE))


def test_fused_attention_that_lost_heads_comes_back(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, x = nn.TransformerEncoderLayer(8, 4, 12, batch_first=True).eval(), torch.randn(2, 3, 8)
    network = trace(model, x)
    small = compact(model, network.plan({axis.name: range(axis.size // 2) for axis in network.axes}))
    save(small, tmp_path)

    again = load(nn.TransformerEncoderLayer(8, 4, 12, batch_first=True).eval(), tmp_path)

    assert torch.equal(again(x), small(x))


def test_a_tied_tensor_is_stored_once_and_stays_tied(folder: Path) -> None:
    artefact = read(folder)

    assert artefact.ties == {"head.weight": "embed.weight"}
    assert "head.weight" not in load_file(folder / artefact.weights.name)
    again = load(dense(seed=1), folder)
    assert again.head.weight is again.embed.weight


class Grows(nn.Module):
    """A table of positions, made as long as the longest input that came by."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Linear(3, 8), nn.Linear(8, 2)
        self.register_buffer("table", torch.ones(1, 8), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        if len(self.table) < x.shape[1]:
            self.table = self.table[:1].expand(x.shape[1], -1).clone()
        out: Tensor = self.out(self.embed(x) + self.table[: x.shape[1]])
        return out


def test_a_buffer_may_have_grown_along_dims_that_are_not_cut(tmp_path: Path) -> None:
    model, x = Grows().eval(), torch.randn(2, 5, 3)
    model(x)
    small = compact(model, trace(model, x).plan({"embed": range(0, 8, 2)}))
    assert small.table.shape == (5, 4)
    save(small, tmp_path)

    again = load(Grows().eval(), tmp_path)

    assert again.table.shape == (1, 4)
    assert torch.equal(again(x), small(x))
    longer = torch.randn(2, 9, 3)
    assert torch.equal(again(longer), small(longer))


def test_a_buffer_outside_the_state_dict_is_the_users_own_and_cut(small: nn.Module, folder: Path) -> None:
    again = load(dense(seed=1), folder)

    assert "gain" not in read(folder).tensors
    assert torch.equal(again.gain, small.gain)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_dtype_that_the_users_model_shares_comes_back_bit_for_bit(
    small: nn.Module, dtype: torch.dtype, tmp_path: Path
) -> None:
    save(small.to(dtype), tmp_path)

    again = load(dense(seed=1).to(dtype), tmp_path)

    assert {tensor.dtype for tensor in again.parameters()} == {dtype}
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), small.state_dict().values(), strict=True))


def test_floating_point_weights_take_the_dtype_of_the_users_model(small: nn.Module, folder: Path) -> None:
    again = load(dense(seed=1).double(), folder)

    assert again.conv.weight.dtype == torch.float64
    assert torch.equal(again.conv.weight.float(), small.conv.weight)


def test_mode_and_gradient_flags_are_those_of_the_users_model(folder: Path) -> None:
    model = dense(seed=1)
    model.norm.train()
    model.conv.requires_grad_(False)

    again = load(model, folder)

    assert (again.training, again.norm.training) == (False, True)
    assert (again.conv.weight.requires_grad, again.query.weight.requires_grad) == (False, True)


def test_loading_leaves_the_users_model_as_it_was(folder: Path) -> None:
    model = dense(seed=1)
    before = copy.deepcopy(model.state_dict())

    load(model, folder)

    assert_unchanged(model, before)


def test_read_gives_what_save_gave(small: nn.Module, tmp_path: Path) -> None:
    saved = save(small, tmp_path, extra={"accuracy": 0.75, "classes": ("a", "b")})

    assert read(tmp_path) == saved
    assert saved.extra == {"accuracy": 0.75, "classes": ["a", "b"]}
    assert saved.model.endswith("Net")
    assert saved.torch == torch.__version__
    assert saved.shapes["head.weight"] == saved.shapes["embed.weight"] == (5, 4)


def test_the_same_model_gives_the_same_bytes(small: nn.Module, tmp_path: Path) -> None:
    save(small, tmp_path / "a", extra={"x": 1, "y": 2})
    save(copy.deepcopy(small), tmp_path / "b", extra={"y": 2, "x": 1})

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_second_save_replaces_the_first_and_leaves_foreign_files(small: nn.Module, folder: Path) -> None:
    (folder / "README.md").write_text("mine")
    first = read(folder).weights

    second = save(dense(), folder).weights

    assert first != second
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "secateur.json", second.name]


def test_both_files_have_the_mode_that_the_users_umask_asks_for(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").touch()

    assert {path.stat().st_mode for path in folder.iterdir()} == {(tmp_path / "mine").stat().st_mode}


def test_views_of_one_storage_are_saved_each_by_itself(tmp_path: Path) -> None:
    model, flat = nn.Linear(2, 2), torch.arange(6.0)
    model.weight.data, model.bias.data = flat[:4].view(2, 2).t(), flat[4:]

    save(model, tmp_path)

    assert torch.equal(load(nn.Linear(2, 2), tmp_path).weight, torch.tensor([[0.0, 2.0], [1.0, 3.0]]))


# --- what cannot be saved


def test_a_model_without_the_plans_shapes_is_not_saved(small: nn.Module, tmp_path: Path) -> None:
    with pytest.raises(
        ArtefactError, match=r"not the model that the plan leads to: conv.weight has shape \(8, 3, 3, 3\)"
    ):
        save(dense(), tmp_path / "out", plan_of(small))

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("extra", [{"loss": float("nan")}, {"model": nn.Linear(1, 1)}, {"x": {1, 2}}])
def test_an_extra_that_json_cannot_hold_is_refused(extra: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ArtefactError, match="extra cannot be saved as JSON"):
        save(nn.Linear(1, 1), tmp_path, extra=extra)


def test_tensors_that_a_file_cannot_hold_are_refused_by_name(tmp_path: Path) -> None:
    class Stateful(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"steps": 1}

        def set_extra_state(self, state: dict[str, int]) -> None: ...

    sparse, complex_double = nn.Linear(1, 1), nn.Linear(1, 1)
    sparse.weight = nn.Parameter(torch.eye(1).to_sparse())
    complex_double.weight = nn.Parameter(torch.eye(1, dtype=torch.complex128))
    for model, message in (
        (sparse, "weight of .*Linear .*no plain dense tensor"),
        (nn.Linear(1, 1, device="meta"), "weight of .* on the meta device"),
        (nn.LazyLinear(1), "weight of .* no shape yet; run the model once"),
        (Stateful(1, 1), "_extra_state of .* of dict, no tensor"),
        (complex_double, "safetensors cannot hold these tensors, of complex128"),
    ):
        with pytest.raises(ArtefactError, match=message):
            save(model, tmp_path)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (errno.EACCES, "may not be written to; choose another folder"),
        (errno.EROFS, "may not be written to; choose another folder"),
        (errno.ENOSPC, "no space is left there"),
        (errno.EIO, "choose another folder, or look into the cause"),
    ],
)
def test_a_folder_that_cannot_be_written_is_named(
    code: int, message: str, small: nn.Module, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)
    monkeypatch.setattr(
        tempfile, "mkdtemp", raiser(OSError(code, "no"))
    )  # root may write anywhere, so ask for no real folder

    with pytest.raises(ArtefactError, match=f"cannot save to .*{message}"):
        save(dense(), folder)

    assert contents(folder) == before


def test_a_file_in_the_way_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")

    with pytest.raises(ArtefactError, match="a file is in the way"):
        save(nn.Linear(1, 1), tmp_path / "out")


# --- what is refused when loading


def truncate(folder: Path) -> None:
    path = weights_of(folder)
    path.write_bytes(path.read_bytes()[:-1])


def cut_to_nothing(folder: Path) -> None:
    weights_of(folder).write_bytes(b"")


def flip_one_bit(folder: Path) -> None:
    data = bytearray(weights_of(folder).read_bytes())
    data[-1] ^= 1
    weights_of(folder).write_bytes(data)


def remove_weights(folder: Path) -> None:
    weights_of(folder).unlink()


def remove_manifest(folder: Path) -> None:
    (folder / "secateur.json").unlink()


def remove_folder(folder: Path) -> None:
    remove_weights(folder)
    remove_manifest(folder)
    folder.rmdir()


def truncate_manifest(folder: Path) -> None:
    (folder / "secateur.json").write_bytes((folder / "secateur.json").read_bytes()[:-20])


def write_binary_manifest(folder: Path) -> None:
    (folder / "secateur.json").write_bytes(b"\x80\x02}q\x00.")


def nest_manifest(folder: Path) -> None:
    (folder / "secateur.json").write_text("[" * 100_000)


def alter_manifest(folder: Path) -> None:
    content = json.loads((folder / "secateur.json").read_text())
    content["plan"]["axes"][0]["kept"][0] += 1
    (folder / "secateur.json").write_text(json.dumps(content))


def write_foreign_json(folder: Path) -> None:
    (folder / "secateur.json").write_text('{"name": "package"}')


def make_newer(folder: Path) -> None:
    forge(folder, format=4, secateur="9.1.0")


def make_formatless(folder: Path) -> None:
    forge(folder, format="one")


def lead_out_of_the_folder(folder: Path) -> None:
    forge(folder, weights={"size": 1, "sha256": "/../../../../etc/passwd"})


def forget_the_plan(folder: Path) -> None:
    forge(folder, plan=json.loads(Plan((), ()).to_json()))


def keep_positions_out_of_range(folder: Path) -> None:
    plan = json.loads((folder / "secateur.json").read_text())["plan"]
    plan["tensors"][0]["kept"][0] = [0, 999]
    forge(folder, plan=plan)


def claim_a_huge_shape(folder: Path) -> None:
    tensors = json.loads((folder / "secateur.json").read_text())["tensors"]
    tensors["conv.weight"]["shape"] = [10**9, 10**9]
    forge(folder, tensors=tensors)


def claim_a_huge_header(folder: Path) -> None:
    replace_weights(folder, struct.pack("<Q", 2**62) + b"{}")


def claim_a_huge_tensor(folder: Path) -> None:
    header = b'{"conv.weight":{"dtype":"F32","shape":[1000000000000],"data_offsets":[0,4000000000000]}}'
    replace_weights(folder, struct.pack("<Q", len(header)) + header + b"\0" * 8)


def drop_a_tensor(folder: Path) -> None:
    resave(folder, lambda tensors: tensors.pop("conv.bias"))


def add_a_tensor(folder: Path) -> None:
    resave(folder, lambda tensors: tensors.update(other=torch.zeros(3)))


def change_a_dtype(folder: Path) -> None:
    resave(folder, lambda tensors: tensors.update({"conv.bias": tensors["conv.bias"].view(torch.int32)}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, r"weights .* have \d+ bytes, the manifest says \d+: truncated or altered"),
        (cut_to_nothing, "have 0 bytes, the manifest says"),
        (flip_one_bit, "were altered: their sha256 is"),
        (remove_weights, "the weights .* are missing; copy the whole folder again"),
        (remove_manifest, "no artefact: .* is a folder without secateur.json"),
        (remove_folder, "no artefact: there is no folder"),
        (truncate_manifest, "secateur.json is damaged"),
        (write_binary_manifest, "secateur.json is damaged"),
        (nest_manifest, "secateur.json is damaged"),
        (alter_manifest, "secateur.json was altered"),
        (write_foreign_json, "is not an artefact's manifest: it names no format"),
        (make_newer, r"has format 4, written by secateur 9.1.0; .* up to 3: install a newer secateur"),
        (make_formatless, "its format is 'one'"),
        (lead_out_of_the_folder, "not an artefact's manifest: ValueError a sha256 of"),
        (
            forget_the_plan,
            r"conv.weight has shape .* it holds no plan: save a pruned model with save\(model, folder, plan\)",
        ),
        (keep_positions_out_of_range, "not an artefact's manifest: PlanError .* kept positions"),
        (claim_a_huge_shape, "are not those of the manifest: conv.weight"),
        (claim_a_huge_header, "cannot be read: .*[Hh]eader"),
        (claim_a_huge_tensor, "cannot be read: "),
        (drop_a_tensor, "are not those of the manifest: conv.bias"),
        (add_a_tensor, "are not those of the manifest: other"),
        (change_a_dtype, "other dtypes than the manifest says: conv.bias"),
    ],
)
def test_damage_is_refused_and_the_model_untouched(damage: Callable[[Path], None], message: str, folder: Path) -> None:
    model = dense(seed=1)
    before = copy.deepcopy(model.state_dict())
    damage(folder)

    with pytest.raises(ArtefactError, match=f"(?s){message}"):
        load(model, folder)

    assert_unchanged(model, before)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: dense(channels=12), r"conv.weight has shape \(12, 3, 3, 3\) in the model, \(8, 3, 3, 3\) in the plan"),
        (lambda: dense(heads=2), "heads is 2 in the model, 4 in the plan"),
        (lambda: dense(tied=False), "head.weight is tied to none in the model, to embed.weight in the artefact"),
        (
            lambda: nn.Linear(3, 2),
            "torch.nn.modules.linear.Linear: it was saved from .*Net; conv.weight is missing in the model",
        ),
        (lambda: with_a_head_more(dense()), "more.weight is missing in the artefact"),
        (lambda: dense().to("meta"), "conv.weight is on the meta device"),
        (lambda: with_integer_buffer(dense()), "norm.running_mean is int64 in the model, float32 in the artefact"),
    ],
)
def test_another_model_is_refused_and_untouched(other: Callable[[], nn.Module], message: str, folder: Path) -> None:
    model = other()
    before = copy.deepcopy(model.state_dict())

    with pytest.raises(ArtefactError, match=f"holds another model than .*{message}.*; build the model as it was built"):
        load(model, folder)

    assert_unchanged(model, before)


def test_a_pruned_model_is_not_pruned_once_more(small: nn.Module, folder: Path) -> None:
    with pytest.raises(
        ArtefactError, match=r"conv.weight has shape \(4, 3, 3, 3\) in the model, \(8, 3, 3, 3\) in the plan"
    ):
        load(small, folder)


def test_a_file_instead_of_the_folder_is_refused(folder: Path) -> None:
    with pytest.raises(ArtefactError, match="no artefact: there is no folder"):
        load(dense(), folder / "secateur.json")


def test_a_reformatted_manifest_is_not_altered(folder: Path) -> None:
    content = json.loads((folder / "secateur.json").read_text())
    (folder / "secateur.json").write_text(json.dumps(content, indent=2))

    assert load(dense(seed=1), folder)(IMAGE).equal(load(dense(seed=2), folder)(IMAGE))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def weights_of(folder: Path) -> Path:
    return next(folder.glob("weights-*.safetensors"))


def assert_unchanged(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].is_meta or torch.equal(after[name], before[name]) for name in before)


def forge(folder: Path, **changes: Any) -> None:
    """Change the manifest as somebody would who knows how it is sealed."""
    content = json.loads((folder / "secateur.json").read_text()) | changes
    content.pop("sha256")
    text = json.dumps(content, sort_keys=True, separators=(",", ":"))
    content["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "secateur.json").write_text(json.dumps(content))


def replace_weights(folder: Path, data: bytes) -> None:
    digest = hashlib.sha256(data).hexdigest()
    weights_of(folder).unlink()
    (folder / f"weights-{digest}.safetensors").write_bytes(data)
    forge(folder, weights={"size": len(data), "sha256": digest})


def resave(folder: Path, change: Callable[[dict[str, Tensor]], object]) -> None:
    tensors = load_file(weights_of(folder))
    change(tensors)
    save_file(tensors, folder / "changed")
    data = (folder / "changed").read_bytes()
    (folder / "changed").unlink()
    replace_weights(folder, data)


def raiser(error: Exception) -> Callable[..., None]:
    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


def with_a_head_more(model: nn.Module) -> nn.Module:
    model.more = nn.Linear(2, 2)
    return model


def with_integer_buffer(model: Net) -> nn.Module:
    model.norm.running_mean = model.norm.running_mean.long()
    return model
