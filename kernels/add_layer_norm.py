"""add_layer_norm: LN(Σₛ x[s] + residual), row by row: [S, T, D] + [T, D] → [T, D].

    y = Σₛ x[s] + residual;  m = mean(y);  v = mean((y − m)²);  out = (y − m) / √(v + eps) · weight + bias

x is what a linear has stored: the whole product, or the S partial sums of split-K, which are added here in ascending
order, so that the result is the same on every run. One program owns one row and keeps it in registers: the statistics
take two passes (E[x²] − m² would cancel), and memory is read once. For few tokens several warps share a row, since that
is sooner done; for many a row has one warp, which waits for no other and exchanges nothing through shared memory, and
some 16 rows at a time keep a multiprocessor's memory busy. Everything is fp32, whatever type x has: the result is the
residual stream, and ``out_cast``, a copy of it in the operands' type, is what the next linear reads.

Reference: ``distilfast.reference.add_layer_norm``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from distilfast.kernels.dependent import wait_for_predecessor
from distilfast.kernels.launch import launch

MANY_ROWS = 4096  # from which on a row has one warp; 132 multiprocessors that hold 16 rows each then have two rounds


def warps_of_a_row(rows: int, block_width: int) -> int:
    """Warps of a program, of ``rows``; a thread holds 8 columns, or 32 where its warp has the row to itself."""
    alone = rows >= MANY_ROWS and block_width <= 1024
    return 1 if alone else min(8, max(1, block_width // 256))


@triton.jit
def layer_norm(x, column_mask, weight, bias, width, eps):
    """LN of one row, fp32, whose masked columns are zero.

    ``/`` would be div.full.f32, which is off by up to 2 ulp: more than the budget of fp32.
    """
    mean = tl.div_rn(tl.sum(x, axis=0), width * 1.0)
    centred = tl.where(column_mask, x - mean, 0.0)
    variance = tl.div_rn(tl.sum(centred * centred, axis=0), width * 1.0)
    return tl.div_rn(centred, tl.sqrt_rn(variance + eps)) * weight + bias


@triton.jit
def add_layer_norm_kernel(
    x_ptr,  # [S, T, D]
    residual_ptr,  # fp32 [T, D], where has_residual
    weight_ptr,  # fp32 [D]
    bias_ptr,  # fp32 [D]
    out_ptr,  # fp32 [T, D]
    cast_ptr,  # [T, D], where has_cast
    num_rows_ptr,  # int32 [1]
    width,
    split_stride,  # elements from x[s] to x[s + 1]
    eps,
    split_k: tl.constexpr,
    has_residual: tl.constexpr,
    has_cast: tl.constexpr,
    block_width: tl.constexpr,
    is_dependent: tl.constexpr,
):
    """Grid: (T,); a program computes one row."""
    row = tl.program_id(0)
    columns = tl.arange(0, block_width)
    column_mask = columns < width
    weight = tl.load(weight_ptr + columns, mask=column_mask, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=column_mask, other=0.0)
    wait_for_predecessor(is_dependent)
    if row >= tl.load(num_rows_ptr):
        return
    at = row.to(tl.int64) * width + columns
    y = tl.zeros([block_width], tl.float32)
    for split in tl.static_range(split_k):
        y += tl.load(x_ptr + split * split_stride + at, mask=column_mask, other=0.0).to(tl.float32)
    if has_residual:
        y += tl.load(residual_ptr + at, mask=column_mask, other=0.0)
    out = layer_norm(y, column_mask, weight, bias, width, eps)
    tl.store(out_ptr + at, out, mask=column_mask)
    if has_cast:
        tl.store(cast_ptr + at, out.to(cast_ptr.dtype.element_ty), mask=column_mask)


def add_layer_norm(
    x: torch.Tensor,
    residual: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    eps: float,
    out: torch.Tensor,
    out_cast: torch.Tensor | None,
    num_rows: torch.Tensor,
    *,
    is_dependent: bool = False,
) -> None:
    """LN(Σ x + residual) of the first ``num_rows`` rows, into ``out`` and, where given, ``out_cast``.

    ``x`` [S, T, D] of any floating type; ``residual``, ``out`` fp32 [T, D]; ``weight``, ``bias`` fp32 [D];
    ``out_cast`` [T, D]; ``num_rows`` int32 [1] on the device. All contiguous.
    """
    split_k, rows, width = x.shape
    block_width = triton.next_power_of_2(width)
    launch(
        add_layer_norm_kernel,
        (rows,),
        x,
        residual,
        weight,
        bias,
        out,
        out_cast,
        num_rows,
        width,
        x.stride(0),
        eps,
        split_k=split_k,
        has_residual=residual is not None,
        has_cast=out_cast is not None,
        block_width=block_width,
        is_dependent=is_dependent,
        num_warps=warps_of_a_row(rows, block_width),
        num_stages=1,
    )
