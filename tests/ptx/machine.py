"""Runs a kernel, block after block, all threads of a block at once.

Divergence: of the threads that can go on, those with the smallest program counter run, under a mask, up to the next
place where others wait; so threads that have diverged meet again at the first instruction that all of them reach. An
instruction of a whole warp waits for its other lanes, and ``bar.sync`` for all threads that have not exited; where none
can go on, the kernel hangs, and that is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from tests.ptx.device_instructions import INSTRUCTIONS
from tests.ptx.memory import WARP, Fault, Global, Shared
from tests.ptx.operands import storage
from tests.ptx.parser import Entry, Instruction, Unsupported

POISON = 0xCD
"""In every byte of a register before it is written."""


class Block:
    """The state of one thread block."""

    def __init__(
        self, kernel: Kernel, memory: Global, parameters: dict[str, bytes], index: Sequence[int], grid: Sequence[int]
    ) -> None:
        self.kernel, self.memory, self.parameters = kernel, memory, parameters
        self.threads, self.shared = kernel.threads, Shared(kernel.shared_bytes)
        self.lanes = np.arange(self.threads)
        self.registers = {
            name: np.frombuffer(bytes([POISON]) * (self.threads * 8), storage(kind))[: self.threads].copy()
            for name, kind in kernel.entry.registers.items()
        }
        self.special = {"%tid.x": self.lanes.astype(np.uint32), "%ntid.x": np.array([self.threads], np.uint32)}
        for axis, name in enumerate("xyz"):
            self.special[f"%ctaid.{name}"] = np.array([index[axis]], np.uint32)
            self.special[f"%nctaid.{name}"] = np.array([grid[axis]], np.uint32)
        self.counter = np.zeros(self.threads, np.int64)
        self.exited, self.at_barrier, self.at_collective = (np.zeros(self.threads, bool) for _ in range(3))
        self.committed = np.zeros(self.threads, np.int64)
        self.copies: list[tuple[np.ndarray, ...]] = []  # threads, groups, destinations, bytes

    def run(self) -> None:
        while not self.exited.all():
            ready = ~(self.exited | self.at_barrier | self.at_collective)
            if not ready.any():
                self._leave_barrier()
                continue
            first = int(self.counter[ready].min())
            self._run_from(first, ~(self.exited | self.at_barrier) & (self.counter == first))

    def _run_from(self, at: int, mask: np.ndarray) -> None:
        self.at_collective[mask] = False
        others = self.counter[~(mask | self.exited | self.at_barrier) & (self.counter > at)]
        end = int(others.min()) if others.size else len(self.kernel.steps)
        while at < end:
            instruction, step, guard = self.kernel.steps[at]
            active = mask & guard(self) if guard else mask
            self.counter[mask] = at + 1
            try:
                goes_on = step(self, active)
            except (Fault, Unsupported) as error:
                raise type(error)(instruction.error(str(error))) from error
            if not goes_on:
                return
            at += 1
        if at == len(self.kernel.steps):
            raise Fault("a thread runs past the last instruction")

    def _leave_barrier(self) -> None:
        if not (self.at_barrier | self.exited).all():
            lines = {self.kernel.steps[at][0].line for at in self.counter[self.at_collective]}
            raise Fault(f"the kernel hangs: lanes wait for the rest of their warp at lines {sorted(lines)}")
        self.at_barrier[:] = False
        self.shared.epoch += 1

    def wait_for_warp(self, mask: np.ndarray) -> bool:
        """Whether all lanes of the warps in the mask are here; if not, they wait and no warp goes on yet."""
        warps = mask.reshape(-1, WARP)
        if (warps.all(axis=1) == warps.any(axis=1)).all():
            return True
        self.counter[mask] -= 1
        self.at_collective[mask] = True
        return False


Step = Callable[[Block, np.ndarray], bool]


class Kernel:
    """A decoded kernel with the size of its blocks."""

    def __init__(self, entry: Entry, threads: int, shared_bytes: int) -> None:
        if len(entry.shared) > 1:
            raise Unsupported(f"several arrays in shared memory: {entry.shared}")
        self.entry, self.threads, self.shared_bytes = entry, threads, shared_bytes
        self.steps = [(each, self._step(each), self._guard(each)) for each in entry.instructions]

    def run(self, memory: Global, arguments: Sequence[bytes], grid: Sequence[int]) -> None:
        """Launch ``grid`` blocks; an argument is the bytes of a parameter."""
        sizes = [size for _, size in self.entry.parameters]
        if [len(each) for each in arguments] != sizes:
            raise ValueError(f"arguments of {[len(each) for each in arguments]} bytes for parameters of {sizes}")
        parameters = {name: given for (name, _), given in zip(self.entry.parameters, arguments, strict=True)}
        x, y, z = (*grid, 1, 1)[:3]
        with np.errstate(all="ignore"):
            for i in range(x * y * z):
                Block(self, memory, parameters, (i % x, i // x % y, i // (x * y)), (x, y, z)).run()

    def _step(self, instruction: Instruction) -> Step:
        decode = INSTRUCTIONS.get(instruction.opcode[0])
        if decode is None:
            raise Unsupported(instruction.error("unknown instruction"))
        return decode(self.entry, instruction)

    def _guard(self, instruction: Instruction) -> Callable[[Block], np.ndarray] | None:
        name = instruction.guard
        if name is None or instruction.opcode[0] == "bra":
            return None
        return lambda block: block.registers[name] != instruction.negated
