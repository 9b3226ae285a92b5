"""The bytes of packed weights: they are kept on disk, so a change of them must change the layout's id."""

from __future__ import annotations

import re
import zlib

import numpy as np
import pytest

from distilfast import _cpu
from distilfast.backends import cpu

# N and K straddle panels of 16, 24 and 48 columns and k-blocks of 256 and 384; K is odd in ffn_out.
WIDTH, FFN, LABELS = 260, 401, 3
# The layout id of a model's linears, with the head's where it differs, and the CRC-32 of the bytes. Another CRC is
# another layout: raise the version beside the kernel, or `packed_weights_version` in csrc/cpu/model.cpp, and enter the
# new id and CRC here; the test prints them.
KNOWN = {
    "f32/nr48/v1": 0x5F5CA373,
    "f32/nr24/v1": 0xD22D969B,
    "f32/unblocked/nr16/v1": 0xD38594F1,
    "3xbf16/tiles/nr32/v1": 0x8F5752CD,
    "2xbf16/tiles/nr32/v1": 0x587D3E05,
    "bf16/nr48/v2": 0xC63F1AAB,
    "bf16/nr24/v2": 0x478C1FAE,
    "bf16/unblocked/nr16/v1": 0x5053361F,
    "bf16/tiles/nr32/v1": 0x20D2C1D9,
    "int8/rotated/nr48/v2,head=bf16/nr48/v2": 0x2ABA8147,
    "int8/rotated/nr24/v2,head=bf16/nr24/v2": 0xFE1E4E02,
    "int8/rotated/unblocked/nr16/v2,head=bf16/unblocked/nr16/v1": 0xE3A0F647,
    "int8/rotated/tiles/nr32/v2,head=bf16/tiles/nr32/v1": 0x482E6E4D,
}
# The same with an FFN of 768, whose groups are of 256 and not of 64, without outlier channels.
KNOWN_768 = {
    "int8/rotated/nr48/v2": 0x79E3A17E,
    "int8/rotated/nr24/v2": 0x117B1C88,
    "int8/rotated/unblocked/nr16/v2": 0x932AD1BC,
    "int8/rotated/tiles/nr32/v2": 0xD2EFC133,
}


@pytest.fixture(params=cpu.PRECISIONS)
def precision(request: pytest.FixtureRequest) -> str:
    """Each type of operand."""
    return str(request.param)


def pattern(*shape: int) -> np.ndarray:
    """Multiples of 1/512, which each precision rounds alike on every machine; no two neighbours are equal."""
    return ((np.arange(np.prod(shape)) * 7919 % 1001 - 500) / 512).astype(np.float32).reshape(shape)


def encoder(
    isa: str, precision: str, packed: np.ndarray | None = None, threads: int = 2, ffn: int = FFN
) -> _cpu.Encoder:
    linears = {
        "layer.0.qkv": (3 * WIDTH, WIDTH),
        "layer.0.attention_out": (WIDTH, WIDTH),
        "layer.0.ffn_in": (ffn, WIDTH),
        "layer.0.ffn_out": (WIDTH, ffn),
        "head.0": (LABELS, WIDTH),
    }
    tensors = {"embed.word": pattern(9, WIDTH), "embed.position": pattern(7, WIDTH)}
    for name, (n, k) in linears.items():
        tensors |= {f"{name}.weight": pattern(n, k), f"{name}.bias": pattern(n)}
        outliers = np.arange(_cpu.outlier_channels(k), dtype=np.float32)
        tensors |= {f"{name}.channel_shift": pattern(k), f"{name}.outlier_channels": outliers}
    for name in ("embed.norm", "layer.0.attention_norm", "layer.0.output_norm"):
        tensors |= {f"{name}.weight": pattern(WIDTH), f"{name}.bias": pattern(WIDTH)}
    return _cpu.Encoder(
        width=WIDTH,
        heads=4,
        layers=1,
        ffn=ffn,
        eps=1e-12,
        activation="gelu",
        head=[(LABELS, "none", False)],
        tensors=tensors,
        isa=isa,
        precision=precision,
        packed=packed,
        threads=threads,
    )


def test_a_layout_id_has_its_known_bytes(isa: str, precision: str) -> None:
    layout, head, weights = _cpu.packed_layout(isa, precision).split(",")
    assert weights == "weights=v1"
    if head != f"head={layout}":
        layout += f",{head}"
    crc = zlib.crc32(encoder(isa, precision).packed)
    assert KNOWN.get(layout) == crc, f"{layout!r}: 0x{crc:08X},"


def test_int8_packs_groups_of_256(isa: str) -> None:
    layout, *_ = _cpu.packed_layout(isa, "int8").split(",")
    crc = zlib.crc32(encoder(isa, "int8", ffn=768).packed)
    assert KNOWN_768.get(layout) == crc, f"{layout!r}: 0x{crc:08X},"


def test_a_layout_id_has_no_prose(isa: str, precision: str) -> None:
    """Kernels that write the same bytes share an id: without AMX fp32 and bf16x3 do."""
    layout = _cpu.packed_layout(isa, precision)
    assert re.fullmatch(r"[0-9a-z/=,]+", layout)
    if "amx" not in isa:
        assert _cpu.packed_layout(isa, "bf16x3") == _cpu.packed_layout(isa, "fp32")


def test_every_byte_is_packed(isa: str, precision: str) -> None:
    """No byte, padding included, keeps what was in memory before."""
    first = encoder(isa, precision).packed.copy()
    assert encoder(isa, precision, threads=1).packed.tobytes() == first.tobytes()


def test_packed_weights_are_read_in_place_with_the_same_answers(isa: str, precision: str) -> None:
    packs = encoder(isa, precision)
    kept = packs.packed.copy()
    reads = encoder(isa, precision, kept)
    assert np.shares_memory(reads.packed, kept) and not reads.packed.flags.writeable
    ids, places = np.array([1, 5, 8, 0], np.int32), np.arange(4, dtype=np.int32)
    ends, rows = np.array([0, 4], np.int32), np.array([0, 2], np.int32)
    answers = [each.forward(ids, places, None, ends, rows, True, None) for each in (packs, reads)]
    for one, other in zip(*answers, strict=True):
        assert one.tobytes() == other.tobytes()


def test_packed_weights_of_another_size_are_refused(isa: str, precision: str) -> None:
    packed = encoder(isa, precision).packed
    with pytest.raises(ValueError, match="do not have the model's size"):
        encoder(isa, precision, packed[:-1])


def test_a_checksum_needs_a_contiguous_block() -> None:
    with pytest.raises(ValueError, match="contiguous"):
        _cpu.checksum(np.zeros((8, 8), np.float32)[:, ::2])
