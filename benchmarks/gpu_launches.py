"""What a forward launches on a GPU: for the CUDA graph, the persistent kernel and Triton, with operations and bytes.

CUDA's tiles and limits are read from csrc/cuda, and ``cuda_graph`` repeats what csrc/cuda/pass.cpp enqueues;
tests/benchmarks/test_gpu_time.py compares it with the launches on the simulated device. Triton's launches are recorded
from ``kernels`` itself, on torch's ``meta`` device. Both are for bf16 and a GPU of the family sm_90.

A forward gives the last hidden state of all tokens; what its classifier adds is the part "head".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import ceil
from pathlib import Path
from typing import Any

from distilfast.backends.cuda import CHUNK_TOKENS
from distilfast.batch import bucket_for
from distilfast.config import ModelConfig
from distilfast.heads import head_for
from distilfast.weights import layout

CSRC = Path(__file__).resolve().parents[1] / "csrc" / "cuda"
TASK = "text-classification"
MULTIPROCESSORS = 132
"""Of an H100 and an H200 as SXM modules; split-K depends on it."""
ELEMENT = 2  # bytes of a bf16
PARTS = ("copy", "embed", "qkv", "attention", "attention_out", "LayerNorm", "ffn_in", "ffn_out", "head")


@dataclass(frozen=True)
class Launch:
    """One launch, or one operation of the persistent kernel.

    ``blocks``: thread blocks that have rows; ``grid`` may hold more, which return at once. ``operations``: products and
    sums of the matrices, of the rows that there are; ``block_operations``: what one block executes, padding included.
    Bytes of ``weights``, ``reads`` and ``writes`` are counted once; ``partial_sums`` are those of split-K among them. A
    block's main loop takes ``steps`` steps, each copies ``step_bytes`` to shared memory, ``stages`` are in flight.
    """

    part: str
    kernel: str
    grid: tuple[int, ...]
    blocks: int
    threads: int
    weights: float = 0.0
    reads: float = 0.0
    writes: float = 0.0
    partial_sums: float = 0.0
    operations: float = 0.0
    block_operations: float = 0.0
    elements: float = 0.0  # that a block's vector units compute: outputs with an activation, attention's scores
    instruction: str = ""  # of the tensor cores: mma, wgmma
    steps: int = 0
    step_bytes: int = 0
    stages: int = 1
    shared_bytes: int = 0
    accumulators: float = 0.0  # of a thread

    @property
    def bytes(self) -> float:
        return self.weights + self.reads + self.writes


def weights_of(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The model's tensors by canonical name, with their shapes."""
    return {need.name: (need.shape[0] * len(need.pieces), *need.shape[1:]) for need in layout(config, TASK)}


# -------------------------------------------------------------------------------------------------------- CUDA's tables


@dataclass(frozen=True)
class CtaTile:
    """A line of csrc/cuda/linear/tiles.cuh."""

    rows: int
    columns: int
    row_warps: int
    column_warps: int
    k_warps: int
    k_tiles: int
    stages: int

    @property
    def threads(self) -> int:
        return 32 * self.row_warps * self.column_warps * self.k_warps


@cache
def cta_tiles() -> tuple[CtaTile, ...]:
    """Those of ``linear``, for fewer rows to more."""
    found = re.findall(r"using CtaTile\w+ = Tile<([\d, ]+)>;", _source("linear/tiles.cuh"))
    return tuple(CtaTile(*map(int, numbers.split(","))) for numbers in found)


def cta_tile(bucket_rows: int) -> CtaTile:
    """As linear.cu chooses it."""
    small, medium, large, largest = cta_tiles()
    if bucket_rows <= medium.rows:
        return small if bucket_rows <= small.rows else medium
    return large if bucket_rows <= 4 * large.rows else largest


