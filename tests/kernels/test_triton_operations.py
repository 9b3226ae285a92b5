"""The Triton kernels against float64: on a GPU where there is one, else under Triton's interpreter.

Buffers have the rows of their bucket, and NaN in those that the batch does not use: no kernel may read or write them.
Interpreted, a kernel computes as on a Hopper: tests/hopper_arithmetic.py.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive
import numpy as np
import pytest

from distilfast import reference
from distilfast.backends import triton as backend
from distilfast.batch import PackedBatch, bucket_for
from distilfast.parity.budgets import to_bf16, to_fp16

if reason := backend.unavailable():
    pytest.skip(f"backend triton: {reason}", allow_module_level=True)

import torch
import triton
import triton.language as tl

from distilfast.kernels import tuning
from distilfast.kernels.add_layer_norm import add_layer_norm
from distilfast.kernels.attention import attention
from distilfast.kernels.embed import embed
from distilfast.kernels.gather import gather
from distilfast.kernels.linear import gelu_for_half, linear
from distilfast.kernels.receive import receive

DEVICE = "cpu" if backend.is_interpreted() else "cuda"
NARROW = {"fp32": naive.to_fp32, "fp16": to_fp16, "bf16": to_bf16}
DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
pytestmark = pytest.mark.usefixtures("hopper_arithmetic")
ROWS = (1, 2, 15, 16, 17, 31, 33, 127, 128, 129, 512)
RAGGED = ((1,), (2, 1, 15), (16, 17, 31), (33, 1, 1, 1), (127, 2), (129,), (60, 1, 130), (1,) * 70, (512, 3))


@pytest.fixture(params=DTYPES)
def precision(request: pytest.FixtureRequest) -> str:
    """Each type of operand."""
    return str(request.param)


def on_device(values: np.ndarray, precision: str = "fp32", rows: int | None = None) -> torch.Tensor:
    """A copy in the operands' type; with ``rows``, that many, NaN (integers: 0) where ``values`` has none."""
    kind = DTYPES[precision] if values.dtype.kind == "f" else None
    tensor = torch.from_numpy(values.copy()).to(kind)
    if rows is not None:
        padding = torch.full((rows - len(tensor), *tensor.shape[1:]), torch.nan if kind else 0, dtype=tensor.dtype)
        tensor = torch.cat([tensor, padding])
    return tensor.to(DEVICE)


def nan_filled(*sizes: int, precision: str = "fp32") -> torch.Tensor:
    return torch.full(sizes, torch.nan, dtype=DTYPES[precision], device=DEVICE)


def counted(rows: int) -> torch.Tensor:
    return torch.tensor([rows], dtype=torch.int32, device=DEVICE)


def fetched(tensor: torch.Tensor, rows: int) -> np.ndarray:
    """The first ``rows`` rows, after a check that no other was written."""
    values = tensor.float().cpu().numpy()
    assert np.isnan(values[rows:]).all()
    return values[:rows]


def check(got: np.ndarray, truth: np.ndarray, naively: np.ndarray) -> None:
    assert np.isfinite(got).all()
    assert naive.error(got, truth) <= naive.allowed(naively, truth)


# ---------------------------------------------------------------- linear


def check_linear(x, weight, bias, activation: str, precision: str, tile: tuning.Tile) -> None:
    rows, narrow = len(x), NARROW[precision]
    x, weight = narrow(x), narrow(weight)
    out = nan_filled(bucket_for(rows), len(weight), precision=precision)
    linear(
        on_device(x, precision, len(out)),
        on_device(weight, precision),
        on_device(bias),
        activation,
        out,
        counted(rows),
        tile,
    )
    truth = reference.linear(*(a.astype(np.float64) for a in (x, weight, bias)), activation)
    check(fetched(out, rows), truth, naive.linear(x, weight, bias, activation, narrow))


def tile_for(op: str, precision: str, rows: int) -> tuning.Tile:
    return tuning.tile(op, "sm_90", precision != "fp32", bucket_for(rows))


@pytest.mark.parametrize("rows", ROWS)
def test_linear_rows(normal, precision, rows):
    check_linear(
        normal(rows, 96), normal(40, 96, scale=0.1), normal(40), "none", precision, tile_for("linear", precision, rows)
    )


