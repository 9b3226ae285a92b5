"""``PackedBatch``: packing removes padding and unpacking restores it exactly, whatever the mask."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from one_sentence import raises_one_sentence

from distilfast.batch import PackedBatch
from distilfast.errors import InputError

SHAPES = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)
INTEGERS = (np.int8, np.uint8, np.int32, np.int64)


@st.composite
def padded(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids, a mask of zeros and other numbers with at least one token in each row, and token types."""
    shape = draw(SHAPES)
    ids = draw(hnp.arrays(draw(st.sampled_from(INTEGERS)), shape, elements=st.integers(0, 99)))
    mask = draw(hnp.arrays(draw(st.sampled_from(INTEGERS)), shape, elements=st.integers(0, 2)))
    mask[np.arange(shape[0]), draw(st.integers(0, shape[1] - 1))] = 1
    return ids, mask, draw(hnp.arrays(np.int64, shape, elements=st.integers(0, 1)))


def packed_slowly(
    ids: np.ndarray, mask: np.ndarray, types: np.ndarray
) -> tuple[list[int], list[int], list[int], list[int]]:
    """Token by token: ids, positions, token types, cumulative lengths."""
    flat: tuple[list[int], list[int], list[int], list[int]] = ([], [], [], [0])
    for row in range(ids.shape[0]):
        for column in range(ids.shape[1]):
            if mask[row, column] != 0:
                for values, value in zip(flat, (ids[row, column], column, types[row, column]), strict=False):
                    values.append(int(value))
        flat[3].append(len(flat[0]))
    return flat


