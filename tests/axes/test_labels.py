"""The algebra of labels: what ties, splits and moves come to, against brute force on small arrays."""

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secateur.axes import ONE, Dim, Fixed, Integers, Labels, Reason
from secateur.axes.solve import FREE, solve

WHY = Reason("because", "here.py:1")
shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4).map(tuple)


def array(dim: Dim) -> Integers:
    assert isinstance(dim, np.ndarray)
    return dim


def classes(labels: Labels, *dims: Dim) -> list[list[frozenset[int]]]:
    """For each dim the set of primitive classes at each position."""
    primitive = solve(labels).primitive
    return [
        [frozenset(int(c) for k in column for c in primitive[:, k] if k >= 0 and c >= 0) for column in array(dim).T]
        for dim in dims
    ]


def test_tied_positions_are_one_class() -> None:
    labels = Labels()
    a, b, c = labels.fresh(3), labels.fresh(3), labels.fresh(3)
    labels.tie(a, b, WHY)
    labels.tie(b, c, WHY)
    found = classes(labels, a, b, c)
    assert found[0] == found[1] == found[2]
    assert len(set(found[0])) == 3


def test_a_dim_of_size_one_has_no_units() -> None:
    assert Labels().fresh(1) is ONE


def test_tying_to_a_fixed_dim_freezes_with_its_reason() -> None:
    labels = Labels()
    a = labels.fresh(2)
    labels.tie(a, Fixed(WHY), Reason("other"))
    assert [(frozen.tolist(), reason) for frozen, reason in labels.frozen] == [([0, 1], WHY)]


def test_tying_different_lengths_is_refused() -> None:
    labels = Labels()
    with pytest.raises(ValueError, match="cannot tie 2 positions to 3"):
        labels.tie(labels.fresh(2), labels.fresh(3), WHY)


def test_splitting_twice_the_same_way_gives_the_same_factors() -> None:
    labels = Labels()
    a, b = labels.fresh(6), labels.fresh(6)
    labels.tie(a, b, WHY)
    heads, width = labels.split_square(a, (2, 3), WHY)
    heads2, width2 = labels.split_square(b, (2, 3), WHY)
    found = classes(labels, heads, heads2, width, width2, a)
    assert found[0] == found[1]
    assert found[2] == found[3]
    assert found[4] == [found[0][i // 3] | found[2][i % 3] for i in range(6)]


def test_a_coarser_split_refines_a_finer_one() -> None:
    """8 channels as (2, 4) and as (4, 2): the common refinement is (2, 2, 2)."""
    labels = Labels()
    a = labels.fresh(8)
    two, _ = labels.split_square(a, (2, 4), WHY)
    four, _ = labels.split_square(a, (4, 2), WHY)
    solution = solve(labels)
    found = classes(labels, a, two, four)
    assert len(set().union(*found[0])) == 6, "three factors of two"
    assert [len(f) for f in found[1]] == [1, 1]
    assert [len(f) for f in found[2]] == [2] * 4
    assert (solution.reasons == FREE).all()


def test_groupings_that_do_not_fit_freeze_and_say_so() -> None:
    labels = Labels()
    a = labels.fresh(12)
    labels.split_square(a, (3, 4), WHY)
    labels.split_square(a, (4, 3), WHY)
    solution = solve(labels)
    assert all(solution.reasons[c] != FREE for c in set().union(*classes(labels, a)[0]))
    assert any("do not fit each other" in reason.text for reason in solution.frozen)


def test_padding_freezes_what_it_is_tied_to_and_nothing_else() -> None:
    labels = Labels()
    inner, outer = labels.fresh(2), labels.fresh(4)
    padded = labels.concatenate((Fixed(WHY), inner, Fixed(WHY)), (1, 2, 1))
    labels.tie(padded, outer, WHY)
    reasons = solve(labels).reasons
    roots = solve(labels).primitive[0]
    assert [reasons[roots[k]] == FREE for k in array(outer)[0]] == [False, True, True, False]


def test_joining_single_positions_is_no_dim_of_size_one() -> None:
    assert Labels().concatenate((ONE, ONE), (1, 1)) is not ONE


def test_merging_and_splitting_again_gives_the_same_dims_back() -> None:
    labels = Labels()
    dims = (labels.fresh(2), labels.fresh(3), labels.fresh(5))
    merged = labels.reshape(dims, (2, 3, 5), (2, 15), WHY)
    again = labels.reshape(merged, (2, 15), (2, 3, 5), WHY)
    assert classes(labels, *dims) == classes(labels, *again)


@given(shape=shapes, data=st.data())
@settings(deadline=None)
def test_a_reshape_keeps_the_units_of_every_element(shape: tuple[int, ...], data: st.DataObject) -> None:
    """Whatever the reshape, removing units removes the same elements before and after, where it froze nothing."""
    sizes = [n for n in range(1, prod(shape) + 1) if prod(shape) % n == 0]
    first = data.draw(st.sampled_from(sizes))
    rest = prod(shape) // first
    second = data.draw(st.sampled_from([n for n in range(1, rest + 1) if rest % n == 0]))
    out_shape = (first, second, rest // second)
    labels = Labels()
    dims = tuple(labels.fresh(n) for n in shape)
    out = labels.reshape(dims, shape, out_shape, WHY)
    solution = solve(labels)
    primitive, frozen = solution.primitive, solution.reasons != FREE
    keep = np.array([data.draw(st.booleans()) for _ in range(labels.count + 1)])
    keep[:-1] |= frozen
    keep[-1] = True

    def stays(dim: Dim, size: int) -> np.ndarray:
        if isinstance(dim, Fixed):
            return np.ones(size, dtype=bool)
        found: np.ndarray = keep[primitive[:, dim]].all(axis=(0, 1))
        return found

    def kept(dims: tuple[Dim, ...], shape: tuple[int, ...]) -> np.ndarray:
        grid = np.ones(shape, dtype=bool)
        for i, (dim, n) in enumerate(zip(dims, shape, strict=True)):
            grid &= stays(dim, n).reshape([-1 if j == i else 1 for j in range(len(shape))])
        return grid.reshape(-1)

    assert (kept(dims, shape) == kept(out, out_shape)).all()


@given(size=st.integers(2, 6), pairs=st.lists(st.tuples(st.integers(0, 17), st.integers(0, 17)), max_size=12))
@settings(deadline=None)
def test_classes_are_the_connected_components_of_the_ties(size: int, pairs: list[tuple[int, int]]) -> None:
    labels = Labels()
    everything = np.concatenate([array(labels.fresh(size))[0] for _ in range(3)])
    parent = list(range(len(everything)))

    def find(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        a, b = a % len(everything), b % len(everything)
        labels.tie(everything[[a]][None], everything[[b]][None], WHY)
        parent[max(find(a), find(b))] = min(find(a), find(b))
    assert solve(labels).primitive[0].tolist() == [find(i) for i in range(len(everything))]


def test_the_two_factors_of_a_square_split_are_not_alike() -> None:
    """Heads and widths of one size are met together everywhere, and yet they are two axes."""
    labels = Labels()
    a = labels.fresh(9)
    labels.observe((a,))
    rows, columns = labels.split_square(a, (3, 3), WHY)
    signature = solve(labels).signature
    assert len(set(signature[array(rows)[0]])) == len(set(signature[array(columns)[0]])) == 1
    assert signature[array(rows)[0, 0]] != signature[array(columns)[0, 0]]