@pytest.mark.parametrize("size", [(1, 8), (15, 16), (16, 127), (17, 128), (33, 129), (300, 40)])
def test_linear_columns_and_depths(normal, precision, size):
    n, k = size
    check_linear(normal(5, k), normal(n, k), normal(n), "none", precision, tile_for("linear", precision, 5))


@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_linear_activations(normal, precision, activation):
    weight, bias = normal(50, 64, scale=0.5), normal(50)
    check_linear(normal(33, 64, scale=0.5), weight, bias, activation, precision, tile_for("linear", precision, 33))


def test_tanh_near_zero_and_far_out(normal):
    """Where the series takes over, and where exp underflows."""
    x = np.concatenate([np.linspace(-0.3, 0.3, 401), [-90, -10, 10, 90]]).astype(np.float32)[:, None]
    out = nan_filled(len(x), 1)
    one, tile = np.ones((1, 1), np.float32), tile_for("linear", "fp32", 16)
    linear(on_device(x), on_device(one), on_device(np.zeros(1, np.float32)), "tanh", out, counted(len(x)), tile)
    got, truth = fetched(out, len(x)), np.tanh(x.astype(np.float64))
    assert (np.abs(got - truth) <= 8 * naive.HALF_ULP * np.abs(truth)).all()


GPU_FAMILIES = tuning.FAMILIES if DEVICE == "cpu" else (backend.family(torch.device(DEVICE)),)
EVERY_TILE = {
    (is_half, tuning.tile(op, gpu, is_half, rows, multiprocessors))
    for multiprocessors in (0, 3 if "sm_90" in GPU_FAMILIES else 0)
    for op in ("linear", "linear_gelu", "linear_split_k")
    for gpu in GPU_FAMILIES
    for is_half in (True, False)
    for rows in (1 << n for n in range(4, 17))
}


@pytest.mark.parametrize(("is_half", "tile"), sorted(EVERY_TILE, key=str), ids=str)
def test_linear_every_tile_of_the_table(normal, is_half, tile):
    """One row and one column more than a tile has, and a K that is no multiple of block_k."""
    rows, n, k = tile.block_m + 1, tile.block_n + 1, 2 * tile.block_k + 8
    precision = "fp16" if is_half else "fp32"
    x, weight, bias = (NARROW[precision](a) for a in (normal(rows, k), normal(n, k, scale=0.1), normal(n)))
    out = nan_filled(tile.split_k, rows, n)
    linear(on_device(x, precision), on_device(weight, precision), on_device(bias), "none", out, counted(rows), tile)
    truth = reference.linear(*(a.astype(np.float64) for a in (x, weight, bias)))
    check(out.sum(dim=0).cpu().numpy(), truth, naive.linear(x, weight, bias))


PERSISTENT = tuning.Tile(32, 32, 32, num_warps=4, num_stages=3, programs=3)
needs_descriptors = pytest.mark.skipif("sm_90" not in GPU_FAMILIES, reason="the GPU has no tensor descriptors")


@needs_descriptors
@pytest.mark.parametrize(
    ("rows", "n", "k", "split_k", "programs"),
    [
        (1, 8, 8, 1, 3),
        (31, 33, 40, 1, 3),
        (33, 31, 96, 1, 1),
        (100, 70, 64, 1, 3),
        (97, 65, 136, 2, 3),
        (300, 32, 72, 3, 100),
    ],
    ids=str,
)
def test_persistent_linear(normal, rows, n, k, split_k, programs):
    """More blocks than programs and fewer, a K that the splits do not divide, rows past the last in their own buffer.

    Those hold ones, which would show in the result's buffer, if they were computed and stored.
    """
    x, weight, bias = to_fp16(normal(rows, k)), to_fp16(normal(n, k, scale=0.1)), normal(n)
    bucket = bucket_for(rows + 1)
    given = torch.ones(bucket, k, dtype=torch.float16, device=DEVICE)
    given[:rows] = on_device(x, "fp16")
    out = nan_filled(split_k, bucket, n)
    tile = replace(PERSISTENT, split_k=split_k, programs=programs)
    linear(given, on_device(weight, "fp16"), on_device(bias), "none", out, counted(rows), tile)
    truth = reference.linear(*(a.astype(np.float64) for a in (x, weight, bias)))
    check(fetched(out.sum(dim=0), rows), truth, naive.linear(x, weight, bias))


@needs_descriptors
@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_persistent_linear_activations(normal, activation):
    weight, bias = normal(50, 64, scale=0.5), normal(50)
    check_linear(normal(65, 64, scale=0.5), weight, bias, activation, "fp16", PERSISTENT)


