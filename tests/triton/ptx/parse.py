"""The parser: from PTX text to basic blocks of instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

WIDTHS = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "f32": 32, "f64": 64}
WIDTHS |= {f"{kind}{bits}": bits for kind in "us" for bits in (8, 16, 32, 64)}


class Register(NamedTuple):
    """A register, by its index among those of the kernel; predicates may be negated."""

    name: str
    number: int
    width: int
    negated: bool = False


class Literal(NamedTuple):
    """A constant: an integer, or the bits of a float."""

    bits: int


class Special(NamedTuple):
    """A special register such as %tid.x."""

    name: str


class Symbol(NamedTuple):
    """A label, a parameter or a variable."""

    name: str


class Address(NamedTuple):
    """A memory address [base + offset]."""

    base: Register | Symbol
    offset: int


class Vector(NamedTuple):
    """A vector {a, b, ...}, or the pair p|q of predicates."""

    parts: tuple[Register | Literal, ...]


Operand = Register | Literal | Special | Symbol | Address | Vector


@dataclass(frozen=True)
class Instruction:
    """An instruction `@guard opcode.modifiers operands`, and its line number in the PTX."""

    line: int
    text: str
    guard: Register | None
    opcode: str
    modifiers: tuple[str, ...]
    operands: tuple[Operand, ...]

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}"


@dataclass
class Kernel:
    """A kernel's parameters [(name, bits)], the name of its shared memory, its registers' widths,
    and its basic blocks.

    Control enters a block at its first instruction only; `labels` says which block a label begins.
    """

    name: str
    parameters: list[tuple[str, int]]
    shared: str | None
    widths: list[int] = field(default_factory=list)
    blocks: list[list[Instruction]] = field(default_factory=lambda: [[]])
    labels: dict[str, int] = field(default_factory=dict)


# A block ends after these.
ENDS = {"bra", "ret", "exit", "bar", "barrier"}
_REGISTERS = re.compile(r"\.reg\s+\.(\w+)\s+([%\w]+)(?:<(\d+)>)?")
_OPERAND = re.compile(r"\[[^\]]*\]|\{[^}]*\}|[^,\s][^,]*")


def parse(text: str) -> Kernel:
    """Return the only kernel of a PTX module."""
    text = re.sub(r"//.*|\.(?:loc|file)\b.*", "", text)
    head = re.search(r"\.entry\s+(\w+)\s*\(([^)]*)\)", text)
    if head is None:
        raise ValueError("the PTX has no kernel")
    declared = re.findall(r"\.param\s+\.(\w+)[^,]*?(\w+)\s*(?:,|$)", head[2].strip())
    shared = re.search(r"\.extern\s+\.shared\s[^;]*?(\w+)\[\]\s*;", text)
    parameters = [(name, WIDTHS[kind]) for kind, name in declared]
    kernel = Kernel(head[1], parameters, shared[1] if shared else None)
    begin = text.index("{", head.end())
    first_line = text.count("\n", 0, begin) + 1
    targets = set(re.findall(r"\bbra(?:\.uni)?\s+([$\w]+)", text))
    names: list[dict[str, int]] = []
    for line, statement in _statements(text[begin:], first_line):
        if statement == "{":
            names.append({})
        elif statement == "}":
            names.pop()
            if not names:
                return kernel
        elif statement.endswith(":"):
            if statement[:-1] not in targets:  # a label for the debugger
                continue
            if kernel.blocks[-1]:
                kernel.blocks.append([])
            kernel.labels[statement[:-1]] = len(kernel.blocks) - 1
        elif found := _REGISTERS.match(statement):
            kind, name, count = found.groups()
            for i in range(int(count or 1)):
                names[-1][f"{name}{i}" if count else name] = len(kernel.widths)
                kernel.widths.append(WIDTHS[kind])
        elif not statement.startswith("."):
            kernel.blocks[-1].append(_instruction(line, statement, kernel, names))
            if kernel.blocks[-1][-1].opcode in ENDS:
                kernel.blocks.append([])
    raise ValueError("the PTX ends within its kernel")


def _statements(body: str, line: int) -> Iterator[tuple[int, str]]:
    """Yield labels, braces of scopes and statements without their semicolons, with their lines."""
    # A brace opens a scope where a statement begins; within one it belongs to an operand.
    token = re.compile(r"\s*(?:([{}])|([$\w]+:)(?!:)|(\.section[^\n]*)|([^;]*?)\s*;)", re.DOTALL)
    at = 0
    while at < len(body.rstrip()):
        match = token.match(body, at)
        if match is None:
            raise ValueError(f"line {line}: not PTX: {body[at : at + 80]!r}")
        start = line + body.count("\n", at, match.end()) - match[0].lstrip().count("\n")
        line += body.count("\n", at, match.end())
        at = match.end()
        text = next(group for group in match.groups() if group is not None)
        if text:
            yield start, " ".join(text.split())


def _instruction(line: int, text: str, kernel: Kernel, names: list[dict[str, int]]) -> Instruction:
    match = re.match(r"(?:@(!?)([%\w]+)\s+)?([\w.:]+)\s*(.*)", text)
    if match is None:
        raise ValueError(f"line {line}: not an instruction: {text}")
    negated, guard, opcode, rest = match.groups()

    def register(name: str, negated: bool = False) -> Register | None:
        for scope in reversed(names):
            if name in scope:
                return Register(name, scope[name], kernel.widths[scope[name]], negated)
        return None

    def operand(written: str) -> Any:
        written = written.strip()
        if found := register(written.lstrip("!"), written.startswith("!")):
            return found
        if written[0] == "{":
            return Vector(tuple(operand(part) for part in written[1:-1].split(",")))
        if "|" in written:
            return Vector(tuple(operand(part) for part in written.split("|")))
        if written[0] == "[":
            base, _, offset = written[1:-1].replace(" ", "").partition("+")
            return Address(operand(base), int(offset or "0", 0))
        if written[0] == "%":
            return Special(written)
        if re.fullmatch(r"0[fFdD][0-9a-fA-F]+", written):
            return Literal(int(written[2:], 16))
        if re.fullmatch(r"-?(?:0[xX][0-9a-fA-F]+|\d+)U?", written):
            return Literal(int(written.rstrip("U"), 0))
        return Symbol(written)

    # A block's own shared memory, where blocks may share theirs.
    name, *modifiers = opcode.replace("shared::cta", "shared").split(".")
    operands = tuple(operand(part) for part in _OPERAND.findall(rest))
    of_guard = register(guard, negated == "!") if guard else None
    return Instruction(line, text, of_guard, name, tuple(modifiers), operands)
