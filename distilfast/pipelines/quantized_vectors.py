"""Vectors in one byte or one bit a number, as sentence-transformers stores them."""

from __future__ import annotations

import numpy as np

from distilfast.arguments import one_of
from distilfast.errors import InputError

PRECISIONS = ("float32", "int8", "uint8", "binary", "ubinary")


def quantized(vectors: np.ndarray, precision: str) -> np.ndarray:
    """``vectors`` [B, D] as "float32", "int8" or "uint8" [B, D], or "binary" or "ubinary" [B, ceil(D / 8)].

    "uint8": 256 steps from the lowest to the highest of each column, so at least two vectors are needed; "int8" is the
    same less 128. "ubinary": a bit for each number, set where it is positive, the first the highest of its byte;
    "binary" is the same less 128. Raises InputError.
    """
    one_of("precision", precision, PRECISIONS)
    if precision == "float32":
        return vectors
    if precision.endswith("binary"):
        packed = np.packbits(vectors > 0, axis=-1)
        return packed if precision == "ubinary" else (packed.astype(np.int16) - 128).astype(np.int8)
    if len(vectors) == 1:
        raise InputError(f"precision {precision!r} takes its range from the texts; at least two are needed.")
    levels = _levels(vectors.astype(np.float32, copy=False)) if len(vectors) else vectors
    return levels.astype(np.uint8) if precision == "uint8" else (levels - 128).astype(np.int8)


def _levels(vectors: np.ndarray) -> np.ndarray:
    """0 to 255, in float32 as the library computes them."""
    low = vectors.min(axis=0)
    step = (vectors.max(axis=0) - low) / 255
    return np.clip(np.floor((vectors - low) / np.where(step == 0, 1, step)), 0, 255)
