"""The table of names: complete, and helpful where a name is wrong."""

from functools import partial
from inspect import signature

import numpy as np
import pytest
import torch
from torch import nn

import secateur as sc
from secateur.allocate import Budget, normalise
from secateur.cli.choices import NAMES, attempt, choose, prepare
from secateur.cli.job import Choice
from secateur.errors import BudgetError, JobError


@pytest.mark.parametrize(
    ("key", "module"), [("score", "scores"), ("allocation", "allocate"), ("compensation", "compensation")]
)
def test_every_choice_of_the_library_has_a_name(key: str, module: str) -> None:
    protocols_and_values = {"Score", "WeightScore", "ModelScore", "Allocator", "Budget", "Compensation"}
    found = {name: getattr(getattr(sc, module), name) for name in getattr(sc, module).__all__ if name[0].isupper()}
    of_weights = {name for name, one in found.items() if hasattr(one, "of_weight") or hasattr(one, "of_model")}
    weights_alone = {name for name in of_weights if "__call__" not in vars(found[name])}
    classes = found.keys() - protocols_and_values - weights_alone

    assert {choice.__name__ for choice in NAMES[key].values()} == classes


def test_every_normaliser_has_a_name() -> None:
    functions = {
        name for name, value in vars(normalise).items() if callable(value) and value.__module__ == normalise.__name__
    }

    assert set(NAMES["normalise"]) == functions


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(JobError, match=r"score: there is no 'magnitud'; did you mean 'magnitude'?"):
        choose("score", "magnitud")


def test_options_reach_the_object() -> None:
    allocator = prepare("allocation", Choice(name="global", floor=0.25, normalise="maximum"))(Budget(macs=0.5))

    assert allocator == sc.allocate.Global(Budget(macs=0.5), floor=0.25, normalise=normalise.maximum)


def test_what_takes_over_is_named_too() -> None:
    assert prepare("score", Choice(name="energy", otherwise="magnitude"))() == sc.scores.Energy(
        otherwise=sc.scores.Magnitude()
    )
    chosen = prepare("score", Choice(name="energy", otherwise={"name": "magnitude", "p": 1.0}))()
    assert chosen == sc.scores.Energy(otherwise=sc.scores.Magnitude(1.0))
    with pytest.raises(JobError, match="did you mean 'magnitude'"):
        prepare("score", Choice(name="router-weighted", otherwise="magnitud"))


@pytest.mark.parametrize("name", NAMES["score"])
def test_every_score_gives_a_number_to_each_unit(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Tanh(), nn.Linear(5, 2)
    )
    x, more = torch.randn(12, 1, 4, 4), {"otherwise": "magnitude", "score": "taylor"}
    options = {option: value for option, value in more.items() if option in signature(NAMES["score"][name]).parameters}

    scores = prepare("score", Choice(name=name, **options))()(sc.trace(model, x), [(x, torch.arange(12) % 2)])

    assert {axis: values.shape for axis, values in scores.items()} == {"0": (4,), "4": (5,)}
    assert all(np.isfinite(values).all() for values in scores.values())


def test_what_a_score_is_made_of_is_named_too() -> None:
    chosen = prepare("score", Choice(name="normalised", score={"name": "taylor", "signed": True}))()
    assert chosen == sc.scores.Normalised(sc.scores.Taylor(signed=True))
    with pytest.raises(JobError, match=r"score: a value does not fit: .*'score'"):
        attempt(prepare("score", Choice(name="normalised")), "score")


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        (Choice(name="global", flor=0.25), "allocation: 'global' has no option 'flor'; did you mean 'floor'?"),
        (Choice(name="global", budget=1), "allocation: 'global' has no option 'budget'"),
        (Choice(name="global", normalise="average"), "normalise: there is no 'average'; there is maximum, mean, "),
        (Choice(name="locally"), "allocation: there is no 'locally'"),
    ],
)
def test_an_unknown_option_is_refused(choice: Choice, message: str) -> None:
    with pytest.raises(JobError, match=message):
        prepare("allocation", choice)


def test_an_option_of_the_wrong_type_is_refused() -> None:
    make = partial(prepare("allocation", Choice(name="global", floor=[1])), Budget(macs=0.5))

    with pytest.raises((JobError, BudgetError), match=r"floor|fit"):
        attempt(make, "allocation")


def test_a_value_that_python_refuses_is_a_fault_of_the_job() -> None:
    with pytest.raises(JobError, match=r"score: a value does not fit: invalid literal"):
        attempt(lambda: int("x"), "score")