@triton.jit
def gelu_for_half_kernel(x_ptr, out_ptr, size, block: tl.constexpr):
    at = tl.program_id(0) * block + tl.arange(0, block)
    tl.store(out_ptr + at, gelu_for_half(tl.load(x_ptr + at, mask=at < size)), mask=at < size)


def test_gelu_for_half_is_far_more_accurate_than_its_rounding():
    """Every fp16 and bf16 number and a fine grid: within 2^-16 of x Φ(x), relative; half an ulp of fp16 is 2^-12."""
    halves = torch.arange(-(2**15), 2**15).to(torch.int16)
    x = torch.cat(
        [halves.view(torch.float16).float(), halves.view(torch.bfloat16).float(), torch.linspace(-12, 12, 2**20)]
    )
    given = x.to(DEVICE)
    out = torch.empty_like(given)
    with np.errstate(invalid="ignore"):
        gelu_for_half_kernel[(triton.cdiv(len(x), 2**16),)](given, out, len(x), block=2**16)
    got, wide = out.cpu().double(), x.double()
    truth = wide * torch.special.log_ndtr(wide).exp()
    there = torch.isfinite(x) & (x >= -9) & (x.abs() >= 2**-100)  # the products of smaller ones are denormal
    assert float(((got - truth)[there] / truth[there]).abs().max()) <= 2.0**-16
    assert float(got[x < -9].abs().max()) <= 2e-18
    assert torch.equal(torch.isnan(got), torch.isnan(x))
    assert got[torch.isposinf(x)].tolist() == [float("inf")] * 2


@pytest.mark.parametrize("persistent", [False, pytest.param(True, marks=needs_descriptors)])
def test_linear_rows_do_not_depend_on_each_other(normal, precision, persistent):
    """Within a bucket: alone, with other rows, and in another position, to the bit."""
    if persistent and precision == "fp32":
        pytest.skip("fp32 operands have no descriptors")
    x, weight, bias = NARROW[precision](normal(64, 96)), NARROW[precision](normal(40, 96)), normal(40)
    tile = PERSISTENT if persistent else tile_for("linear", precision, 64)

    def run(rows: np.ndarray) -> np.ndarray:
        out = nan_filled(64, 40, precision=precision)
        given = on_device(rows, precision, 64)
        linear(given, on_device(weight, precision), on_device(bias), "gelu", out, counted(len(rows)), tile)
        return fetched(out, len(rows))

    whole = run(x)
    assert np.array_equal(run(x[7:8])[0], whole[7])
    assert np.array_equal(run(x[20:]), whole[20:])
    assert np.array_equal(run(x[::-1]), whole[::-1])


# ---------------------------------------------------------------- attention


def ends(lengths) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)


def run_attention(qkv: np.ndarray, lengths, heads: int, precision: str, tile: tuning.Tile, rows=None) -> np.ndarray:
    """Context of ``rows`` (default: all)."""
    tokens, width = len(qkv), qkv.shape[1] // 3
    sequence = np.repeat(np.arange(len(lengths), dtype=np.int32), lengths)
    rows = np.arange(tokens) if rows is None else rows
    q, k, v = on_device(qkv, precision, bucket_for(tokens)).split(width, dim=1)
    bucket = bucket_for(len(rows))
    out = nan_filled(bucket, width, precision=precision)
    if len(rows) < tokens:
        q = on_device(qkv[rows, :width], precision, bucket)
    attention(
        q, k, v, out, on_device(sequence[rows], rows=bucket), on_device(ends(lengths)), heads, counted(len(rows)), tile
    )
    return fetched(out, len(rows))


@pytest.mark.parametrize("lengths", RAGGED, ids=lambda lengths: f"{len(lengths)} of {max(lengths)}")
@pytest.mark.parametrize("head_size", [32, 64])
def test_attention_ragged_batches(normal, precision, lengths, head_size):
    qkv = NARROW[precision](normal(sum(lengths), 3 * 2 * head_size))
    truth = reference.attention(qkv.astype(np.float64), ends(lengths), 2)[0]
    got = run_attention(qkv, lengths, 2, precision, tile_for("attention", precision, sum(lengths)))
    check(got, truth, naive.attention(qkv, ends(lengths), 2, NARROW[precision]))


