"""The effect of each instruction on the threads that execute it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.triton.ptx import semantics
from tests.triton.ptx.memory import Fault
from tests.triton.ptx.parse import (
    Address,
    Instruction,
    Kernel,
    Literal,
    Operand,
    Symbol,
    Vector,
)
from tests.triton.ptx.semantics import Unsupported
from tests.triton.ptx.threads import WAITING, WARP, Threads

Array = npt.NDArray[Any]
Step = Callable[[Threads], None]

REDUCTIONS = {"add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and,
              "or": np.bitwise_or, "xor": np.bitwise_xor}  # fmt: skip


def guarded_step(instruction: Instruction, step: Step) -> Step:
    """Execute for the threads whose guard holds; name the instruction in any error."""
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


def step_of(instruction: Instruction, kernel: Kernel) -> Step:
    """Return the function that executes an instruction for its threads."""
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
            unwritten = threads.unwritten_in(*sources)
            values = function(*(threads.peek(x, kind) for x, kind in typed))
            for register, values_of in zip((first, second), values.T, strict=True):
                threads.write(register, values_of, result, unwritten)

        return pairs

    selects = instruction.opcode == "selp"

    def step(threads: Threads) -> None:
        unwritten = threads.unwritten_in(*sources)
        if selects and unwritten is not None:
            unwritten = _unwritten_choice(threads, *sources)
        values = function(*(threads.peek(x, kind) for x, kind in typed))
        threads.write(target, values, result, unwritten)

    return step


def _unwritten_choice(threads: Threads, a: Operand, b: Operand, chooses: Operand) -> Array:
    """Return whether the operand that a select chooses is unwritten; the other one may be."""
    of_a, of_b, of_choice = (
        np.zeros(1, bool) if found is None else found
        for found in map(threads.unwritten_in, (a, b, chooses))
    )
    return threads.spread(of_choice | np.where(threads.peek(chooses, "pred"), of_a, of_b))


def _move(instruction: Instruction, _kernel: Kernel) -> Step:
    """Return the step of `mov`: a copy, the split of a register into several, or the reverse, the
    lowest part first.
    """
    target, source = instruction.operands
    (kind,) = instruction.modifiers
    bits = int(kind[1:]) if kind != "pred" else 1
    whole = f"u{bits}" if bits > 1 else "pred"

    def copy(threads: Threads) -> None:
        values = threads.peek(source, whole)
        threads.write(target, values, whole, threads.unwritten_in(source))

    def unpack(threads: Threads) -> None:
        assert isinstance(target, Vector)
        part = f"u{bits // len(target.parts)}"
        unwritten = threads.unwritten_in(source)
        values = threads.peek(source, whole).view(semantics.TYPES[part])
        for i, register in enumerate(target.parts):
            threads.write(register, values[i :: len(target.parts)], part, unwritten)

    def pack(threads: Threads) -> None:
        assert isinstance(source, Vector)
        part = f"u{bits // len(source.parts)}"
        values = np.broadcast_arrays(*(threads.peek(x, part) for x in source.parts))
        packed = np.ascontiguousarray(np.stack(values, -1)).view(semantics.TYPES[whole])
        threads.write(target, packed.reshape(-1), whole, threads.unwritten_in(*source.parts))

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
    """Return for each thread, [threads], whether it is active; raise Unsupported unless the mask is
    -1 and every warp is active as a whole or not at all.
    """
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
    """Return the step of `shfl.sync`: each lane gets another lane's value, or its own where that is
    out of range.
    """
    target, source, b, c, mask = instruction.operands
    mode = instruction.modifiers[1]
    known = [("sync", mode, "b32") for mode in ("up", "down", "bfly", "idx")]
    if instruction.modifiers not in known or isinstance(target, Vector):
        raise Unsupported("it")

    def step(threads: Threads) -> None:
        _whole_warps(threads, mask)
        values = threads.spread(threads.peek(source, "u32"))
        by, limits = (threads.spread(threads.read(x, "u32")).astype(np.int64) for x in (b, c))
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
        unwritten = threads.unwritten_in(source)
        unwritten = None if unwritten is None else unwritten[at]
        threads.write(target, values[at], "u32", unwritten)

    return step


def _reduce(instruction: Instruction, _kernel: Kernel) -> Step:
    """Return the step of `redux.sync`: the sum or another reduction of a warp's values."""
    target, source, mask = instruction.operands
    sync, name, kind = instruction.modifiers
    if sync != "sync" or name not in REDUCTIONS or kind not in semantics.INTEGERS:
        raise Unsupported("it")
    reduce = REDUCTIONS[name].reduce

    def step(threads: Threads) -> None:
        _whole_warps(threads, mask)
        values = threads.spread(threads.read(source, kind))  # every lane's counts
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
    """Check the modifiers of an access; only those of caches may be ignored."""
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
    """Return where each lane's two elements of a matrix lie: lane l has elements 2 (l % 4) and the
    next of row l / 4, whose address is lane 8 matrix + l / 4's.
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
