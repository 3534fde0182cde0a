"""What the allocators choose, and what they refuse, on networks small enough to do by hand."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from secateur.allocate import Budget, Global, Uniform, normalise
from secateur.axes import Network
from secateur.axes.sizes import Attribute, Operation, SizeUse
from secateur.errors import AttributeFollowError, BudgetError, PlanError

NetworkOf = Callable[..., Network]
SCORES = {"wide": np.arange(8.0), "narrow": np.arange(4.0)}


def test_global_takes_the_worst_units_of_all_axes_together(two_layers: Network) -> None:
    """With raw scores the four below 2 go: 3*6 + 6*2 + 2*2 parameters stay."""
    scores = {"wide": np.array([0, 1, 9, 9, 9, 9, 9, 9]), "narrow": np.array([9, 0.5, 1.5, 9])}

    plan = Global(Budget(params=34 / 64), normalise=normalise.unchanged)(two_layers, scores)

    assert plan.kept["wide"].tolist() == [2, 3, 4, 5, 6, 7]
    assert plan.kept["narrow"].tolist() == [0, 3]


def test_normalised_scores_do_not_let_one_loud_axis_silence_another(two_layers: Network) -> None:
    scores = {"wide": np.arange(1.0, 9.0), "narrow": 1000 * np.arange(1.0, 5.0)}

    raw = Global(Budget(params=0.5), normalise=normalise.unchanged)(two_layers, scores)
    fair = Global(Budget(params=0.5))(two_layers, scores)

    assert raw.counts == {"wide": 3, "narrow": 4}
    assert fair.counts == {"wide": 5, "narrow": 2}


def test_uniform_takes_the_same_share_of_every_axis(two_layers: Network) -> None:
    """Half of each: 3*4 + 4*2 + 2*2 = 24 of 64 parameters."""
    assert Uniform(Budget(params=24 / 64))(two_layers, SCORES).counts == {"wide": 4, "narrow": 2}


def test_a_budget_of_one_keeps_everything(two_layers: Network) -> None:
    for allocate in (Global(Budget(params=1, macs=1, bytes=1)), Uniform(Budget(macs=1.0), multiple_of=3)):
        plan = allocate(two_layers, SCORES)

        assert plan == two_layers.plan({})


def test_every_limit_holds_where_several_are_given(network_of: NetworkOf) -> None:
    """`a` costs parameters, `b` multiply-adds."""
    network = network_of({"a": 10, "b": 10}, {"a": ([("a",)],), "b": ([("b",)],)}, [(100, [[("b",)]])])
    scores = {"a": np.arange(10), "b": np.arange(10)}

    assert Global(Budget(macs=0.5))(network, scores).counts == {"a": 10, "b": 5}
    assert Global(Budget(params=0.75, macs=0.5))(network, scores).counts == {"a": 10, "b": 5}
    assert Global(Budget(params=0.5, macs=0.8))(network, scores).counts == {"a": 5, "b": 5}


def test_equal_scores_keep_the_units_that_come_first(two_layers: Network) -> None:
    plan = Global(Budget(params=0.5))(two_layers, {"wide": np.ones(8), "narrow": np.ones(4)})

    for axis in plan.axes:
        assert axis.kept == tuple(range(len(axis.kept)))
    assert plan.counts == {"wide": 7, "narrow": 1}


def test_the_floor_of_every_axis_stays(two_layers: Network) -> None:
    scores = {"wide": np.zeros(8), "narrow": np.full(4, 100.0)}
    counts = {
        floor: Global(Budget(params=0.45), normalise=normalise.unchanged, floor=floor)(two_layers, scores).counts[
            "wide"
        ]
        for floor in (0, 0.25, 0.26, 0.375)
    }

    assert counts == {0: 2, 0.25: 2, 0.26: 3, 0.375: 3}


def test_the_floor_is_read_as_it_is_written(network_of: NetworkOf) -> None:
    """As floats, 0.07 * 100 is 7.000000000000001, which rounds up to 8."""
    network = network_of({"a": 100}, {"a.weight": ([("a",)],)})

    assert Global(Budget(params=0.07), floor=0.07)(network, {"a": np.ones(100)}).counts == {"a": 7}


def test_ties_between_axes_go_to_those_that_come_first(network_of: NetworkOf) -> None:
    """250 of the 400 units of 100 equal axes: Global fills 25 axes up, Uniform gives 50 axes one more than the others."""
    names = [f"axis{i}" for i in range(100)]
    network = network_of(dict.fromkeys(names, 4), {f"{name}.weight": ([(name,)],) for name in names})
    scores = {name: np.array([2, 1, 2, 1]) for name in names}

    assert list(Global(Budget(params=250 / 400))(network, scores).counts.values()) == [4] * 25 + [2] * 75
    assert list(Uniform(Budget(params=250 / 400))(network, scores).counts.values()) == [3] * 50 + [2] * 50
    assert list(Uniform(Budget(params=250 / 400), alike=True)(network, scores).counts.values()) == [2] * 100


def test_axes_that_stay_alike_leave_what_is_too_little_for_all_of_them_to_others(network_of: NetworkOf) -> None:
    """Four more units are affordable: too few for the three axes of size 4 after their first, but not for the one of size 8."""
    sizes = {"a": 4, "b": 4, "c": 4, "d": 8}
    network = network_of(sizes, {f"{name}.weight": ([(name,)],) for name in sizes})
    scores = {name: np.arange(float(size)) for name, size in sizes.items()}

    def counts(units: int) -> list[int]:
        return list(Uniform(Budget(params=units / 20), alike=True)(network, scores).counts.values())

    assert counts(4) == [1, 1, 1, 1]
    assert counts(11) == [2, 2, 2, 5]
    assert counts(17) == [3, 3, 3, 8]
    assert counts(18) == [3, 3, 3, 8]
    assert counts(20) == [4, 4, 4, 8]


def test_per_cost_takes_what_saves_most_for_equal_scores(network_of: NetworkOf) -> None:
    network = network_of({"cheap": 4, "dear": 4}, {"cheap": ([("cheap",)], 2), "dear": ([("dear",)], 3)})
    scores = {"cheap": np.ones(4), "dear": np.full(4, 1.2)}

    by_score = Global(Budget(params=0.7), normalise=normalise.unchanged)(network, scores)
    per_cost = Global(Budget(params=0.7), normalise=normalise.unchanged, per_cost=True)(network, scores)

    assert by_score.counts == {"cheap": 1, "dear": 4}
    assert per_cost.counts == {"cheap": 4, "dear": 2}


def test_per_cost_keeps_what_saves_nothing(network_of: NetworkOf) -> None:
    network = network_of({"a": 4, "b": 4}, {"a": ([("a",)],), "b": ([("b",)],)}, [(1, [[("a",)]])])

    plan = Global(Budget(macs=0.5), per_cost=True)(network, {"a": np.ones(4), "b": np.zeros(4)})

    assert plan.counts == {"a": 2, "b": 4}


def test_per_cost_refuses_negative_scores(two_layers: Network) -> None:
    with pytest.raises(PlanError, match=r"per_cost divides scores by costs.*never negative"):
        Global(Budget(macs=0.5), per_cost=True, normalise=normalise.standard)(two_layers, SCORES)


def test_an_excluded_axis_stays_whole_and_needs_no_scores(two_layers: Network) -> None:
    for allocate in (Global(Budget(params=0.7), exclude=("head*",)), Uniform(Budget(params=0.7), exclude=("head*",))):
        plan = allocate(two_layers, {"wide": np.arange(8.0)})

        assert plan.counts == {"wide": 5, "narrow": 4}


def test_a_budget_out_of_reach_says_how_far_it_can_go(two_layers: Network) -> None:
    """At the floor of 2 and 1 units: 3*2 + 2*1 + 1*2 = 10 parameters and MACs, and 2 more numbers in the buffer."""
    with pytest.raises(BudgetError) as error:
        Global(Budget(macs=0.1), floor=0.25)(two_layers, SCORES)

    assert str(error.value) == (
        "Budget(macs=0.1) is out of reach; the smallest network that can be reached has params=0.1563 (10 of 64), "
        "macs=0.1563 (10 of 64, 6 allowed), bytes=0.1667 (48 of 288). That is with floor=0.25, multiple_of=1, 0 of 2 axes "
        "excluded: allow more, or relax these; network.frozen says what cannot be pruned, and why"
    )
    assert Global(Budget(params=0.1563, macs=0.1563, bytes=0.1667), floor=0.25)(two_layers, SCORES).counts["wide"] == 2


def test_what_can_be_reached_depends_on_multiples_and_exclusions(two_layers: Network) -> None:
    with pytest.raises(BudgetError, match=r"macs=0\.5625 \(36 of 64, 6 allowed.*multiple_of=4, 1 of 2 axes excluded"):
        Uniform(Budget(macs=0.1), multiple_of=4, exclude=("narrow",))(two_layers, SCORES)


def test_a_network_without_axes_cannot_shrink(network_of: NetworkOf) -> None:
    network = network_of({}, {"w": (3, 4)})

    assert Global(Budget(params=1))(network, {}).axes == ()
    with pytest.raises(BudgetError, match=r"params=1\.0 \(12 of 12, 6 allowed\).*network\.frozen says"):
        Global(Budget(params=0.5))(network, {})


@pytest.mark.parametrize(
    ("scores", "message"),
    [
        ({"narrow": np.ones(4)}, "axis 'wide' has no scores; give one a unit, 8 of them"),
        (SCORES | {"wide": np.ones(7)}, r"axis 'wide' has 8 units, but its scores have the shape \(7,\)"),
        (SCORES | {"wide": np.ones((8, 1))}, r"axis 'wide' .* the shape \(8, 1\)"),
        (SCORES | {"narrow": np.array([1, 2, np.nan, 3])}, "score of unit 2 of axis 'narrow' is nan; look for"),
        (SCORES | {"narrow": np.array([1, np.inf, 2, 3])}, "score of unit 1 of axis 'narrow' is inf"),
        (SCORES | {"narrow": np.array(["a"] * 4)}, "scores of axis 'narrow' are of type <U1; give real numbers"),
        (SCORES | {"narrow": np.ones(4) * 1j}, "scores of axis 'narrow' are of type complex128"),
        (SCORES | {"thin": np.ones(4)}, "no axis is called 'thin'; the axes are: wide, narrow"),
    ],
)
@pytest.mark.parametrize("allocate", [Global(Budget(macs=0.5)), Uniform(Budget(macs=0.5))], ids=["global", "uniform"])
def test_scores_that_do_not_fit_are_refused(two_layers: Network, allocate: Any, scores: Any, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        allocate(two_layers, scores)


@pytest.mark.parametrize("normaliser", [lambda scores: scores[:2], lambda scores: scores * np.nan])
def test_a_normaliser_that_loses_units_is_refused(two_layers: Network, normaliser: normalise.Normaliser) -> None:
    with pytest.raises(PlanError, match=r"scores of axis 'wide' .* one finite number a unit"):
        Global(Budget(macs=0.5), normalise=normaliser)(two_layers, SCORES)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"multiple_of": 0}, BudgetError, "a whole number of 1 or more; got 0"),
        ({"multiple_of": 8.0}, BudgetError, "a whole number of 1 or more; got 8.0"),
        ({"multiple_of": True}, BudgetError, "a whole number of 1 or more; got True"),
        ({"exclude": "stem"}, PlanError, r"exclude=\('classifier\*',\); got 'stem'"),
        ({"exclude": (3,)}, PlanError, r"exclude=\('classifier\*',\); got \(3,\)"),
        ({"floor": 1.5}, BudgetError, r"floor is a share .* in \[0, 1\]; got 1.5"),
        ({"floor": -0.1}, BudgetError, r"in \[0, 1\]; got -0.1"),
        ({"budget": 0.5}, BudgetError, r"the budget is a Budget, such as Budget\(macs=0.5\); got 0.5"),
    ],
)
def test_options_out_of_range_are_refused_at_once(
    options: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        Global(**({"budget": Budget(macs=0.5)} | options))
    if "floor" not in options:
        with pytest.raises(error, match=message):
            Uniform(**({"budget": Budget(macs=0.5)} | options))


def test_code_that_cannot_follow_is_reported_by_the_plan(network_of: NetworkOf) -> None:
    """The code has twice `half` units: with three of four it cannot run."""
    use = SizeUse(Operation("*", Attribute("block", "half", None, 2), 2), np.arange(4)[None], "model.py:3")
    network = network_of({"a": 4}, {"a.weight": ([("a",)], 2)}, uses=(use,))

    with pytest.raises(AttributeFollowError, match=r"model\.py:3"):
        Global(Budget(params=0.75))(network, {"a": np.arange(4)})
    assert Global(Budget(params=0.75), multiple_of=2)(network, {"a": np.arange(4)}).counts == {"a": 2}
