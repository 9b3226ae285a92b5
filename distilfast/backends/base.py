"""The one door between the engine and a way to run the encoder."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from distilfast.batch import PackedBatch
from distilfast.heads import Head
from distilfast.weights import Weights

Trace = dict[str, np.ndarray]
"""Every named intermediate of one forward, in the order of computation:

``embed`` [T, D]; for each layer i ``layer.<i>.qkv`` [T, 3D], ``.probabilities`` (each sequence's [H, L, L], flat,
end to end), ``.context`` [T, D], ``.attention_out`` [T, D], ``.attention_norm`` [T, D], ``.ffn_in`` [T, F] (after
the activation), ``.ffn_out`` [T, D], ``.output`` [T, D]; and for each linear j of the head ``head.<j>`` [R, N].
"""


class Backend(Protocol):
    """One way to run the encoder. Chosen once, at load; owns its packed weights and its scratch."""

    name: str  # "cpu", "reference"
    detail: str  # "avx512 fp32, 2 threads": what `info` and every benchmark row print

    def load(self, weights: Weights, head: Head, precision: str) -> None:
        """Take the weights over; raises BackendError for a precision this backend does not have.

        Nobody has looked at their values yet: ``weights.check_finite()`` does, unless what was packed of them is known.
        """
        ...

    def forward(
        self, batch: PackedBatch, rows: np.ndarray | None, hidden: bool, trace: Trace | None = None
    ) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Run the encoder and its head.

        ``rows`` int32 [R], strictly increasing: the token rows the head reads; None where there is no head.
        ``hidden``: whether the last hidden state of all T rows is wanted too; without it, rows that no one needs
        are not computed. ``trace`` is filled with every intermediate, all rows computed.
        Returns (last hidden state [T, D] or None, head output [R, N] or None).
        """
        ...

    def info(self) -> dict[str, object]:
        """What only this backend has to say: its ISA, threads, the bytes it holds."""
        ...
