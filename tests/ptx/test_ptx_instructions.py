"""Single instructions against independent truths: exact rationals, and plain loops after the text of the PTX ISA."""

from __future__ import annotations

import struct
from fractions import Fraction

import numpy as np
import pytest

from tests.ptx.machine import Kernel
from tests.ptx.memory import Fault, Global
from tests.ptx.parser import Unsupported, parse

THREADS = 64
HEADER = ".visible .entry kernel(.param .u64 in, .param .u64 out)\n{\n"
POINTERS = """
    .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .f32 %f<40>; .reg .b64 %rd<9>;
    ld.param.u64 %rd1, [in]; ld.param.u64 %rd2, [out]; mov.u32 %r0, %tid.x;
    mul.wide.u32 %rd3, %r0, 16; add.s64 %rd1, %rd1, %rd3; add.s64 %rd2, %rd2, %rd3;
    ld.global.v4.u32 {%r1, %r2, %r3, %r4}, [%rd1];
"""
STORE = "st.global.v4.u32 [%rd2], {%r5, %r6, %r7, %r8}; ret; }"


def run(body: str, words: np.ndarray, shared: int = 0) -> np.ndarray:
    """Each thread has four words in %r1 to %r4, and returns %r5 to %r8."""
    memory = Global()
    words = np.ascontiguousarray(words).view(np.uint32).reshape(-1, 4)
    out = np.zeros((THREADS, 4), np.uint32)
    given, to = memory.add(np.resize(words, (THREADS, 4))), memory.add(out, writable=True)
    declared = ".extern .shared .align 16 .b8 memory[];\n" if shared else ""
    entry = parse(declared + HEADER + POINTERS + body + STORE)
    Kernel(entry, THREADS, shared).run(memory, [struct.pack("Q", each) for each in (given, to)], (1,))
    return memory.result(to, out)


def lane_by_lane(body: str, *arguments: np.ndarray) -> np.ndarray:
    """The words in %r5, for up to 64 values of up to three arguments."""
    words = np.zeros((THREADS, 4), np.uint32)
    for i, argument in enumerate(arguments):
        words[: len(argument), i] = np.ascontiguousarray(argument).view(np.uint32)
    return run(body, words)[: len(arguments[0]), 0].copy()


def nearest(exact: Fraction, bits: int, lowest: int) -> Fraction:
    """The nearest number of this many significant bits, ties to even; 2 ** lowest is the smallest subnormal."""
    if exact == 0:
        return exact
    size = abs(exact)
    exponent = size.numerator.bit_length() - size.denominator.bit_length()
    exponent -= size < Fraction(2) ** exponent
    step = Fraction(2) ** max(exponent - bits + 1, lowest)
    return round(exact / step) * step


def floats(rng, count=THREADS) -> np.ndarray:
    return (rng.standard_normal(count) * np.exp2(rng.integers(-20, 20, count))).astype(np.float32)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(2026)


FMA = "fma.rn.f32 %f4, %f1, %f2, %f3;"
MOVES = "mov.b32 %f1, %r1; mov.b32 %f2, %r2; mov.b32 %f3, %r3; {} mov.b32 %r5, %f4;"


@pytest.mark.parametrize("scale", [1.0, 2.0**-70])  # results that are normal, and subnormal
def test_fma_rounds_once(rng, scale):
    a, b = (np.float32(scale) * x for x in (floats(rng), floats(rng)))
    c = (-(a.astype(np.float64) * b)).astype(np.float32)  # cancels all but the product's rounding error
    c[::2] = floats(rng)[::2] * np.float32(scale) ** 2
    c[1::4] = np.nextafter(c[1::4], np.float32(1))
    got = lane_by_lane(MOVES.format(FMA), a, b, c).view(np.float32)
    for x, y, z, result in zip(a, b, c, got, strict=True):
        assert Fraction(float(result)) == nearest(
            Fraction(float(x)) * Fraction(float(y)) + Fraction(float(z)), 24, -149
        )


def test_fma_where_float64_would_round_twice():
    """a b is 2⁻⁶⁰ below half an ulp of c, which float64 cannot tell; c is odd: a tie would round away from it."""
    a, b, c = np.float32([1 + 2**-23]), np.float32([(1 - 2**-23) * 2**-14]), np.float32([1024 + 2**-13])
    assert (a.astype(np.float64) * b + c).astype(np.float32) != c
    assert lane_by_lane(MOVES.format(FMA), a, b, c).view(np.float32) == c