@pytest.mark.parametrize("head_size", [8, 24, 80, 128])
def test_attention_other_head_sizes(normal, precision, head_size):
    lengths = (5, 40)
    qkv = NARROW[precision](normal(45, 3 * 3 * head_size))
    truth = reference.attention(qkv.astype(np.float64), ends(lengths), 3)[0]
    got = run_attention(qkv, lengths, 3, precision, tile_for("attention", precision, 16))
    check(got, truth, naive.attention(qkv, ends(lengths), 3, NARROW[precision]))


@pytest.mark.parametrize("scale", [1e-3, 10.0, 50.0])
def test_attention_extreme_scores(normal, precision, scale):
    qkv = normal(40, 3 * 64)
    qkv[:, :64] *= scale
    qkv, lengths = NARROW[precision](qkv), (33, 7)
    truth = reference.attention(qkv.astype(np.float64), ends(lengths), 1)[0]
    got = run_attention(qkv, lengths, 1, precision, tile_for("attention", precision, 40))
    check(got, truth, naive.attention(qkv, ends(lengths), 1, NARROW[precision]))


def test_attention_of_selected_rows_is_that_of_all_rows(normal, precision):
    """With the same tile, a few rows of some sequences have the same bits as among all rows."""
    lengths, tile = (3, 40, 1, 70, 16), tuning.rows_tile("sm_90", precision != "fp32")
    qkv = NARROW[precision](normal(sum(lengths), 3 * 64))
    whole = run_attention(qkv, lengths, 2, precision, tile)
    rows = np.array([0, 2, 41, 60, 113, 129])
    assert np.array_equal(run_attention(qkv, lengths, 2, precision, tile, rows), whole[rows])


def test_attention_does_not_depend_on_batch_mates(normal, precision):
    """With the same tile: alone and in any position of a batch, to the bit; even beside a text with infinite values."""
    lengths, tile = (5, 129, 1, 64), tile_for("attention", precision, 512)
    qkv = NARROW[precision](normal(sum(lengths), 3 * 2 * 32))
    whole = run_attention(qkv, lengths, 2, precision, tile)
    for begin, end in zip(ends(lengths), ends(lengths)[1:], strict=False):
        alone = run_attention(qkv[begin:end], (end - begin,), 2, precision, tile)
        assert np.array_equal(alone, whole[begin:end])
    qkv[134, 2 * 64 :] = np.inf  # the values of the sequence of one token
    with np.errstate(invalid="ignore"):
        spoiled = run_attention(qkv, lengths, 2, precision, tile)
    assert np.array_equal(np.delete(spoiled, 134, axis=0), np.delete(whole, 134, axis=0))


# ---------------------------------------------------------------- add_layer_norm, embed


@pytest.mark.parametrize("width", [1, 7, 32, 33, 768])
@pytest.mark.parametrize("parts", [1, 3])
def test_add_layer_norm(normal, precision, width, parts):
    rows, eps = 5, 1e-3 if width < 7 else 1e-12
    x = NARROW[precision](normal(parts, rows, width))
    residual, weight, bias = normal(rows, width), normal(width), normal(width)
    out, copy = nan_filled(16, width), nan_filled(16, width, precision=precision)
    given = torch.stack([on_device(part, precision, 16) for part in x])
    add_layer_norm(
        given, on_device(residual, rows=16), on_device(weight), on_device(bias), eps, out, copy, counted(rows)
    )
    truth = reference.add_layer_norm(
        x.astype(np.float64).sum(axis=0), *(a.astype(np.float64) for a in (residual, weight, bias)), eps
    )
    summed = np.cumsum(x, axis=0, dtype=np.float32)[-1] + residual
    check(fetched(out, rows), truth, naive.layer_norm(summed, weight, bias, eps))
    assert np.array_equal(fetched(copy, rows), NARROW[precision](fetched(out, rows)))


def test_add_layer_norm_in_place_without_residual(normal):
    x, weight, bias = normal(3, 48) + 300, normal(48), normal(48)
    stream = on_device(x)
    add_layer_norm(stream[None], None, on_device(weight), on_device(bias), 1e-12, stream, None, counted(3))
    truth = reference.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), 1e-12)
    check(stream.cpu().numpy(), truth, naive.layer_norm(x, weight, bias, 1e-12))


