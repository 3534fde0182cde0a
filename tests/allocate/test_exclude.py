"""What a pattern keeps whole."""

from collections.abc import Callable

import pytest

from secateur.allocate.exclude import excluded_axes
from secateur.axes import Network
from secateur.errors import PlanError


@pytest.fixture
def network(network_of: Callable[..., Network]) -> Network:
    return network_of(
        {"stem": 8, "block.mlp.up": 16, "block.mlp.up#2": 4},
        {
            "stem.weight": ([("stem",)], 3),
            "block.mlp.up.weight": ([("block.mlp.up",), ("block.mlp.up#2",)], [("stem",)]),
            "block.mlp.down.weight": ([("stem",)], [("block.mlp.up",), ("block.mlp.up#2",)]),
            "classifier.1.bias": (10,),
        },
    )


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("block.mlp.up.*", {"block.mlp.up", "block.mlp.up#2", "stem"}),
        ("block.mlp", {"block.mlp.up", "block.mlp.up#2", "stem"}),
        ("stem.weight", {"stem"}),
        ("*.down.*", {"stem", "block.mlp.up", "block.mlp.up#2"}),
        ("bl?ck", {"stem", "block.mlp.up", "block.mlp.up#2"}),
        ("[st]*m", {"stem"}),
        ("classifier*", set()),
        ("*", {"stem", "block.mlp.up", "block.mlp.up#2"}),
    ],
)
def test_a_pattern_names_axes_by_themselves_their_tensors_and_the_modules_around(
    network: Network, pattern: str, names: set[str]
) -> None:
    """The stem's channels are also those of the block, so a layer of the block that stays whole keeps them."""
    assert excluded_axes(network, [pattern]) == names


@pytest.mark.parametrize("name", ["stem", "block.mlp.up", "block.mlp.up#2"])
def test_the_exact_name_of_an_axis_names_that_axis_alone(network: Network, name: str) -> None:
    """Not all that lives in the module of that name."""
    assert excluded_axes(network, [name]) == {name}


def test_patterns_add_up(network: Network) -> None:
    assert excluded_axes(network, ["stem.weight", "*#2"]) == {"stem", "block.mlp.up#2"}
    assert excluded_axes(network, []) == frozenset()


def test_upper_and_lower_case_differ(network: Network) -> None:
    with pytest.raises(PlanError, match="exclude='STEM' names no axis"):
        excluded_axes(network, ["STEM"])


def test_a_pattern_that_names_nothing_is_an_error_with_the_names_that_are_near(network: Network) -> None:
    with pytest.raises(PlanError, match=r"'clasifier\*' names no axis, tensor or module .*did you mean 'classifier'"):
        excluded_axes(network, ["stem", "clasifier*"])


def test_a_pattern_that_is_near_to_nothing_says_where_names_are(network: Network) -> None:
    with pytest.raises(PlanError, match=r"'zzz' names no .*network\.axes and network\.tensors have the names"):
        excluded_axes(network, ["zzz"])
