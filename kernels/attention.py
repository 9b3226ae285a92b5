"""attention: softmax(q kᵀ / √d) v inside each sequence, for the packed rows: q [R, H, d] · k, v [T, H, d] → [R, D].

Flash attention over ``cu_seqlens``: no padding, no mask tensor, and no scores in memory. A program owns block_m query
rows of one head, whatever sequences they belong to, and loops over the keys of each of those sequences in blocks that
begin where the sequence begins:

    s = q kᵀ · log₂e / √d;  m' = max(m, max s);  p = 2^(s − m');  l' = l · 2^(m − m') + Σ p;  o' = o · 2^(m − m') + p v

and o / l at the end of a sequence (Milakov & Gimelshein 2018; Dao et al. 2022), where its rows are stored, and only
they: what the keys of one sequence give the rows of another goes nowhere, not even an infinity, so an answer does not
depend on the rest of its batch nor on its position in it. No row needs a second accumulator. The grid is
over rows, not sequences: a batch of many short texts fills the GPU like one long text, and a grid of the bucket's size
serves every batch in it. Which sequence a row belongs to is read from device memory.

The query rows need not be all tokens: a head that reads the first token of each text asks for those alone. d may be any
number: blocks are zero-padded to a power of two. The softmax is fp32; products are of the operands' type, fp32 ones as
``product`` says. On NVIDIA that is bf16x6: each operand is the sum of three bf16 numbers, which keep all 24 bits, and
the six largest of their nine products are summed. The three TF32 products of linear.py keep some 22 bits, which exceeds
the budget of fp32 here, where sums are short and there are two products in a row. A bf16 product takes half the time of
one of TF32, so six of them cost the tensor cores what three did. fp32 results are divided with correct rounding, since
div.full.f32 may be off by 2 ulp.

Reference: ``distilfast.reference.attention``.
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from triton.runtime import interpreter

from distilfast.kernels.dependent import wait_for_predecessor
from distilfast.kernels.device import is_interpreted
from distilfast.kernels.launch import launch
from distilfast.kernels.tuning import Tile


@triton.jit
def _multiply_add(a, b, accumulator, product: tl.constexpr):
    """accumulator + a b; where fp32 operands are split, added outside of the tensor cores: see linear.py."""
    if product == "bf16x6":
        return tl.fma(tl.dot(a, b, input_precision=product), 1.0, accumulator)
    return tl.dot(a, b, accumulator, input_precision=product)


@triton.jit
def _divide(x, divisor, is_fp32: tl.constexpr):
    """Correctly rounded where the result stays fp32."""
    return tl.div_rn(x, divisor) if is_fp32 else x / divisor


@triton.jit
def _scores(q, k_ptr, kv_stride, keys, end, dims, head_size, scale, product: tl.constexpr):
    """q kᵀ · scale of one block of keys, −inf past the end of the sequence."""
    mask = (keys[None, :] < end) & (dims[:, None] < head_size)
    k = tl.load(k_ptr + keys[None, :].to(tl.int64) * kv_stride + dims[:, None], mask=mask, other=0.0)
    scores = tl.dot(q, k, input_precision=product) * scale
    return tl.where(keys[None, :] < end, scores, float("-inf"))


@triton.jit
def attention_kernel(
    q_ptr,  # [R, H, d], rows q_stride apart
    k_ptr,  # [T, H, d], rows kv_stride apart
    v_ptr,  # the same
    out_ptr,  # [R, H · d]
    row_sequence_ptr,  # int32 [R]: the sequence of each row of q
    cu_seqlens_ptr,  # int32 [B + 1]
    num_rows_ptr,  # int32 [1]
    probabilities_ptr,  # fp32: each sequence's [H, L, L], where has_probabilities; R is T there
    probability_offs_ptr,  # int64 [B]: where each sequence's [H, L, L] begins
    q_stride,
    kv_stride,
    num_heads,
    scale,  # log₂e / √d
    head_size: tl.constexpr,
    product: tl.constexpr,
    has_probabilities: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_d: tl.constexpr,
    stages: tl.constexpr,
    is_dependent: tl.constexpr,
):
    """Grid: (row blocks, H); a program computes block_m rows of one head."""
    wait_for_predecessor(is_dependent)
    num_rows = tl.load(num_rows_ptr)
    begin_row = tl.program_id(0) * block_m
    if begin_row >= num_rows:
        return
    head = tl.program_id(1)
    rows = begin_row + tl.arange(0, block_m)
    dims = tl.arange(0, block_d)
    row_mask = rows < num_rows
    sequence = tl.load(row_sequence_ptr + rows, mask=row_mask, other=-1)
    first = tl.load(row_sequence_ptr + begin_row)
    last = tl.load(row_sequence_ptr + min(begin_row + block_m, num_rows) - 1)

    q_mask = row_mask[:, None] & (dims[None, :] < head_size)
    q_at = rows[:, None].to(tl.int64) * q_stride + head * head_size + dims[None, :]
    q = tl.load(q_ptr + q_at, mask=q_mask, other=0.0)
    k_ptr += head * head_size
    v_ptr += head * head_size

    for s in range(first, last + 1):
        begin = tl.load(cu_seqlens_ptr + s)
        end = tl.load(cu_seqlens_ptr + s + 1)
        is_mine = sequence == s
        row_max = tl.full([block_m], float("-inf"), tl.float32)
        row_sum = tl.zeros([block_m], tl.float32)
        out = tl.zeros([block_m, block_d], tl.float32)
        for start in tl.range(begin, end, block_n, num_stages=stages):
            keys = start + tl.arange(0, block_n)
            scores = _scores(q, k_ptr, kv_stride, keys, end, dims, head_size, scale, product)
            new_max = tl.maximum(row_max, tl.max(scores, axis=1))
            p = tl.exp2(scores - new_max[:, None])
            rescale = tl.exp2(row_max - new_max)
            v_mask = (keys[:, None] < end) & (dims[None, :] < head_size)
            v = tl.load(v_ptr + keys[:, None].to(tl.int64) * kv_stride + dims[None, :], mask=v_mask, other=0.0)
            out = _multiply_add(p.to(v.dtype), v, out * rescale[:, None], product)
            row_sum = row_sum * rescale + tl.sum(p, axis=1)
            row_max = new_max
        result = _divide(out, row_sum[:, None], out_ptr.dtype.element_ty == tl.float32)
        out_at = rows[:, None].to(tl.int64) * (num_heads * head_size) + head * head_size + dims[None, :]
        out_mask = is_mine[:, None] & (dims[None, :] < head_size)
        tl.store(out_ptr + out_at, result.to(out_ptr.dtype.element_ty), mask=out_mask)

        if has_probabilities:
            length = (end - begin).to(tl.int64)
            at = probabilities_ptr + tl.load(probability_offs_ptr + s) + head * length * length
            for start in range(begin, end, block_n):
                keys = start + tl.arange(0, block_n)
                scores = _scores(q, k_ptr, kv_stride, keys, end, dims, head_size, scale, product)
                p = _divide(tl.exp2(scores - row_max[:, None]), row_sum[:, None], True)
                mask = is_mine[:, None] & (keys[None, :] < end)
                tl.store(at + (rows[:, None] - begin) * length + (keys[None, :] - begin), p, mask=mask)


def _product(tile: Tile) -> str:
    """That of ``tile``; exact fp32 where Triton's interpreter runs the kernel and knows no bf16x6."""
    if is_interpreted() and tile.product not in interpreter.interpreter_builder.options.allowed_dot_input_precisions:
        return "ieee"
    return tile.product


