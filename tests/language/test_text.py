"""Texts become sequences of one length, and what is too short is refused."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secateur.errors import DataError
from secateur.language import read_text, sequences


def letters(text: str) -> dict[str, list[int]]:
    return {"input_ids": [ord(character) for character in text]}


def words(text: str) -> dict[str, list[int]]:
    """Far fewer tokens than characters."""
    return {"input_ids": [len(word) for word in text.split()]}


@given(st.text(min_size=2, max_size=300), st.integers(2, 9), st.none() | st.integers(1, 9))
def test_sequences_follow_each_other_and_none_is_too_short(text: str, length: int, at_most: int | None) -> None:
    count = len(text) // length if at_most is None else min(len(text) // length, at_most)
    if not count:
        with pytest.raises(DataError, match=f"{len(text)} tokens, too few for one sequence of {length}"):
            sequences(text, letters, length, at_most)
        return
    found = sequences(text, letters, length, at_most)
    assert found.shape == (count, length)
    assert found.flatten().tolist() == [ord(character) for character in text][: count * length]


def test_all_of_a_text_is_read_where_its_tokens_are_long() -> None:
    assert sequences("averyveryverylongword " * 40, words, length=4, at_most=9).shape == (9, 4)


@pytest.mark.parametrize(("length", "at_most"), [(1, None), (4, 0)])
def test_numbers_out_of_range_are_refused(length: int, at_most: int | None) -> None:
    with pytest.raises(DataError, match="at least 2 tokens"):
        sequences("text", letters, length, at_most)


@pytest.mark.parametrize(("content", "message"), [(b"  \n", "is empty"), (b"\xff\xfe\x00", "cannot be read")])
def test_files_that_are_no_text_are_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(DataError, match=message):
        read_text(tmp_path / "a.txt")
    with pytest.raises(DataError, match="cannot be read"):
        read_text(tmp_path / "none.txt")
