"""embed: LN(word[id] + position[p] (+ token_type[t])): [T] → [T, D].

One program owns one token: it gathers two or three rows of the tables, adds them in fp32 and normalises the sum in
registers. The tables are stored in the operands' type; the result is the fp32 residual stream and ``out_cast``, a copy
of it in the operands' type.

Reference: ``distilfast.reference.embed``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from distilfast.kernels.add_layer_norm import layer_norm, warps_of_a_row
from distilfast.kernels.dependent import wait_for_predecessor
from distilfast.kernels.launch import launch


@triton.jit
def embed_kernel(
    ids_ptr,  # int32 [T]
    positions_ptr,  # int32 [T]
    types_ptr,  # int32 [T], where has_types
    word_ptr,  # [V, D]
    position_ptr,  # [P, D]
    type_ptr,  # [types, D], where has_types
    weight_ptr,  # fp32 [D]
    bias_ptr,  # fp32 [D]
    out_ptr,  # fp32 [T, D]
    cast_ptr,  # [T, D], where has_cast
    num_tokens_ptr,  # int32 [1]
    width,
    eps,
    has_types: tl.constexpr,
    has_cast: tl.constexpr,
    block_width: tl.constexpr,
    is_dependent: tl.constexpr,
):
    """Grid: (T,); a program computes one token."""
    token = tl.program_id(0)
    columns = tl.arange(0, block_width)
    column_mask = columns < width
    weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=column_mask, other=0.0)
    wait_for_predecessor(is_dependent)
    if token >= tl.load(num_tokens_ptr):
        return
    word = word_ptr + tl.load(ids_ptr + token).to(tl.int64) * width
    x = tl.load(word + columns, mask=column_mask, other=0.0).to(tl.float32)
    position = position_ptr + tl.load(positions_ptr + token).to(tl.int64) * width
    x += tl.load(position + columns, mask=column_mask, other=0.0).to(tl.float32)
    if has_types:
        kind = type_ptr + tl.load(types_ptr + token).to(tl.int64) * width
        x += tl.load(kind + columns, mask=column_mask, other=0.0).to(tl.float32)
    out = layer_norm(x, column_mask, weight, bias, width, eps)
    at = token.to(tl.int64) * width + columns
    tl.store(out_ptr + at, out, mask=column_mask)
    if has_cast:
        tl.store(cast_ptr + at, out.to(cast_ptr.dtype.element_ty), mask=column_mask)


def embed(
    ids: torch.Tensor,
    positions: torch.Tensor,
    types: torch.Tensor | None,
    word: torch.Tensor,
    position: torch.Tensor,
    token_type: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    out_cast: torch.Tensor | None,
    num_tokens: torch.Tensor,
    *,
    is_dependent: bool = False,
) -> None:
    """The first ``num_tokens`` rows of the embedding, into ``out`` and, where given, ``out_cast``.

    ``ids``, ``positions``, ``types`` int32 [T]; ``word`` [V, D], ``position`` [P, D], ``token_type`` [types, D], of
    one type; ``weight``, ``bias`` fp32 [D]; ``out`` fp32 [T, D], ``out_cast`` [T, D]; ``num_tokens`` int32 [1] on the
    device. ``types`` is needed with ``token_type``. All contiguous.
    """
    block_width = triton.next_power_of_2(word.shape[1])
    launch(
        embed_kernel,
        (ids.shape[0],),
        ids,
        positions,
        types,
        word,
        position,
        token_type,
        weight,
        bias,
        out,
        out_cast,
        num_tokens,
        word.shape[1],
        eps,
        has_types=token_type is not None,
        has_cast=out_cast is not None,
        block_width=block_width,
        is_dependent=is_dependent,
        num_warps=warps_of_a_row(len(ids), block_width),
        num_stages=1,
    )
