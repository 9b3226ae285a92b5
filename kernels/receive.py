"""receive: a batch from the host's pinned memory to the device, and the sequence of each of its tokens.

The kernel reads the host's memory itself: as part of the graph, and only as much as there is, where a copy in a graph
has the size of the bucket; and the kernel after it can start early, as it could not after a copy. The sequence of
token t is the last s with cu_seqlens[s] ≤ t, by bisection: ⌈log₂ B⌉ steps, none for one sequence. Positions come from
the host: those of a padded batch are its columns, with gaps where the mask has any.

A program serves ``block`` tokens, as many entries of cu_seqlens, and as many of the rows that the head reads. Nothing
past the counts is written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from distilfast.kernels.dependent import wait_for_predecessor
from distilfast.kernels.launch import launch

_BLOCK = 128


@triton.jit
def copy_block(staged_ptr, out_ptr, begin, at, count):
    """staged[begin + at] → out[at] where at < count; the values."""
    values = tl.load(staged_ptr + begin + at, mask=at < count, other=0)
    tl.store(out_ptr + at, values, mask=at < count)
    return values


@triton.jit
def sequence_of(tokens, cu_seqlens_ptr, num_sequences):
    """The last s with cu_seqlens[s] ≤ t for each t of ``tokens``."""
    found = tl.zeros_like(tokens)
    left = num_sequences
    while left > 1:
        half = left // 2
        found += tl.where(tl.load(cu_seqlens_ptr + found + half) <= tokens, half, 0)
        left -= half
    return found


@triton.jit
def receive_kernel(
    staged_ptr,  # int32, pinned: counts [3], ids, positions, types, each [tokens], cu_seqlens [tokens + 1], rows
    counts_ptr,  # int32 [3]: tokens, rows, sequences; and so on, all int32
    ids_ptr,
    positions_ptr,
    types_ptr,
    cu_seqlens_ptr,
    rows_ptr,
    sequence_ptr,  # [tokens]
    rows_sequence_ptr,  # [rows]
    tokens_size,  # of the bucket
    has_types: tl.constexpr,
    has_rows: tl.constexpr,
    block: tl.constexpr,
    is_dependent: tl.constexpr,
):
    """Grid: (token blocks + 1,), since cu_seqlens may have one entry more than there are tokens."""
    wait_for_predecessor(is_dependent)
    num_tokens = tl.load(staged_ptr)
    num_rows = tl.load(staged_ptr + 1)
    num_sequences = tl.load(staged_ptr + 2)
    at = tl.program_id(0) * block + tl.arange(0, block)
    if tl.program_id(0) == 0:
        copy_block(staged_ptr, counts_ptr, 0, at, 3)
    if tl.program_id(0) * block > num_tokens:
        return
    copy_block(staged_ptr, ids_ptr, 3, at, num_tokens)
    copy_block(staged_ptr, positions_ptr, 3 + tokens_size, at, num_tokens)
    if has_types:
        copy_block(staged_ptr, types_ptr, 3 + 2 * tokens_size, at, num_tokens)
    begin = 3 + 3 * tokens_size
    copy_block(staged_ptr, cu_seqlens_ptr, begin, at, num_sequences + 1)
    tl.store(sequence_ptr + at, sequence_of(at, staged_ptr + begin, num_sequences), mask=at < num_tokens)
    if has_rows:
        rows = copy_block(staged_ptr, rows_ptr, begin + tokens_size + 1, at, num_rows)
        tl.store(rows_sequence_ptr + at, sequence_of(rows, staged_ptr + begin, num_sequences), mask=at < num_rows)


def receive(
    staged: torch.Tensor,
    counts: torch.Tensor,
    ids: torch.Tensor,
    positions: torch.Tensor,
    types: torch.Tensor,
    cu_seqlens: torch.Tensor,
    rows: torch.Tensor,
    sequence: torch.Tensor,
    rows_sequence: torch.Tensor,
    has_types: bool,
    *,
    is_dependent: bool = False,
) -> None:
    """Fill the other arguments, int32 on the device, from ``staged``, int32 in pinned memory.

    ``staged`` holds counts [3] (tokens, rows, sequences), ids, positions, types [tokens each], cu_seqlens [tokens + 1]
    and rows, each field of its bucket's size; what is past the counts is neither read nor written.
    """
    tokens = len(ids)
    launch(
        receive_kernel,
        (triton.cdiv(tokens + 1, _BLOCK),),
        staged,
        counts,
        ids,
        positions,
        types,
        cu_seqlens,
        rows,
        sequence,
        rows_sequence,
        tokens,
        has_types=has_types,
        has_rows=len(rows) > 0,
        block=_BLOCK,
        is_dependent=is_dependent,
        num_warps=4,
        num_stages=1,
    )
