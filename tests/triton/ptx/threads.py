"""The threads of a batch of blocks: their registers and their positions in the program."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from tests.triton.ptx import semantics
from tests.triton.ptx.memory import Fault, GlobalMemory, SharedMemory, Who
from tests.triton.ptx.parse import Kernel, Literal, Operand, Register, Special, Symbol
from tests.triton.ptx.semantics import Unsupported, bits_of, decode, encode

Array = npt.NDArray[Any]
Grid = tuple[int, int, int]

WARP = 32
DONE = 1 << 40  # the place after the kernel's end
WAITING = 1 << 20  # added to the place of a thread that waits at a barrier


class Threads:
    """The threads of a batch of blocks, and which of them execute at present.

    `active` holds their numbers, or None where all do.

    Of a register that only some threads wrote, the others may read it, as a warp's lanes do when
    all of them shuffle what the first few loaded. What comes of it counts as unwritten too, and
    must not reach a predicate that is acted on, an address or a store.
    """

    def __init__(
        self,
        kernel: Kernel,
        rank: dict[int, int],
        per_block: int,
        blocks: Array,
        grid: Grid,
        memory: GlobalMemory,
        shared: int,
    ) -> None:
        self.count = len(blocks) * per_block
        self.kernel, self.memory, self.rank = kernel, memory, rank
        self.arguments: dict[str, Array] = {}
        self.registers: list[Array | None] = [None] * len(kernel.widths)
        self.unwritten: dict[int, Array] = {}  # of registers, the threads whose value is so
        self.active: Array | None = None
        self.places = np.zeros(self.count, np.int64)

        everyone = np.arange(self.count)
        self.tid, self.block = everyone % per_block, everyone // per_block
        self.thread = np.repeat(blocks, per_block) * per_block + self.tid + 1
        self.warp = (self.thread - 1) // WARP
        of_block = np.repeat(blocks, per_block)
        values: dict[str, tuple[Any, Any, Any]] = {
            "tid": (self.tid, 0, 0), "ntid": (per_block, 1, 1), "nctaid": grid
        }  # fmt: skip
        values["ctaid"] = (of_block % grid[0], of_block // grid[0] % grid[1],
                           of_block // grid[0] // grid[1])  # fmt: skip
        self.specials = {"%laneid": self.tid % WARP}
        for name, axes in values.items():
            for axis, value in zip("xyz", axes, strict=True):
                self.specials[f"%{name}.{axis}"] = np.atleast_1d(value)

        self.shared = SharedMemory(len(blocks), shared)
        self.time = 1
        self.block_time = np.zeros(self.count, np.int64)
        self.warp_time = np.zeros(self.count, np.int64)

    # --- registers ---

    def read(self, operand: Operand, kind: str) -> Array:
        """Return an operand's value for each active thread, as values of a type. It is used, so
        none may be unwritten.
        """
        if self.unwritten_in(operand) is not None:
            assert isinstance(operand, Register)
            raise Fault(f"{operand.name} is read by threads that did not write it")
        return self.peek(operand, kind)

    def unwritten_in(self, *operands: Operand) -> Array | None:
        """Return for each active thread whether any of the operands is unwritten; None if none."""
        found = None
        for operand in operands:
            if isinstance(operand, Register) and operand.number in self.unwritten:
                of_it = self.select(self.unwritten[operand.number])
                found = of_it if found is None else found | of_it
        return found if found is not None and found.any() else None

    def peek(self, operand: Operand, kind: str) -> Array:
        """Return an operand's value for each active thread, some of which may be unwritten."""
        bits = bits_of(kind)
        if isinstance(operand, Literal):
            constant = operand.bits != 0 if kind == "pred" else operand.bits
            mask = (1 << 8 * bits.itemsize) - 1
            return decode(np.array([constant & mask], bits), kind)
        if isinstance(operand, Special):
            if operand.name not in self.specials:
                raise Unsupported(operand.name)
            return decode(self.select(self.specials[operand.name]).astype(bits), kind)
        if isinstance(operand, Symbol):
            if operand.name != self.kernel.shared:
                raise Unsupported(operand.name)
            return decode(np.zeros(1, bits), kind)
        assert isinstance(operand, Register)
        number = operand.number
        held = self.registers[number]
        if held is None:
            raise Fault(f"{operand.name} is read before it is written")
        value = self.select(held)
        if operand.negated:
            value = ~value
        if value.dtype != bits:
            if value.dtype.itemsize < bits.itemsize:
                raise Fault(f"{operand.name} is narrower than .{kind}")
            value = value.astype(bits)
        return decode(value, kind)

    def write(
        self, operand: Operand, values: Array, kind: str, unwritten: Array | None = None
    ) -> None:
        """Write the active threads' values to a register; wider ones are extended. Where
        `unwritten`, they count as such.
        """
        if isinstance(operand, Symbol) and operand.name == "_":
            return
        assert isinstance(operand, Register)
        if kind in semantics.INTEGERS and 8 * values.dtype.itemsize < operand.width:
            values = values.astype(f"{values.dtype.kind}{operand.width // 8}")
            bits = values.view(f"u{operand.width // 8}")
        else:
            bits = encode(values, kind)
            if operand.width > 1 and 8 * bits.itemsize != operand.width:
                if 8 * bits.itemsize > operand.width:
                    raise Fault(f"{operand.name} is narrower than .{kind}")
                bits = bits.astype(f"u{operand.width // 8}")
        number = operand.number
        held = self.registers[number]
        if self.active is None:
            self.registers[number] = bits
            self.unwritten.pop(number, None)
            if unwritten is not None:
                self.unwritten[number] = np.array(unwritten)
            return
        if held is None:
            held = np.zeros(self.count, bits.dtype)
            self.unwritten[number] = np.ones(self.count, bool)
        else:
            held = np.array(np.broadcast_to(held, self.count))
        held[self.active] = bits
        self.registers[number] = held
        if unwritten is not None or number in self.unwritten:
            of_all = self.unwritten.setdefault(number, np.zeros(self.count, bool))
            of_all[self.active] = False if unwritten is None else unwritten

    def select(self, values: Array) -> Array:
        """Return the active threads' part of an array for all threads."""
        return values if self.active is None or len(values) == 1 else values[self.active]

    def spread(self, values: Array) -> Array:
        """Return a value for each active thread; a single one may be given for all."""
        active = self.count if self.active is None else len(self.active)
        return np.broadcast_to(values, active) if len(values) != active else values

    def who(self) -> Who:
        """Return the active threads, for the shared memory."""
        block_time, warp_time = self.select(self.block_time), self.select(self.warp_time)
        threads, warps = self.select(self.thread), self.select(self.warp)
        return Who(threads, warps, block_time, warp_time, self.time)

    # --- order ---

    def go(self, block: int) -> None:
        """Continue the active threads at a basic block, or end them after the last."""
        place = self.rank[block] if block < len(self.rank) else DONE
        if self.active is None:
            self.places[:] = place
        else:
            self.places[self.active] = place

    def release(self) -> None:
        """Open the barrier of each block whose threads all wait there."""
        per_block = self.places.reshape(int(self.block[-1]) + 1, -1)
        together = (per_block == per_block[:, :1]).all(1) & (per_block[:, 0] < DONE)
        if not together.any():
            waiting = int((self.places < DONE).sum())
            raise Fault(f"a barrier that {waiting} threads reach and others of their block do not")
        opened = together[self.block]
        self.places[opened] -= WAITING
        self.time += 1
        self.block_time[opened] = self.time

    def end_of_warp_barrier(self) -> None:
        """Order the previous accesses of the active warps before later ones."""
        self.time += 1
        self.warp_time[slice(None) if self.active is None else self.active] = self.time
