"""Models of other libraries, by name: `torchvision/resnet18`, `timm/vit_tiny_patch16_224`, `transformers/bert`, `nets/yolo`."""

import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from models.detectors import DetectorNetwork
from models.large import Inputs, allow_torchvision
from models.nets import NETS
from models.nets.libraries import DIFFUSERS, GRAPHS
from models.tiny import tiny_transformer
from torch import nn
from torch.utils._pytree import tree_map_only

DETECTORS = ("fasterrcnn", "maskrcnn", "keypointrcnn", "retinanet", "ssd", "fcos")
CLIPS: Mapping[str, tuple[int, ...]] = {"mvit": (16, 224, 224), "s3d": (16, 224, 224), "": (16, 112, 112)}
"""Frames, height and width of what video models see, by how their names begin."""


def build(name: str, device: str = "cpu") -> tuple[nn.Module, Inputs]:
    """A model with random weights, in eval mode, and what one call of it takes.

    Args:
        name: `library/model`.
        device: Where the model is; `meta` for its shapes alone. The inputs are on the CPU, or on the meta device too.
    """
    library, _, model = name.partition("/")
    torch.manual_seed(0)
    try:
        with torch.device(device):
            built, inputs = BUILDERS[library](model)
    except NotImplementedError:  # it looks at values while it is built
        built, inputs = BUILDERS[library](model)
        inputs = tree_map_only(torch.Tensor, lambda tensor: tensor.to(device), inputs)
    return built.eval().to(device), inputs


def parameters(name: str) -> int:
    """How many numbers a model of torchvision or timm holds; those of other libraries are small."""
    if not name.startswith(("torchvision/", "timm/")):
        return 0
    try:
        return sum(parameter.numel() for parameter in build(name, "meta")[0].parameters())
    except RuntimeError:  # it cannot be on the meta device
        return 0


def names(library: str) -> list[str]:
    """All models of a library."""
    allow_torchvision()
    return [f"{library}/{model}" for model in LISTS[library]()]


def families() -> Iterator[str]:
    """The smallest model of every module of timm, and of every family of torchvision; all of the others."""
    allow_torchvision()
    import timm

    for module in timm.list_modules():
        members = timm.list_models(module=module)
        yield min((f"timm/{member}" for member in members), key=parameters)
    smallest: dict[str, str] = {}
    for name in names("torchvision"):
        family = re.split(r"[_\d]", name.partition("/")[2])[0]
        smallest.setdefault(family, name)
    yield from smallest.values()
    for library in (name for name in LISTS if name not in ("timm", "torchvision")):
        yield from names(library)


def _torchvision(name: str) -> tuple[nn.Module, Inputs]:
    allow_torchvision()
    import torchvision

    module = torchvision.models.get_model_builder(name).__module__
    options: dict[str, Any] = {"weights": None}
    if "detection" in module or "segmentation" in module:
        options["weights_backbone"] = None
    model = torchvision.models.get_model(name, **options)
    if "optical_flow" in module:
        return model, (torch.rand(1, 3, 128, 128), torch.rand(1, 3, 128, 128))
    if "video" in module:
        size = next(size for start, size in CLIPS.items() if name.startswith(start))
        return model, torch.rand(1, 3, *size)
    if name.startswith(DETECTORS):
        return DetectorNetwork(model), torch.rand(1, 3, 320, 320)
    side = 299 if name == "inception_v3" else 224
    return model, torch.rand(1, 3, side, side)


def _timm(name: str) -> tuple[nn.Module, Inputs]:
    allow_torchvision()
    import timm

    model = timm.create_model(name)
    return model, torch.rand(1, *model.default_cfg.get("input_size", (3, 224, 224)))


def _transformers(name: str) -> tuple[nn.Module, Inputs]:
    allow_torchvision()
    return tiny_transformer(name)


def _torchvision_names() -> list[str]:
    import torchvision

    return [name for name in torchvision.models.list_models() if not name.startswith("quantized")]


def _timm_names() -> list[str]:
    import timm

    return list(timm.list_models())


def _transformers_names() -> list[str]:
    from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    return list(MODEL_MAPPING_NAMES)


TABLES = {"diffusers": DIFFUSERS, "torch_geometric": GRAPHS, "nets": NETS}
"""Libraries whose models are listed by hand."""

BUILDERS: Mapping[str, Callable[[str], tuple[nn.Module, Inputs]]] = {
    "torchvision": _torchvision,
    "timm": _timm,
    "transformers": _transformers,
    **{library: lambda name, table=table: table[name]() for library, table in TABLES.items()},
}
LISTS: Mapping[str, Callable[[], list[str]]] = {
    "torchvision": _torchvision_names,
    "timm": _timm_names,
    "transformers": _transformers_names,
    **{library: lambda table=table: list(table) for library, table in TABLES.items()},
}
