"""Measure tiles on this GPU, and propose entries for the table of ``tuning``.

    python -m distilfast.kernels.tune --precision bf16 --tokens 16 128 4096 --seconds 20

Each operation is timed on the shapes of a full-size DistilBERT with a cold L2, since a layer's weights are not cached.
The linears before add_layer_norm are timed together with it, since it adds their partial sums. The table's own tile is
timed first; a candidate that does not fit or fails is skipped. ``--out`` receives one JSON object a line.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import triton
from triton.testing import do_bench

from distilfast.base_models import base_config
from distilfast.config import ModelConfig
from distilfast.kernels import device, tuning
from distilfast.kernels.add_layer_norm import add_layer_norm
from distilfast.kernels.attention import attention
from distilfast.kernels.linear import linear
from distilfast.kernels.tuning import Tile

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
OPS = ("linear", "linear_gelu", "linear_split_k", "attention")
SEQUENCE = 128  # tokens of a text where attention is timed
GAIN = 0.97  # a tile is proposed if it takes at most this share of the time of the table's tile

Run = Callable[[Tile], None]


@dataclass(frozen=True)
class Timed:
    """One tile and the median milliseconds of the operation with it; ``in_table``: the table's own."""

    op: str
    precision: str
    tokens: int
    tile: Tile
    milliseconds: float
    in_table: bool


class Workbench:
    """Operands of a full-size model for one type and number of tokens."""

    def __init__(self, config: ModelConfig, dtype: torch.dtype, tokens: int) -> None:
        """Allocate on the current GPU."""
        self._config, self._dtype, self._tokens = config, dtype, tokens
        self._count = torch.tensor([tokens], dtype=torch.int32, device="cuda")

    def runs(self, op: str) -> list[Run]:
        """The launches of the operation in one layer, each a function of the tile."""
        width, ffn = self._config.hidden_size, self._config.ffn_size
        if op == "linear":
            return [self._linear(width, 3 * width, "none")]
        if op == "linear_gelu":
            return [self._linear(width, ffn, "gelu")]
        if op == "linear_split_k":
            return [self._linear_split_k(width), self._linear_split_k(ffn)]
        return [self._attention()]

    def _random(self, *sizes: int) -> torch.Tensor:
        return torch.randn(*sizes, dtype=torch.float32, device="cuda").mul_(0.05).to(self._dtype)

    def _linear(self, in_size: int, out_size: int, activation: str) -> Run:
        x, weight = self._random(self._tokens, in_size), self._random(out_size, in_size)
        bias, out = torch.zeros(out_size, device="cuda"), self._random(self._tokens, out_size)
        return lambda tile: linear(x, weight, bias, activation, out, self._count, tile)

    def _linear_split_k(self, in_size: int) -> Run:
        width, rows = self._config.hidden_size, self._tokens
        x, weight, out_cast = self._random(rows, in_size), self._random(width, in_size), self._random(rows, width)
        stream = torch.zeros(rows, width, device="cuda")
        one, zero = torch.ones(width, device="cuda"), torch.zeros(width, device="cuda")

        def run(tile: Tile) -> None:
            tile = tile.for_depth(in_size)
            dtype = torch.float32 if tile.split_k > 1 else self._dtype
            partials = torch.empty(tile.split_k, rows, width, dtype=dtype, device="cuda")
            linear(x, weight, zero, "none", partials, self._count, tile)
            add_layer_norm(partials, stream, one, zero, 1e-12, stream, out_cast, self._count)

        return run

    def _attention(self) -> Run:
        width, heads, tokens = self._config.hidden_size, self._config.num_heads, self._tokens
        q, k, v = self._random(tokens, 3 * width).split(width, dim=1)
        out = self._random(tokens, width)
        length = min(SEQUENCE, tokens)
        sequence = torch.arange(tokens, device="cuda", dtype=torch.int32) // length
        ends = torch.arange(0, tokens + 1, length, device="cuda", dtype=torch.int32)
        return lambda tile: attention(q, k, v, out, sequence, ends, heads, self._count, tile)


