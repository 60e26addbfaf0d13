"""The families: densities, entropies, divergences by identities, torch.distributions, mpmath."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import mpmath
import pytest
import torch
from torch import distributions as td

import latent_kernels as lk

Tensor = torch.Tensor
INF = math.inf
SHAPES = [(4,), (1,), (3, 5, 4), (2, 1), (0, 4)]  # of the parameters, [..., D]
K = 3


def gaussian(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> lk.DiagonalGaussian:
    return lk.DiagonalGaussian(torch.randn(shape, dtype=dtype), torch.randn(shape, dtype=dtype))


def bernoulli(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> lk.Bernoulli:
    return lk.Bernoulli(2 * torch.randn(shape, dtype=dtype))


def categorical(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> lk.Categorical:
    return lk.Categorical(2 * torch.randn(*shape, K, dtype=dtype))


MAKE: dict[str, Callable[..., Any]] = {
    "gaussian": gaussian,
    "bernoulli": bernoulli,
    "categorical": categorical,
}
every_family = pytest.mark.parametrize("name", MAKE)


def peer(q: Any) -> Any:
    """Return the same distribution from torch.distributions, elementwise over D."""
    if isinstance(q, lk.DiagonalGaussian):
        return td.Normal(q.mean, torch.exp(0.5 * q.logvar))
    return (
        td.Bernoulli(logits=q.logits)
        if isinstance(q, lk.Bernoulli)
        else td.Categorical(logits=q.logits)
    )


def again(q: Any, *parameters: Tensor) -> Any:
    return type(q)(*parameters)


def inner(q: Any, a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
    """Return sum_d <a_d, b_d>, over statistics and over the D (and K) of each."""
    last = (-2, -1) if isinstance(q, lk.Categorical) else (-1,)
    return sum((x * y).sum(last) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def close(a: Tensor, b: Tensor, rtol: float = 1e-11, atol: float = 1e-12) -> None:
    assert a.shape == b.shape
    assert torch.allclose(a, b, rtol=rtol, atol=atol), float((a - b).abs().max())


# --- densities, entropies, divergences ------------------------------------------------------------


@every_family
@pytest.mark.parametrize("shape", SHAPES[:-1], ids=str)
def test_equals_torch_distributions(name: str, shape: tuple[int, ...]) -> None:
    q, other = MAKE[name](shape), MAKE[name](shape)
    z = q.sample(6, seed=1)
    assert q.batch_shape == shape[:-1]
    assert q.cols == shape[-1]
    close(q.log_prob(z), peer(q).log_prob(z).sum(-1))
    close(q.log_prob(z[0]), peer(q).log_prob(z[0]).sum(-1))
    close(q.entropy(), peer(q).entropy().sum(-1))
    close(q.kl(other), td.kl_divergence(peer(q), peer(other)).sum(-1))


@every_family
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exponential_family_identities(name: str, shape: tuple[int, ...]) -> None:
    """The identities hold: log p = <eta, phi> - A, score = phi - E phi at natural parameters, grad
    A = E phi, KL = Bregman's of A.
    """
    q, other = MAKE[name](shape), MAKE[name](shape)
    z = q.sample(6, seed=1)
    eta = tuple(x.detach().requires_grad_() for x in q.natural_parameters())
    close(inner(q, eta, q.sufficient_statistics(z)) - q.log_partition(), q.log_prob(z), atol=1e-10)
    close(q.log_prob(z), again(q, *q.parameters).log_prob(z))
    from_eta = type(q).from_natural_parameters(*eta)
    moments = torch.autograd.grad(from_eta.log_partition().sum(), eta)
    for got, expected in zip(moments, q.mean_parameters(), strict=True):
        close(got, expected)
    step = tuple(
        b - a for a, b in zip(q.natural_parameters(), other.natural_parameters(), strict=True)
    )
    bregman = other.log_partition() - q.log_partition() - inner(q, step, q.mean_parameters())
    close(q.kl(other), bregman, rtol=1e-9, atol=1e-9)


@every_family
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_score_is_the_gradient_of_log_prob(name: str, shape: tuple[int, ...]) -> None:
    q = MAKE[name](shape)
    z = q.sample(6, seed=1)
    leaves = tuple(x.expand(6, *x.shape).clone().requires_grad_() for x in q.parameters)
    gradients = torch.autograd.grad(again(q, *leaves).log_prob(z).sum(), leaves)
    scores = q.score(z)
    assert len(scores) == len(q.parameters)
    for got, expected in zip(scores, gradients, strict=True):
        close(got, expected)


@every_family
def test_round_trips(name: str) -> None:
    q = MAKE[name]((3, 4))
    for found in (
        type(q).from_natural_parameters(*q.natural_parameters()),
        type(q).from_mean_parameters(*q.mean_parameters()),
    ):
        assert type(found) is type(q)
        for x, y in zip(found.parameters, q.parameters, strict=True):
            if name == "categorical":  # logits are known up to a constant of each softmax
                x, y = x.log_softmax(-1), y.log_softmax(-1)
            close(x, y, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_by_enumeration(name: str) -> None:
    """Probabilities sum to 1; entropy and KL equal the sum over all states."""
    q, other = MAKE[name]((2, 4)), MAKE[name]((2, 4))
    states = torch.tensor(list(itertools.product(range(2 if name == "bernoulli" else K), repeat=4)))
    z = states.unsqueeze(1).expand(-1, 2, 4)
    z = z.double() if name == "bernoulli" else z
    p = q.log_prob(z).exp()
    close(p.sum(0), torch.ones(2, dtype=torch.float64))
    close(q.entropy(), -(p * q.log_prob(z)).sum(0))
    close(q.kl(other), (p * (q.log_prob(z) - other.log_prob(z))).sum(0))


def test_a_gaussian_broadcasts_its_parameters() -> None:
    mean, logvar = torch.randn(4, 5, requires_grad=True), torch.randn(5, requires_grad=True)
    q, full = (
        lk.DiagonalGaussian(mean, logvar),
        lk.DiagonalGaussian(mean, logvar.expand(4, 5).clone()),
    )
    assert q.batch_shape == (4,)
    z = q.sample(3, seed=1)
    assert torch.equal(z, full.sample(3, seed=1))
    assert torch.equal(q.entropy(), full.entropy())
    q.entropy().sum().backward()
    assert logvar.grad is not None
    assert logvar.grad.tolist() == [2.0] * 5
    assert lk.DiagonalGaussian(mean, logvar.double()).dtype == torch.float64


def test_gaussian_samples_are_the_noise_stream() -> None:
    q = gaussian((3, 4), torch.float32)
    prior = gaussian((3, 4), torch.float32)
    z, kl = q.rsample_kl(5, prior=prior, seed=4, offset=2)
    assert torch.equal(z, lk.rsample(q.mean, q.logvar, 5, seed=4, offset=2))
    assert torch.equal(z, q.sample(5, seed=4, offset=2))
    assert torch.equal(kl, q.kl(prior))
    mean = q.mean.clone().requires_grad_()
    moving = lk.DiagonalGaussian(mean, q.logvar)
    assert moving.rsample(seed=1).requires_grad
    assert not moving.sample(seed=1).requires_grad


# --- digits ---------------------------------------------------------------------------------------

LOGITS = [s * m for m in (1e-4, 0.3, 1, 3, 12, 20, 40, 80) for s in (-1, 1)] + [0.0]
STEPS = [s * m for m in (1e-6, 1e-4, 1e-2, 0.3, 1, 7) for s in (-1, 1)]
TINY = 2.0**-126  # below it floats lose their digits


def exact_kl(l: float, m: float) -> mpmath.mpf:
    l, m = mpmath.mpf(l), mpmath.mpf(m)
    p, not_p = 1 / (1 + mpmath.exp(-l)), 1 / (1 + mpmath.exp(l))
    ratio = (1 + mpmath.exp(-m)) / (1 + mpmath.exp(-l)), (1 + mpmath.exp(m)) / (1 + mpmath.exp(l))
    return p * mpmath.log(ratio[0]) + not_p * mpmath.log(ratio[1])


def relative_error(got: float, exact: mpmath.mpf) -> float:
    return float(abs(mpmath.mpf(got) - exact) / max(exact, mpmath.mpf(TINY)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("pairs", ["close", "far"])
def test_bernoulli_kl_keeps_its_digits(pairs: str, dtype: torch.dtype) -> None:
    """The KL errs by at most sixteen roundings: neither close nor distant pairs cancel."""
    if pairs == "close":
        both = [(l, l + d * max(abs(l), 1)) for l in LOGITS for d in STEPS]
    else:
        both = [(l, m) for l in LOGITS for m in LOGITS if l != m]
    a, b = (torch.tensor([p[i] for p in both], dtype=dtype).unsqueeze(1) for i in (0, 1))
    kl = lk.Bernoulli(a).kl(lk.Bernoulli(b))
    assert bool((kl >= 0).all())
    with mpmath.workdps(80):
        for got, l, m in zip(kl.tolist(), a.flatten().tolist(), b.flatten().tolist(), strict=True):
            assert relative_error(got, exact_kl(l, m)) < 16 * torch.finfo(dtype).eps, (l, m, got)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bernoulli_entropy_and_density_keep_their_digits(dtype: torch.dtype) -> None:
    q = lk.Bernoulli(torch.tensor(LOGITS, dtype=dtype).unsqueeze(1))
    unit = 8 * torch.finfo(dtype).eps
    found = (
        q.entropy(),
        q.log_prob(torch.ones_like(q.logits)),
        q.score(torch.ones_like(q.logits))[0].flatten(),
    )
    found += (q.score(torch.zeros_like(q.logits))[0].flatten(),)
    with mpmath.workdps(60):
        for l, entropy, one, up, down in zip(
            q.logits.flatten().tolist(), *(x.tolist() for x in found), strict=True
        ):
            p, not_p = 1 / (1 + mpmath.exp(-mpmath.mpf(l))), 1 / (1 + mpmath.exp(mpmath.mpf(l)))
            assert relative_error(entropy, -p * mpmath.log(p) - not_p * mpmath.log(not_p)) < unit
            assert relative_error(-one, -mpmath.log(p)) < unit
            assert relative_error(up, not_p) < unit
            assert relative_error(-down, p) < unit


@every_family
def test_kl_of_close_pairs_is_not_negative(name: str) -> None:
    """The KL is non-negative, and right except for what log-probabilities lose: an error e of
    theirs moves sum p (e^d - 1 - d) by e d.
    """
    q = MAKE[name]((500, 1), torch.float32)
    wide = again(q, *(x.double() for x in q.parameters))
    for step in (0.0, 1e-7, 1e-5, 1e-3):
        other = again(q, *(x * (1 + step) for x in q.parameters))
        kl = q.kl(other)
        assert bool((kl >= 0).all()), float(kl.min())
        exact = wide.kl(again(q, *(x.double() for x in other.parameters))).clamp(min=0)
        e = (
            4
            * torch.finfo(torch.float32).eps
            * (1 + max(float(x.abs().max()) for x in q.parameters))
        )
        assert bool(((kl - exact).abs() <= e * (2 * exact).sqrt() + e * e).all()), step


def test_gradients_of_certain_variables_are_finite() -> None:
    logits = torch.tensor([[80.0], [-80.0], [0.0], [80.0]], requires_grad=True)
    others = torch.tensor([[-80.0], [80.0], [80.0], [79.0]], requires_grad=True)
    q, other = lk.Bernoulli(logits), lk.Bernoulli(others)
    gradients = torch.autograd.grad(q.kl(other).sum() + q.entropy().sum(), (logits, others))
    with mpmath.workdps(60):
        for l, m, of_l, of_m in zip(
            *(x.flatten().tolist() for x in (logits, others, *gradients)), strict=True
        ):
            p, r = (1 / (1 + mpmath.exp(-mpmath.mpf(x))) for x in (l, m))
            # d KL = p (1 - p) (l - l') dl + (p' - p) dl';  d H = -p (1 - p) l dl
            assert abs(of_l + p * (1 - p) * m) < 1e-5
            assert abs(of_m - (r - p)) < 1e-6


def test_categorical_with_impossible_classes() -> None:
    """Logits of -inf exclude a class; nothing becomes NaN, gradients included."""
    logits = torch.tensor([[[0.0, -INF, 1.0]], [[2.0, 1.0, 0.0]]], requires_grad=True)
    wide = torch.tensor([[[0.5, 0.1, 1.0]], [[2.0, 0.0, 0.0]]])
    q, other = lk.Categorical(logits), lk.Categorical(wide)
    two = lk.Categorical(torch.tensor([[0.0, 1.0]]))
    close(q.entropy()[0], two.entropy().squeeze(), rtol=1e-6)
    p = torch.softmax(torch.tensor([0.0, 1.0]), -1)
    expected = (p * (p.log() - wide[0, 0].log_softmax(-1)[[0, 2]])).sum()
    close(q.kl(other)[0], expected, rtol=1e-5, atol=1e-7)
    assert other.kl(q)[0] == INF
    assert q.kl(q).tolist() == [0, 0]
    assert q.log_prob(torch.tensor([[1], [1]]))[0] == -INF
    (gradient,) = torch.autograd.grad(q.entropy().sum() + q.kl(other).sum(), logits)
    assert bool(gradient.isfinite().all())
    assert gradient[0, 0, 1] == 0
    assert q.mean_parameters()[0][0, 0, 1] == 0
    assert not (q.sample(3000, seed=1)[:, 0] == 1).any()


@every_family
def test_nan_stays_in_its_row(name: str) -> None:
    for which in range(2 if name == "gaussian" else 1):
        q, other = MAKE[name]((6, 4)), MAKE[name]((6, 4))
        parameters = [x.clone() for x in q.parameters]
        z = q.sample(5, seed=1)
        parameters[which][2, 1] = torch.nan
        q = again(q, *parameters)
        found = [q.log_prob(z).sum(0), q.kl(other), other.kl(q), q.log_partition()]
        if name != "gaussian" or which:
            found.append(q.entropy())
        for x in found:
            assert x.isnan().nonzero().flatten().tolist() == [2]
        if name != "categorical":
            z[3, 4, 0] = torch.nan
            assert other.log_prob(z).isnan().nonzero().tolist() == [[3, 4]]


@every_family
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision_sums_in_float32(name: str, dtype: torch.dtype) -> None:
    """Densities, entropies and divergences of half parameters are float32, right to its rounding;
    scores have half precision.
    """
    q, other = MAKE[name]((5, 40), dtype), MAKE[name]((5, 40), dtype)
    wide, wide_other = (again(x, *(y.double() for y in x.parameters)) for x in (q, other))
    z = q.sample(3, seed=1)
    assert z.dtype == (torch.int64 if name == "categorical" else dtype)
    wide_z = z if name == "categorical" else z.double()
    for got, exact in (
        (q.log_prob(z), wide.log_prob(wide_z)),
        (q.entropy(), wide.entropy()),
        (q.kl(other), wide.kl(wide_other)),
        (q.log_partition(), wide.log_partition()),
    ):
        assert got.dtype == torch.float32
        assert torch.allclose(got.double(), exact, rtol=2e-6, atol=1e-5)
    for score, exact in zip(q.score(z), wide.score(wide_z), strict=True):
        assert torch.allclose(
            score.double(), exact, rtol=4 * torch.finfo(dtype).eps, atol=torch.finfo(dtype).eps
        )


@every_family
def test_empty_batches(name: str) -> None:
    for shape in ((0, 4), (3, 0), (2, 0, 4)):
        q = MAKE[name](shape)
        z = q.sample(5, seed=1)
        assert z.shape == (5, *shape)
        for x in (q.entropy(), q.kl(q), q.log_partition(), q.log_prob(z)[0]):
            assert x.shape == shape[:-1]


def test_samples_outside_the_support() -> None:
    assert torch.equal(
        lk.Bernoulli(torch.zeros(3)).score(torch.tensor([[0.5, 1.0, 0.0]]))[0].isnan()[0],
        torch.tensor([1, 0, 0]).bool(),
    )
    scores = lk.Categorical(torch.zeros(3, 4)).score(torch.tensor([[-1, 4, 3]]))[0]
    assert scores.isnan().all(-1).tolist() == [[True, True, False]]
