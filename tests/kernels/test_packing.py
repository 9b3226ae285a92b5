"""The bytes of packed weights: they are kept on disk, so a change of them must change the layout's name."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest

from distilfast import _cpu
from distilfast.backends import cpu

# Rows and columns straddle panels of 16, 24 and 48 columns and blocks of 256 and of 384 of K; K is odd in ffn_out.
WIDTH, FFN, LABELS = 260, 401, 3
# What `packed_layout` says, and the CRC-32 of the bytes. Another CRC is another packing: raise `packing` beside the
# kernel, or `parts_layout` in csrc/cpu/model.cpp, and enter both here anew; this test prints them.
KNOWN = {
    "bf16 products, panels of 32, packing 1, parts 1": 0x20D2C1D9,
    "bf16x3 by fp32 fma, which is more exact and faster here, panels of 24, packing 1, parts 1": 0xD22D969B,
    "bf16x3 by fp32 fma, which is more exact and faster here, panels of 48, packing 1, parts 1": 0x5F5CA373,
    "bf16x3 by fp32 operands, summed in fp64, which is more exact, panels of 16, packing 1, parts 1": 0xD38594F1,
    "bf16x3 products, panels of 32, packing 1, parts 1": 0x587D3E05,
    "fp32 as six bf16 products, panels of 32, packing 1, parts 1": 0x8F5752CD,
    "bf16 dot product (vdpbf16ps), panels of 48, packing 1, parts 1": 0x247D5F76,
    "bf16 operands, summed in fp64, panels of 16, packing 1, parts 1": 0x5053361F,
    "bf16 operands, widened to fp32 fma, panels of 24, packing 1, parts 1": 0x08A3EB4D,
    "bf16 operands, widened to fp32 fma, panels of 48, packing 1, parts 1": 0x247D5F76,
    "fp32 fma, panels of 24, packing 1, parts 1": 0xD22D969B,
    "fp32 fma, panels of 48, packing 1, parts 1": 0x5F5CA373,
    "fp32 operands, summed in fp64, panels of 16, packing 1, parts 1": 0xD38594F1,
    "int8 dot product (vpdpbusd), panels of 24, packing 3; head": 0x7E5D2E49,
    "int8 dot product (vpdpbusd), panels of 48, packing 3; head": 0x4C6212BB,
    "int8 products, panels of 32, packing 2; head": 0x30CDA663,
    "int8 operands, summed in fp64, panels of 16, packing 2; head": 0x810BC001,
    "int8 operands, widened to int16 (vpmaddwd), panels of 24, packing 3; head": 0x7E5D2E49,
    "int8 operands, widened to int16 (vpmaddwd), panels of 48, packing 3; head": 0x4C6212BB,
}


@pytest.fixture(params=cpu.PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    """Each type of operand."""
    return str(request.param)


def pattern(*shape: int) -> np.ndarray:
    """Multiples of 1/512, which every precision rounds alike on every machine; no two neighbours are the same."""
    return ((np.arange(np.prod(shape)) * 7919 % 1001 - 500) / 512).astype(np.float32).reshape(shape)


def encoder(isa: str, precision: str, packed: np.ndarray | None = None, threads: int = 2) -> _cpu.Encoder:
    linears = {
        "layer.0.qkv": (3 * WIDTH, WIDTH),
        "layer.0.attention_out": (WIDTH, WIDTH),
        "layer.0.ffn_in": (FFN, WIDTH),
        "layer.0.ffn_out": (WIDTH, FFN),
        "head.0": (LABELS, WIDTH),
    }
    tensors = {"embed.word": pattern(9, WIDTH), "embed.position": pattern(7, WIDTH)}
    for name, (n, k) in linears.items():
        tensors |= {f"{name}.weight": pattern(n, k), f"{name}.bias": pattern(n)}
        tensors |= {f"{name}.centre": pattern(k), f"{name}.wide": np.arange(_cpu.wide_channels(k), dtype=np.float32)}
    for name in ("embed.norm", "layer.0.attention_norm", "layer.0.output_norm"):
        tensors |= {f"{name}.weight": pattern(WIDTH), f"{name}.bias": pattern(WIDTH)}
    return _cpu.Encoder(
        width=WIDTH,
        heads=4,
        layers=1,
        ffn=FFN,
        eps=1e-12,
        activation="gelu",
        head=[(LABELS, "none", False)],
        tensors=tensors,
        isa=isa,
        precision=precision,
        packed=packed,
        threads=threads,
    )


def test_the_bytes_of_a_layout_are_the_known_ones(isa: str, precision: str) -> None:
    layout = re.sub(r" \((simulated|tdp\w+)\)", "", _cpu.packed_layout(isa, precision))
    if precision == "int8":  # whose head is bf16, in a layout that stands above
        layout, head, rest = layout.partition("; head")
        assert rest.removeprefix(" ") in KNOWN
        layout += head
    crc = zlib.crc32(encoder(isa, precision).packed)
    assert KNOWN.get(layout) == crc, f"{layout!r}: 0x{crc:08X},"


def test_every_byte_is_packed(isa: str, precision: str) -> None:
    """Not left as memory was, between the parts and behind them either: the second image lies where the first did."""
    first = encoder(isa, precision).packed.copy()
    assert encoder(isa, precision, threads=1).packed.tobytes() == first.tobytes()


def test_packed_weights_are_read_in_place_and_answer_alike(isa: str, precision: str) -> None:
    packs = encoder(isa, precision)
    kept = packs.packed.copy()
    reads = encoder(isa, precision, kept)
    assert np.shares_memory(reads.packed, kept) and not reads.packed.flags.writeable
    ids, places = np.array([1, 5, 8, 0], np.int32), np.arange(4, dtype=np.int32)
    ends, rows = np.array([0, 4], np.int32), np.array([0, 2], np.int32)
    answers = [each.forward(ids, places, None, ends, rows, True, None) for each in (packs, reads)]
    for one, other in zip(*answers, strict=True):
        assert one.tobytes() == other.tobytes()


def test_an_image_of_another_size_is_refused(isa: str, precision: str) -> None:
    packed = encoder(isa, precision).packed
    with pytest.raises(ValueError, match="does not have the model's size"):
        encoder(isa, precision, packed[:-1])


def test_a_checksum_needs_a_contiguous_block() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        _cpu.checksum(np.zeros((8, 8), np.float32)[:, ::2])
