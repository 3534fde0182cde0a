"""Perplexity, divergence and agreement are what their definitions say, on models small enough to compute them by hand."""

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from secateur.errors import DataError
from secateur.language import fidelity

TOKENS = torch.randint(11, (5, 6), generator=torch.Generator().manual_seed(0))


class Causal(nn.Module):
    """Each token's logits follow from the tokens up to it."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.embed, self.head = nn.Embedding(11, 4), nn.Linear(4, 11)
        self.dropout = nn.Dropout(0.5)

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(logits=self.head(self.dropout(self.embed(input_ids).cumsum(1))))


class Masked(Causal):
    """Each token's logits follow from all tokens."""

    def forward(self, input_ids: Tensor) -> Any:
        x = self.embed(input_ids)
        return SimpleNamespace(logits=self.head(x + x.mean(1, keepdim=True)))


class Encoder(Causal):
    """There are no logits."""

    def forward(self, input_ids: Tensor) -> Any:
        return SimpleNamespace(last_hidden_state=self.embed(input_ids))


@pytest.mark.parametrize("batch", [1, 2, 5, 9])
def test_a_causal_model_is_judged_by_its_next_tokens(batch: int) -> None:
    dense, other = Causal(0), Causal(1)
    found = fidelity(other, dense, TOKENS, batch=batch)
    losses, divergences, same = [], [], []
    dense.eval(), other.eval()
    with torch.no_grad():
        for ids in TOKENS:
            ours, theirs = (model(ids[None]).logits[0].softmax(-1) for model in (other, dense))
            for place in range(5):
                losses.append((-ours[place, ids[place + 1]].log(), -theirs[place, ids[place + 1]].log()))
                divergences.append((theirs[place] * (theirs[place].log() - ours[place].log())).sum())
                same.append(float(ours[place].argmax() == theirs[place].argmax()))
    ours_mean, theirs_mean = (math.exp(sum(float(each[i]) for each in losses) / 25) for i in (0, 1))
    assert found.perplexity == pytest.approx(ours_mean, rel=1e-5)
    assert found.dense_perplexity == pytest.approx(theirs_mean, rel=1e-5)
    assert found.divergence == pytest.approx(float(sum(divergences)) / 25, rel=1e-4)
    assert found.agreement == pytest.approx(sum(same) / 25)
    assert (found.sequences, found.length, found.cosine) == (5, 6, None)
    assert "over 5 sequences of 6 tokens" in str(found)
    assert "perplexity" in str(found)


def test_a_model_is_as_near_as_can_be_to_itself_and_keeps_its_modes() -> None:
    model = Causal(0).train()
    model.head.eval()
    found = fidelity(model, model, TOKENS)
    assert (found.agreement, found.perplexity) == (1.0, found.dense_perplexity)
    assert found.divergence == pytest.approx(0, abs=1e-6)
    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_a_model_that_sees_later_tokens_has_no_perplexity() -> None:
    dense, other = Masked(0), Masked(1)
    found = fidelity(other, dense, TOKENS)
    assert found.perplexity is None
    with torch.no_grad():
        logs = [model(TOKENS).logits.log_softmax(-1).flatten(0, 1) for model in (other, dense)]
    assert found.divergence == pytest.approx(float(F.kl_div(*logs, log_target=True, reduction="batchmean")), rel=1e-4)


def test_an_encoder_is_judged_by_its_states() -> None:
    dense, other = Encoder(0), Encoder(1)
    found = fidelity(other, dense, TOKENS)
    with torch.no_grad():
        cosine = F.cosine_similarity(other.embed(TOKENS), dense.embed(TOKENS), dim=-1).mean()
    assert found.cosine == pytest.approx(float(cosine), rel=1e-5)
    assert (found.perplexity, found.divergence) == (None, None)


def test_progress_is_told() -> None:
    told = []
    fidelity(Causal(0), Causal(0), TOKENS, batch=2, progress=lambda *at: told.append(at))
    assert told == [(2, 5), (4, 5), (5, 5)]


@pytest.mark.parametrize("tokens", [TOKENS[0], TOKENS[:0], TOKENS[:, :1]])
def test_tokens_of_another_form_are_refused(tokens: Tensor) -> None:
    with pytest.raises(DataError, match=r"tokens are \[sequences, length\]"):
        fidelity(Causal(0), Causal(0), tokens)


def test_a_model_of_something_else_is_refused() -> None:
    class Pooled(Causal):
        def forward(self, input_ids: Tensor) -> Any:
            return SimpleNamespace(logits=self.head(self.embed(input_ids).mean(1)))

    with pytest.raises(DataError, match="without logits or last_hidden_state for each token"):
        fidelity(Pooled(0), Pooled(0), TOKENS)
