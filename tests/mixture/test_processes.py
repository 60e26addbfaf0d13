"""The E-step in several threads and processes: same bits, fork, workers, memory, and how often
kernels are compiled.

Of the default backend; nothing of this is particular to a computation in NumPy.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from latent_kernels.mixtures import e_step
from tests.mixture.checks import DTYPES, TYPES, Problem, gaussian_problem, mixed_problem
from tests.processes import FORK_TWICE, run, run_forked

MIXED = ("gaussian", "poisson", "categorical", "bernoulli", "gaussian")


def problems(kind: str, dtype: Any) -> list[Problem]:
    """Return problems of some twenty tiles of rows, the last one smaller: with values missing, with
    weights, hard.
    """
    if kind == "mixed":
        made = [mixed_problem(MIXED, 6001, 5, dtype, missing=missing) for missing in (0.0, 0.1)]
        made.append(mixed_problem(("bernoulli",) * 12, 6001, 4, dtype))
    else:
        made = [
            gaussian_problem((6001, 5, 6), kind, dtype, missing=m, weighted=bool(m))
            for m in (0.0, 0.1)
        ]
        made.append(gaussian_problem((3001, 1, 2), kind, dtype))
    return made + [replace(made[0], hard=True)]


def bits(problem: Problem) -> bytes:
    """Return everything that a backend computes, as bytes."""
    names = ("log_density", "labels", "responsibilities")
    arrays = e_step.posterior(
        e_step.checked_data(problem.X), problem.parameters, **dict.fromkeys(names, True)
    )
    return b"".join(np.asarray(x).tobytes() for x in (problem.run().to_vector(), *arrays))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*TYPES, "mixed"])
def test_same_bits_for_any_number_of_threads(kind: str, dtype: Any) -> None:
    for problem in problems(kind, dtype):
        found = []
        for threads in (1, 2, 7, 7, 1):
            torch.set_num_threads(threads)
            found.append(bits(problem))
        assert len(set(found)) == 1


def test_large_parts_have_the_same_bits_too() -> None:
    """The bits stay the same for so many rows that a part is more than a tile and every thread gets
    several parts.
    """
    problem = gaussian_problem((400_003, 2, 3), "diag", np.float32)
    found = set()
    for threads in (1, 2, 7):
        torch.set_num_threads(threads)
        found.add(bits(problem))
    assert len(found) == 1


@pytest.mark.parametrize("kind", [*TYPES, "mixed"])
def test_same_bits_from_several_python_threads(kind: str) -> None:
    torch.set_num_threads(3)
    made = [p for dtype in DTYPES for p in problems(kind, dtype)]
    expected = [bits(p) for p in made]
    wrong: list[int] = []
    begin = threading.Barrier(4)

    def work(first: int) -> None:
        try:
            begin.wait()
            for i in range(2 * len(made)):
                at = (first + i) % len(made)
                if bits(made[at]) != expected[at]:
                    wrong.append(at)
        except BaseException:
            wrong.append(-1)
            raise

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


# Results are compared as bytes, and NumPy makes the data: torch's own threads do not survive fork.
PRELUDE = """
import os, sys, threading, time, numpy as np, torch, latent_kernels as lk
torch.set_num_threads(3)
g = np.random.default_rng(0)
X = g.standard_normal((30_000, 4), dtype=np.float32)
counts = (X[:, :2], g.poisson(2, (30_000, 1)), g.integers(0, 3, (30_000, 1)))
counts = np.concatenate(counts, axis=1).astype(np.float32)
holes = np.where(g.uniform(size=X.shape) < 0.05, np.nan, X).astype(np.float32)
w, m = np.full(3, 1 / 3), g.standard_normal((3, 4))
S = np.tile(np.eye(4), (3, 1, 1))
column = (np.arange(3.0), np.ones(3))
def draw():
    found = [lk.gaussian_e_step(x, w, m, np.ones((3, 4))) for x in (X, holes)]
    found += [lk.gaussian_e_step(x, w, m, S, "full") for x in (X, holes)]
    found.append(lk.exponential_family_e_step(
        counts, w, ["gaussian", "gaussian", "poisson", "categorical"],
        [column, column, np.arange(1.0, 4), np.array([[.2, .3, .5], [.4, .4, .2], [.1, .1, .8]])]))
    return b"".join(s.to_vector().tobytes() for s in found)
"""


def test_fork_after_use() -> None:
    """The E-step works in a child of a process that has used its threads, in that child's child,
    and in the parent again.
    """
    run_forked(PRELUDE + "expected = draw()\n" + FORK_TWICE)


def test_fork_before_the_first_use() -> None:
    code = """
read, write = os.pipe()
pid = os.fork()
if pid == 0:
    os.write(write, __import__("hashlib").sha256(draw()).digest())
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert os.read(read, 64) == __import__("hashlib").sha256(draw()).digest()
"""
    run_forked(PRELUDE + code)


def test_fork_while_another_thread_computes() -> None:
    """A fork works while threads are inside a kernel and hold locks that the child cannot
    release.
    """
    code = """
expected = draw()
stop = False
def busy():
    while not stop: draw()
