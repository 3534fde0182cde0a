"""The other tools on any model: 30 % of the channels go at random, as the tools' own documentation and examples do it."""

import copy
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from machine import memory
from models.large import Inputs
from reaching.masked import number
from reaching.stages import Stages
from torch import nn

from secateur.torch.structure import tensors_in

SHARE = 0.3
"""What goes of each width."""

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

KEPT = {
    "detection": ("roi_heads", "rpn.head.cls_logits", "rpn.head.bbox_pred", "backbone.fpn", "head"),
    "optical_flow": ("corr_block", "update_block", "mask_predictor"),
}
"""What torch-pruning's example keeps of torchvision's models, by their module."""


class NothingRemovedError(Exception):
    """The tool left everything as it was."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A smaller model, and how to do the same to a numbered copy of the dense one; see masked.py."""

    small: nn.Module
    repeat: Callable[[nn.Module], None]


Prune = Callable[[nn.Module, Inputs, Stages], Cut]


def torch_pruning(model: nn.Module, inputs: Inputs, stages: Stages) -> Cut:
    """The high-level pruner with random importance and one ratio for all layers, as in the examples for each library."""
    _unfuse_attention(model)
    small = copy.deepcopy(model)
    with stages("trace"):
        kept = outputs_of(small, inputs)
        before, started = memory("VmRSS"), time.process_time()
        pruner = _torch_pruner(small, inputs, kept)
        stages.note(seconds=time.process_time() - started, peak_mb=memory("VmHWM") - before)
    with stages("plan"):
        stages.note(axes=_torch_prune(pruner))

    def repeat(twin: nn.Module) -> None:
        again = _torch_pruner(twin, inputs, outputs_of(twin, inputs))
        number(twin)
        _torch_prune(again)

    return Cut(small, repeat)