def split_k(n: int, k: int, bucket_rows: int) -> int:
    """``split_k_to_fill``: as many splits as fill the device, each with a few steps."""
    tile = cta_tile(bucket_rows)
    blocks = ceil(n / tile.columns) * ceil(bucket_rows / tile.rows)
    steps = 3 if tile.stages > 3 else 2
    return max(1, min(_k_tiles(k) // (tile.k_tiles * steps), MULTIPROCESSORS // blocks))


def _k_tiles(k: int) -> int:
    return ceil(k * ELEMENT / _number("linear/packing.cuh", "k_tile_bytes"))


def persistent_blocks() -> int:
    """Of the persistent kernel on each multiprocessor."""
    found = re.search(r"__launch_bounds__\(block_threads, (\d+)\) persistent_kernel", _source("persistent.cu"))
    assert found is not None
    return int(found[1])


def persistent_rows() -> int:
    """The most tokens that the persistent kernel takes."""
    return _number("op_list.h", "max_persistent_rows")


def cuda_overlaps_predecessor() -> bool:
    """Whether a kernel of the graph starts before its predecessor has ended (programmatic dependent launch)."""
    return "Programmatic" in _source("runtime.h")


def copies_inputs() -> bool:
    """Whether the graph begins with a copy of the inputs."""
    return "upload(arena_.data()" in _source("pass.cpp")


@cache
def _source(name: str) -> str:
    return (CSRC / name).read_text(encoding="utf-8")


def _number(file: str, name: str) -> int:
    found = re.search(rf"\b{name} = (\d+)\b", _source(file))
    assert found is not None, f"{file} has no {name}"
    return int(found[1])


# --------------------------------------------------------------------------------------------------------- CUDA's graph


def cuda_chunks(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Whole sequences of at most CHUNK_TOKENS tokens, as csrc/common/chunks.h cuts a batch."""
    chunk: list[int] = []
    for length in lengths:
        if chunk and sum(chunk) + length > CHUNK_TOKENS:
            yield chunk
            chunk = []
        chunk.append(length)
    yield chunk


def cuda_graph(config: ModelConfig, lengths: Sequence[int]) -> list[Launch]:
    """One graph after the other: one for each chunk."""
    return [launch for chunk in cuda_chunks(lengths) for launch in _cuda_chunk(config, chunk)]


def _cuda_chunk(config: ModelConfig, lengths: list[int]) -> Iterator[Launch]:
    tokens, width, ffn = sum(lengths), config.hidden_size, config.ffn_size
    bucket = bucket_for(tokens)
    if copies_inputs():
        yield _copy(4 * (5 * bucket + 5))
    yield _cuda_rows("embed", "embed", tokens, bucket, width, tables=8 * tokens * width)
    for _ in range(config.num_layers):
        yield _cuda_linear("qkv", 3 * width, width, tokens, bucket)
        yield _cuda_attention(config, lengths, bucket)
        yield from _cuda_linear_norm("attention_out", width, width, tokens, bucket)
        yield _cuda_linear("ffn_in", ffn, width, tokens, bucket, activation=True)
        yield from _cuda_linear_norm("ffn_out", width, ffn, tokens, bucket)
    shapes, head = weights_of(config), head_for(config, TASK)
    for i in range(len(head.linears)):
        n, k = shapes[f"head.{i}.weight"]
        yield _cuda_linear("head", n, k, len(lengths), bucket_for(len(lengths)))


def _copy(size: float) -> Launch:
    return Launch("copy", "copy", (), 0, 0, reads=size, writes=size)


def _cuda_linear_norm(part: str, n: int, k: int, rows: int, bucket: int) -> Iterator[Launch]:
    """The linear stores fp32, and add_layer_norm reads it: one partial sum or several."""
    splits = split_k(n, k, bucket)
    yield _cuda_linear(part, n, k, rows, bucket, splits=splits, out_bytes=4)
    norm = _cuda_rows("LayerNorm", "add_layer_norm", rows, bucket, n, sums=splits, residual=True)
    yield replace(norm, partial_sums=4.0 * splits * rows * n if splits > 1 else 0.0)


def _cuda_linear(
    part: str, n: int, k: int, rows: int, bucket: int, *, splits: int = 1, out_bytes: int = 2, activation: bool = False
) -> Launch:
    tile = cta_tile(bucket)
    columns, k_tiles, depth = ceil(n / tile.columns), _k_tiles(k), _number("linear/packing.cuh", "k_tile_bytes")
    steps = ceil(ceil(k_tiles / splits) / tile.k_tiles)
    stage = tile.k_tiles * depth * (tile.rows + tile.columns)
    accumulators = 4 * tile.k_warps * tile.rows * (tile.columns + 8)
    written = out_bytes * splits * rows * n
    return Launch(
        part,
        "linear",
        (columns, ceil(bucket / tile.rows), splits),
        columns * ceil(rows / tile.rows) * splits,
        tile.threads,
        weights=ELEMENT * n * k + 4 * n,
        reads=ELEMENT * rows * k,
        writes=written,
        partial_sums=written if splits > 1 else 0.0,
        operations=2.0 * rows * n * k,
        block_operations=2.0 * tile.rows * tile.columns * steps * tile.k_tiles * depth / ELEMENT,
        elements=tile.rows * tile.columns if activation else 0.0,
        instruction="mma",
        steps=steps,
        step_bytes=stage,
        stages=tile.stages - 1,
        shared_bytes=max(tile.stages * stage, accumulators),
        accumulators=tile.rows * tile.columns * tile.k_warps / tile.threads,
    )


def _cuda_attention(config: ModelConfig, lengths: Sequence[int], bucket: int) -> Launch:
    warps, keys = _number("attention.cuh", "attention_warps"), _number("attention.cuh", "tile_keys")
    queries, size, heads = 16 * warps, config.hidden_size // config.num_heads, config.num_heads
    blocks = heads * sum(ceil(length / queries) for length in lengths)
    executed = sum(16 * ceil(length / 16) * keys * ceil(length / keys) for length in lengths) * heads
    steps = sum(ceil(length / queries) * ceil(length / keys) for length in lengths) * heads
    return _attention(
        config, lengths, "attention", (ceil(bucket / 16), heads), blocks, 32 * warps, executed, ceil(steps / blocks),
        step_bytes=2 * keys * size * ELEMENT, stages=1, shared_bytes=3 * 64 * (size * ELEMENT + 16),
        instruction="mma", accumulators=queries * (keys + size) / (32 * warps),
    )  # fmt: skip


def _attention(
    config: ModelConfig,
    lengths: Sequence[int],
    kernel: str,
    grid: tuple[int, ...],
    blocks: int,
    threads: int,
    scores: float,
    steps: int,
    **how: Any,
) -> Launch:
    """``scores``: that all blocks compute, those of padding included; a query's products with k and v are 4 d each."""
    tokens, width = sum(lengths), config.hidden_size
    return Launch(
        "attention",
        kernel,
        grid,
        blocks,
        threads,
        reads=ELEMENT * tokens * 3 * width,
        writes=ELEMENT * tokens * width,
        operations=4.0 * width * sum(length**2 for length in lengths),
        block_operations=4.0 * scores * width / config.num_heads / blocks,
        elements=scores / blocks,
        steps=steps,
        **how,
    )


def _cuda_rows(
    part: str,
    kernel: str,
    rows: int,
    bucket: int,
    width: int,
    *,
    tables: float = 0,
    sums: int = 0,
    residual: bool = False,
) -> Launch:
    """A block for each row: what it adds up in fp32, and the row in fp32 and bf16."""
    threads = _number("layer_norm.cuh", "row_threads")
    reads = tables + 4.0 * rows * width * (sums + residual)
    return Launch(
        part,
        kernel,
        (bucket,),
        rows,
        threads,
        reads=reads,
        writes=(4 + ELEMENT) * rows * width,
        steps=1,
        step_bytes=int(reads / rows),
    )


# ------------------------------------------------------------------------------------------------ the persistent kernel


def persistent(config: ModelConfig, lengths: Sequence[int]) -> list[Launch] | None:
    """The operations of the persistent kernel, with the tasks that its blocks share; None for too many tokens."""
    if sum(lengths) > persistent_rows():
        return None
    return cuda_graph(config, lengths)


# --------------------------------------------------------------------------------------------------------------- Triton


def triton_graph(config: ModelConfig, lengths: Sequence[int]) -> list[Launch]:
    """What the Triton backend launches for a batch; the head's tiles are those of 16 rows."""
    recorded = _recorded(config, bucket_for(sum(lengths)))
    found = [
        _triton_launch(config, lengths, launch, part)
        for launch, part in zip(recorded, _parts(config, recorded), strict=True)
    ]
    if found[0].part == "copy":
        return found
    return [_copy(4 * (5 * bucket_for(sum(lengths)) + 2 * bucket_for(len(lengths)) + 3)), *found]


def _recorded(config: ModelConfig, tokens: int) -> list[Any]:
    """The launches of a forward on a bucket that gives all tokens' hidden states; a gather is one too."""
    import torch

    from distilfast.kernels import ahead
    from distilfast.kernels.launch import Launch as Recorded

    select, gathers = torch.index_select, []

    def gather(x: torch.Tensor, dim: int, index: torch.Tensor, *, out: torch.Tensor) -> torch.Tensor:
        gathers.append(Recorded("gather", (len(index),), (x, out), {}))
        return out

    torch.index_select = gather  # type: ignore[assignment]
    try:
        found = ahead.launches(config, "sm_90", torch.bfloat16, tokens)
    finally:
        torch.index_select = select
    # Two forwards: the second one has the last layer compute the rows of the head alone.
    first = [i for i, each in enumerate(found) if each.kernel is found[0].kernel][1]
    before_head = next(i for i, each in enumerate(found) if each.kernel.__name__.startswith("embed")) + 1
    before_head += len(_LAYER) * config.num_layers
    return [*found[:before_head], *gathers[: len(gathers) // 2], *found[before_head:first]]


_LAYER = ("qkv", "attention", "attention_out", "LayerNorm", "ffn_in", "ffn_out", "LayerNorm")


def _parts(config: ModelConfig, launches: Sequence[Any]) -> Iterator[str]:
    """Of each launch, by the order of the encoder: what comes before embed receives the inputs."""
    at_embed = next(i for i, each in enumerate(launches) if _name(each).startswith("embed"))
    yield from ["copy"] * at_embed
    yield "embed"
    yield from _LAYER * config.num_layers
    yield from ["head"] * (len(launches) - at_embed - 1 - len(_LAYER) * config.num_layers)


def triton_overlaps_predecessor() -> bool:
    """The same of Triton's: whether every kernel is launched so."""
    from distilfast.kernels import launch

    return "launch_pdl" in Path(launch.__file__).read_text(encoding="utf-8")


def _triton_launch(config: ModelConfig, lengths: Sequence[int], launch: Any, part: str) -> Launch:
    """A recorded launch with the work of a batch."""
    name, width = _name(launch), config.hidden_size
    tensors = [each for each in (getattr(each, "base", each) for each in launch.arguments) if hasattr(each, "dtype")]
    rows = len(lengths) if part == "head" else sum(lengths)
    if part == "copy":
        return replace(_copy(tensors[0].numel() * tensors[0].element_size()), kernel=name, grid=launch.grid)
    if name.startswith("embed"):
        return _triton_rows(part, launch, rows, len(tensors[0]), config, reads=2 * ELEMENT * width)
    if name.startswith("attention"):
        return _triton_attention(config, lengths, launch)
    if name.endswith("linear"):
        _, weight, *_, out = [each for each in tensors if each.dim() > 1]
        return _triton_linear(part, launch, tuple(weight.shape), out, rows)
    if name.startswith("add_layer_norm"):
        splits, bucket, _ = tensors[0].shape
        reads = splits * tensors[0].element_size() * width
        norm = _triton_rows(part, launch, rows, bucket, config, reads=reads + 4 * width)
        return replace(norm, partial_sums=reads * rows if splits > 1 else 0.0)
    if name == "gather":
        size = len(lengths) * width * tensors[0].element_size()
        return Launch("head", "gather", launch.grid, len(lengths), 128, reads=size, writes=size, steps=1)
    raise SystemExit(f"error: benchmarks/gpu_launches.py does not know the kernel {name}.")


def _triton_linear(part: str, launch: Any, shape: tuple[int, ...], out: Any, rows: int) -> Launch:
    (n, k), splits, given = shape, out.shape[0] if out.dim() == 3 else 1, launch.options
    m_tile, n_tile, k_tile = given["block_m"], given["block_n"], given["block_k"]
    steps = ceil(ceil(k / splits) / k_tile)
    written = out.element_size() * splits * rows * n
    stages, warps, stage = given["num_stages"], given["num_warps"], k_tile * (m_tile + n_tile) * ELEMENT
    is_wgmma = m_tile >= 64 and warps >= 4  # what kernels.ahead finds in the PTX
    has_descriptors = any(hasattr(each, "block_shape") for each in launch.arguments)
    return Launch(
        part,
        _name(launch),
        launch.grid,
        ceil(n / n_tile) * ceil(rows / m_tile) * splits,
        32 * warps,
        weights=ELEMENT * n * k + 4 * n,
        reads=ELEMENT * rows * k,
        writes=written,
        partial_sums=written if splits > 1 else 0.0,
        operations=2.0 * rows * n * k,
        block_operations=2.0 * m_tile * n_tile * steps * k_tile,
        elements=m_tile * n_tile if given["activation"] == "gelu" else 0.0,
        instruction=("wgmma by TMA" if has_descriptors else "wgmma") if is_wgmma else "mma",
        steps=steps,
        step_bytes=stage,
        stages=stages - 1,
        shared_bytes=stages * stage,
        accumulators=m_tile * n_tile / (32 * warps),
    )


def _triton_attention(config: ModelConfig, lengths: Sequence[int], launch: Any) -> Launch:
    given, size = launch.options, config.hidden_size // config.num_heads
    m_tile, n_tile, warps = given["block_m"], given["block_n"], given["num_warps"]
    steps, blocks = _key_blocks(lengths, m_tile, n_tile)
    return _attention(
        config, lengths, "attention", launch.grid, blocks * config.num_heads, 32 * warps,
        steps * m_tile * n_tile * config.num_heads, ceil(steps / blocks),
        step_bytes=2 * n_tile * size * ELEMENT, stages=max(1, given["num_stages"] - 1),
        shared_bytes=(m_tile + 2 * given["num_stages"] * n_tile) * size * ELEMENT,
        instruction="wgmma" if m_tile >= 64 and warps >= 4 else "mma",
        accumulators=m_tile * (n_tile + size) / (32 * warps),
    )  # fmt: skip


def _key_blocks(lengths: Sequence[int], m_tile: int, n_tile: int) -> tuple[int, int]:
    """(Blocks of keys that all programs of a head visit, programs): each visits its rows' sequences."""
    owners = [sequence for sequence, length in enumerate(lengths) for _ in range(length)]
    steps = 0
    for first in range(0, len(owners), m_tile):
        last = min(first + m_tile, len(owners)) - 1
        steps += sum(ceil(lengths[sequence] / n_tile) for sequence in range(owners[first], owners[last] + 1))
    return steps, ceil(len(owners) / m_tile)


def _triton_rows(part: str, launch: Any, rows: int, bucket: int, config: ModelConfig, *, reads: float) -> Launch:
    """embed or add_layer_norm; ``reads``: bytes a row. A program takes one row or several."""
    rows_each = ceil(bucket / launch.grid[0])
    return Launch(
        part,
        _name(launch),
        launch.grid,
        ceil(rows / rows_each),
        32 * launch.options["num_warps"],
        reads=reads * rows,
        writes=(4 + ELEMENT) * rows * config.hidden_size,
        steps=1,
        step_bytes=int(reads * rows_each),
    )


def _name(launch: Any) -> str:
    return str(getattr(launch.kernel, "__name__", launch.kernel)).removesuffix("_kernel")
