"""linear: act(x Wᵀ + b) against float64, on sizes that straddle every tile, panel and k-block."""

from __future__ import annotations

import naive
import numpy as np
import pytest
from identities import each_isa, each_kernel

from distilfast import _cpu, reference
from distilfast.parity.budgets import to_bf16, to_two_bf16
from distilfast.quantize import outlier_channels

ROWS = (1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 32, 33, 127, 128, 129, 257)
# (N, K): panels have 48, 32, 24 and 16 columns, k-blocks 256, 384, 512 and 1,024 values, tiles 32 and 64.
SIZES = ((1, 1), (2, 3), (23, 31), (24, 255), (25, 256), (47, 257), (48, 512), (49, 513), (100, 768))
SIZES += ((31, 33), (32, 64), (33, 65), (49, 385), (65, 1025))


def group_of(k):
    """The group size of int8: csrc/cpu/kernels.h."""
    return 256 if k in (768, 3072) else 64


def signs(k):
    """+1 or -1 for each channel: the kernels' hash of its number."""
    hashes = np.arange(k, dtype=np.uint32) * np.uint32(2654435761)
    hashes ^= hashes >> np.uint32(16)
    hashes *= np.uint32(2246822519)
    hashes ^= hashes >> np.uint32(13)
    return np.where(hashes & np.uint32(1), np.float32(1), np.float32(-1))


def hadamard_rotated(groups):
    """Each row times the Hadamard matrix, by the float32 additions of the kernels."""
    distance = 1
    while distance < groups.shape[1]:
        pairs = groups.reshape(len(groups), -1, 2, distance)
        sums = [pairs[:, :, 0] + pairs[:, :, 1], pairs[:, :, 0] - pairs[:, :, 1]]
        groups = np.stack(sums, axis=2).reshape(groups.shape)
        distance *= 2
    return groups


def int8_round_trip(x):
    """Each row quantised to int8 by the float32 operations of the kernels, and dequantised in float64."""
    most = np.abs(x).max(axis=1, keepdims=True)
    inverse = np.divide(np.float32(127), most, out=np.zeros_like(most), where=most > 0)
    return (most / np.float32(127)).astype(np.float64) * np.rint(x * inverse)


def to_int8(x, outliers, isa):
    """[R, K] as the int8 kernels multiply it: groups, each rotated after random signs, then the outlier channels.

    In the order of the kernels' butterflies: vector code begins with those between vectors.
    """
    group, width = group_of(x.shape[1]), {"ref": 1, "avx2": 8, "avx2_vnni": 8}.get(isa, 16)
    masked = x * signs(x.shape[1]) * ~np.isin(np.arange(x.shape[1]), outliers)
    padded = np.pad(masked, ((0, 0), (0, -x.shape[1] % group)))
    found = []
    for each in np.split(padded, padded.shape[1] // group, axis=1):
        lanes_last = each.reshape(len(x), group // width, width).transpose(0, 2, 1).reshape(len(x), group)
        # The square root of the group size in x and in W, since H Hᵀ = group size · I.
        found.append(int8_round_trip(hadamard_rotated(np.ascontiguousarray(lanes_last))) / np.sqrt(group))
    return np.concatenate([*found, x[:, outliers]], axis=1)


def channels(x):
    """The channel shift, and the outlier channels: those with the largest distance from it."""
    shift = x.mean(axis=0)
    reach = np.abs(x - shift).max(axis=0)
    return shift, np.sort(np.argsort(-reach)[: outlier_channels(len(reach))]).astype(np.int32)


NARROW = {"fp32": naive.to_fp32, "bf16x3": to_two_bf16, "bf16": to_bf16}


# The largest absolute error of the GELU of bf16 and int8 linears: csrc/cpu/vec/math.h.
COARSE_GELU = 8.2e-6


reference_linear = naive.memoized(reference.linear)


def linear(x, weight, bias, activation, *, isa, precision="fp32", threads=1, channels=(None, None)):
    if precision == "int8" and channels[0] is None:
        channels = np.zeros(x.shape[1], np.float32), np.arange(outlier_channels(x.shape[1]), dtype=np.int32)
    return _cpu.Linear(weight, bias, *channels, isa=isa, precision=precision, threads=threads)(x, activation)


def check(x, weight, bias, activation, isa, precision, threads=1):
    """Operands are rounded first; the remaining error is of the sums, which are fp32 in every precision."""
    how = {"isa": isa, "precision": precision, "threads": threads}
    if precision == "bf16x3" and not isa.startswith("amx"):
        precision = "fp32"  # the arithmetic of bf16x3 on these ISAs
    left_out = 0.0
    if precision == "int8":
        shift, outliers = channels(x)
        got = linear(x, weight, bias, activation, **how, channels=(shift, outliers))
        x, weight = to_int8(x - shift, outliers, isa), to_int8(weight, outliers, isa)
    else:
        got = linear(x, weight, bias, activation, **how)
        if precision == "bf16x3":  # hi·hi + hi·lo + lo·hi, without lo·lo
            low_x, low_weight = (to_two_bf16(each) - to_bf16(each) for each in (x, weight))
            left_out = low_x.astype(np.float64) @ low_weight.astype(np.float64).T
        x, weight = NARROW[precision](x), NARROW[precision](weight)
    exact = [a.astype(np.float64) for a in (x, weight, bias)]
    product = reference_linear(*exact)
    truth = reference.ACTIVATIONS[activation](product - left_out)
    usual = naive.linear(*(a.astype(np.float32) for a in (x, weight, bias)), activation)
    coarse = COARSE_GELU if activation == "gelu" and precision in ("bf16", "int8") else 0.0
    coarse *= np.sqrt(truth.size) / np.linalg.norm(truth)
    assert naive.error(got, truth) <= naive.allowed(usual, reference.ACTIVATIONS[activation](product)) + coarse


def test_python_and_the_kernels_agree_on_the_number_of_outlier_channels():
    assert all(_cpu.outlier_channels(k) == outlier_channels(k) for k in range(1, 4000))


@each_kernel("linear")
@pytest.mark.parametrize("size", SIZES)
def test_sizes(isa, precision, normal, size):
    n, k = size
    weight, bias = normal(n, k), normal(n)
    for rows in ROWS:
        check(normal(rows, k), weight, bias, "none", isa, precision)


@each_kernel("linear")
@pytest.mark.parametrize("size", [(2304, 768), (768, 3072), (384, 1536)])
def test_the_sizes_of_whole_models(isa, precision, normal, size):
    n, k = size
    check(normal(17, k), normal(n, k, scale=0.04), normal(n), "none", isa, precision, threads=2)


@each_kernel("linear")
@pytest.mark.parametrize("activation", ["gelu", "relu", "tanh"])
def test_activations(isa, precision, normal, activation):
    check(normal(33, 64, scale=0.5), normal(50, 64, scale=0.5), normal(50), activation, isa, precision)


@each_isa("linear", "bf16")
def test_bf16_operands_are_rounded_to_the_nearest(isa, normal):
    """Each result is one product, of operands rounded to the nearest bf16, ties to even."""
    x = np.concatenate(
        [normal(200), np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -(1 + 2**-8), 3e38, 1e-30])]
    )
    x = np.ascontiguousarray(np.stack([x, np.zeros_like(x)], axis=1), np.float32)
    one, zero = np.ones((1, 2), np.float32), np.zeros(1, np.float32)
    got = linear(x, one, zero, "none", isa=isa, precision="bf16")[:, 0]
    assert np.array_equal(got, to_bf16(x[:, 0]))
    weight = np.ascontiguousarray(x[:, 0][:, None])
    got = linear(
        np.ones((1, 1), np.float32), weight, np.zeros(len(weight), np.float32), "none", isa=isa, precision="bf16"
    )
    assert np.array_equal(got[0], to_bf16(x[:, 0]))


