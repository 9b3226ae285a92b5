"""What an instruction does to a block: ``INSTRUCTIONS`` maps an opcode to the function that decodes it.

A decoded instruction is called with the block and the mask of its active threads, and says whether they simply go on
to the next one.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from tests.ptx import matrix
from tests.ptx.arithmetic_instructions import OPERATIONS
from tests.ptx.memory import WARP, Fault
from tests.ptx.operands import TYPES, Read, address, is_type, parameter, reader, vector, writer
from tests.ptx.parser import Entry, Instruction, Unsupported

if TYPE_CHECKING:
    from tests.ptx.machine import Block

Decode = Callable[[Entry, Instruction], Callable[["Block", np.ndarray], bool]]
INSTRUCTIONS: dict[str, Decode] = {}
CHUNK = 16


def instruction(*opcodes: str):
    def register(decode: Decode) -> Decode:
        INSTRUCTIONS.update(dict.fromkeys(opcodes, decode))
        return decode

    return register


def unknown(given: Instruction) -> Unsupported:
    return Unsupported(given.error("unknown modifiers"))


# ---- registers


def _lane_by_lane(entry: Entry, given: Instruction):
    if given.opcode[0] == "mov" and "{" in given.text:
        return _packed_move(entry, given)
    operation = OPERATIONS[given.opcode[0]](given.opcode[1:])
    if operation is None or len(given.operands) != 1 + len(operation.arguments):
        raise unknown(given)
    arguments = [
        reader(entry, given, operand, kind)
        for operand, kind in zip(given.operands[1:], operation.arguments, strict=True)
    ]
    write, compute = writer(entry, given, given.operands[0]), operation.compute

    def run(block: Block, mask: np.ndarray) -> bool:
        write(block, compute(*(read(block) for read in arguments)), mask)
        return True

    return run


INSTRUCTIONS.update(dict.fromkeys(OPERATIONS, _lane_by_lane))


def _packed_move(entry: Entry, given: Instruction):
    """``mov.b32 r, {low, high}``, or the inverse."""
    if given.opcode[1:] != ("b32",):
        raise unknown(given)
    to, source = (vector(each) for each in given.operands)
    if (len(to), len(source)) not in ((1, 2), (2, 1)):
        raise unknown(given)
    writes = [writer(entry, given, each) for each in to]
    reads = [reader(entry, given, each, "b32" if len(source) == 1 else "b16") for each in source]

    def run(block: Block, mask: np.ndarray) -> bool:
        values = [read(block).astype(np.uint32) for read in reads]
        if len(values) == 2:
            writes[0](block, values[0] | values[1] << np.uint32(16), mask)
        else:
            writes[0](block, values[0].astype(np.uint16), mask)
            writes[1](block, (values[0] >> np.uint32(16)).astype(np.uint16), mask)
        return True

    return run


# ---- memory


@instruction("ld")
def _load(entry: Entry, given: Instruction):
    space, count, kind = _access(given)
    writes = [writer(entry, given, each) for each in vector(given.operands[0])]
    if len(writes) != count:
        raise unknown(given)
    dtype = np.dtype(TYPES[kind])
    fetch = _fetch(entry, given, space, count * dtype.itemsize)

    def run(block: Block, mask: np.ndarray) -> bool:
        if not mask.any():
            return True
        values = np.zeros((block.threads, count), dtype)
        values[mask] = np.ascontiguousarray(fetch(block, mask)).view(dtype)
        for i, write in enumerate(writes):
            write(block, np.ascontiguousarray(values[:, i]), mask)
        return True

    return run


def _access(given: Instruction) -> tuple[str, int, str]:
    """The state space, the number of elements and their type."""
    space, *rest = given.opcode[1:]
    count = int(rest.pop(0)[1:]) if rest[0] in ("v2", "v4") else 1
    if space not in ("global", "shared", "param") or len(rest) != 1 or not is_type(rest[0]):
        raise unknown(given)
    return space, count, rest[0]


def _fetch(entry: Entry, given: Instruction, space: str, size: int):
    """Bytes of the threads of a mask, [threads, size], or [1, size] for all."""
    if space == "param":
        name, offset = parameter(given, given.operands[1])
        return lambda block, mask: np.frombuffer(block.parameters[name], np.uint8)[None, offset : offset + size]
    at = address(entry, given, given.operands[1])
    if space == "global":
        return lambda block, mask: block.memory.read(at(block)[mask], size, size)
    return lambda block, mask: block.shared.read(at(block)[mask], block.lanes[mask], size, size)


@instruction("st")
def _store(entry: Entry, given: Instruction):
    space, count, kind = _access(given)
    at = address(entry, given, given.operands[0])
    reads = [reader(entry, given, each, kind) for each in vector(given.operands[1])]
    if len(reads) != count or space == "param":
        raise unknown(given)

    def run(block: Block, mask: np.ndarray) -> bool:
        columns = [np.broadcast_to(read(block), block.threads)[mask] for read in reads]
        values = np.stack(columns, axis=1).view(np.uint8)
        if not len(values):
            return True
        if space == "global":
            block.memory.write(at(block)[mask], values, values.shape[1])
        else:
            block.shared.write(at(block)[mask], block.lanes[mask], values, values.shape[1])
        return True

    return run


@instruction("prefetch")
def _prefetch(entry: Entry, given: Instruction):
    return lambda block, mask: True


# ---- asynchronous copies


_COPIES = {("async", "cg", "shared", "global"): (CHUNK,), ("async", "ca", "shared", "global"): (4, 8, CHUNK)}


@instruction("cp")
def _copy(entry: Entry, given: Instruction):
    if given.opcode[1:] == ("async", "commit_group"):
        return _commit
    if given.opcode[1:] == ("async", "wait_group"):
        return _wait(int(given.operands[0]))
    chunk = int(given.operands[2], 0) if len(given.operands) > 2 else 0
    if given.opcode[1:] not in _COPIES or chunk not in _COPIES[given.opcode[1:]]:
        raise unknown(given)
    to, source = address(entry, given, given.operands[0]), address(entry, given, given.operands[1])
    count = reader(entry, given, given.operands[3], "u32") if len(given.operands) == 4 else None

    def run(block: Block, mask: np.ndarray) -> bool:
        if not mask.any():
            return True
        where, threads = to(block)[mask], block.lanes[mask]
        sizes = np.broadcast_to(count(block) if count else np.uint32(chunk), block.threads)[mask]
        if (sizes > chunk).any():
            raise Fault(f"a copy of more than {chunk} bytes")
        block.shared.begin_copy(where, threads, chunk)
        content = _source_bytes(block, source(block)[mask], sizes, chunk)
        block.copies.append((threads, block.committed[mask], where, content))
        return True

    return run


def _source_bytes(block: Block, addresses: np.ndarray, sizes: np.ndarray, chunk: int) -> np.ndarray:
    """The first bytes of each address, the others of a chunk zero."""
    content = np.zeros((len(addresses), chunk), np.uint8)
    for size in np.unique(sizes[sizes > 0]):
        content[sizes == size, :size] = block.memory.read(addresses[sizes == size], int(size), chunk)
    return content


def _commit(block: Block, mask: np.ndarray) -> bool:
    block.committed[mask] += 1
    return True


def _wait(pending: int):
    """Ends the copies of all but the last ``pending`` groups of each thread."""

    def run(block: Block, mask: np.ndarray) -> bool:
        kept = []
        for threads, groups, where, content in block.copies:
            done = mask[threads] & (groups < block.committed[threads] - pending)
            block.shared.end_copy(where[done], threads[done], content[done])
            if not done.all():
                kept.append((threads[~done], groups[~done], where[~done], content[~done]))
        block.copies = kept
        return True

    return run


# ---- collectives of a warp: `work` is called with the warps that take part


def _collective(work: Callable[[Block, np.ndarray, np.ndarray], None]):
    def run(block: Block, mask: np.ndarray) -> bool:
        if not block.wait_for_warp(mask):
            return False
        work(block, mask, np.flatnonzero(mask.reshape(-1, WARP)[:, 0]))
        return True

    return run


def _by_warp(block: Block, read: Read, warps: np.ndarray) -> np.ndarray:
    """[warps, 32]"""
    return np.broadcast_to(read(block), block.threads).reshape(-1, WARP)[warps]


def _to_lanes(block: Block, values: np.ndarray, warps: np.ndarray) -> np.ndarray:
    """[warps, 32] to [threads]."""
    every = np.zeros((block.threads // WARP, WARP), values.dtype)
    every[warps] = values
    return every.reshape(-1)


def _all_lanes(block: Block, read: Read, warps: np.ndarray) -> None:
    if (_by_warp(block, read, warps) != 0xFFFFFFFF).any():
        raise Unsupported("not all lanes of the warp take part")


@instruction("shfl")
def _shuffle(entry: Entry, given: Instruction):
    if given.opcode[1] != "sync" or given.opcode[3:] != ("b32",):
        raise unknown(given)
    mode, (to, *has_source) = given.opcode[2], given.operands[0].split("|")
    write = writer(entry, given, to)
    write_source = writer(entry, given, has_source[0]) if has_source else None
    value, by, segments, members = (reader(entry, given, each, "u32") for each in given.operands[1:])

    def work(block: Block, mask: np.ndarray, warps: np.ndarray) -> None:
        _all_lanes(block, members, warps)
        values, distance, limits = (_by_warp(block, read, warps).astype(np.int64) for read in (value, by, segments))
        source, exists = shuffle_source(mode, distance & 31, limits)
        shuffled = np.take_along_axis(values, source, axis=1).astype(np.uint32)
        write(block, _to_lanes(block, shuffled, warps), mask)
        if write_source:
            write_source(block, _to_lanes(block, exists, warps), mask)

    if mode not in ("bfly", "up", "down", "idx"):
        raise unknown(given)
    return _collective(work)


def shuffle_source(mode: str, by: np.ndarray, limits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lane that each lane reads, and whether it exists; its own where not. ``limits``: the clamp, the segments."""
    lane, clamp, segment = np.arange(WARP), limits & 31, limits >> 8 & 31
    first, last = lane & segment, (lane & segment) | (clamp & ~segment)
    wanted = {"bfly": lane ^ by, "up": lane - by, "down": lane + by, "idx": first | (by & ~segment)}[mode]
    exists = wanted >= last if mode == "up" else wanted <= last
    return np.where(exists, wanted, lane), exists


