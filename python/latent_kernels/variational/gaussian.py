"""Diagonal Gaussians: reparameterized samples and their KL divergence to a prior.

Every function works on the last dimension D; leading dimensions are a batch. Each is one pass over
memory forward and one backward; the noise is made from the seed in both and never stored.
"""

from __future__ import annotations

import math

import torch

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.eager import as_int, as_seeds, draw_seed, plain
from latent_kernels.kernels.gaussian import autograd
from latent_kernels.kernels.gaussian import ops as _ops  # noqa: F401  (registers the opaque ops)
from latent_kernels.kernels.library import call

Tensor = torch.Tensor


def rsample_kl(
    mean: Tensor,
    logvar: Tensor,
    num_samples: int | None = None,
    *,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
    seed: Seed = None,
    offset: int = 0,
) -> tuple[Tensor, Tensor]:
    r"""Samples of q = N(mean, e^logvar) by reparameterization, and KL(q || prior), in one pass.

    .. math::
        z_s = \mu + e^{l/2} \epsilon_s, \qquad \mathrm{KL} = \tfrac12 \sum_d (\mu - \mu_0)^2
        e^{-l_0} + \psi(l - l_0), \quad \psi(d) = e^d - 1 - d

    The backward pass makes the same noise again from the seed: autograd keeps the inputs and the
    seed, nothing else. psi has its own series near 0, so that the KL is right to a few ulp and
    never negative. Second derivatives are not implemented and raise.

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        num_samples: S >= 1, or None for one sample without a sample dimension.
        prior_mean: the prior's mean, broadcast to mean's shape; None for 0.
        prior_logvar: the prior's log-variance, broadcast likewise; None for 0.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of mean (for CUDA graphs:
            advance it between replays), or None to draw one from torch's default CPU generator. One
            seed at two calls gives one noise.
        offset: the first element's place in the noise stream, to tell calls with one seed apart.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None, in the inputs' dtype; kl of
        shape [...] in nats, float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014), equations 4 and 10.

    """
    mean, logvar, prior_mean, prior_logvar = _parameters(mean, logvar, prior_mean, prior_logvar)
    _checks.stream(seed, offset, _checks.samples(num_samples) * mean.numel(), mean.device)
    z, kl, _ = _gaussian(
        mean, logvar, prior_mean, prior_logvar, draw_seed(seed, mean.device), offset, num_samples
    )
    return z, kl


def rsample(
    mean: Tensor,
    logvar: Tensor,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
) -> Tensor:
    """Samples z = mean + e^(logvar/2) eps of N(mean, e^logvar); see `rsample_kl`.

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        num_samples: S >= 1, or None for one sample without a sample dimension.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of mean, or None to draw one.
        offset: the first element's place in the noise stream.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014), equation 4.

    """
    mean, logvar, _, _ = _parameters(mean, logvar, None, None)
    _checks.stream(seed, offset, _checks.samples(num_samples) * mean.numel(), mean.device)
    return _gaussian(
        mean, logvar, None, None, draw_seed(seed, mean.device), offset, num_samples, with_kl=False
    )[0]


