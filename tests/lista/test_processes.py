"""Unrolled soft-thresholding in several processes and threads: fork, DataLoader workers, Python
threads.

Both passes, each test in a fresh interpreter that must end by itself.
"""

from __future__ import annotations

import threading

import pytest
import torch

from latent_kernels.kernels.lista import cpp_cpu
from tests.lista.checks import FORMS, ListaProblem, backward, forward
from tests.processes import run, run_forked

# Enough rows for three threads. Results are compared as bytes and made by NumPy: torch's own
# threads do not survive fork, and the sum by which weights are checked is torch's where a tensor is
# new.
PRELUDE = """
import os, sys, threading
import numpy as np, torch
from latent_kernels.sparse.lista import lista_encode, coupled_lista_encode
torch.set_num_threads(3)
g = np.random.default_rng(5)
def draw(*shape, scale=1.0):
    return torch.from_numpy((scale * g.standard_normal(shape)).astype(np.float32))
M, N, ROWS = 150, 120, 600
x, w, s, d = draw(ROWS, M), draw(M, N, scale=0.08), draw(N, N, scale=0.05), draw(N, M, scale=0.05)
theta, upstream = torch.full((3, 1), 0.5), draw(ROWS, N)
leaves = [torch.from_numpy(t.numpy().copy()).requires_grad_() for t in (x, w, s, d, theta)]
def bytes_of(tensors): return b"".join(t.detach().numpy().tobytes() for t in tensors)
def passes(x, w, s, d, theta):
    found = [lista_encode(x, w, s, theta, n_layers=3)]
    found += [coupled_lista_encode(x, d, w, theta, step=0.5, n_layers=3)]
    if x.requires_grad:
        found += torch.autograd.grad(found[0], (x, w, s, theta), upstream)
        found += torch.autograd.grad(found[1], (x, d, w, theta), upstream)
    return bytes_of(found)
def encode(): return passes(x, w, s, d, theta)
def train(): return passes(*leaves)
encoded, trained = encode(), train()
assert len(set(encoded)) > 1
"""


def test_fork_after_use() -> None:
    """A child of a process whose pool has run uses a pool of its own; so does the child's child.

    What autograd kept between the passes, the child has too.
    """
    code = """
z = lista_encode(*leaves[:3], leaves[4], n_layers=3)
def last(): return bytes_of(torch.autograd.grad(z, leaves[:3], upstream, retain_graph=True))
kept = last()
def child(depth):
    pid = os.fork()
    if pid == 0:
        ok = last() == kept and encode() == encoded and train() == trained and encode() == encoded
        if depth: ok = ok and child(depth - 1)
        os._exit(0 if ok else 1)
    return os.waitpid(pid, 0)[1] == 0
assert child(1)
assert encode() == encoded and train() == trained
"""
    run_forked(PRELUDE + code)


def test_fork_while_another_thread_computes() -> None:
    """A fork in the middle of a job works, although its locks are held by threads that the child
    does not have.
    """
    code = """
stop = False
def busy():
    while not stop: encode()
t = threading.Thread(target=busy); t.start()
# Python 3.12 warns of fork under threads.
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
for _ in range(10):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if encode() == encoded else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True; t.join()
"""
    run_forked(PRELUDE + code)


def test_dataloader_workers() -> None:
    """Workers encode, and train leaves of their own: autograd works in a process without the
    pool.
    """
    code = """
import hashlib
def digest(x): return hashlib.sha256(x).digest()
class Codes(torch.utils.data.Dataset):
    def __len__(self): return 6
    def __getitem__(self, i):
        torch.set_num_threads(2)
        return torch.tensor(list(digest(encode() if i % 2 else train())))
loader = torch.utils.data.DataLoader(Codes(), num_workers=2, multiprocessing_context="fork")
for i, found in enumerate(loader):
    assert bytes(found[0].tolist()) == digest(encoded if i % 2 else trained), i
"""
    run_forked(PRELUDE + code)


def test_several_python_threads() -> None:
    """Several threads share one encoder and its parameters, and each repeats both passes."""
    code = """
wrong = []
def work(i):
    for _ in range(4):
        if encode() != encoded: wrong.append(i)
        if train() != trained: wrong.append(i)
threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong
"""
    run_forked(PRELUDE + code)


def test_exit_while_a_thread_computes() -> None:
    """The process ends although a daemon thread is inside a kernel and the pool's workers wait."""
    code = """
from latent_kernels.kernels import _core
from latent_kernels.kernels.lista import cpp_cpu
from latent_kernels.kernels.lista.problem import Problem
nothing = dict.fromkeys(("bias", "dictionary", "step", "initial", "select"))
plan = cpp_cpu.plan(
    Problem((ROWS, M, N), x, w, theta[0, 0], recurrent=s, layers=3, positive=False, **nothing)
)
out = torch.empty(ROWS, N)
where = dict(x=x.data_ptr(), initial=0, out=out.data_ptr())
given = dict(threads=3, rows=ROWS, with_tape=False, with_drive=False, **where)
def busy():
    while True: _core.lista_forward(plan, **given)
threading.Thread(target=busy, daemon=True).start()
"""
    run(PRELUDE + code)


@pytest.mark.parametrize("form", FORMS)
def test_one_tape_read_by_several_threads(form: str) -> None:
    """Backward passes of one forward pass run at the same time, and different problems at once."""
    torch.set_num_threads(2)
    problems = [
        ListaProblem(form, sizes, torch.float32, bias=True, initial=True, seed=i)
        for i, sizes in enumerate([(200, 60, 90, 3), (64, 200, 100, 2), (5, 30, 40, 4)])
    ]
    wanted = [tuple(t is not None for t in p.tensors) for p in problems]
    tapes = [forward(cpp_cpu, p.tensors, p.choices, True)[1] for p in problems]
    expected = [p.run(cpp_cpu) for p in problems]
    wrong: list[str] = []

    def work(start: int) -> None:
        for k in range(9):
            i = (start + k) % 3
            p = problems[i]
            z = forward(cpp_cpu, p.tensors, p.choices, False)[0]
            gradients = backward(cpp_cpu, p.tensors, p.choices, tapes[i], p.upstream, wanted[i])
            found = [z, *(g for g in gradients if g is not None)]
            for (name, want), got in zip(expected[i].items(), found, strict=True):
                if not torch.equal(got, want):
                    wrong.append(f"{i} {name}")

    threads = [threading.Thread(target=work, args=(i,)) for i in range(5)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []
