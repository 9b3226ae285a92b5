"""The CUDA kernels as PTX from nvcc, and their launches: arguments in memory, a struct of pointers and sizes.

The structs are those of csrc/cuda/kernels.h, in the layout of C; ``Kernel.run`` checks their sizes against the PTX.
"""

from __future__ import annotations

import hashlib
import os
import struct
import subprocess
from pathlib import Path

import numpy as np

from tests.cuda import compiled, elements
from tests.ptx.machine import Kernel
from tests.ptx.memory import Global
from tests.ptx.parser import parse

SOURCE = Path(__file__).with_name("kernels.cu")
THREADS, EPS = 128, 1e-12
_LAYER_NORM = "PPif"
_LINEAR_SHARED = 8 * (16 + 16) * 256 + 16 * 4
"""Of CtaTile16x16: eight stages of 16 rows of x and 16 columns of W, 256 bytes each, and the columns' bias."""
ACTIVATIONS = ("none", "gelu", "relu", "tanh")


def ptx() -> str:
    """Of kernels.cu for sm_80, cached in build/ until a source changes."""
    sources = sorted(path for path in compiled.SOURCES.parent.rglob("*") if path.suffix in (".cu", ".cuh", ".h"))
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in (SOURCE, *sources))).hexdigest()[:16]
    target = compiled.ROOT / "build" / "ptx" / f"kernels-{digest}.ptx"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        options = ["--ptx", "-arch=sm_80", *compiled.FLAGS, "-I", str(compiled.SOURCES.parent)]
        written = target.with_suffix(f".{os.getpid()}")  # two workers may compile at once
        compiler = compiled.nvcc()
        assert compiler is not None
        subprocess.run([compiler, *options, str(SOURCE), "-o", str(written)], check=True)
        written.rename(target)
    return target.read_text(encoding="utf-8")


class Arguments:
    """The global memory of a launch: what the kernel reads, and what it writes."""

    def __init__(self) -> None:
        self.memory = Global()

    def read(self, array: np.ndarray | None) -> int:
        """A null pointer for None."""
        return 0 if array is None else self.memory.add(array)

    def count(self, number: int) -> int:
        return self.read(np.array([number], np.int32))

    def written(self, array: np.ndarray) -> int:
        return self.memory.add(array, writable=True)


def _launch(text: str, name: str, grid, arguments: Arguments, layout: str, *values, shared: int) -> None:
    Kernel(parse(text, name), THREADS, shared).run(arguments.memory, [struct.pack("@" + layout, *values)], grid)


