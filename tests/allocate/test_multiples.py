"""How many units go together, so that widths stay multiples."""

from collections.abc import Callable
from fractions import Fraction

import numpy as np
from hypothesis import given, reject, settings
from hypothesis import strategies as st

from secateur.allocate import Budget, Global
from secateur.allocate.multiples import axis_steps
from secateur.axes import Network
from secateur.errors import BudgetError

NetworkOf = Callable[..., Network]


def test_channels_go_in_multiples(network_of: NetworkOf) -> None:
    network = network_of({"c": 64}, {"c.weight": ([("c",)], 3)})

    assert axis_steps(network, 8, frozenset()) == {"c": 8}
    assert axis_steps(network, 6, frozenset()) == {"c": 6}
    assert axis_steps(network, 1, frozenset()) == {"c": 1}


def test_a_head_of_64_positions_goes_alone(network_of: NetworkOf) -> None:
    network = network_of({"heads": 32}, {"q.weight": ([("heads", 64)], 3)})

    assert axis_steps(network, 8, frozenset()) == {"heads": 1}
    assert axis_steps(network, 128, frozenset()) == {"heads": 2}


def test_an_axis_serves_every_matrix_that_it_lives_in(network_of: NetworkOf) -> None:
    """Channels that a flatten turns into 16 positions each are still single channels in the convolution before it."""
    network = network_of({"c": 64}, {"conv.weight": ([("c",)], 3, 3), "fc.weight": (10, [("c", 16)])})

    assert axis_steps(network, 8, frozenset()) == {"c": 8}


def test_vectors_and_buffers_have_no_say(network_of: NetworkOf) -> None:
    network = network_of(
        {"heads": 32},
        {"q.weight": ([("heads", 64)], 3), "scale": ([("heads",)], 1, 1), "mask": ([("heads",)], 9, 9)},
        buffers={"mask"},
    )

    assert axis_steps(network, 8, frozenset()) == {"heads": 1}


def test_an_axis_that_lives_in_vectors_only_still_has_widths(network_of: NetworkOf) -> None:
    assert axis_steps(network_of({"c": 64}, {"scale": ([("c",)],)}), 8, frozenset()) == {"c": 8}


def test_the_width_of_heads_carries_the_multiple_for_both(network_of: NetworkOf) -> None:
    network = network_of({"heads": 32, "width": 64}, {"q.weight": ([("heads", "width")], 3)})

    assert axis_steps(network, 8, frozenset()) == {"heads": 1, "width": 8}


def test_a_width_that_may_stay_whole_without_being_a_multiple_leaves_the_rest_to_the_heads(
    network_of: NetworkOf,
) -> None:
    """Of 20, the width keeps 8, 16 or 20 positions: certainly a multiple of 4, so that the heads go in twos."""
    network = network_of({"heads": 12, "width": 20}, {"q.weight": ([("heads", "width")], 3)})

    assert axis_steps(network, 8, frozenset()) == {"heads": 2, "width": 8}


def test_an_axis_that_stays_whole_is_counted_on(network_of: NetworkOf) -> None:
    network = network_of({"heads": 32, "width": 20}, {"q.weight": ([("heads", "width")], 3)})

    assert axis_steps(network, 8, frozenset({"width"}))["heads"] == 2
    assert axis_steps(network, 8, frozenset({"heads"}))["width"] == 1


def test_an_axis_of_less_than_two_steps_goes_unit_by_unit(network_of: NetworkOf) -> None:
    network = network_of({"a": 15, "b": 16}, {"w": ([("a",)], [("b",)])})

    assert axis_steps(network, 8, frozenset()) == {"a": 1, "b": 8}


def test_an_axis_that_is_no_multiple_keeps_a_multiple_or_all(network_of: NetworkOf) -> None:
    network = network_of({"c": 21}, {"w": ([("c",)], 2)})
    kept = {
        Global(Budget(params=Fraction(n, 21)), multiple_of=8)(network, {"c": np.arange(21.0)}).counts["c"]
        for n in range(8, 22)
    }

    assert kept == {8, 16, 21}


@settings(deadline=None)
@given(
    axes=st.lists(st.integers(2, 4).map(lambda n: 8 * n), min_size=3, max_size=3),
    multiple_of=st.sampled_from([2, 4, 8]),
    share=st.sampled_from([0.3, 0.5, 0.8]),
    keep_whole=st.sampled_from([(), ("a",), ("b",)]),
    seed=st.integers(0, 99),
)
def test_widths_of_matrices_stay_multiples(
    network_of: NetworkOf,
    axes: list[int],
    multiple_of: int,
    share: float,
    keep_whole: tuple[str, ...],
    seed: int,
) -> None:
    """Alone, side by side, as heads and width, and flattened: all axes are large enough and multiples themselves."""
    network = network_of(
        dict(zip("abc", axes, strict=True)),
        {"one": ([("a", "b")], [("c",)]), "two": ([("c",), ("b",), (8,)], [("a", 3)]), "three": (2, [("b", "c", 2)])},
    )
    scores = {axis.name: np.random.default_rng(seed).random(axis.size) for axis in network.axes}
    allocate = Global(Budget(params=share), multiple_of=multiple_of, exclude=keep_whole)
    try:
        plan = allocate(network, scores)
    except BudgetError:
        reject()

    widths = [
        n
        for cut in plan.tensors
        for n, dim in zip(cut.shape_after, network.units(cut.name), strict=True)
        if dim is not None
    ]
    assert widths
    assert all(width % multiple_of == 0 for width in widths)
