"""Execution of a kernel: the threads of several blocks at once, in lockstep.

A register is an array with one value a thread, or with a single one while all threads agree. Each
thread has its place among the kernel's basic blocks, in an order in which a loop comes before what
follows it and both sides of a branch before where they join. The least of these places is executed,
by the threads that are there, so that threads which parted meet again where their paths do.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tests.triton.ptx.instructions import guarded_step, step_of
from tests.triton.ptx.memory import Fault, GlobalMemory
from tests.triton.ptx.parse import Kernel
from tests.triton.ptx.threads import DONE, WAITING, Grid, Threads

BATCH = 32  # blocks that run at once
LONGEST = 1_000_000  # basic blocks, before a kernel counts as endless


class Program:
    """A kernel prepared to run with a number of threads per block."""

    def __init__(self, kernel: Kernel, threads: int) -> None:
        self.kernel, self.threads = kernel, threads
        self.blocks = [
            [guarded_step(i, step_of(i, kernel)) for i in block] for block in kernel.blocks
        ]
        self.order = _order(set(range(len(self.blocks))), _successors(kernel))
        self.rank = {block: place for place, block in enumerate(self.order)}

    def run(
        self,
        grid: Grid,
        arguments: Sequence[int],
        memory: GlobalMemory,
        shared: int,
        blocks: Sequence[int] | None = None,
    ) -> None:
        """Run the whole grid, or only the blocks with these numbers. Arguments are bits."""
        numbers = np.arange(grid[0] * grid[1] * grid[2]) if blocks is None else np.array(blocks)
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            threads = Threads(self.kernel, self.rank, self.threads, batch, grid, memory, shared)
            for (name, bits), value in zip(self.kernel.parameters, arguments, strict=True):
                dtype = np.dtype(f"u{bits // 8}")
                threads.arguments[name] = np.array([value & ((1 << bits) - 1)], dtype)
            with np.errstate(all="ignore"):
                self._run_batch(threads)

    def _run_batch(self, threads: Threads) -> None:
        for _ in range(LONGEST):
            here = int(threads.places.min())
            if here >= DONE:
                return
            if here >= WAITING:
                threads.release()
                continue
            there = threads.places == here
            threads.active = active = None if there.all() else np.flatnonzero(there)
            block = self.order[here]
            threads.go(block + 1)
            for step in self.blocks[block]:
                step(threads)
                threads.active = active
        raise Fault(f"{self.kernel.name} does not end")


# --- the order of blocks --------------------------------------------------------------------------


def _successors(kernel: Kernel) -> dict[int, set[int]]:
    """Return the blocks where control may continue after each basic block."""
    found: dict[int, set[int]] = {}
    for number, block in enumerate(kernel.blocks):
        last = block[-1] if block else None
        found[number] = {number + 1} if number + 1 < len(kernel.blocks) else set()
        if last is not None and last.opcode in ("bra", "ret", "exit"):
            if last.guard is None:
                found[number] = set()
            if last.opcode == "bra":
                found[number].add(kernel.labels[last.operands[0].name])  # type: ignore[union-attr]
    return found


def _order(blocks: set[int], successors: dict[int, set[int]]) -> list[int]:
    """Return the blocks in an order in which each comes after all its predecessors, except in
    loops.

    The blocks of a loop stand together, first the one that it is entered at.
    """

    def reached(block: int) -> frozenset[int]:
        found, front = {block}, [block]
        while front:
            new = (successors[front.pop()] & blocks) - found
            found |= new
            front += new
        return frozenset(found)

    reach = {block: reached(block) for block in sorted(blocks)}
    loops = {block: {other for other in reach[block] if block in reach[other]} for block in reach}
    found: list[int] = []
    # What leads elsewhere reaches more.
    for block in sorted(blocks, key=lambda block: (-len(reach[block]), min(loops[block]))):
        if block in found:
            continue
        outside = [s for b, s in successors.items() if b not in loops[block]]
        entries = [b for b in sorted(loops[block]) if any(b in s for s in outside)]
        head = entries[0] if entries else min(loops[block])
        found += [head, *_order(loops[block] - {head}, successors)]
    return found
