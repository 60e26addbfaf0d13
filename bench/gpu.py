"""What only a machine with a GPU can tell: `python bench/gpu.py OUT_DIR`.

OUT_DIR/machine.json says on what machine, with the driver and all versions. First the noise and the
samples on the GPU are compared with the CPU's, bit for bit (OUT_DIR/bits.csv). Then every kernel of
the library is timed at sizes beyond the second-level cache, as a share of what a copy reaches
(OUT_DIR/kernels.csv): `kernel_us` is a replayed CUDA graph, without launch costs; `call_us` is the
public call, host and device, one after the other. Rivals are timed by `pytest --benchmark -k cuda`.
Exit status: 0; 1 where a bit is wrong; 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

import cuda
import latent_kernels as lk
import machine

Tensor = torch.Tensor
Call = Callable[[], Any]

BITS_COUNT = 2**22
SEEDS = (0, 1, 0x123456789ABCDEF, 2**63 - 1)
# the last two pass counter 2^32, which element 4 * 2^32 has, and lie beyond it
OFFSETS = (0, 3, 2**34 - 5, 2**40 + 1)
ROUNDS = 11
SLICE = 4e-3  # seconds of replays in one measurement
ELEMENTS = 2**26  # of one float32 tensor: 256 MiB, several times the second-level cache
SAMPLES = 16
CLASSES = 10


# --- bits -----------------------------------------------------------------------------------------


class Bits(NamedTuple):
    """One comparison of an output on the GPU with the CPU's."""

    op: str
    what: str
    elements: int
    different: int


def differing(here: Tensor, there: Tensor) -> int:
    """Count the elements that differ in any bit."""
    kind = {2: torch.int16, 4: torch.int32, 8: torch.int64}[here.element_size()]
    return int((here.view(kind) != there.cpu().view(kind)).sum())


def compare_noise() -> Iterator[Bits]:
    """Compare noise for seeds and offsets at the edges; the seed is given as a tensor too."""
    for function in (lk.normal, lk.uniform):
        for seed in SEEDS:
            for offset in OFFSETS:
                here = function(BITS_COUNT, seed=seed, offset=offset)
                for given in (seed, torch.tensor(seed, device="cuda")):
                    there = function(BITS_COUNT, seed=given, offset=offset, device="cuda")
                    what = f"seed {seed} as {type(given).__name__}, offset {offset}"
                    yield Bits(function.__name__, what, BITS_COUNT, differing(here, there))


def compare_samples() -> Iterator[Bits]:
    """Compare samples of each family, for one sample and several, aligned and not."""
    for shape, samples in (((4096, 256), None), ((500, 63), 5)):
        generator = torch.Generator().manual_seed(7)
        mean, logvar = (torch.randn(shape, generator=generator) for _ in range(2))
        logits = torch.randn(*shape, CLASSES, generator=generator)
        for make, parameters in (
            (lk.DiagonalGaussian, (mean, logvar)),
            (lk.Bernoulli, (mean,)),
            (lk.Categorical, (logits,)),
        ):
            here = make(*parameters).sample(samples, seed=11)
            there = make(*(x.cuda() for x in parameters)).sample(samples, seed=11)
            what = f"{samples} samples of {shape}"
            yield Bits(make.__name__, what, here.numel(), differing(here, there))


# --- times ----------------------------------------------------------------------------------------


class Work(NamedTuple):
    """A call of an op, and the bytes that the least algorithm reads and writes for it."""

    op: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int
    call: Call


def both(function: Callable[[], Any], leaves: tuple[Tensor, ...], upstream: Any) -> Call:
    """Return a call of the function and of its gradients in the leaves."""
    return lambda: torch.autograd.grad(function(), leaves, upstream)


