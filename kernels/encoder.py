"""The layer loop on the four operations: the buffers of one shape, and which kernel reads and writes which.

``run`` only launches kernels, on addresses that stay the same for a shape, so a CUDA graph captured around it can be
replayed for every batch of that shape; the counts in which batches differ are read from the device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

from distilfast.config import ModelConfig
from distilfast.heads import Head
from distilfast.kernels.add_layer_norm import add_layer_norm
from distilfast.kernels.attention import attention
from distilfast.kernels.device import Gpu
from distilfast.kernels.embed import embed
from distilfast.kernels.gather import gather
from distilfast.kernels.linear import linear
from distilfast.kernels.receive import receive
from distilfast.kernels.tuning import rows_tile, tile

Recorder = Callable[[str, torch.Tensor], None]
"""Called with each intermediate and its name before later kernels overwrite it."""

_ALIGNMENT = 256  # bytes: every buffer of an arena begins at a multiple


def stored_as(name: str, dtype: torch.dtype) -> torch.dtype:
    """The type of a weight by its canonical name: matrices and tables are operands, biases and LayerNorms fp32."""
    return torch.float32 if name.endswith((".bias", "norm.weight")) else dtype


@dataclass(frozen=True)
class Shape:
    """What a graph is captured for: a bucket of tokens, a bucket of the rows that the head reads, and the results.

    ``rows`` is 0 where there is no head, and equals ``tokens`` where ``all_rows``. ``hidden``: the last hidden state
    of all tokens is wanted too.
    """

    tokens: int
    rows: int
    all_rows: bool
    hidden: bool

    @property
    def skips_rows(self) -> bool:
        """Whether the last layer computes only the rows that the head reads."""
        return self.rows > 0 and not self.all_rows and not self.hidden


class Arena:
    """One block of memory from which buffers are allocated, one after the other."""

    def __init__(self, storage: torch.Tensor) -> None:
        """``storage``: uint8; on the ``meta`` device it has no memory and only counts bytes."""
        self._storage = storage
        self.used = 0

    def take(self, *sizes: int, dtype: torch.dtype) -> torch.Tensor:
        """An uninitialised tensor."""
        count = dtype.itemsize
        for size in sizes:
            count *= size
        begin, self.used = self.used, self.used + -(-count // _ALIGNMENT) * _ALIGNMENT
        return self._storage[begin : begin + count].view(dtype).view(sizes)


@dataclass(frozen=True)
class Inputs:
    """One batch on the device, int32; what lies beyond the counts is neither written nor read."""

    counts: torch.Tensor  # [3]: tokens, rows, sequences
    ids: torch.Tensor  # [tokens]
    positions: torch.Tensor  # [tokens]
    types: torch.Tensor  # [tokens]
    cu_seqlens: torch.Tensor  # [tokens + 1]
    rows: torch.Tensor  # [rows]: the tokens that the head reads
    sequence: torch.Tensor  # [tokens]: which sequence each token is of
    rows_sequence: torch.Tensor  # [rows]

    @staticmethod
    def staged_sizes(shape: Shape) -> tuple[int, ...]:
        """The length of each field that comes from the host, in order: all up to ``rows``."""
        return (3, *(shape.tokens,) * 3, shape.tokens + 1, shape.rows)


@dataclass(frozen=True)
class RowBuffers:
    """The buffers of a layer for some token rows: the fp32 residual stream ``x`` and what the kernels exchange.

    ``operand`` is x in the operands' type, ``x`` itself for fp32. ``count`` int32 [1]: how many rows there are.
    """

    x: torch.Tensor  # fp32 [rows, D]
    operand: torch.Tensor  # [rows, D]
    context: torch.Tensor  # [rows, D]
    ffn: torch.Tensor  # [rows, F]
    attention_partials: torch.Tensor  # [S, rows, D]: attention_out's partial sums
    ffn_partials: torch.Tensor  # [S, rows, D]: ffn_out's
    sequence: torch.Tensor  # int32 [rows]
    count: torch.Tensor

    @property
    def out_cast(self) -> torch.Tensor | None:
        """Where a copy of ``x`` in the operands' type goes; None where the operands are fp32."""
        return None if self.operand is self.x else self.operand


