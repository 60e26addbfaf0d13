"""Vector quantization on every backend: nearest codes, statistics, gradients; then the function."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.vector_quantize import cpp_cpu
from latent_kernels.kernels.vector_quantize.problem import Outputs, Problem
from tests.backends import Backend, on_every_backend
from tests.checks import DTYPES, Sizes, bits_equal
from tests.vector_quantize.checks import QuantizeProblem, check_quantized

Tensor = torch.Tensor

# Groups, rows, codes, columns: partial registers, panels, tiles and blocks of columns of each
# build; one code, one column, none, no rows; more tiles than one task has.
SIZES: list[Sizes] = [
    (1, 50, 9, 5),
    (1, 1, 1, 1),
    (3, 7, 70, 4),
    (1, 100, 130, 33),
    (2, 49, 64, 131),
    (1, 11, 3, 260),
    (1, 5, 65, 0),
    (1, 0, 3, 4),
    (1, 3, 2, 1100),
    (1, 3000, 60, 8),
]
INTERPRETED: list[Sizes] = [
    (2, 19, 21, 5),
    (1, 3, 1, 1),
    (1, 0, 3, 4),
    (1, 5, 3, 0),
    (1, 9, 70, 70),
]


@on_every_backend(SIZES, interpreted=INTERPRETED)
def test_results(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    check_quantized(backend, QuantizeProblem(sizes, dtype))


@on_every_backend(SIZES[:6], interpreted=[(1, 33, 40, 3)], always=1, also=[])
def test_equally_near_codes(backend: Backend, sizes: Sizes, dtype: torch.dtype) -> None:
    """Of codes at the same distance the lowest is chosen, wherever they lie in registers."""
    problem = QuantizeProblem(sizes, dtype, whole=True)
    codes = backend.run("vector_quantize", problem.run)["codes"]
    distances = problem.distances()
    first = (distances == distances.amin(-1, keepdim=True)).to(torch.uint8).argmax(-1)
    assert torch.equal(codes, first)


def test_scores_are_chains_of_fma(simd_build: str) -> None:
    """A code that scores one unit in the last place more by such a chain is chosen."""
    d = 40
    z = torch.randn(200, d)
    codebook = torch.randn(1, d).repeat(2, 1)
    codebook[1] += 1e-7 * torch.randn(d)

    def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
        """Round a b + c once: the sum in float64, its last bit made odd where it is not exact."""
        product, c = a.double() * b.double(), c.double()
        total = product + c
        back = total - product
        rest = (product - (total - back)) + (c - back)
        bits = total.view(torch.int64)
        away = torch.where((rest > 0) == (total > 0), 1, -1)
        odd = (rest != 0) & (bits & 1 == 0)
        # the exact sum lies between `total` and its neighbour towards `rest`; one of them is odd
        return torch.where(odd, bits + away, bits).view(torch.float64).float()

    square = torch.zeros(2)
    for column in codebook.T:
        square = fma(column, column, square)
    scores = (-0.5 * square).expand(200, 2)
    for i in range(d):
        scores = fma(z[:, i, None], codebook[:, i].expand(200, 2), scores)
    expected = (scores[:, 1] > scores[:, 0]).long()
    assert 20 < int(expected.sum()) < 180
    assert torch.equal(lk.vector_quantize(z, codebook).codes, expected)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_without_a_code(simd_build: str, dtype: torch.dtype) -> None:
    """NaN stays in its row, which no statistic and no code's gradient counts."""
    z = torch.randn(60, 5).to(dtype)
    codebook = torch.randn(7, 5).to(dtype)
    plain = lk.vector_quantize(z, codebook)
    z[13, 2], z[50] = math.nan, math.nan
    z.requires_grad_()
    codebook.requires_grad_()
    found = lk.vector_quantize(z, codebook)
    lost = torch.zeros(60, dtype=torch.bool)
    lost[[13, 50]] = True
    for name in ("codes", "quantized", "commitment", "codebook_loss"):
        assert bits_equal(getattr(found, name)[~lost], getattr(plain, name)[~lost])
    assert found.codes[lost].tolist() == [-1, -1]
    assert all(x[lost].isnan().all() for x in found[1:4])
    assert torch.equal(found.counts, torch.bincount(plain.codes[~lost], minlength=7))
    assert not found.sums.isnan().any()
    total = found.commitment.sum() + found.codebook_loss.sum() + found.quantized.float().sum()
    of_z, of_codebook = torch.autograd.grad(total, (z, codebook))
    assert of_z.isnan().any(-1).nonzero().flatten().tolist() == [13, 50]
    assert not of_codebook.isnan().any()


