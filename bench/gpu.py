"""One pass over everything that needs a GPU: `python bench/gpu.py OUT_DIR` writes OUT_DIR/gpu.json.

In order: noise and samples on the GPU against the CPU, bit for bit; copy bandwidth; rsample_kl at S
= 1 beside plain torch, torch.compile and CUDA-graph replays of each; memory; score-function
gradients beside a surrogate loss, the formula by hand, torch.compile and CUDA-graph replays. The
file is written after each part, so that a run cut short leaves what it has. Exit status: 0; 1 where
an answer is wrong; 2 where there is no GPU.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import cuda
import latent_kernels as lk
import peers
from machine import describe

Tensor = torch.Tensor
Call = Callable[[], Any]

BITS_COUNT = 2**22
SEEDS = (0, 1, 0x123456789ABCDEF, 2**63 - 1)
# the last two pass counter 2^32, which element 4 * 2^32 has, and lie beyond it
OFFSETS = (0, 3, 2**34 - 5, 2**40 + 1)
ELEMENTS = (2**24, 2**26)
COLUMNS = 256
ROUNDS = 25
FAMILIES = {
    "gaussian": lk.DiagonalGaussian,
    "bernoulli": lk.Bernoulli,
    "categorical": lk.Categorical,
}
CLASSES = 10
SAMPLES = (16, 64)  # of SCORE_ROWS x COLUMNS
SCORE_ROWS = 4096
# relative to 1 + |value|: float32 sums over S, and over columns
TOLERANCES = {"rsample_kl": 1e-5, "score": 2e-5}
PASSES = ("forward", "backward", "forward+backward")


def bits_differ(a: Tensor, b: Tensor) -> int:
    """How many float32 elements differ in any bit."""
    return int((a.cpu().view(torch.int32) != b.cpu().view(torch.int32)).sum())


def compare_noise() -> list[dict[str, Any]]:
    """CPU against GPU, element by element; seeds also as a tensor on the device."""
    found = []
    for name, function in (("normal", lk.normal), ("uniform", lk.uniform)):
        for seed in SEEDS:
            for offset in OFFSETS:
                on_cpu = function(BITS_COUNT, seed=seed, offset=offset)
                on_gpu = function(BITS_COUNT, seed=seed, offset=offset, device="cuda")
                by_tensor = function(
                    BITS_COUNT, seed=torch.tensor(seed, device="cuda"), offset=offset, device="cuda"
                )
                different = bits_differ(on_cpu, on_gpu) + bits_differ(on_cpu, by_tensor)
                found.append(
                    {
                        "op": name,
                        "seed": seed,
                        "offset": offset,
                        "n": BITS_COUNT,
                        "different": different,
                    }
                )
    return found


def compare_samples() -> list[dict[str, Any]]:
    """Samples of lk.rsample, CPU against GPU: the noise agrees in every bit, exp may not."""
    found = []
    for shape, samples in (((4096, 256), None), ((500, 63), 5)):
        generator = torch.Generator().manual_seed(7)
        mean, logvar = (torch.randn(shape, generator=generator) for _ in range(2))
        on_cpu = lk.rsample(mean, logvar, samples, seed=11)
        on_gpu = lk.rsample(mean.cuda(), logvar.cuda(), samples, seed=11).cpu()
        same_sign = (
            on_cpu.signbit() == on_gpu.signbit()
        )  # between signs, bits do not count distance
        ulps = (on_cpu.view(torch.int32).long() - on_gpu.view(torch.int32).long()).abs()[same_sign]
        found.append(
            {
                "shape": list(on_cpu.shape),
                "different": bits_differ(on_cpu, on_gpu),
                "n": on_cpu.numel(),
                "largest_ulps": int(ulps.max()),
                "largest_difference": (on_cpu - on_gpu).abs().max().item(),
            }
        )
    return found


def copy_bandwidth() -> float:
    """Bytes a second, read and written, of copy_ over 1 GiB arrays: the median."""
    source = torch.ones(2**28, device="cuda")
    target = torch.zeros_like(source)
    cuda.seconds(lambda: target.copy_(source), 3)
    times = [cuda.seconds(lambda: target.copy_(source), 5) / 5 for _ in range(11)]
    return 2 * 4 * source.numel() / statistics.median(times)


def bytes_moved(passes: str, rows: int) -> int:
    """What the least algorithm moves at S = 1, float32."""
    n = rows * COLUMNS
    forward = 4 * (2 * n + n + rows)  # mean and logvar read, z and kl written
    backward = 4 * (
        2 * n + n + rows + 2 * n
    )  # mean, logvar, gz and gkl read, two gradients written
    return {"forward": forward, "backward": backward, "forward+backward": forward + backward}[
        passes
    ]


def check(call: Call, mean: Tensor, logvar: Tensor, upstream: tuple[Tensor, Tensor]) -> float:
    """The largest error of kl and the gradients against float64, relative to 1 + |value|; z gives
    the noise.
    """
    (z, kl), gradients = call()
    m, v = mean.detach().double(), logvar.detach().double()
    gz, gkl = upstream[0].double(), upstream[1].double()[:, None]
    expected = (
        (kl, 0.5 * (m**2 + torch.expm1(v) - v).sum(-1)),
        (gradients[0], gz + gkl * m),
        (gradients[1], 0.5 * gz * (z.detach().double() - m) + 0.5 * gkl * torch.expm1(v)),
    )
    return max(((x.detach().double() - y).abs() / (1 + y.abs())).max().item() for x, y in expected)


def contenders(
    passes: str, mean: Tensor, logvar: Tensor, upstream: tuple[Tensor, Tensor]
) -> dict[str, Call]:
    """Return the calls to time. A backward pass alone keeps its graph: torch.compile has none."""
    torch._dynamo.reset()
    seed = torch.zeros((), dtype=torch.int64, device="cuda")
    compiled, prior = torch.compile(peers.rsample_kl), peers.standard_normal("cuda")

    def ours_from_tensor() -> tuple[Tensor, Tensor]:
        seed.add_(1)  # in the graph too: every replay draws fresh noise
        return lk.rsample_kl(mean, logvar, seed=seed)

    functions: dict[str, Call] = {
        "ours": lambda: lk.rsample_kl(mean, logvar),
        "eager": lambda: peers.rsample_kl(mean, logvar),
        "compile": lambda: compiled(mean, logvar),
        "distributions": lambda: peers.distributions_rsample_kl(mean, logvar, None, prior),
    }
    if passes == "backward":
        held = {name: functions[name]() for name in ("ours", "eager", "distributions")}
        return {
            name: functools.partial(_backward, out, mean, logvar, upstream)
            for name, out in held.items()
        }
    graphs = {
        "ours graph": ours_from_tensor,
        "eager graph": functions["eager"],
        "compile graph": functions["compile"],
    }
    if passes == "forward+backward":
        functions = {name: _both(f, mean, logvar, upstream) for name, f in functions.items()}
        graphs = {name: _both(f, mean, logvar, upstream) for name, f in graphs.items()}
    # capturing may fail for a rival; `times` does it where that is caught
    return functions | {
        name: functools.partial(cuda.graphed, call) for name, call in graphs.items()
    }


def _backward(out: Any, mean: Tensor, logvar: Tensor, upstream: tuple[Tensor, Tensor]) -> Any:
    return torch.autograd.grad(out, (mean, logvar), upstream, retain_graph=True)


def _both(function: Call, mean: Tensor, logvar: Tensor, upstream: tuple[Tensor, Tensor]) -> Call:
    def call() -> Any:
        out = function()
        return out, torch.autograd.grad(out, (mean, logvar), upstream)

    return call


def times(calls: dict[str, Call], moved: int, copy: float) -> dict[str, Any]:
    """Medians over rounds in which each contender is timed once, after a call that is not."""
    ready: dict[str, Call] = {}
    found: dict[str, Any] = {}
    for name, call in calls.items():
        try:
            ready[name] = call() if name.endswith(" graph") else call
            cuda.seconds(ready[name], 3)
        except Exception as error:
            ready.pop(name, None)
            found[name] = {"error": type(error).__name__}
            print(f"    {name}: {error}", file=sys.stderr)
    count = {
        name: max(1, round(5e-3 / (cuda.seconds(call, 3) / 3))) for name, call in ready.items()
    }
    rounds: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(ROUNDS):
        for name, call in ready.items():
            call()
            rounds[name].append(cuda.seconds(call, count[name]) / count[name])
    for name, spent in rounds.items():
        median = statistics.median(spent)
        found[name] = {
            "median_us": median * 1e6,
            "fastest_us": min(spent) * 1e6,
            "gb_per_s": moved / median * 1e-9,
            "percent_of_copy": 100 * moved / median / copy,
        }
    return found


def memory(
    function: Call, mean: Tensor, logvar: Tensor, upstream: tuple[Tensor, Tensor]
) -> dict[str, int]:
    """Bytes at the peak of forward+backward above what was there, and bytes that autograd keeps
    beside the inputs.
    """
    kept: dict[int, int] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage.data_ptr() not in (mean.data_ptr(), logvar.data_ptr()):
            kept[storage.data_ptr()] = storage.nbytes()
        return x

    call = _both(function, mean, logvar, upstream)
    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated() - before
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function()
    del out
    return {"peak_bytes": peak, "saved_bytes": sum(kept.values())}


def driver() -> str | None:
    """The driver's version, where nvidia-smi tells."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return (
            subprocess.run(command, capture_output=True, text=True, check=True)
            .stdout.splitlines()[0]
            .strip()
        )
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None


