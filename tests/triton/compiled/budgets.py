"""The instructions that the GPU kernels execute for each element, counted in their machine code.

    python -m tests.triton.compiled.budgets

counts anew, and writes budgets.csv beside this file and the table of docs/gpu.md. Each row is a
call of the public API: Triton binds, specializes and compiles as on a device, by the driver of
tests/triton/ptx; nothing runs.
"""

from __future__ import annotations

import csv
import functools
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
import triton
from triton.backends.nvidia.compiler import CUDABackend

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.launch import OPTIONS
from tests.processes import ROOT
from tests.triton.compiled.launches import H100
from tests.triton.compiled.sass import disassembled
from tests.triton.ptx.driver import install, launches

TABLE, PAGE = Path(__file__).with_suffix(".csv"), ROOT / "docs" / "gpu.md"

# An H100: 132 multiprocessors of 4 schedulers, each of which issues an instruction for the 32
# threads of a warp in a cycle at 1.755 GHz; and what a copy moves.
ISSUED, COPIED = 132 * 4 * 32 * 1.755e9, 3.0e12


class Row(NamedTuple):
    """One kernel in one class of shapes."""

    call: Callable[[], object]
    kernel: str
    elements: int  # of the call
    bytes: float  # that one element moves
    # Where the hot loop alone is counted, its turns in a program; 0: the whole kernel, each loop
    # for one turn.
    turns: int
    before: int  # instructions for an element at the first count, with noise stream v1
    goal: str


class Count(NamedTuple):
    """The counts of a row, as budgets.csv has them."""

    instructions: float  # for one element
    registers: int
    barriers: int
    loads: str
    stores: str
    spills: int