def _torch_pruner(model: nn.Module, inputs: Inputs, kept: list[nn.Module]) -> Any:
    import torch_pruning as tp

    for parameter in model.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    torch.manual_seed(0)
    heads = head_counts(model)
    whole = any(name in ("q_proj", "query") for name, _, _ in heads.values())
    options: dict[str, Any] = {}
    if whole:  # as in the examples for language models and BERT
        options = {"prune_num_heads": True, "prune_head_dims": False, "head_pruning_ratio": SHARE}
    joint = [layer.num_heads for layer in model.modules() if isinstance(layer, nn.MultiheadAttention)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tp.pruner.BasePruner(
            model,
            dict(inputs) if isinstance(inputs, Mapping) else inputs,
            importance=tp.importance.RandomImportance(),
            pruning_ratio=SHARE,
            ignored_layers=kept,
            num_heads={layer: count for layer, (_, count, _) in heads.items()},
            in_channel_groups={},
            out_channel_groups={},
            round_to=joint[0] if joint else None,
            output_transform=None if isinstance(inputs, torch.Tensor) and not heads else _everything,
            **options,
        )


def _torch_prune(pruner: Any) -> int:
    torch.manual_seed(0)
    count = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for group in pruner.step(interactive=True):
            group.prune()
            count += 1
    _write_sizes(pruner)
    pruner.model.zero_grad()
    return count


def _everything(outputs: Any) -> torch.Tensor:
    """A single number that depends on all outputs."""
    return torch.stack([t.sum() for t in tensors_in(outputs) if t.requires_grad]).sum()


def head_counts(model: nn.Module) -> dict[nn.Module, tuple[str, int, nn.Module]]:
    """The projections of attention: how the layer is called, how many heads it has, and the module of both."""
    found: dict[nn.Module, tuple[str, int, nn.Module]] = {}
    for module in model.modules():
        config = getattr(module, "config", None)
        queries = getattr(module, "num_heads", None) or getattr(module, "num_attention_heads", None)
        queries = queries or getattr(config, "num_attention_heads", None)
        pairs = getattr(module, "num_key_value_heads", None) or getattr(config, "num_key_value_heads", None) or queries
        for names in (("qkv",), ("qkv_proj",), ("query", "key", "value"), ("q_proj", "k_proj", "v_proj")):
            layers = [getattr(module, name, None) for name in names]
            if isinstance(queries, int) and all(isinstance(layer, LAYERS) for layer in layers):
                counts = (queries, pairs, pairs) if names[0] == "q_proj" else (queries,) * 3
                found |= {layer: (names[0], n, module) for layer, n in zip(layers, counts, strict=False)}
    return found


def _write_sizes(pruner: Any) -> None:
    """Bring up to date the numbers that the examples bring up to date by hand."""
    model, counts = pruner.model, pruner.num_heads
    if hasattr(model, "conv_proj") and hasattr(model, "hidden_dim"):
        model.hidden_dim = model.conv_proj.out_channels
    for layer, (name, _, module) in head_counts(model).items():
        width = layer.weight.shape[0]
        if name in ("qkv", "qkv_proj"):
            module.num_heads = counts[layer]
            module.head_dim = width // (3 * module.num_heads)
            if hasattr(module, "attn_dim"):
                module.attn_dim = width // 3
        elif name == "query" and layer is module.query:
            module.num_attention_heads = counts[layer]
            module.attention_head_size, module.all_head_size = width // counts[layer], width
        elif name == "q_proj" and layer is module.q_proj and hasattr(module, "head_dim"):
            module.hidden_size = width
            module.num_heads = width // module.head_dim
            module.num_key_value_heads = module.k_proj.weight.shape[0] // module.head_dim
            module.num_key_value_groups = module.num_heads // max(1, module.num_key_value_heads)
            if hasattr(module, "config"):
                module.config.num_attention_heads = module.num_heads
                module.config.num_key_value_heads = module.num_key_value_heads
        if hasattr(module, "embed_dim") and name == "q_proj":
            module.embed_dim = module.q_proj.weight.shape[0]


def _unfuse_attention(model: nn.Module) -> None:
    """Attention in single steps, as the example for timm asks for with TIMM_FUSED_ATTN=0."""
    for module in model.modules():
        if isinstance(getattr(module, "fused_attn", None), bool):
            module.fused_attn = False


def outputs_of(model: nn.Module, inputs: Inputs) -> list[nn.Module]:
    """The layers that make the outputs: for each output, the last one of its width that runs."""
    from secateur.torch.capture import call

    last: dict[int, nn.Module] = {}

    def note(layer: nn.Module, *_: Any) -> None:
        last[getattr(layer, "out_features", None) or getattr(layer, "out_channels", 0)] = layer

    hooks = [layer.register_forward_hook(note) for layer in model.modules() if isinstance(layer, LAYERS)]
    with torch.no_grad():
        outputs = tensors_in(call(model, inputs))
    for hook in hooks:
        hook.remove()
    widths = {t.shape[1] if t.ndim == 4 else t.shape[-1] for t in outputs if t.ndim > 1}
    kept = [layer for width, layer in last.items() if width in widths]
    for part, paths in KEPT.items():
        if f"torchvision.models.{part}" in type(model).__module__:
            kept += [module for name, module in model.named_modules() if name in paths]
    return kept


def torch_kirigami(model: nn.Module, inputs: Inputs, stages: Stages) -> Cut:
    """One explicit plan: of each layer's channels that are still whole, 30 % at random, where the tool's analysis allows it.

    Its `Greedy` strategy, which chooses by itself, analyses the network anew for each channel: on most models it would not end
    within the limit.
    """
    from torch_kirigami import DependencyGraph
    from torch_kirigami.pruning import Pruner

    small = copy.deepcopy(model)
    with stages("trace"):
        before, started = memory("VmRSS"), time.process_time()
        if isinstance(inputs, Mapping):
            graph = DependencyGraph.build(small, kwargs=dict(inputs))
        else:
            graph = DependencyGraph.build(small, args=inputs if isinstance(inputs, tuple) else (inputs,))
        stages.note(seconds=time.process_time() - started, peak_mb=memory("VmHWM") - before)
    with stages("plan"):
        pruner = Pruner(small, graph=graph)
        chosen = _choose(pruner)
        plan, chosen = _together(pruner, chosen)
        stages.note(axes=len(chosen))
        pruner.apply(plan)

    def repeat(twin: nn.Module) -> None:
        number(twin)
        Pruner(twin).apply(plan)

    return Cut(small, repeat)


def _choose(pruner: Any) -> list[Any]:
    """A random part of every layer's outputs that no other choice has touched."""
    graph, chosen, touched = pruner.graph, [], {}
    refused = "no layer has a channel that may go"
    generator = torch.Generator().manual_seed(0)
    heads = {
        layer: (3 * count if "qkv" in name else count, 1)
        for layer, (name, count, _) in head_counts(pruner.model).items()
    }
    for name, layer in pruner.model.named_modules():
        if not isinstance(layer, LAYERS):
            continue
        dim = 1 if isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d) else 0
        axis = graph.parameter(f"{name}.weight").axis(dim)
        if (axis.tensor.id, dim) in touched:
            continue
        size = layer.weight.shape[dim]
        for parts in heads.get(layer, dict.fromkeys((1, getattr(layer, "groups", 1), 2))):
            gone = int(SHARE * size / parts)
            if size % parts or not gone:
                continue
            pattern = torch.randperm(size // parts, generator=generator)[:gone].sort().values
            selection = axis.select([int(p) + b * (size // parts) for b in range(parts) for p in pattern])
            impact = graph.propagate(remove=[selection], constraints=pruner.constraints)
            if impact.status == "resolved":
                chosen.append(selection)
                for other in impact.selections.values():
                    touched |= {(other.tensor.id, d): 1 for d in range(2) if _whole(other, d)}
                break
            refused = f"{name}: {'; '.join(map(str, impact.diagnostics))}"
    if not chosen:
        raise NothingRemovedError(refused)
    return chosen


def _whole(selection: Any, dim: int) -> bool:
    return dim < len(selection.tensor.shape) and bool(selection.fully_selected_indices(dim))


def _together(pruner: Any, chosen: list[Any]) -> tuple[Any, list[Any]]:
    """A plan of all that is chosen; where there is none, of those parts that can be planned."""
    from torch_kirigami.pruning import PlanningError

    try:
        return pruner.plan_remove(chosen), chosen
    except PlanningError:
        if len(chosen) == 1:
            raise
    plans = []
    for half in (chosen[: len(chosen) // 2], chosen[len(chosen) // 2 :]):
        try:
            plans.append(_together(pruner, half))
        except PlanningError as error:
            reason = error
    if not plans:
        raise reason
    parts = [selection for _, half in plans for selection in half]
    try:
        return (pruner.plan_remove(parts), parts) if len(plans) > 1 else plans[0]
    except PlanningError:
        return plans[0]


PEERS: Mapping[str, Prune] = {"torch-pruning": torch_pruning, "torch-kirigami": torch_kirigami}
