"""Samples that depend on each other: antithetic pairs, and Sobol' points.

The kernels' values and gradients are held to the formula by `checks.check`, as those of independent
samples are; what is here is what the samples are, and what they are for.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy.special import ndtri
from scipy.stats import kstest

import latent_kernels as lk
from latent_kernels.kernels.noise import reference as noise
from tests.checks import DTYPES, bits_equal
from tests.gaussian.checks import leaves

Tensor = torch.Tensor

SHAPES = [(64, 20), (5,), (3, 5, 7), (2, 1500)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_samples", [None, 1, 2, 7, 40])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_pairs_mirror_each_other(
    simd_build: str, shape: tuple[int, ...], num_samples: int | None, dtype: torch.dtype
) -> None:
    """The first half are the independent samples with the same seed; with mean 0 the second half
    are their negatives, bit for bit, and log q is one for both.
    """
    mean, logvar = leaves(*shape, dtype=dtype)
    mean = torch.zeros_like(mean)
    given: dict[str, Any] = {"num_samples": num_samples, "seed": 3, "offset": 5}
    z, log_q = lk.rsample_log_prob(mean, logvar, **given, antithetic=True)
    plain, plain_log_q = lk.rsample_log_prob(mean, logvar, **given)
    if num_samples is None:
        assert bits_equal(z, plain)
        return
    first, twins = num_samples - num_samples // 2, num_samples // 2
    assert bits_equal(z[:first], plain[:first])
    assert bits_equal(z[first:], -z[:twins])
    assert bits_equal(log_q[:first], plain_log_q[:first])
    assert bits_equal(log_q[first:], log_q[:twins])
    assert bits_equal(lk.rsample(mean, logvar, **given, antithetic=True), z)
    assert bits_equal(lk.rsample_kl(mean, logvar, **given, antithetic=True)[0], z)
    q = lk.DiagonalGaussian(mean, logvar)
    for method in (q.rsample, q.sample):
        assert bits_equal(method(**given, antithetic=True), z)
    assert bits_equal(q.rsample_kl(**given, antithetic=True)[0], z)
    assert bits_equal(q.rsample_log_prob(**given, antithetic=True)[0], z)


@pytest.mark.parametrize("num_samples", [6, 7])
def test_backward_noise_is_forward_noise(simd_build: str, num_samples: int) -> None:
    """With the gradient 1 on one sample, the log-variance's gradient is half that sample's sigma
    eps.
    """
    for shape in SHAPES:
        logvar = torch.zeros(shape, requires_grad=True)
        z = lk.rsample(0.0, logvar, num_samples, seed=3, offset=1, antithetic=True)
        for s in range(num_samples):
            one = torch.zeros_like(z)
            one[s] = 1
            (gradient,) = torch.autograd.grad(z, logvar, one, retain_graph=True)
            assert bits_equal(gradient + 0, 0.5 * z[s].detach() + 0)


@pytest.mark.parametrize("num_samples", [2, 16])
def test_gradient_of_a_quadratic_is_exact(num_samples: int) -> None:
    """The mean's gradient of f = z' A z / 2 + b' z is A mean + b without variance."""
    mean, logvar = leaves(30, 8, dtype=torch.float64)
    g = torch.Generator().manual_seed(1)
    a, b = (torch.randn(n, generator=g, dtype=torch.float64) for n in ((8, 8), (8,)))
    a = a + a.T
    z = lk.rsample(mean, logvar, num_samples, seed=5, antithetic=True)
    f = (0.5 * ((z @ a) * z).sum(-1) + z @ b).mean(0).sum()
    (gradient,) = torch.autograd.grad(f, mean)
    assert torch.allclose(gradient, mean.detach() @ a + b, rtol=0, atol=1e-13)


# --- Sobol' points --------------------------------------------------------------------------------


