"""Integers of the user's code: which values make every equation hold."""

import numpy as np
import pytest

from secateur.axes.sizes import Attribute, Operation, SizeUse, Width, count_kept, describe, evaluate, follow
from secateur.errors import AttributeFollowError

HEADS = Attribute("attn", "heads", None, 4)
WIDTH = Attribute("attn", "sizes", 1, 12)
UNITS = np.arange(12)[None]


def keep(count: int, total: int = 12) -> np.ndarray:
    return np.arange(total) < count


def test_a_bare_attribute_takes_the_number_that_stays() -> None:
    assert follow([SizeUse(WIDTH, UNITS, "a.py:1")], count_kept(keep(7))) == {WIDTH: 7}


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        (Operation("*", WIDTH, 2), 3),
        (Operation("*", 3, WIDTH), 2),
        (Operation("//", WIDTH, 2), 12),
        (Operation("//", 24, WIDTH), 4),
        (Operation("+", WIDTH, 2), 4),
        (Operation("-", WIDTH, 2), 8),
        (Operation("-", 10, WIDTH), 4),
        (Operation("-", 0, Operation("-", 0, WIDTH)), 6),
        (Operation("*", Operation("+", WIDTH, 1), 2), 2),
    ],
    ids=lambda value: describe(value) if isinstance(value, Operation) else str(value),
)
def test_an_expression_is_solved_for_its_attribute(expression: Operation, value: int) -> None:
    count = count_kept(keep(6))
    solved = follow([SizeUse(expression, UNITS, "a.py:1")], count)
    assert solved == {WIDTH: value}
    assert evaluate(expression, solved, count) == 6


def test_known_attributes_help_to_find_unknown_ones() -> None:
    product = Operation("*", HEADS, WIDTH)
    uses = [SizeUse(product, UNITS, "a.py:2"), SizeUse(HEADS, np.arange(3)[None], "a.py:1")]
    assert follow(uses, count_kept(keep(12))) == {HEADS: 3, WIDTH: 4}


def test_a_width_is_counted_not_solved() -> None:
    use = SizeUse(Operation("//", Width(UNITS), HEADS), np.arange(3)[None], "a.py:1")
    assert follow([use], count_kept(keep(12))) == {HEADS: 4}


def test_two_needs_for_one_attribute_are_refused_with_line_name_and_sizes() -> None:
    uses = [SizeUse(WIDTH, UNITS, "a.py:1"), SizeUse(WIDTH, UNITS[:, :5], "b.py:9")]
    with pytest.raises(
        AttributeFollowError, match=r"b.py:9: the size attn.sizes\[1\] would be 7, but 5 positions stay there"
    ):
        follow(uses, count_kept(keep(7)))


def test_an_equation_without_solution_is_refused() -> None:
    with pytest.raises(AttributeFollowError, match="would be 6, but 7 positions stay there"):
        follow([SizeUse(Operation("*", HEADS, 2), UNITS, "a.py:1")], count_kept(keep(7)))


def test_an_undetermined_pair_keeps_its_values() -> None:
    use = SizeUse(Operation("*", HEADS, Attribute("attn", "other", None, 3)), UNITS, "a.py:1")
    assert set(follow([use], count_kept(keep(12))).values()) == {3, 4}


@pytest.mark.parametrize("product", [Operation("*", 0, HEADS), Operation("*", HEADS, 0)])
def test_nothing_times_an_attribute_says_nothing_of_it(product: Operation) -> None:
    use = SizeUse(Operation("-", 12, product), UNITS, "a.py:1")
    assert follow([use], count_kept(keep(12))) == {HEADS: 4}
