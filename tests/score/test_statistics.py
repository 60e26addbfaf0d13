"""Means and variances of score-function estimators: exact ones over every S-tuple of states, and
those of drawn samples.
"""

from __future__ import annotations

import itertools

import pytest
import torch

import latent_kernels as lk
from tests.score.laws import (
    CONTROLS,
    LOGITS,
    LOGVAR,
    MEAN,
    elements,
    estimate,
    every_family,
    f,
    f_elements,
    family,
    flat,
    law,
    pairs_law,
    tuples,
)

Tensor = torch.Tensor


# --- exact means and variances --------------------------------------------------------------------


@every_family
def test_the_law_is_that_of_q(name: str) -> None:
    """Probabilities sum to 1, scores have mean 0, and the gradient is the derivative of E f by
    autograd.
    """
    of = law(name)
    assert torch.allclose(of.weight.sum(), torch.ones((), dtype=torch.float64), rtol=1e-12)
    assert of.mean(of.score).abs().max() < 1e-12
    if name == "gaussian":  # E f in closed form
        m, l = MEAN.clone().requires_grad_(), LOGVAR.clone().requires_grad_()
        expected = 3 + (m[0] - 0.6) ** 2 + l[0].exp() - 1.3 * m[0] * m[1] + 0.8 * m[1]
        exact = torch.stack(torch.autograd.grad(expected, (m, l)), -1)
    else:
        leaf = family(name).logits.clone().requires_grad_()
        p = type(family(name))(leaf).log_prob(of.z).exp()
        exact = torch.autograd.grad((p * f(of.z)).sum(), leaf)[0].reshape(2, -1)
    assert torch.allclose(of.gradient, exact, rtol=1e-11, atol=1e-12)


@elements
@pytest.mark.parametrize(
    ("name", "control", "samples"),
    [
        (name, control, samples)
        for name, most in (("bernoulli", 4), ("categorical", 3))
        for control, least in CONTROLS
        for samples in range(least, most + 1)
    ],
)
def test_exact_mean_and_variance(name: str, control: str, samples: int, per_element: bool) -> None:
    """Over every S-tuple of samples the estimator is unbiased, and its variance is the formula's,
    to rounding.
    """
    of = law(name, per_element)
    z, weight = tuples(of, samples)
    q = family(name, len(weight))
    values = f_elements(z) if per_element else f(z)
    g = flat(estimate(q, values, z, control))
    mean = torch.einsum("n,ndp->dp", weight, g)
    assert torch.allclose(mean, of.gradient, rtol=1e-11, atol=1e-12)
    variance = torch.einsum("n,ndp->dp", weight, (g - mean) ** 2)
    if not control.startswith("optimal"):  # which has its formula for many samples only
        assert torch.allclose(variance, of.variance(control, samples), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("control", "samples"), [("none", 1), ("none", 2), ("baseline", 2), ("leave_one_out", 2)]
)
def test_exact_mean_and_variance_of_a_gaussian(control: str, samples: int) -> None:
    """The same holds over every S-tuple of nodes, where the estimator is a polynomial in the
    noise.
    """
    of = law("gaussian")
    z, weight = tuples(of, samples)
    g = flat(estimate(family("gaussian", len(weight)), f(z), z, control))
    mean = torch.einsum("n,ndp->dp", weight, g)
    assert torch.allclose(mean, of.gradient, rtol=1e-10, atol=1e-11)
    variance = torch.einsum("n,ndp->dp", weight, (g - mean) ** 2)
    assert torch.allclose(variance, of.variance(control, samples), rtol=1e-9, atol=1e-10)


@elements
@pytest.mark.parametrize(
    ("name", "control", "samples"),
    [
        (name, control, samples)
        for name, most in (("bernoulli", 4), ("categorical", 3))
        for control, least in CONTROLS
        for samples in range(max(least, 2), most + 1)
    ],
)
def test_estimated_variance_is_unbiased(
    name: str, control: str, samples: int, per_element: bool
) -> None:
    """The estimated variance is exactly unbiased, over every S-tuple, from two samples on: also
    where a control variate makes the samples' terms depend on one another.
    """
    of = law(name, per_element)
    z, weight = tuples(of, samples)
    values = f_elements(z) if per_element else f(z)
    found = estimate(family(name, len(weight)), values, z, control, return_variance=True)
    g, variances = (flat(x) for x in found)
    exact = torch.einsum("n,ndp->dp", weight, (g - of.gradient) ** 2)
    mean = torch.einsum("n,ndp->dp", weight, variances)
    assert torch.allclose(mean, exact, rtol=1e-10, atol=1e-12)


def test_estimated_variance_of_a_gaussian_is_unbiased() -> None:
    """The same holds over every pair of nodes, where the estimate is a polynomial in the noise."""
    of = law("gaussian")
    z, weight = tuples(of, 2)
    found = estimate(
        family("gaussian", len(weight)), f(z), z, "leave_one_out", return_variance=True
    )
    mean = torch.einsum("n,ndp->dp", weight, flat(found[1]))
    assert torch.allclose(mean, of.variance("leave_one_out", 2), rtol=1e-9, atol=1e-10)


