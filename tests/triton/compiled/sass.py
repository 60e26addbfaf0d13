"""Machine code as cuobjdump prints it, and functions that count in it.

What a warp executes is counted, not what stands in the kernel:

- An instruction counts once where it can be reached from the kernel's first without passing a block
  that calls: calls are the slow paths of roots, quotients and 64-bit divisions, which ordinary
  numbers do not take. A predicate does not matter, as an instruction whose predicate is false takes
  its turn all the same. Of an if and its else both count.
- A loop is what stands between a branch backwards and its target. Each of its instructions counts
  once for a turn.
- A thread that has nothing to do, as its column lies beyond the last, executes all the same: the
  count is of all threads of the grid, divided by the elements that the problem has.
"""

from __future__ import annotations

import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from tests.triton.compiled.launches import cuobjdump

LINE = re.compile(r"/\*([0-9a-f]{4,})\*/\s+(?:(@!?U?P\w+)\s+)?([A-Z][\w.]*)([^;]*);")


class Instruction(NamedTuple):
    """One instruction, and its predicate if it has one."""

    at: int
    guard: str
    opcode: str
    operands: str

    def target(self) -> int:
        """Return the address that a branch or a BSSY names, its last operand."""
        return int(self.operands.split(",")[-1], 16)


class Code:
    """The instructions of one kernel, of which `hot` holds those that a warp executes."""

    def __init__(self, text: str) -> None:
        found = [
            Instruction(int(m[1], 16), m[2] or "", m[3], m[4].strip()) for m in LINE.finditer(text)
        ]
        self.instructions = {x.at: x for x in found}
        self.after = dict(zip(self.instructions, [*list(self.instructions)[1:], -1], strict=True))
        self.branches = [x for x in found if re.match(r"BRA\b(?!\.DIV)", x.opcode)]
        self.hot = self._reached()

    def _successors(self, x: Instruction) -> list[int]:
        """Return the addresses where control may continue after an instruction."""
        name = x.opcode.split(".")[0]
        following = [self.after[x.at]]
        if name in ("EXIT", "RET"):
            return following if x.guard else []
        if name == "BSYNC":  # threads continue where the last BSSY of the register says
            before = [y for y in self.instructions.values() if y.at < x.at]
            begins = [y for y in before if y.opcode.startswith("BSSY")]
            return [[y.target() for y in begins if y.operands.startswith(f"{x.operands},")][-1]]
        if x.opcode == "BRA.DIV":  # taken by threads that have diverged, which ours do not
            return following
        if name == "BRA":
            unconditional = not x.guard and "," not in x.operands
            return [x.target()] if unconditional else [x.target(), *following]
        assert name not in ("BRX", "JMP", "JMX", "JMXU", "BRXU"), f"unknown control flow: {x}"
        return following

    def _reached(self) -> set[int]:
        """Return the addresses reached without a block that calls."""
        begins = {y for x in self.branches for y in (x.target(), self.after[x.at])}
        slow, block = set(), []
        for at, x in self.instructions.items():
            block = [at] if at in begins else [*block, at]
            if x.opcode.startswith("CALL") and not x.guard:
                slow |= set(block)
        front, found = [next(iter(self.instructions))], set()
        while front:
            at = front.pop()
            if at not in found and at not in slow:
                found.add(at)
                front += self._successors(self.instructions[at])
        ends = [self.instructions[at].opcode for at in found if not self.instructions[at].guard]
        assert "EXIT" in ends, "the kernel does not end without a call"
        return found

    def loop(self) -> set[int]:
        """Return the addresses of the longest loop that contains no other loop, or none."""
        hot = [x for x in self.branches if x.at in self.hot]
        loops = [(x.target(), x.at) for x in hot if x.target() < x.at]
        inner = [(a, b) for a, b in loops if not any(a <= c and d < b for c, d in loops)]
        bodies = [{at for at in self.hot if a <= at <= b} for a, b in inner]
        return max(bodies, key=len, default=set())

    def accesses(self, kind: str, among: set[int]) -> str:
        """Return the number and the width of the loads ("LDG") or stores ("STG"): "2x128 1x32"."""
        widths: Counter[int] = Counter()
        for at in among:
            opcode, *modifiers = self.instructions[at].opcode.split(".")
            named = [m for m in modifiers if re.fullmatch(r"[US]?(8|16|64|128)", m)]
            if opcode == kind:
                widths[int(named[0].lstrip("US")) if named else 32] += 1
        return " ".join(f"{n}x{width}" for width, n in sorted(widths.items(), reverse=True))

    def count(self, opcode: str, among: set[int]) -> int:
        """Return how many instructions of a kind there are."""
        return sum(self.instructions[at].opcode.split(".")[0] == opcode for at in among)


def disassembled(cubin: bytes, folder: Path) -> tuple[Code, int, int]:
    """Return a kernel's code, the registers of a thread and its bytes of local memory."""
    path, tool = folder / "kernel.cubin", cuobjdump()
    assert tool is not None
    path.write_bytes(cubin)
    command = [tool, "-sass", "--dump-resource-usage", str(path)]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    used = re.findall(r"REG:(\d+) STACK:(\d+) SHARED:\d+ LOCAL:(\d+)", text)
    assert len(used) == 1, text
    registers, stack, local = map(int, used[0])
    return Code(text), registers, stack + local