@pytest.mark.parametrize("eps", [1e-12, 1e-6])
def test_eps_comes_from_the_caller(normal, eps):
    """On rows whose variance is near eps."""
    x, weight, bias = normal(4, 64, scale=1e-3), normal(64), normal(64)
    out = nan_filled(4, 64)
    add_layer_norm(on_device(x)[None], None, on_device(weight), on_device(bias), eps, out, None, counted(4))
    check(
        fetched(out, 4),
        reference.layer_norm(*(a.astype(np.float64) for a in (x, weight, bias)), eps),
        naive.layer_norm(x, weight, bias, np.float32(eps)),
    )


@pytest.mark.parametrize("types", [False, True])
@pytest.mark.parametrize("width", [33, 384])
def test_embed(normal, rng, precision, types, width):
    narrow = NARROW[precision]
    tables = {
        "embed.word": normal(50, width),
        "embed.position": normal(20, width),
        "embed.token_type": normal(2, width),
    }
    tables = {name: narrow(values) for name, values in tables.items() if types or name != "embed.token_type"}
    norm = {"embed.norm.weight": normal(width), "embed.norm.bias": normal(width)}
    sequences = [rng.integers(0, 50, length) for length in (1, 20, 7)]
    kinds = [rng.integers(0, 2, len(s)) for s in sequences] if types else None
    batch = PackedBatch.from_sequences(sequences, kinds)
    out, copy = nan_filled(32, width), nan_filled(32, width, precision=precision)
    given: dict[str, Any] = {name: on_device(values, precision) for name, values in tables.items()}
    embed(
        on_device(batch.input_ids, rows=32),
        on_device(batch.positions, rows=32),
        on_device(batch.token_types, rows=32) if batch.token_types is not None else None,
        given["embed.word"],
        given["embed.position"],
        given.get("embed.token_type"),
        *(on_device(values) for values in norm.values()),
        1e-3,
        out,
        copy,
        counted(28),
    )
    truth = reference.embed(batch, {name: a.astype(np.float64) for name, a in (tables | norm).items()}, 1e-3)
    x = tables["embed.word"][batch.input_ids] + tables["embed.position"][batch.positions]
    x = x + tables["embed.token_type"][batch.token_types] if types else x
    check(fetched(out, 28), truth, naive.layer_norm(x, *norm.values(), 1e-3))
    assert np.array_equal(fetched(copy, 28), narrow(fetched(out, 28)))


# ---------------------------------------------------------------- receive, gather


@pytest.mark.parametrize(
    "lengths", [(1,), (128,), (127, 2), (1,) * 128, (5, 1, 200, 3, 40)], ids=lambda each: str(len(each))
)
def test_receive(rng, lengths):
    """What is past the counts is not written: it stays −1."""
    tokens, sequences = sum(lengths), len(lengths)
    bucket = bucket_for(tokens)
    cu_seqlens = ends(lengths)
    rows = rng.permutation(tokens)[: min(tokens, 150)].astype(np.int32)
    fields = [np.array([tokens, len(rows), sequences]), *rng.integers(0, 9, (3, tokens)), cu_seqlens, rows]
    sizes = (3, bucket, bucket, bucket, bucket + 1, bucket)
    staged = torch.full((sum(sizes),), -7, dtype=torch.int32, pin_memory=DEVICE == "cuda")
    for values, place in zip(fields, staged.split(sizes), strict=True):
        place[: len(values)] = torch.from_numpy(values.astype(np.int32))
    out = [torch.full((size,), -1, dtype=torch.int32, device=DEVICE) for size in (*sizes, bucket, bucket)]
    receive(staged, *out, has_types=True)
    sequence = np.repeat(np.arange(sequences), lengths)
    for got, wanted in zip(out, [*fields, sequence, sequence[rows]], strict=True):
        assert got.cpu().numpy()[: len(wanted)].tolist() == wanted.tolist()
        assert (got[len(wanted) :] == -1).all()


@pytest.mark.parametrize("width", [33, 768])
@pytest.mark.parametrize("has_cast", [False, True])
def test_gather(normal, width, has_cast):
    x, rows = normal(20, width), np.array([19, 0, 7], np.int32)
    cast = to_fp16(x) if has_cast else None
    out, out_cast = nan_filled(16, width), nan_filled(16, width, precision="fp16")
    given = None if cast is None else on_device(cast, "fp16")
    gather(on_device(x), given, on_device(rows, rows=16), out, out_cast if has_cast else None, counted(3))
    assert np.array_equal(fetched(out, 3), x[rows])
    if cast is not None:
        assert np.array_equal(fetched(out_cast, 3), cast[rows])
