"""The integers that torch's own layers keep follow from the shapes of their parameters."""

from torch import nn

from secateur.errors import PlanError

_GATES = {"LSTM": 4, "GRU": 3, "RNN": 1, "LSTMCell": 4, "GRUCell": 3, "RNNCell": 1}


def refresh_layer_sizes(model: nn.Module) -> None:
    """Set `out_features`, `in_channels`, `hidden_size`... of every layer of torch to what its parameters say."""
    for module in model.modules():
        if type(module).__module__.startswith("torch.nn."):
            _refresh(module)
        elif isinstance(module, (nn.Linear, nn.modules.conv._ConvNd, nn.Embedding, nn.MultiheadAttention, nn.RNNBase)):
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
            known = [t for t in (module.weight, module.bias, module.running_mean) if t is not None]
            module.num_features = known[0].shape[0] if known else module.num_features
        case nn.GroupNorm():
            module.num_channels = module.num_channels if module.weight is None else module.weight.shape[0]
        case nn.LayerNorm() | nn.RMSNorm():
            module.normalized_shape = module.normalized_shape if module.weight is None else tuple(module.weight.shape)
        case nn.PReLU():
            module.num_parameters = module.weight.shape[0]
        case nn.Bilinear():
            module.out_features, module.in1_features, module.in2_features = module.weight.shape
        case nn.RNNBase():
            projection = getattr(module, "weight_hr_l0", None)
            module.hidden_size = module.weight_ih_l0.shape[0] // _GATES.get(module.mode.split("_")[0], 1)
            module.input_size = module.weight_ih_l0.shape[1]
            module.proj_size = 0 if projection is None else projection.shape[0]
            if module.proj_size >= module.hidden_size:
                raise PlanError(
                    f"an LSTM's projection must be narrower than its cell, but the plan leaves {module.proj_size} and "
                    f"{module.hidden_size}: torch cannot run that; keep more units of the cell or fewer of the projection"
                )
        case nn.RNNCellBase():
            module.input_size, module.hidden_size = module.weight_ih.shape[1], module.weight_hh.shape[1]
        case _:
            pass


def _refresh_attention(module: nn.MultiheadAttention) -> None:
    module.embed_dim = module.out_proj.weight.shape[0]
    if module.in_proj_weight is not None:
        module.kdim = module.vdim = module.in_proj_weight.shape[1]
        module.head_dim = module.in_proj_weight.shape[0] // (3 * module.num_heads)
    else:
        module.kdim, module.vdim = module.k_proj_weight.shape[1], module.v_proj_weight.shape[1]
        module.head_dim = module.q_proj_weight.shape[0] // module.num_heads