@elements
@pytest.mark.parametrize("samples", [1, 2])
def test_exact_mean_and_variance_of_disarm(samples: int, per_element: bool) -> None:
    """Over every S-tuple of pairs of a uniform, DisARM is unbiased, and its variance is that of one
    pair over S.
    """
    pairs, p = pairs_law()
    assert torch.allclose(p.sum(), torch.ones((), dtype=torch.float64))
    value = f_elements if per_element else f
    of = law("bernoulli", per_element)
    difference = (value(pairs[:, 0]) - value(pairs[:, 1])).reshape(len(p), -1)
    terms = 0.5 * difference * (pairs[:, 0] - pairs[:, 1]) * torch.sigmoid(LOGITS.abs())
    exact = (p @ terms**2 - (p @ terms) ** 2) / samples
    assert torch.allclose(p @ terms, of.gradient[:, 0], rtol=1e-12)
    which = torch.tensor(list(itertools.product(range(len(p)), repeat=samples)))
    weight = p[which].prod(1)
    z = pairs[which].permute(2, 1, 0, 3)  # [2, S, tuples, D]
    found = lk.disarm_gradient(
        family("bernoulli", len(weight)), value(z), z, return_variance=samples > 1
    )
    (g,) = found[0] if samples > 1 else found
    mean = weight @ g
    assert torch.allclose(mean, of.gradient[:, 0], rtol=1e-11, atol=1e-13)
    assert torch.allclose(weight @ (g - mean) ** 2, exact, rtol=1e-10)
    if samples > 1:
        assert torch.allclose(
            weight @ found[1][0], exact, rtol=1e-10
        )  # its own estimate is unbiased


# --- drawn ----------------------------------------------------------------------------------------

COPIES = 6000


def moments(g: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return mean and variance over the copies, and their standard errors."""
    n = len(g)
    mean = g.mean(0)
    square = (g - mean) ** 2
    variance = square.sum(0) / (n - 1)
    return mean, variance, (variance / n).sqrt(), (square.var(0) / n).sqrt()


@elements
@every_family
@pytest.mark.parametrize(
    ("control", "samples"),
    [(control, s) for control, least in CONTROLS for s in (1, 2, 3, 17) if s >= least],
)
def test_drawn_mean_and_variance(name: str, control: str, samples: int, per_element: bool) -> None:
    """With samples drawn from seeds, the z-scores are small for the mean, and for the variance
    where it has a formula.
    """
    q, of = family(name, COPIES), law(name, per_element)
    seed = 100 * samples + len(control)
    z = q.sample(samples, seed=seed)
    values = f_elements(z) if per_element else f(z)
    mean, variance, of_mean, of_variance = moments(
        flat(estimate(q, values, None, control, seed=seed))
    )
    assert ((mean - of.gradient) / of_mean).abs().max() < 5
    if not control.startswith("optimal"):
        assert ((variance - of.variance(control, samples)) / of_variance).abs().max() < 6


def test_drawn_mean_and_variance_of_disarm() -> None:
    q, of = family("bernoulli", COPIES), law("bernoulli")
    pairs, p = pairs_law()
    terms = (
        0.5
        * (f(pairs[:, 0]) - f(pairs[:, 1])).unsqueeze(1)
        * (pairs[:, 0] - pairs[:, 1])
        * torch.sigmoid(LOGITS.abs())
    )
    exact = p @ terms**2 - (p @ terms) ** 2
    for samples in (1, 2, 9):
        z = q.sample_antithetic(samples, seed=samples)
        mean, variance, of_mean, of_variance = moments(lk.disarm_gradient(q, f(z), seed=samples)[0])
        assert ((mean - of.gradient[:, 0]) / of_mean).abs().max() < 5
        assert ((variance - exact / samples) / of_variance).abs().max() < 6


@every_family
def test_variances_for_many_samples(name: str) -> None:
    """The variances satisfy optimal <= leave-one-out <= none; "optimal" has the best coefficient's
    variance, up to a share of order 1 / S.
    """
    samples, copies = 256, 4000
    q, of = family(name, copies), law(name)
    z = q.sample(samples, seed=5)
    found = {
        c: moments(flat(estimate(q, f(z), z, c)))
        for c in ("none", "leave_one_out", "optimal 2", "optimal 3")
    }
    for control in ("optimal 2", "optimal 3"):
        mean, variance, of_mean, of_variance = found[control]
        exact = of.variance(control, samples)
        assert ((mean - of.gradient) / of_mean).abs().max() < 5
        assert bool(((variance - exact).abs() <= 6 * of_variance + 15 / samples * exact).all())
    exact = [of.variance(c, samples) for c in ("optimal", "leave_one_out", "none")]
    drawn = [found[c][1] for c in ("optimal 2", "leave_one_out", "none")]
    for (a, b), (x, y) in zip(itertools.pairwise(exact), itertools.pairwise(drawn), strict=True):
        apart = (
            b > 1.25 * a
        )  # further than the sampling error; nearer ones are only not the other way around
        assert bool(apart.any())
        assert bool((x < y)[apart].all())
        assert bool((x < 1.15 * y).all())


@every_family
@pytest.mark.parametrize("control", ["leave_one_out", "optimal 2"])
def test_drawn_estimated_variance(name: str, control: str) -> None:
    """The estimated variance is unbiased for drawn samples too, by z-scores."""
    of = law(name)
    for samples in (3, 8, 32, 128):
        q = family(name, 3000)
        z = q.sample(samples, seed=samples)
        g, variances = estimate(q, f(z), z, control, return_variance=True)
        estimated, _, error, _ = moments(flat(variances))
        if control == "leave_one_out":
            exact, of_exact = of.variance(control, samples), torch.zeros(())
        else:  # no formula for few samples: the copies' own
            _, exact, _, of_exact = moments(flat(g))
        assert bool(((estimated - exact).abs() <= 6 * (error**2 + of_exact**2).sqrt()).all())