def randn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Draw a standard normal tensor on the GPU."""
    return torch.randn(shape, device="cuda").to(dtype)


def noise_work(dtype: torch.dtype) -> Iterator[Work]:
    """Make normals and uniforms: each written once."""
    for function in (lk.normal, lk.uniform):
        yield Work(
            function.__name__,
            (ELEMENTS,),
            str(dtype)[6:],
            ELEMENTS * dtype.itemsize,
            lambda function=function: function(ELEMENTS, seed=1, dtype=dtype, device="cuda"),
        )


def gaussian_work(samples: int, cols: int, dtype: torch.dtype) -> Iterator[Work]:
    """Make the Gaussian ops of one shape: N D elements of a parameter, S N D of z."""
    rows = ELEMENTS // 2 // (cols * max(samples, 1))
    size, drawn = rows * cols, max(samples, 1) * rows * cols
    mean, logvar = randn(rows, cols, dtype=dtype), randn(rows, cols, dtype=dtype) * 0.5
    leaves = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    shape = (samples, rows, cols) if samples else (rows, cols)
    name, width = str(dtype)[6:], dtype.itemsize
    count = samples or None
    z, of_rows = (
        randn(*shape, dtype=dtype),
        randn(*shape[:-1]).to(lk.gaussian_kl(mean, logvar).dtype),
    )
    of_kl = of_rows if count is None else of_rows[0]
    forward = width * (2 * size + drawn)
    backward = width * (drawn + 4 * size)
    yield Work(
        "rsample_kl forward",
        shape,
        name,
        forward,
        lambda: lk.rsample_kl(mean, logvar, count, seed=1),
    )
    yield Work(
        "rsample_kl f+b", shape, name, forward + backward,
        both(lambda: lk.rsample_kl(*leaves, count, seed=1), leaves, (z, of_kl)),
    )  # fmt: skip
    if dtype != torch.float32 or cols != 256:
        return
    yield Work(
        "rsample_log_prob f+b", shape, name, forward + backward,
        both(lambda: lk.rsample_log_prob(*leaves, count, seed=1), leaves, (z, of_rows)),
    )  # fmt: skip
    if not samples:
        yield Work(
            "gaussian_kl forward",
            shape,
            name,
            width * 2 * size,
            lambda: lk.gaussian_kl(mean, logvar),
        )
        yield Work(
            "gaussian_kl f+b", shape, name, width * 6 * size,
            both(lambda: lk.gaussian_kl(*leaves), leaves, of_kl),
        )  # fmt: skip


def density_work(dtype: torch.dtype) -> Iterator[Work]:
    """Make the densities of a decoder: x shared by the samples, gradients for the decoder alone."""
    shape = samples, rows, cols = 50, 1024, 784
    size, name, width = samples * rows * cols, str(dtype)[6:], dtype.itemsize
    x, decoded = torch.rand(rows, cols, device="cuda").to(dtype), randn(*shape, dtype=dtype)
    logvar = torch.full((cols,), -1.0, device="cuda", dtype=dtype)
    leaf = decoded.clone().requires_grad_()
    g = randn(samples, rows).to(lk.bernoulli_log_prob(x, decoded).dtype)
    functions = {
        "gaussian_log_prob": lambda y: lk.gaussian_log_prob(x, y, logvar),
        "bernoulli_log_prob": lambda y: lk.bernoulli_log_prob(x, y),
    }
    for op, function in functions.items():
        forward = width * (size + rows * cols)
        yield Work(f"{op} forward", shape, name, forward, lambda f=function: f(decoded))
        yield Work(
            f"{op} f+b", shape, name, forward + width * (2 * size + rows * cols),
            both(lambda f=function: f(leaf), (leaf,), g),
        )  # fmt: skip


def bound_work(samples: int, rows: int) -> Iterator[Work]:
    """Make the bounds: log_w read by each pass, its gradient written."""
    shape, size = (samples, rows), samples * rows
    log_w = 3 * randn(*shape)
    leaves = log_w.clone().requires_grad_(), randn(*shape).requires_grad_()
    g = randn(rows)
    yield Work(
        "importance_bound forward", shape, "float32", 4 * size, lambda: lk.importance_bound(log_w)
    )
    yield Work(
        "importance_bound f+b", shape, "float32", 12 * size,
        both(lambda: lk.importance_bound(leaves[0]), leaves[:1], g),
    )  # fmt: skip
    yield Work(
        "importance_bound vimco f+b", shape, "float32", 20 * size,
        both(lambda: lk.importance_bound(leaves[0], estimator="vimco", log_q=leaves[1]), leaves, g),
    )  # fmt: skip


def family_work() -> Iterator[Work]:
    """Make samples of the families, and score-function gradients from z and from the seed."""
    rows, cols = 4096, 256
    shape, size = (SAMPLES, rows, cols), rows * cols
    values = 3 + randn(SAMPLES, rows)
    a, b, logits = randn(rows, cols), randn(rows, cols), randn(rows, cols, CLASSES)
    families = {
        "gaussian": (lk.DiagonalGaussian(a, b), 2, 4),
        "bernoulli": (lk.Bernoulli(a), 1, 4),
        "categorical": (lk.Categorical(logits), CLASSES, 8),
    }
    gradient = lk.score_function_gradient
    for family, (q, parameters, width) in families.items():
        z = q.sample(SAMPLES, seed=1)
        drawn, own = width * SAMPLES * size, 4 * parameters * size
        yield Work(
            f"{family} sample", shape, "float32", drawn + own, lambda q=q: q.sample(SAMPLES, seed=1)
        )
        for control in ("leave_one_out", "optimal"):
            yield Work(
                f"score {family} {control} of z", shape, "float32", drawn + 2 * own,
                lambda q=q, z=z, c=control: gradient(q, values, z, control_variate=c),
            )  # fmt: skip
            yield Work(
                f"score {family} {control} of seed", shape, "float32", 2 * own,
                lambda q=q, c=control: gradient(q, values, seed=1, control_variate=c),
            )  # fmt: skip


def small_work() -> Iterator[Work]:
    """Make a training step's calls, of which the launch is nearly all."""
    mean, logvar = randn(64, 20), randn(64, 20)
    leaves = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    z, kl = randn(64, 20), randn(64)
    yield Work(
        "normal", (64, 20), "float32", 5120, lambda: lk.normal((64, 20), seed=1, device="cuda")
    )
    yield Work(
        "rsample_kl forward",
        (64, 20),
        "float32",
        15360,
        lambda: lk.rsample_kl(mean, logvar, seed=1),
    )
    yield Work(
        "rsample_kl f+b", (64, 20), "float32", 40960,
        both(lambda: lk.rsample_kl(*leaves, seed=1), leaves, (z, kl)),
    )  # fmt: skip


