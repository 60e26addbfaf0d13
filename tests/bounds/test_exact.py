"""Bounds and their gradients against exact expectations, on linear-Gaussian models and on finite
ones.

Expectations over S samples are quadratures over S-tuples of Gauss-Hermite nodes, or sums over
S-tuples of states; the estimators are held to them twice: in expectation, on the nodes themselves,
and by z-scores over independent repeats.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch

import latent_kernels as lk
from latent_kernels.variational.bounds import BOUND_ESTIMATORS
from tests.bounds.linear_gaussian import Parameters, critical, flat, hermite, z_scores

Tensor = torch.Tensor

NODES = 48
REPEATS = 60_000
# How a sample and log q(z) depend on q's parameters: in every way, through z alone, or through log
# q alone.
DERIVATIVES = ("total", "path", "score")
PAIRS = list(itertools.product(BOUND_ESTIMATORS, DERIVATIVES))
UNBIASED = {("iwae", "total"), ("stl", "total"), ("dreg", "path"), ("vimco", "score")}


def doubles(*x):
    return [torch.tensor(values, dtype=torch.float64) for values in x]


LINE = Parameters(*doubles([0.9], [-0.3], [[0.8], [-0.5]], [0.3, -0.1], 0.2))
LINE_X = doubles([0.4, -1.1])[0]
PLANE = Parameters(
    *doubles(
        [0.5, -0.2], [-0.6, -0.9], [[0.8, 0.3], [-0.5, 0.9], [0.2, 0.6]], [0.3, -0.1, 0.0], 0.1
    )
)
PLANE_X = doubles([0.4, -1.1, 0.7])[0]
OF_Q = slice(
    0, 2
)  # LINE's gradients by the mean and the log-variance; those by the model come after


@pytest.fixture(autouse=True)
def _one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def bound_of(estimator: str, p: Parameters, x: Tensor, z: Tensor, log_q: Tensor) -> Tensor:
    options = {"dreg": {"z": z}, "vimco": {"log_q": log_q}}.get(estimator, {})
    return lk.importance_bound(p.log_joint(x, z) - log_q, estimator=estimator, **options)


def drawn(
    estimator: str, derivative: str, samples: int, *, repeats: int = REPEATS, seed: int = 1
) -> Tensor:
    """Return the gradients [R, P] of independent repeats."""
    p = LINE.repeated(repeats)
    if derivative == "score":
        z = p.q.sample(samples, seed=seed)
        log_q = p.q.log_prob(z)
    elif (estimator, derivative) == ("dreg", "total"):
        z = p.q.rsample(
            samples, seed=seed
        )  # the total derivative of rsample_log_prob does not pass through z
        log_q = p.q.log_prob(z)
    else:
        z, log_q = p.q.rsample_log_prob(samples, seed=seed, path_derivative=derivative == "path")
    bound = bound_of(estimator, p, LINE_X, z, log_q)
    return flat(torch.autograd.grad(bound.sum(), p), 1)


def expected(estimator: str, derivative: str, samples: int, nodes: int = NODES) -> Tensor:
    """Return the estimator's expectation [P]: the weighted sum of its values at all tuples of
    nodes.
    """
    p = LINE.tracked()
    eps, weight = hermite(nodes, samples)
    z = p.mean + torch.exp(0.5 * p.logvar) * eps
    z = z.detach() if derivative == "score" else z
    held = Parameters(*(x.detach() for x in p))
    log_q = (held if derivative == "path" else p).q.log_prob(z)
    bound = bound_of(estimator, p, LINE_X, z, log_q)
    return flat(torch.autograd.grad(bound @ weight, p, materialize_grads=True))


def exact_bound(p: Parameters, x: Tensor, samples: int, nodes: int = NODES) -> Tensor:
    """Return E[L_S] in plain torch."""
    eps, weight = hermite(nodes, samples)
    z = p.mean + torch.exp(0.5 * p.logvar) * eps
    return (torch.logsumexp(p.log_joint(x, z) - p.log_q(z), 0) - math.log(samples)) @ weight


def exact_gradient(samples: int, nodes: int = NODES) -> Tensor:
    p = LINE.tracked()
    return flat(torch.autograd.grad(exact_bound(p, LINE_X, samples, nodes), p))


# --- values ---------------------------------------------------------------------------------------


def test_the_bound_tightens_up_to_the_evidence():
    """The bound tightens with S up to the known bias V / 2S. Blocks of one pool of samples make the
    differences paired.
    """
    sizes, pool, repeats = (1, 2, 5, 20, 100, 1000, 10_000), 10_000, 200
    q, log_p = PLANE.q, PLANE.log_evidence(PLANE_X)
    q = lk.DiagonalGaussian(*(x.expand(repeats, 2) for x in q.parameters))
    z, log_q = q.rsample_log_prob(pool, seed=1)
    log_w = PLANE.log_joint(PLANE_X, z) - log_q
    bounds = []
    for s in sizes:
        blocks = log_w.reshape(pool // s, s, repeats).transpose(0, 1)
        bounds.append(lk.importance_bound(blocks).mean(0))
    for looser, tighter in itertools.pairwise(bounds):
        assert z_scores(tighter - looser, torch.zeros(())) > 6
    for bound in bounds:
        assert z_scores(bound, log_p) < 3.3
    assert abs(z_scores(bounds[0], PLANE.elbo(PLANE_X))) < 3.3
    # L_S = log p + d - d^2 / 2 + ..., d = mean w / p - 1, whose mean is 0 and whose square has the
    # mean V / S.
    d = torch.exp(log_w - log_p).mean(0) - 1
    bias = -PLANE.weight_variance(PLANE_X) / (2 * pool)
    assert abs(z_scores(bounds[-1] - d, log_p + bias)) < 3.3
    assert z_scores(bounds[-1] - d, log_p) < -6  # precise enough to see the bias


def test_the_weights_variance_is_the_one_in_closed_form():
    """Quadrature confirms the variance from which the previous test computes its bias."""
    eps, weight = hermite(64, 1)
    z = LINE.mean + torch.exp(0.5 * LINE.logvar) * eps[0]
    w = torch.exp(LINE.log_joint(LINE_X, z) - LINE.log_q(z) - LINE.log_evidence(LINE_X))
    torch.testing.assert_close(w @ weight, torch.ones((), dtype=torch.float64), rtol=1e-12, atol=0)
    torch.testing.assert_close(w**2 @ weight - 1, LINE.weight_variance(LINE_X), rtol=1e-9, atol=0)


@pytest.mark.parametrize("samples", [1, 2, 3])
def test_the_bound_has_its_exact_expectation(samples):
    q = lk.DiagonalGaussian(LINE.mean.expand(200_000, 1), LINE.logvar.expand(200_000, 1))
    z, log_q = q.rsample_log_prob(samples, seed=2)
    exact = exact_bound(LINE, LINE_X, samples)
    if samples == 1:
        torch.testing.assert_close(exact, LINE.elbo(LINE_X), rtol=1e-12, atol=0)
    bound = lk.importance_bound(LINE.log_joint(LINE_X, z) - log_q)
    assert abs(z_scores(bound, exact)) < 3.3


def test_the_forms_of_the_elbo_agree_with_the_closed_form():
    """All forms of the ELBO agree with the closed form, also in one pass with exact KL; the noise
    is least where the least is sampled.
    """
    repeats = 100_000
    q = lk.DiagonalGaussian(*(x.expand(repeats, 2) for x in PLANE.q.parameters))
    z, log_q = q.rsample_log_prob(4, seed=3)
    joint, exact = PLANE.log_joint(PLANE_X, z), PLANE.elbo(PLANE_X)
    prior = lk.DiagonalGaussian(
        torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    )
    forms = {
        "kl": lk.elbo(joint - prior.log_prob(z), kl=q.kl(prior)),
        "entropy": lk.elbo(joint, entropy=q.entropy()),
        "log_q": lk.elbo(joint, log_q=log_q),
    }
    for bound in forms.values():
        assert abs(z_scores(bound, exact)) < 3.3
    torch.testing.assert_close(forms["log_q"], joint.mean(0) - log_q.mean(0))
    # Where q is the posterior, log p(x, z) - log q(z) is log p(x) for every z.
    centre, covariance = LINE.posterior(LINE_X)
    q = lk.DiagonalGaussian(centre, torch.log(covariance[0]))
    z, log_q = q.rsample_log_prob(64, seed=4)
    values = LINE.log_joint(LINE_X, z)
    torch.testing.assert_close(
        lk.elbo(values, log_q=log_q), LINE.log_evidence(LINE_X), rtol=1e-12, atol=1e-12
    )
    assert (lk.elbo(values, entropy=q.entropy()) - LINE.log_evidence(LINE_X)).abs() > 1e-3


# --- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("samples", [2, 3])
def test_the_quadrature_has_converged(samples):
    found, finer = exact_gradient(samples, 32), exact_gradient(samples, 64)
    torch.testing.assert_close(found, finer, rtol=0, atol=2e-9)
    torch.testing.assert_close(exact_gradient(samples), finer, rtol=0, atol=1e-10)


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize(("estimator", "derivative"), PAIRS)
def test_estimators_in_expectation(estimator, derivative, samples):
    """Each estimator is unbiased for q with the one derivative it belongs to, and for the model
    whatever log q is.
    """
    error = expected(estimator, derivative, samples) - exact_gradient(samples)
    assert error[2:].abs().max() < 1e-9
    if (estimator, derivative) in UNBIASED:
        assert error[OF_Q].abs().max() < 1e-9
    else:
        assert error[OF_Q].abs().max() > 0.02


@pytest.mark.parametrize("samples", [2, 3])
@pytest.mark.parametrize(("estimator", "derivative"), PAIRS)
def test_estimators_by_independent_repeats(estimator, derivative, samples):
    """All parameters' errors are within chance; with the wrong derivative those of q are far
    outside.
    """
    found, truth = drawn(estimator, derivative, samples), exact_gradient(samples)
    scores = z_scores(found, truth).abs()
    limit = critical(len(truth) * 2 * len(PAIRS))
    assert scores[2:].max() < limit
    if (estimator, derivative) in UNBIASED:
        assert scores[OF_Q].max() < limit
    else:
        assert scores[OF_Q].max() > 2 * limit
        assert z_scores(found, expected(estimator, derivative, samples)).abs().max() < limit


@pytest.mark.parametrize("estimator", ["iwae", "stl", "dreg"])
@pytest.mark.parametrize("derivative", ["total", "path"])
def test_one_sample_gives_the_gradient_of_the_elbo(estimator, derivative):
    p = LINE.tracked()
    truth = flat(torch.autograd.grad(p.elbo(LINE_X), p))
    torch.testing.assert_close(exact_gradient(1), truth, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(expected(estimator, derivative, 1), truth, rtol=1e-11, atol=1e-11)
    assert z_scores(drawn(estimator, derivative, 1), truth).abs().max() < critical(6 * len(truth))


def test_sticking_the_landing_is_biased_towards_the_posterior():
    """The bias of STL is E sum_s w~_s grad log q(z_s). For S to infinity it is the score's mean
    under p(z|x), as in wake-sleep.
    """
    centre, covariance = LINE.posterior(LINE_X)
    off, variance = centre - LINE.mean, torch.exp(LINE.logvar)
    limit = torch.cat([off / variance, 0.5 * ((off**2 + covariance[0]) / variance - 1)])
    shares = []
    for samples in (1, 2, 3):
        bias = (expected("stl", "path", samples) - exact_gradient(samples))[OF_Q]
        shares.append(bias / limit)
    assert shares[0].abs().max() < 1e-12
    # The mean lies above the posterior's, and its gradient is exaggerated; that of the log-variance
    # first understated.
    assert limit[0] < 0
    assert shares[0][0] + 0.4 < shares[1][0] < shares[2][0] - 0.1 < 0.9
    assert shares[1][1] < -0.1
    many = (
        drawn("stl", "path", 1000, repeats=2000)[:, OF_Q]
        - drawn("dreg", "path", 1000, repeats=2000)[:, OF_Q]
    )
    torch.testing.assert_close(many.mean(0), limit, rtol=0.02, atol=0)


# --- discrete latent variables --------------------------------------------------------------------

LOGITS = doubles([-0.6, 0.9])[0]
TABLE = doubles([-1.0, 0.4, 1.3, -2.1])[
    0
]  # log p(x, z) for z = 00, 01, 10, 11: the model's parameters
STATES = doubles([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])[0]


def log_joint(table: Tensor, z: Tensor) -> Tensor:
    """Return log p(x, z) of z [S, T, 2] with the table [4] or [T, 4]."""
    which = (2 * z[..., 0] + z[..., 1]).long()
    return torch.gather(table.expand(*which.shape, 4), -1, which.unsqueeze(-1)).squeeze(-1)


def discrete_bound(logits: Tensor, table: Tensor, z: Tensor, *, signal: bool = True) -> Tensor:
    log_q = lk.Bernoulli(logits).log_prob(z)
    log_w = log_joint(table, z) - log_q
    if not signal:
        return lk.importance_bound(log_w)
    return lk.importance_bound(log_w, estimator="vimco", log_q=log_q)


def enumerated(samples: int) -> tuple[Tensor, Tensor]:
    """Return every S-tuple of states [S, 4^S, 2], and the exact gradient of E[L_S] by the logits
    and the table.
    """
    which = torch.cartesian_prod(*[torch.arange(4)] * samples).reshape(-1, samples).T
    z = STATES[which]
    logits, table = LOGITS.clone().requires_grad_(), TABLE.clone().requires_grad_()
    log_q = torch.distributions.Bernoulli(logits=logits).log_prob(z).sum(-1)
    bound = torch.logsumexp(log_joint(table, z) - log_q, 0) - math.log(samples)
    return z, flat(torch.autograd.grad((torch.exp(log_q.sum(0)) * bound).sum(), (logits, table)))


@pytest.mark.parametrize("samples", [2, 3])
def test_vimco_over_all_tuples_of_states(samples):
    """The mean of VIMCO over all tuples is the exact gradient; without the signal, q's gradient is
    wrong.
    """
    z, truth = enumerated(samples)
    chance = torch.exp(lk.Bernoulli(LOGITS).log_prob(z).sum(0))
    for signal in (True, False):
        leaves = LOGITS.clone().requires_grad_(), TABLE.clone().requires_grad_()
        bound = discrete_bound(*leaves, z, signal=signal)
        error = flat(torch.autograd.grad(bound @ chance, leaves)) - truth
        assert error[2:].abs().max() < 1e-13
        if signal:
            assert error[:2].abs().max() < 1e-13
        else:
            assert error[:2].abs().min() > 0.03


@pytest.mark.parametrize("signal", [True, False])
def test_vimco_by_independent_repeats(signal):
    leaves = tuple(x.expand(REPEATS, -1).clone().requires_grad_() for x in (LOGITS, TABLE))
    z = lk.Bernoulli(leaves[0]).sample(3, seed=6)
    gradients = torch.autograd.grad(discrete_bound(*leaves, z, signal=signal).sum(), leaves)
    scores = z_scores(flat(gradients, 1), enumerated(3)[1]).abs()
    limit = critical(12)
    assert scores[2:].max() < limit
    assert scores[:2].max() < limit if signal else scores[:2].min() > 2 * limit


# --- signal and noise -----------------------------------------------------------------------------

SIZES = (1, 4, 16, 64, 256, 1024)
GROUPS = 10


def close_to_the_optimum(groups: int, repeats: int) -> Parameters:
    """Return two latent variables that are observed directly: posterior N(x / 2, 1 / 2), and a q
    slightly off.
    """
    mean, logvar = doubles([0.15, -0.62], [-0.65, -0.68])
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros((), dtype=torch.float64)
    return Parameters(mean, logvar, eye, zero.expand(2), zero).repeated(groups, repeats)


def signal_and_noise(
    samples: int, estimator: str, repeats: int
) -> dict[str, tuple[Tensor, Tensor]]:
    """Return, by group, for the gradients of q and of the model: the squared length of the mean,
    less its noise, and the trace.
    """
    p = close_to_the_optimum(GROUPS, repeats)
    z, log_q = p.q.rsample_log_prob(samples, seed=samples, path_derivative=estimator == "dreg")
    bound = bound_of(estimator, p, doubles([0.0, -1.0])[0], z, log_q)
    gradients = torch.autograd.grad(bound.sum(), p)
    found = {}
    for name, part in (("q", gradients[:2]), ("model", gradients[2:])):
        values = flat(part, 2)
        trace = values.var(1).sum(-1)
        found[name] = (values.mean(1) ** 2).sum(-1) - trace / repeats, trace
    return found


def slope(signal: list[Tensor], trace: list[Tensor]) -> tuple[float, float]:
    """Return the slope of log SNR on log S with its standard error, computed from the groups."""
    ratio = 0.5 * torch.log2(torch.stack(signal) / torch.stack(trace))  # [sizes, groups]
    at = torch.log2(torch.tensor(SIZES, dtype=torch.float64))
    at = at - at.mean()
    slopes = at @ ratio / (at @ at)
    return float(slopes.mean()), float(slopes.std() / math.sqrt(GROUPS))


def test_more_samples_drown_the_signal_but_for_dreg():
    """The slope of log SNR on log S: -1/2 for "iwae", +1/2 for "dreg", and +1/2 for the model's
    parameters.

    A gradient of q has a mean like 1 / S, and a standard deviation like S^-1/2, but for "dreg" like
    S^-3/2. Both have one mean, and so its clear estimate from "dreg" serves for both. The smallest
    S are not quite on the line: 0.02.
    """
    found = {
        (s, e): signal_and_noise(s, e, max(100, min(4000, 100_000 // s)))
        for s in SIZES
        for e in ("iwae", "dreg")
    }
    signal = [found[s, "dreg"]["q"][0] for s in SIZES]
    slopes = {e: slope(signal, [found[s, e]["q"][1] for s in SIZES]) for e in ("iwae", "dreg")}
    slopes["model"] = slope(*([found[s, "iwae"]["model"][i] for s in SIZES] for i in (0, 1)))
    for name, exact in (("iwae", -0.5), ("dreg", 0.5), ("model", 0.5)):
        value, error = slopes[name]
        assert error < 0.01
        assert abs(value - exact) < 0.02 + 3.3 * error, (name, value, error)
