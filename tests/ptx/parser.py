"""The text of PTX to instructions.

Only the syntax that nvcc and Triton write for our kernels: declarations of registers, parameters and shared memory,
labels, and instructions with an optional guard. Nested braces are a scope of registers and are dropped: a name that
such a scope declares is never live beyond it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

SIZES = {"8": 1, "16": 2, "32": 4, "64": 8}
_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.DOTALL)
_DEBUG = re.compile(r"^\s*\.(?:loc|file)\b.*$", re.MULTILINE)
_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)([^{};]*)\{", re.DOTALL)
_SHARED = re.compile(r"\.shared\s+(?:\.align\s+(\d+)\s+)?\.b8\s+([\w$]+)\[(\d*)\]")
_PARAMETER = re.compile(r"\.param\s+(?:\.align\s+\d+\s+)?\.[a-z](\d+)\s+(?:\.ptr[ .\w]*?\s)?([\w$]+)(?:\[(\d+)\])?\s*$")
_STATEMENT = re.compile(r"\s*(?:([\w$]+)\s*:(?!:)|([{}])|(\S[^;{}]*(?:\{[^{};]*\}[^;{}]*)*);|(;))")
_REGISTER = re.compile(r"\.reg\s+\.(\w+)\s+(.*)", re.DOTALL)
_INSTRUCTION = re.compile(r"(?:@(!?)(%\w+)\s+)?([\w.:]+)\s*(.*)", re.DOTALL)
_OPERAND = re.compile(r"\s*((?:\{[^}]*\}|\[[^\]]*\]|[^,{\[])+)")


class Unsupported(Exception):
    """PTX that the interpreter does not know."""


@dataclass(frozen=True)
class Instruction:
    """``opcode`` with its modifiers, split at the dots."""

    line: int
    text: str
    guard: str | None
    negated: bool
    opcode: tuple[str, ...]
    operands: tuple[str, ...]

    def error(self, message: str) -> str:
        return f"line {self.line}: {self.text}: {message}"


@dataclass
class Entry:
    """A kernel. ``registers``: name to type; ``labels``: name to the index of the instruction after it."""

    name: str
    parameters: list[tuple[str, int]]
    shared: list[str]
    instructions: list[Instruction] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    registers: dict[str, str] = field(default_factory=dict)


def parse(text: str, name_contains: str = "") -> Entry:
    """The only kernel of the text whose name contains all these words."""
    text = _COMMENT.sub(_blank, _DEBUG.sub(_blank, text))
    words = name_contains.split()
    found = [match for match in _ENTRY.finditer(text) if all(word in match[1] for word in words)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} kernels have {name_contains!r} in their name")
    shared = [match[2] for match in _SHARED.finditer(text)]
    entry = Entry(found[0][1], [_parameter(each) for each in found[0][2].split(",") if each.strip()], shared)
    for line, statement in _statements(text, found[0].end()):
        _add(entry, line, statement)
    return entry


def _blank(match: re.Match[str]) -> str:
    return "\n" * match[0].count("\n")


def _parameter(text: str) -> tuple[str, int]:
    found = _PARAMETER.search(text.strip())
    if found is None:
        raise Unsupported(f"parameter {text.strip()!r}")
    return found[2], SIZES[found[1]] * int(found[3] or 1)


def _statements(text: str, at: int) -> Iterator[tuple[int, str]]:
    """(line, statement) up to the closing brace of the kernel; a label ends with a colon."""
    depth, line = 1, text.count("\n", 0, at) + 1
    while depth:
        found = _STATEMENT.match(text, at)
        if found is None:
            raise Unsupported(f"line {line}: {text[at : at + 80]!r}")
        start, at = found.start(found.lastindex or 0), found.end()
        line += text.count("\n", found.start(), start)
        if found[2]:
            depth += 1 if found[2] == "{" else -1
        elif not found[4]:
            yield line, f"{found[1]}:" if found[1] else " ".join(found[3].split())
        line += text.count("\n", start, at)


def _add(entry: Entry, line: int, statement: str) -> None:
    if not statement or statement.startswith(".pragma"):
        return
    if statement.endswith(":"):
        entry.labels[statement[:-1]] = len(entry.instructions)
    elif found := _REGISTER.fullmatch(statement):
        for name in found[2].split(","):
            entry.registers.update(dict.fromkeys(_names(name.strip()), found[1]))
    elif (found := _INSTRUCTION.fullmatch(statement)) and not statement.startswith("."):
        operands = tuple(each.strip() for each in _OPERAND.findall(found[4]))
        opcode = tuple(found[3].split("."))
        entry.instructions.append(Instruction(line, statement, found[2], bool(found[1]), opcode, operands))
    else:
        raise Unsupported(f"line {line}: {statement}")


def _names(declared: str) -> list[str]:
    """``%r<3>`` declares %r0 to %r2."""
    found = re.fullmatch(r"(\S+)<(\d+)>", declared)
    return [f"{found[1]}{i}" for i in range(int(found[2]))] if found else [declared]
