"""Networks beside those of the large collections, by name, each with what one call of it takes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from models.nets.images import Discriminator, Generator, Ssd, StyleGenerator, Yolo
from models.nets.records import Conformer, Dlrm, NeuMf, Pinn, RnnT
from models.nets.written import (
    ComputedAttributes,
    EinopsNet,
    FunctionalWeights,
    LayersInPlainList,
    ParametersInDict,
    ParametersInList,
    QuarterOfWidth,
    SharedLayer,
    SizesInConfig,
    SizesInDataclass,
    lambdas,
)
from torch import nn

Call = tuple[nn.Module, Any]


def ids(count: int, *shape: int) -> torch.Tensor:
    """Numbers below a count."""
    return torch.randint(count, shape)


NETS: Mapping[str, Callable[[], Call]] = {
    "dcgan_generator": lambda: (Generator(), torch.randn(2, 64, 1, 1)),
    "dcgan_discriminator": lambda: (Discriminator(), torch.randn(2, 3, 64, 64)),
    "stylegan_generator": lambda: (StyleGenerator(), torch.randn(2, 64)),
    "yolo": lambda: (Yolo(), torch.rand(1, 3, 128, 128)),
    "ssd": lambda: (Ssd(), torch.rand(1, 3, 128, 128)),
    "dlrm": lambda: (Dlrm(), (torch.rand(4, 13), ids(20, 4, 3, 2))),
    "neumf": lambda: (NeuMf(), (ids(100, 8), ids(200, 8))),
    "conformer": lambda: (Conformer(), torch.rand(1, 100, 80)),
    "rnn_t": lambda: (RnnT(), (torch.rand(1, 30, 40), ids(30, 1, 6))),
    "pinn": lambda: (Pinn(), torch.rand(64, 2)),
    "lambdas": lambda: (lambdas(), torch.rand(2, 3, 32, 32)),
    "parameters_in_list": lambda: (ParametersInList(), torch.rand(4, 20)),
    "parameters_in_dict": lambda: (ParametersInDict(), torch.rand(2, 6, 16)),
    "functional_weights": lambda: (FunctionalWeights(), torch.rand(2, 3, 16, 16)),
    "einops": lambda: (EinopsNet(), torch.rand(2, 3, 32, 32)),
    "sizes_in_dataclass": lambda: (SizesInDataclass(), torch.rand(2, 10, 64)),
    "sizes_in_dataclass_bare": lambda: (SizesInDataclass(embed=False), torch.rand(2, 10, 64)),
    "sizes_in_config": lambda: (SizesInConfig(), ids(100, 2, 10)),
    "computed_attributes": lambda: (ComputedAttributes(), torch.rand(2, 24, 12, 12)),
    "quarter_of_width": lambda: (QuarterOfWidth(), torch.rand(4, 24)),
    "layers_in_plain_list": lambda: (LayersInPlainList(), torch.rand(4, 16)),
    "shared_layer": lambda: (SharedLayer(), torch.rand(4, 12)),
}
