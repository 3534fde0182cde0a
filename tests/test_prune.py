"""Both halves in one job: units go, then weights of what stays, and recovery leaves the zeros alone."""

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import secateur as sc
from secateur import targets
from secateur.errors import BudgetError, DataError, PlanError, RecoveryError, SecateurError, TargetError
from secateur.report import render

Recover = Callable[[nn.Module, Any], nn.Module | None]

HALF = partial(sc.sparsify, sparsity=0.5)
IMAGE = torch.zeros(1, 1, 6, 6)


def dense() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(8, 1, 6, 6, generator=generator), torch.randint(4, (8,), generator=generator)) for _ in range(4)
    ]


def pruned(model: nn.Module | None = None, **choices: Any) -> sc.PruneResult:
    given = {"budget": sc.Budget(macs=0.5), "data": batches(), "measure": False} | choices
    return sc.prune(dense() if model is None else model, IMAGE, **given)


def adam(model: nn.Module, data: Any) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    for inputs, labels in data:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()


def trained_copy(model: nn.Module, data: Any) -> nn.Module:
    other = copy.deepcopy(model)
    adam(other, data)
    return other


def same(a: nn.Module, b: nn.Module) -> bool:
    first, second = a.state_dict(), b.state_dict()
    return first.keys() == second.keys() and all(tensor.equal(second[name]) for name, tensor in first.items())


@pytest.mark.parametrize("form", ["module", "graph"])
def test_weights_go_as_they_go_of_the_compact_model(form: str) -> None:
    units = pruned(form=form)
    both = pruned(form=form, sparsify=HALF)
    by_hand = sc.sparsify(units.model, batches(), sparsity=0.5)
    assert (both.plan, both.proof) == (units.plan, units.proof)
    assert same(both.model, by_hand.model)
    assert both.weights.stays.keys() == by_hand.plan.stays.keys()
    assert all(mask.equal(by_hand.plan.stays[name]) for name, mask in both.weights.stays.items())


@pytest.mark.parametrize("recover", [sc.recover.FineTune(epochs=2), adam])
def test_zeros_stay_through_recovery(recover: Recover) -> None:
    before = pruned(sparsify=HALF)
    after = pruned(sparsify=HALF, recover=recover)
    assert after.weights.zeros == before.weights.zeros > 0
    for parameter, stays in after.weights.of(after.model):
        assert not parameter[~stays].any()
        assert parameter[stays].all()
    assert not same(before.model, after.model)


def test_two_of_four_stay_two_of_four() -> None:
    pattern = partial(sc.sparsify, pattern=sc.patterns.NofM(2, 4), exclude=["0"])
    result = pruned(budget=sc.Budget(macs=0.6), multiple_of=4, sparsify=pattern, recover=adam)
    for name in ("3.weight", "7.weight"):
        weight = result.model.get_parameter(name).movedim(1, -1)
        assert (weight.unflatten(-1, (-1, 4)).count_nonzero(-1) == 2).all()
    assert "0.weight" not in result.weights.stays


@settings(max_examples=6, deadline=None)
@given(sparsity=st.sampled_from([0.0, 0.1, 0.5, 0.9]), share=st.sampled_from([0.3, 0.7, 1.0]), trained=st.booleans())
def test_what_the_plan_says_is_what_the_model_has(sparsity: float, share: float, trained: bool) -> None:
    sparsify = partial(sc.sparsify, sparsity=sparsity, pattern=sc.patterns.Unstructured("tensor"))
    result = pruned(budget=sc.Budget(macs=share), sparsify=sparsify, recover=adam if trained else None)
    for name, stays in result.weights.stays.items():
        parameter = result.model.get_parameter(name)
        assert ((parameter != 0) == stays).all()
        assert int((~stays).sum()) == int(sparsity * parameter.numel() + 0.5)


def test_a_model_of_zeros_keeps_its_counts() -> None:
    model = dense()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    result = pruned(model, sparsify=HALF, score=sc.scores.Magnitude(), recover=sc.recover.FineTune())
    assert result.weights.zeros * 2 == result.weights.total


@pytest.mark.parametrize("form", ["module", "graph"])
def test_both_halves_come_back_from_a_folder(form: str, tmp_path: Path) -> None:
    result = pruned(form=form, sparsify=partial(sc.sparsify, sparsity=0.8), recover=adam)
    sc.save(result.model, tmp_path, result.plan)
    assert same(sc.load(dense(), tmp_path, IMAGE), result.model)