@each_isa("linear", "fp32")
def test_gelu_everywhere(isa):
    """The whole real line, with the tails and the ends of the approximation's intervals; K = 1 passes x through."""
    x = np.concatenate([np.linspace(-14, 14, 20001), [-100.0, -1e30, 1e30, 0.0, -1e-30, 1e-30]]).astype(np.float32)
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    got = linear(x[:, None], one, zero, "gelu", isa=isa)[:, 0]
    truth = reference.ACTIVATIONS["gelu"](x.astype(np.float64))
    # The error scales with |x|: the normal distribution function is accurate to two ulp of 1.
    assert (np.abs(got - truth) <= 4 * naive.HALF_ULP * np.abs(x)).all()
    assert got[np.abs(x) > 14].tolist() == [0, 0, np.float32(1e30)]


@each_kernel("linear", "bf16", "int8")
def test_coarse_gelu_everywhere(isa, precision):
    """The GELU of bf16 and int8 linears, at values that bf16 holds; the one channel of K = 1 is not quantised."""
    x = np.unique(to_bf16(np.concatenate([np.linspace(-14, 14, 20001), [-1e30, 1e30, 1e-30]]).astype(np.float32)))
    one, zero = np.ones((1, 1), np.float32), np.zeros(1, np.float32)
    got = linear(x[:, None], one, zero, "gelu", isa=isa, precision=precision)[:, 0]
    truth = reference.ACTIVATIONS["gelu"](x.astype(np.float64))
    # Far out the result is x, rounded to fp32.
    assert (np.abs(got - truth) <= np.maximum(COARSE_GELU, 2 * naive.HALF_ULP * np.abs(x))).all()
    # Near zero the relative error is at most half of what rounding to bf16 costs, 2^-9.
    near = np.abs(x) < 0.5
    assert (np.abs(got - truth) <= 2.0**-10 * np.abs(truth))[near].all()
    assert got[x == 0] == 0


@each_kernel("linear")
def test_a_nan_stays_in_its_row(isa, precision, normal):
    x = normal(9, 64)
    x[4, 7] = np.nan
    got = linear(x, normal(50, 64), normal(50), "gelu", isa=isa, precision=precision)
    assert np.isnan(got[4]).all()
    assert np.isfinite(np.delete(got, 4, axis=0)).all()


@each_kernel("linear")
@pytest.mark.parametrize("size", [(49, 513), (768, 768)])
def test_bits_do_not_depend_on_rows_or_threads(isa, precision, normal, size):
    n, k = size
    x, weight, bias = normal(550, k), normal(n, k), normal(n)  # more rows than any kernel's mc
    how = {"isa": isa, "precision": precision}
    whole = linear(x, weight, bias, "gelu", **how)
    for threads in (2, 3, 7):
        assert np.array_equal(whole, linear(x, weight, bias, "gelu", **how, threads=threads))
    for begin, end in ((0, 1), (1, 3), (5, 22), (250, 300), (17, 290), (30, 549)):
        assert np.array_equal(whole[begin:end], linear(x[begin:end], weight, bias, "gelu", **how))