def attention(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    out: torch.Tensor,
    row_sequence: torch.Tensor,
    cu_seqlens: torch.Tensor,
    num_heads: int,
    num_rows: torch.Tensor,
    tile: Tile,
    probabilities: torch.Tensor | None = None,
    probability_offs: torch.Tensor | None = None,
    *,
    is_dependent: bool = False,
) -> None:
    """Attention of the first ``num_rows`` rows of ``q``, each to all tokens of its own sequence, into ``out``.

    ``q`` [R, D], ``k``, ``v`` [T, D] of one type, with any stride between rows; ``out`` [R, D] contiguous;
    ``row_sequence`` int32 [R], non-decreasing; ``cu_seqlens`` int32 [B + 1]; ``num_rows`` int32 [1] on the
    device. With ``probabilities`` (fp32, each sequence's [H, L, L] from ``probability_offs`` int64 [B] on), where q
    holds a row for each token, those are stored too.
    """
    width = q.shape[1]
    head_size = width // num_heads
    launch(
        attention_kernel,
        (triton.cdiv(q.shape[0], tile.block_m), num_heads),
        q,
        k,
        v,
        out,
        row_sequence,
        cu_seqlens,
        num_rows,
        probabilities,
        probability_offs,
        q.stride(0),
        k.stride(0),
        num_heads,
        math.log2(math.e) / math.sqrt(head_size),
        head_size=head_size,
        product=_product(tile),
        has_probabilities=probabilities is not None,
        block_m=tile.block_m,
        block_n=tile.block_n,
        block_d=max(16, triton.next_power_of_2(head_size)),
        stages=tile.num_stages,
        is_dependent=is_dependent,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
