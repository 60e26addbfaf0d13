"""`lk.normal` and `lk.uniform` against torch.randn and torch.rand: every contender draws fresh
noise at every call.
"""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch

import cuda
import harness
import latent_kernels as lk
from harness import Contest, Group, groups, rows
from latent_kernels.kernels import _core
from latent_kernels.kernels.noise import reference

OURS = {"normal": lk.normal, "uniform": lk.uniform}
TORCH = {"normal": torch.randn, "uniform": torch.rand}
MOMENTS = {
    "normal": (0.0, 1.0, 3.0),
    "uniform": (1 / 2, 1 / 12, 1 / 80),
}  # mean, variance, fourth central

SIZES = ((2**10,), (2**14,), (2**17,), (2**20,), (2**23,))
GPU_SIZES = ((2**20,), (2**24,), (2**26,))
# A compiled generator is a loop over single elements: two sizes show it, and each takes seconds to
# compile.
COMPILED = {(2**14, 1), (2**20, 1), (2**20, 2)}

# Operations of one element, transcendental functions spelled out: Philox, ten rounds of 2 wide
# products (4 words), 4 xor and 2 key sums for four words, 80 / 4 = 20; uniform: convert, product,
# sum, min; normal, by pairs: two conversions to floats 5, ln 27, root 2, sine and cosine 33,
# products 2 = 69 / 2, about 35.
OPERATIONS = {"normal": 20 + 35, "uniform": 20 + 4}


def _check(kind: str, size: int, contender: str, out: torch.Tensor) -> None:
    assert out.shape == (size,)
    assert out.dtype == torch.float32
    harness.moments(out, *MOMENTS[kind], what=f"{kind} of {contender}")


def _check_bits(kind: str, size: int, device: str) -> None:
    """Compare ours with the NumPy reference, for the seed that torch's generator gives."""
    torch.manual_seed(0)
    seed = int(torch.randint(2**63 - 1, ()))
    torch.manual_seed(0)
    got = OURS[kind](size, seed=None, device=device)[: 2**16].cpu()
    expected = torch.from_numpy(getattr(reference, kind)(got.numel(), seed).copy())
    assert torch.equal(got.view(torch.int32), expected.view(torch.int32)), (
        "bits differ from the reference"
    )


def _prepare(kind: str, size: int, contenders: tuple[str, ...], device: str) -> Contest:
    ours, plain = OURS[kind], TORCH[kind]

    def eager() -> torch.Tensor:
        return plain(size, device=device)

    calls: dict[str, Any] = {"ours": lambda: ours(size, seed=None, device=device), "eager": eager}
    if "compile" in contenders:
        calls["compile"] = torch.compile(eager)
    if "graph" in contenders:
        calls["graph"] = cuda.graphed(eager)

    def check(contender: str, out: torch.Tensor) -> None:
        if contender == "ours":
            _check_bits(kind, size, device)
        _check(kind, size, contender, out)

    return Contest(calls, check)


def _group(kind: str, shape: tuple[int], threads: int, device: str) -> Group:
    (size,) = shape
    contenders: tuple[str, ...] = ("ours", "eager")
    if device == "cuda":
        contenders += ("compile", "graph")
    elif (size, threads) in COMPILED:
        contenders += ("compile",)
    return Group(
        op=f"noise {kind}",
        shape=shape,
        threads=threads,
        device=device,
        contenders=contenders,
        elements=size,
        bytes=4 * size,  # one float32 written
        operations=OPERATIONS[kind] * size,
        prepare=functools.partial(_prepare, kind, size, contenders, device),
    )


def _prepare_builds(kind: str, size: int, builds: tuple[str, ...]) -> Contest:
    ours, plain = OURS[kind], TORCH[kind]

    def with_build(name: str) -> Any:
        def call() -> torch.Tensor:
            active = _core.simd_build()
            _core.select_simd_build(name)
            try:
                return ours(size, seed=1)
            finally:
                _core.select_simd_build(active)

        return call

    calls: dict[str, Any] = {name: with_build(name) for name in builds}
    calls["eager"] = lambda: plain(size)
    expected = torch.from_numpy(getattr(reference, kind)(size, 1).copy()).view(torch.int32)

    def check(contender: str, out: torch.Tensor) -> None:
        _check(kind, size, contender, out)
        assert contender == "eager" or torch.equal(out.view(torch.int32), expected), (
            "bits differ from the reference"
        )

    return Contest(calls, check)


def _builds_group(kind: str, size: int) -> Group:
    builds = tuple(_core.simd_builds())
    return Group(
        op=f"noise {kind} by SIMD build",
        shape=(size,),
        threads=1,
        device="cpu",
        contenders=(*builds, "eager"),
        elements=size,
        bytes=4 * size,  # one float32 written
        operations=OPERATIONS[kind] * size,
        prepare=functools.partial(_prepare_builds, kind, size, builds),
        ours=builds,
    )


GROUPS = [
    *groups(functools.partial(_group, "normal"), SIZES, GPU_SIZES),
    *groups(functools.partial(_group, "uniform"), SIZES, GPU_SIZES),
    *(_builds_group(kind, 2**20) for kind in OURS),
]


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_noise(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time noise, by size and threads, and on one thread by SIMD build."""
    harness.run(benchmark, group, contender)