def all_work() -> Iterator[Work]:
    """Make all calls, one after the other: the tensors of one are freed before the next."""
    yield from small_work()
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        yield from noise_work(dtype)
        yield from gaussian_work(0, 256, dtype)
        yield from gaussian_work(SAMPLES, 256, dtype)
        yield from density_work(dtype)
    for cols in (20, 64, 784, 8192):
        yield from gaussian_work(0, cols, torch.float32)
    yield from gaussian_work(SAMPLES, 20, torch.float32)
    for shape in ((50, 2**20), (256, 2**17), (5000, 2**13), (5000, 256), (2**18, 64)):
        yield from bound_work(*shape)
    yield from family_work()


def median_seconds(call: Call) -> float:
    """Measure the median over rounds, each of a few milliseconds."""
    count = max(1, round(SLICE / max(cuda.seconds(call, 3) / 3, 1e-6)))
    return statistics.median(cuda.seconds(call, count) / count for _ in range(ROUNDS))


def time_work(work: Work, copy: float) -> dict[str, Any]:
    """Time one call; what fails is said in its row and stops nothing."""
    row: dict[str, Any] = {
        "op": work.op, "shape": "x".join(map(str, work.shape)), "dtype": work.dtype,
        "bytes": work.bytes,
    }  # fmt: skip
    try:
        work.call()
        kernel = median_seconds(cuda.graphed(work.call))
        row["kernel_us"] = round(kernel * 1e6, 2)
        row["percent_of_copy"] = round(100 * work.bytes / kernel / copy, 1)
        row["call_us"] = round(median_seconds(work.call) * 1e6, 2)
    except Exception as error:
        row["failure"] = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        torch.cuda.synchronize()
    return row


COLUMNS = ("op", "shape", "dtype", "bytes", "kernel_us", "percent_of_copy", "call_us", "failure")


def main() -> int:
    """Compare the bits, then time the kernels."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch finds no CUDA GPU; nothing was measured", file=sys.stderr)
        return 2
    out_dir.mkdir(parents=True, exist_ok=True)
    (out_dir / "machine.json").write_text(json.dumps(machine.describe(), indent=1) + "\n")
    wrong = 0
    with (out_dir / "bits.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Bits._fields)
        for compare in (compare_noise, compare_samples):
            for row in compare():
                writer.writerow(row)
                wrong += row.different > 0
                if row.different:
                    print(f"bits differ: {row}", flush=True)
    print(f"bits: {wrong} comparisons differ", flush=True)
    copy = machine.copy_bandwidth(1, "cuda")
    print(f"copy: {copy * 1e-9:.0f} GB/s", flush=True)
    with (out_dir / "kernels.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        table.writeheader()
        table.writerow(
            {
                "op": "copy",
                "dtype": "float32",
                "bytes": 2**31,
                "kernel_us": round(2**31 / copy * 1e6, 2),
                "percent_of_copy": 100,
            }
        )
        for work in all_work():
            found = time_work(work, copy)
            table.writerow(found)
            file.flush()
            print(*(f"{k}={v}" for k, v in found.items() if k != "bytes"), flush=True)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
