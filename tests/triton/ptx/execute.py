"""Runs a kernel: the threads of several blocks at once, in lockstep.

A register is an array with one value a thread, or with a single one while all threads agree. Each
thread has its place among the kernel's basic blocks, in an order in which a loop comes before what
follows it and both sides of a branch before where they join. The least of these places is executed,
by the threads that are there, so that threads which parted meet again where their paths do.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.triton.ptx import semantics
from tests.triton.ptx.memory import Fault, GlobalMemory, SharedMemory, Who
from tests.triton.ptx.parse import (
    Address,
    Instruction,
    Kernel,
    Literal,
    Operand,
    Register,
    Special,
    Symbol,
    Vector,
)
from tests.triton.ptx.semantics import Unsupported, bits_of, decode, encode

Array = npt.NDArray[Any]
Step = Callable[["Threads"], None]
Grid = tuple[int, int, int]

WARP = 32
BATCH = 32  # blocks that run at once
LONGEST = 1_000_000  # basic blocks, before a kernel counts as endless
REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
              "or": np.bitwise_or, "xor": np.bitwise_xor}  # fmt: skip
DONE = 1 << 40  # a place after the kernel
WAITING = 1 << 20  # added to the place of a thread that waits at a barrier


class Threads:
    """The threads of a batch of blocks, and those of them that execute at present.

    `active` holds their numbers, or None where all do.
    """

    def __init__(
        self, program: Program, blocks: Array, grid: Grid, memory: GlobalMemory, shared: int
    ) -> None:
        per_block, kernel = program.threads, program.kernel
        self.count = len(blocks) * per_block
        self.kernel, self.memory, self.rank = kernel, memory, program.rank
        self.arguments: dict[str, Array] = {}
        self.registers: list[Array | None] = [None] * len(kernel.widths)
        self.written: dict[int, Array] = {}  # of registers that not all threads wrote
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
        """Return an operand's value for each active thread, as values of a type."""
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
        if number in self.written and not self.select(self.written[number]).all():
            raise Fault(f"{operand.name} is read by threads that did not write it")
        value = self.select(held)
        if operand.negated:
            value = ~value
        if value.dtype != bits:
            if value.dtype.itemsize < bits.itemsize:
                raise Fault(f"{operand.name} is narrower than .{kind}")
            value = value.astype(bits)
        return decode(value, kind)

    def write(self, operand: Operand, values: Array, kind: str) -> None:
        """Give a register the active threads' values; wider ones are extended."""
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
        if self.active is None:
            self.registers[number] = bits
            self.written.pop(number, None)
            return
        held = self.registers[number]
        if held is None:
            held = np.zeros(self.count, bits.dtype)
            self.written[number] = np.zeros(self.count, bool)
        else:
            held = np.array(np.broadcast_to(held, self.count))
        held[self.active] = bits
        self.registers[number] = held
        if number in self.written:
            self.written[number][self.active] = True

    def select(self, values: Array) -> Array:
        """Of an array for all threads, what the active ones have."""
        return values if self.active is None or len(values) == 1 else values[self.active]

    def spread(self, values: Array) -> Array:
        """Return a value for each active thread, where a single one may stand for all."""
        active = self.count if self.active is None else len(self.active)
        return np.broadcast_to(values, active) if len(values) != active else values

    def who(self) -> Who:
        """The active threads, for the shared memory."""
        block_time, warp_time = self.select(self.block_time), self.select(self.warp_time)
        threads, warps = self.select(self.thread), self.select(self.warp)
        return Who(threads, warps, block_time, warp_time, self.time)

    # --- order ---

    def go(self, block: int) -> None:
        """Let the active threads go on at a basic block, or end after the last."""
        place = self.rank[block] if block < len(self.rank) else DONE
        if self.active is None:
            self.places[:] = place
        else:
            self.places[self.active] = place

    def release(self) -> None:
        """Open the barrier of each block of which every thread waits there."""
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
        """Order what the active warps did before."""
        self.time += 1
        self.warp_time[slice(None) if self.active is None else self.active] = self.time


