"""Models by name from timm, torchvision and transformers, where these are installed, with inputs that they are made for."""

import importlib
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from secateur.cli.objects import guarded, nearest
from secateur.errors import JobError, MissingExtraError, ModelError
from secateur.torch import Inputs

TOKENS = 32
"""The length of a text, where a model takes any."""


def timm(name: str, folder: Path, *, known: bool) -> tuple[nn.Module, Inputs | None]:  # noqa: ARG001
    """A model of timm, not pretrained, and the images it is made for.

    Args:
        name: As `timm.create_model` takes it.
        folder: Of no use here.
        known: Whether the inputs are known already.
    """
    source, names = library("timm"), library("timm").list_models()
    if name.partition(".")[0] not in names:
        raise JobError(f"timm has no model {name!r}{nearest(name, names)}")
    model = guarded(lambda: source.create_model(name, pretrained=False), f"timm's model {name!r}")
    size = library("timm.data").resolve_model_data_config(model)["input_size"]
    return model, torch.zeros(1, *size)


def torchvision(name: str, folder: Path, *, known: bool) -> tuple[nn.Module, Inputs | None]:  # noqa: ARG001
    """A model of torchvision, not pretrained, and an image of the size that its weights were trained on, if it classifies images.

    Args:
        name: As `torchvision.models.get_model` takes it.
        folder: Of no use here.
        known: Whether the inputs are known already.
    """
    models = library("torchvision").models
    if name not in models.list_models():
        raise JobError(f"torchvision has no model {name!r}{nearest(name, models.list_models())}")
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    untrained = {option: None for option in ("weights", "weights_backbone") if option in parameters}
    model = guarded(lambda: models.get_model(name, **untrained), f"torchvision's model {name!r}")
    crop = getattr(models.get_model_weights(name).DEFAULT.transforms(), "crop_size", None)  # of classifiers alone
    return model, torch.zeros(1, 3, *crop * 2) if crop is not None and len(crop) == 1 else None


def hugging_face(name: str, folder: Path, *, known: bool) -> tuple[nn.Module, Inputs | None]:
    """A model of transformers from a local folder; with the weights that lie there as safetensors, or with random ones.

    Args:
        name: The folder, with a `config.json`.
        folder: What it is relative to.
        known: Whether the inputs are known already.
    """
    path = folder / Path(name).expanduser()
    if not (path / "config.json").is_file():
        raise JobError(f"hf/{name}: there is no {path / 'config.json'}; name a folder that save_pretrained wrote")
    source = library("transformers")
    config = guarded(
        lambda: source.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False),
        f"the configuration in {path}",
    )
    config.use_cache = False  # the keys and values of past tokens are no output to keep
    weights = sorted(path.glob("*.safetensors"))
    others = sorted(path.glob("*.bin"))
    if others and not weights:
        raise ModelError(
            f"{path} has its weights as {others[0].name}, which may run code when it is read; save them as safetensors"
        )
    model = guarded(lambda: _built(source, config, path if weights else None), f"the model in {path}")
    return model, None if known else _dummy(model, config)


def _built(source: Any, config: Any, weights: Path | None) -> nn.Module:
    """The architecture that the configuration names, so with its head, or else the bare model; never code from the folder."""
    named = [getattr(source, name, None) for name in config.architectures or ()]
    kind: Any = next((one for one in named if isinstance(one, type) and issubclass(one, source.PreTrainedModel)), None)
    options = {"config": config, "local_files_only": True, "use_safetensors": True}
    model: nn.Module
    if weights is not None:
        model = (kind or source.AutoModel).from_pretrained(weights, trust_remote_code=False, **options)
    else:
        model = kind(config) if kind else source.AutoModel.from_config(config, trust_remote_code=False)
    return model


def _dummy(model: Any, config: Any) -> dict[str, torch.Tensor] | None:
    """Inputs by the name of what the model mainly reads: texts or images."""
    if model.main_input_name == "input_ids":
        tokens = torch.zeros(1, TOKENS, dtype=torch.int64)
        return {"input_ids": tokens} | ({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})
    if model.main_input_name == "pixel_values" and isinstance(getattr(config, "image_size", None), int):
        return {"pixel_values": torch.zeros(1, config.num_channels, config.image_size, config.image_size)}
    return None


def library(name: str) -> ModuleType:
    """A library that models come from.

    Raises:
        MissingExtraError: It is not installed, or not the build that belongs to this torch.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise MissingExtraError(
            f"models of {package} need it to be installed: pip install 'secateur[zoo]' ({error})"
        ) from error
    except RuntimeError as error:
        raise MissingExtraError(
            f"{name} is installed, but cannot be imported: {error}; install the build that belongs to torch {torch.__version__}"
        ) from error
