"""The encoder on the CPU, compiled from csrc/. Arrays are C-contiguous; nothing is converted or checked twice.

T tokens, B sequences, R rows read by the head, D hidden size, H heads. Errors are ValueError with one sentence.
"""

from collections.abc import Collection, Mapping

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]
Bytes = NDArray[np.uint8]

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
        tensors: Mapping[str, Floats],
        isa: str,
        precision: str,
        packed: Bytes | None,
        threads: int,
    ) -> None:
        """``head``: columns, activation, and whether LayerNorm follows, of each linear; ``tensors``: canonical names.

        ``packed``: what another encoder of the same shape, ``packed_layout`` and tensors had as ``packed``; then the
        linears are not looked up in ``tensors``, and nothing is copied. None: pack them.
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
        """See ``distilfast.backends.cpu.CpuBackend.forward``. Indices outside their tables are not caught here."""

    @property
    def isa(self) -> str: ...
    @property
    def arithmetic(self) -> str:
        """How the ISA computes linears in this precision."""

    @property
    def attention_arithmetic(self) -> str:
        """How it computes attention."""

    @property
    def threads(self) -> int: ...
    @property
    def packed_bytes(self) -> int:
        """Of the linears' weights; the embedding tables stay where they were."""

    @property
    def packed(self) -> Bytes:
        """All packed linears, flat and read-only, where they lie."""

    @property
    def scratch_bytes(self) -> int:
        """Of all arenas that no forward is using."""

class Urgent:
    """A context manager: within it, what this thread computes goes before what other threads of the process compute.

    These finish the tasks that they have begun, and go on when no thread is urgent. It concerns engines of two threads
    or more, which share a pool.
    """

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...

class Head:
    """A head by itself, with the bits that it has in an ``Encoder``; safe to call from several threads at once."""

    def __init__(
        self,
        *,
        width: int,
        eps: float,
        head: list[tuple[int, str, bool]],
        tensors: Mapping[str, Floats],
        isa: str,
        precision: str,
        threads: int,
    ) -> None:
        """See ``Encoder``; only the tensors of the head are looked up."""

    def forward(self, x: Floats, columns: Ints | None = None) -> Floats:
        """x [R, D], rows of the last hidden state, to [R, N], or to [R, C] for ``columns`` [C]."""

def packed_layout(isa: str, precision: str) -> str:
    """The id of the layout of packed weights, ``f32/nr48/v1,…``: with the checkpoint it decides all their bytes."""

def checksum(block: Bytes | Floats | bytes, *, threads: int = 1) -> int:
    """A 64-bit checksum of a contiguous buffer, as fast as it can be read; the same with any number of threads."""

def isas() -> list[tuple[str, str | None]]:
    """Every ISA there is, the fastest first, and why it cannot run here, as the end of a sentence, or None."""

def kernel_identities() -> dict[str, dict[tuple[str, str], tuple[int, ...]]]:
    """{isa: {(operation, precision): identity}} of every compiled ISA; equal identities are the same functions.

    Embed and add_layer_norm have the one precision fp32.
    """

def outlier_channels(k: int) -> int:
    """How many channels of K int8 keeps in fp32."""

def available_cores() -> int:
    """Cores that the affinity mask and the cgroup's CPU quota allow; at least 1."""

def naive_matmul(a: Floats, b: Floats, block: int) -> Floats:
    """a bᵀ: [M, K] · [N, K] → [M, N], in the order of summation of ``distilfast.arithmetic``."""

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
    isa: str,
    threads: int = 1,
) -> Floats:
    """LN(word[id] + position[p] (+ token_type[s])): [T] → [T, D]."""

class Linear:
    """act(x Wᵀ + b) with the weight [N, K] packed once; int8 needs ``channel_shift`` [K], ``outlier_channels``."""

    def __init__(
        self,
        weight: Floats,
        bias: Floats,
        channel_shift: Floats | None = None,
        outlier_channels: Ints | None = None,
        *,
        isa: str,
        precision: str = "fp32",
        threads: int = 1,
    ) -> None: ...
    def __call__(self, x: Floats, activation: str = "none") -> Floats:
        """[T, K] → [T, N]; ``activation``: none, gelu, relu, tanh."""

def attention(
    qkv: Floats,
    cu_seqlens: Ints,
    heads: int,
    *,
    isa: str,
    precision: str = "fp32",
    threads: int = 1,
    probabilities: bool = True,
) -> tuple[Floats, Floats | None]:
    """softmax(q kᵀ / √d) v inside each sequence: [T, 3D] → [T, D], and the probabilities, flat, where wanted."""

def add_layer_norm(
    x: Floats, residual: Floats, weight: Floats, bias: Floats, *, eps: float, isa: str, threads: int = 1
) -> Floats:
    """LN(x + residual): [T, D] → [T, D]."""