@pytest.mark.parametrize(("name", "exact"), [("div.rn", lambda a, b: a / b), ("mul", lambda a, b: a * b)])
def test_operations_that_round_once(rng, name, exact):
    a, b = floats(rng), floats(rng)
    got = lane_by_lane(MOVES.format(f"{name}.f32 %f4, %f1, %f2;"), a, b).view(np.float32)
    truth = [nearest(exact(Fraction(float(x)), Fraction(float(y))), 24, -149) for x, y in zip(a, b, strict=True)]
    assert [Fraction(float(each)) for each in got] == truth


def test_conversions(rng):
    x = floats(rng)
    x[:4] = np.float32([1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-11, -(1 + 3 * 2**-11)])  # ties of bf16, and of tf32
    for name, bits, to_float in (
        ("{cvt.rn.bf16.f32 %h1, %f1;} mov.b32 %r5, {0, %h1};", 8, lambda word: word.view(np.float32)),
        ("cvt.rna.tf32.f32 %r5, %f1;", 11, lambda word: word.view(np.float32)),
        (
            "cvt.rn.f16.f32 %h1, %f1; mov.b32 %r5, {%h1, 0};",
            11,
            lambda word: word.view(np.uint16)[::2].copy().view(np.float16),
        ),
    ):
        small = np.where(np.abs(x) > 2.0**-14, x, np.float32(1)) / (1 if bits < 11 or "tf32" in name else 2.0**5)
        small = np.clip(small, -60000, 60000).astype(np.float32)
        got = to_float(lane_by_lane(f"mov.b32 %f1, %r1; {name}", small))
        for value, result in zip(small, got, strict=True):
            exact = Fraction(float(value))
            lowest = -24 if "f16.f32" in name and "bf16" not in name else -149
            if "rna" in name:  # away from zero where two are as near
                exact += exact / 2**40
            assert Fraction(float(result)) == nearest(exact, bits, lowest), (name, value)


@pytest.mark.parametrize(
    ("code", "truth"),
    [
        ("mul.hi.s32 %r5, %r1, %r2;", lambda a, b: a * b >> 32),
        ("shr.s32 %r5, %r1, 40;", lambda a, b: -1 if a < 0 else 0),
        ("shr.u32 %r5, %r1, 32;", lambda a, b: 0),
        ("shl.b32 %r5, %r1, 33;", lambda a, b: 0),
        ("div.s32 %r5, %r1, %r2;", lambda a, b: int(Fraction(a, b))),
        ("bfe.u32 %r5, %r1, 5, 7;", lambda a, b: (a & 0xFFFFFFFF) >> 5 & 127),
        ("bfe.s32 %r5, %r1, 5, 7;", lambda a, b: ((a >> 5 & 127) ^ 64) - 64),
        ("brev.b32 %r5, %r1;", lambda a, b: int(f"{a & 0xFFFFFFFF:032b}"[::-1], 2)),
        ("bfind.shiftamt.u32 %r5, %r1;", lambda a, b: 32 - (a & 0xFFFFFFFF).bit_length()),
        ("prmt.b32 %r5, %r1, %r2, 0x7C31;", lambda a, b: _permuted(a, b, (1, 3, 0xC, 7))),
        ("mad.lo.s32 %r5, %r1, %r2, -3;", lambda a, b: a * b - 3),
    ],
)
def test_integers(rng, code, truth):
    a, b = (rng.integers(-(2**31), 2**31, THREADS).astype(np.int32) for _ in range(2))
    got = lane_by_lane(code, a, b)
    assert [int(each) for each in got] == [truth(int(x), int(y)) & 0xFFFFFFFF for x, y in zip(a, b, strict=True)]


def _permuted(a: int, b: int, selectors) -> int:
    both = struct.pack("<ii", a, b)
    picked = [(255 * (both[each & 7] >> 7)) if each & 8 else both[each] for each in selectors]
    return int.from_bytes(bytes(picked), "little")


def test_comparisons_with_nan():
    nan, one = np.float32([np.nan]), np.float32([1])
    for name, expected in (("eq", 0), ("ne", 0), ("neu", 1), ("ltu", 1), ("ge", 0), ("num", 0), ("nan", 1)):
        code = f"mov.b32 %f1, %r1; mov.b32 %f2, %r2; setp.{name}.f32 %p1, %f1, %f2; selp.b32 %r5, 1, 0, %p1;"
        assert lane_by_lane(code, nan, one)[0] == expected, name


