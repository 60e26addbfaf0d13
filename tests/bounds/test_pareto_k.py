"""Diagnostics of weights: the Pareto shape against known tails and a plain implementation, and
the sample size.
"""

from __future__ import annotations

import math

import pytest
import torch

import latent_kernels as lk

Tensor = torch.Tensor


def pareto_log_weights(k: float, samples: int, columns: int, seed: int = 0) -> Tensor:
    """Return logarithms of generalized Pareto variables, whose excess over any threshold has the
    same shape.
    """
    u = lk.uniform((samples, columns), seed=seed).double()
    return torch.log(-torch.log(u) if k == 0 else torch.expm1(-k * torch.log(u)) / k)


def zhang_stephens(log_w: list[float]) -> float:
    """Return the shape of one column by sections 3 and 4 of the paper, with theta and k = -shape,
    then Vehtari et al.'s prior.
    """
    ordered = sorted(log_w)
    m = math.ceil(min(len(ordered) / 5, 3 * math.sqrt(len(ordered))))
    top = ordered[-1]
    threshold = math.exp(ordered[-m - 1] - top)
    x = [math.exp(value - top) - threshold for value in ordered[-m:]]
    points, quartile, largest = 30 + math.floor(math.sqrt(m)), x[math.floor(m / 4 + 0.5) - 1], x[-1]

    def k_of(theta: float) -> float:
        total = 0.0
        for value in x:
            total += math.log1p(-theta * value)
        return -total / m

    grid = [
        1 / largest + (1 - math.sqrt(points / (j - 0.5))) / (3 * quartile)
        for j in range(1, points + 1)
    ]
    likelihood = [m * (math.log(theta / k_of(theta)) + k_of(theta) - 1) for theta in grid]
    estimate = 0.0
    for theta, own in zip(grid, likelihood, strict=True):
        estimate += theta / sum(math.exp(min(other - own, 700.0)) for other in likelihood)
    return (m * -k_of(estimate) + 10 * 0.5) / (m + 10)


@pytest.mark.parametrize("k", [0.1, 0.3, 0.5, 0.7, 1.0, 1.5])
def test_the_shape_of_exact_pareto_weights_is_found(k):
    """The estimate's standard deviation is that of maximum likelihood, (1 + k) / sqrt M, and its
    bias is at most a few times (1 + k) / M.
    """
    samples, columns = 10_000, 400
    found, m = lk.pareto_k(pareto_log_weights(k, samples, columns)), 300
    plain = (found * (m + 10) - 5) / m  # before the prior
    error = (1 + k) / math.sqrt(m)
    assert abs(plain.mean() - k) < 3.3 * error / math.sqrt(columns) + 2 * (1 + k) / m
    assert plain.std() == pytest.approx(error, rel=3.3 / math.sqrt(2 * columns) + 0.05)


def test_a_light_tail_and_a_gaussian_proposal():
    """Exponential tails give k = 0. For q = N(0, v), p = N(0, 1) and v < 1, P(w > t) decays like
    t^(-1 / k) with k = 1 - v.
    """
    assert abs(lk.pareto_k(pareto_log_weights(0.0, 10_000, 400)).mean() - 5 / 310) < 0.02
    for v in (0.1, 0.5):
        z = math.sqrt(v) * lk.normal((100_000, 50), seed=1).double()
        found = lk.pareto_k(0.5 * (1 / v - 1) * z**2)
        assert abs(found.mean() - (1 - v)) < 0.1  # logarithms in the tail: not quite Pareto
    z = math.sqrt(2) * lk.normal((10_000, 50), seed=2)  # wider than p: the weights are bounded
    assert lk.pareto_k(-0.25 * z**2).max() < 0.1


@pytest.mark.parametrize("samples", [21, 22, 100, 1001, 4000])
def test_a_plain_implementation_agrees(samples):
    """The results equal a plain implementation's, also at sizes where S / 5 and S / 20 are
    rounded.
    """
    log_w = torch.cat([pareto_log_weights(k, samples, 2, seed=samples) for k in (0.2, 0.9)], 1)
    log_w = torch.cat([log_w, 3 * lk.normal((samples, 2), seed=3).double()], 1)
    found = lk.pareto_k(log_w)
    expected = [zhang_stephens(column) for column in log_w.T.tolist()]
    torch.testing.assert_close(
        found, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-10
    )


