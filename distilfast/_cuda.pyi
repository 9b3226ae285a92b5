"""The encoder on an NVIDIA GPU, compiled from csrc/cuda. Arrays are C-contiguous numpy arrays in host memory.

T tokens, B sequences, R rows read by the head, D hidden size, H heads. Bad arguments are ValueError, errors of the
device RuntimeError, each with one sentence. ``precision``: fp32, fp16, bf16, int8. A raw array holds rows of the
precision's elements (bf16 for int8) as bytes; where one is taken, each row is padded to a multiple of 8 elements.
"""

from collections.abc import Collection
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

def unavailable() -> str | None:
    """None, or why no device can be used, in one sentence."""

def device_name() -> str:
    """The current device's name; RuntimeError where there is none."""

def architecture() -> int:
    """The current device's compute capability, as 80 or 90."""

def used_memory() -> int:
    """Bytes of the current device's memory that are in use by all processes."""

def outlier_channels(k: int) -> int:
    """How many outlier channels of a linear of depth K stay bf16 in W8A8 (batches of more than 64 tokens)."""

class DeviceArray:
    """float32 [rows, columns] on the device; not overwritten while it is referenced."""

    @property
    def shape(self) -> tuple[int, int]: ...
    def wait(self) -> None:
        """Wait for the numbers; ValueError where the device found ids, lengths or rows wrong, and they are NaN."""

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]: ...
    def __dlpack_device__(self) -> tuple[int, int]: ...
    def __dlpack__(self, *, stream: int | None = None, **kwargs: Any) -> Any: ...

class Encoder:
    """The whole forward in one call, the GIL released; safe to call from several threads at once."""

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        layers: int,
        ffn: int,
        eps: float,
        activation: str,
        head: list[tuple[int, str, bool]],
        tensors: dict[str, Floats],
        precision: str,
        chunk_tokens: int,
        persistent: bool,
        clusters: bool,
    ) -> None:
        """``head``: columns, activation, and whether LayerNorm follows, of each linear; ``tensors``: canonical names.

        int8 needs for each linear of the encoder ``.channel_shift`` and ``.outlier_channels`` of
        ``distilfast.quantize.channels``, and its bias as ``.shifted_bias``.

        ``chunk_tokens``: at most so many tokens are run at a time, except a single longer sequence.
        ``persistent``: up to 64 tokens in fp16, bf16 or int8 are run by one launch instead of a graph of many.
        ``clusters``: in buckets of more than 256 tokens a layer's linears end with residual and LayerNorm, by clusters
        of blocks, where the device has them; not int8, and only rows that a cluster can hold.
        """

    def forward(
        self,
        ids: Ints,
        positions: Ints,
        token_types: Ints | None,
        cu_seqlens: Ints,
        rows: Ints | None,
        hidden: bool,
        trace: dict[str, Floats] | None,
        columns: Ints | None = None,
        names: Collection[str] | None = None,
    ) -> tuple[Floats | None, Floats | None]:
        """See ``distilfast.backends.base.Backend.forward``; ``columns``: those wanted of the head's last linear.

        Indices outside their tables are not caught here.
        """

    def forward_on_device(
        self,
        ids: Ints,
        positions: Ints,
        token_types: Ints | None,
        cu_seqlens: Ints,
        rows: Ints | None,
        hidden: bool,
        stream: int,
    ) -> tuple[DeviceArray | None, DeviceArray | None]:
        """The same without waiting and without copying the results; ``stream``: the caller's, 0 for the default one.

        RuntimeError for a batch of more tokens than are run at once, ValueError for a stream of another device.
        """

    def forward_from_device(
        self, ids: Any, cu_seqlens: Any, token_types: Any | None, rows: Any | None, hidden: bool, stream: int
    ) -> tuple[DeviceArray | None, DeviceArray | None]:
        """The same for int32 or int64 arrays on the device, by DLPack or ``__cuda_array_interface__``.

        ``rows``: an array of them, or "first" of each sequence, or "all"; None: no head is run. ValueError for arrays
        of another device, type or shape; their values are checked on the device, and ``DeviceArray.wait`` raises.
        """

    @property
    def weight_bytes(self) -> int:
        """Of device memory, for weights and embedding tables."""

    @property
    def scratch_bytes(self) -> int:
        """Of device memory, for all buckets that no forward is using."""

def embed(
    ids: Ints,
    positions: Ints,
    token_types: Ints | None,
    word: Floats,
    position: Floats,
    token_type: Floats | None,
    weight: Floats,
    bias: Floats,
    *,
    eps: float,
    precision: str,
) -> tuple[Floats, Bytes]:
    """LN(word[id] + position[p] (+ token_type[s])): [T] → [T, D] in float32, and raw."""

class Linear:
    """act(x Wᵀ + b) with the weight [N, K] packed once."""

    def __init__(
        self,
        weight: Floats,
        bias: Floats,
        *,
        precision: str,
        channel_shift: Floats | None = None,
        outlier_channels: Ints | None = None,
    ) -> None:
        """``channel_shift`` [K] and ``outlier_channels`` [outlier_channels(K)]: for int8 of more than 64 rows only.

        With them ``bias`` is b + channel_shift Wᵀ.
        """

    def quantize_activations(self, x: Bytes) -> tuple[Bytes, NDArray[np.uint16]]:
        """W8A8's packed A of raw [T, K]: rows [T, *], and the groups' scales [groups, T] as bf16 bits.

        See csrc/cuda/linear/int8_groups.cuh.
        """

    def __call__(
        self,
        x: Bytes,
        activation: str = "none",
        *,
        gather: Ints | None = None,
        bucket_rows: int | None = None,
        split_k: int = 1,
    ) -> tuple[Floats, Bytes]:
        """Raw [*, K] → [T, N] in float32, and raw; ``gather``: which rows of x. ``bucket_rows`` chooses the CTA tile.

        With split-K, [split_k · T, N]: each split's partial x Wᵀ, and nothing raw.
        """

    def add_layer_norm(
        self,
        x: Bytes,
        residual: Floats,
        weight: Floats,
        bias: Floats,
        *,
        eps: float,
        gather: Ints | None = None,
        bucket_rows: int | None = None,
    ) -> tuple[Floats, Bytes]:
        """LN(x Wᵀ + b + residual) in one kernel: raw [*, K] and [*, N] → [T, N] in float32, and raw.

        ``gather``: which rows of x and residual. ``bucket_rows`` chooses the CTA tile. ValueError where a
        cluster of blocks cannot hold such rows.
        """

    def split_k(self, bucket_rows: int) -> int:
        """The split-K that fills the device."""

def attention(
    qkv: Bytes, cu_seqlens: Ints, heads: int, head_size: int, *, precision: str, bucket_rows: int | None = None
) -> tuple[Bytes, Floats]:
    """softmax(q kᵀ / √d) v inside each sequence: raw [T, 3D] → raw [T, D], and the probabilities, flat."""

def add_layer_norm(
    x: Floats,
    x_bias: Floats | None,
    residual: Floats | None,
    gather: Ints | None,
    weight: Floats,
    bias: Floats,
    *,
    eps: float,
    precision: str,
) -> tuple[Floats, Bytes]:
    """LN(sum of x + x_bias + residual[gather]): x [split_k, T, D] → [T, D] in float32, and raw."""
