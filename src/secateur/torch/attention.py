"""`nn.MultiheadAttention` in open form: the same parameters, the same result, but heads that can be removed.

The library module asserts that heads times width equals the model's width and hides its graph in one fused call. The open form is
a subclass whose forward is plain matrix products, with its sizes in attributes and the scale kept. It is used while a model is
watched, and in the compact model, where heads are gone.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class OpenMultiheadAttention(nn.MultiheadAttention):
    """Multi-head attention (Vaswani et al. 2017, section 3.2.2) whose heads may number less than the width asks for.

    Attributes:
        scale: What scores are multiplied with: 1 / sqrt(width of a head before pruning).

    """

    scale: float

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """As `nn.MultiheadAttention.forward`."""
        if is_causal and attn_mask is None:
            raise ValueError("is_causal is a hint about attn_mask, as in nn.MultiheadAttention; pass the mask too")
        batched = query.dim() == 3
        if not batched:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = self._projected(query, key, value)
        k, v, added = self._extended(k, v)
        scores = (self._by_head(q) * self.scale) @ self._by_head(k).transpose(-2, -1)
        bias = self._bias(attn_mask, key_padding_mask, q, added)
        weights = torch.softmax(scores if bias is None else scores + bias, dim=-1)
        if bias is not None and not need_weights:
            # As torch's fused attention: a query that may look at nothing gets zeros, not NaN.
            weights = weights.masked_fill((bias == -math.inf).all(dim=-1, keepdim=True), 0.0)
        mixed = F.dropout(weights, self.dropout, self.training) @ self._by_head(v)
        out = self.out_proj(mixed.transpose(1, 2).flatten(2))
        out = out.squeeze(0) if not batched else out if self.batch_first else out.transpose(0, 1)
        if not need_weights:
            return out, None
        shown = weights.mean(dim=1) if average_attn_weights else weights
        return out, shown if batched else shown.squeeze(0)

    def _projected(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fused: Tensor | None = self.in_proj_weight
        bias: Tensor | None = self.in_proj_bias
        biases = (None, None, None) if bias is None else bias.chunk(3)
        weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight) if fused is None else fused.chunk(3)
        q, k, v = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
        return q, k, v

    def _extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor, int]:
        """Append the learned and the zero key, where the module has them."""
        added = 0
        if self.bias_k is not None and self.bias_v is not None:
            k = torch.cat([k, self.bias_k.expand(k.shape[0], -1, -1)], dim=1)
            v = torch.cat([v, self.bias_v.expand(v.shape[0], -1, -1)], dim=1)
            added += 1
        if self.add_zero_attn:
            k = torch.cat([k, torch.zeros_like(k[:, :1])], dim=1)
            v = torch.cat([v, torch.zeros_like(v[:, :1])], dim=1)
            added += 1
        return k, v, added

    def _by_head(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)

    def _bias(self, attn_mask: Tensor | None, key_padding_mask: Tensor | None, q: Tensor, added: int) -> Tensor | None:
        """Both masks as one number to add to the scores `[batch, heads, queries, keys]`."""
        bias = None
        for mask, is_attention in ((attn_mask, True), (key_padding_mask, False)):
            if mask is None:
                continue
            if mask.dtype == torch.bool:
                mask = torch.zeros(mask.shape, dtype=q.dtype, device=q.device).masked_fill(mask, -math.inf)
            mask = F.pad(mask, (0, added))
            if not is_attention:
                mask = mask[:, None, None, :]
            elif mask.dim() == 3:
                mask = mask.reshape(-1, self.num_heads, *mask.shape[1:])
            bias = mask if bias is None else bias + mask
        return bias


def open_attention(model: nn.Module) -> list[str]:
    """Open every `nn.MultiheadAttention` of a model in place; returns their paths."""
    paths = []
    for path, module in model.named_modules():
        if type(module) is nn.MultiheadAttention:
            open_module(module)
            paths.append(path)
    if paths:
        close_nested_paths(model)
    return paths


class OpenTransformerEncoder(nn.TransformerEncoder):
    """An encoder that hands no nested tensors to its layers, which are open, and still writes zeros where the library does."""

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As `nn.TransformerEncoder.forward`."""
        out = src
        for layer in self.layers:
            out = layer(out, src_mask=mask, is_causal=bool(is_causal), src_key_padding_mask=src_key_padding_mask)
        if src_key_padding_mask is not None and mask is None and self._zeroes(src, src_key_padding_mask):
            out = out.masked_fill((src_key_padding_mask != 0)[..., None], 0.0)
        return out if self.norm is None else self.norm(out)

    def _zeroes(self, src: Tensor, padding: Tensor) -> bool:
        """Whether the library would take its nested path, which leaves zeros at padded positions."""
        if not (self.use_nested_tensor and torch.backends.mha.get_fastpath_enabled()) or src.dim() != 3:
            return False
        trains = torch.is_grad_enabled() and any(p.requires_grad for p in self.layers[0].parameters())
        if self.layers[0].training or trains or torch.is_autocast_enabled():
            return False
        if not self.mask_check:
            return True
        aligned = torch._nested_tensor_from_mask_left_aligned(src, padding == 0)
        return not torch.compiler.is_compiling() and bool(aligned)


def close_nested_paths(model: nn.Module) -> None:
    """Keep `nn.TransformerEncoder` from handing nested tensors to layers that are open."""
    for module in model.modules():
        if type(module) is nn.TransformerEncoder:
            module.__class__ = OpenTransformerEncoder
        elif isinstance(module, nn.TransformerEncoder) and not isinstance(module, OpenTransformerEncoder):
            module.use_nested_tensor = False


def open_module(module: nn.Module) -> None:
    """Turn one library module into its open form, keeping its parameters.

    `_qkv_same_embed_dim` is private to torch, but it is the only switch that keeps `nn.TransformerEncoderLayer` from its fused
    path in eval mode, which reads the module's parameters itself (torch/nn/modules/transformer.py, `why_not_sparsity_fast_path`).
    """
    assert isinstance(module, nn.MultiheadAttention)
    module.__class__ = OpenMultiheadAttention
    assert isinstance(module, OpenMultiheadAttention)
    module.scale = 1.0 / math.sqrt(module.head_dim)
    module._qkv_same_embed_dim = False