def test_quantile_in_ulp() -> None:
    """The quantile errs by 4.5 ulp at most and is odd: against mpmath at both ends, at the middle,
    where the two polynomials meet, and at random words.
    """
    rng = np.random.default_rng(3)
    meeting = [int(2**32 * p) for p in (0.000483, 0.99951)]  # -ln(4 p (1 - p)) near 6.25
    edges = [0, 1, 2, 100, 2**31 - 2, 2**31 - 1, *range(meeting[0] - 20, meeting[0] + 20)]
    random = rng.integers(0, 2**31, 300).tolist()
    random += (2.0 ** rng.uniform(0, 31, 100)).astype(int).tolist()
    words = np.array(edges + random, np.uint32)
    x = noise.normal_quantile(words)
    assert np.array_equal(noise.normal_quantile(~words), -x)
    with mpmath.workdps(30):
        for word, value in zip(words.tolist(), x.tolist(), strict=True):
            c = 1 - (2 * mpmath.mpf(word) + 1) / mpmath.mpf(2) ** 32
            exact = -mpmath.sqrt(2) * mpmath.erfinv(c)
            unit = mpmath.mpf(float(np.spacing(np.float32(abs(float(exact))))))
            assert abs(value - exact) < 4.5 * unit, hex(word)


@pytest.mark.parametrize("samples", [1, 2, 16, 128])
def test_points_are_a_net(samples: int) -> None:
    """Each of S equal cells of every column has one point, and each box of equal volume of the
    first two columns, since they are a (0, m, 2)-net.
    """
    words = noise.sobol_words(samples, 3, 5, 11, 7)
    bits = samples.bit_length() - 1
    cells = np.sort((words.astype(np.uint64) * samples) >> np.uint64(32), axis=0)
    assert (cells == np.arange(samples)[:, None, None]).all()
    for first in range(bits + 1):
        x = words[..., 0].astype(np.uint64) >> np.uint64(32 - first)
        y = words[..., 1].astype(np.uint64) >> np.uint64(32 - (bits - first))
        boxes = np.sort(x * np.uint64(2 ** (bits - first)) + y, axis=0)
        assert (boxes == np.arange(samples)[:, None]).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_samples", [None, 1, 2, 64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_points_are_those_of_the_reference(
    simd_build: str, shape: tuple[int, ...], num_samples: int | None, dtype: torch.dtype
) -> None:
    """Mean 0 and sigma 1 give the reference's points, rounded once; all functions draw the same;
    fewer samples are the first of more.
    """
    given: dict[str, Any] = {"num_samples": num_samples, "seed": 3, "offset": 5, "qmc": True}
    zero = torch.zeros(shape, dtype=dtype)
    sizes = 1, num_samples or 1, zero.shape[:-1].numel(), shape[-1]
    points = torch.from_numpy(noise.sobol_of_groups(sizes, 3, 5)).to(dtype)
    z = lk.rsample(zero, zero, **given)
    assert torch.equal(z, points.reshape(z.shape))
    if num_samples and num_samples > 1:
        fewer = lk.rsample(zero, zero, **{**given, "num_samples": num_samples // 2})
        assert torch.equal(fewer, z[: num_samples // 2])
    assert torch.equal(lk.rsample_kl(zero, zero, **given)[0], z)
    assert torch.equal(lk.rsample_log_prob(zero, zero, **given)[0], z)
    q = lk.DiagonalGaussian(zero, zero)
    assert torch.equal(q.sample(**given), z)
    assert torch.equal(q.rsample_kl(**given)[0], z)
    assert torch.equal(q.rsample_log_prob(**given)[0], z)


def test_backward_points_are_forward_points(simd_build: str) -> None:
    for shape in SHAPES:
        logvar = torch.zeros(shape, requires_grad=True)
        z = lk.rsample(0.0, logvar, 8, seed=3, offset=1, qmc=True)
        for s in range(8):
            one = torch.zeros_like(z)
            one[s] = 1
            (gradient,) = torch.autograd.grad(z, logvar, one, retain_graph=True)
            assert bits_equal(gradient + 0, 0.5 * z[s].detach() + 0)


def test_each_point_is_normal() -> None:
    """Over rows, which are independent, a single sample has the normal distribution, and two
    columns of it are uncorrelated.
    """
    z = lk.rsample(torch.zeros(40_000, 2), 0.0, 4, seed=7, qmc=True).double()
    for s in range(4):
        assert kstest(z[s, :, 0].numpy(), "norm").pvalue > 1e-3
        assert abs((z[s, :, 0] * z[s, :, 1]).mean()) < 4 / 200


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("samples", [16, 256])
def test_variance_of_a_sum_over_columns(samples: int, power: int) -> None:
    """Each column has one point in each of S equal cells, uniform there and uncorrelated with the
    others. So the average of sum_d z_d^power has D sum_cells var(z^power | cell) / S^2 for its
    variance: far below the D var(z^power) / S of independent samples.
    """
    rows, cols, inner = 4000, 5, 2000
    z = lk.rsample(torch.zeros(rows, cols), 0.0, samples, seed=2, qmc=True).double()
    averages = (z**power).sum(-1).mean(0)
    middles = (np.arange(samples * inner) + 0.5) / (samples * inner)
    values = (ndtri(middles) ** power).reshape(samples, inner)
    theory = cols * values.var(1).sum() / samples**2
    squares = (averages - cols * (power - 1)) ** 2
    standard_error = (squares.var() / rows).sqrt().item()
    assert abs(squares.mean().item() - theory) < 4 * standard_error + 0.02 * theory
    independent = cols * power / samples
    assert squares.mean().item() * (4 if samples == 16 else 40) < independent


def test_variance_of_a_smooth_function() -> None:
    """Of e^(0.3 sum_d z_d), in which columns matter together, the variance at S = 256 is below a
    twentieth of independent samples', and falls from S = 64 by more than the 4 of 1/S.
    """
    variances = {}
    for samples in (64, 256):
        for qmc in (False, True):
            z = lk.rsample(torch.zeros(400, 6), 0.0, samples, seed=2, qmc=qmc).double()
            averages = torch.exp(0.3 * z.sum(-1)).mean(0)
            variances[samples, qmc] = averages.var().item()
            error = averages.mean() - math.exp(0.5 * 0.09 * 6)
            assert error.abs() < 4 * (averages.var() / 400).sqrt()
    assert variances[256, True] * 20 < variances[256, False]
    assert variances[256, True] * 6 < variances[64, True]


def _by_function(name: str) -> Callable[..., Any]:
    return lambda **given: getattr(lk, name)(torch.zeros(3, 2), 0.0, 4, seed=1, **given)


def _by_method(name: str) -> Callable[..., Any]:
    return lambda **given: getattr(lk.DiagonalGaussian(torch.zeros(3, 2), 0.0), name)(4, **given)


@pytest.mark.parametrize("make", [_by_function, _by_method])
@pytest.mark.parametrize("name", ["rsample", "rsample_kl", "rsample_log_prob"])
def test_bad_input(name: str, make: Callable[[str], Callable[..., Any]]) -> None:
    for wrong in (1, None, "yes"):
        with pytest.raises(TypeError, match="antithetic must be True or False; got"):
            make(name)(antithetic=wrong)
        with pytest.raises(TypeError, match="qmc must be True or False; got"):
            make(name)(qmc=wrong)
    with pytest.raises(ValueError, match="qmc and antithetic exclude each other"):
        make(name)(qmc=True, antithetic=True)


def test_bad_sizes_of_points() -> None:
    x = torch.zeros(3, 2)
    for wrong in (3, 12, 2**17):
        with pytest.raises(ValueError, match=f"num_samples must be a power of two.* got {wrong}"):
            lk.rsample(x, x, wrong, qmc=True)
    with pytest.raises(ValueError, match="qmc=True takes at most 21201 columns; mean has 21202"):
        lk.rsample(torch.zeros(1, 21202), 0.0, 2, qmc=True)
