"""Which axes do whole transformers have: torch's own layers, vision, windows, language?"""

# mypy: disable-error-code="no-any-return"
# Calling a module gives Any; the models stay as their users would write them.

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from secateur.testing.zoo.entry import ZooEntry, axis, normal, randomised, tokens


class MultiheadAttention(nn.Module):
    """`nn.MultiheadAttention` around a residual stream."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(5, dim)
        self.attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        out, _ = self.attention(x, x, x, need_weights=False)
        return self.head(x + out)


class EncoderLayers(nn.Module):
    """`nn.TransformerEncoderLayer`: the norm comes after the sum in the first, before the branch in the second."""

    def __init__(self, dim: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(5, dim)
        self.layer1 = nn.TransformerEncoderLayer(dim, heads, dim_feedforward=10, batch_first=True)
        self.layer2 = nn.TransformerEncoderLayer(
            dim, heads, dim_feedforward=9, activation="gelu", batch_first=True, norm_first=True
        )
        self.head = nn.Linear(dim, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer2(self.layer1(self.embed(x))))


class Attention(nn.Module):
    """Fused attention over tokens [batch, tokens, dim]."""

    def __init__(self, dim: int, heads: int, head_dim: int, causal: bool) -> None:
        super().__init__()
        self.heads = heads
        self.head_dim = head_dim
        self.inner = heads * head_dim
        self.scale = head_dim**-0.5
        self.causal = causal
        self.qkv = nn.Linear(dim, 3 * self.inner)
        self.proj = nn.Linear(self.inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        B, N, _ = x.size()
        q, k, v = self.qkv(x).split(self.inner, dim=2)
        q = q.view(B, N, self.heads, self.head_dim).transpose(1, 2)
        k = k.view(B, N, self.heads, self.head_dim).transpose(1, 2)
        v = v.view(B, N, self.heads, self.head_dim).transpose(1, 2)
        weights = (q @ k.transpose(-2, -1)) * self.scale
        if self.causal:
            mask = torch.ones(N, N, dtype=torch.bool, device=x.device).tril()
            weights = weights.masked_fill(~mask, float("-inf"))
        x = F.softmax(weights, dim=-1) @ v
        return self.proj(x.transpose(1, 2).contiguous().view(B, N, self.inner))


class Block(nn.Module):
    """Attention and feed-forward, each behind a norm and added to the stream."""

    def __init__(self, dim: int, heads: int, head_dim: int, hidden: int, causal: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attention = Attention(dim, heads, head_dim, causal)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """Patches, a class token and positions make a residual stream; the tokens themselves stay."""

    def __init__(self, dim: int = 10) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, dim, 2, stride=2)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.positions = nn.Parameter(torch.zeros(1, 1 + 6, dim))
        self.block = Block(dim, heads=3, head_dim=4, hidden=9, causal=False)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        x = torch.cat((self.cls_token.expand(x.shape[0], -1, -1), x), dim=1) + self.positions
        x = self.norm(self.block(x))
        return self.head(x[:, 0])


class LanguageModel(nn.Module):
    """Causal attention between an embedding and the head that is tied to it."""

    def __init__(self, vocabulary: int = 11, dim: int = 10, length: int = 8) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocabulary, dim)
        self.positions = nn.Embedding(length, dim)
        self.block = Block(dim, heads=3, head_dim=4, hidden=9, causal=True)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, vocabulary, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        positions = torch.arange(x.shape[1], device=x.device)
        x = self.tokens(x) + self.positions(positions)
        return self.head(self.norm(self.block(x)))


class TiedEmbedding(nn.Module):
    """One matrix looks tokens up and scores them; its columns are the stream."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.fc1 = nn.Linear(8, 6)
        self.fc2 = nn.Linear(6, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        x = x + self.fc2(F.relu(self.fc1(x)))
        return F.linear(x, self.embed.weight)


class EmbeddingBag(nn.Module):
    """Sums of embeddings; the vocabulary stays."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(11, 6, mode="sum")
        self.fc1 = nn.Linear(6, 7)
        self.fc2 = nn.Linear(7, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.relu(self.fc1(self.bag(x))))


_STREAM = (
    "block.{norm1,norm2,attention.proj,mlp.2}.{weight,bias}:0 block.{attention.qkv,mlp.0}.weight:1 norm.{weight,bias}:0"
)
_BLOCK_AXES = (
    axis("heads", 3, "block.attention.qkv.{weight,bias}:0 block.attention.proj.weight:1"),
    axis("qkv_width", 4, "block.attention.qkv.{weight,bias}:0 block.attention.proj.weight:1"),
    axis("neurons", 9, "block.mlp.0.{weight,bias}:0 block.mlp.2.weight:1"),
)

ENTRIES = (
    ZooEntry(
        "multihead_attention",
        randomised(MultiheadAttention),
        normal((2, 7, 5)),
        (
            axis(
                "residual",
                12,
                "embed.{weight,bias}:0 attention.in_proj_weight:1 attention.out_proj.{weight,bias}:0 head.weight:1",
            ),
            axis("heads", 3, "attention.{in_proj_weight,in_proj_bias}:0 attention.out_proj.weight:1"),
            axis("qkv_width", 4, "attention.{in_proj_weight,in_proj_bias}:0 attention.out_proj.weight:1"),
        ),
    ),
    ZooEntry(
        "transformer_encoder_layers",
        randomised(EncoderLayers),
        normal((2, 7, 5)),
        (
            axis(
                "residual",
                12,
                "embed.{weight,bias}:0 {layer1,layer2}.self_attn.in_proj_weight:1 "
                "{layer1,layer2}.{self_attn.out_proj,linear2,norm1,norm2}.{weight,bias}:0 "
                "{layer1,layer2}.linear1.weight:1 head.weight:1",
                exact=False,
            ),
            axis("heads", 3, "layer1.self_attn.{in_proj_weight,in_proj_bias}:0 layer1.self_attn.out_proj.weight:1"),
            axis("qkv_width", 4, "layer1.self_attn.{in_proj_weight,in_proj_bias}:0 layer1.self_attn.out_proj.weight:1"),
            axis("heads", 3, "layer2.self_attn.{in_proj_weight,in_proj_bias}:0 layer2.self_attn.out_proj.weight:1"),
            axis("qkv_width", 4, "layer2.self_attn.{in_proj_weight,in_proj_bias}:0 layer2.self_attn.out_proj.weight:1"),
            axis("neurons", 10, "layer1.linear1.{weight,bias}:0 layer1.linear2.weight:1"),
            axis("neurons", 9, "layer2.linear1.{weight,bias}:0 layer2.linear2.weight:1"),
        ),
    ),
    ZooEntry(
        "vision_transformer",
        randomised(VisionTransformer),
        normal((2, 3, 4, 6)),
        (
            axis(
                "residual",
                10,
                f"patch.{{weight,bias}}:0 {{cls_token,positions}}:2 {_STREAM} head.weight:1",
                exact=False,
            ),
            *_BLOCK_AXES,
        ),
    ),
    ZooEntry(
        "language_model",
        randomised(LanguageModel),
        tokens(11, 2, 7),
        (axis("residual", 10, f"{{tokens,positions}}.weight:1 {_STREAM}", exact=False), *_BLOCK_AXES),
    ),
    ZooEntry(
        "tied_embedding",
        randomised(TiedEmbedding),
        tokens(11, 2, 5),
        (
            axis("residual", 8, "embed.weight:1 fc1.weight:1 fc2.{weight,bias}:0"),
            axis("neurons", 6, "fc1.{weight,bias}:0 fc2.weight:1"),
        ),
    ),
    ZooEntry(
        "embedding_bag",
        randomised(EmbeddingBag),
        tokens(11, 2, 5),
        (axis("embedding", 6, "bag.weight:1 fc1.weight:1"), axis("neurons", 7, "fc1.{weight,bias}:0 fc2.weight:1")),
    ),
)
