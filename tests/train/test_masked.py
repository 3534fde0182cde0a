"""Zeros stay zeros while a model is trained, and masks change on time, whatever the loop and the optimiser do."""

import copy
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from secateur.errors import ModelError, PlanError
from secateur.sparse import WeightPlan
from secateur.train import ACDC, SET, Constant, Gradual, Method, RigL, masked
from secateur.train.recover import FineTune

OPTIMISERS: dict[str, Callable[[Any], torch.optim.Optimizer]] = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.1, nesterov=True),
    "adam": lambda p: torch.optim.Adam(p, lr=0.01, weight_decay=0.1, amsgrad=True),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, foreach=True),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.9),
    "adagrad": lambda p: torch.optim.Adagrad(p, lr=0.1),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))


def plan() -> WeightPlan:
    generator = torch.Generator().manual_seed(0)
    shapes = {"0.weight": (16, 6), "2.weight": (3, 16)}
    return WeightPlan({name: torch.rand(shape, generator=generator) < 0.4 for name, shape in shapes.items()})


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> Tensor:
    optimizer.zero_grad()
    x = torch.randn(32, 6)
    loss: Tensor = (model(x) - x[:, :3].sin()).square().mean()
    loss.backward()
    optimizer.step()
    return loss.detach()


def zeros_of(model: nn.Module, masks: WeightPlan) -> bool:
    state = dict(model.named_parameters())
    return not any(bool(state[name][~stays].any()) for name, stays in masks.stays.items())


@pytest.mark.parametrize("name", OPTIMISERS)
def test_zeros_stay_zeros_and_the_rest_learns(name: str) -> None:
    model, masks = network(), plan()
    optimizer = OPTIMISERS[name](model.parameters())
    for _ in range(3):
        step(model, optimizer)  # moments from before
    with masked(model, masks):
        losses = []
        for _ in range(60):
            losses.append(float(step(model, optimizer)))
            assert zeros_of(model, masks)
        state = optimizer.state[dict(model.named_parameters())["0.weight"]]
        for value in state.values():
            assert not isinstance(value, Tensor) or value.shape != (16, 6) or not value[~masks.stays["0.weight"]].any()
    assert sum(losses[-10:]) < sum(losses[:10])
    for parameter in model.parameters():
        assert not any(parameter._backward_hooks or {})
    step(model, optimizer)
    step(model, optimizer)
    assert not zeros_of(model, masks)


def test_accumulated_gradients_and_scaled_losses() -> None:
    model, masks = network(), plan()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu")
    with masked(model, masks):
        for _ in range(5):
            for _ in range(2):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    loss = model(torch.randn(8, 6)).square().mean()
                scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            assert zeros_of(model, masks)


def test_a_resumed_training_goes_on_bit_for_bit() -> None:
    def trained(resume: bool) -> dict[str, Tensor]:
        model, masks = network(), plan()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        with masked(model, masks):
            for _ in range(4):
                step(model, optimizer)
        if resume:
            kept, moments = model.state_dict(), optimizer.state_dict()
            model = copy.deepcopy(model)
            model.load_state_dict(kept)
            optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
            optimizer.load_state_dict(moments)
        with masked(model, masks):
            for _ in range(4):
                step(model, optimizer)
        return model.state_dict()

    one, other = trained(False), trained(True)
    assert all(one[name].equal(other[name]) for name in one)


def test_other_models_are_left_alone() -> None:
    model, other = network(), network()
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with masked(model, plan()):
        step(other, optimizer)
    assert bool(dict(other.named_parameters())["0.weight"].all())


def test_a_plan_of_another_model_is_refused() -> None:
    with (
        pytest.raises(PlanError, match=r"masks is a plan, such as that of a SparseResult"),
        masked(nn.Linear(2, 2), "plan"),
    ):  # type: ignore[arg-type]
        pass
    with pytest.raises(ModelError, match="for another model"), masked(nn.Linear(2, 2), plan()):
        pass


