"""The Triton kernels of noise and of Gaussian samples, their PTX interpreted."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.gaussian import cpp_cpu
from latent_kernels.kernels.gaussian.problem import ANTITHETIC, INDEPENDENT, SOBOL, Outputs
from latent_kernels.kernels.noise import cpp_cpu as noise
from tests.backends import interpreted
from tests.checks import INTERPRETED, Sizes, bits_equal
from tests.gaussian.checks import Problem, check_near_overflow, gaussian_problem, of_points

slow = pytest.mark.slow


@pytest.fixture
def kernels() -> ModuleType:
    from latent_kernels.kernels.gaussian import triton_gpu

    return triton_gpu


@interpreted
@pytest.mark.parametrize("kind", ["normal", "uniform"])
@pytest.mark.parametrize(
    "offset",
    [0, 3, 4 * 2**32 - 9, 2**63 - 4096]
    + [pytest.param(offset, marks=slow) for offset in (1, 2, 12345678901)],
)
def test_noise_has_the_cpus_bits(kind: str, offset: int) -> None:
    from latent_kernels.kernels.noise import triton_gpu

    of_one = [(1, 0), (1023, 1)] if offset % 4 == 0 else []
    for n, seed in (*of_one, (3001, 987654321987), (1024, torch.tensor(2**63 - 1))):
        ours, theirs = torch.empty(n), torch.empty(n)
        triton_gpu.fill(kind, ours, seed, offset)
        noise.fill(kind, theirs, int(seed), offset)
        assert bits_equal(ours, theirs)


@interpreted
def test_elementary_edges_through_the_stream() -> None:
    """Block sizes do not matter: programs that begin at other elements write the same values."""
    from latent_kernels.kernels.noise import triton_gpu

    whole = torch.empty(4099)
    triton_gpu.fill("normal", whole, 3, 0)
    for begin in (1, 1021, 1024, 2050):
        part = torch.empty(4099 - begin)
        triton_gpu.fill("normal", part, 3, begin)
        assert bits_equal(part, whole[begin:])


@interpreted
@pytest.mark.parametrize(
    ("sizes", "offset"),
    [((1, 1, 64, 20), 0), *((sizes, 3) for sizes in INTERPRETED[:2])]
    + [pytest.param(sizes, 3, marks=slow) for sizes in INTERPRETED[2:]],
    ids=str,
)
def test_samples_have_the_cpus_bits(kernels: ModuleType, sizes: Sizes, offset: int) -> None:
    """z agrees bit for bit, not only eps, since exp is the same sequence of operations too."""
    for dependence in (INDEPENDENT, ANTITHETIC, SOBOL):
        own = of_points(sizes) if dependence == SOBOL else sizes
        problem = Problem(own, torch.float32, offset=offset, dependence=dependence)
        assert bits_equal(problem.run(kernels)["z"], problem.run(cpp_cpu)["z"])


@interpreted
@pytest.mark.parametrize("row", [23, 24])
def test_rows_of_a_wider_tensor_have_the_cpus_bits(kernels: ModuleType, row: int) -> None:
    """The bits agree where the stream's groups are aligned with the rows, and the inputs' rows
    begin anywhere or at multiples of four elements.
    """
    mean, logvar = (x.unsqueeze(0) for x in torch.randn(2, 9, row)[..., :20])
    found = []
    for backend in (kernels, cpp_cpu):
        z = torch.empty(1, 2, 9, 20)
        problem = gaussian_problem((1, 2, 9, 20), mean, logvar, None, None, False, 5, 0)
        backend.forward(problem, Outputs(z, None, None))
        found.append(z)
    assert bits_equal(*found)


@interpreted
@pytest.mark.parametrize("dependence", [INDEPENDENT, ANTITHETIC])
@pytest.mark.parametrize("rows", [64, pytest.param(1, marks=slow)])
def test_dealing_samples_to_programs_changes_no_bit_of_z(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch, rows: int, dependence: int
) -> None:
    problem = Problem((1, 13, rows, 12), torch.float32, dependence=dependence)
    found = []
    for programs in (1, 2048):
        monkeypatch.setattr(kernels, "WANTED_PROGRAMS", programs)
        found.append(problem.run(kernels))
    assert bits_equal(found[0]["z"], found[1]["z"])
    assert bits_equal(found[0]["kl"], found[1]["kl"])
    assert bits_equal(found[0]["log_q"], found[1]["log_q"])
    assert bits_equal(found[0]["path"], found[1]["path"])
    assert torch.allclose(found[0]["d_spread"], found[1]["d_spread"], rtol=1e-4, atol=1e-5)


@interpreted
def test_extreme_values(kernels: ModuleType) -> None:
    values = [
        -200.0,
        -104.0,
        -95.0,
        -87.5,
        0.0,
        80.0,
        87.9,
        88.8,
        100.0,
        float("inf"),
        float("-inf"),
        float("nan"),
    ]
    logvar = torch.tensor([values])
    mean = torch.zeros_like(logvar)
    sizes = (1, 1, 1, len(values))
    outputs = []
    for backend in (kernels, cpp_cpu):
        z = torch.empty(1, 1, 1, len(values))
        asked = gaussian_problem(sizes, mean, logvar, None, None, False, 5, 0)
        backend.forward(asked, Outputs(z, None, None))
        outputs.append(z)
    assert bits_equal(*outputs)


@interpreted
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_kl_near_overflow(kernels: ModuleType, dtype: torch.dtype) -> None:
    check_near_overflow(kernels, dtype)


@interpreted
def test_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend forced by the environment variable, the whole path runs: validation, autograd,
    kernels.
    """
    x = torch.randn(6, 10, requires_grad=True)
    expected = [*lk.rsample_kl(x, x, 3, seed=4), lk.normal(5, seed=1)]
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "gaussian=triton,noise=triton")
    backends.forget()
    assert backends.backend_name("gaussian", torch.device("cpu")) == "triton"
    got = [*lk.rsample_kl(x, x, 3, seed=4), lk.normal(5, seed=1)]
    assert torch.equal(got[0], expected[0])
    for a, b in zip(got, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-6)
    seed = torch.tensor(4)
    assert torch.equal(lk.rsample(x, x, 3, seed=seed), expected[0])
    (got[0].sum() + got[1].sum()).backward()
    assert x.grad is not None


@interpreted
@pytest.mark.parametrize("path", [False, True])
def test_rsample_log_prob(monkeypatch: pytest.MonkeyPatch, path: bool) -> None:
    """The public function runs on either forced backend."""
    x = torch.randn(6, 10, requires_grad=True)
    found = []
    for backend in ("cpp", "triton"):
        monkeypatch.setenv("LATENT_KERNELS_BACKEND", f"gaussian={backend}")
        backends.forget()
        z, log_q = lk.rsample_log_prob(x, x, 3, seed=4, path_derivative=path)
        found.append([z, log_q, *torch.autograd.grad(z.sum() + (log_q**2).sum(), x)])
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
