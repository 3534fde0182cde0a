"""Which axes does a model have that keeps its sizes in settings, one object for all layers?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, NamedTuple

from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised


@dataclass(frozen=True, slots=True)
class Frozen:
    """Settings that cannot be assigned to."""

    dim: int = 7
    heads: int = 3
    width: int = 12


class Named(NamedTuple):
    """Settings in a named tuple."""

    dim: int = 7
    heads: int = 3
    width: int = 12


class Renaming:
    """The configuration of a library, in which attributes go by other names too, and assigning to one does something else."""

    def __init__(self, **settings: Any) -> None:
        vars(self).update(settings)

    def __getattribute__(self, name: str) -> Any:
        return super().__getattribute__({"n_head": "heads", "n_embd": "dim"}.get(name, name))

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"{name} is set through update() only, not to {value}")


class ByAttribute(nn.Module):
    """Attention with its sizes in an object."""

    def __init__(self, settings: Any) -> None:
        super().__init__()
        self.settings = settings
        self.qkv = nn.Linear(settings.dim, 3 * settings.width)
        self.proj = nn.Linear(settings.width, settings.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.settings.heads, self.settings.width)

    def attend(self, x: Tensor, heads: int, width: int) -> Tensor:
        B, N, _ = x.shape
        q, k, v = self.qkv(x).view(B, N, 3, heads, width // heads).permute(2, 0, 3, 1, 4).unbind(0)
        weights = (0.3 * q @ k.transpose(-2, -1)).softmax(dim=-1)
        return x + self.proj((weights @ v).transpose(1, 2).reshape(B, N, width))


class ByKey(ByAttribute):
    """Attention with its sizes in a dict, in another dict."""

    def __init__(self, settings: Mapping[str, Mapping[str, int]]) -> None:
        super().__init__(SimpleNamespace(**settings["attention"]))
        self.settings = settings

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.settings["attention"]["heads"], self.settings["attention"]["width"])


class ByOtherName(ByAttribute):
    """Attention with its sizes in a configuration."""

    def forward(self, x: Tensor) -> Tensor:
        return self.attend(x, self.settings.n_head, self.settings.width)


class TwoLayers(nn.Module):
    """Two layers that hold the very same settings."""

    def __init__(self, layer: Callable[[Any], ByAttribute], settings: Any) -> None:
        super().__init__()
        self.embed = nn.Linear(6, 7)
        self.layers = nn.ModuleList(layer(settings) for _ in range(2))
        self.head = nn.Linear(7, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for layer in self.layers:
            x = layer(x)
        return self.head(x)


def _entry(name: str, layer: Callable[[Any], ByAttribute], settings: Any) -> ZooEntry:
    return ZooEntry(
        f"sizes_in_{name}",
        randomised(lambda: TwoLayers(layer, settings)),
        normal((2, 5, 6)),
        (
            axis(
                "residual",
                7,
                "embed.{weight,bias}:0 layers.{0,1}.qkv.weight:1 layers.{0,1}.proj.{weight,bias}:0 head.weight:1",
            ),
            *(axis("heads", 3, f"layers.{i}.qkv.{{weight,bias}}:0 layers.{i}.proj.weight:1") for i in range(2)),
            *(axis("qkv_width", 4, f"layers.{i}.qkv.{{weight,bias}}:0 layers.{i}.proj.weight:1") for i in range(2)),
        ),
    )


ENTRIES = (
    _entry("a_frozen_dataclass", ByAttribute, Frozen()),
    _entry("a_named_tuple", ByAttribute, Named()),
    _entry("a_namespace", ByAttribute, SimpleNamespace(dim=7, heads=3, width=12)),
    _entry("a_configuration", ByOtherName, Renaming(dim=7, heads=3, width=12)),
    _entry("a_dict", ByKey, {"name": "small", "attention": {"dim": 7, "heads": 3, "width": 12}}),
)
