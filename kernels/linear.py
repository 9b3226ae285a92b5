"""linear: act(x Wᵀ + b), act in none, gelu (erf), relu, tanh: [T, K] · [N, K] → [S, T, N].

W stays as the checkpoint stores it, K contiguous: the matrix instructions read both operands along K. Products are of
the operands' type (fp16, bf16, or fp32 as ``product`` says: three TF32 products of two-way splits on NVIDIA, since a
plain one keeps 10 bits of mantissa; the exact fp32 matrix instructions on AMD) and are accumulated in fp32 (see
``multiply_add``). The epilogue applies bias and activation to the fp32 accumulator. GELU is the erf form: with erf
where the result is fp32, and where it is 16 bits wide with an approximation that costs a third of it and is 16 times
more accurate than the rounding that follows (``gelu_for_half``).

For few tokens the kernel is bound by reading W, and a grid of N / block_n programs would leave most of the GPU idle.
Split-K fixes that: S programs share K, each stores its partial sum in fp32 [S, T, N], and add_layer_norm adds
them in a fixed order. Split 0 adds the bias. With S > 1 there is no activation: it does not distribute over a sum.

For many tokens on a GPU with tensor descriptors (NVIDIA from Hopper on), ``persistent_linear_kernel`` computes the same
sums in the same order. One thread asks for a whole block of an operand (TMA), where otherwise every thread computes
addresses and masks; and a program stays on its multiprocessor and takes one block of the result after the other, so
that the operands of the next block are on their way while the epilogue of the last one computes. The descriptors are
made on the host: they are kernel parameters, which a captured graph keeps, whereas descriptors made on the device need
a workspace and a fence in every program. They end with the buffers; rows of the buffer past the last row of the batch
may be read, and are dropped.

The number of rows is read from the device, so that one captured graph serves every batch of its bucket; programs past
the last row return at once. A row's result depends on the tile sizes alone, never on the other rows.

Reference: ``distilfast.reference.linear``.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from triton.tools.tensor_descriptor import TensorDescriptor

from distilfast.kernels.dependent import prefetch, wait_for_predecessor
from distilfast.kernels.launch import launch
from distilfast.kernels.tuning import Tile


@triton.jit
def multiply_add(a, b, accumulator, product: tl.constexpr):
    """accumulator + a b.

    NVIDIA's tensor cores truncate when they accumulate instead of rounding. The error has one sign and grows with the
    number of additions (Ootomo & Yokota, arXiv 2203.03341). For fp32 operands each k-block therefore gets an
    accumulator of its own, which an ordinary fp32 addition adds to the total. It is written as an fma because the
    compiler would fold a plain addition back into the tensor-core instruction.
    """
    if product == "tf32x3":
        return tl.fma(tl.dot(a, b, input_precision=product), 1.0, accumulator)
    return tl.dot(a, b, accumulator, input_precision=product)


@triton.jit
def gelu(x):
    """x Φ(x), exact to fp32's erf."""
    return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))


@triton.jit
def gelu_for_half(x):
    """max(x, 0) − |x| Φ(−|x|), where log₂ Φ(−u) is a polynomial: within 2^-16 of x Φ(x), relative to it.

    Its coefficients are a minimax fit on [0, 9]. Below −9 the result stays at −1e-18. erf itself, where Φ nears 0, has
    no correct digit left: 1 + erf cancels. NaN stays NaN.
    """
    u = tl.minimum(tl.abs(x), 9.0)
    log = 7.463246e-08
    log = log * u - 3.655771e-06
    log = log * u + 7.943751e-05
    log = log * u - 0.0010200482
    log = log * u + 0.008750867
    log = log * u - 0.05430466
    log = log * u - 0.45824155
    log = log * u - 1.151295
    log = log * u - 0.9999966
    return tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL) - u * tl.exp2(log)


@triton.jit
def activate(x, activation: tl.constexpr, is_half: tl.constexpr):
    """``activation`` of fp32 x; ``is_half``: the result will be rounded to 16 bits."""
    if activation == "gelu":
        x = gelu_for_half(x) if is_half else gelu(x)
    elif activation == "relu":
        x = tl.maximum(x, 0.0, propagate_nan=tl.PropagateNan.ALL)
    elif activation == "tanh":
        x = tanh(x)
    return x


@triton.jit
def block_of(index, row_blocks, column_blocks, group_m: tl.constexpr):
    """(row block, column block) of the index-th block.

    Blocks that are computed together cover group_m row blocks by few column blocks, so they share x and W in L2.
    """
    group_size = group_m * column_blocks
    first_row = index // group_size * group_m
    group_rows = min(row_blocks - first_row, group_m)
    return first_row + index % group_size % group_rows, index % group_size // group_rows


