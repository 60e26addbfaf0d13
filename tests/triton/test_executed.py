"""Tests of kernels as Triton compiles them, in the PTX interpreter: planted faults are caught, and
offsets past 2^31 elements are right. The tests of each op execute the library's kernels in other
ways.
"""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch

triton = pytest.importorskip("triton")

import triton.language as tl  # noqa: E402

import latent_kernels as lk  # noqa: E402
from latent_kernels.kernels.gaussian.problem import Outputs, Problem  # noqa: E402
from latent_kernels.kernels.launch import OPTIONS  # noqa: E402
from tests.backends import interpreted  # noqa: E402
from tests.checks import bits_equal  # noqa: E402
from tests.triton.ptx.driver import TARGET, launches  # noqa: E402
from tests.triton.ptx.memory import Fault, sparse  # noqa: E402

pytestmark = interpreted
Edit = Callable[[str], str]

# --- planted faults -------------------------------------------------------------------------------


@triton.jit
def sums_kernel(
    x_ptr, row_ptr, col_ptr, N, D, width: tl.constexpr, beyond: tl.constexpr, BLOCK: tl.constexpr
):
    """Write the sums of the rows and of the columns of tiles [BLOCK, BLOCK] of x [N, D]."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    cols = tl.arange(0, BLOCK)
    mask = (rows < N)[:, None] & (cols < D + beyond)[None, :]
    x = tl.load(x_ptr + rows[:, None] * (D + width) + cols[None, :], mask=mask, other=0.0)
    tl.store(row_ptr + rows, tl.sum(x, 1), mask=rows < N)
    tl.store(col_ptr + tl.program_id(0) * D + cols, tl.sum(x, 0), mask=cols < D)


def sums(*, width: int = 0, beyond: int = 0) -> bool:
    """Run the kernel, and return whether its sums are right."""
    x = torch.arange(50 * 30, dtype=torch.float32).reshape(50, 30)
    row, col = torch.full((50,), torch.nan), torch.full((2, 30), torch.nan)
    sums_kernel[(2,)](x, row, col, 50, 30, width=width, beyond=beyond, BLOCK=32, **OPTIONS)
    right = torch.stack([x[:32].sum(0), x[32:].sum(0)])
    return torch.equal(row, x.sum(1)) and torch.equal(col, right)


def without(pattern: str, which: int) -> Edit:
    """Return a function that removes one of the matching statements from a text."""

    def edit(text: str) -> str:
        found = list(re.finditer(pattern, text))[which]
        return text[: found.start()] + text[found.end() :]

    return edit


def count(pattern: str) -> int:
    """Return how often a pattern occurs in the kernel's PTX."""
    found = []
    with launches(edited=lambda text: found.append(len(re.findall(pattern, text))) or text):
        sums()
    return found[0]


def test_the_kernel_without_a_fault() -> None:
    assert sums()


def test_the_ptx_is_what_a_device_gets() -> None:
    from tests.triton.compiled.launches import H100
    from tests.triton.compiled.test_gaussian import noise

    def code(ptx: str) -> str:
        """Return the instructions without what follows them, which also holds names of files."""
        return re.sub(r"\t\.file\t.*", "", ptx[: ptx.index(".section")])

    ours, theirs = (noise("normal", target).asm["ptx"] for target in (TARGET, H100))
    assert code(ours.decode()) == code(theirs)


def test_a_wrong_mask_is_caught() -> None:
    with pytest.raises(Fault, match=r"bytes \d+ to \d+ of a tensor \[50, 30\] of float32"):
        sums(beyond=1)


def test_an_off_by_one_stride_is_caught() -> None:
    with pytest.raises(Fault, match=r"bytes \d+ to \d+ of a tensor \[50, 30\] of float32"):
        sums(width=1)


def test_a_missing_barrier_is_caught() -> None:
    """The removal of any single barrier is caught."""
    barrier = r"bar\.sync\s+0;"
    for which in range(count(barrier)):
        with launches(edited=without(barrier, which)), pytest.raises(Fault, match="a race"):
            sums()


def test_a_swapped_lane_is_caught() -> None:
    shuffle = r"(shfl\.sync\.bfly\.b32\s+%r\d+, %r\d+, )(\d+)"
    for which in range(count(shuffle)):

        def swap(text: str, which: int = which) -> str:
            found = list(re.finditer(shuffle, text))[which]
            lane = int(found[2]) // 2 or 2
            return text[: found.start()] + f"{found[1]}{lane}" + text[found.end() :]

        with launches(edited=swap):
            try:
                right = sums()
            except Fault:  # lanes that hold the same sum no longer agree on it
                right = False
        assert not right, which