class Program:
    """A kernel made ready to run with a number of threads to a block."""

    def __init__(self, kernel: Kernel, threads: int) -> None:
        self.kernel, self.threads = kernel, threads
        self.blocks = [[_guarded(i, _step(i, kernel)) for i in block] for block in kernel.blocks]
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
        """Run the grid, or of it the blocks with these numbers. Arguments are bits."""
        numbers = np.arange(grid[0] * grid[1] * grid[2]) if blocks is None else np.array(blocks)
        for first in range(0, len(numbers), BATCH):
            batch = numbers[first : first + BATCH]
            threads = Threads(self, batch, grid, memory, shared)
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
    """Return where control may go after each basic block."""
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
    """Return the blocks so that each comes after all that lead to it, loops aside.

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


# --- instructions ---------------------------------------------------------------------------------


def _guarded(instruction: Instruction, step: Step) -> Step:
    """Execute by the threads whose guard holds; name the instruction in what goes wrong."""
    guard = instruction.guard

    def guarded(threads: Threads) -> None:
        try:
            if guard is not None:
                holds = threads.spread(threads.read(guard, "pred"))
                if not holds.any():
                    return
                if not holds.all():
                    active = threads.active
                    threads.active = np.flatnonzero(holds) if active is None else active[holds]
            step(threads)
        except (Fault, Unsupported, ZeroDivisionError) as error:
            raise type(error)(f"{error}\n  {threads.kernel.name}, {instruction}") from None

    return guarded


def _step(instruction: Instruction, kernel: Kernel) -> Step:
    """Return what an instruction does to its threads."""
    try:
        special = {
            "bra": _branch, "ret": _return, "exit": _return, "bar": _barrier, "barrier": _barrier,
            "mov": _move, "ld": _load, "st": _store, "shfl": _shuffle, "redux": _reduce,
            "ldmatrix": _load_matrix, "stmatrix": _store_matrix,
        }.get(instruction.opcode)  # fmt: skip
        return special(instruction, kernel) if special else _arithmetic(instruction)
    except Unsupported as error:
        raise Unsupported(
            f"the interpreter does not know {error}\n  {kernel.name}, {instruction}"
        ) from None


def _arithmetic(instruction: Instruction) -> Step:
    target, *sources = instruction.operands
    found = semantics.arithmetic(instruction.opcode, instruction.modifiers, len(sources))
    function, result = found.function, found.result
    typed = list(zip(sources, found.operands, strict=True))
    if isinstance(target, Vector):  # of a pair's comparison, two predicates
        first, second = target.parts

        def pairs(threads: Threads) -> None:
            values = function(*(threads.read(x, kind) for x, kind in typed))
            for register, values_of in zip((first, second), values.T, strict=True):
                threads.write(register, values_of, result)

        return pairs

    def step(threads: Threads) -> None:
        threads.write(target, function(*(threads.read(x, kind) for x, kind in typed)), result)

    return step


def _move(instruction: Instruction, _kernel: Kernel) -> Step:
    """A copy; or the parts of a register into several, or the other way, the lowest first."""
    target, source = instruction.operands
    (kind,) = instruction.modifiers
    bits = int(kind[1:]) if kind != "pred" else 1
    whole = f"u{bits}" if bits > 1 else "pred"

    def copy(threads: Threads) -> None:
        threads.write(target, threads.read(source, whole), whole)

    def unpack(threads: Threads) -> None:
        assert isinstance(target, Vector)
        part = f"u{bits // len(target.parts)}"
        values = threads.read(source, whole).view(semantics.TYPES[part])
        for i, register in enumerate(target.parts):
            threads.write(register, values[i :: len(target.parts)], part)

    def pack(threads: Threads) -> None:
        assert isinstance(source, Vector)
        part = f"u{bits // len(source.parts)}"
        values = np.broadcast_arrays(*(threads.read(x, part) for x in source.parts))
        packed = np.ascontiguousarray(np.stack(values, -1)).view(semantics.TYPES[whole])
        threads.write(target, packed.reshape(-1), whole)

    if isinstance(target, Vector):
        return unpack
    return pack if isinstance(source, Vector) else copy


# --- branches and barriers ---


def _branch(instruction: Instruction, kernel: Kernel) -> Step:
    (label,) = instruction.operands
    assert isinstance(label, Symbol)
    block = kernel.labels[label.name]
    return lambda threads: threads.go(block)


def _return(_instruction: Instruction, _kernel: Kernel) -> Step:
    return lambda threads: threads.go(len(threads.rank))


def _barrier(instruction: Instruction, kernel: Kernel) -> Step:
    if instruction.modifiers[0] == "warp":
        mask = instruction.operands[0]

        def warp(threads: Threads) -> None:
            _whole_warps(threads, mask)
            threads.end_of_warp_barrier()

        return warp
    if instruction.operands != (Literal(0),):
        raise Unsupported("a barrier of part of a block")

    def wait(threads: Threads) -> None:
        active = slice(None) if threads.active is None else threads.active
        threads.places[active] += WAITING

    return wait


def _whole_warps(threads: Threads, mask: Operand) -> Array:
    """Return [threads] -> whether it is active, which must hold for all lanes of the mask, -1."""
    if not (threads.read(mask, "u32") == 0xFFFFFFFF).all():
        raise Unsupported("a mask of part of a warp")
    active = np.zeros(threads.count, bool)
    active[slice(None) if threads.active is None else threads.active] = True
    lanes = active.reshape(-1, WARP)
    if (lanes.any(1) != lanes.all(1)).any():
        raise Fault("lanes of its mask do not take part")
    return active


# --- lanes ---


def _shuffle(instruction: Instruction, _kernel: Kernel) -> Step:
    """`shfl.sync`: a value from another lane, or the lane's own where that is out of range."""
    target, source, b, c, mask = instruction.operands
    mode = instruction.modifiers[1]
    known = [("sync", mode, "b32") for mode in ("up", "down", "bfly", "idx")]
    if instruction.modifiers not in known or isinstance(target, Vector):
        raise Unsupported("it")

    def step(threads: Threads) -> None:
        _whole_warps(threads, mask)
        values, by, limits = (
            threads.spread(threads.read(x, "u32")).astype(np.int64) for x in (source, b, c)
        )
        lane = threads.select(threads.specials["%laneid"])
        by, clamp, segment = by & 31, limits & 31, limits >> 8 & 31
        highest = (lane & segment) | (clamp & ~segment)
        if mode == "up":
            other = lane - by
            inside = other >= highest
        else:
            other = {"down": lane + by, "bfly": lane ^ by}.get(
                mode, (lane & segment) | (by & ~segment)
            )
            inside = other <= highest
        # Whole warps are active, in their order, so that a lane's neighbours lie beside it.
        at = np.arange(len(lane)) - lane + np.where(inside, other, lane)
        threads.write(target, values[at].astype(np.uint32), "u32")

    return step