t = threading.Thread(target=busy); t.start()
# Python 3.12 warns of fork under threads.
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
for _ in range(10):
    time.sleep(0.01)
    pid = os.fork()
    if pid == 0:
        os._exit(0 if draw() == expected else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True; t.join()
"""
    run_forked(PRELUDE + code)


def test_dataloader_workers() -> None:
    code = """
def of(i):
    return lk.gaussian_e_step(X[i * 5000 : (i + 1) * 5000], w, m, np.ones((3, 4))).to_vector()
class Shards(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, i):
        torch.set_num_threads(2)
        return of(i)
expected = [of(i).tobytes() for i in range(6)]
options = dict(batch_size=None, num_workers=2, multiprocessing_context="fork")
loader = torch.utils.data.DataLoader(Shards(), **options)
assert [x.numpy().tobytes() for x in loader] == expected
"""
    run_forked(PRELUDE + code)


def test_spawned_processes() -> None:
    """Statistics sent between processes add up as within one."""
    code = """
import multiprocessing
if __name__ == "__main__":
    given = [(x, w, m, S, "full") for x in (X[:9_000], X[9_000:])]
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        a, b = pool.starmap(lk.gaussian_e_step, given)
        pool.close()
        pool.join()
    for got, arguments in zip((a, b), given):
        assert got.to_vector().tobytes() == lk.gaussian_e_step(*arguments).to_vector().tobytes()
    whole = lk.gaussian_e_step(X, w, m, S, "full").to_vector()
    # not equal: tiles of float32 are cut elsewhere
    assert np.abs((a + b).to_vector() - whole).max() <= 1e-6 * np.abs(whole).max()
"""
    run(PRELUDE + code)


def test_exit_while_a_thread_computes() -> None:
    """The process ends although a daemon thread is inside the kernels (which may be reported, as
    for any Python code).
    """
    code = """
draw()
def busy():
    while True: draw()
threading.excepthook = lambda _: None
threading.Thread(target=busy, daemon=True).start()
time.sleep(0.1)
os.write(1, b"end")
"""
    assert run(PRELUDE + code) == "end"


def test_calls_at_exit() -> None:
    """Calls work in atexit's callbacks, when Python starts no more threads."""
    code = """
import atexit
expected = draw()
atexit.register(lambda: os.write(1, b"same" if draw() == expected else b"other"))
"""
    assert run(PRELUDE + code) == "same"


@pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's")
@pytest.mark.parametrize("kind", [*TYPES, "mixed"])
def test_memory(kind: str) -> None:
    """For a million rows and 64 components, neither the 256 MB of responsibilities nor a copy of X
    are stored.
    """
    code = """
import sys, numpy as np, latent_kernels as lk
kind, (n, d, k) = sys.argv[-1], (1_000_000, 8, 64)
X = np.empty((n, d), np.float32)
g = np.random.default_rng(0)
for i in range(0, n, 10_000): X[i : i + 10_000] = g.standard_normal((10_000, d), dtype=np.float32)
w, m = np.full(k, 1 / k), g.standard_normal((k, d))
def e_step(x):
    if kind == "mixed":
        columns = [(m[:, i], np.ones(k)) for i in range(d)]
        return lk.exponential_family_e_step(x, w, ["gaussian"] * d, columns)
    c = {"full": np.tile(np.eye(d), (k, 1, 1)), "tied": np.eye(d)}
    c |= {"diag": np.ones((k, d)), "spherical": np.ones(k)}
    return lk.gaussian_e_step(x, w, m, c[kind], kind)
for warm in (X[:5000], X[:5000].copy()): e_step(warm)
def peak():
    with open("/proc/self/status") as file:
        return [int(line.split()[1]) / 1024 for line in file if line.startswith("VmHWM")][0]
# The peak of imports and compilation is forgotten, in which that of the call would hide. (ru_maxrss
# cannot be, and begins at that of the process that started this one.)
with open("/proc/self/clear_refs", "w") as file: file.write("5")
before = peak()
e_step(X)
print(peak() - before)
"""
    code = code.replace("sys.argv[-1]", repr(kind))
    assert float(run_forked(code)) < 40


# Prints how many functions numba compiles for a first call and for two more, and how many it
# compiles a second time for the same types.
COMPILATIONS = """
import numpy as np, latent_kernels as lk
from numba.core import event
compiled = []
class Listener(event.Listener):
    def on_start(self, event):
        compiled.append((event.data["dispatcher"].py_func, event.data["args"]))
    def on_end(self, event): pass
event.register("numba:compile", Listener())
X, w, m, c = np.ones((1000, 8), np.float32), [.5, .5], np.arange(16.).reshape(2, 8), np.ones((2, 8))
lk.gaussian_e_step(X, w, m, c)
first = len(compiled)
lk.gaussian_e_step(X[:7], w, m + 1, c)
lk.gaussian_e_step(X[::3], np.array(w), m[::-1], c)
print(first, len(compiled) - first, len(compiled) - len(set(compiled)))
"""


def test_kernels_are_compiled_once(tmp_path: Path) -> None:
    """The first call of the first process compiles; later calls and later processes compile
    nothing.

    How long either takes is measured by bench/bench_start.py.
    """

    def compilations() -> list[int]:
        return [int(n) for n in run(COMPILATIONS, NUMBA_CACHE_DIR=str(tmp_path)).split()]

    first, later, repeated = compilations()
    assert first > 0
    assert (later, repeated) == (0, 0)
    assert any(tmp_path.rglob("*.nbi")), "nothing was cached"
    assert compilations() == [0, 0, 0]