def _outputs(rows: int, width: int, precision: str) -> tuple[np.ndarray, np.ndarray]:
    """NaN, in float32 and in the precision, whose rows are padded to 8 values."""
    nan = np.full((rows, width), np.nan, np.float32)
    padded = np.full((rows, -(-width // 8) * 8), np.nan, np.float32)
    return nan, elements.stored(padded, precision)


def _row_shared(width: int) -> int:
    """Of layer_norm.cuh: the warps' sums of two reductions, and a row that does not fit registers."""
    return 4 * (8 + (width if width > 1024 else 0))


def add_layer_norm(text, parts, x_bias, residual, weight, bias, precision, gather=None):
    """fp32 [T, D] and the numbers of its copy in the precision; one block more than there are rows."""
    splits, rows, width = parts.shape
    at, (out, low) = Arguments(), _outputs(rows, width, precision)
    to, to_low = at.written(out), at.written(low)
    _launch(
        *(text, f"add_layer_norm_{precision}", (rows + 1,), at, f"iPPPiqPP{_LAYER_NORM}PPP"),
        *(0, at.count(rows), at.read(gather), at.read(parts), splits, rows * width, at.read(x_bias)),
        *(at.read(residual), at.read(weight), at.read(bias), width, EPS, 0, to, to_low),
        shared=_row_shared(width),
    )
    return at.memory.result(to, out), elements.number(at.memory.result(to_low, low), precision)[:, :width]


def embed(text, ids, positions, kinds, word, position, token_type, weight, bias, precision):
    rows, width = len(ids), word.shape[1]
    at, (out, low) = Arguments(), _outputs(rows, width, precision)
    to, to_low = at.written(out), at.written(low)
    _launch(
        *(text, f"embed_{precision}", (rows + 1,), at, f"iPPPPPPP{_LAYER_NORM}PP"),
        *(0, at.count(rows), *(at.read(each) for each in (ids, positions, kinds, word, position, token_type))),
        *(at.read(weight), at.read(bias), width, EPS, to, to_low),
        shared=_row_shared(width),
    )
    return at.memory.result(to, out), elements.number(at.memory.result(to_low, low), precision)[:, :width]


def packed_weight(text, weight, precision):
    """W [N, K] as ``linear`` reads it, by the kernel that packs it."""
    n, k = weight.shape
    n_tiles, k_tiles = -(-n // 8), -(-k // {"fp32": 16, "fp16": 32, "bf16": 32, "int8": 64}[precision])
    name = {"fp32": "pack_kernelIf", "fp16": "pack_kernelI6__half", "bf16": "pack_kernelI13", "int8": "pack_w8a16"}
    tile_bytes = 512
    if precision == "int8":
        k_tiles, tile_bytes = 2 * k_tiles, 544 // 2
    at, packed = Arguments(), np.full(n_tiles * k_tiles * tile_bytes, 0xFF, np.uint8)
    to = at.written(packed)
    grid = (-(-k_tiles // 4), n_tiles)
    _launch(text, name[precision], grid, at, "PiiiP", at.read(weight), n, k, k_tiles, to, shared=0)
    return at.memory.result(to, packed)


def linear(text, x, weight, bias, activation, precision, gather=None, split_k=1):
    """fp32 [splits, T, N], and the numbers of the copy in the precision where K is not split."""
    rows, (n, k) = len(x) if gather is None else len(gather), weight.shape
    at, (out, low) = Arguments(), _outputs(split_k * rows, n, precision)
    packed = packed_weight(text, weight, precision)
    to, to_low = at.written(out), at.written(low) if split_k == 1 else 0
    _launch(
        *(text, f"linear_{precision}", (-(-n // 16), 1 + -(-rows // 16), split_k), at, "iPPPPPiiiiqPP"),
        *(0, at.count(rows), at.read(gather), at.read(elements.raw(x, precision)), at.read(packed), at.read(bias)),
        *(n, k, ACTIVATIONS.index(activation), split_k, rows * n, to, to_low),
        shared=_LINEAR_SHARED,
    )
    result = at.memory.result(to, out).reshape(split_k, rows, n)
    return result, elements.number(at.memory.result(to_low, low), precision)[:, :n] if to_low else None


def attention(text, qkv, cu_seqlens, heads, precision, probabilities=False):
    """The numbers of the context [T, D], of heads of up to 32 columns; and the probabilities, if wanted."""
    rows, width = qkv.shape[0], qkv.shape[1] // 3
    lengths = np.diff(cu_seqlens).astype(np.int64)
    begins = np.concatenate([[0], np.cumsum(heads * lengths**2)])
    at, (_, out) = Arguments(), _outputs(rows, width, precision)
    weights = np.full(begins[-1], np.nan, np.float32)
    to, to_weights = at.written(out), at.written(weights) if probabilities else 0
    _launch(
        *(text, f"attention_{precision}", (-(-rows // 16), heads), at, "iPPPiiPPP"),
        *(0, at.count(len(lengths)), at.read(cu_seqlens), at.read(elements.raw(qkv, precision)), heads, width // heads),
        *(to, at.read(begins[:-1]) if probabilities else 0, to_weights),
        shared=3 * 64 * (32 * (4 if precision == "fp32" else 2) + 16),
    )
    context = elements.number(at.memory.result(to, out), precision)[:, :width]
    return context, at.memory.result(to_weights, weights) if probabilities else None