def _reduce(instruction: Instruction, _kernel: Kernel) -> Step:
    """`redux.sync`: a warp's values, added up or the like."""
    target, source, mask = instruction.operands
    sync, name, kind = instruction.modifiers
    if sync != "sync" or name not in REDUCTIONS or kind not in semantics.INTEGERS:
        raise Unsupported("it")
    reduce = REDUCTIONS[name].reduce

    def step(threads: Threads) -> None:
        _whole_warps(threads, mask)
        values = threads.spread(threads.read(source, kind))
        found = reduce(values.reshape(-1, WARP), axis=1, dtype=values.dtype)
        threads.write(target, np.repeat(found, WARP), kind)

    return step


# --- memory ---


def _parts(operand: Operand) -> tuple[Operand, ...]:
    return operand.parts if isinstance(operand, Vector) else (operand,)


def _addresses(threads: Threads, address: Operand, kind: str) -> Array:
    assert isinstance(address, Address)
    base = threads.spread(threads.read(address.base, kind))
    return base + base.dtype.type(address.offset & ((1 << 8 * base.itemsize) - 1))


def _load(instruction: Instruction, kernel: Kernel) -> Step:
    targets, address = _parts(instruction.operands[0]), instruction.operands[1]
    space, kind = instruction.modifiers[0], instruction.modifiers[-1]
    _check_access(instruction, len(targets))
    dtype = semantics.TYPES[kind]
    assert isinstance(address, Address)

    def parameter(threads: Threads) -> None:
        assert isinstance(address.base, Symbol)
        value = threads.arguments[address.base.name]
        threads.write(targets[0], value.astype(f"u{dtype.itemsize}").view(dtype), kind)

    def from_global(threads: Threads) -> None:
        at = _addresses(threads, address, "u64")
        threads_of = threads.select(threads.thread)
        found = threads.memory.load(at, dtype.itemsize, len(targets), threads_of)
        for target, value in zip(targets, found, strict=True):
            threads.write(target, value.view(dtype), kind)

    def from_shared(threads: Threads) -> None:
        found = _shared_load(threads, _addresses(threads, address, "u32"), dtype, len(targets))
        for i, target in enumerate(targets):
            threads.write(target, found[:, i], kind)

    if space == "param":
        if address.offset or len(targets) != 1:
            raise Unsupported("an offset into a parameter")
        return parameter
    return from_shared if space == "shared" else from_global