@given(padded())
def test_packing_agrees_with_a_loop_over_the_tokens(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    got = PackedBatch.from_padded(*batch)
    assert got.token_types is not None
    arrays = (got.input_ids, got.positions, got.token_types, got.cu_seqlens)
    assert tuple(array.tolist() for array in arrays) == packed_slowly(*batch)
    assert all(array.dtype == np.int32 for array in arrays)
    assert got.num_tokens == int((batch[1] != 0).sum()) and got.num_sequences == len(batch[0])


@given(padded(), st.sampled_from([(), (1,), (3,), (2, 2)]))
def test_unpacking_puts_every_row_back(batch: tuple[np.ndarray, ...], inner: tuple[int, ...]) -> None:
    ids, mask, _ = batch
    got = PackedBatch.from_padded(ids, mask)
    rows = np.arange(1, got.num_tokens * int(np.prod(inner)) + 1, dtype=np.float32).reshape(got.num_tokens, *inner)
    back = got.unpack(rows)
    assert back.shape == (*ids.shape, *inner) and back.dtype == rows.dtype
    expected = iter(rows)
    for row, column in np.ndindex(*ids.shape):
        wanted = next(expected) if mask[row, column] else np.zeros(inner, np.float32)
        np.testing.assert_array_equal(back[row, column], wanted)


@given(padded())
def test_ids_come_back_as_they_were(batch: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:
    ids, mask, types = batch
    got = PackedBatch.from_padded(ids, mask, types)
    np.testing.assert_array_equal(got.unpack(got.input_ids), np.where(mask != 0, ids, 0))


@given(st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9))
def test_sequences_and_their_padded_form_are_one_batch(sequences: list[list[int]]) -> None:
    length = max(map(len, sequences))
    ids = np.array([sequence + [0] * (length - len(sequence)) for sequence in sequences])
    mask = np.array([[1] * len(sequence) + [0] * (length - len(sequence)) for sequence in sequences])
    types = [[token % 2 for token in sequence] for sequence in sequences]
    bare, padded = PackedBatch.from_sequences(sequences, types), PackedBatch.from_padded(ids, mask, ids % 2)
    for name in ("input_ids", "positions", "cu_seqlens", "token_types", "first_rows"):
        np.testing.assert_array_equal(getattr(bare, name), getattr(padded, name))
        assert getattr(bare, name).dtype == np.int32
    np.testing.assert_array_equal(bare.unpack(bare.input_ids), padded.unpack(padded.input_ids))


def test_without_a_mask_every_token_is_kept_and_without_types_there_are_none() -> None:
    batch = PackedBatch.from_padded(np.array([[5, 6, 7], [8, 9, 10]]))
    assert batch.input_ids.tolist() == [5, 6, 7, 8, 9, 10]
    assert batch.positions.tolist() == [0, 1, 2, 0, 1, 2]
    assert batch.cu_seqlens.tolist() == [0, 3, 6] and batch.first_rows.tolist() == [0, 3]
    assert batch.token_types is None


def test_packing_copies_its_arguments() -> None:
    """Later changes to the caller's arrays have no effect."""
    ids, mask = np.array([[5, 6, 7]], np.int32), np.array([[1, 1, 0]], np.int32)
    batch = PackedBatch.from_padded(ids, mask, ids)
    ids[:], mask[:] = 0, 1
    assert batch.input_ids.tolist() == [5, 6]
    assert batch.unpack(batch.input_ids).tolist() == [[5, 6, 0]]


@pytest.mark.parametrize("sequences", [[], [[]], [[1], []]])
def test_nothing_to_pack(sequences: list[list[int]]) -> None:
    with pytest.raises(InputError, match=r"is empty; at least one"):
        PackedBatch.from_sequences(sequences)


def test_a_row_without_tokens() -> None:
    with pytest.raises(InputError, match=r"^attention_mask row 1 is all zeros; no token is left to attend to\.$"):
        PackedBatch.from_padded(np.ones((3, 2), int), np.array([[1, 0], [0, 0], [0, 1]]))


@pytest.mark.parametrize("shape", [(0, 0), (0, 3)])
def test_an_array_without_rows(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match=r"is empty; at least one"):
        PackedBatch.from_padded(np.zeros(shape, int))


@pytest.mark.parametrize("sequence", [[2**32 + 1], [-(2**31) - 1], [1.5], ["a"]])
def test_ids_that_do_not_fit_int32(sequence: list[Any]) -> None:
    """They are refused, and not wrapped or rounded."""
    with pytest.raises(InputError):
        PackedBatch.from_sequences([[1, 2], sequence])


NAMED = {
    "floats": ([[1, 2], [3], [1.5]], "input_ids of sequence 2 has dtype float64; integers are needed."),
    "too large": ([[1], [2, 2**31]], "input_ids of sequence 1 has 2147483648, which is no 32-bit integer."),
    "nested": ([[1], [[2, 3]]], "input_ids of sequence 1 has 2 dimensions; one is needed."),
    "a number": ([[1], 2], "Sequence 1 is of type int; ids are needed."),
    "empty": ([[1], [2], []], "Sequence 2 is empty; at least one token is needed."),
}


@pytest.mark.parametrize("case", NAMED)
def test_the_bad_sequence_is_named(case: str) -> None:
    sequences, message = NAMED[case]
    with pytest.raises(InputError) as caught:
        PackedBatch.from_sequences(sequences)
    assert str(caught.value) == message


def test_sequences_of_different_integers() -> None:
    """uint64 and int64 have no integer type in common; a batch can also be one array."""
    batch = PackedBatch.from_sequences([np.array([1, 2], np.uint64), np.array([3], np.int64), [4]])
    assert batch.input_ids.tolist() == [1, 2, 3, 4] and batch.input_ids.dtype == np.int32
    assert PackedBatch.from_sequences(np.array([[1, 2], [3, 4]])).cu_seqlens.tolist() == [0, 2, 4]


PADDED = {
    "ids of one dimension": (([1, 2],), "input_ids has 1 dimension(s)"),
    "a mask of another shape": (([[1, 2]], [[1]]), "attention_mask has shape (1, 1); input_ids has (1, 2)"),
    "types of another shape": (([[1, 2]], None, [[1]]), "token_type_ids has shape (1, 1)"),
    "half a mask": (([[1, 2]], [[1, 0.5]]), "attention_mask has 0.5"),
    "floats": (([[1.0]],), "input_ids has dtype float64"),
    "too large": (([[2**40]],), "input_ids has 1099511627776"),
}


@pytest.mark.parametrize("case", PADDED)
def test_padded_input_that_cannot_be_packed(case: str) -> None:
    arguments, what = PADDED[case]
    raises_one_sentence(InputError, what, lambda: PackedBatch.from_padded(*arguments))


def test_token_types_of_another_length() -> None:
    with pytest.raises(InputError):
        PackedBatch.from_sequences([[1, 2], [3]], [[0], [0, 1]])
