"""PyTorch models are measured as they would run, and are afterwards as they were before."""

import os
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from secateur.errors import DataError
from secateur.targets import Eager, measure
from secateur.targets.memory import memory_of_one_run

X = torch.zeros(2, 4)


class Watched(nn.Module):
    """Notes how it is run."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)
        self.seen: list[Any] = []

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        self.seen.append((y is not None, self.training, torch.is_grad_enabled(), torch.get_num_threads()))
        out: Tensor = self.layer(x if y is None else x + y)
        return out


def quick(models: Mapping[str, nn.Module], inputs: Any, threads: int | None = None) -> Any:
    return measure(models, inputs, target=Eager(threads), runs=3, seconds=0.0)


def test_every_model_gets_a_measurement_under_its_name_and_in_its_order() -> None:
    measured = quick({"pruned": nn.Linear(4, 1), "dense": nn.Linear(4, 8)}, X)

    assert list(measured) == ["pruned", "dense"]
    for one in measured.values():
        assert len(one.latency.samples) == 3
        assert all(seconds > 0 for seconds in one.latency.samples)
        assert one.device == "cpu"
        assert one.threads == torch.get_num_threads()
    assert measured["dense"].stored == measured["dense"].memory.weights == 4 * (4 * 8 + 8)


@pytest.mark.parametrize(("inputs", "has_y"), [(X, False), ((X,), False), ((X, X), True), ({"y": X, "x": X}, True)])
def test_inputs_are_a_tensor_a_tuple_or_a_mapping(inputs: Any, has_y: bool) -> None:
    model = Watched()

    quick({"it": model}, inputs)

    assert {seen[0] for seen in model.seen} == {has_y}


def test_models_run_in_eval_mode_without_gradients_on_the_threads_asked_for() -> None:
    model = Watched().train()
    threads = torch.get_num_threads()

    measured = quick({"it": model}, X, threads=threads + 1)

    assert {seen[1:] for seen in model.seen} == {(False, False, threads + 1)}
    assert measured["it"].threads == threads + 1
    assert torch.get_num_threads() == threads
    assert torch.is_grad_enabled()


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout()).train()
    model[1].eval()

    quick({"it": model}, X)

    assert [module.training for module in model.modules()] == [True, True, False, True]


def test_modes_and_threads_come_back_when_a_model_fails() -> None:
    good, bad, threads = nn.Linear(4, 4).train(), nn.Linear(5, 5).train(), torch.get_num_threads()

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        quick({"good": good, "bad": bad}, X, threads=threads + 1)

    assert (good.training, bad.training) == (True, True)
    assert torch.get_num_threads() == threads


def test_measuring_changes_no_weight_and_no_statistic() -> None:
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4)).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    quick({"it": model}, torch.rand(3, 4))

    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_what_a_model_caches_while_it_is_measured_can_be_trained_with() -> None:
    class Caching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(4))
            self.table: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.table is None:
                self.table = torch.arange(4.0)
            return x * self.table * self.weight

    model = Caching()
    quick({"it": model}, X)

    model(torch.ones(1, 4)).sum().backward()

    assert torch.equal(model.weight.grad, torch.arange(4.0))


def test_the_peak_counts_what_is_allocated_at_the_same_time() -> None:
    class Peaks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            first = torch.empty(1_000_000)  # 4 MB
            second = torch.empty(500_000)  # 2 MB, while the first is there
            del first
            third = torch.empty(750_000)  # 3 MB, in its place
            return x + second.numel() + third.numel()

    memory = quick({"it": Peaks()}, X)["it"].memory

    assert 6_000_000 <= memory.activations < 6_010_000
    assert memory.weights == 0
    assert memory.peak == memory.activations


def test_fewer_units_need_less_memory() -> None:
    wide, narrow = (nn.Sequential(nn.Linear(4, n), nn.ReLU(), nn.Linear(n, 4)) for n in (640, 160))

    measured = quick({"wide": wide, "narrow": narrow}, torch.zeros(100, 4))

    # The hidden activation, before and after the ReLU: 100 x n floats each.
    assert measured["wide"].memory.activations >= 2 * 100 * 640 * 4
    assert measured["narrow"].memory.activations < measured["wide"].memory.activations / 2


def test_tied_weights_and_what_is_not_saved_are_counted_right() -> None:
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    model.register_buffer("table", torch.zeros(25), persistent=False)

    one = quick({"it": model}, torch.zeros(1, dtype=torch.int64))["it"]

    assert one.stored == 160
    assert one.memory.weights == 160 + 100


def test_pytorch_itself_needs_no_comparison() -> None:
    one = quick({"it": nn.Linear(4, 4)}, X)["it"]

    assert (one.target, one.agreement) == ("PyTorch eager", None)


def test_no_threads_are_refused() -> None:
    with pytest.raises(DataError, match="0 threads; give at least 1"):
        Eager(threads=0)


def test_measuring_prints_nothing_and_leaves_the_environment(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("KINETO_LOG_LEVEL", raising=False)

    quick({"it": nn.Linear(4, 4)}, X)

    assert capfd.readouterr() == ("", "")
    assert "KINETO_LOG_LEVEL" not in os.environ


def test_on_an_accelerator_its_own_allocator_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"now": 100, "peak": 900}
    monkeypatch.setattr(torch.accelerator, "reset_peak_memory_stats", lambda device: held.update(peak=held["now"]))
    monkeypatch.setattr(torch.accelerator, "memory_allocated", lambda device: held["now"])
    monkeypatch.setattr(torch.accelerator, "max_memory_allocated", lambda device: held["peak"])

    memory = memory_of_one_run(nn.Linear(4, 4), lambda: held.update(peak=350), torch.device("cuda"))

    assert memory.activations == 250


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": {}}, "no network to measure"),
        ({"inputs": {1.0}}, "inputs of type set; give a tensor, a tuple of positional or a dict"),
        ({"runs": 0}, "0 runs give no median"),
        ({"seconds": float("inf")}, "time limit of inf s"),
    ],
)
def test_what_cannot_be_measured_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        measure(**{"models": {"it": nn.Linear(4, 4)}, "inputs": X, **settings})