def measure(elements: int, copy: float) -> dict[str, Any]:
    """Times and memory of rsample_kl at one size, after its answers were checked."""
    rows = elements // COLUMNS
    generator = torch.Generator(device="cuda").manual_seed(7)
    mean, logvar, gz = (
        torch.randn(rows, COLUMNS, device="cuda", generator=generator) for _ in range(3)
    )
    logvar.mul_(0.5).sub_(0.5)
    upstream = gz, torch.randn(rows, device="cuda", generator=generator)
    found: dict[str, Any] = {"elements": elements, "shape": [rows, COLUMNS]}
    leaves = mean.clone().requires_grad_(), logvar.clone().requires_grad_()
    found["error"] = check(
        _both(lambda: lk.rsample_kl(*leaves), *leaves, upstream), *leaves, upstream
    )
    if not found["error"] < TOLERANCES["rsample_kl"]:
        return found  # no time of a wrong answer
    for passes in PASSES:
        inputs = (mean, logvar) if passes == "forward" else leaves
        moved = bytes_moved(passes, rows)
        found[passes] = {
            "bytes": moved,
            **times(contenders(passes, *inputs, upstream), moved, copy),
        }
        torch.cuda.empty_cache()
    found["memory"] = {
        "ours": memory(lambda: lk.rsample_kl(*leaves), *leaves, upstream),
        "eager": memory(lambda: peers.rsample_kl(*leaves), *leaves, upstream),
    }
    return found