def test_a_store_in_the_wrong_place_is_caught() -> None:
    """Stores by two threads of the grid to one address are caught, and a place that is not written
    keeps NaN.
    """
    index = r"mov\.u32\s+(%r\d+), %ctaid\.x;"
    with (
        launches(edited=lambda text: re.sub(index, r"mov.u32 \1, 0;", text)),
        pytest.raises(AssertionError),
    ):
        assert sums()
    with (
        launches(edited=lambda text: re.sub(r"(st\.global\.b32 \[ %rd\d+) \+ 0", r"\1 + 4", text)),
        pytest.raises(Fault),
    ):
        sums()


def test_another_rounding_is_caught() -> None:
    """If one product of the noise is less exact, the bits differ from the C++ kernel's."""
    from latent_kernels.kernels.noise import cpp_cpu, triton_gpu

    ours, theirs = torch.empty(1000), torch.empty(1000)
    cpp_cpu.fill("normal", theirs, 3, 0)
    product = r"(mul|fma)(\.rn\.f32\s+%[rf]\d+, %[rf]\d+, )(0f[0-9A-F]{7})([0-9A-F])"

    def edit(text: str) -> str:
        found = re.search(product, text)
        assert found is not None
        last = f"{int(found[4], 16) ^ 4:X}"
        return text[: found.start(4)] + last + text[found.end(4) :]

    triton_gpu.fill("normal", ours, 3, 0)
    assert bits_equal(ours, theirs)
    with launches(edited=edit):
        triton_gpu.fill("normal", ours, 3, 0)
    assert not bits_equal(ours, theirs)


# --- past 2^31 elements ---------------------------------------------------------------------------


def last(programs: int) -> Callable[[int], range]:
    """Return the last blocks of a grid."""
    return lambda count: range(count - programs, count)


@pytest.mark.parametrize("kind", ["normal", "uniform"])
def test_noise_past_2_to_the_31(kind: str) -> None:
    from latent_kernels.kernels.noise import cpp_cpu, triton_gpu

    n, tail, offset = 2**32 + 2**31 + 77, 2000, 2**40 + 5
    out, expected = torch.from_numpy(sparse(n, np.float32)), torch.empty(tail)
    with launches(only=last(3)):
        triton_gpu.fill(kind, out, 9, offset)
    cpp_cpu.fill(kind, expected, 9, offset + n - tail)
    assert bits_equal(out[-tail:], expected)
    assert not out[: 2**20].any()


@pytest.mark.parametrize("cols", [1024, 1023])
def test_samples_past_2_to_the_31(cols: int) -> None:
    """Samples are right for z [3, rows, cols], whose last row lies past 2^31 in every sample but
    the first.
    """
    from latent_kernels.kernels.gaussian import triton_gpu

    rows = 2**20 + 3
    z = torch.from_numpy(sparse(3 * rows * cols, np.float16)).reshape(1, 3, rows, cols)
    zero = torch.zeros(1, cols, dtype=torch.float16).expand(rows, cols)
    problem = Problem((1, 3, rows, cols), zero, zero, None, None, None, 3, 0, 0)
    with launches(only=last(2)):
        triton_gpu.forward(problem, Outputs(z, None, None))
    for sample in range(3):
        offset = (sample * rows + rows - 1) * cols
        expected = lk.normal(cols, seed=3, offset=offset, dtype=torch.float16)
        assert bits_equal(z[0, sample, -1], expected)


@pytest.mark.parametrize("density", ["gaussian", "bernoulli"])
def test_densities_past_2_to_the_31(density: str) -> None:
    """The last row has the density of the row alone."""
    from latent_kernels.kernels.densities import cpp_cpu, triton_gpu
    from latent_kernels.kernels.densities import problem as densities

    rows, cols = 2**25 + 1, 64
    x = torch.from_numpy(sparse(rows * cols, np.float16)).reshape(1, 1, rows, cols)
    x[..., -1, :] = torch.rand(cols).half()
    other = torch.randn(1, 1, 1, cols).half()

    def run(kernels: object, x: torch.Tensor) -> torch.Tensor:
        shared = other.expand(1, 1, x.size(2), cols)
        inputs = (x, shared, shared) if density == "gaussian" else (x, shared)
        of = densities.GaussianProblem if density == "gaussian" else densities.BernoulliProblem
        out = torch.from_numpy(sparse(x.size(2), np.float32)).reshape(1, 1, -1)
        kernels.forward(of(tuple(x.shape), *inputs), densities.Outputs(out))  # type: ignore[attr-defined]
        return out[..., -1]

    with launches(only=last(1)):
        found = run(triton_gpu, x)
    assert torch.allclose(found, run(cpp_cpu, x[..., -1:, :]), rtol=1e-5)
