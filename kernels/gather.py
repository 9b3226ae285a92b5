"""gather: the token rows that the head reads, out of the residual stream and its copy in the operands' type, at once.

One program copies one row of each; rows past the last are neither read nor written.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from distilfast.kernels.dependent import wait_for_predecessor
from distilfast.kernels.launch import launch


@triton.jit
def gather_kernel(
    x_ptr,  # fp32 [T, D]
    cast_ptr,  # [T, D], where has_cast
    rows_ptr,  # int32 [R]
    out_ptr,  # fp32 [R, D]
    out_cast_ptr,  # [R, D], where has_cast
    num_rows_ptr,  # int32 [1]
    width,
    has_cast: tl.constexpr,
    block_width: tl.constexpr,
    is_dependent: tl.constexpr,
):
    """Grid: (R,); a program copies one row."""
    wait_for_predecessor(is_dependent)
    row = tl.program_id(0)
    if row >= tl.load(num_rows_ptr):
        return
    columns = tl.arange(0, block_width)
    mask = columns < width
    begin, out_begin = tl.load(rows_ptr + row).to(tl.int64) * width, row.to(tl.int64) * width
    tl.store(out_ptr + out_begin + columns, tl.load(x_ptr + begin + columns, mask=mask), mask=mask)
    if has_cast:
        tl.store(out_cast_ptr + out_begin + columns, tl.load(cast_ptr + begin + columns, mask=mask), mask=mask)


def gather(
    x: torch.Tensor,
    cast: torch.Tensor | None,
    rows: torch.Tensor,
    out: torch.Tensor,
    out_cast: torch.Tensor | None,
    num_rows: torch.Tensor,
    *,
    is_dependent: bool = False,
) -> None:
    """``x``, fp32 [T, D], and where given ``cast`` at the first ``num_rows`` of ``rows``, int32 [R], to the outputs."""
    block_width = triton.next_power_of_2(x.shape[1])
    launch(
        gather_kernel,
        (len(rows),),
        x,
        cast,
        rows,
        out,
        out_cast,
        num_rows,
        x.shape[1],
        has_cast=cast is not None,
        block_width=block_width,
        is_dependent=is_dependent,
        num_warps=min(8, max(1, block_width // 256)),
        num_stages=1,
    )
