"""Compiles the Triton kernels for sm_80 and prints, as JSON, their PTX and what a launch needs.

A process of its own, with TRITON_INTERPRET=0: in the tests' own the kernels are interpreted. As in
kernels/ahead.py the launches are recorded from tensors on torch's ``meta`` device.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import torch
import triton

from distilfast.kernels import ahead
from distilfast.kernels.add_layer_norm import add_layer_norm
from distilfast.kernels.attention import attention
from distilfast.kernels.embed import embed
from distilfast.kernels.launch import recording
from distilfast.kernels.linear import linear
from distilfast.kernels.tuning import Tile
from tests.ptx.triton_shapes import HEAD_SIZE, HEADS, LINEAR, ROWS, SEQUENCES, SPLITS, TOKENS, WIDTH


def tensor(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def integers(*shape: int) -> torch.Tensor:
    return tensor(*shape, dtype=torch.int32)


def record(dtype: torch.dtype) -> dict[str, Any]:
    """Every launch by its name."""
    cast = None if dtype == torch.float32 else tensor(ROWS, WIDTH, dtype=dtype)
    norm = tensor(WIDTH), tensor(WIDTH)
    tables = [tensor(7, WIDTH, dtype=dtype), tensor(4, WIDTH, dtype=dtype), tensor(2, WIDTH, dtype=dtype)]
    product = "tf32x3" if dtype == torch.float32 else "ieee"
    tile = Tile(16, 16, 64, num_warps=2, num_stages=3, product=product)
    with recording() as found:
        tokens = (integers(ROWS) for _ in range(3))
        embed(*tokens, *tables, *norm, 1e-12, tensor(ROWS, WIDTH), cast, integers(1))
        x, residual = tensor(SPLITS, ROWS, WIDTH), tensor(ROWS, WIDTH)
        add_layer_norm(x, residual, *norm, 1e-12, tensor(ROWS, WIDTH), cast, integers(1))
        for _name, (rows, n, k, activation) in LINEAR.items():
            x, weight = tensor(rows, k, dtype=dtype), tensor(n, k, dtype=dtype)
            out = tensor(rows, n, dtype=dtype)
            linear(x, weight, tensor(n), activation, out, integers(1), tile)
        q, k, v = tensor(TOKENS, 3, HEADS * HEAD_SIZE, dtype=dtype).unbind(1)
        out, ends = tensor(TOKENS, HEADS * HEAD_SIZE, dtype=dtype), integers(SEQUENCES + 1)
        attention(q, k, v, out, integers(TOKENS), ends, HEADS, integers(1), replace(tile, block_n=32, num_stages=2))
    names = ("embed", "add_layer_norm", *(f"linear_{name}" for name in LINEAR), "attention")
    return dict(zip(names, found, strict=True))


def compiled(launch: Any) -> dict[str, Any]:
    """``parameters``: the names of the PTX's, and the values of those that are numbers."""
    source, options = ahead._source(launch)
    binary = triton.compile(source, target=ahead.TARGETS["sm_80"], options=options)
    parameters = [
        (name, None if isinstance(value, torch.Tensor) else value)
        for name, value in zip(launch.kernel.arg_names, launch.arguments, strict=False)
        if source.signature[name] != "constexpr"
    ]
    return {
        "ptx": binary.asm["ptx"],
        "threads": 32 * options["num_warps"],
        "shared": binary.metadata.shared,
        "grid": launch.grid,
        "parameters": parameters,
    }


if __name__ == "__main__":
    found = {
        f"{name}_{precision}": compiled(launch)
        for precision in ("fp32", "bf16")
        for name, launch in record(ahead.DTYPES[precision]).items()
    }
    print(json.dumps(found))