def test_neither_scale_nor_order_nor_neighbours_matter():
    log_w = pareto_log_weights(0.6, 500, 4)
    found = lk.pareto_k(log_w)
    assert found.min() > 0.2
    for shift in (-900.0, 30.0, 1e5):
        torch.testing.assert_close(
            lk.pareto_k(log_w + shift), found, rtol=0, atol=1e-7 if shift == 1e5 else 1e-9
        )
    assert torch.equal(lk.pareto_k(log_w.flip(0)), found)
    assert torch.equal(lk.pareto_k(log_w.reshape(500, 2, 2)).flatten(), found)
    torch.testing.assert_close(lk.pareto_k(log_w[:, 1:2]), found[1:2], rtol=1e-12, atol=0)
    single = lk.pareto_k(log_w.float())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single, found.float(), rtol=0, atol=1e-5)
    assert lk.pareto_k(log_w[:, 0]).shape == ()
    assert lk.pareto_k(torch.zeros(30, 0)).shape == (0,)


def test_columns_that_have_no_tail_or_no_value():
    log_w = pareto_log_weights(0.6, 100, 6)
    found = lk.pareto_k(log_w)
    spoilt = log_w.clone()
    spoilt[:, 0] = 1.7
    spoilt[3, 1], spoilt[4, 2] = math.nan, math.inf
    spoilt[:60, 3] = spoilt[:60, 3].where(
        spoilt[:60, 3] > spoilt[:, 3].median(), -math.inf
    )  # weights of zero
    k = lk.pareto_k(spoilt)
    assert k[0] == -math.inf
    assert k[1:3].isnan().all()
    torch.testing.assert_close(k[3:], found[3:], rtol=1e-12, atol=0)
    assert lk.pareto_k(log_w[:21]).isfinite().all()
    with pytest.raises(ValueError, match=r"log_w must have S >= 21 samples .*; got S = 20"):
        lk.pareto_k(log_w[:20])


# --- effective sample size ------------------------------------------------------------------------


def test_a_few_weights_among_equal_ones_or_zeros():
    """If a quarter of the tail does not exceed its threshold, no shape is large enough."""
    for rest in (0.0, -math.inf):
        log_w = torch.full((100, 2), rest)
        log_w[:7, 0] = torch.arange(1.0, 8.0)
        log_w[:18, 1] = torch.arange(1.0, 19.0)  # all but two of the 20 in the tail
        k = lk.pareto_k(log_w)
        assert k[0] == math.inf
        assert math.isfinite(k[1])


def test_the_effective_sample_size():
    equal, shift = torch.full((50, 2), -3.0, dtype=torch.float64), torch.tensor([800.0, -5000.0])
    torch.testing.assert_close(
        lk.effective_sample_size(equal), torch.full((2,), 50.0, dtype=torch.float64)
    )
    dominated = equal.clone()
    dominated[7] = 60.0
    torch.testing.assert_close(
        lk.effective_sample_size(dominated), torch.ones(2, dtype=torch.float64)
    )
    nothing = equal.clone()
    nothing[10:] = -math.inf
    torch.testing.assert_close(
        lk.effective_sample_size(nothing), torch.full((2,), 10.0, dtype=torch.float64)
    )
    log_w = lk.normal((200, 2), seed=1).double()
    w = torch.exp(log_w)
    expected = w.sum(0) ** 2 / (w**2).sum(0)
    torch.testing.assert_close(lk.effective_sample_size(log_w), expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(lk.effective_sample_size(log_w + shift), expected, rtol=1e-9, atol=0)


def test_the_effective_sample_size_is_what_a_variance_says():
    """For S to infinity ESS / S is 1 / E[w^2] of weights with mean 1, which is e^(-s^2) for log w =
    s z.
    """
    log_w = 0.7 * lk.normal((100_000, 8), seed=2).double()
    assert lk.effective_sample_size(log_w).mean() / 100_000 == pytest.approx(
        math.exp(-0.49), rel=0.01
    )
