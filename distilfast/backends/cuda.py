"""The encoder in hand-written CUDA kernels on an NVIDIA GPU; at run time it needs only the driver."""

from __future__ import annotations

import sys
from collections.abc import Collection
from typing import Any

import numpy as np

from distilfast import quantize
from distilfast.backends.base import Results, Trace
from distilfast.backends.extension import encoder_arguments
from distilfast.batch import DeviceBatch, PackedBatch
from distilfast.errors import BackendError, InputError
from distilfast.heads import Head
from distilfast.types import Precision
from distilfast.weights import Weights

PRECISIONS: tuple[Precision, ...] = ("fp32", "fp16", "bf16", "int8")
CHUNK_TOKENS = 4096
"""Tokens of one pass: enough row tiles to fill a device, and a bound of the scratch memory."""
CLUSTERS = False
"""Whether residual and LayerNorm are fused into the linears of more than 256 tokens; off until measured on a GPU.

The fusion needs thread block clusters, which compute capability 9.0 has. Elsewhere, for int8, and for rows that do not
fit a cluster, there are two kernels.
"""
PERSISTENT = False
"""Whether up to 64 tokens run in one persistent launch (not in fp32); off until a measurement shows it is faster."""
INT8 = "W8A16 up to 64 tokens, above W8A8 in Hadamard-rotated groups of 128"
"""How int8 is computed; see csrc/cuda/README.md."""


def extension() -> Any:
    """The module ``distilfast._cuda``; raises ImportError where it was not built."""
    from distilfast import _cuda

    return _cuda


def unavailable() -> str | None:
    """None, or why the extension cannot be used, in one sentence."""
    try:
        module = extension()
    except ImportError:
        return "The extension distilfast._cuda was not built; it is where nvcc is found, or with CMAKE_ARGS=-DCUDA=ON."
    return module.unavailable()


class CudaBackend:
    """Runs ``csrc/cuda``; one object can be called from several threads at once, each with its own stream."""

    name = "cuda"

    def __init__(self, threads: int | None = None) -> None:
        """``threads`` is accepted and not used: the work is the device's."""
        self._module = extension()
        self._precision: Precision | None = None

    @property
    def detail(self) -> str:
        """The device's name and the precision."""
        how = f" ({INT8})" if self._precision == "int8" else ""
        return f"{self._gpu} {self._precision}{how}"

    def load(self, weights: Weights, head: Head, precision: Precision) -> None:
        """Copy the weights to the current device; raises BackendError for what the kernels cannot run."""
        if precision not in PRECISIONS:
            raise BackendError(
                f"precision {precision!r} is not available on backend cuda; it has {', '.join(PRECISIONS)}."
            )
        weights.check_finite()
        self._precision, self._gpu = precision, self._module.device_name()
        try:
            self._encoder = self._module.Encoder(
                **encoder_arguments(weights, head),
                tensors=self._tensors(weights),
                precision=precision,
                chunk_tokens=CHUNK_TOKENS,
                persistent=PERSISTENT,
                clusters=CLUSTERS,
            )
        except (RuntimeError, ValueError) as error:
            raise BackendError(f"backend cuda cannot load this model: {error}") from error

    def _tensors(self, weights: Weights) -> dict[str, np.ndarray]:
        """The checkpoint's tensors, and for int8 those of ``quantize.channels``, their biases renamed."""
        tensors = dict(weights.tensors)
        if self._precision != "int8":
            return tensors
        made = quantize.channels(weights.config, tensors, self._module.outlier_channels)
        return tensors | {name.replace(".bias", ".shifted_bias"): tensor for name, tensor in made.items()}

    def forward(
        self,
        batch: PackedBatch,
        rows: np.ndarray | None,
        hidden: bool,
        trace: Trace | None = None,
        columns: np.ndarray | None = None,
        names: Collection[str] | None = None,
    ) -> Results:
        """See ``Backend.forward``; results are float32."""
        try:
            return self._encoder.forward(
                batch.input_ids,
                batch.positions,
                batch.token_types,
                batch.cu_seqlens,
                rows,
                hidden,
                trace,
                columns,
                names,
            )
        except RuntimeError as error:
            raise BackendError(str(error)) from error

    def forward_on_device(
        self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool, stream: int | None = None
    ) -> tuple[Any, Any]:
        """Like ``forward``, but fp32 arrays on the GPU, not copied, which stay valid while they are referenced.

        They have DLPack and ``__cuda_array_interface__``. The host does not wait; ``stream`` does (a handle; None for
        torch's current one where torch is loaded, else the default stream). Raises BackendError for a batch that has to
        be run in pieces.
        """
        arrays = batch.input_ids, batch.positions, batch.token_types, batch.cu_seqlens
        try:
            return self._encoder.forward_on_device(*arrays, rows, hidden, _stream(stream))
        except (RuntimeError, ValueError) as error:
            raise BackendError(str(error)) from error

    def forward_from_device(
        self, batch: DeviceBatch, rows: Any | None, hidden: bool, stream: int | None = None
    ) -> tuple[Any, Any]:
        """``forward_on_device`` for ids that are on the GPU; ``rows`` an array there, "first", "all" or None.

        The bucket depends on the sizes of the arrays alone. Their values are checked on the device: an id or a token
        type outside its table makes the results of its sequence NaN, and wrong ``cu_seqlens`` or rows make those of the
        whole batch NaN; ``wait()`` of either result then raises ValueError with the reason. Raises InputError for
        arrays that cannot be read, and BackendError for a batch that has to be run in pieces.
        """
        try:
            return self._encoder.forward_from_device(
                batch.input_ids, batch.cu_seqlens, batch.token_types, rows, hidden, _stream(stream)
            )
        except ValueError as error:
            raise InputError(str(error)) from error
        except RuntimeError as error:
            raise BackendError(str(error)) from error

    def info(self) -> dict[str, object]:
        """The device and the bytes held on it."""
        return {
            "gpu": self._gpu,
            "packed_bytes": self._encoder.weight_bytes,
            "scratch_bytes": self._encoder.scratch_bytes,
        }


def _stream(handle: int | None) -> int:
    if handle is not None:
        return handle
    torch = sys.modules.get("torch")
    return int(torch.cuda.current_stream().cuda_stream) if torch and torch.cuda.is_available() else 0
