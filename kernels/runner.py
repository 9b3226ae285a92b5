"""Everything to run batches of one shape: buffers, the batch in pinned memory, and on a GPU the captured graphs."""

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


class Slot:
    """One batch in the host's pinned memory, the graph that reads it there, and when it has been read."""

    def __init__(self, shape: Shape, *, on_gpu: bool) -> None:
        """Without pinned memory, graph and event where the kernels are interpreted."""
        sizes = Inputs.staged_sizes(shape)
        self.staged = torch.zeros(sum(sizes), dtype=torch.int32, pin_memory=on_gpu)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.finished = torch.cuda.Event() if on_gpu else None
        ends = np.cumsum(sizes)
        self._fields = np.split(self.staged.numpy(), ends[:-1])

    def write(self, batch: PackedBatch, rows: np.ndarray | None) -> None:
        """Replace the batch, once the graph has read the last one; what is longer than the new one is left."""
        self.wait()
        counts, ids, positions, types, cu_seqlens, rows_read = self._fields
        counts[0], counts[2] = batch.num_tokens, batch.num_sequences
        ids[: batch.num_tokens] = batch.input_ids
        positions[: batch.num_tokens] = batch.positions
        types[: batch.num_tokens] = 0 if batch.token_types is None else batch.token_types
        cu_seqlens[: batch.num_sequences + 1] = batch.cu_seqlens
        counts[1] = 0 if rows is None or not len(rows_read) else len(rows)
        if counts[1]:
            rows_read[: len(rows)] = rows

    def wait(self) -> None:
        """Until the last forward from this slot has ended; at once where there was none."""
        if self.finished is not None:
            self.finished.synchronize()


class ShapeRunner:
    """Runs batches of one shape, one at a time, in ``storage``, which all runners of the engine share.

    On a GPU there are two slots with a graph each, used in turn, so that the host can write a batch while the one
    before is computed. Graphs are replayed on the caller's stream.
    """

    def __init__(self, encoder: Encoder, shape: Shape, storage: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        """``storage``: uint8, at least ``encoder.bytes_for(shape)``; ``stream``: for captures, None on the CPU."""
        self._encoder, self._shape, self._stream = encoder, shape, stream
        self._buffers = encoder.buffers(shape, Arena(storage))
        self._slots = [Slot(shape, on_gpu=stream is not None) for _ in range(1 if stream is None else 2)]
        self._outputs: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def run(self, batch: PackedBatch, rows: np.ndarray | None, record: Recorder | None = None) -> Results:
        """Start a forward on the current stream: (last hidden state [T, D] where the shape has it, head output [R, N]).

        Both are fp32 views of the runner's buffers. On a GPU they are valid once the stream has done the work.
        ``record`` is called with every intermediate; with it no graph is used.
        """
        self._slots.reverse()
        slot = self._slots[-1]
        slot.write(batch, rows)
        self._start(slot, record)
        assert self._outputs is not None
        residual, output = self._outputs
        hidden = residual[: batch.num_tokens] if self._shape.hidden else None
        return hidden, None if output is None or rows is None else output[: len(rows)]

    def repeat(self) -> None:
        """Start the last forward again: the graph alone, without a batch to write."""
        self._start(self._slots[-1], None)

    def _start(self, slot: Slot, record: Recorder | None) -> None:
        if slot.graph is not None and record is None:
            slot.graph.replay()
        else:
            self._outputs = self._encoder.run(self._shape, self._buffers, slot.staged, record)
        if slot.finished is not None:
            slot.finished.record()  # on the current stream
            if slot.graph is None and record is None:
                self._capture()

    def finished(self) -> torch.cuda.Event | None:
        """Recorded after the last forward; None on the CPU."""
        return self._slots[-1].finished

    def wait(self) -> None:
        """Until all forwards have ended: before that no memory of this runner may be given away."""
        for slot in self._slots:
            slot.wait()

    def _capture(self) -> None:
        """Capture a graph for each slot; the run before has compiled the kernels, and these are not executed.

        On a stream of its own, since the default one cannot be captured.
        """
        for slot in self._slots:
            graph = torch.cuda.CUDAGraph()
            # torch.cuda.graph would synchronise the device, which is an error while another engine captures.
            # thread_local: other threads may launch work during the capture without breaking it.
            with torch.cuda.stream(self._stream), _CAPTURE:
                graph.capture_begin(capture_error_mode="thread_local")
                try:
                    self._encoder.run(self._shape, self._buffers, slot.staged)
                finally:
                    graph.capture_end()
            slot.graph = graph
