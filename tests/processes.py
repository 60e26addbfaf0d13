"""Separate processes for tests: Python code in a new interpreter or in a fork of one that has
imported torch, and Python with any arguments.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
# Seconds, to stop processes that hang: many times what any of them takes on a busy machine.
# Compiling for all targets takes minutes; what a forked process does takes seconds.
TIME_LIMIT, FORKED_LIMIT = 1800, 600

# Reads a line for each process to fork, writes a line with its exit status. The forked process
# leaves the loop, so that it ends as every process does.
SERVER = """
import json, os, sys, warnings
import numpy, torch, latent_kernels
for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for fd in (1, 2):
            os.dup2(os.open(request["output"][fd - 1], os.O_WRONLY | os.O_CREAT), fd)
        break
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
else:
    sys.exit()
exec(compile(request["code"], "<code>", "exec"))
"""


# The code calls `draw`, whose result must equal `expected`.
FORK_TWICE = """
def child(depth):
    pid = os.fork()
    if pid == 0:
        ok = draw() == expected
        if depth: ok = ok and child(depth - 1)
        os._exit(0 if ok else 1)
    return os.waitpid(pid, 0)[1] == 0
assert child(1)
assert draw() == expected
"""


# The code calls in_two_processes(folder, work) for what work(rank) returns in each, by torch.save.
TWO_PROCESSES = """
import os, torch
import torch.distributed as dist

def in_two_processes(folder, work):
    def process(rank):
        store = dist.FileStore(folder + "/store", 2)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
        torch.save(work(rank), f"{folder}/{rank}.pt")
        dist.destroy_process_group()

    torch.set_num_threads(1)
    children = []
    for rank in range(2):
        children.append(os.fork())
        if children[-1] == 0:
            process(rank)
            os._exit(0)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    return [torch.load(f"{folder}/{rank}.pt") for rank in range(2)]
"""


def _environment(**variables: str) -> dict[str, str]:
    """Return the environment, extended by the path of the tests' modules."""
    return os.environ | {"PYTHONPATH": str(ROOT)} | variables


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Return the outcome of a Python process with these arguments, however it ended."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env=_environment(**environment),
        capture_output=True,
        text=True,
        check=False,
        timeout=TIME_LIMIT,
    )


def run(code: str, **environment: str) -> str:
    """Return what the code prints in a new interpreter, which must end with status 0 and nothing on
    standard error; warnings are errors.
    """
    result = python("-W", "error", "-c", code, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stderr == ""
    return result.stdout


@functools.cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-W", "error", "-c", SERVER],
        cwd=ROOT,
        env=_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    atexit.register(server.communicate)
    return server


def run_forked(code: str) -> str:
    """Return the same as `run`, but without the two seconds of imports.

    The code's process is forked from one that has imported torch and the library, and has used
    neither.
    """
    server = _server()
    assert server.stdin is not None
    assert server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        output = [Path(folder) / name for name in ("stdout", "stderr")]
        request = {"code": code, "output": [str(path) for path in output]}
        limit = threading.Timer(FORKED_LIMIT, os.killpg, (server.pid, 9))
        limit.start()
        try:
            print(json.dumps(request), file=server.stdin, flush=True)
            status = server.stdout.readline().strip()
        finally:
            limit.cancel()
        stdout, stderr = (path.read_text() if path.exists() else "" for path in output)
    assert status == "0", stdout + stderr
    assert stderr == ""
    return stdout
