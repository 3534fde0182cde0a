"""How near a model is to the dense one on text: perplexity, divergence, agreement; of an encoder the direction of its states."""

from collections.abc import Callable
from dataclasses import dataclass
from math import exp

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import DataError
from secateur.train.restore import evaluating

Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What a model makes of a text, beside the dense model.

    Attributes:
        sequences: How many sequences were read.
        length: Tokens of each. Perplexities of different lengths cannot be compared.
        perplexity: exp of the mean cross-entropy of the next token; None for a model that does not predict it.
        dense_perplexity: That of the dense model.
        divergence: Mean Kullback-Leibler divergence of the model's tokens from the dense model's, in nats; None without logits.
        agreement: How often both name the same token first, 0 to 1; None without logits.
        cosine: Mean cosine between the states of both, of a model without logits.
    """

    sequences: int
    length: int
    perplexity: float | None = None
    dense_perplexity: float | None = None
    divergence: float | None = None
    agreement: float | None = None
    cosine: float | None = None

    def __str__(self) -> str:
        parts = []
        if self.perplexity is not None and self.dense_perplexity is not None:
            parts.append(f"perplexity {self.perplexity:.2f} (dense {self.dense_perplexity:.2f})")
        if self.divergence is not None and self.agreement is not None:
            parts.append(f"divergence {self.divergence:.3f} nats, same first token {self.agreement:.1%}")
        if self.cosine is not None:
            parts.append(f"cosine of the states {self.cosine:.4f}")
        return f"{', '.join(parts)}; over {self.sequences} sequences of {self.length} tokens"


def fidelity(
    model: nn.Module, dense: nn.Module, tokens: Tensor, *, batch: int = 1, progress: Progress | None = None
) -> Fidelity:
    """Compare a model with the dense one on text.

    A model predicts the next token if what it says of one does not depend on those behind it; this is tried out.

    Args:
        model: Takes `input_ids` and returns an object with `logits` `[batch, length, vocabulary]` or `last_hidden_state`
            `[batch, length, width]`, as those of `transformers` do. Its modes stay as they are.
        dense: The model that it was made from.
        tokens: `[sequences, length]`.
        batch: Sequences in one run, > 0.
        progress: Called as `progress(done, sequences)`.

    Raises:
        DataError: The tokens have another form, or the models return neither.
    """
    if tokens.ndim != 2 or not len(tokens) or tokens.shape[1] < 2 or batch < 1:
        raise DataError(f"tokens are [sequences, length], at least 1 and 2; got {list(tokens.shape)}, batch={batch}")
    sums: dict[str, float] = {}
    done = 0
    with evaluating(model), evaluating(dense), torch.no_grad():
        causal = _is_causal(dense, tokens[:1])
        for ids in torch.split(tokens, batch):
            found = _compared(_states(model, ids), _states(dense, ids), ids, causal=causal)
            for name, value in found.items():
                sums[name] = sums.get(name, 0.0) + value * len(ids)
            done += len(ids)
            if progress is not None:
                progress(done, len(tokens))
    means = {name: value / len(tokens) for name, value in sums.items()}
    for name in ("perplexity", "dense_perplexity"):
        if name in means:
            means[name] = exp(min(means[name], 700.0))
    return Fidelity(len(tokens), tokens.shape[1], **means)


def _compared(ours: Tensor, theirs: Tensor, ids: Tensor, *, causal: bool | None) -> dict[str, float]:
    """The means over one batch, losses in place of perplexities."""
    if causal is None:
        return {"cosine": float(F.cosine_similarity(ours.float(), theirs.float(), dim=-1).mean())}
    logs = [x.float().flatten(0, 1).log_softmax(-1) for x in ((x[:, :-1] if causal else x) for x in (ours, theirs))]
    found = {
        "divergence": float(F.kl_div(logs[0], logs[1], log_target=True, reduction="batchmean")),
        "agreement": float((logs[0].argmax(-1) == logs[1].argmax(-1)).float().mean()),
    }
    if causal:
        targets = ids[:, 1:].flatten().to(logs[0].device)
        found["perplexity"], found["dense_perplexity"] = (float(F.nll_loss(x, targets)) for x in logs)
    return found


def _states(model: nn.Module, ids: Tensor) -> Tensor:
    """Logits, or else the last states: `[batch, length, ...]`."""
    device = next((parameter.device for parameter in model.parameters()), ids.device)
    output = model(input_ids=ids.to(device))
    for name in ("logits", "last_hidden_state"):
        found = getattr(output, name, None)
        if isinstance(found, Tensor) and found.shape[:2] == ids.shape:
            return found
    raise DataError(
        f"{type(model).__name__} returned a {type(output).__name__} without logits or last_hidden_state for each token; "
        "compare models of text, or measure it with a function of your own"
    )


def _is_causal(model: nn.Module, ids: Tensor) -> bool | None:
    """Whether what it says of a token stays when the last one is another; None for a model without logits."""
    other = ids.clone()
    other[:, -1] = ids[:, 0] if int(ids[0, -1]) != int(ids[0, 0]) else (ids[:, 0] + 1) % max(int(ids.max()) + 1, 2)
    output = model(input_ids=ids.to(next(model.parameters()).device))
    if not isinstance(getattr(output, "logits", None), Tensor):
        return None
    one, two = (_states(model, x)[:, :-1].float() for x in (ids, other))
    return bool(torch.allclose(one, two, rtol=1e-3, atol=1e-3 * float(one.abs().max())))