@instruction("vote")
def _vote(entry: Entry, given: Instruction):
    if given.opcode[1:] != ("sync", "ballot", "b32"):
        raise unknown(given)
    write = writer(entry, given, given.operands[0])
    value, members = reader(entry, given, given.operands[1], "pred"), reader(entry, given, given.operands[2], "u32")

    def work(block: Block, mask: np.ndarray, warps: np.ndarray) -> None:
        _all_lanes(block, members, warps)
        ballot = (_by_warp(block, value, warps).astype(np.uint32) << np.arange(WARP, dtype=np.uint32)).sum(axis=1)
        write(block, _to_lanes(block, np.repeat(ballot[:, None], WARP, axis=1).astype(np.uint32), warps), mask)

    return _collective(work)


@instruction("ldmatrix")
def _load_matrices(entry: Entry, given: Instruction):
    if given.opcode[1:4] != ("sync", "aligned", "m8n8") or given.opcode[-2:] != ("shared", "b16"):
        raise unknown(given)
    writes = [writer(entry, given, each) for each in vector(given.operands[0])]
    at, count, transposed = address(entry, given, given.operands[1]), len(writes), "trans" in given.opcode
    if given.opcode[4] != f"x{count}":
        raise unknown(given)

    def work(block: Block, mask: np.ndarray, warps: np.ndarray) -> None:
        lanes = (warps[:, None] * WARP + np.arange(8 * count)).reshape(-1)
        rows = block.shared.read(at(block)[lanes], lanes, CHUNK, CHUNK).reshape(len(warps), count, 8, CHUNK)
        words = matrix.lanes_of_rows(rows, transposed)
        for i, write in enumerate(writes):
            write(block, _to_lanes(block, words[:, :, i], warps), mask)

    return _collective(work)


