"""The Triton kernels of vector quantization, their PTX interpreted."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.vector_quantize import cpp_cpu
from tests.backends import interpreted
from tests.checks import Sizes, bits_equal
from tests.vector_quantize.checks import QuantizeProblem


@pytest.fixture
def kernels() -> ModuleType:
    from latent_kernels.kernels.vector_quantize import triton_gpu

    return triton_gpu


@interpreted
@pytest.mark.parametrize(
    ("sizes", "dtype"),
    [
        ((2, 70, 90, 6), torch.float32),
        pytest.param((1, 40, 33, 70), torch.float64, marks=pytest.mark.slow),
        pytest.param((1, 40, 33, 9), torch.bfloat16, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_the_cpus_bits(kernels: ModuleType, sizes: Sizes, dtype: torch.dtype) -> None:
    """All but the distances, which are sums over columns, have the CPU's bits: codes, statistics
    and gradients.
    """
    problem = QuantizeProblem(sizes, dtype)
    ours, theirs = problem.run(kernels), problem.run(cpp_cpu)
    for name, x in ours.items():
        if name not in ("commitment", "codebook_loss"):
            assert bits_equal(x, theirs[name]), name


@interpreted
def test_public_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend forced by the environment variable, the whole path runs, for rows that have no
    code, too.
    """
    z, codebook = torch.randn(2, 9, 5), torch.randn(2, 7, 5)
    z[0, 3, 1] = torch.nan
    z.requires_grad_()
    codebook.requires_grad_()

    def run() -> list[torch.Tensor]:
        found = lk.vector_quantize(z, codebook)
        total = found.commitment.nansum() + found.codebook_loss.nansum() + found.quantized.sum()
        return [*found, *torch.autograd.grad(total, (z, codebook))]

    expected = run()
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "vector_quantize=triton")
    backends.forget()
    assert backends.backend_name("vector_quantize", torch.device("cpu")) == "triton"
    for a, b in zip(run(), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6, equal_nan=True)