def test_shuffles():
    lanes = np.arange(THREADS, dtype=np.uint32)
    for mode, by, limit, source in (
        ("bfly", 5, 31, lambda lane: lane ^ 5),
        ("up", 3, 0, lambda lane: lane - 3 if lane >= 3 else lane),
        ("down", 3, 31, lambda lane: lane + 3 if lane < 29 else lane),
        ("idx", 7, 31, lambda lane: 7),
    ):
        got = lane_by_lane(f"shfl.sync.{mode}.b32 %r5|%p1, %r1, {by}, {limit}, -1;", lanes)
        assert [int(each) for each in got] == [lane // 32 * 32 + source(lane % 32) for lane in range(THREADS)]


def test_ballot(rng):
    bits = rng.integers(0, 2, THREADS).astype(np.uint32)
    got = lane_by_lane("setp.ne.b32 %p1, %r1, 0; vote.sync.ballot.b32 %r5, %p1, -1;", bits)
    for warp in (0, 32):
        assert set(got[warp : warp + 32]) == {sum(int(bits[warp + lane]) << lane for lane in range(32))}


# ---- matrices: element by element, after the figures of the PTX ISA


@pytest.mark.parametrize(
    ("name", "per_word"),
    [
        ("m16n8k16.row.col.f32.bf16.bf16.f32", 2),
        ("m16n8k16.row.col.f32.f16.f16.f32", 2),
        ("m16n8k8.row.col.f32.tf32.tf32.f32", 1),
        ("m16n8k32.row.col.s32.s8.s8.s32", 4),
    ],
)
def test_mma(rng, name, per_word):
    """Small integers, whose products and sums are exact."""
    depth = 8 * per_word
    a, b = rng.integers(-9, 10, (THREADS // 32, 16, depth)), rng.integers(-9, 10, (THREADS // 32, depth, 8))
    code, c = {1: np.float32, 4: np.int8}.get(per_word, np.float16), 5
    words = np.zeros((THREADS, 6), np.uint32)
    for thread in range(THREADS):
        warp, group, pair = thread // 32, thread % 32 // 4, thread % 4
        for word in range(6):
            k = [depth // 2 * (word // 2 if word < 4 else word - 4) + pair * per_word + i for i in range(per_word)]
            elements = a[warp, group + 8 * (word % 2), k] if word < 4 else b[warp, k, group]
            packed = elements.astype(np.float32 if "bf16" in name else code)
            packed = packed.view(np.uint16)[1::2].copy() if "bf16" in name else packed
            words[thread, word] = packed.view(np.uint32)[0]
    is_integer, register = per_word == 4, "%r1{}" if per_word == 4 else "%f1{}"
    sums = ", ".join(register.format(i) for i in range(4))
    body = "".join(
        f"mov.b32 {register.format(i)}, {c if is_integer else '0f40A00000'};" for i in range(4)
    ) + """
        shl.b32 %r20, %r0, 4; mov.u32 %r21, memory; add.s32 %r20, %r20, %r21; st.shared.v2.u32 [%r20], {%r1, %r2};
        ld.shared.v2.u32 {%r22, %r23}, [%r20]; ld.global.v4.u32 {%r24, %r25, %r26, %r27}, [%rd1+1024];
    """  # fmt: skip
    body += f"mma.sync.aligned.{name} {{{sums}}}, {{%r24, %r25, %r26, %r27}}, {{%r22, %r23}}, {{{sums}}};"
    body += "".join(f"mov.b32 %r{5 + i}, {register.format(i)};" for i in range(4))
    first = np.concatenate([words[:, 4:], np.zeros((THREADS, 2), np.uint32)], axis=1)
    got = _run_with(body, np.concatenate([first, words[:, :4]])).view(np.int32 if is_integer else np.float32)
    for thread in range(THREADS):
        warp, group, pair = thread // 32, thread % 32 // 4, thread % 4
        for i in range(4):
            row, column = group + 8 * (i // 2), 2 * pair + i % 2
            assert got[thread, i] == c + a[warp, row] @ b[warp, :, column]


def _run_with(body: str, words: np.ndarray) -> np.ndarray:
    """As ``run``, with twice as many words: the second half is 1,024 bytes further."""
    memory, out = Global(), np.zeros((THREADS, 4), np.uint32)
    given, to = memory.add(words), memory.add(out, writable=True)
    entry = parse(".extern .shared .align 16 .b8 memory[];\n" + HEADER + POINTERS + body + STORE)
    Kernel(entry, THREADS, 1024).run(memory, [struct.pack("Q", each) for each in (given, to)], (1,))
    return memory.result(to, out)


ROWS_TO_SHARED = """
    mov.u32 %r20, memory; shl.b32 %r21, %r0, 4; add.s32 %r20, %r20, %r21;
    st.shared.v4.u32 [%r20], {%r1, %r2, %r3, %r4}; bar.sync 0;
"""


@pytest.mark.parametrize("transposed", ["", ".trans"])
def test_ldmatrix(rng, transposed):
    rows = rng.integers(0, 2**16, (THREADS, 8)).astype(np.uint16)
    load = f"ldmatrix.sync.aligned.m8n8.x4{transposed}.shared.b16 {{%r5, %r6, %r7, %r8}}, [%r20];"
    got = run(ROWS_TO_SHARED + load, rows, 1024).view(np.uint16).reshape(THREADS, 4, 2)
    for thread in range(THREADS):
        for number in range(4):
            matrix = rows[thread // 32 * 32 + 8 * number :][:8]
            matrix = matrix.T if transposed else matrix
            row, column = thread % 32 // 4, thread % 4 * 2
            assert got[thread, number].tolist() == matrix[row, column : column + 2].tolist()


# ---- divergence, and what is an error


def test_diverged_threads_meet_again():
    """A loop of as many rounds as the lane's number, then a shuffle that needs all lanes."""
    code = """
        mov.u32 %r5, 0; mov.u32 %r9, %r1;
        LOOP: setp.eq.s32 %p1, %r9, 0; @%p1 bra DONE;
        add.s32 %r5, %r5, 2; add.s32 %r9, %r9, -1; bra.uni LOOP;
        DONE: shfl.sync.bfly.b32 %r5, %r5, 1, 31, -1;
    """
    lanes = np.arange(THREADS, dtype=np.uint32)
    assert lane_by_lane(code, lanes).tolist() == [2 * (lane ^ 1) for lane in range(THREADS)]


COPY = """
    mov.u32 %r20, memory; shl.b32 %r21, %r0, 4; add.s32 %r20, %r20, %r21;
    cp.async.cg.shared.global [%r20], [%rd1], 16, {}; cp.async.commit_group;
    {} ld.shared.v4.u32 {{%r5, %r6, %r7, %r8}}, [%r20];
"""


def test_asynchronous_copies(rng):
    words = rng.integers(1, 2**32, (THREADS, 4)).astype(np.uint32)
    got = run(COPY.format(8, "cp.async.wait_group 0;"), words, 1024)
    assert np.array_equal(got, words * np.uint32([1, 1, 0, 0]))
    for wait in ("", "cp.async.wait_group 1;"):
        with pytest.raises(Fault, match="not been waited for"):
            run(COPY.format(8, wait), words, 1024)


NEIGHBOUR = "xor.b32 %r20, %r20, 16; ld.shared.u32 %r5, [%r20];"


@pytest.mark.parametrize(
    ("body", "error", "message"),
    [
        (ROWS_TO_SHARED.replace("bar.sync 0;", "") + NEIGHBOUR, Fault, "race: shared memory read"),
        (ROWS_TO_SHARED + NEIGHBOUR + "st.shared.u32 [%r20+8], %r5; st.shared.u32 [%r20], %r5; xor.b32 %r20, %r20, 16;"
         "st.shared.u32 [%r20], %r5;", Fault, "race: shared memory written"),
        ("ld.shared.u32 %r5, [%r0];", Fault, "multiple of 4"),
        ("mov.u32 %r20, memory; ld.shared.u32 %r5, [%r20+1024];", Fault, "out of bounds"),
        ("mov.u32 %r20, memory; ld.shared.u32 %r5, [%r20];", Fault, "before anything is written"),
        ("ld.global.u32 %r5, [%rd1+1024];", Fault, "out of bounds"),
        ("st.global.u32 [%rd1], %r5;", Fault, "not writable"),
        ("setp.eq.s32 %p1, %r0, 3; @%p1 bra END; shfl.sync.bfly.b32 %r5, %r1, 1, 31, -1; END:", Fault, "hangs"),
        ("frobnicate.f32 %r5, %r1;", Unsupported, "line 9: frobnicate.f32 %r5, %r1: unknown instruction"),
        ("mov.u32 %r5, %tid.y;", Unsupported, "operand %tid.y"),
        ("add.sat.f32 %f1, %f2, %f3;", Unsupported, "unknown modifiers"),
    ],
)  # fmt: skip
def test_errors(body, error, message):
    with pytest.raises(error, match=message):
        run(body, np.zeros((THREADS, 4), np.uint32), 1024)
