"""The extension in several processes and threads: fork, DataLoader workers, Python threads, unusual
exits.
"""

from __future__ import annotations

import sys
import threading
import time

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import _core
from tests.processes import FORK_TWICE, run, run_forked

N = 300_000


# Results are compared as bytes: torch.equal would start torch's own OpenMP threads, which do not
# survive fork.
PRELUDE = f"""
import os, sys, threading, torch, latent_kernels as lk
torch.set_num_threads(3)
def draw(): return lk.normal({N}, seed=5).numpy().tobytes()
expected = draw()
"""


def test_fork_after_use() -> None:
    """A child of a process whose pool has run uses a pool of its own; so does the child's child."""
    run_forked(PRELUDE + FORK_TWICE)


# The families' samples and the score function's gradient, over arrays that several threads share.
# NumPy makes the inputs, since torch's own threads do not survive fork.
SCORE = """
import numpy as np
def line(end, *shape):
    values = np.linspace(-end, end, np.prod(shape), dtype=np.float32)
    return torch.from_numpy(values.reshape(shape))
q, b = lk.Categorical(line(2, 2000, 10, 3)), lk.Bernoulli(line(2, 2000, 100))
values = line(1, 4, 2000)
def draw():
    found = [q.sample(4, seed=5), b.sample_antithetic(4, seed=5)]
    found += lk.score_function_gradient(q, values, seed=5)
    found += lk.score_function_gradient(b, values, seed=6)
    return b"".join(x.numpy().tobytes() for x in found)
expected = draw()
"""


def test_fork_after_use_of_the_score_function() -> None:
    code = """
pid = os.fork()
if pid == 0:
    os._exit(0 if draw() == expected else 1)
assert os.waitpid(pid, 0)[1] == 0
assert draw() == expected
"""
    run_forked(PRELUDE + SCORE + code)


# A call of each kind, those among them that leave large operations to torch, over enough elements.
EVERY_CALL = """
import numpy as np
mean, logvar, x = torch.randn(3, 3000, 40).unbind()
grey, rows = torch.rand(3000, 40), np.random.default_rng(0).standard_normal((20_000, 3))
q, c, log_w = lk.Bernoulli(mean), lk.Categorical(torch.randn(3000, 8, 6)), torch.randn(40, 3000)
z, dictionary = q.sample(4, seed=1), torch.nn.functional.normalize(torch.randn(60, 40))
normal = lk.FusedNormal(mean, torch.exp(0.5 * logvar))
encoder = lk.LISTA.from_dictionary(dictionary, 0.1, 2)
recurrent = torch.eye(60) - dictionary @ dictionary.T
mixture = lk.GaussianMixture(2, tol=1e9, random_state=0)
calls = [
    lambda: lk.rsample_kl(mean, logvar, 2, seed=1)[0],
    lambda: lk.rsample_log_prob(mean, logvar, 2, seed=1)[1],
    lambda: lk.gaussian_log_prob(x.double(), mean, logvar),
    lambda: lk.bernoulli_log_prob((255 * grey).to(torch.uint8) > 127, mean),
    lambda: q.log_prob(z),
    lambda: q.entropy(),
    lambda: q.kl(lk.Bernoulli(x)),
    lambda: c.log_prob(c.sample(4, seed=1)),
    lambda: c.entropy(),
    lambda: (torch.manual_seed(3), normal.rsample((2,)))[1],
    lambda: normal.log_prob(x),
    lambda: lk.score_function_expectation(q, log_w[:4], z),
    lambda: lk.importance_bound(log_w),
    lambda: lk.elbo(log_w, kl=lk.gaussian_kl(mean, logvar)),
    lambda: lk.effective_sample_size(log_w),
    lambda: lk.pareto_k(log_w),
    lambda: encoder(x),
    lambda: lk.lista_encode(x, dictionary.T, recurrent, 0.1, n_layers=2),
    lambda: lk.sparse_encode(x[:100].half(), dictionary.half(), alpha=0.1),
    lambda: torch.from_numpy(mixture.fit(rows).means_),
]
"""


def test_every_call_in_a_forked_process_of_one_thread() -> None:
    """Every call works in a forked process of one thread, also where torch has used its OpenMP
    threads, with which a child of several threads hangs.
    """
    code = """
torch.set_num_threads(1)
expected = [call().detach().numpy().tobytes() for call in calls]
torch.set_num_threads(3)
torch.randn(4_000_000).sum()
pid = os.fork()
if pid == 0:
    torch.set_num_threads(1)
    found = [call().detach().numpy().tobytes() for call in calls]
    os._exit(0 if found == expected else 1)
assert os.waitpid(pid, 0)[1] == 0
"""
    run_forked(PRELUDE + EVERY_CALL + code)