def _shared_load(threads: Threads, addresses: Array, dtype: Any, count: int) -> Array:
    size = dtype.itemsize * count
    at = threads.shared.places(threads.select(threads.block), addresses, size, size)
    return threads.shared.load(at, threads.who()).view(dtype)


def _store(instruction: Instruction, _kernel: Kernel) -> Step:
    address, sources = instruction.operands[0], _parts(instruction.operands[1])
    space, kind = instruction.modifiers[0], instruction.modifiers[-1]
    _check_access(instruction, len(sources))
    bits = f"b{8 * semantics.TYPES[kind].itemsize}"

    def to_global(threads: Threads) -> None:
        at = _addresses(threads, address, "u64")
        values = [threads.spread(threads.read(x, bits)) for x in sources]
        size = semantics.TYPES[kind].itemsize
        threads.memory.store(at, size, values, threads.select(threads.thread))

    def to_shared(threads: Threads) -> None:
        values = np.stack([threads.spread(threads.read(x, bits)) for x in sources], -1)
        _shared_store(threads, _addresses(threads, address, "u32"), values)

    return to_shared if space == "shared" else to_global


def _shared_store(threads: Threads, addresses: Array, values: Array) -> None:
    as_bytes = np.ascontiguousarray(values).view(np.uint8)
    size = as_bytes.shape[1]
    at = threads.shared.places(threads.select(threads.block), addresses, size, size)
    threads.shared.store(at, as_bytes, threads.who())


def _check_access(instruction: Instruction, parts: int) -> None:
    """Of an access's modifiers only the caches' do not matter here."""
    space, *flags, kind = instruction.modifiers
    vector = f"v{parts}" if parts > 1 else None
    hints = {"nc", "ca", "cg", "cs", "cv", "wb", "wt", "L1::evict_last", "L1::evict_first",
             "L1::no_allocate", "L1::evict_normal"}  # fmt: skip
    if space not in ("global", "shared", "param") or kind not in semantics.INTEGERS | {
        "f32": 0,
        "f64": 0,
    }:
        raise Unsupported("it")
    if set(flags) - hints - {vector} or (vector and vector not in flags):
        raise Unsupported("its modifiers")


def _matrix(instruction: Instruction, registers: Operand) -> int:
    """Return how many 8 x 8 matrices of 16-bit elements an instruction moves."""
    count = len(_parts(registers))
    if instruction.modifiers != ("sync", "aligned", "m8n8", f"x{count}", "shared", "b16"):
        raise Unsupported("its modifiers")
    return count


def _rows(threads: Threads, address: Operand, matrix: int) -> Array:
    """Where each lane's two elements of a matrix lie: lane l has elements 2 (l % 4) and the next of
    row l / 4, whose address is lane 8 matrix + l / 4's.
    """
    addresses = _addresses(threads, address, "u32")
    _whole_warps(threads, Literal(-1))
    lane = threads.select(threads.specials["%laneid"])
    rows = addresses[np.arange(len(lane)) - lane + 8 * matrix + lane // 4]
    if (rows & 15).any():
        raise Fault("a row of a matrix that is not aligned, in shared memory")
    return rows + (4 * (lane % 4)).astype(np.uint32)


def _load_matrix(instruction: Instruction, _kernel: Kernel) -> Step:
    targets, address = instruction.operands
    count = _matrix(instruction, targets)

    def step(threads: Threads) -> None:
        rows = [_rows(threads, address, i) for i in range(count)]
        for target, at in zip(_parts(targets), rows, strict=True):
            threads.write(target, _shared_load(threads, at, np.dtype("u4"), 1)[:, 0], "u32")

    return step


def _store_matrix(instruction: Instruction, _kernel: Kernel) -> Step:
    address, sources = instruction.operands
    count = _matrix(instruction, sources)

    def step(threads: Threads) -> None:
        for i, source in zip(range(count), _parts(sources), strict=True):
            values = threads.spread(threads.read(source, "u32"))
            _shared_store(threads, _rows(threads, address, i), values[:, None])

    return step