X = torch.randn(2, 6, generator=torch.Generator().manual_seed(0))

METHODS: dict[str, Method] = {
    "constant": Constant(plan()),
    "gradual": Gradual(0.8, end=9, every=2, begin=1),
    "rigl": RigL(0.6, until=12, every=3),
    "set": SET(0.6, every=2),
    "acdc": ACDC(0.7, warmup=2, sparse_steps=3, dense_steps=2, until=9),
}


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_training_with_changing_masks_goes_on_bit_for_bit(name: str, optimiser: str, at: int, tmp_path: Path) -> None:
    def trained(stop: int | None) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        model, state, done = network(), None, 0
        optimizer = OPTIMISERS[optimiser](model.parameters())
        torch.manual_seed(1)
        if stop is not None:
            with masked(model, METHODS[name], X) as training:
                for _ in range(stop):
                    step(model, optimizer)
                save_file(training.state_dict(), tmp_path / "masks.safetensors")
            weights, moments, done = model.state_dict(), optimizer.state_dict(), stop
            model = network()
            with torch.random.fork_rng():
                model.load_state_dict({key: value.clone() for key, value in weights.items()})
            optimizer = OPTIMISERS[optimiser](model.parameters())
            optimizer.load_state_dict(copy.deepcopy(moments))
            state = load_file(tmp_path / "masks.safetensors")
            torch.manual_seed(1)
            for _ in range(stop):
                torch.randn(32, 6)
        with masked(model, METHODS[name], X, state=state) as training:
            assert training.step == done
            for _ in range(14 - done):
                step(model, optimizer)
            return model.state_dict(), training.state_dict()

    (one, masks), (other, others) = trained(None), trained(at)
    assert all(one[key].equal(other[key]) for key in one)
    assert masks.keys() == others.keys()
    assert all(masks[key].equal(others[key]) for key in masks)
    assert int(masks["step"]) == 14


@pytest.mark.parametrize("name", METHODS)
def test_a_compiled_model_trains_as_the_model_itself(name: str) -> None:
    def trained(compiled: bool) -> dict[str, Tensor]:
        torch._dynamo.reset()
        model = network()
        runs = torch.compile(model, backend="aot_eager") if compiled else model
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        torch.manual_seed(1)
        with masked(model, METHODS[name], X) as training:
            for _ in range(7):
                step(runs, optimizer)
                assert zeros_of(model, training.plan)
        return model.state_dict()

    one, other = trained(False), trained(True)
    assert all(torch.allclose(one[key], other[key], atol=1e-6) for key in one)
    assert all((one[key] == 0).equal(other[key] == 0) for key in one)


class Recorded:
    """A method that writes down when it is asked."""

    needs_gradients = True

    def __init__(self) -> None:
        self.gradients: dict[int, dict[str, Tensor]] = {}

    def changes(self, step: int) -> bool:
        return step > 0

    def choose(self, step: int, weights: Any) -> Mapping[str, Tensor]:
        self.gradients[step] = {name: gradient.clone() for name, gradient in weights.gradients.items()}
        return dict(weights.stays)


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_a_scaler_leaves_out_does_not_count(fused: bool) -> None:
    model, method = network(), Recorded()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu")
    with masked(model, method, X) as training:
        for factor, count in ((1.0, 1), (torch.inf, 1), (1.0, 2), (torch.nan, 2), (1.0, 3)):
            optimizer.zero_grad()
            scaler.scale(model(X).square().mean() * factor).backward()
            scaler.step(optimizer)
            scaler.update()
            assert training.step == count
    assert list(method.gradients) == [1, 2, 3]
    assert all(bool(g.isfinite().all()) for each in method.gradients.values() for g in each.values())