def test_score_function_in_dataloader_workers() -> None:
    code = """
class Gradients(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i):
        torch.set_num_threads(2)
        return lk.score_function_gradient(b, values, seed=i)[0]
loader = torch.utils.data.DataLoader(Gradients(), num_workers=2, multiprocessing_context="fork")
for i, x in enumerate(loader):
    assert torch.equal(x[0], lk.score_function_gradient(b, values, seed=i)[0])
"""
    run_forked(PRELUDE + SCORE + code)


def test_score_function_from_several_python_threads() -> None:
    code = """
wrong = []
def work():
    for _ in range(8):
        if draw() != expected: wrong.append(1)
threads = [threading.Thread(target=work) for _ in range(5)]
for t in threads: t.start()
for t in threads: t.join()
assert not wrong
"""
    run_forked(PRELUDE + SCORE + code)


def test_dataloader_workers() -> None:
    code = """
class Noise(torch.utils.data.Dataset):
    def __len__(self): return 8
    def __getitem__(self, i):
        torch.set_num_threads(2)
        return lk.normal(200_000, seed=i)
loader = torch.utils.data.DataLoader(Noise(), num_workers=2, multiprocessing_context="fork")
for i, x in enumerate(loader):
    assert torch.equal(x[0], lk.normal(200_000, seed=i))
"""
    run_forked(PRELUDE + code)


def test_exit_while_a_thread_computes() -> None:
    """The process ends although a daemon thread is inside a kernel and the pool's workers wait.

    The kernel alone: torch.empty, called as the interpreter shuts down, aborts by itself.
    """
    code = """
from latent_kernels.kernels import _core
out = torch.empty(10_000_000)
where = dict(n=out.numel(), out=out.data_ptr())
given = dict(dtype=_core.Dtype.float32, threads=2, seed=1, offset=0, **where)
def busy():
    while True: _core.normal(**given)
threading.Thread(target=busy, daemon=True).start()
"""
    run(PRELUDE + code)


def test_several_python_threads() -> None:
    """Several threads share the pool or work alone; either way each gets its own result."""
    torch.set_num_threads(3)
    expected = [lk.normal(N, seed=i) for i in range(6)]
    mean, logvar = torch.randn(400, 300), torch.randn(400, 300)
    pairs = [lk.rsample_kl(mean, logvar, 2, seed=i) for i in range(6)]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(15):
            z, kl = lk.rsample_kl(mean, logvar, 2, seed=i)
            if not (
                torch.equal(lk.normal(N, seed=i), expected[i])
                and torch.equal(z, pairs[i][0])
                and torch.equal(kl, pairs[i][1])
            ):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


def test_fork_while_another_thread_computes() -> None:
    """A fork in the middle of a job works, although its locks are held by threads that the child
    does not have.
    """
    code = """
stop = False
def busy():
    while not stop: lk.normal(2_000_000, seed=1)
t = threading.Thread(target=busy); t.start()
# Python 3.12 warns of fork under threads.
import warnings; warnings.simplefilter("ignore", DeprecationWarning)
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        os._exit(0 if draw() == expected else 1)
    assert os.waitpid(pid, 0)[1] == 0
stop = True; t.join()
"""
    run_forked(PRELUDE + code)


def test_gil_is_released() -> None:
    """Python code continues while a kernel runs.

    Threads take turns only where one lets go, so another thread counts only while the kernel does;
    on a busy machine it may take several calls until it is given a core.
    """
    out = torch.empty(1_000_000)
    given = {"n": out.numel(), "out": out.data_ptr(), "threads": 1, "seed": 1, "offset": 0}
    interval, count, stop = sys.getswitchinterval(), 0, False

    def work() -> None:
        nonlocal count
        while not stop:
            count += 1
            time.sleep(0)

    thread = threading.Thread(target=work)
    sys.setswitchinterval(1000)
    try:
        thread.start()
        for _ in range(10_000):
            before = count
            _core.normal(dtype=_core.Dtype.float32, **given)
            if count > before:
                break
        else:
            pytest.fail("the other thread never counted")
    finally:
        stop = True
        sys.setswitchinterval(interval)
        thread.join()