def candidates(op: str, table: Tile, tokens: int, itemsize: int) -> Iterator[Tile]:
    """Tiles that fit shared memory and registers, in a seeded order; ``table`` gives what is not varied."""
    limit = torch.cuda.get_device_properties().shared_memory_per_block_optin
    is_linear = op != "attention"
    grid = itertools.product(
        [m for m in (16, 32, 64, 128) if m <= max(16, tokens)],
        (16, 32, 64, 128, 256) if is_linear else (32, 64, 128),
        (32, 64, 128) if is_linear else (0,),
        (2, 4, 8),
        (2, 3, 4, 5, 6) if is_linear else (1, 2, 3, 4),
        (1, 2, 3, 4, 6, 8, 12) if op == "linear_split_k" and tokens <= 512 else (1,),
    )
    found = [replace(table, **dict(zip(_VARIED, values, strict=True))) for values in grid]
    found = [
        tile
        for tile in found
        if (tile.block_m + tile.block_n) * max(tile.block_k, 64) * itemsize * tile.num_stages <= limit
        and 4 <= tile.block_m * tile.block_n // (32 * tile.num_warps) <= 128
    ]
    random.Random(0).shuffle(found)
    return iter(found)


_VARIED = ("block_m", "block_n", "block_k", "num_warps", "num_stages", "split_k")


def measure(op: str, precision: str, tokens: int, seconds: float) -> Iterator[Timed]:
    """The table's tile, then candidates until ``seconds`` have passed."""
    config, dtype = base_config("text-classification"), DTYPES[precision]
    runs = Workbench(config, dtype, tokens).runs(op)
    gpu = device.gpu_for(torch.device("cuda"), config, precision != "fp32")
    table = tuning.tile(op, gpu.family, precision != "fp32", tokens, gpu.multiprocessors)
    end = time.monotonic() + seconds
    yield Timed(op, precision, tokens, table, _milliseconds(runs, table), in_table=True)
    for tile in candidates(op, table, tokens, dtype.itemsize):
        if time.monotonic() > end:
            return
        try:
            yield Timed(op, precision, tokens, tile, _milliseconds(runs, tile), in_table=False)
        except (triton.runtime.errors.OutOfResources, triton.CompilationError, RuntimeError):
            continue


def _milliseconds(runs: list[Run], tile: Tile) -> float:
    """Median time of all ``runs``, each with a cold L2."""
    return sum(do_bench(lambda run=run: run(tile), warmup=5, rep=20, return_mode="median") for run in runs)


def main() -> None:
    """A line for each operation and number of tokens: the table's time, and a better tile if there is one."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precision", choices=list(DTYPES), nargs="+", default=["bf16"])
    parser.add_argument("--tokens", type=int, nargs="+", default=[16, 64, 256, 1024, 4096, 32_768])
    parser.add_argument("--op", choices=OPS, nargs="+", default=list(OPS))
    parser.add_argument("--seconds", type=float, default=20.0, help="time for the candidates of each line")
    parser.add_argument("--out", type=Path, help="append every measurement to this file")
    arguments = parser.parse_args()
    if reason := device.unavailable() or ("the kernels are interpreted." if device.is_interpreted() else None):
        parser.exit(2, f"error: there is nothing to measure: {reason}\n")
    gpu = device.family(torch.device("cuda"))
    for precision, op, tokens in itertools.product(arguments.precision, arguments.op, arguments.tokens):
        found = list(measure(op, precision, tokens, arguments.seconds))
        if arguments.out:
            with arguments.out.open("a") as file:
                file.writelines(json.dumps({"what": "tile", "gpu": gpu, **asdict(one)}) + "\n" for one in found)
        best = min(found, key=lambda one: one.milliseconds)
        line = f"{op} {precision} {tokens}: table {found[0].milliseconds:.4f} ms of {len(found)} tiles"
        if best.milliseconds < GAIN * found[0].milliseconds:
            line += f"; better {best.milliseconds:.4f} ms: {best.tile}"
        print(line, flush=True)


if __name__ == "__main__":
    main()