def test_rows_without_a_code_by_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    z, codebook = torch.randn(2, 20, 3), torch.randn(2, 4, 3)
    z[0, 3, 1], z[1, 7, 0], codebook[0, 2, 1] = math.nan, math.inf, math.nan
    z.requires_grad_()
    codebook.requires_grad_()

    def run() -> list[Tensor]:
        found = lk.vector_quantize(z, codebook)
        total = found.commitment.sum() + found.codebook_loss.sum() + found.quantized.sum()
        return [*found, *torch.autograd.grad(total, (z, codebook))]

    expected = run()
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "reference")
    backends.forget()
    for a, b in zip(run(), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6, equal_nan=True)


def test_extreme_values(simd_build: str) -> None:
    """A code that is not finite is not chosen; an infinite row takes a code that points its way."""
    codebook = torch.tensor([[math.nan, 0.0], [1e30, 0.0], [1.0, -1.0], [math.inf, 0.0]])
    found = lk.vector_quantize(
        torch.tensor([[0.0, 0.0], [math.inf, 0.0], [-math.inf, 3.0]]), codebook
    )
    assert found.codes.tolist() == [2, 2, -1]
    assert found.commitment[0] == 2
    assert found.commitment[1] == math.inf


def test_distances_do_not_cancel(simd_build: str) -> None:
    z = 1000 + torch.rand(50, 16)
    codebook = z[:9] + 0.125 * torch.rand(9, 16)
    found = lk.vector_quantize(z, codebook)
    exact = (z.double() - codebook[found.codes].double()).square().sum(-1)
    assert torch.allclose(found.commitment.double(), exact, rtol=1e-6)


def test_long_sums(simd_build: str) -> None:
    """Sums of many rows are accumulated in float64: 0.1 and 1 + 2^20 rows of it in one code."""
    z = torch.full((1 << 20, 1), 0.1)
    found = lk.vector_quantize(z, torch.tensor([[5.0], [0.0]]))
    assert found.counts.tolist() == [0, 1 << 20]
    assert found.sums[1].item() == (z[0].double() * 2**20).float().item()


def test_memory_of_backends_is_not_read_beyond_codes() -> None:
    """A code out of range, which no op makes, is treated as none."""
    out = Outputs(torch.zeros(1, 2, 3), torch.zeros(1, 2), torch.zeros(1, 2))
    codes = torch.tensor([[99, 1]])
    cpp_cpu.forward(Problem((1, 2, 2, 3), torch.ones(1, 2, 3), torch.ones(1, 2, 3), codes), out)
    assert out.commitment.isnan().tolist() == [[True, False]]


# --- the public function --------------------------------------------------------------------------


def test_leading_dimensions_and_heads() -> None:
    z, codebook = torch.randn(3, 4, 5, 2), torch.randn(3, 6, 2)
    heads = lk.vector_quantize(z, codebook)
    for i in range(3):
        one = lk.vector_quantize(z[i], codebook[i])
        flat = lk.vector_quantize(z[i].reshape(-1, 2), codebook[i])
        for a, b, c in zip(heads, one, flat, strict=True):
            assert torch.equal(a[i], b)
            assert torch.equal(b.flatten(), c.flatten())
    single = lk.vector_quantize(z[0, 0, 0], codebook[0])
    assert single.codes.shape == single.commitment.shape == ()


@pytest.mark.parametrize("kind", ["transposed", "sliced", "expanded", "negative"])
def test_strides(kind: str) -> None:
    z, codebook = torch.randn(8, 6), torch.randn(5, 6)
    if kind == "expanded":
        z = z[:1].expand(8, 6)
    other = {
        "transposed": lambda x: x.T.contiguous().T,
        "sliced": lambda x: torch.stack([x, x], -1)[..., 0],
        "expanded": lambda x: x,
        "negative": lambda x: torch._neg_view(-x),
    }[kind]
    a, b = (
        lk.vector_quantize(z.contiguous(), codebook),
        lk.vector_quantize(other(z), other(codebook)),
    )
    assert all(bits_equal(x, y) for x, y in zip(a, b, strict=True))


