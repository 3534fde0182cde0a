"""`masked` for trainers that own the loop: callbacks that open it, keep its state with their checkpoints, and close it."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.errors import MissingExtraError, RecoveryError
from secateur.sparse import WeightPlan
from secateur.torch.capture import Inputs
from secateur.train.masked import Training, masked
from secateur.train.method import Method

FILE = "secateur_masks.safetensors"
"""What is stored in each checkpoint of the `Trainer` of transformers."""


def trainer_callback(masks: WeightPlan | Method, inputs: Inputs | None = None, exclude: Sequence[str] = ()) -> Any:
    """A callback for the `Trainer` of transformers that holds masks while it trains.

    A training that goes on from a checkpoint goes on with the masks in it, looked for where the trainer puts its checkpoints.

    Args:
        masks: A plan, or a method; see `masked`.
        inputs: What the model takes; see `masked`.
        exclude: Parameters or modules that stay dense, as name patterns.

    Returns:
        A `transformers.TrainerCallback`, whose `training` is what `masked` gives; None before the training.

    Raises:
        MissingExtraError: transformers is not installed.
        RecoveryError: In a training that goes on: the checkpoint has no masks.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise _missing("transformers") from error

    return _made(_InTransformers, TrainerCallback)(masks, inputs, exclude)


def lightning_callback(masks: WeightPlan | Method, inputs: Inputs | None = None, exclude: Sequence[str] = ()) -> Any:
    """A callback for the trainer of Lightning that holds masks while it trains.

    The masks are part of each checkpoint, and a training that goes on from one goes on with them.

    Args:
        masks: A plan, or a method; see `masked`.
        inputs: What the model takes; see `masked`.
        exclude: Parameters or modules that stay dense, as name patterns.

    Returns:
        A `lightning.pytorch.Callback`, whose `training` is what `masked` gives; None before the training.

    Raises:
        MissingExtraError: Neither lightning nor pytorch-lightning is installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise _missing("lightning") from error

    return _made(_InLightning, Callback)(masks, inputs, exclude)


class _Opened:
    """`masked`, opened and closed by calls."""

    def __init__(self, masks: WeightPlan | Method, inputs: Inputs | None, exclude: Sequence[str]) -> None:
        super().__init__()
        self._masks, self._inputs, self._exclude = masks, inputs, exclude
        self._stack = ExitStack()
        self.training: Training | None = None

    def open(self, model: nn.Module, state: Mapping[str, Tensor] | None) -> None:
        self.close()
        opened = masked(model, self._masks, self._inputs, exclude=self._exclude, state=state)
        self.training = self._stack.enter_context(opened)

    def close(self) -> None:
        self._stack.close()


class _InTransformers(_Opened):
    def on_train_begin(self, args: Any, state: Any, control: Any, **others: Any) -> None:  # noqa: ARG002
        self.open(others["model"], _stored(_folder(args, state)) if state.global_step else None)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        if self.training is not None and state.is_world_process_zero:
            save_file(self.training.state_dict(), _folder(args, state) / FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self.close()


class _InLightning(_Opened):
    restored: dict[str, Tensor] | None = None

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        self.restored = state_dict or None

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.training is None else self.training.state_dict()

    def on_train_start(self, trainer: Any, pl_module: nn.Module) -> None:  # noqa: ARG002
        self.open(pl_module, self.restored)

    def on_train_end(self, trainer: Any, pl_module: nn.Module) -> None:  # noqa: ARG002
        self.close()

    def on_exception(self, trainer: Any, pl_module: nn.Module, exception: BaseException) -> None:  # noqa: ARG002
        self.close()


def _made(events: type[_Opened], base: type) -> Any:
    """A callback of a library that may not be installed."""
    return type("Masked", (events, base), {})


def _folder(args: Any, state: Any) -> Path:
    """Where the trainer of transformers puts the checkpoint of this step."""
    return Path(args.output_dir) / f"checkpoint-{state.global_step}"


def _stored(folder: Path) -> dict[str, Tensor]:
    if not (folder / FILE).is_file():
        raise RecoveryError(
            f"the training goes on from a checkpoint, but there are no masks in {folder}: no {FILE}; give the output_dir of the "
            "training that was stopped, or begin anew"
        )
    return load_file(folder / FILE)


def _missing(package: str) -> MissingExtraError:
    return MissingExtraError(f"{package} is not installed: pip install {package}")
