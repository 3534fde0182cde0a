"""The integers that torch's own layers keep follow from the shapes of their parameters; what torch asks of them."""

import numpy as np
from torch import Tensor, nn

from secateur.axes import Comparison, Width
from secateur.torch.recorder import Recorder

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def refresh_layer_sizes(model: nn.Module) -> None:
    """Set `out_features`, `in_channels`, `hidden_size`... of every layer of torch to what its parameters say."""
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn.") or isinstance(
            module, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)
        ):
            _refresh(module)


def _refresh(module: nn.Module) -> None:
    match module:
        case nn.MultiheadAttention():
            _refresh_attention(module)
        case nn.Linear():
            module.out_features, module.in_features = module.weight.shape
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            module.in_channels, module.out_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            module.out_channels, module.in_channels = module.weight.shape[0], module.weight.shape[1] * module.groups
        case nn.Embedding() | nn.EmbeddingBag():
            module.num_embeddings, module.embedding_dim = module.weight.shape
        case nn.modules.batchnorm._NormBase():
            if (known := _first(module.weight, module.running_mean)) is not None:
                module.num_features = known.shape[0]
        case nn.GroupNorm():
            if (known := _first(module.weight)) is not None:
                module.num_channels = known.shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            if (known := _first(module.weight)) is not None:
                module.normalized_shape = tuple(known.shape)
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = module.weight.shape
        case nn.RNNBase():
            rows, module.input_size = module.get_parameter("weight_ih_l0").shape
            module.hidden_size = rows // _GATES[module.mode.partition("_")[0]]
            module.proj_size = module.get_parameter("weight_hr_l0").shape[0] if module.proj_size else 0
        case nn.RNNCellBase():
            module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
        case _:
            pass


def _first(*tensors: Tensor | None) -> Tensor | None:
    """The first tensor that a layer has."""
    return next((tensor for tensor in tensors if tensor is not None), None)


def _refresh_attention(module: nn.MultiheadAttention) -> None:
    module.embed_dim = module.out_proj.weight.shape[0]
    if (fused := _first(module.in_proj_weight)) is not None:
        module.kdim = module.vdim = fused.shape[1]
        module.head_dim = fused.shape[0] // (3 * module.num_heads)
    else:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
        module.head_dim = module.q_proj_weight.shape[0] // module.num_heads


def limit_layer_sizes(model: nn.Module, recorder: Recorder) -> None:
    """Note what torch asks of its layers' sizes: an LSTM's projection must be narrower than its cell."""
    for path, module in model.named_modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            projection, cell = recorder.dims(module.get_parameter("weight_hr_l0"))
            if isinstance(projection, np.ndarray) and isinstance(cell, np.ndarray):
                text = f"{path}: torch wants an LSTM's projection narrower than its cell"
                recorder.run.limits.append(Comparison("<", Width(projection), Width(cell), True, text))
