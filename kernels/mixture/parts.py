"""Parts of a problem on several threads, their results merged in the order of the parts."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

State = TypeVar("State")

_POLL_SECONDS = 1.0  # seconds between checks whether the run has ended
_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


os.register_at_fork(after_in_child=_forget_pool)  # the child does not have its threads


def _executor() -> ThreadPoolExecutor:
    global _pool
    if _pool is None:
        _pool = ThreadPoolExecutor(max_workers=os.cpu_count(), thread_name_prefix="latent_kernels")
    return _pool


class _Run(Generic[State]):
    """One problem: threads take the parts in order, and merge each one after those before it."""

    def __init__(
        self,
        parts: int,
        make: Callable[[], State],
        work: Callable[[int, State], None],
        merge: Callable[[State], None],
    ) -> None:
        self.parts, self.make, self.work, self.merge = parts, make, work, merge
        self.taken = self.merged = 0
        self.changed = threading.Condition()
        self.error: BaseException | None = None

    def take(self) -> int | None:
        """Return the next part, or None if there is none left or an error has ended the run."""
        with self.changed:
            if self.taken == self.parts or self.error is not None:
                return None
            self.taken += 1
            return self.taken - 1

    def finish(self, part: int, state: State) -> bool:
        """Merge a part after its predecessors; return False if an error has ended the run."""
        with self.changed:
            while self.merged != part and self.error is None:
                self.changed.wait(_POLL_SECONDS)
            if self.error is not None:
                return False
            self.merge(state)
            self.merged += 1
            self.changed.notify_all()
            return True

    def loop(self) -> None:
        """Work on parts until none is left; every thread runs this."""
        try:
            part = self.take()
            state = self.make() if part is not None else None
            while part is not None and state is not None:
                self.work(part, state)
                if not self.finish(part, state):
                    return
                part = self.take()
        except BaseException as error:
            self.fail(error)

    def fail(self, error: BaseException) -> None:
        """End the run, so that no thread waits for a part that will not come."""
        if self.error is None:
            # Before the lock is taken: should that be interrupted, waiting threads still see it.
            self.error = error
        with self.changed:
            self.changed.notify_all()

    def wait(self) -> None:
        """Wait until every part is merged; raise what a thread raised."""
        with self.changed:
            while self.merged != self.parts and self.error is None:
                self.changed.wait(_POLL_SECONDS)
        if self.error is not None:
            raise self.error


def in_order(
    parts: int,
    threads: int,
    make: Callable[[], State],
    work: Callable[[int, State], None],
    merge: Callable[[State], None],
) -> None:
    """Call work(part, state) for every part, then merge(state) in the order of the parts.

    `merge` is called under a lock. Each thread has one state, from `make`, and takes its next part
    after it has merged the last: there are never more states than threads, and the order of merging
    does not depend on their number. The calling thread works too.
    """
    run = _Run(parts, make, work, merge)
    for _ in range(min(threads, parts) - 1):
        try:
            _executor().submit(run.loop)
        except RuntimeError:
            break  # the interpreter is shutting down: no thread can start, and this one works alone
    try:
        run.loop()
        run.wait()
    except BaseException as error:  # Ctrl-C between two instructions of the loop
        run.fail(error)
        raise