@dataclass(frozen=True)
class Buffers:
    """Everything that one shape needs beside the weights."""

    inputs: Inputs
    tokens: RowBuffers
    qkv: torch.Tensor  # [tokens · 3D]
    rows: RowBuffers | None  # where the head does not read all rows
    head: tuple[tuple[torch.Tensor, torch.Tensor], ...]  # each linear's [rows, N], and the next one's operand


class Encoder:
    """The model on a device: its weights, and the order of its kernels."""

    def __init__(
        self, weights: dict[str, torch.Tensor], config: ModelConfig, head: Head, dtype: torch.dtype, gpu: Gpu
    ) -> None:
        """``weights`` by canonical name, ``stored_as`` their name says; ``gpu``: what they are on."""
        self._weights, self._config, self._head, self._dtype, self._gpu = weights, config, head, dtype, gpu
        self._run_embed = partial(embed, is_dependent=gpu.dependent_launches)
        self._run_gather = partial(gather, is_dependent=gpu.dependent_launches)
        self._run_linear = partial(linear, is_dependent=gpu.dependent_launches)
        self._run_attention = partial(attention, is_dependent=gpu.dependent_launches)
        self._run_add_layer_norm = partial(add_layer_norm, is_dependent=gpu.dependent_launches)

    def bytes_for(self, shape: Shape) -> int:
        """Bytes of the buffers of a shape."""
        measure = Arena(torch.empty(1 << 46, dtype=torch.uint8, device="meta"))
        self.buffers(shape, measure)
        return measure.used

    def buffers(self, shape: Shape, arena: Arena) -> Buffers:
        """Allocate the buffers of a shape from an arena of at least ``bytes_for(shape)``."""
        sizes = (*Inputs.staged_sizes(shape), shape.tokens, shape.rows)
        inputs = Inputs(*(arena.take(size, dtype=torch.int32) for size in sizes))
        num_tokens, num_rows, _ = inputs.counts.split(1)
        qkv = arena.take(shape.tokens * 3 * self._config.hidden_size, dtype=self._dtype)
        tokens = self._row_buffers(arena, shape.tokens, inputs.sequence, num_tokens)
        rows = None
        if shape.rows and not shape.all_rows:
            rows = self._row_buffers(arena, shape.rows, inputs.rows_sequence, num_rows)
        return Buffers(inputs, tokens, qkv, rows, self._head_buffers(shape.rows, arena))

    def run(
        self, shape: Shape, buffers: Buffers, staged: torch.Tensor, record: Recorder | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Launch everything: (residual stream fp32 [tokens or rows, D], head output fp32 [rows, N] or None).

        Both lie in ``buffers``. ``staged``: the batch, int32 [Σ staged_sizes] in pinned memory. ``record`` needs a
        shape with ``hidden``.
        """
        stream = buffers.tokens
        self._receive(staged, buffers.inputs)
        self._embed(buffers, record)
        layers = self._config.num_layers
        for i in range(layers - shape.skips_rows):
            self._layer(i, buffers, record)
        if shape.skips_rows:
            assert buffers.rows is not None
            stream = buffers.rows
            self._last_layer(layers - 1, buffers, stream)
        elif buffers.rows is not None:
            self._gather(buffers)
        output = self._run_head(buffers, record) if shape.rows else None
        return stream.x, output

    # ------------------------------------------------------------------------------------------------------- layers

    def _receive(self, staged: torch.Tensor, inputs: Inputs) -> None:
        """An ordinary launch: it is the first."""
        receive(
            staged,
            inputs.counts,
            inputs.ids,
            inputs.positions,
            inputs.types,
            inputs.cu_seqlens,
            inputs.rows,
            inputs.sequence,
            inputs.rows_sequence,
            "embed.token_type" in self._weights,
        )

    def _embed(self, buffers: Buffers, record: Recorder | None) -> None:
        inputs, stream = buffers.inputs, buffers.tokens
        self._run_embed(
            inputs.ids,
            inputs.positions,
            inputs.types,
            self._weights["embed.word"],
            self._weights["embed.position"],
            self._weights.get("embed.token_type"),
            *self._vectors("embed.norm"),
            self._config.layer_norm_eps,
            stream.x,
            stream.out_cast,
            stream.count,
        )
        if record:
            record("embed", stream.x)

    def _layer(self, i: int, buffers: Buffers, record: Recorder | None) -> None:
        """All rows."""
        at, stream, width = f"layer.{i}.", buffers.tokens, self._config.hidden_size
        qkv = buffers.qkv.view(-1, 3 * width)
        self._linear(at + "qkv", stream.operand, "none", qkv, stream.count)
        if record:
            record(at + "qkv", qkv)
            self._record_probabilities(at, buffers, record)
        q, k, v = qkv.split(width, dim=1)
        self._attention(q, k, v, stream, buffers, is_every_row=True)
        self._finish_layer(at, stream, record)

    def _last_layer(self, i: int, buffers: Buffers, rows: RowBuffers) -> None:
        """Keys and values of all tokens, the rest for ``rows`` alone."""
        at, tokens, width = f"layer.{i}.", buffers.tokens, self._config.hidden_size
        weight, bias = self._vectors(at + "qkv")
        kv = buffers.qkv[: len(tokens.x) * 2 * width].view(-1, 2 * width)
        self._run_linear(
            tokens.operand, weight[width:], bias[width:], "none", kv, tokens.count, self._tile("linear", len(tokens.x))
        )
        self._gather(buffers)
        q = buffers.qkv[kv.numel() :][: rows.x.numel()].view(-1, width)
        self._run_linear(
            rows.operand, weight[:width], bias[:width], "none", q, rows.count, self._tile("linear", len(rows.x))
        )
        k, v = kv.split(width, dim=1)
        self._attention(q, k, v, rows, buffers, is_every_row=False)
        self._finish_layer(at, rows, None)

    def _attention(
        self,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        stream: RowBuffers,
        buffers: Buffers,
        *,
        is_every_row: bool,
    ) -> None:
        is_half = self._dtype != torch.float32
        chosen = self._tile("attention", len(q)) if is_every_row else rows_tile(self._gpu.family, is_half)
        self._run_attention(
            q, k, v, stream.context, stream.sequence, buffers.inputs.cu_seqlens, self._config.num_heads, stream.count,
            chosen,
        )  # fmt: skip

    def _finish_layer(self, at: str, stream: RowBuffers, record: Recorder | None) -> None:
        """From the context to the layer's output."""
        eps = self._config.layer_norm_eps
        self._linear_split_k(at + "attention_out", stream.context, stream.attention_partials, stream.count)
        if record:
            record(at + "context", stream.context)
            record(at + "attention_out", stream.attention_partials.float().sum(dim=0))
        norm = self._vectors(at + "attention_norm")
        self._run_add_layer_norm(
            stream.attention_partials, stream.x, *norm, eps, stream.x, stream.out_cast, stream.count
        )
        if record:
            record(at + "attention_norm", stream.x)
        self._linear(at + "ffn_in", stream.operand, self._config.activation, stream.ffn, stream.count)
        self._linear_split_k(at + "ffn_out", stream.ffn, stream.ffn_partials, stream.count)
        norm = self._vectors(at + "output_norm")
        self._run_add_layer_norm(stream.ffn_partials, stream.x, *norm, eps, stream.x, stream.out_cast, stream.count)
        if record:
            record(at + "ffn_in", stream.ffn)
            record(at + "ffn_out", stream.ffn_partials.float().sum(dim=0))
            record(at + "output", stream.x)

    def _gather(self, buffers: Buffers) -> None:
        """The rows that the head reads."""
        rows, tokens = buffers.rows, buffers.tokens
        assert rows is not None
        cast = None if rows.out_cast is None else tokens.operand
        self._run_gather(tokens.x, cast, buffers.inputs.rows, rows.x, rows.out_cast, rows.count)

    def _run_head(self, buffers: Buffers, record: Recorder | None) -> torch.Tensor:
        stream = buffers.rows or buffers.tokens
        x, count = stream.operand, stream.count
        for i, (step, (out, operand)) in enumerate(zip(self._head.linears, buffers.head, strict=True)):
            at = f"head.{i}"
            self._linear(at, x, step.activation, out, count)
            if step.norm:
                out_cast = None if operand is out else operand
                norm, eps = self._vectors(at + ".norm"), self._config.layer_norm_eps
                self._run_add_layer_norm(out[None], None, *norm, eps, out, out_cast, count)
            x = operand
            if record:
                record(at, out)
        return out

    def _record_probabilities(self, at: str, buffers: Buffers, record: Recorder) -> None:
        """Run attention again and store the probabilities, which flash attention does not materialise."""
        stream, width, heads = buffers.tokens, self._config.hidden_size, self._config.num_heads
        q, k, v = buffers.qkv.view(-1, 3 * width).split(width, dim=1)
        cu_seqlens, sequences = buffers.inputs.cu_seqlens, int(buffers.inputs.counts[2])
        sizes = heads * cu_seqlens[: sequences + 1].long().diff() ** 2
        probabilities = torch.empty(int(sizes.sum()), dtype=torch.float32, device=q.device)
        self._run_attention(
            q, k, v, stream.context, stream.sequence, cu_seqlens, heads, stream.count,
            self._tile("attention", len(q)), probabilities, sizes.cumsum(0) - sizes,
        )  # fmt: skip
        record(at + "probabilities", probabilities)

    # ------------------------------------------------------------------------------------------------------- helpers

    def _linear(self, name: str, x: torch.Tensor, activation: str, out: torch.Tensor, count: torch.Tensor) -> None:
        op = "linear_gelu" if activation == "gelu" else "linear"
        self._run_linear(x, *self._vectors(name), activation, out, count, self._tile(op, len(x)))

    def _linear_split_k(self, name: str, x: torch.Tensor, partials: torch.Tensor, count: torch.Tensor) -> None:
        chosen = self._tile("linear_split_k", len(x)).for_depth(x.shape[1])
        self._run_linear(x, *self._vectors(name), "none", partials, count, chosen)

    def _vectors(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        return self._weights[name + ".weight"], self._weights[name + ".bias"]

    def _tile(self, op: str, rows: int):
        return tile(op, self._gpu.family, self._dtype != torch.float32, rows, self._gpu.multiprocessors)

    def _row_buffers(self, arena: Arena, rows: int, sequence: torch.Tensor, count: torch.Tensor) -> RowBuffers:
        width, ffn = self._config.hidden_size, self._config.ffn_size
        x = arena.take(rows, width, dtype=torch.float32)
        return RowBuffers(
            x=x,
            operand=x if self._dtype == torch.float32 else arena.take(rows, width, dtype=self._dtype),
            context=arena.take(rows, width, dtype=self._dtype),
            ffn=arena.take(rows, ffn, dtype=self._dtype),
            attention_partials=self._partials(arena, rows, width),
            ffn_partials=self._partials(arena, rows, ffn),
            sequence=sequence,
            count=count,
        )

    def _partials(self, arena: Arena, rows: int, in_size: int) -> torch.Tensor:
        """Partial sums are fp32; without split-K the product is stored in the operands' type."""
        split_k = self._tile("linear_split_k", rows).for_depth(in_size).split_k
        dtype = torch.float32 if split_k > 1 else self._dtype
        return arena.take(split_k, rows, self._config.hidden_size, dtype=dtype)

    def _head_buffers(self, rows: int, arena: Arena) -> tuple[tuple[torch.Tensor, torch.Tensor], ...]:
        """fp32 for the last linear, whose output is the result, and for a linear before a LayerNorm, as everywhere."""
        buffers = []
        for i, step in enumerate(self._head.linears if rows else ()):
            is_last = i == len(self._head.linears) - 1
            sizes = rows, len(self._weights[f"head.{i}.bias"])
            out = arena.take(*sizes, dtype=torch.float32 if is_last or step.norm else self._dtype)
            is_operand = is_last or out.dtype == self._dtype
            buffers.append((out, out if is_operand else arena.take(*sizes, dtype=self._dtype)))
        return tuple(buffers)
