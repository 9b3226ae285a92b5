"""Instructions that compute a register from others, lane by lane.

``OPERATIONS`` maps an opcode to a function of its modifiers that gives the operation: the types of its arguments, that
of its result, and the function of numpy arrays.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from tests.ptx import rounding
from tests.ptx.operands import TYPES

Modifiers = tuple[str, ...]


@dataclass(frozen=True)
class Operation:
    arguments: tuple[str, ...]
    compute: Callable[..., np.ndarray]


OPERATIONS: dict[str, Callable[[Modifiers], Operation | None]] = {}
"""None: these modifiers are unknown."""


def operation(*opcodes: str):
    def register(function: Callable[[Modifiers], Operation | None]):
        OPERATIONS.update(dict.fromkeys(opcodes, function))
        return function

    return register


def _is_float(kind: str) -> bool:
    return kind == "f32"


def _bits(kind: str) -> int:
    return np.dtype(TYPES[kind]).itemsize * 8


def _is_integer(kind: str) -> bool:
    return kind[0] in "sub" and kind[1:].isdigit()


def _float(modifiers: Modifiers, count: int, compute: Callable[..., np.ndarray], *allowed: str) -> Operation | None:
    """An operation of float32 with these modifiers; ftz flushes arguments and result."""
    if modifiers[-1:] != ("f32",) or not set(modifiers[:-1]) <= {*allowed, "ftz"}:
        return None
    if "ftz" not in modifiers:
        return Operation(("f32",) * count, compute)
    return Operation(
        ("f32",) * count, lambda *given: rounding.flushed(compute(*(rounding.flushed(each) for each in given)))
    )


def _simple(name: str, count: int, for_floats, for_integers, allowed: Modifiers = ()) -> None:
    """An opcode with a function for float32, one for integers, or both."""

    def choose(modifiers: Modifiers) -> Operation | None:
        if for_integers and len(modifiers) == 1 and _is_integer(modifiers[0]):
            return Operation(modifiers * count, for_integers)
        return _float(modifiers, count, for_floats, *allowed) if for_floats else None

    OPERATIONS[name] = choose


def _copied_sign(sign: np.ndarray, magnitude: np.ndarray) -> np.ndarray:
    return np.copysign(magnitude, sign)


_simple("add", 2, np.add, np.add, ("rn",))
_simple("sub", 2, np.subtract, np.subtract, ("rn",))


def _extreme(name: str, of_numbers, with_nan, of_integers) -> None:
    """min and max, which give the number beside a NaN, and with ``.NaN`` the NaN."""
    _simple(name, 2, of_numbers, of_integers)
    without = OPERATIONS[name]

    def choose(modifiers: Modifiers) -> Operation | None:
        if modifiers[:1] == ("NaN",):
            return _float(modifiers[1:], 2, with_nan)
        return without(modifiers)

    OPERATIONS[name] = choose


def _nan_first(compute):
    """``compute``, and NaN where one of the two is."""
    return lambda a, b: np.where(np.isnan(a) | np.isnan(b), np.float32(np.nan), compute(a, b))


_extreme("min", rounding.minimum, _nan_first(rounding.minimum), np.minimum)
_extreme("max", rounding.maximum, _nan_first(rounding.maximum), np.maximum)
_simple("neg", 1, np.negative, np.negative)
_simple("abs", 1, np.abs, np.abs)
_simple("copysign", 2, _copied_sign, None)
_simple("sqrt", 1, np.sqrt, None, ("rn",))
_simple("ex2", 1, rounding.approximate(np.exp2), None, ("approx",))
_simple("rsqrt", 1, rounding.approximate(lambda x: 1 / np.sqrt(x)), None, ("approx",))
_simple("rcp", 1, lambda x: np.float32(1) / x, None, ("rn", "approx"))


@operation("mul")
def _mul(modifiers: Modifiers) -> Operation | None:
    return _integer_product(modifiers, added=False) or _float(modifiers, 2, np.multiply, "rn")


@operation("mad")
def _mad(modifiers: Modifiers) -> Operation | None:
    return _integer_product(modifiers, added=True)


def _integer_product(modifiers: Modifiers, added: bool) -> Operation | None:
    if len(modifiers) != 2 or modifiers[0] not in ("lo", "hi", "wide") or not _is_integer(modifiers[1]):
        return None
    part, kind = modifiers
    bits = _bits(kind)
    if part != "lo" and bits > 32:
        return None
    narrow = np.dtype(TYPES[kind])
    wide = f"{kind[0]}{2 * bits}" if part == "wide" else kind

    def compute(a: np.ndarray, b: np.ndarray, *c: np.ndarray) -> np.ndarray:
        if part == "lo":
            product = a * b
        else:
            product = a.astype(TYPES[f"{kind[0]}{2 * bits}"]) * b.astype(TYPES[f"{kind[0]}{2 * bits}"])
            product = (product >> bits).astype(narrow) if part == "hi" else product
        return product + c[0] if c else product

    return Operation((kind, kind, wide) if added else (kind, kind), compute)


@operation("div")
def _div(modifiers: Modifiers) -> Operation | None:
    if len(modifiers) == 1 and modifiers[0] in ("s32", "u32"):
        return Operation(modifiers * 2, _truncated_quotient)
    return _float(modifiers, 2, np.divide, "rn", "full")


def _truncated_quotient(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    quotient = np.abs(a.astype(np.int64)) // np.maximum(np.abs(b.astype(np.int64)), 1)
    return (quotient * np.where((a < 0) != (b < 0), -1, 1)).astype(a.dtype)


@operation("fma")
def _fma(modifiers: Modifiers) -> Operation | None:
    if modifiers == ("rn", "bf16x2"):
        return Operation(("bf16x2",) * 3, _fma_pairs)
    return _float(modifiers, 3, rounding.fma, "rn")


def _fma_pairs(*words: np.ndarray) -> np.ndarray:
    halves = np.broadcast_arrays(*(np.ascontiguousarray(word).view(np.uint16).reshape(-1, 2) for word in words))
    return np.ascontiguousarray(rounding.fma_bf16(*halves)).view(np.uint32)[:, 0]


# ---- bits


def _logic(name: str, count: int, compute: Callable[..., np.ndarray]) -> None:
    def choose(modifiers: Modifiers) -> Operation | None:
        return Operation(modifiers * count, compute) if modifiers[0] in ("pred", "b16", "b32", "b64") else None

    OPERATIONS[name] = choose


_logic("and", 2, np.bitwise_and)
_logic("or", 2, np.bitwise_or)
_logic("xor", 2, np.bitwise_xor)
_logic("not", 1, np.invert)


@operation("shl")
def _shl(modifiers: Modifiers) -> Operation:
    bits = _bits(modifiers[0])
    return Operation(
        (modifiers[0], "u32"),
        lambda a, by: np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), a.dtype.type(0)),
    )


@operation("shr")
def _shr(modifiers: Modifiers) -> Operation:
    kind, bits = modifiers[0], _bits(modifiers[0])
    if kind[0] == "s":
        return Operation((kind, "u32"), lambda a, by: a >> np.minimum(by, bits - 1).astype(a.dtype))
    return Operation(
        (kind, "u32"),
        lambda a, by: np.where(by < bits, a >> np.minimum(by, bits - 1).astype(a.dtype), a.dtype.type(0)),
    )


@operation("bfe")
def _bfe(modifiers: Modifiers) -> Operation | None:
    if modifiers not in (("u32",), ("s32",)):
        return None

    def extract(a: np.ndarray, start: np.ndarray, length: np.ndarray) -> np.ndarray:
        start, length = (np.minimum(x & 0xFF, 32).astype(np.int64) for x in (start, length))
        field = (a.astype(np.int64) >> start) & ((np.int64(1) << length) - 1)
        if modifiers == ("s32",):
            field = np.where((length > 0) & (field >> np.maximum(length - 1, 0) == 1), field - (1 << length), field)
        return field.astype(a.dtype)

    return Operation((modifiers[0], "u32", "u32"), extract)


@operation("brev")
def _brev(modifiers: Modifiers) -> Operation | None:
    if modifiers != ("b32",):
        return None
    return Operation(("b32",), lambda a: np.packbits(_bit_columns(a)[:, ::-1], axis=1).view(">u4")[:, 0].astype("u4"))


def _bit_columns(a: np.ndarray) -> np.ndarray:
    """[threads, 32], the most significant bit first."""
    return np.unpackbits(a.astype(">u4").view(np.uint8).reshape(-1, 4), axis=1)


@operation("bfind")
def _bfind(modifiers: Modifiers) -> Operation | None:
    """With shiftamt: how far the highest bit must be shifted left to be the first."""
    if modifiers != ("shiftamt", "u32"):
        return None
    return Operation(("u32",), lambda a: np.where(a == 0, 0xFFFFFFFF, _bit_columns(a).argmax(axis=1)).astype(np.uint32))


@operation("prmt")
def _prmt(modifiers: Modifiers) -> Operation | None:
    """Each byte of the result is one of the eight of both words, or its sign."""
    return Operation(("b32",) * 3, _permuted) if modifiers == ("b32",) else None


def _permuted(low: np.ndarray, high: np.ndarray, selectors: np.ndarray) -> np.ndarray:
    both = low.astype(np.uint64) | high.astype(np.uint64) << np.uint64(32)
    result = np.uint64(0)
    for i in range(4):
        selector = (selectors >> np.uint32(4 * i)).astype(np.uint64)
        byte = both >> (selector & np.uint64(7)) * np.uint64(8) & np.uint64(0xFF)
        sign = (byte >> np.uint64(7)) * np.uint64(0xFF)
        result = result | np.where(selector & np.uint64(8), sign, byte) << np.uint64(8 * i)
    return result.astype(np.uint32)


# ---- selection, comparison, conversion


@operation("mov", "cvta")
def _mov(modifiers: Modifiers) -> Operation | None:
    if len(modifiers) > 1 and modifiers[:2] != ("to", "global"):
        return None
    return Operation((modifiers[-1],), lambda a: a)


@operation("selp")
def _selp(modifiers: Modifiers) -> Operation:
    return Operation((modifiers[0], modifiers[0], "pred"), lambda a, b, which: np.where(which, a, b))


_COMPARISONS = {
    "eq": np.equal,
    "ne": np.not_equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
}


@operation("setp")
def _setp(modifiers: Modifiers) -> Operation | None:
    name, kind = modifiers[0], modifiers[-1]
    if len(modifiers) != 2:
        return None
    if kind != "f32":
        return Operation((kind, kind), _COMPARISONS[name]) if name in _COMPARISONS else None
    if name in ("num", "nan"):
        return Operation((kind, kind), lambda a, b: (np.isnan(a) | np.isnan(b)) == (name == "nan"))
    if name == "ne":  # ordered, unlike numpy's
        return Operation((kind, kind), lambda a, b: (a < b) | (a > b))
    if name in _COMPARISONS:
        return Operation((kind, kind), _COMPARISONS[name])
    compare = _COMPARISONS.get(name.removesuffix("u"))
    return Operation((kind, kind), lambda a, b: compare(a, b) | np.isnan(a) | np.isnan(b)) if compare else None


def _saturated(x: np.ndarray, limits: np.iinfo) -> np.ndarray:
    """float32 that hold integers, as int32; NaN is 0."""
    return np.clip(
        np.nan_to_num(x.astype(np.float64), posinf=2.0**32, neginf=-(2.0**32)), limits.min, limits.max
    ).astype(np.int32)


_CONVERSIONS: dict[Modifiers, Operation] = {
    ("rna", "tf32", "f32"): Operation(("f32",), rounding.to_tf32_away),
    ("rn", "bf16", "f32"): Operation(("f32",), rounding.to_bf16),
    ("f32", "bf16"): Operation(("bf16",), rounding.from_bf16),
    ("rn", "f16", "f32"): Operation(("f32",), lambda a: a.astype(np.float16)),
    ("f32", "f16"): Operation(("f16",), lambda a: a.astype(np.float32)),
    ("rn", "bf16x2", "f32"): Operation(  # the first argument is the upper half
        ("f32", "f32"), lambda a, b: rounding.to_bf16(a).astype(np.uint32) << np.uint32(16) | rounding.to_bf16(b)
    ),
    ("rn", "f16x2", "f32"): Operation(
        ("f32", "f32"), lambda a, b: _half_bits(a).astype(np.uint32) << np.uint32(16) | _half_bits(b)
    ),
    ("rni", "f32", "f32"): Operation(("f32",), np.rint),
    ("rzi", "s32", "f32"): Operation(("f32",), lambda a: _saturated(np.trunc(a), np.iinfo(np.int32))),
    ("rn", "f32", "s32"): Operation(("s32",), lambda a: a.astype(np.float32)),
    ("rn", "f32", "u32"): Operation(("u32",), lambda a: a.astype(np.float32)),
}


def _half_bits(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float16).view(np.uint16)


@operation("cvt")
def _cvt(modifiers: Modifiers) -> Operation | None:
    if modifiers in _CONVERSIONS:
        return _CONVERSIONS[modifiers]
    if len(modifiers) == 2 and all(_is_integer(each) for each in modifiers):
        return Operation((modifiers[1],), lambda a: a.astype(TYPES[modifiers[0]]))
    return None
