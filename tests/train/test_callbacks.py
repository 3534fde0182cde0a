"""In other libraries' trainers masks change on time, and go on from a checkpoint as if nothing had happened."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import MissingExtraError, RecoveryError
from secateur.sparse import WeightPlan
from secateur.train import ACDC, Gradual, Method, RigL, lightning_callback, trainer_callback

X = torch.randn(96, 8, generator=torch.Generator().manual_seed(0))
Y = (X[:, 0] > 0).long() + (X[:, 1] > 0).long()

METHODS: list[Method] = [
    Gradual(0.75, end=9, every=2),
    RigL(0.6, until=12, every=3),
    ACDC(0.5, warmup=0, sparse_steps=2, dense_steps=4, until=8),
]


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))


def check(callback: Any, model: nn.Module) -> None:
    assert callback.training.step == 12
    state = dict(model.named_parameters())
    assert callback.training.plan.zeros > 0
    for name, mask in callback.training.plan.stays.items():
        assert not state[name][~mask].any()
    for parameter in model.parameters():
        assert not parameter._backward_hooks


class Classifier(nn.Module):
    """As the trainer of transformers wants it: named arguments, and a loss in the output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = layers()

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        logits = self.layers(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def trained(folder: Path, method: Method | WeightPlan, epochs: int, resume: bool = False) -> tuple[Any, nn.Module]:
    transformers: Any = pytest.importorskip("transformers", reason="transformers is not installed: make zoo")
    pytest.importorskip("accelerate", reason="accelerate, which the trainer of transformers needs, is not installed")
    pytest.importorskip(
        "transformers.trainer", reason="the trainer of transformers cannot be imported", exc_type=ImportError
    )
    data = [{"x": x, "labels": y} for x, y in zip(X, Y, strict=True)]
    arguments = transformers.TrainingArguments(
        str(folder), num_train_epochs=2, max_steps=12, per_device_train_batch_size=8, gradient_accumulation_steps=2,
        save_steps=5, report_to=[], use_cpu=True, disable_tqdm=True, learning_rate=1e-2, logging_strategy="no",
        dataloader_pin_memory=False, seed=3,
    )  # fmt: skip
    callback = trainer_callback(method, {"x": X[:2]})
    model = Classifier()
    stop = Stop(transformers, epochs) if epochs else None
    trainer = transformers.Trainer(
        model, arguments, train_dataset=data, callbacks=[callback, *([stop.callback] if stop else [])]
    )
    trainer.train(resume_from_checkpoint=resume or None)
    return callback, model


class Stop:
    """Ends a training after some steps."""

    def __init__(self, transformers: Any, steps: int) -> None:
        class Callback(transformers.TrainerCallback):  # type: ignore[misc]
            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                control.should_training_stop = state.global_step == steps

        self.callback = Callback()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_transformers_training_goes_on_from_its_checkpoint(method: Method, tmp_path: Path) -> None:
    callback, whole = trained(tmp_path / "whole", method, 0)
    check(callback, whole)

    trained(tmp_path / "parts", method, 5)
    callback, resumed = trained(tmp_path / "parts", method, 0, resume=True)

    check(callback, resumed)
    assert all(tensor.equal(resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())
    for stored in (tmp_path / "parts").glob("checkpoint-*/secateur_masks.safetensors"):
        stored.unlink()
    with pytest.raises(RecoveryError, match=r"no masks in .*checkpoint-12"):
        trained(tmp_path / "parts", method, 0, resume=True)


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
@pytest.mark.filterwarnings("ignore")
def test_a_lightning_training_goes_on_from_its_checkpoint(method: Method, tmp_path: Path) -> None:
    pl: Any = pytest.importorskip("lightning.pytorch", reason="lightning is not installed: pip install lightning")

    class Module(pl.LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers()

        def forward(self, x: Tensor) -> Any:
            return self.layers(x)

        def training_step(self, batch: Any, _: int) -> Tensor:
            part = slice(start := 16 * (self.global_step % 6), start + 16)  # its loaders begin anew after a checkpoint
            return F.cross_entropy(self(X[part]), Y[part])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.parameters(), lr=1e-2)

    def fit(steps: int, checkpoint: Path | None = None) -> tuple[Any, nn.Module, Any]:
        data = torch.utils.data.DataLoader(X, batch_size=16)
        callback, model = lightning_callback(method, X[:2]), Module()
        trainer = pl.Trainer(
            max_steps=steps, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, default_root_dir=tmp_path,
        )  # fmt: skip
        trainer.fit(model, data, ckpt_path=checkpoint)
        return callback, model, trainer

    callback, whole, _ = fit(12)
    check(callback, whole)

    fit(6)[2].save_checkpoint(tmp_path / "half.ckpt")
    callback, resumed, _ = fit(12, tmp_path / "half.ckpt")

    check(callback, resumed)
    assert all(tensor.equal(resumed.state_dict()[name]) for name, tensor in whole.state_dict().items())


@pytest.mark.parametrize(("make", "packages"), [
    (trainer_callback, ["transformers"]), (lightning_callback, ["lightning.pytorch", "pytorch_lightning"]),
])  # fmt: skip
def test_a_missing_library_is_named(make: Any, packages: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for package in packages:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(MissingExtraError, match=f"pip install {packages[0].split('.')[0]}"):
        make(METHODS[0], X)
