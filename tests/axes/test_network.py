"""Networks and plans as data."""

import numpy as np
import pytest

from secateur.axes import Axis, AxisCut, Contraction, Network, Plan, Slot, TensorCut, TensorSpec
from secateur.errors import PlanError

UNITS = np.arange(4)[None]
PAIRED = np.repeat(np.arange(4), 2)[None]


def network() -> Network:
    return Network(
        axes=(Axis("hidden", 4, True, (Slot("a", 0, 1), Slot("b", 1, 2))),),
        frozen=(),
        tensors={"a": TensorSpec((4, 3), 4, True), "b": TensorSpec((2, 8), 4, True), "steps": TensorSpec((), 8, False)},
        dims={"a": (UNITS, None), "b": (None, PAIRED), "steps": ()},
        contractions=(Contraction(6, (UNITS,), ""), Contraction(4, (PAIRED,), "")),
    )


def test_the_cost_counts_parameters_multiply_adds_and_bytes() -> None:
    dense, half = network().cost(), network().cost({"hidden": 2})
    assert (dense.parameters, dense.macs, dense.bytes) == (12 + 16, 24 + 32, 28 * 4 + 8)
    assert (half.parameters, half.macs, half.bytes) == (6 + 8, 12 + 16, 14 * 4 + 8)


def test_a_plan_cuts_every_slot() -> None:
    plan = network().plan({"hidden": [1, 3]})
    assert plan.axes == (AxisCut("hidden", 4, (1, 3)),)
    assert plan.tensors == (
        TensorCut("a", (4, 3), ((1, 3), None)),
        TensorCut("b", (2, 8), (None, (2, 3, 6, 7))),
    )
    assert plan.tensors[1].shape_after == (2, 4)


def test_units_are_given_by_number_or_by_mask() -> None:
    assert network().plan({"hidden": np.array([False, True, False, True])}) == network().plan({"hidden": [3, 1]})


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"hiden": [1]}, "no axis is called 'hiden'; the axes are: hidden"),
        ({"hidden": [4]}, r"has units 0..3; got \[4\]"),
        ({"hidden": [-1]}, "has units 0..3"),
        ({"hidden": [0.5]}, "has units 0..3"),
        ({"hidden": []}, "would be left without units"),
    ],
)
def test_a_choice_that_does_not_fit_is_refused(kept: dict[str, list[int]], message: str) -> None:
    with pytest.raises(PlanError, match=message):
        network().plan(kept)


def test_a_whole_plan_cuts_nothing() -> None:
    assert network().plan({}).tensors == ()


def test_plans_chain() -> None:
    first = network().plan({"hidden": [0, 2, 3]})
    second = Plan(
        (AxisCut("hidden", 3, (1, 2)),),
        (TensorCut("a", (3, 3), ((1, 2), None)), TensorCut("b", (2, 6), (None, (2, 3, 4, 5)))),
    )
    assert first.then(second) == network().plan({"hidden": [2, 3]})


@pytest.mark.parametrize("kept", ["[1,0]", "[0,0]", "[0,4]", "[-1]", "null"])
def test_kept_units_that_are_not_ascending_or_out_of_range_are_refused(kept: str) -> None:
    text = f'{{"axes":[{{"name":"hidden","size":4,"kept":{kept}}}],"tensors":[],"attributes":[],"opened":[]}}'
    with pytest.raises(PlanError, match="not a plan"):
        Plan.from_json(text)
