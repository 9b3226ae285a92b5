"""The encoder on the CPU, compiled from csrc/. Arrays are C-contiguous; nothing is converted or checked twice.

T tokens, B sequences, R rows read by the head, D hidden size, H heads. Errors are ValueError with one sentence.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
Ints = NDArray[np.int32]

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
        isa: str,
        precision: str,
        threads: int,
    ) -> None:
        """``head``: columns, activation and "is LayerNorm behind it?" of each linear; ``tensors``: canonical names."""

    def forward(
        self,
        ids: Ints,
        positions: Ints,
        token_types: Ints | None,
        cu_seqlens: Ints,
        rows: Ints | None,
        hidden: bool,
        trace: dict[str, Floats] | None,
    ) -> tuple[Floats | None, Floats | None]:
        """See ``distilfast.backends.base.Backend.forward``. Indices outside their tables are not caught here."""

    @property
    def isa(self) -> str: ...
    @property
    def arithmetic(self) -> str:
        """How the ISA computes linears in this precision."""

    @property
    def threads(self) -> int: ...
    @property
    def packed_bytes(self) -> int:
        """Of the linears' weights; the embedding tables stay where they were."""

    @property
    def scratch_bytes(self) -> int:
        """Of all arenas that no forward is using."""

def isas() -> list[tuple[str, str | None]]:
    """Every ISA there is, the fastest first, and why it cannot run here, as the end of a sentence, or None."""

def wide_channels(k: int) -> int:
    """How many channels of K int8 leaves as they are."""

def available_cores() -> int:
    """Cores that the affinity mask and the cgroup's CPU quota allow; at least 1."""

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
    """act(x Wᵀ + b) with the weight [N, K] packed once; int8 needs centre [K] and wide [wide_channels(K)]."""

    def __init__(
        self,
        weight: Floats,
        bias: Floats,
        centre: Floats | None = None,
        wide: Ints | None = None,
        *,
        isa: str,
        precision: str = "fp32",
        threads: int = 1,
    ) -> None: ...
    def __call__(self, x: Floats, activation: str = "none") -> Floats:
        """[T, K] → [T, N]; ``activation``: none, gelu, relu, tanh."""

def attention(qkv: Floats, cu_seqlens: Ints, heads: int, *, isa: str, threads: int = 1) -> tuple[Floats, Floats]:
    """softmax(q kᵀ / √d) v inside each sequence: [T, 3D] → [T, D], and the probabilities, flat."""

def add_layer_norm(
    x: Floats, residual: Floats, weight: Floats, bias: Floats, *, eps: float, isa: str, threads: int = 1
) -> Floats:
    """LN(x + residual): [T, D] → [T, D]."""
