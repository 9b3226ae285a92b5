"""The CUDA kernels' own PTX, executed: the inline assembly and nvcc's code against float64."""

from __future__ import annotations

import re

import numpy as np
import pytest

from distilfast import reference
from distilfast.batch import PackedBatch
from tests.cuda import compiled
from tests.cuda.elements import PRECISIONS, rounded, rounded_weight
from tests.kernels import naive
from tests.ptx import nvcc
from tests.ptx.memory import Fault


@pytest.fixture(scope="module")
def text() -> str:
    if compiled.nvcc() is None:
        pytest.skip(f"nvcc is not installed (pip install {compiled.NVCC_PACKAGES})")
    return nvcc.ptx()


@pytest.fixture
def normal():
    rng = np.random.default_rng(2026)

    def make(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (rng.standard_normal(shape) * scale).astype(np.float32)

    return make


@pytest.mark.parametrize(("precision", "width"), [("fp32", 129), ("fp16", 7), ("bf16", 129), ("bf16", 1026)])
def test_add_layer_norm(text, normal, precision, width):
    """Two partial sums, a bias and a gathered residual; in registers and in shared memory."""
    parts, x_bias, residual = normal(2, 3, width), normal(width), normal(5, width)
    weight, bias, gather = normal(width), normal(width), np.array([4, 0, 2], np.int32)
    got, low = nvcc.add_layer_norm(text, parts, x_bias, residual, weight, bias, precision, gather)
    x = (parts[0] + parts[1]) + x_bias
    truth = reference.add_layer_norm(*(a.astype(np.float64) for a in (x, residual[gather], weight, bias)), nvcc.EPS)
    plain = naive.layer_norm(x + residual[gather], weight, bias, nvcc.EPS)
    assert naive.error(got, truth) <= naive.allowed(plain, truth)
    assert np.array_equal(low, rounded(got, precision))


@pytest.mark.parametrize(("precision", "width"), [("fp32", 50), ("fp16", 129), ("bf16", 1026)])
def test_embed(text, normal, precision, width):
    ids, positions, kinds = (np.array(each, np.int32) for each in ([6, 0, 3], [1, 3, 0], [0, 1, 1]))
    tensors = {
        "embed.word": normal(7, width),
        "embed.position": normal(4, width),
        "embed.token_type": normal(2, width),
        "embed.norm.weight": normal(width),
        "embed.norm.bias": normal(width),
    }
    got, low = nvcc.embed(text, ids, positions, kinds, *tensors.values(), precision)
    batch = PackedBatch(ids, positions, np.array([0, 3], np.int32), kinds)
    truth = reference.embed(batch, {name: each.astype(np.float64) for name, each in tensors.items()}, nvcc.EPS)
    assert naive.error(got, truth) <= naive.allowed(reference.embed(batch, tensors, nvcc.EPS), truth)
    assert np.array_equal(low, rounded(got, precision))


def test_a_negative_id_makes_a_row_of_nan(text, normal):
    ids, positions = np.array([-1, 2], np.int32), np.array([0, 1], np.int32)
    got, _ = nvcc.embed(text, ids, positions, None, normal(4, 50), normal(2, 50), None, normal(50), normal(50), "fp32")
    assert np.isnan(got[0]).all() and np.isfinite(got[1]).all()


def check_linear(text, normal, precision, rows, n, k, activation="none", **options):
    x, weight, bias = rounded(normal(rows, k), precision), normal(n, k), normal(n)
    got, low = nvcc.linear(text, x, weight, bias, activation, precision, **options)
    exact_weight = rounded_weight(weight, precision)
    x = x if options.get("gather") is None else x[options["gather"]]
    bias = bias if low is not None else np.zeros_like(bias)
    truth = reference.linear(*(a.astype(np.float64) for a in (x, exact_weight, bias)), activation)
    plain = naive.linear(x, exact_weight.astype(np.float32), bias, activation)
    allowed = naive.allowed(rounded(plain, precision), truth)
    assert naive.error(got.astype(np.float64).sum(axis=0), truth) <= allowed
    if low is not None:
        assert naive.error(low, truth) <= allowed


@pytest.mark.parametrize(("precision", "activation"), [("fp32", "none"), ("fp16", "tanh"), ("bf16", "gelu")])
def test_linear(text, normal, precision, activation):
    """Ragged in every direction; more k-tiles than the pipeline has stages."""
    check_linear(text, normal, precision, 17, 19, 16 * 40 + 7 if precision == "fp32" else 32 * 20 + 9, activation)


def test_linear_of_int8_weights(text, normal):
    check_linear(text, normal, "int8", 5, 19, 601, "relu")


def test_linear_with_split_k_and_gathered_rows(text, normal):
    check_linear(text, normal, "bf16", 9, 16, 300, gather=np.array([8, 0, 3], np.int32), split_k=2)


def check_attention(text, normal, precision, lengths=(66, 1), heads=1):
    cu_seqlens = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    qkv = rounded(normal(sum(lengths), 3 * heads * 24), precision)
    got, probabilities = nvcc.attention(text, qkv, cu_seqlens, heads, precision, probabilities=precision != "fp16")
    truth, weights = reference.attention(qkv.astype(np.float64), cu_seqlens, heads)
    plain = naive.attention(qkv, cu_seqlens, heads, narrow_weights=lambda x: rounded(x, precision))
    assert naive.error(got, truth) <= naive.allowed(rounded(plain, precision), truth)
    if probabilities is not None:
        naive_weights = reference.attention(qkv, cu_seqlens, heads)[1]
        assert naive.error(probabilities, weights) <= naive.allowed(rounded(naive_weights, precision), weights)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_attention(text, normal, precision):
    """More than one tile of queries and of keys; a head of fewer columns than its tile; with and without a trace."""
    check_attention(text, normal, precision)


def test_attention_with_more_tiles_than_blocks(text, normal):
    check_attention(text, normal, "bf16", (3, 1, 2, 4, 1, 5), heads=2)


# ---- planted faults


def kernel_span(text: str, name: str) -> tuple[int, int]:
    begin = text.index(f".entry {name}(")
    end = text.find(".entry", begin + 1)
    return begin, len(text) if end < 0 else end


def without_each(text: str, name: str, pattern: str) -> list[str]:
    """The text without one match of the pattern in this kernel, for each of them."""
    found = re.compile(pattern).finditer(text, *kernel_span(text, name))
    return [text[: each.start()] + text[each.end() :] for each in found]


def run_add_layer_norm(text, normal, width):
    weights = normal(width), normal(3, width), normal(width), normal(width)
    nvcc.add_layer_norm(text, normal(2, 3, width), *weights, "bf16")


BARRIER, WAIT = r"bar\.sync\s+0;", r"cp\.async\.wait_group\s+[1-9];"


def test_each_barrier_of_add_layer_norm_is_needed(text, normal):
    """Two of the row in registers, then two of the row in shared memory."""
    faulty = without_each(text, "add_layer_norm_bf16", BARRIER)
    for i, each in enumerate(faulty):
        with pytest.raises(Fault, match="race"):
            run_add_layer_norm(each, normal, 129 if i < 2 else 1026)
    assert len(faulty) == 4


def test_each_barrier_and_wait_of_linear_is_needed(text, normal):
    """With a last step whose stage the epilogue overwrites."""
    faulty = [without_each(text, "linear_bf16", each) for each in (BARRIER, WAIT)]
    for message, texts in zip(("race", "not been waited for"), faulty, strict=True):
        for each in texts:
            with pytest.raises(Fault, match=message):
                check_linear(each, normal, "bf16", 3, 16, 1112)
    assert [len(each) for each in faulty] == [3, 1]


def test_each_barrier_and_wait_of_attention_is_needed(text, normal):
    """On a long sequence, or in a block that takes several tiles."""
    faulty = [without_each(text, "attention_bf16", each) for each in (BARRIER, WAIT)]
    for message, texts in zip(("race", "not been waited for"), faulty, strict=True):
        for each in texts:
            with pytest.raises(Fault, match=message):  # noqa: PT012
                check_attention(each, normal, "bf16", (66,), heads=1)
                check_attention(each, normal, "bf16", (3, 1, 2, 4, 1, 5), heads=1)
    assert [len(each) for each in faulty] == [7, 2]


@pytest.mark.parametrize(
    ("name", "pattern", "replacement"),
    [
        ("linear_bf16", r"(ldmatrix\S+ {.*}, \[%\w+)\]", r"\1+16]"),  # a wrong chunk
        ("linear_bf16", r"(mma\S+ {.*}, {.*}, ){(\S+), (\S+)}(, {.*};)", r"\1{\3, \2}\4"),  # the words of B swapped
        ("linear_bf16", r"(cp\.async.*, 16), %r\d+;", r"\1, 8;"),  # half a chunk
        ("attention_bf16", r"\.trans", ""),
        ("attention_bf16", r"ex2\.approx(?:\.ftz)?\.f32(.*), (%f\d+);", r"mov.f32\1, \2;"),
    ],
)
def test_a_wrong_instruction_is_found(text, normal, name, pattern, replacement):
    begin, end = kernel_span(text, name)
    wrong, count = re.subn(pattern, replacement, text[begin:end], count=1)
    faulty = text[:begin] + wrong + text[end:]
    assert count == 1
    with pytest.raises((AssertionError, Fault)):
        check_linear(faulty, normal, "bf16", 16, 16, 300) if "linear" in name else check_attention(
            faulty, normal, "bf16"
        )