_SHAPES = {
    ("m16n8k16", "f32", "bf16", "bf16", "f32"): np.dtype(np.uint16),
    ("m16n8k16", "f32", "f16", "f16", "f32"): np.dtype(np.float16),
    ("m16n8k8", "f32", "tf32", "tf32", "f32"): np.dtype(np.uint32),
    ("m16n8k32", "s32", "s8", "s8", "s32"): np.dtype(np.int8),
}


@instruction("mma")
def _multiply(entry: Entry, given: Instruction):
    shape = (given.opcode[3], *given.opcode[6:])
    if given.opcode[1:3] != ("sync", "aligned") or given.opcode[4:6] != ("row", "col") or shape not in _SHAPES:
        raise unknown(given)
    element, kind = _SHAPES[shape], shape[1]
    writes = [writer(entry, given, each) for each in vector(given.operands[0])]
    a, b, c = (
        [reader(entry, given, each, each_kind) for each in vector(operand)]
        for operand, each_kind in zip(given.operands[1:], ("b32", "b32", kind), strict=True)
    )

    def work(block: Block, mask: np.ndarray, warps: np.ndarray) -> None:
        words = [np.stack([_by_warp(block, read, warps) for read in reads], axis=2) for reads in (a, b, c)]
        operands = matrix.matrix_a(words[0], element), matrix.matrix_b(words[1], element)
        multiply = matrix.multiply_integers if kind == "s32" else matrix.multiply_accumulate
        result = multiply(*(_numbers(each, shape[2]) for each in operands), matrix.matrix_c(words[2]))
        for i, write in enumerate(writes):
            write(block, _to_lanes(block, matrix.lanes_of_c(result)[:, :, i], warps), mask)

    return _collective(work)


