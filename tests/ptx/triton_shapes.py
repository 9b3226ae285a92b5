"""The sizes for which the Triton kernels are compiled and run; without torch, which only the compiler needs."""

ROWS, WIDTH, SPLITS = 3, 700, 2
"""Of the LayerNorms: four warps."""
LINEAR = {"even": (21, 24, 320, "gelu"), "ragged": (5, 19, 101, "tanh")}
"""T, N, K and the activation."""
LENGTHS = (34, 1, 8)
TOKENS, SEQUENCES, HEADS, HEAD_SIZE = sum(LENGTHS), len(LENGTHS), 2, 24
