"""Operands of an instruction: registers, immediate numbers, special registers, vectors and addresses.

A register is an array with the bits of every thread, of the unsigned type of its size. An operand is compiled to a
function of the block once, when the kernel is decoded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx.parser import Entry, Instruction, Unsupported

if TYPE_CHECKING:
    from tests.ptx.machine import Block

TYPES: dict[str, type] = {
    "pred": np.bool_, "f16": np.float16, "f32": np.float32, "f64": np.float64,
    "bf16": np.uint16, "bf16x2": np.uint32, "tf32": np.uint32,
    **{f"{kind}{bits}": getattr(np, f"{name}{bits}") for kind, name in (("s", "int"), ("u", "uint"), ("b", "uint"))
       for bits in (8, 16, 32, 64)},
}  # fmt: skip
SPECIAL = ("%tid.x", "%ntid.x", *(f"%{kind}.{axis}" for kind in ("ctaid", "nctaid") for axis in "xyz"))
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_ADDRESS = re.compile(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\w+))?\s*\]")
Read = Callable[["Block"], np.ndarray]
Write = Callable[["Block", np.ndarray, np.ndarray], None]


def is_type(word: str) -> bool:
    return word in TYPES


def storage(name: str) -> type:
    """The type of a register's array."""
    return np.bool_ if name == "pred" else _UNSIGNED[np.dtype(TYPES[name]).itemsize]


def vector(operand: str) -> list[str]:
    """The elements of ``{a, b}``, or the operand alone."""
    return [each.strip() for each in operand.strip("{} ").split(",")]


def reader(entry: Entry, instruction: Instruction, operand: str, kind: str) -> Read:
    """The operand's values as this type: one for each thread, or one for all."""
    dtype = np.dtype(TYPES[kind])
    if operand in entry.registers:
        return lambda block: _as(block.registers[operand], dtype)
    if operand in SPECIAL:
        return lambda block: _as(block.special[operand], dtype)
    if operand in entry.shared:
        return lambda block: np.zeros(1, dtype)  # the only array there is begins at 0
    constant = _constant(instruction, operand, dtype)
    return lambda block: constant


def writer(entry: Entry, instruction: Instruction, operand: str) -> Write:
    """Stores values where the mask says so; a register that is wider is sign- or zero-extended by the values' type."""
    if operand == "_":
        return lambda block, values, mask: None
    if operand not in entry.registers:
        raise Unsupported(instruction.error(f"destination {operand}"))

    def write(block: Block, values: np.ndarray, mask: np.ndarray) -> None:
        register = block.registers[operand]
        if values.dtype != register.dtype and values.dtype != np.bool_:
            if values.dtype.itemsize == register.dtype.itemsize:
                values = values.view(register.dtype)
            else:
                values = values.astype(register.dtype)
        np.copyto(register, values, where=mask)

    return write


def address(entry: Entry, instruction: Instruction, operand: str) -> Read:
    """``[register + offset]`` as int64."""
    found = _ADDRESS.fullmatch(operand)
    if found is None:
        raise Unsupported(instruction.error(f"address {operand}"))
    kind = "u32" if found[1] not in entry.registers else "u" + entry.registers[found[1]][1:]
    base, offset = reader(entry, instruction, found[1], kind), int(found[2] or "0", 0)
    return lambda block: np.broadcast_to(base(block).astype(np.int64) + offset, block.threads)


def parameter(instruction: Instruction, operand: str) -> tuple[str, int]:
    """The name and the offset of ``[name + offset]``."""
    found = _ADDRESS.fullmatch(operand)
    if found is None:
        raise Unsupported(instruction.error(f"address {operand}"))
    return found[1], int(found[2] or "0", 0)


def _as(bits: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if bits.dtype == dtype:
        return bits
    if bits.dtype.itemsize == dtype.itemsize:
        return bits.view(dtype)
    if bits.dtype.itemsize < dtype.itemsize:
        raise Unsupported(f"a register of {bits.dtype} read as {dtype}")
    return bits.astype(_UNSIGNED[dtype.itemsize]).view(dtype)


def _constant(instruction: Instruction, operand: str, dtype: np.dtype) -> np.ndarray:
    unsigned = _UNSIGNED[dtype.itemsize]
    if found := re.fullmatch(r"0[fF]([0-9a-fA-F]{8})", operand):
        return np.array([int(found[1], 16)], np.uint32).view(dtype)
    if not re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", operand):
        raise Unsupported(instruction.error(f"operand {operand}"))
    value = int(operand.rstrip("U"), 0)
    if dtype == np.bool_:
        return np.array([value != 0])
    return np.array([value & ((1 << 8 * dtype.itemsize) - 1)], unsigned).view(dtype)
