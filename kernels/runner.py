"""Everything to run batches of one shape: buffers, the copy to the device, and on a GPU the captured graph."""

from __future__ import annotations

import numpy as np
import torch

from distilfast.batch import PackedBatch, bucket_for
from distilfast.kernels.encoder import Arena, Encoder, Inputs, Recorder, Shape
from distilfast.locks import ForkSafeLock

Results = tuple[torch.Tensor | None, torch.Tensor | None]

_CAPTURE = ForkSafeLock()  # one capture at a time in a process


def shape_of(batch: PackedBatch, rows: np.ndarray | None, hidden: bool) -> Shape:
    """The shape that serves a batch whose head reads ``rows`` (None: there is no head)."""
    tokens = bucket_for(batch.num_tokens)
    if rows is None or not len(rows):
        return Shape(tokens, rows=0, all_rows=False, hidden=True)
    all_rows = len(rows) == batch.num_tokens
    return Shape(tokens, tokens if all_rows else min(tokens, bucket_for(len(rows))), all_rows, hidden)


class ShapeRunner:
    """Runs batches of one shape, one at a time, in ``storage``, which all runners of the engine share."""

    def __init__(self, encoder: Encoder, shape: Shape, storage: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        """``storage``: uint8, at least ``encoder.bytes_for(shape)``; ``stream``: None on the CPU (interpreted)."""
        self._encoder, self._shape, self._stream = encoder, shape, stream
        self._buffers = encoder.buffers(shape, Arena(storage))
        self._staged = torch.zeros(self._buffers.block.shape, dtype=torch.int32, pin_memory=stream is not None)
        self._copied = None if stream is None else torch.cuda.Event()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._outputs: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def run(self, batch: PackedBatch, rows: np.ndarray | None, record: Recorder | None = None) -> Results:
        """Start a forward; returns (last hidden state [T, D] where the shape has it, head output [R, N] or None).

        Both are fp32 views of the runner's buffers. On a GPU they are valid once the stream has done the work.
        ``record`` is called with every intermediate; with it no graph is used.
        """
        if self._stream is None:
            return self._start(batch, rows, record)
        with torch.cuda.stream(self._stream):
            return self._start(batch, rows, record)

    def _start(self, batch: PackedBatch, rows: np.ndarray | None, record: Recorder | None) -> Results:
        self._stage(batch, rows)
        if self._stream is None or record is not None:
            self._outputs = self._encoder.run(self._shape, self._buffers, record)
        elif self._graph is None:
            self._capture()
        else:
            self._graph.replay()
        assert self._outputs is not None
        residual, output = self._outputs
        hidden = residual[: batch.num_tokens] if self._shape.hidden else None
        return hidden, None if output is None or rows is None else output[: len(rows)]

    def _capture(self) -> None:
        """Run once, which compiles the kernels, and capture a second run, whose kernels are not executed.

        On the current stream, which is not the default one.
        """
        self._outputs = self._encoder.run(self._shape, self._buffers)
        graph = torch.cuda.CUDAGraph()
        # torch.cuda.graph would synchronise the device, which is an error while another engine captures. thread_local:
        # other threads may launch work during the capture without breaking it.
        with _CAPTURE:
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                self._encoder.run(self._shape, self._buffers)
            finally:
                graph.capture_end()
        self._graph = graph

    def _stage(self, batch: PackedBatch, rows: np.ndarray | None) -> None:
        """Write the batch into pinned memory and copy it to the device in one transfer."""
        if self._copied is not None:
            self._copied.synchronize()  # the previous batch has been copied from the pinned memory
        sequence = np.repeat(np.arange(batch.num_sequences, dtype=np.int32), np.diff(batch.cu_seqlens))
        rows = np.zeros(0, np.int32) if rows is None or not self._shape.rows else rows
        types = np.zeros(0, np.int32) if batch.token_types is None else batch.token_types
        counts = np.array([batch.num_tokens, len(rows)], np.int32)
        fields = (
            counts,
            batch.input_ids,
            batch.positions,
            types,
            sequence,
            batch.cu_seqlens,
            rows,
            sequence[rows],
        )
        staged = self._staged.numpy()
        begin = 0
        for values, size in zip(fields, Inputs.sizes(self._shape), strict=True):
            staged[begin : begin + len(values)] = values
            staged[begin + len(values) : begin + size] = 0
            begin += size
        self._buffers.block.copy_(self._staged, non_blocking=True)
        if self._copied is not None:
            self._copied.record(self._stream)
