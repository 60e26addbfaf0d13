"""Global and shared memory with the checks that a GPU does not make: bounds, alignment, races, and
reads of unwritten memory.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]

# Threads of a launch are numbered from 1.
NOBODY, SEVERAL = 0, -1
# Each tensor has 2^44 addresses, and begins in their middle: no offset leads into another.
APART = 44


MAP_NORESERVE = 0x4000  # Linux's, which Python's mmap does not name


class Fault(Exception):
    """An operation that a kernel must not do."""


def sparse(count: int, dtype: npt.DTypeLike) -> Array:
    """Return zeros in memory of which only the touched pages exist, whatever its size."""
    size = np.dtype(dtype).itemsize * count
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    return np.frombuffer(mmap.mmap(-1, max(size, 1), flags=flags), dtype, count)


class GlobalMemory:
    """The tensors of one launch. They stay where they are; a kernel sees them at other addresses.

    A tensor may be far larger than the machine's memory, of which it then has the touched pages
    only.
    """

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self.regions = [
            Region(x, ((i + 1) << APART) + (1 << APART - 1)) for i, x in enumerate(tensors)
        ]

    def region(self, addresses: Array, size: int) -> Region:
        """Return the region of all these addresses, which must be within it and multiples of
        `size`.
        """
        low, high = int(addresses.min()), int(addresses.max())
        number = (low >> APART) - 1
        if not 0 <= number < len(self.regions) or high >> APART != low >> APART:
            raise Fault("addresses outside every tensor, or in several")
        region = self.regions[number]
        if low < region.begin or high + size > region.end:
            where = (low if low < region.begin else high) - region.begin
            raise Fault(f"bytes {where} to {where + size} of {region}")
        if (addresses & np.uint64(size - 1)).any():
            raise Fault(f"an access of {size} bytes that is not aligned, in {region}")
        return region

    def load(self, addresses: Array, size: int, count: int, threads: Array) -> list[Array]:
        """Return `count` values of `size` bytes each that begin at each address."""
        region = self.region(addresses, size * count)
        at = region.elements(addresses, size)
        words = region.words(size)
        found = [words[at + i] for i in range(count)]
        region.check_read(addresses, size * count, threads)
        return found

    def store(self, addresses: Array, size: int, values: list[Array], threads: Array) -> None:
        """Write values of `size` bytes each, contiguously, from each address on."""
        region = self.region(addresses, size * len(values))
        at = region.elements(addresses, size)
        words = region.words(size)
        region.check_write(addresses, size, values, threads)
        for i, value in enumerate(values):
            words[at + i] = value


class Region:
    """The bytes from a tensor's first element to its last, at virtual addresses."""

    def __init__(self, x: torch.Tensor, base: int) -> None:
        size = x.element_size()
        spans = ((n - 1) * stride for n, stride in zip(x.shape, x.stride(), strict=True))
        length = (sum(spans) + 1) * size if x.numel() else 0
        self.tensor, self.unit = x, size
        skipped = x.data_ptr() % 16  # so that an address is aligned as on a device
        self.base, self.begin, self.end = base, base + skipped, base + skipped + length
        self.memory = (ctypes.c_ubyte * (skipped + length)).from_address(x.data_ptr() - skipped)
        self.views: dict[int, Array] = {}
        self.writers: Array | None = None  # for each element, the thread that wrote it

    def __str__(self) -> str:
        dtype = str(self.tensor.dtype).removeprefix("torch.")
        return f"a tensor {list(self.tensor.shape)} of {dtype}, {self.end - self.begin} bytes"

    def words(self, size: int) -> Array:
        """Return the memory as unsigned integers of a size."""
        if size not in self.views:
            count = len(self.memory) // size
            self.views[size] = np.frombuffer(self.memory, f"u{size}", count)
        return self.views[size]

    def elements(self, addresses: Array, size: int) -> Array:
        """Return the indices of addresses among the words of a size."""
        return ((addresses - np.uint64(self.base)) // np.uint64(size)).astype(np.int64)

    def check_read(self, addresses: Array, size: int, threads: Array) -> None:
        """Refuse reads of what another thread has written in this launch: nothing orders the
        two.
        """
        if self.writers is None:
            return
        first = self.elements(addresses, self.unit)
        for i in range(max(size // self.unit, 1)):
            writer = self.writers[first + i]
            if ((writer != NOBODY) & (writer != threads)).any():
                raise Fault(f"a race: it reads what another thread writes, in {self}")

    def check_write(self, addresses: Array, size: int, values: list[Array], threads: Array) -> None:
        """Refuse writes of different values to one address by two threads."""
        if self.writers is None:
            count = (len(self.memory) + self.unit - 1) // self.unit
            self.writers = sparse(count, np.int64)
        words = self.words(size)
        at = self.elements(addresses, size)
        for i, value in enumerate(values):
            place = self.elements(addresses + np.uint64(i * size), self.unit)
            writer = self.writers[place]
            late = (writer != NOBODY) & (writer != threads) & (words[at + i] != value)
            self.writers[place] = threads
            beside = self.writers[place] != threads  # of threads that store at once, one is left
            if beside.any():
                order = np.argsort(at, kind="stable")
                same = at[order][1:] == at[order][:-1]
                value = np.broadcast_to(value, at.shape)
                beside = same & (value[order][1:] != value[order][:-1])
            if late.any() or beside.any():
                raise Fault(f"a race: two threads write different values, in {self}")


class SharedMemory:
    """The shared memory of a batch of blocks, with the last thread that accessed each byte, and
    when.

    Time goes on at each barrier. What another thread did is over if a barrier of the block came
    after it, or for threads of one warp a barrier of the warp; all else is a race.
    """

    def __init__(self, blocks: int, size: int) -> None:
        self.size = size
        total = blocks * size
        self.bytes = np.zeros(total, np.uint8)
        self.writer, self.write_time = np.full(total, NOBODY), np.zeros(total, np.int64)
        self.reader, self.reading_warp = np.full(total, NOBODY), np.full(total, NOBODY)
        self.read_time = np.zeros(total, np.int64)

    def places(self, blocks: Array, addresses: Array, size: int, align: int) -> Array:
        """Return the index of each byte of each access: [threads, size]."""
        if int(addresses.max()) + size > self.size:
            raise Fault(f"address {int(addresses.max())} of {self.size} bytes of shared memory")
        if (addresses & (align - 1)).any():
            raise Fault(f"an access of {align} bytes that is not aligned, in shared memory")
        first = blocks * self.size + addresses.astype(np.int64)
        return first[:, None] + np.arange(size)

    def load(self, at: Array, who: Who) -> Array:
        """Return the bytes at these places."""
        if (self.writer[at] == NOBODY).any():
            raise Fault("it reads shared memory that nothing wrote")
        if self._unordered(self.writer[at], (self.writer[at] - 1) // 32, self.write_time[at], who):
            raise Fault("a race: it reads shared memory that another thread wrote since a barrier")
        thread, warp = who.threads[:, None], who.warps[:, None]
        again = self.read_time[at] < who.block_time[:, None]
        for held, mine in ((self.reader, thread), (self.reading_warp, warp)):
            before = held[at]
            held[at] = np.broadcast_to(mine, at.shape)
            alone = ((before == mine) | (before == NOBODY) | again) & (held[at] == mine)
            held[at[~alone]] = SEVERAL
        self.read_time[at] = who.now
        return self.bytes[at]

    def store(self, at: Array, values: Array, who: Who) -> None:
        """Write bytes to these places."""
        if self._unordered(self.reader[at], self.reading_warp[at], self.read_time[at], who):
            raise Fault("a race: it overwrites shared memory that another thread read")
        thread = np.broadcast_to(who.threads[:, None], at.shape)
        late = self._unordered(
            self.writer[at], (self.writer[at] - 1) // 32, self.write_time[at], who,
            self.bytes[at] != values,
        )  # fmt: skip
        self.bytes[at] = values
        if late or (self.bytes[at] != values).any():
            raise Fault("a race: two threads write different values to shared memory")
        self.writer[at] = thread
        self.write_time[at] = who.now

    def _unordered(
        self, other: Array, other_warp: Array, time: Array, who: Who, where: Any = True
    ) -> bool:
        """Return whether another thread's access is not ordered before this one."""
        over = (other == NOBODY) | (other == who.threads[:, None])
        over |= time < who.block_time[:, None]
        over |= (other_warp == who.warps[:, None]) & (time < who.warp_time[:, None])
        return bool((~over & where).any())


class Who(NamedTuple):
    """The threads of an access, their warps, when each last met a barrier, and the time."""

    threads: Array
    warps: Array
    block_time: Array
    warp_time: Array
    now: int