def test_the_record_counts_what_is_left(tmp_path: Path) -> None:
    result = pruned(sparsify=partial(sc.sparsify, sparsity=0.8), recover=adam, evaluate=lambda _: 0.5)
    report = result.report
    rows = {row.name: row for row in report.rows}
    tensors = {name: result.model.get_parameter(name) for name in ("0.weight", "3.weight", "7.weight")}
    assert [step.name for step in report.steps] == ["dense", "pruned", "refit", "sparse", "recovered"]
    assert [weight.name for weight in report.weights] == list(tensors)
    assert [weight.zeros for weight in report.weights] == [int((tensor == 0).sum()) for tensor in tensors.values()]
    assert rows["nonzero weights"].dense == sum(dense().get_parameter(name).numel() for name in tensors)
    assert rows["nonzero weights"].pruned == sum(int(tensor.count_nonzero()) for tensor in tensors.values())
    stored = rows["bytes as secateur.save stores them"]
    for model, plan, size in ((dense(), None, stored.dense), (result.model, result.plan, stored.pruned)):
        saved = sc.save(model, tmp_path / str(size), plan).tensors.values()
        assert size == sum(tensor.bytes(getattr(torch, tensor.dtype).itemsize) for tensor in saved)
    assert "32 samples" in report.notes[-1]
    assert "Which weights are sparse" in render(report)


def test_without_it_no_weight_goes(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        result = pruned(recover=adam)
    assert (result.weights.stays, result.report.weights, caplog.records) == ({}, (), [])
    assert not any("nonzero" in row.name for row in result.report.rows)


def test_progress_tells_the_layers() -> None:
    told: list[tuple[str, int, int]] = []
    pruned(sparsify=HALF, progress=lambda *step: told.append(step))
    assert [step[1:] for step in told if step[0] == "sparsify"] == [(0, 1), (1, 3), (2, 3), (3, 3), (1, 1)]


@pytest.mark.parametrize(
    ("choices", "error", "message"),
    [
        ({"sparsify": HALF, "data": None}, DataError, "sparsify= needs data="),
        ({"sparsify": 0.5}, PlanError, r"functools.partial\(secateur.sparsify, sparsity=0.5\); got 0.5"),
        ({"sparsify": lambda model, _data, progress: model}, PlanError, "gave a Sequential; it gives a SparseResult"),
        ({"sparsify": sc.sparsify}, BudgetError, "needs a sparsity"),
        ({"sparsify": partial(sc.sparsify, sparsity=0.5, exclude=["none"])}, PlanError, "'none' names no parameter"),
        ({"sparsify": HALF, "recover": trained_copy}, RecoveryError, r"gave back [\d,]+ weights that had gone"),
    ],
)
def test_what_does_not_fit_is_refused(choices: dict[str, Any], error: type[SecateurError], message: str) -> None:
    with pytest.raises(error, match=message):
        pruned(**choices)


def test_a_recovery_may_hold_the_zeros_of_a_copy_itself() -> None:
    def careful(model: nn.Module, data: Any) -> nn.Module:
        other = trained_copy(model, data)
        with torch.no_grad():
            for parameter, before in zip(other.parameters(), model.parameters(), strict=True):
                parameter[before == 0] = 0
        return other

    result = pruned(sparsify=HALF, recover=careful)
    assert all(not parameter[~stays].any() for parameter, stays in result.weights.of(result.model))


def test_the_target_is_tried_before_anything_else_and_named_in_the_report() -> None:
    log: list[str] = []

    @dataclass(frozen=True)
    class Device:
        refuses: bool = False

        @contextmanager
        def load(self, model: nn.Module, inputs: Any) -> Iterator[targets.Loaded]:
            if self.refuses:
                raise TargetError("it cannot run this")
            log.append("load")
            agreement = targets.Agreement(2e-7, 1e-3)
            yield targets.Loaded("a device", lambda: log.append("run"), 77, "device:0", 3, agreement)

    def told(stage: str, done: int, total: int) -> None:
        if not done:
            log.append(stage)

    report = pruned(measure=True, target=Device(), progress=told).report

    assert log.index("load") < log.index("score")
    assert log.count("load") == 3  # the dense model once more, with the pruned one
    assert report.latency[0].name.startswith("a device on device:0, 3 threads, inputs 1")
    proof = report.proofs[-1]
    assert (proof.name, proof.value, proof.tolerance, proof.passed) == ("target = PyTorch", 2e-7, 1e-3, True)
    assert {row.name: row.dense for row in report.rows}["bytes that a device loads"] == 77
    assert "peak memory" not in {row.name for row in report.rows}
    with pytest.raises(TargetError, match="it cannot run this"):
        pruned(measure=True, target=Device(refuses=True), score=lambda *_: pytest.fail("a score was asked for"))