def rsample_log_prob(
    mean: Tensor,
    logvar: Tensor,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    path_derivative: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Samples of q = N(mean, e^logvar) by reparameterization, and their log-densities log q(z), in
    one pass.

    .. math::
        z_s = \mu + e^{l/2} \epsilon_s, \qquad
        \log q(z_s) = -\tfrac12 \sum_d \ln 2\pi + l + \epsilon_s^2

    log q comes from eps, not from z: nothing is divided by sigma, and half precision of z costs it
    no digit. It is the first step of an importance-weighted bound, whose weights are p(x, z) /
    q(z).

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        num_samples: S >= 1, or None for one sample without a sample dimension.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of mean, or None to draw one.
        offset: the first element's place in the noise stream.
        path_derivative: which gradient log q has. False: the total derivative by the parameters, of
            log q(z_s) as the function -1/2 sum_d logvar + constant that it is once z_s moves with
            them; differentiating it by z gives nothing, for which there is `gaussian_log_prob`.
            True: the derivative by z alone, the parameters of the density held fixed: -eps / sigma
            reaches z, beside whatever else does, and through z the parameters. A hook on z sees the
            sum. The gradient of log p(z) - log q(z) then has no variance where q = p.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None, in the inputs' dtype; log_q
        of shape [S, ...] or [...] in nats, float32 for half-precision inputs. Both have the same
        bits with either derivative.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Roeder, Wu and Duvenaud, "Sticking the landing" (2017), for the path derivative; Tucker,
    Lawson, Gu and Maddison, "Doubly reparameterized gradient estimators" (2019), for what else is
    built on it.

    """
    if not isinstance(path_derivative, bool):
        raise TypeError(f"path_derivative must be True or False; got {path_derivative!r}")
    mean, logvar, _, _ = _parameters(mean, logvar, None, None)
    _checks.stream(seed, offset, _checks.samples(num_samples) * mean.numel(), mean.device)
    seed = draw_seed(seed, mean.device)
    z, _, log_q = _gaussian(
        mean, logvar, None, None, seed, offset, num_samples, with_kl=False, with_log_q=True
    )
    return z, _path(z, log_q.detach(), logvar.detach(), seed, offset) if path_derivative else log_q


def rsample_scale(
    mean: Tensor,
    scale: Tensor,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
) -> Tensor:
    """Samples z = mean + scale eps: `rsample` for those who hold sigma and not its logarithm
    (`FusedNormal`).
    """
    mean, scale, _, _ = _parameters(mean, scale, None, None, second="scale")
    _checks.stream(seed, offset, _checks.samples(num_samples) * mean.numel(), mean.device)
    seed = draw_seed(seed, mean.device)
    return _gaussian(
        mean, scale, None, None, seed, offset, num_samples, with_kl=False, spread_is_scale=True
    )[0]


def gaussian_kl(
    mean: Tensor,
    logvar: Tensor,
    *,
    prior_mean: Tensor | None = None,
    prior_logvar: Tensor | None = None,
) -> Tensor:
    """KL(N(mean, e^logvar) || N(prior_mean, e^prior_logvar)), summed over the last dimension.

    1/2 sum_d (mean - prior_mean)^2 e^-prior_logvar + psi(logvar - prior_logvar), psi(d) = e^d - 1 -
    d; right to a few ulp for every logvar, and never negative.

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        prior_mean: the prior's mean, broadcast to mean's shape; None for 0.
        prior_logvar: the prior's log-variance, broadcast likewise; None for 0.

    Returns:
        kl of shape [...] in nats, float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source: Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix B.

    """
    mean, logvar, prior_mean, prior_logvar = _parameters(mean, logvar, prior_mean, prior_logvar)
    return _gaussian(mean, logvar, prior_mean, prior_logvar, 0, 0, None, with_z=False)[1]


def _parameters(
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    second: str = "logvar",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Checked, of one dtype, and all of the shape that mean and spread broadcast to."""
    named = {"mean": mean, second: spread, "prior_mean": prior_mean, "prior_logvar": prior_logvar}
    (mean, spread, prior_mean, prior_logvar), _ = _checks.together(**named)  # type: ignore[assignment]
    if mean.shape != spread.shape:
        shape = _checks.broadcast(**{"mean": mean, second: spread})
        mean, spread = mean.expand(shape), spread.expand(shape)
    if prior_mean is not None:
        prior_mean = _checks.expand("prior_mean", prior_mean, mean.shape, "mean")
    if prior_logvar is not None:
        prior_logvar = _checks.expand("prior_logvar", prior_logvar, mean.shape, "mean")
    return mean, spread, prior_mean, prior_logvar


def _gaussian(
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    seed: int | Tensor,
    offset: int,
    num_samples: int | None,
    *,
    with_z: bool = True,
    with_kl: bool = True,
    with_log_q: bool = False,
    spread_is_scale: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """(z, kl, log_q); what is not wanted is not computed, and not to be used."""
    if plain(mean, spread, prior_mean, prior_logvar, seed if isinstance(seed, Tensor) else None):
        options = (
            as_int(seed, mean.device),
            offset,
            num_samples,
            spread_is_scale,
            with_z,
            with_kl,
            with_log_q,
        )
        results: tuple[Tensor, Tensor, Tensor] = autograd.apply_gaussian(
            mean, spread, prior_mean, prior_logvar, options
        )
        return results
    shape = mean.shape
    canonical = (1, math.prod(shape[:-1]), shape[-1])
    samples = (1 if num_samples is None else num_samples) if with_z else 0
    inputs = (
        None if x is None else x.reshape(canonical)
        for x in (mean, spread, prior_mean, prior_logvar)
    )
    seeds = as_seeds(seed, mean.device)
    z, kl, log_q = call(
        "gaussian", *inputs, seeds, offset, samples, spread_is_scale, with_kl, with_log_q
    )
    leading = () if num_samples is None else (num_samples,)
    if with_z:
        z = z.reshape(*leading, *shape)
    if with_kl:
        kl = kl.reshape(shape[:-1])
    return z, kl, log_q.reshape((*leading, *shape[:-1])) if with_log_q else log_q


def _path(z: Tensor, log_q: Tensor, logvar: Tensor, seed: int | Tensor, offset: int) -> Tensor:
    """log_q, of which autograd knew nothing, as a function of the samples z alone."""
    if plain(z, log_q, logvar, seed if isinstance(seed, Tensor) else None):
        out: Tensor = autograd.apply_path(z, (log_q, logvar, as_int(seed, z.device), offset))
        return out
    rows, cols = math.prod(logvar.shape[:-1]), logvar.shape[-1]
    sampled = z.reshape(1, z.size(0) if z.dim() > logvar.dim() else 1, rows, cols)
    flat = log_q.reshape(sampled.shape[:-1])
    out = call(
        "gaussian_path",
        sampled,
        flat,
        logvar.reshape(1, rows, cols),
        as_seeds(seed, z.device),
        offset,
    )
    return out.reshape(log_q.shape)
