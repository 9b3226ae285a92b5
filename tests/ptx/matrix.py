"""The matrix instructions: where the elements of a fragment lie, and the model of the product.

Of C [16, 8] and A [16, K] lane l has row l / 4, then row l / 4 + 8; of B [K, 8] column l / 4. A word of A or B has the
elements from (l % 4) times its number of elements on, then those K / 2 further.
"""

from __future__ import annotations

import numpy as np


def multiply_accumulate(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """C + A B, summed in float64 and rounded to float32 once: a model, as tensor cores' own rounding is not given."""
    return (c.astype(np.float64) + a.astype(np.float64) @ b.astype(np.float64)).astype(np.float32)


def multiply_integers(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> np.ndarray:
    """C + A B, wrapping at 32 bits."""
    return (c.astype(np.int64) + a.astype(np.int64) @ b.astype(np.int64)).astype(np.int32)


def matrix_a(words: np.ndarray, element: np.dtype) -> np.ndarray:
    """[warps, 32, 4] words to [warps, 16, K]."""
    pieces = np.ascontiguousarray(words).view(element).reshape(len(words), 8, 4, 2, 2, -1)  # g, q, K half, row half
    return pieces.transpose(0, 4, 1, 3, 2, 5).reshape(len(words), 16, -1)


def matrix_b(words: np.ndarray, element: np.dtype) -> np.ndarray:
    """[warps, 32, 2] words to [warps, K, 8]."""
    pieces = np.ascontiguousarray(words).view(element).reshape(len(words), 8, 4, 2, -1)
    return pieces.transpose(0, 3, 2, 4, 1).reshape(len(words), -1, 8)


def matrix_c(values: np.ndarray) -> np.ndarray:
    """[warps, 32, 4] to [warps, 16, 8]."""
    return values.reshape(len(values), 8, 4, 2, 2).transpose(0, 3, 1, 2, 4).reshape(len(values), 16, 8)


def lanes_of_c(matrix: np.ndarray) -> np.ndarray:
    """The inverse of ``matrix_c``."""
    return matrix.reshape(len(matrix), 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(len(matrix), 32, 4)


def lanes_of_rows(rows: np.ndarray, transposed: bool) -> np.ndarray:
    """ldmatrix: [warps, matrices, 8, 16 bytes] to [warps, 32, matrices] words."""
    elements = np.ascontiguousarray(rows).view(np.uint16)
    if transposed:
        elements = elements.transpose(0, 1, 3, 2)
    words = np.ascontiguousarray(elements).view(np.uint32)
    return words.reshape(len(rows), rows.shape[1], 32).transpose(0, 2, 1)