def _numbers(elements: np.ndarray, kind: str) -> np.ndarray:
    if kind == "bf16":
        return (elements.astype(np.uint32) << np.uint32(16)).view(np.float32)
    if kind == "tf32":  # the last 13 bits are not read
        return np.ascontiguousarray(elements & np.uint32(0xFFFFE000)).view(np.float32)
    return elements


# ---- control


@instruction("bra")
def _branch(entry: Entry, given: Instruction):
    target, guard, negated = entry.labels[given.operands[0]], given.guard, given.negated

    def run(block: Block, mask: np.ndarray) -> bool:
        taken = mask & (block.registers[guard] != negated) if guard else mask
        block.counter[taken] = target
        return not taken.any()

    return run


@instruction("ret", "exit")
def _return(entry: Entry, given: Instruction):
    def run(block: Block, mask: np.ndarray) -> bool:
        block.exited |= mask
        return given.guard is not None and not mask.any()

    return run


@instruction("bar")
def _barrier(entry: Entry, given: Instruction):
    if given.opcode[1:] == ("warp", "sync") and given.operands == ("-1",):
        return _collective(lambda block, mask, warps: block.shared.sync_warps(warps))
    if given.opcode[1:] != ("sync",) or given.operands != ("0",):
        raise unknown(given)

    def run(block: Block, mask: np.ndarray) -> bool:
        block.at_barrier |= mask
        return False

    return run
