"""The PTX that Triton writes for its kernels, executed, against float64."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import struct
import subprocess
import sys

import numpy as np
import pytest

from distilfast import reference
from distilfast.batch import PackedBatch
from tests.cuda.elements import number, rounded, stored
from tests.kernels import naive
from tests.ptx.machine import Kernel
from tests.ptx.memory import Fault, Global
from tests.ptx.parser import parse
from tests.ptx.triton_shapes import HEAD_SIZE, HEADS, LENGTHS, LINEAR, ROWS, SPLITS, TOKENS, WIDTH

if importlib.util.find_spec("triton") is None:
    pytest.skip("triton is not installed", allow_module_level=True)

EPS = 1e-12
SCRATCH = 2
"""Pointers after a kernel's own parameters, to memory that ours do not need."""


@pytest.fixture(scope="module")
def compiled() -> dict:
    printed = subprocess.run(
        [sys.executable, "-m", "tests.ptx.compile_triton"],
        env={**os.environ, "TRITON_INTERPRET": "0"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    ).stdout
    return json.loads(printed)


@pytest.fixture
def normal():
    rng = np.random.default_rng(2026)
    return lambda *shape: rng.standard_normal(shape).astype(np.float32)


def run(found: dict, outputs: dict[str, np.ndarray], views=None, **inputs: np.ndarray) -> list[np.ndarray]:
    """The outputs after the launch, in their order; arrays by the names of the kernel's parameters.

    ``views``: parameters that point into another one's array, at an offset in bytes.
    """
    memory = Global()
    addresses = {name: memory.add(each) for name, each in inputs.items()}
    addresses |= {name: memory.add(each, writable=True) for name, each in outputs.items()}
    addresses |= {name: addresses[base] + offset for name, (base, offset) in (views or {}).items()}
    arguments = [
        struct.pack("Q", addresses[name]) if value is None else struct.pack("if"[isinstance(value, float)], value)
        for name, value in found["parameters"]
    ]
    kernel = Kernel(parse(found["ptx"]), found["threads"], found["shared"])
    kernel.run(memory, arguments + [struct.pack("Q", 0)] * SCRATCH, found["grid"])
    return [memory.result(addresses[name], each) for name, each in outputs.items()]


def one(value: int) -> np.ndarray:
    return np.array([value], np.int32)


def layer_norm_outputs(precision: str) -> dict[str, np.ndarray]:
    nan = np.full((ROWS, WIDTH), np.nan, np.float32)
    return {"out_ptr": nan} | ({} if precision == "fp32" else {"cast_ptr": stored(nan, precision)})


def check_layer_norm(results, plain, truth, precision):
    got, *low = results
    assert naive.error(got, truth) <= naive.allowed(plain, truth)
    assert all(np.array_equal(number(each, precision), rounded(got, precision)) for each in low)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_embed(compiled, normal, precision):
    ids, positions, kinds = (np.array(each, np.int32) for each in ([6, 0, 3], [1, 3, 0], [0, 1, 1]))
    names = ("word", "position", "token_type")
    tensors = {f"embed.{name}": rounded(normal(7, WIDTH), precision) for name in names}
    tensors |= {f"embed.norm.{name}": normal(WIDTH) for name in ("weight", "bias")}
    tables = dict(zip(("word_ptr", "position_ptr", "type_ptr"), list(tensors.values())[:3], strict=True))
    results = run(
        compiled[f"embed_{precision}"],
        layer_norm_outputs(precision),
        **{name: stored(table, precision) for name, table in tables.items()},
        ids_ptr=ids,
        positions_ptr=positions,
        types_ptr=kinds,
        num_tokens_ptr=one(ROWS),
        weight_ptr=tensors["embed.norm.weight"],
        bias_ptr=tensors["embed.norm.bias"],
    )
    batch = PackedBatch(ids, positions, np.array([0, ROWS], np.int32), kinds)
    truth = reference.embed(batch, {name: each.astype(np.float64) for name, each in tensors.items()}, EPS)
    check_layer_norm(results, reference.embed(batch, tensors, EPS), truth, precision)


def run_add_layer_norm(found, parts, residual, weight, bias, precision):
    arrays = {"x_ptr": parts, "residual_ptr": residual, "weight_ptr": weight, "bias_ptr": bias}
    return run(found, layer_norm_outputs(precision), **arrays, num_rows_ptr=one(ROWS))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_add_layer_norm(compiled, normal, precision):
    parts, arrays = normal(SPLITS, ROWS, WIDTH), (normal(ROWS, WIDTH), normal(WIDTH), normal(WIDTH))
    results = run_add_layer_norm(compiled[f"add_layer_norm_{precision}"], parts, *arrays, precision)
    x = parts[0] + parts[1]
    truth = reference.add_layer_norm(*(a.astype(np.float64) for a in (x, *arrays)), EPS)
    plain = naive.layer_norm(x + arrays[0], *arrays[1:], EPS)
    check_layer_norm(results, plain, truth, precision)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("name", list(LINEAR))
def test_linear(compiled, normal, name, precision):
    rows, n, k, activation = LINEAR[name]
    x, weight, bias = rounded(normal(rows, k), precision), rounded(normal(n, k), precision), normal(n)
    out = stored(np.full((rows, n), np.nan, np.float32), precision)
    arrays = {"x_ptr": stored(x, precision), "weight_ptr": stored(weight, precision), "bias_ptr": bias}
    (got,) = run(compiled[f"linear_{name}_{precision}"], {"out_ptr": out}, **arrays, num_rows_ptr=one(rows))
    truth = reference.linear(*(a.astype(np.float64) for a in (x, weight, bias)), activation)
    plain = naive.linear(x, weight, bias, activation)
    assert naive.error(number(got, precision), truth) <= naive.allowed(rounded(plain, precision), truth)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_attention(compiled, normal, precision):
    """A block of rows of one sequence, and of three; more than one block of keys."""
    width, cu_seqlens = HEADS * HEAD_SIZE, np.concatenate([[0], np.cumsum(LENGTHS)]).astype(np.int32)
    qkv = rounded(normal(TOKENS, 3 * width), precision)
    content, out = stored(qkv, precision), stored(np.full((TOKENS, width), np.nan, np.float32), precision)
    (got,) = run(
        compiled[f"attention_{precision}"],
        {"out_ptr": out},
        views={"k_ptr": ("q_ptr", width * content.itemsize), "v_ptr": ("q_ptr", 2 * width * content.itemsize)},
        q_ptr=content,
        row_sequence_ptr=np.repeat(np.arange(len(LENGTHS)), LENGTHS).astype(np.int32),
        cu_seqlens_ptr=cu_seqlens,
        num_rows_ptr=one(TOKENS),
    )
    truth = reference.attention(qkv.astype(np.float64), cu_seqlens, HEADS)[0]
    plain = naive.attention(qkv, cu_seqlens, HEADS, narrow_weights=lambda x: rounded(x, precision))
    assert naive.error(number(got, precision), truth) <= naive.allowed(rounded(plain, precision), truth)


@pytest.mark.parametrize("pattern", [r"bar\.sync\s+0;", r"cp\.async\.wait_group\s+\w+;"])
def test_a_missing_barrier_or_wait_is_found(compiled, normal, pattern):
    found = compiled["linear_even_bf16"]
    text, count = re.subn(pattern, "", found["ptx"])
    assert count > 0
    with pytest.raises(Fault, match="race" if "bar" in pattern else "not been waited for"):
        test_linear({"linear_even_bf16": found | {"ptx": text}}, normal, "even", "bf16")