@triton.jit
def tanh(x):
    """(1 − e) / (1 + e) with e = exp(−2|x|), which cannot overflow; near 0, where 1 − e cancels, the series to x⁷."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = tl.div_rn(1.0 - e, 1.0 + e)  # div.full.f32 would add 2 ulp to what 1 − e has lost
    x2 = x * x
    near = x * (1.0 + x2 * (-0.3333333333 + x2 * (0.1333333333 + x2 * -0.0539682540)))
    return tl.where(tl.abs(x) < 0.2, near, tl.where(x < 0, -far, far))


@triton.jit
def linear_kernel(
    x_ptr,  # [T, K]
    weight_ptr,  # [N, K]
    bias_ptr,  # fp32 [N]
    out_ptr,  # [S, T, N]
    num_rows_ptr,  # int32 [1]
    out_size,  # N
    in_size,  # K
    k_per_split,  # a multiple of block_k
    split_stride,  # elements from out[s] to out[s + 1]
    activation: tl.constexpr,
    product: tl.constexpr,
    is_even_k: tl.constexpr,  # no split of K ends inside a k-block
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
    stages: tl.constexpr,
    is_dependent: tl.constexpr,
    prefetches: tl.constexpr,  # there is one row block, and the launch is dependent
):
    """Grid: (row blocks · column blocks, S); a program computes one block of one partial sum."""
    if prefetches:  # the weights of this program, while the kernel before still runs
        line: tl.constexpr = 128 * 8 // weight_ptr.dtype.element_ty.primitive_bitwidth
        weight_rows = tl.minimum(tl.program_id(0) * block_n + tl.arange(0, block_n), out_size - 1)
        row_ptrs = weight_ptr + weight_rows[:, None].to(tl.int64) * in_size
        for start in range(0, k_per_split, 4 * line):
            k_offs = tl.program_id(1) * k_per_split + start + tl.arange(0, 4) * line
            prefetch(row_ptrs + tl.minimum(k_offs, in_size - 1)[None, :])
    wait_for_predecessor(is_dependent)
    num_rows = tl.load(num_rows_ptr)
    column_blocks = tl.cdiv(out_size, block_n)
    row_blocks = tl.cdiv(tl.num_programs(0), column_blocks)
    block_row, block_column = block_of(tl.program_id(0), row_blocks, column_blocks, group_m)
    if block_row * block_m >= num_rows:
        return
    split = tl.program_id(1)

    rows = block_row * block_m + tl.arange(0, block_m)
    columns = block_column * block_n + tl.arange(0, block_n)
    k_offs = split * k_per_split + tl.arange(0, block_k)
    row_mask = rows[:, None] < num_rows
    column_mask = columns[None, :] < out_size
    x_ptrs = x_ptr + rows[:, None].to(tl.int64) * in_size + k_offs[None, :]
    weight_ptrs = weight_ptr + columns[None, :].to(tl.int64) * in_size + k_offs[:, None]
    accumulator = tl.zeros([block_m, block_n], tl.float32)
    for start in tl.range(0, k_per_split, block_k, num_stages=stages):
        if is_even_k:
            x = tl.load(x_ptrs + start, mask=row_mask, other=0.0)
            weight = tl.load(weight_ptrs + start, mask=column_mask, other=0.0)
        else:
            k_mask = start + k_offs < min(in_size, (split + 1) * k_per_split)
            x = tl.load(x_ptrs + start, mask=row_mask & k_mask[None, :], other=0.0)
            weight = tl.load(weight_ptrs + start, mask=column_mask & k_mask[:, None], other=0.0)
        accumulator = multiply_add(x, weight, accumulator, product)

    if split == 0:
        accumulator += tl.load(bias_ptr + columns, mask=columns < out_size, other=0.0)[None, :]
    accumulator = activate(accumulator, activation, out_ptr.dtype.element_ty.primitive_bitwidth == 16)
    at = split.to(tl.int64) * split_stride + rows[:, None].to(tl.int64) * out_size + columns[None, :]
    tl.store(out_ptr + at, accumulator.to(out_ptr.dtype.element_ty), mask=row_mask & column_mask)


@triton.jit
def persistent_linear_kernel(
    x_desc,  # [T, K] in blocks of block_m × block_k
    weight_desc,  # [N, K] in blocks of block_n × block_k
    bias_ptr,  # fp32 [N]
    out_ptr,  # [S, T, N]
    num_rows_ptr,  # int32 [1]
    out_size,  # N
    k_blocks,  # of one split: K / S in blocks of block_k
    split_stride,  # elements from out[s] to out[s + 1]
    split_k: tl.constexpr,  # S
    activation: tl.constexpr,
    block_m: tl.constexpr,
    block_n: tl.constexpr,
    block_k: tl.constexpr,
    group_m: tl.constexpr,
    is_dependent: tl.constexpr,
):
    """Grid: as many programs as run at once; each computes every so manieth block. Operands are 16 bits wide.

    ``flatten`` makes one loop of the two, which is what lets loads run ahead across blocks of the result.
    """
    wait_for_predecessor(is_dependent)
    num_rows = tl.load(num_rows_ptr)
    column_blocks = tl.cdiv(out_size, block_n)
    row_blocks = tl.cdiv(num_rows, block_m)
    blocks = row_blocks * column_blocks
    for item in tl.range(tl.program_id(0), blocks * split_k, tl.num_programs(0), flatten=True):
        split = item // blocks
        block_row, block_column = block_of(item % blocks, row_blocks, column_blocks, group_m)
        accumulator = tl.zeros([block_m, block_n], tl.float32)
        for k in range(k_blocks):
            k_at = (split * k_blocks + k) * block_k
            x = x_desc.load([block_row * block_m, k_at])
            weight = weight_desc.load([block_column * block_n, k_at])
            accumulator = tl.dot(x, weight.T, accumulator)

        rows = block_row * block_m + tl.arange(0, block_m)
        columns = block_column * block_n + tl.arange(0, block_n)
        bias = tl.load(bias_ptr + columns, mask=columns < out_size, other=0.0)
        if split_k > 1:
            bias = tl.where(split == 0, bias, 0.0)
        half: tl.constexpr = out_ptr.dtype.element_ty.primitive_bitwidth == 16
        result = activate(accumulator + bias[None, :], activation, half)
        at = split.to(tl.int64) * split_stride + rows[:, None].to(tl.int64) * out_size + columns[None, :]
        mask = (rows[:, None] < num_rows) & (columns[None, :] < out_size)
        tl.store(out_ptr + at, result.to(out_ptr.dtype.element_ty), mask=mask)


def linear(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    activation: str,
    out: torch.Tensor,
    num_rows: torch.Tensor,
    tile: Tile,
    *,
    is_dependent: bool = False,
) -> None:
    """act(x Wᵀ + b) of the first ``num_rows`` rows into ``out``.

    ``x`` [T, K] and ``weight`` [N, K] of one type; ``bias`` fp32 [N]; ``out`` [T, N], or fp32 [S, T, N] where
    ``tile.split_k`` is S, with no activation; ``num_rows`` int32 [1] on the device. All contiguous. Where
    ``tile.programs`` is not 0, operands are 16 bits wide and K is a multiple of 8: a descriptor's rows are 16 bytes.
    """
    (rows, in_size), out_size = x.shape, weight.shape[0]
    k_per_split = triton.cdiv(triton.cdiv(in_size, tile.split_k), tile.block_k) * tile.block_k
    if tile.programs:
        launch(
            persistent_linear_kernel,
            (tile.programs,),
            TensorDescriptor.from_tensor(x, [tile.block_m, tile.block_k]),
            TensorDescriptor.from_tensor(weight, [tile.block_n, tile.block_k]),
            bias,
            out,
            num_rows,
            out_size,
            k_per_split // tile.block_k,
            rows * out_size,
            split_k=tile.split_k,
            activation=activation,
            block_m=tile.block_m,
            block_n=tile.block_n,
            block_k=tile.block_k,
            group_m=8,
            is_dependent=is_dependent,
            num_warps=tile.num_warps,
            num_stages=tile.num_stages,
        )
        return
    blocks = triton.cdiv(rows, tile.block_m) * triton.cdiv(out_size, tile.block_n)
    launch(
        linear_kernel,
        (blocks, tile.split_k),
        x,
        weight,
        bias,
        out,
        num_rows,
        out_size,
        in_size,
        k_per_split,
        rows * out_size,
        activation=activation,
        product=tile.product,
        is_even_k=in_size == k_per_split * tile.split_k,
        block_m=tile.block_m,
        block_n=tile.block_n,
        block_k=tile.block_k,
        group_m=8,
        stages=tile.num_stages,
        is_dependent=is_dependent,
        prefetches=is_dependent and rows <= tile.block_m,
        num_warps=tile.num_warps,
        num_stages=tile.num_stages,
    )
