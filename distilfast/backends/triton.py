"""The encoder in Triton kernels on a GPU, through torch: whole batches of ragged text without padding, as CUDA graphs.

A forward writes the batch into pinned memory, which the graph of its shape reads, replays that on the caller's stream,
and copies the result back; the counts in which batches of a shape differ are read on the device. With
TRITON_INTERPRET=1 the same kernels run on the CPU, slowly and without graphs, which is how they are tested where there
is no GPU.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING

import numpy as np

from distilfast.backends.base import Results, Trace, select_columns
from distilfast.batch import PackedBatch
from distilfast.errors import BackendError
from distilfast.heads import Head
from distilfast.kernels.device import family, gpu_for, is_interpreted, unavailable
from distilfast.locks import ForkSafeLock
from distilfast.types import Precision
from distilfast.weights import Weights

if TYPE_CHECKING:
    import torch

    from distilfast.kernels.encoder import Recorder, Shape
    from distilfast.kernels.runner import ShapeRunner

__all__ = ["PRECISIONS", "TritonBackend", "family", "is_interpreted", "unavailable"]

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16", "fp16")
MOST_GRAPHS = 32
"""Shapes whose graphs are kept; the least recently used one is replaced."""

# As CUDA numbers them: two names of the legacy default stream, and the default stream of the thread that uses it.
_DEFAULT_STREAMS, _THREAD_DEFAULT_STREAM = (0, 1), 2

_INTERPRETER = ForkSafeLock()  # it changes triton's own modules while a kernel runs, so one at a time in a process


class TooManyTokens(Exception):
    """More tokens than the largest bucket holds; the batch has to be run in pieces."""


class TritonBackend:
    """Runs ``kernels`` (installed as ``distilfast.kernels``); calls of one object run one at a time."""

    name = "triton"

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` is accepted and not used: the work is the GPU's."""
        import torch
        import triton

        self._is_interpreted = is_interpreted()
        self._device = torch.device("cpu" if self._is_interpreted else f"cuda:{torch.cuda.current_device()}")
        self._gpu = "the interpreter" if self._is_interpreted else torch.cuda.get_device_name(self._device)
        self._version = triton.__version__
        self._stream = None if self._is_interpreted else torch.cuda.Stream(self._device)  # for captures and memory
        self._finished: torch.cuda.Event | None = None  # recorded after the last forward
        self._lock = _INTERPRETER if self._is_interpreted else ForkSafeLock()
        self._runners: OrderedDict[Shape, ShapeRunner] = OrderedDict()
        self._storage = torch.empty(0, dtype=torch.uint8, device=self._device)

    @property
    def detail(self) -> str:
        """Triton's version, the precision, the GPU, and what its kernels make of it."""
        return f"triton {self._version} {self._precision}, {self._gpu}, {self._chosen.detail}"

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """Copy the weights to the GPU; raises BackendError for a precision that is not there, or too little memory."""
        import torch

        from distilfast.kernels.encoder import Encoder

        if precision not in PRECISIONS:
            raise BackendError(
                f"precision {precision!r} is not available on backend triton; it has {', '.join(PRECISIONS)}."
            )
        if precision == "bf16" and self._is_interpreted:
            raise BackendError("precision 'bf16' is wrong in triton's interpreter; it runs fp32 and fp16.")
        weights.check_finite()
        self._precision, self._head = precision, head
        dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
        try:
            tensors = {name: self._upload(name, tensor, dtype) for name, tensor in weights.tensors.items()}
        except torch.OutOfMemoryError:
            raise BackendError(f"{self._gpu} has too little memory for the weights.") from None
        self._outputs = len(tensors[f"head.{len(head.linears) - 1}.bias"]) if head.linears else 0
        self._weight_bytes = sum(tensor.nbytes for tensor in tensors.values())
        self._chosen = gpu_for(self._device, weights.config, dtype != torch.float32)
        self._encoder = Encoder(tensors, weights.config, head, dtype, self._chosen)

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """See ``Backend.forward``; results are float32.

        A batch of more tokens than the largest bucket, or than there is memory for, runs in pieces of whole sequences.
        Raises BackendError where not even one sequence fits; later batches are not affected.
        """
        rows = rows if self._head.linears else None
        with self._lock, self._on(self._caller(None)):
            if trace is None:
                return select_columns(self._in_pieces(batch, rows, hidden), columns)
            return self._traced(batch, rows, hidden, trace, names)

    def forward_on_device(
        self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool, stream: int | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Like ``forward``, but fp32 tensors on the GPU, not copied: the next forward of this engine overwrites them.

        The host does not wait; ``stream`` does, a handle, None for torch's current one. Raises BackendError for a batch
        that has to be run in pieces.
        """
        import torch

        rows = rows if self._head.linears else None
        with self._lock, self._on(self._caller(stream)):
            try:
                return self._run(batch, rows, hidden)
            except (torch.OutOfMemoryError, TooManyTokens):
                self._release()
                raise BackendError(f"{self._gpu} cannot run {batch.num_tokens} tokens at once.") from None

    def repeat(self) -> None:
        """Start the last forward again, on the current stream, with the same batch and results in the same memory.

        It is what a benchmark times to tell the graph from the rest of a call.
        """
        with self._lock, self._on(self._caller(None)):
            newest = next(reversed(self._runners.values()))
            newest.repeat()
            self._finished = newest.finished()

    def info(self) -> dict[str, object]:
        """The GPU, the bytes held for weights and activations, and how many shapes are ready."""
        return {
            "gpu": self._gpu,
            "packed_bytes": self._weight_bytes,
            "scratch_bytes": self._storage.nbytes,
            "shapes": len(self._runners),
        }

    def _caller(self, handle: int | None) -> torch.cuda.Stream | None:
        """The caller's stream; None on the CPU (interpreted)."""
        import torch

        if self._stream is None:
            return None
        if handle is None:
            return torch.cuda.current_stream(self._device)
        if handle == _THREAD_DEFAULT_STREAM:
            raise BackendError(
                "Stream 2 is the default stream of whichever thread uses it; pass a stream's own handle."
            )
        if handle in _DEFAULT_STREAMS:  # an ExternalStream(0) would be a new stream
            return torch.cuda.default_stream(self._device)
        return torch.cuda.ExternalStream(handle, self._device)

    @contextmanager
    def _on(self, caller: torch.cuda.Stream | None) -> Iterator[None]:
        """Work goes to this stream, after the last forward, whose buffers it overwrites, on whichever stream it was."""
        import torch

        if caller is None:
            yield
            return
        with torch.cuda.stream(caller):
            if self._finished is not None:
                caller.wait_event(self._finished)
            yield

    def _run(
        self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool, record: Recorder | None = None
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """A forward on the current stream, with the runner of its shape."""
        runner = self._runner(batch, rows, hidden)
        results = runner.run(batch, rows, record)
        self._finished = runner.finished()
        return results

    def _in_pieces(self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool) -> Results:
        import torch

        if rows is not None and not len(rows):  # a head, and nothing for it to read
            none = np.zeros((0, self._outputs), np.float32)
            return (self._in_pieces(batch, None, hidden)[0] if hidden else None), none
        try:
            return self._fetch(self._run(batch, rows, hidden))
        except TooManyTokens:
            pass
        except torch.OutOfMemoryError:
            self._release()
        if batch.num_sequences == 1:
            raise BackendError(f"{self._gpu} has too little memory for a sequence of {batch.num_tokens} tokens.")
        pieces = [self._in_pieces(*half, hidden) for half in _halves(batch, rows)]
        return _joined([piece[0] for piece in pieces]), _joined([piece[1] for piece in pieces])

    def _traced(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace,
        names: Collection[str] | None,
    ) -> Results:
        """All rows, kernel by kernel; the intermediates that are wanted are fetched."""

        def record(name: str, values: torch.Tensor) -> None:
            if names is not None and name not in names:
                return
            flat = name.endswith("probabilities")
            count = len(values) if flat else len(rows) if rows is not None and name.startswith("head.") else tokens
            trace[name] = values[:count].float().cpu().numpy().copy()

        tokens = batch.num_tokens
        hidden_state, output = self._fetch(self._run(batch, rows, True, record))
        return (hidden_state if hidden else None), output

    def _runner(self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool) -> ShapeRunner:
        """The runner of the batch's shape; raises TooManyTokens or torch.OutOfMemoryError."""
        import torch

        from distilfast.kernels.runner import ShapeRunner, shape_of
        from distilfast.kernels.tuning import LARGEST_BUCKET

        if batch.num_tokens > LARGEST_BUCKET:
            raise TooManyTokens
        shape = shape_of(batch, rows, hidden)
        if shape not in self._runners:
            needed = self._encoder.bytes_for(shape)
            if needed > self._storage.nbytes:
                self._release()  # their graphs hold the old addresses
                # Of a caller's stream, the allocator could give it away as soon as that stream is done with it.
                with nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
                    self._storage = torch.empty(needed, dtype=torch.uint8, device=self._device)
            while len(self._runners) >= MOST_GRAPHS:
                _, oldest = self._runners.popitem(last=False)
                oldest.wait()
            self._runners[shape] = ShapeRunner(self._encoder, shape, self._storage, self._stream)
        self._runners.move_to_end(shape)
        return self._runners[shape]

    def _fetch(self, results: tuple[torch.Tensor | None, torch.Tensor | None]) -> Results:
        """Copy the results to the host through pinned memory, once the current stream has computed them."""
        import torch

        if self._stream is None:
            hidden, output = (None if one is None else one.numpy().copy() for one in results)
            return hidden, output
        pinned = [None if one is None else torch.empty_like(one, device="cpu", pin_memory=True) for one in results]
        for target, source in zip(pinned, results, strict=True):
            if target is not None:
                target.copy_(source, non_blocking=True)
        torch.cuda.current_stream(self._device).synchronize()
        hidden, output = (None if one is None else one.numpy().copy() for one in pinned)
        return hidden, output

    def _release(self) -> None:
        """Free the runners and the scratch memory; the weights stay."""
        import torch

        for runner in self._runners.values():
            runner.wait()
        self._runners.clear()
        self._finished = None
        self._storage = torch.empty(0, dtype=torch.uint8, device=self._device)

    def _upload(self, name: str, tensor: np.ndarray, dtype: torch.dtype) -> torch.Tensor:
        import torch

        from distilfast.kernels.encoder import stored_as

        found = torch.from_numpy(np.array(tensor)).to(self._device).to(stored_as(name, dtype))
        if not bool(torch.isfinite(found).all()):
            raise BackendError(f"{name} does not fit {self._precision}: some of its numbers are too large.")
        return found


def _halves(batch: PackedBatch, rows: np.ndarray | None) -> list[tuple[PackedBatch, np.ndarray | None]]:
    """The batch in two pieces of whole sequences, of tokens as equal as they can be, each with its own rows."""
    middle = int(np.searchsorted(batch.cu_seqlens, batch.num_tokens / 2))
    middle = min(max(middle, 1), batch.num_sequences - 1)
    return [_piece(batch, rows, 0, middle), _piece(batch, rows, middle, batch.num_sequences)]


def _piece(batch: PackedBatch, rows: np.ndarray | None, first: int, last: int) -> tuple[PackedBatch, np.ndarray | None]:
    begin, end = int(batch.cu_seqlens[first]), int(batch.cu_seqlens[last])
    piece = PackedBatch(
        batch.input_ids[begin:end],
        batch.positions[begin:end],
        batch.cu_seqlens[first : last + 1] - begin,
        None if batch.token_types is None else batch.token_types[begin:end],
    )
    if rows is None:
        return piece, None
    return piece, (rows[(rows >= begin) & (rows < end)] - begin).astype(np.int32)


def _joined(pieces: list[np.ndarray | None]) -> np.ndarray | None:
    there = [piece for piece in pieces if piece is not None]
    return np.concatenate(there) if there else None