def score_bytes(family: str, samples: int) -> int:
    """Return the least bytes moved: z, values and parameters read, gradients written."""
    n = SCORE_ROWS * COLUMNS
    of_q = n * {"gaussian": 2, "bernoulli": 1, "categorical": CLASSES}[family]
    return samples * n * (8 if family == "categorical" else 4) + 4 * samples * SCORE_ROWS + 8 * of_q


def score_contenders(
    family: str, parameters: tuple[Tensor, ...], values: Tensor, z: Tensor, seed: int
) -> dict[str, Call]:
    """Calls to time. `ours seed` draws z again and reads none, so that its share of the copy may
    pass 100%.
    """
    torch._dynamo.reset()
    q = FAMILIES[family](*parameters)
    leaves = tuple(x.clone().requires_grad_() for x in parameters)
    formula = functools.partial(peers.formula, family, values, z, parameters, None)
    compiled = functools.partial(
        torch.compile(functools.partial(peers.formula, family)), values, z, parameters, None
    )
    functions: dict[str, Call] = {
        "ours": lambda: lk.score_function_gradient(q, values, z),
        "ours seed": lambda: lk.score_function_gradient(q, values, seed=seed),
        "ours optimal": lambda: lk.score_function_gradient(q, values, z, control_variate="optimal"),
        "ours variance": lambda: lk.score_function_gradient(q, values, z, return_variance=True),
        "surrogate": functools.partial(peers.surrogate, family, values, z, leaves, None),
        "formula": formula,
        "sums": functools.partial(peers.sums, family, values, z, parameters, None),
        "compile": compiled,
    }
    graphs = ("ours", "surrogate", "formula", "sums", "compile")
    return functions | {
        f"{name} graph": functools.partial(cuda.graphed, functions[name]) for name in graphs
    }


