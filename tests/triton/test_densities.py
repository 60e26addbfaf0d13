"""The Triton log-densities, their PTX interpreted."""

from __future__ import annotations

from types import ModuleType

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.densities import cpp_cpu
from latent_kernels.kernels.densities.problem import BernoulliGradients, BernoulliProblem, Outputs
from tests.backends import interpreted
from tests.checks import bits_equal
from tests.densities.checks import USUAL, DensityProblem

DENSITIES = ["gaussian", "bernoulli"]


@pytest.fixture
def kernels() -> ModuleType:
    from latent_kernels.kernels.densities import triton_gpu

    return triton_gpu


@interpreted
@pytest.mark.parametrize("density", DENSITIES)
def test_elements_have_the_cpus_bits(kernels: ModuleType, density: str) -> None:
    """The bits are the CPU's where no sum is involved: terms in rows of one element, and gradients
    that are not sums.
    """
    for sizes in ((1, 5, 40, 1), (2, 3, 5, 70)):
        problem = DensityProblem(density, sizes, torch.float32, USUAL[density][-1])
        ours, theirs = problem.run(kernels), problem.run(cpp_cpu)
        for name, x in ours.items():
            if name != "log_prob" or sizes[3] == 1:
                assert bits_equal(x, theirs[name]), (sizes, name)


@interpreted
def test_extreme_logits(kernels: ModuleType) -> None:
    import triton

    values = [
        0.0,
        -0.0,
        1e-30,
        17.0,
        -17.0,
        87.5,
        -103.9,
        1e4,
        -1e4,
        float("inf"),
        float("-inf"),
        float("nan"),
    ]
    logits = torch.tensor(values).reshape(1, 1, -1, 1)
    for x in (0.0, 1.0, 0.3):
        problem = BernoulliProblem(tuple(logits.shape), torch.full_like(logits, x), logits)
        found = []
        for backend in (kernels, cpp_cpu):
            out, d_x, d_logits = (
                torch.empty(logits.shape[:3]),
                torch.empty_like(logits),
                torch.empty_like(logits),
            )
            backend.forward(problem, Outputs(out))
            upstream = Outputs(torch.ones_like(out))
            backend.backward(problem, upstream, BernoulliGradients(d_x, d_logits))
            found.append((out + 0.0, d_x, d_logits + 0.0))
        for a, b in zip(*found, strict=True):
            if triton.__version__.startswith("3.2."):  # it divides with subnormals flushed
                b = torch.where(a.eq(0) & b.abs().lt(torch.finfo(b.dtype).tiny), a, b)
            assert bits_equal(a, b)


@interpreted
def test_dealing_samples_to_programs_changes_no_bit_of_an_element(
    kernels: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = DensityProblem("gaussian", (1, 12, 64, 12), torch.float32, ("samples", "full", "row"))
    found = []
    for programs in (1, 2048):
        monkeypatch.setattr(kernels, "WANTED_PROGRAMS", programs)
        found.append(problem.run(kernels))
    assert bits_equal(found[0]["log_prob"], found[1]["log_prob"])
    assert bits_equal(found[0]["mean"], found[1]["mean"])
    for name in ("z", "logvar"):
        assert torch.allclose(found[0][name], found[1][name], rtol=1e-4, atol=1e-4)


@interpreted
def test_public_functions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With a backend forced by the environment variable, the whole path runs: validation, autograd,
    kernels.
    """
    x, logvar = torch.rand(6, 10, requires_grad=True), torch.randn(10, requires_grad=True)

    def run() -> list[torch.Tensor]:
        outputs = [lk.gaussian_log_prob(x, x.detach(), logvar), lk.bernoulli_log_prob(x, logvar)]
        return [*outputs, *torch.autograd.grad([out.sum() for out in outputs], (x, logvar))]

    expected = run()
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "densities=triton")
    backends.forget()
    assert backends.backend_name("densities", torch.device("cpu")) == "triton"
    for a, b in zip(run(), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