def test_dtypes_promote() -> None:
    z, codebook = torch.randn(9, 4, dtype=torch.bfloat16, requires_grad=True), torch.randn(3, 4)
    found = lk.vector_quantize(z, codebook)
    wide = lk.vector_quantize(z.float(), codebook)
    assert found.quantized.dtype == torch.float32
    assert all(bits_equal(a, b) for a, b in zip(found, wide, strict=True))
    assert torch.autograd.grad(found.quantized.sum(), z)[0].dtype == torch.bfloat16


def test_no_rows() -> None:
    z, codebook = torch.zeros(2, 0, 3, requires_grad=True), torch.randn(4, 3, requires_grad=True)
    found = lk.vector_quantize(z, codebook)
    assert found.codes.shape == (2, 0)
    assert not found.counts.any()
    assert not found.sums.any()
    total = found.commitment.sum() + found.codebook_loss.sum()
    assert all(not g.any() for g in torch.autograd.grad(total, (z, codebook)))


def test_an_iteration_of_k_means_lowers_the_distance() -> None:
    """The statistics are those of hard EM: means of the codes' rows never raise the distance."""
    z = torch.randn(500, 3, dtype=torch.float64)
    codebook, before = z[:20].clone(), math.inf
    for _ in range(15):
        found = lk.vector_quantize(z, codebook)
        after = float(found.commitment.sum())
        assert after <= before
        before = after
        means = found.sums / found.counts.unsqueeze(-1)
        codebook = torch.where(found.counts.unsqueeze(-1) > 0, means, codebook)


@pytest.mark.slow  # numba compiles for ten seconds
def test_agrees_with_the_e_step() -> None:
    """The codes are the hard E-step of a mixture of spherical Gaussians with equal weights."""
    z, codebook = torch.randn(300, 4, dtype=torch.float64), torch.randn(12, 4, dtype=torch.float64)
    found = lk.vector_quantize(z, codebook)
    step = lk.gaussian_e_step(
        z.numpy(), [1 / 12] * 12, codebook.numpy(), [1.0] * 12, "spherical", hard=True
    )
    assert torch.equal(torch.from_numpy(step.counts), found.counts.double())
    first = torch.from_numpy(step.first) + found.counts.unsqueeze(-1) * codebook  # of z - mean
    assert torch.allclose(first, found.sums, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("z", "codebook", "message"),
    [
        ([1.0], torch.zeros(2, 3), r"z must be a torch.Tensor; got list"),
        (torch.zeros(4, 3), None, r"codebook must be a torch.Tensor; got NoneType"),
        (torch.zeros(4, 3, dtype=torch.int64), torch.zeros(2, 3), r"z must have dtype float32"),
        (torch.tensor(1.0), torch.zeros(2, 3), r"z must have shape .*; got a scalar"),
        (torch.zeros(4, 3), torch.zeros(3), r"codebook must have shape \[K, D\] or .* \(3,\)"),
        (torch.zeros(4, 3), torch.zeros(0, 3), r"codebook must have shape .*K >= 1; got \(0, 3\)"),
        (torch.zeros(4, 3), torch.zeros(2, 4), r"z must have shape \[..., 4\] .*; got \(4, 3\)"),
        (torch.zeros(4, 3), torch.zeros(5, 2, 3), r"z must have shape \[5, ..., 3\] .*\(4, 3\)"),
        (torch.zeros(3), torch.zeros(3, 2, 3), r"z must have shape \[3, ..., 3\] .*; got \(3,\)"),
        (torch.zeros(3, 3, device="meta"), torch.zeros(3, 3), r"codebook must be on the device"),
    ],
)
def test_bad_input(z: Any, codebook: Any, message: str) -> None:
    with pytest.raises((TypeError, ValueError), match=message.replace("...,", r"\.\.\.,")):
        lk.vector_quantize(z, codebook)