@pytest.mark.parametrize("first", [0, 1])
def test_several_optimisers_take_one_step_together(first: int) -> None:
    model, method = network(), Recorded()
    optimisers = [torch.optim.SGD(model[0].parameters(), lr=0.1), torch.optim.Adam(model[2].parameters(), lr=0.1)]
    other = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    with masked(model, method, X) as training:
        for t in range(1, 4):
            model.zero_grad()
            model(X).square().mean().backward()
            expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.ndim > 1}
            for number in (first, 1 - first):
                optimisers[number].step()
            other.step()
            assert training.step == t
            assert all(method.gradients[t][name].equal(expected[name]) for name in expected)


def test_a_later_optimiser_goes_on_counting() -> None:
    model = network()
    with masked(model, METHODS["gradual"], X) as training:
        for count in (3, 6):
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
            for _ in range(3):
                step(model, optimizer)
            assert training.step == count


def test_parameter_groups_and_accumulated_gradients_count_as_one_step() -> None:
    model = network()
    groups = [{"params": [p], "lr": 0.01 * (i + 1)} for i, p in enumerate(model.parameters())]
    optimizer = torch.optim.AdamW(groups)
    with masked(model, METHODS["gradual"], X) as training:
        for t in range(1, 5):
            for _ in range(3):
                model(torch.randn(8, 6)).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            assert training.step == t


def test_fine_tuning_holds_the_masks(caplog: pytest.LogCaptureFixture) -> None:
    data = [(torch.randn(16, 6), torch.randint(3, (16,))) for _ in range(5)]
    for kind in (torch.float32, torch.bfloat16):
        model, masks = network().to(kind), plan()
        before = model[0].weight.detach().clone()
        batches = [(x.to(kind), y) for x, y in data]
        with masked(model, masks):
            FineTune(epochs=3)(model, batches)
            assert zeros_of(model, masks)
        assert not torch.equal(model[0].weight[masks.stays["0.weight"]], before[masks.stays["0.weight"]])
    assert "took a step" not in caplog.text


@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("method", "sparsity"), [("gradual", 0.8), ("rigl", 0.6)])
def test_masks_change_while_it_is_fine_tuned(method: str, sparsity: float, kind: torch.dtype) -> None:
    """In 16 bits an optimiser updates copies of the weights."""
    data = [(torch.randn(16, 6, dtype=kind), torch.randint(3, (16,))) for _ in range(5)]
    model = network().to(kind)
    with masked(model, METHODS[method], X.to(kind)) as training:
        begin = training.plan
        for count in (15, 30):
            FineTune(epochs=3, optimizer=torch.optim.AdamW)(model, data)
            assert training.step == count
    assert not begin.stays["0.weight"].equal(training.plan.stays["0.weight"])
    assert training.plan.sparsity == pytest.approx(sparsity, abs=0.01)
    assert zeros_of(model, training.plan)


def test_a_training_without_a_step_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    model = network()
    with caplog.at_level(logging.WARNING), masked(model, plan()):
        pass
    assert "no optimiser over the sparse weights of Sequential took a step" in caplog.text


def test_what_is_excluded_stays_dense() -> None:
    model = network()
    with masked(model, Gradual(0.5, end=1, initial=0.5), X, exclude=["2"]) as training:
        assert training.plan.stays.keys() == {"0.weight"}
        assert training.plan.zeros == 48


def test_a_state_of_another_model_is_refused() -> None:
    with masked(network(), plan()) as training:
        state = training.state_dict()
    method = METHODS["rigl"]
    for wrong, match in (
        ({**state, "more": state["step"]}, "what Training.state_dict"),
        ({name: value for name, value in state.items() if name != "step"}, "what Training.state_dict"),
        ({**state, "masks.0.weight": torch.ones(16, 6)}, "what Training.state_dict"),
        ({name: value for name, value in state.items() if name != "masks.2.weight"}, "has no mask for '2.weight'"),
        ({**state, "masks.0.weight": torch.ones(2, 2, dtype=torch.bool)}, "for another model"),
    ):
        with pytest.raises(ModelError, match=match), masked(network(), method, X, state=wrong):
            pass