def measure_score(family: str, samples: int, copy: float) -> dict[str, Any]:
    """Times of the leave-one-out gradient of a family at one size, after the answer was checked
    both ways.
    """
    generator = torch.Generator(device="cuda").manual_seed(7)
    tail = (CLASSES,) if family == "categorical" else ()
    count = 2 if family == "gaussian" else 1
    parameters = tuple(
        torch.randn(SCORE_ROWS, COLUMNS, *tail, device="cuda", generator=generator)
        for _ in range(count)
    )
    values = 3 + torch.randn(samples, SCORE_ROWS, device="cuda", generator=generator)
    q, seed = FAMILIES[family](*parameters), 11
    z = q.sample(samples, seed=seed)
    wide = z.double() if z.is_floating_point() else z
    expected = peers.sums(
        family, values.double(), wide, tuple(x.double() for x in parameters), None
    )
    del wide
    found: dict[str, Any] = {"family": family, "shape": [samples, SCORE_ROWS, COLUMNS]}
    found["error"] = max(
        ((x.double() - y).abs() / (1 + y.abs())).max().item()
        for given in ({"z": z}, {"seed": seed})
        for x, y in zip(lk.score_function_gradient(q, values, **given), expected, strict=True)
    )
    if not found["error"] < TOLERANCES["score"]:
        return found  # no time of a wrong answer
    moved = score_bytes(family, samples)
    found["gradient"] = {"bytes": moved} | times(
        score_contenders(family, parameters, values, z, seed), moved, copy
    )
    torch.cuda.empty_cache()
    return found


def main() -> int:
    """Runs it all."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out_dir", type=Path)
    out_dir = parser.parse_args().out_dir
    if not torch.cuda.is_available():
        print("bench/gpu.py: torch finds no CUDA GPU; nothing was measured", file=sys.stderr)
        return 2
    out_dir.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "machine": describe() | {"driver": driver(), "cuda": torch.version.cuda}
    }

    def save(part: str, value: Any) -> None:
        found[part] = value
        (out_dir / "gpu.json").write_text(json.dumps(found, indent=1) + "\n")
        print(f"{part}: {json.dumps(value)}", flush=True)

    save("noise_bits", compare_noise())
    save("sample_bits", compare_samples())
    copy = copy_bandwidth()
    save("copy_gb_per_s", copy * 1e-9)
    for elements in ELEMENTS:
        save(f"rsample_kl_{elements}", measure(elements, copy))
    scores = []
    for family in FAMILIES:
        for samples in SAMPLES:
            scores.append(f"score_{family}_{samples}")
            save(scores[-1], measure_score(family, samples, copy))
    wrong = [row for row in found["noise_bits"] if row["different"]]
    wrong += [
        n for n in ELEMENTS if not found[f"rsample_kl_{n}"]["error"] < TOLERANCES["rsample_kl"]
    ]
    wrong += [name for name in scores if not found[name]["error"] < TOLERANCES["score"]]
    print(f"wrong answers: {wrong}" if wrong else "every answer right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
