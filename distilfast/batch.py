"""Batches without padding: the only form in which the engine and its backends handle tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from distilfast import integers
from distilfast.errors import InputError


class Encoded(Protocol):
    """One sequence of a tokeniser: L ids, special tokens included, and L token types."""

    @property
    def ids(self) -> Sequence[int]:
        """Rows of the word table."""
        ...

    @property
    def type_ids(self) -> Sequence[int]:
        """Rows of the table of token types."""
        ...


@dataclass(frozen=True)
class DeviceBatch:
    """A batch whose arrays are in GPU memory; the host never reads them.

    ``input_ids`` [T], ``cu_seqlens`` [B + 1] and ``token_types`` [T] or None, as in ``PackedBatch``: contiguous arrays
    of int32 or int64 with DLPack or ``__cuda_array_interface__``. A token's position is its index in its sequence. The
    arrays must be written on the stream that the forward is given, or on the stream that their interface names, and
    must not be written to before the work enqueued on that stream has finished.
    """

    input_ids: Any
    cu_seqlens: Any
    token_types: Any | None = None


@dataclass(frozen=True)
class PackedBatch:
    """T tokens of B sequences, concatenated.

    ``input_ids`` int32 [T]; ``positions`` int32 [T], the row of the position table of each token;
    ``cu_seqlens`` int32 [B + 1], where sequence b is ``cu_seqlens[b]:cu_seqlens[b + 1]``; ``token_types``
    int32 [T] or None; ``mask`` bool [B, L], where each token was in the padded input; None if it was not padded.

    Integers of any dtype, lists too, become int32; arrays that are int32 already are not copied. Raises InputError for
    what is not one row of 32-bit integers. Whether they fit a model is checked by each call of the engine.
    """

    input_ids: np.ndarray
    positions: np.ndarray
    cu_seqlens: np.ndarray
    token_types: np.ndarray | None = None
    mask: np.ndarray | None = None

    def __post_init__(self) -> None:
        """Every array in the form that the kernels read."""
        for name in ("input_ids", "positions", "cu_seqlens", "token_types"):
            values = getattr(self, name)
            if values is not None or name != "token_types":
                object.__setattr__(self, name, integers.int32(name, values))

    @property
    def num_tokens(self) -> int:
        """T, the tokens of all sequences together."""
        return len(self.input_ids)

    @property
    def num_sequences(self) -> int:
        """B."""
        return len(self.cu_seqlens) - 1

    @property
    def first_rows(self) -> np.ndarray:
        """int32 [B]: the row of each sequence's first token."""
        return self.cu_seqlens[:-1]

    @property
    def padded_mask(self) -> np.ndarray:
        """bool [B, L]: where a token stands in the padded form; without a ``mask``, padding follows each sequence."""
        if self.mask is not None:
            return self.mask
        lengths = np.diff(self.cu_seqlens)
        return np.arange(int(lengths.max())) < lengths[:, None]

    @classmethod
    def from_sequences(
        cls, sequences: Sequence[Sequence[int]], token_types: Sequence[Sequence[int]] | None = None
    ) -> PackedBatch:
        """Pack B sequences of ids, each of its own length; raises InputError, which names the sequence that is bad."""
        if len(sequences) == 0:
            raise InputError("The batch is empty; at least one sequence is needed.")
        lengths = _lengths(sequences)
        if not lengths.all():
            raise InputError(f"Sequence {int(np.argmin(lengths))} is empty; at least one token is needed.")
        ids = _joined("input_ids", sequences)
        positions = np.arange(len(ids), dtype=np.int32)
        if len(sequences) == 1:  # the calls below would take as long as all the rest
            cu_seqlens = np.array([0, len(ids)], np.int32)
        else:
            cu_seqlens = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
            positions -= np.repeat(cu_seqlens[:-1], lengths)
        types = None
        if token_types is not None:
            if not np.array_equal(_lengths(token_types), lengths):
                raise InputError("token_types and sequences are not of the same lengths.")
            types = _joined("token_types", token_types)
        return cls(ids, positions, cu_seqlens, types)

    @classmethod
    def from_encodings(cls, encodings: Sequence[Encoded], *, token_types: bool) -> PackedBatch:
        """Pack what a tokeniser returned, with its token types where the model has a table of them."""
        types = [each.type_ids for each in encodings] if token_types else None
        return cls.from_sequences([each.ids for each in encodings], types)

    @classmethod
    def from_padded(cls, input_ids: Any, mask: Any = None, token_types: Any = None) -> PackedBatch:
        """Pack integer ``input_ids`` [B, L], keeping the tokens where ``mask`` [B, L] is not zero.

        The position of a token is its column, so masks with leading or inner zeros are exact too.
        Raises InputError for a row with nothing left.
        """
        ids = integers.integers("input_ids", input_ids)
        if ids.ndim != 2:
            raise InputError(f"input_ids has {ids.ndim} dimension(s); [batch, length] is needed.")
        keep = np.ones(ids.shape, bool) if mask is None else integers.mask("attention_mask", mask)
        types = None if token_types is None else integers.integers("token_type_ids", token_types)
        for name, array in (("attention_mask", keep), ("token_type_ids", types)):
            if array is not None and array.shape != ids.shape:
                raise InputError(f"{name} has shape {array.shape}; input_ids has {ids.shape}.")
        if ids.size == 0:
            raise InputError("The batch is empty; at least one sequence is needed.")
        lengths = keep.sum(axis=1, dtype=np.int32)
        if not lengths.all():
            raise InputError(
                f"attention_mask row {int(np.argmin(lengths))} is all zeros; no token is left to attend to."
            )
        cu_seqlens = np.concatenate([np.zeros(1, np.int32), np.cumsum(lengths, dtype=np.int32)])
        columns = np.broadcast_to(np.arange(ids.shape[1], dtype=np.int32), ids.shape)
        return cls(ids[keep], columns[keep], cu_seqlens, None if types is None else types[keep], keep)

    def unpack(self, rows: np.ndarray) -> np.ndarray:
        """[T, …] back to [B, L, …], zeros where the padded input had no token."""
        mask = self.padded_mask
        if mask.all():
            return rows.reshape(*mask.shape, *rows.shape[1:])
        padded = np.zeros((*mask.shape, *rows.shape[1:]), rows.dtype)
        padded[mask] = rows
        return padded


SMALLEST_BUCKET = 16


def bucket_for(tokens: int) -> int:
    """The bucket of a batch on a GPU: the next power of two, at least 16; csrc/cuda has the same rule."""
    return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())


def _lengths(sequences: Sequence[Sequence[int]]) -> np.ndarray:
    try:
        return np.array([len(sequence) for sequence in sequences], dtype=np.int32)
    except TypeError:
        found = next(i for i, sequence in enumerate(sequences) if not hasattr(sequence, "__len__"))
        raise InputError(f"Sequence {found} is of type {type(sequences[found]).__name__}; ids are needed.") from None


def _joined(name: str, sequences: Sequence[Sequence[int]]) -> np.ndarray:
    """All sequences end to end as int32; raises InputError, which names the first one that cannot be."""
    try:
        return integers.int32(name, np.concatenate([np.asarray(sequence) for sequence in sequences]))
    except Exception:  # of one sequence or, where each is valid, of numpy's common type of them all
        each = [integers.int32(f"{name} of sequence {i}", sequence) for i, sequence in enumerate(sequences)]
        return np.concatenate(each)
