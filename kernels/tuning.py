"""Which tile a kernel runs with: a table by operation, operand type, GPU family and token bucket.

Nothing is tuned at run time. ``python -m distilfast.kernels.tune`` measures candidates on this GPU and prints entries
for the table. The tile of a bucket is fixed, so the bits of an answer do not depend on the rest of its batch.

Families: ``sm_80`` is Ampere and Ada (and consumer Blackwell, whose shared memory is as small, 99 KiB a program),
``sm_90`` Hopper and data-centre Blackwell (227 KiB), ``gfx942`` AMD's CDNA 3 (64 KiB).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

FAMILIES = ("sm_80", "sm_90", "gfx942")
LARGEST_BUCKET = 65_536
"""The most tokens of one forward; a larger batch takes several. 2^16 tokens of 3,072 columns fit 32-bit offsets."""


@dataclass(frozen=True)
class Tile:
    """One program computes block_m rows by block_n columns (in attention: keys), in k-blocks of block_k.

    ``split_k``: how many programs share K. ``product``: how fp32 operands are multiplied (16-bit products are exact).
    ``programs``: of a persistent grid over tensor descriptors; 0: one program for each block.
    """

    block_m: int
    block_n: int
    block_k: int = 0
    num_warps: int = 4
    num_stages: int = 2
    split_k: int = 1
    product: str = "ieee"
    programs: int = 0

    def for_depth(self, in_size: int) -> Tile:
        """This tile with the largest split_k, up to its own, that divides K into whole k-blocks."""
        possible = [s for s in range(1, self.split_k + 1) if in_size % (s * self.block_k) == 0]
        return replace(self, split_k=possible[-1] if possible else 1)


Table = tuple[tuple[int, Tile], ...]
"""(most tokens, tile), in ascending order."""

_ANY = LARGEST_BUCKET

_SM_90_LINEAR: Table = (
    (16, Tile(16, 16, 128, num_warps=2, num_stages=6)),
    (32, Tile(32, 32, 128, num_warps=4, num_stages=5)),
    (64, Tile(64, 32, 128, num_warps=4, num_stages=4)),
    (256, Tile(64, 64, 64, num_warps=4, num_stages=4)),
    (1024, Tile(64, 128, 64, num_warps=4, num_stages=4)),
)
# 16-bit operands: fp16 and bf16. `linear_split_k` is the linear before add_layer_norm, which may use split-K;
# `linear_gelu` has entries of its own only where those of `linear` would spill.
_HALF: dict[str, dict[str, Table]] = {
    "sm_90": {
        "linear": (
            *_SM_90_LINEAR,
            (4096, Tile(128, 128, 64, num_warps=8, num_stages=4)),
            (_ANY, Tile(128, 256, 64, num_warps=8, num_stages=4)),
        ),
        # erf needs registers of its own: with a 128 × 256 accumulator it would spill.
        "linear_gelu": (*_SM_90_LINEAR, (_ANY, Tile(128, 128, 64, num_warps=8, num_stages=4))),
        "linear_split_k": (
            (16, Tile(16, 32, 64, num_warps=2, num_stages=4, split_k=8)),
            (32, Tile(32, 32, 64, num_warps=4, num_stages=4, split_k=8)),
            (64, Tile(64, 32, 64, num_warps=4, num_stages=4, split_k=6)),
            (256, Tile(64, 32, 64, num_warps=4, num_stages=4, split_k=4)),
            (1024, Tile(64, 64, 64, num_warps=4, num_stages=4)),
            (4096, Tile(128, 128, 64, num_warps=8, num_stages=4)),
            (_ANY, Tile(128, 256, 64, num_warps=8, num_stages=4)),
        ),
        # Four warps for 32 rows would take a quarter more instructions, and triton 3.6 would spill.
        "attention": (
            (64, Tile(16, 32, num_warps=2, num_stages=2)),
            (512, Tile(32, 64, num_warps=2, num_stages=2)),
            (_ANY, Tile(64, 64, num_warps=4, num_stages=3)),
        ),
    },
    "sm_80": {
        "linear": (
            (16, Tile(16, 16, 128, num_warps=2, num_stages=5)),
            (32, Tile(32, 32, 64, num_warps=4, num_stages=5)),
            (64, Tile(64, 32, 64, num_warps=4, num_stages=4)),
            (256, Tile(64, 64, 64, num_warps=4, num_stages=4)),
            (1024, Tile(64, 128, 32, num_warps=4, num_stages=4)),
            (_ANY, Tile(128, 128, 32, num_warps=8, num_stages=4)),
        ),
        "linear_split_k": (
            (16, Tile(16, 32, 64, num_warps=2, num_stages=4, split_k=8)),
            (32, Tile(32, 32, 64, num_warps=4, num_stages=4, split_k=8)),
            (64, Tile(64, 32, 64, num_warps=4, num_stages=4, split_k=6)),
            (256, Tile(64, 32, 64, num_warps=4, num_stages=4, split_k=4)),
            (1024, Tile(64, 64, 64, num_warps=4, num_stages=3)),
            (_ANY, Tile(128, 128, 32, num_warps=8, num_stages=4)),
        ),
        "attention": (
            (64, Tile(16, 32, num_warps=2, num_stages=2)),
            (512, Tile(32, 64, num_warps=4, num_stages=2)),
            (_ANY, Tile(64, 64, num_warps=4, num_stages=2)),
        ),
    },
    "gfx942": {
        "linear": (
            (16, Tile(16, 16, 128, num_warps=2)),
            (32, Tile(32, 32, 128, num_warps=4)),
            (64, Tile(64, 32, 128, num_warps=4)),
            (256, Tile(64, 64, 64, num_warps=4)),
            (1024, Tile(64, 128, 64, num_warps=4)),
            (_ANY, Tile(128, 128, 64, num_warps=8)),
        ),
        "linear_split_k": (
            (16, Tile(16, 32, 64, num_warps=2, split_k=8)),
            (32, Tile(32, 32, 64, num_warps=4, split_k=8)),
            (64, Tile(64, 32, 64, num_warps=4, split_k=6)),
            (256, Tile(64, 32, 64, num_warps=4, split_k=4)),
            (1024, Tile(64, 64, 64, num_warps=4)),
            (_ANY, Tile(128, 128, 64, num_warps=8)),
        ),
        "attention": (
            (64, Tile(16, 32, num_warps=2)),
            (512, Tile(32, 64, num_warps=4)),
            (_ANY, Tile(64, 64, num_warps=4)),
        ),
    },
}

# On a GPU with tensor descriptors, 16-bit operands from FEWEST_FOR_DESCRIPTORS tokens on. A multiprocessor has room for
# one program of these. Chosen by an account for 132 multiprocessors, not measured: the longest of the time that the
# matrix instructions take, with the last, incomplete round; of a multiprocessor's loads at 64 bytes a clock; and of all
# loads from L2 at an assumed 6 TB/s, which decides: 128 × 256 loads a quarter less than 128 × 128 (kernels/README.md).
FEWEST_FOR_DESCRIPTORS = 1024
_LARGE = Tile(128, 256, 64, num_warps=8, num_stages=4)
_DESCRIPTORS: dict[str, Table] = {
    "linear": ((_ANY, _LARGE),),
    "linear_gelu": ((_ANY, _LARGE),),
    "linear_split_k": ((2048, Tile(128, 128, 64, num_warps=8, num_stages=4)), (_ANY, _LARGE)),
}

# fp32 operands: two TF32 terms of each, or three of bf16, need more registers, and fp32 itself twice the shared memory
# of 16 bits.
_FP32: dict[str, Table] = {
    "linear": (
        (16, Tile(16, 16, 64, num_warps=2, num_stages=4)),
        (64, Tile(32, 32, 64, num_warps=4, num_stages=3)),
        (512, Tile(64, 64, 32, num_warps=4, num_stages=3)),
        (_ANY, Tile(128, 64, 32, num_warps=8, num_stages=3)),
    ),
    "linear_split_k": (
        (16, Tile(16, 32, 64, num_warps=2, num_stages=3, split_k=8)),
        (64, Tile(32, 32, 64, num_warps=4, num_stages=3, split_k=6)),
        (512, Tile(64, 32, 32, num_warps=4, num_stages=3, split_k=4)),
        (_ANY, Tile(128, 64, 32, num_warps=8, num_stages=3)),
    ),
    "attention": (
        (64, Tile(16, 32, num_warps=2, num_stages=1)),
        (_ANY, Tile(64, 32, num_warps=4, num_stages=1)),
    ),
}
_FEWEST_ROWS = 64  # attention for a head's rows: a sequence has few of them, so the tile should have few rows too


def family(capability: tuple[int, int]) -> str | None:
    """The family of an NVIDIA GPU of this compute capability; None for one that is too old."""
    if capability < (8, 0):
        return None
    return "sm_90" if capability[0] in (9, 10) else "sm_80"


def tile(op: str, gpu: str, is_half: bool, rows: int, multiprocessors: int = 0) -> Tile:
    """The tile of ``op`` for a bucket of ``rows`` on a GPU of a family.

    ``op``: "linear", "linear_gelu", "linear_split_k" or "attention"; ``is_half``: fp16 or bf16 operands.
    ``multiprocessors``: of a GPU whose tensor descriptors are to be used; 0 for others.
    """
    if multiprocessors and is_half and op in _DESCRIPTORS and rows >= FEWEST_FOR_DESCRIPTORS:
        found = next(entry for most, entry in _DESCRIPTORS[op] if rows <= most)
        return replace(found, programs=multiprocessors)
    tables = _HALF[gpu] if is_half else _FP32
    table = tables["linear" if op == "linear_gelu" and op not in tables else op]
    found = next(entry for most, entry in table if rows <= most)
    if is_half:
        return found
    if gpu.startswith("gfx"):  # its matrix instructions take fp32 operands; its shared memory holds two stages
        return replace(found, num_stages=min(found.num_stages, 2))
    if op != "attention":
        return replace(found, product="tf32x3")
    if gpu == "sm_80":  # three terms of each operand would spill
        found = replace(found, block_m=min(found.block_m, 32), num_warps=4)
    return replace(found, product="bf16x6")


def rows_tile(gpu: str, is_half: bool) -> Tile:
    """The tile of attention for the rows that a head reads: each may belong to another sequence."""
    return tile("attention", gpu, is_half, _FEWEST_ROWS)
