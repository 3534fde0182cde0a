"""A user's own training function, and what it may give back."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

import secateur as sc
from secateur.errors import RecoveryError
from secateur.torch import compact, plan_of, trace
from secateur.train.recover import FineTune, as_recovery


def model_of(width: int = 8) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, width), nn.ReLU(), nn.Linear(width, 2)).eval()


def nudge(model: nn.Module, data: Any) -> None:
    """Train in place, with the traces of a careless function: train mode and gradients."""
    model.train()
    for batch in data:
        model(batch).square().mean().backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.1 * parameter.grad  # type: ignore[operator]


DATA = [torch.ones(3, 4)]


def test_a_function_that_trains_in_place_returns_nothing() -> None:
    model, before = model_of(), model_of()

    assert as_recovery(nudge)(model, DATA) is model
    assert not torch.equal(model[0].bias, before[0].bias)  # type: ignore[arg-type]


def test_a_function_may_return_another_object_of_the_same_architecture() -> None:
    model = model_of()
    trained = as_recovery(lambda model, data: copy.deepcopy(model))(model, DATA)

    assert trained is not model
    assert type(trained) is nn.Sequential


def test_modes_are_put_back_and_gradients_dropped() -> None:
    trained = as_recovery(nudge)(model_of(), DATA)

    assert not any(module.training for module in trained.modules())
    assert all(parameter.grad is None for parameter in trained.parameters())


def test_a_teacher_and_a_progress_callback_are_not_passed_on() -> None:
    assert as_recovery(nudge)(model := model_of(), DATA, model_of(), lambda step: None) is model


def test_fine_tuning_is_a_recovery_as_it_is() -> None:
    recipe = FineTune(epochs=3)

    assert as_recovery(recipe) is recipe
    assert as_recovery(own := as_recovery(nudge)) is own  # type: ignore[arg-type]


def narrow(model: nn.Module, data: Any) -> nn.Module:
    model[0] = nn.Linear(4, 5)  # type: ignore[operator]
    model[2] = nn.Linear(5, 2)  # type: ignore[operator]
    return model


def grow(model: nn.Module, data: Any) -> None:
    model.append(nn.Linear(2, 2))  # type: ignore[operator]


def explode(model: nn.Module, data: Any) -> None:
    model[2].weight.data[0, 0] = torch.inf  # type: ignore[operator,index,union-attr]


class Wrapper(nn.Module):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda model, data: 0.93, "returned a float; return the trained model, or None if it was trained in place"),
        (lambda model, data: (model, []), "returned a tuple"),
        (lambda model, data: model.state_dict(), "returned a OrderedDict"),
        (lambda model, data: Wrapper(model), "returned a Wrapper for a Sequential; .* without a wrapper around it"),
        (
            lambda model, data: model_of(9),
            r"another architecture: '0.weight' was \[8, 4\] float32 and is \[9, 4\] float32",
        ),
        (narrow, r"narrow returned another architecture: '0.weight' was \[8, 4\] float32 and is \[5, 4\]"),
        (grow, r"'3.weight' was not there and is \[2, 2\]"),
        (
            lambda model, data: model.half(),
            r"'0.weight' was \[8, 4\] float32 and is \[8, 4\] float16; train the model that",
        ),
        (explode, "left NaN or infinite values in '2.weight'; lower its learning rate"),
    ],
)
def test_anything_else_than_the_trained_model_is_refused(function: Any, message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        as_recovery(function)(model_of(), DATA)


def test_a_pruned_model_still_knows_its_plan() -> None:
    dense = model_of()
    small = compact(dense, trace(dense, DATA[0]).plan({"0": range(3)}))

    assert plan_of(as_recovery(lambda model, data: copy.deepcopy(model))(small, DATA)) == plan_of(small)
    with pytest.raises(RecoveryError, match="does not know the plan it was pruned by"):
        as_recovery(lambda model, data: model_of(3))(small, DATA)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (FineTune, r"recover=FineTune is a class; pass an object of it, such as FineTune\(\)"),
        ("finetune", r"recover is a str; pass FineTune\(...\) or a function \(model, data\) -> model"),
        (None, "recover is a NoneType"),
    ],
)
def test_what_cannot_train_is_refused(what: Any, message: str) -> None:
    with pytest.raises(RecoveryError, match=message):
        as_recovery(what)


def test_an_error_of_the_function_passes_unchanged() -> None:
    def fail(model: nn.Module, data: Any) -> None:
        raise KeyError("learning rate")

    with pytest.raises(KeyError, match="learning rate"):
        as_recovery(fail)(model_of(), DATA)


def test_the_function_gets_the_compact_model_and_the_data_as_they_were_given() -> None:
    dense, data = model_of().train(), [(torch.ones(3, 4), torch.tensor([0, 1, 0]))] * 2
    dense[1].eval()
    seen: list[Any] = []

    def own(model: nn.Module, batches: Any) -> nn.Module:
        seen.append((copy.deepcopy(model), batches, torch.is_grad_enabled(), [m.training for m in model.modules()]))
        nudge(model, [inputs for inputs, _ in batches])
        return model

    with torch.no_grad():
        result = sc.prune(dense, torch.ones(1, 4), budget=sc.Budget(macs=0.5), data=data, recover=own, measure=False)

    ((model, batches, gradients, modes),) = seen
    assert batches is data
    assert gradients
    assert type(model) is nn.Sequential
    assert model[0].weight.shape == (4, 4)  # half of the units
    assert plan_of(model) == result.plan
    assert modes == [module.training for module in dense.modules()]
    nudge(model, [inputs for inputs, _ in data])
    assert torch.equal(result.model.get_parameter("0.weight"), model[0].weight)
    assert not hasattr(result.model, "grad")
