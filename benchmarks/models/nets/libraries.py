"""Small networks of `diffusers` and `torch-geometric`, by name, each with what one call of it takes."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

Call = tuple[nn.Module, Any]


def diffusion(cls: str, sizes: Mapping[str, Any], inputs: Mapping[str, Any]) -> Call:
    """A model of diffusers."""
    import diffusers

    return getattr(diffusers, cls)(**sizes), dict(inputs) | {"return_dict": False}


UNET_2D = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
UNET_CONDITION = {
    "sample_size": 32,
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "cross_attention_dim": 48,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
}
KL = {
    "block_out_channels": (32, 64),
    "norm_num_groups": 8,
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
DIT = {
    "num_attention_heads": 4,
    "attention_head_dim": 16,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "norm_num_groups": 8,
    "sample_size": 16,
    "num_embeds_ada_norm": 10,
}
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 48,
    "pooled_projection_dim": 24,
    "axes_dims_rope": (4, 6, 6),
}
SD3 = {
    "sample_size": 16,
    "num_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 4,
    "joint_attention_dim": 48,
    "caption_projection_dim": 64,
    "pooled_projection_dim": 24,
    "in_channels": 4,
    "out_channels": 4,
    "pos_embed_max_size": 16,
}
LATENT, STEP = (1, 4, 16, 16), torch.tensor([3])

DIFFUSERS: Mapping[str, Callable[[], Call]] = {
    "unet_2d": lambda: diffusion("UNet2DModel", UNET_2D, {"sample": torch.rand(1, 3, 32, 32), "timestep": STEP}),
    "unet_2d_condition": lambda: diffusion(
        "UNet2DConditionModel",
        UNET_CONDITION,
        {"sample": torch.rand(1, 4, 32, 32), "timestep": STEP, "encoder_hidden_states": torch.rand(1, 7, 48)},
    ),
    "autoencoder_kl": lambda: diffusion("AutoencoderKL", KL, {"sample": torch.rand(1, 3, 32, 32)}),
    "dit": lambda: diffusion(
        "DiTTransformer2DModel",
        DIT,
        {"hidden_states": torch.rand(*LATENT), "timestep": STEP, "class_labels": torch.tensor([1])},
    ),
    "sd3": lambda: diffusion(
        "SD3Transformer2DModel",
        SD3,
        {
            "hidden_states": torch.rand(*LATENT),
            "encoder_hidden_states": torch.rand(1, 7, 48),
            "pooled_projections": torch.rand(1, 24),
            "timestep": STEP,
        },
    ),
    "flux": lambda: diffusion(
        "FluxTransformer2DModel",
        FLUX,
        {
            "hidden_states": torch.rand(1, 16, 16),
            "encoder_hidden_states": torch.rand(1, 7, 48),
            "pooled_projections": torch.rand(1, 24),
            "timestep": torch.tensor([0.5]),
            "img_ids": torch.rand(16, 3),
            "txt_ids": torch.zeros(7, 3),
        },
    ),
}


class GraphNet(nn.Module):
    """Two layers of a kind over a graph, and a mean over its nodes."""

    def __init__(
        self, layer: Callable[[int, int], nn.Module], inputs: int = 16, width: int = 48, classes: int = 5
    ) -> None:
        super().__init__()
        self.first, self.second = layer(inputs, width), layer(width, width)
        self.output = nn.Linear(width, classes)

    def forward(self, x: torch.Tensor, edge_index: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.first(x, edge_index))
        return self.output(torch.relu(self.second(x, edge_index)).mean(0))


def graph(cls: str, wrap: Callable[[Any], Callable[[int, int], nn.Module]] = lambda layer: layer) -> Call:
    """A network of layers of torch-geometric, and a ring of nodes with their features."""
    import torch_geometric.nn

    nodes = torch.arange(20)
    ring = torch.stack([torch.cat([nodes, nodes.roll(1)]), torch.cat([nodes.roll(1), nodes])])
    return GraphNet(wrap(getattr(torch_geometric.nn, cls))), (torch.rand(20, 16), ring)


def two_layers(inputs: int, outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, 2 * outputs), nn.ReLU(), nn.Linear(2 * outputs, outputs))


GRAPHS: Mapping[str, Callable[[], Call]] = {
    "gcn": lambda: graph("GCNConv"),
    "gat": lambda: graph("GATConv", lambda layer: lambda inputs, outputs: layer(inputs, outputs // 4, heads=4)),
    "sage": lambda: graph("SAGEConv"),
    "gin": lambda: graph("GINConv", lambda layer: lambda inputs, outputs: layer(two_layers(inputs, outputs))),
}