def _zeros(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.zeros(shape, dtype=dtype, requires_grad=True)


def _rsample_kl(cols: int, samples: int | None, dtype: torch.dtype = torch.float32) -> None:
    mean, logvar = _zeros(512, cols, dtype=dtype), _zeros(512, cols, dtype=dtype)
    z, kl = lk.rsample_kl(mean, logvar, samples, seed=1)
    torch.autograd.backward((z, kl), (torch.ones_like(z), torch.ones_like(kl)))


def _gaussian_log_prob() -> None:
    lk.gaussian_log_prob(torch.zeros(16, 64, 784), torch.zeros(64, 784), torch.zeros(64, 784))


def _bernoulli_log_prob() -> None:
    lk.bernoulli_log_prob(torch.zeros(64, 784), _zeros(16, 64, 784)).sum().backward()


def _bound() -> None:
    lk.importance_bound(_zeros(5000, 256)).sum().backward()


def _score() -> None:
    q = lk.DiagonalGaussian(torch.zeros(512, 256), torch.zeros(512, 256))
    lk.score_function_gradient(q, torch.zeros(16, 512), torch.zeros(16, 512, 256))


def _bernoulli() -> None:
    lk.Bernoulli(torch.zeros(512, 256)).sample(16, seed=1)


def _normal() -> None:
    lk.normal(2**22, seed=1)


_kl = functools.partial(_rsample_kl, 256, None)
_kl_of_20 = functools.partial(_rsample_kl, 20, None)
_kl_of_samples = functools.partial(_rsample_kl, 256, 16)
_kl_in_bfloat16 = functools.partial(_rsample_kl, 256, None, torch.bfloat16)

# What 16 samples share is read once for all of them: a 16th of its bytes for each.
PLANE, IMAGES = 512 * 256, 16 * 64 * 784
ROWS = {
    "rsample_kl forward, S=1, D=256": Row(_kl, "forward_kernel", PLANE, 12, 0, 178, "115"),
    "rsample_kl forward, S=1, D=20": Row(_kl_of_20, "forward_kernel", 512 * 20, 12, 0, 349, "170"),
    "rsample_kl forward, S=16, D=256, one sample": Row(
        _kl_of_samples, "forward_kernel", 16 * PLANE, 4, 1, 67, "42"
    ),
    "rsample_kl forward, S=1, D=256, bfloat16": Row(
        _kl_in_bfloat16, "forward_kernel", PLANE, 6, 0, 181, "110"
    ),
    "rsample_kl backward, S=1, D=256": Row(_kl, "backward_kernel", PLANE, 20, 0, 187, "memory"),
    "normal": Row(_normal, "fill_kernel", 2**22, 4, 0, 61, "40"),
    "gaussian_log_prob forward, S=16, D=784": Row(
        _gaussian_log_prob, "forward_kernel", IMAGES, 4 + 8 / 16, 0, 79, "40"
    ),
    "bernoulli_log_prob forward, S=16, D=784": Row(
        _bernoulli_log_prob, "forward_kernel", IMAGES, 4 + 4 / 16, 0, 102, "50"
    ),
    "bernoulli_log_prob backward, S=16, D=784": Row(
        _bernoulli_log_prob, "backward_kernel", IMAGES, 8 + 4 / 16, 1, 66, "60"
    ),
    "importance_bound, sums": Row(_bound, "sums_kernel", 5000 * 256, 4, 1, 47, "wider access"),
    "importance_bound, weights": Row(
        _bound, "weights_kernel", 5000 * 256, 8, 1, 42, "wider access"
    ),
    "score_function_gradient, Gaussian, S=16, z given": Row(
        _score, "gaussian_kernel", 16 * PLANE, 4, 8, 25, "25"
    ),
    "Bernoulli.sample, S=16": Row(
        _bernoulli, "bernoulli_kernel", 16 * PLANE, 4 + 4 / 16, 0, 101, "60"
    ),
}


@functools.cache
def launched(call: Callable[[], object]) -> dict[str, tuple[str, int]]:
    """Return the PTX of the kernels that a call launches, and the threads of each."""
    texts: list[str] = []
    programs: list[int] = []

    def keep(text: str) -> str:
        texts.append(text)
        return text

    def nothing(count: int) -> list[int]:
        programs.append(count)
        return []

    ops = [op for op, names in backends.BACKENDS.items() if "triton" in names]
    forced = ",".join(f"{op}=triton" for op in ops)
    with patch.dict(os.environ, {backends.VARIABLE: forced}), launches(only=nothing, edited=keep):
        backends.forget()
        call()
    backends.forget()
    found = {}
    for text, count in zip(texts, programs, strict=True):
        name, threads = re.findall(r"\.entry (\w+)|\.(?:req|max)ntid\s+(\d+)", text)
        found[name[0]] = text, count * int(threads[1])
    return found


def count(row: Row) -> Count:
    """Compile a row's kernel and count."""
    ptx, threads = launched(row.call)[row.kernel]
    backend: Any = CUDABackend(H100)
    cubin = backend.make_cubin(ptx, {}, backend.parse_options(dict(OPTIONS)), H100.arch)
    with tempfile.TemporaryDirectory() as folder:
        code, registers, spills = disassembled(cubin, Path(folder))
    counted = code.loop() if row.turns else code.hot
    executed = len(counted) * (row.turns or 1) * threads
    return Count(
        round(executed / row.elements, 1),
        registers,
        code.count("BAR", counted),
        code.accesses("LDG", counted),
        code.accesses("STG", counted),
        spills,
    )


# --- the table ------------------------------------------------------------------------------------


def budgets() -> tuple[str, dict[str, Count]]:
    """Return the version of Triton that the saved counts are of, and the counts."""
    version, _, *lines = TABLE.read_text(encoding="utf-8").splitlines()
    rows = {}
    for name, executed, registers, barriers, loads, stores, spills in csv.reader(lines):
        rows[name] = Count(
            float(executed), int(registers), int(barriers), loads, stores, int(spills)
        )
    return version.removeprefix("# Triton "), rows


def page(version: str, counts: dict[str, Count]) -> str:
    """Return docs/gpu.md with the table of these counts."""
    lines = [
        f"Triton {version}, sm_90:",
        "",
        "| kernel, float32 where nothing else is said | instructions | before | goal | bytes "
        "| share of a copy | registers | barriers | loads | stores |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, row in ROWS.items():
        x = counts[name]
        share = ISSUED / x.instructions * row.bytes / COPIED
        cells = [name, f"{x.instructions:g}", row.before, row.goal, f"{row.bytes:g}"]
        cells += ["memory" if share >= 1 else f"{share:.0%}", x.registers, x.barriers]
        cells += [x.loads or "none", x.stores or "none"]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    head, begin, rest = PAGE.read_text(encoding="utf-8").partition("<!-- counts -->\n")
    _, end, tail = rest.partition("<!-- end of counts -->\n")
    return head + begin + "\n".join(lines) + "\n" + end + tail


def main() -> None:
    """Count, and write the table and the page."""
    install()  # as tests/conftest.py does
    backends.interpreting = lambda: True
    counts = {}
    for name, row in ROWS.items():
        counts[name] = count(row)
        print(name, *counts[name], sep=" | ", flush=True)
    with TABLE.open("w", encoding="utf-8", newline="") as file:
        file.write(f"# Triton {triton.__version__}\n")
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["kernel", *Count._fields])
        writer.writerows([name, *x] for name, x in counts.items())
    PAGE.write_text(page(triton.__version__, counts), encoding="utf-8")


if __name__ == "__main__":
    main()
