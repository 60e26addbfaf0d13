"""Diagonal Gaussians: reparameterized samples and their KL divergence to a prior.

Every function works on the last dimension D; leading dimensions are a batch. Each is one pass over
memory forward and one backward; the noise is computed from the seed in both and never stored. A
parameter may be a number or a 0-d tensor, one for all elements, as long as the mean or the
log-variance has dimensions; its gradient is summed.
"""

from __future__ import annotations

from typing import Any

import torch

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.description import Dims
from latent_kernels.kernels.eager import SeedSource, shared
from latent_kernels.kernels.gaussian.problem import (
    ANTITHETIC,
    GAUSSIAN,
    GAUSSIAN_PATH,
    INDEPENDENT,
    SOBOL,
)
from latent_kernels.kernels.noise import sobol

Tensor = torch.Tensor


def rsample_kl(
    mean: Tensor | float,
    logvar: Tensor | float,
    num_samples: int | None = None,
    *,
    prior_mean: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
    seed: Seed = None,
    offset: int = 0,
    antithetic: bool = False,
    qmc: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return reparameterized samples of q = N(mean, e^logvar), and KL(q || prior), in one pass.

    .. math::
        z_s = \mu + e^{l/2} \epsilon_s, \qquad \mathrm{KL} = \tfrac12 \sum_d (\mu - \mu_0)^2
        e^{-l_0} + \psi(l - l_0), \quad \psi(d) = e^d - 1 - d

    with epsilon standard normal, l = logvar, and mu_0, l_0 the prior's. The backward pass draws the
    same noise again from the seed: autograd keeps the inputs and the seed, nothing else. A series
    evaluates psi near 0, so that the KL is accurate to a few units in the last place and never
    negative. Second derivatives and forward mode (torch.func.hessian, jvp) differentiate the
    formula in plain torch, with the same noise, and take plain torch's time and memory.

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        num_samples: S >= 1, or None for one sample without a sample dimension.
        prior_mean: the prior's mean, broadcast to mean's shape; None for 0.
        prior_logvar: the prior's log-variance, broadcast likewise; None for 0. Each parameter may
            be a number or a 0-d tensor, except mean and logvar both.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of mean (for CUDA graphs:
            advance it between replays), or None to draw one from torch's default CPU generator. Two
            calls with the same seed have the same noise. `latent_kernels.noise` says what
            `torch.manual_seed` means under torch.compile.
        offset: the first element's place in the noise stream, so that calls with one seed can have
            different noise.
        antithetic: draw pairs that mirror each other at the mean, z_{s + ceil(S/2)} - mean =
            -(z_s - mean); the middle one of an odd S has no twin. The first ceil(S/2) samples are
            those of independent ones. Each has the distribution q, and their average has less
            variance for f near linear: none at all for a linear f or the mean's gradient of a
            quadratic one, more for an even one. The variance of an average over the samples is not
            1/S of theirs: estimate it from the averages of pairs, or from several seeds.
        qmc: draw Sobol' points: the S = 2^m <= 65536 samples of each row cover the space of D
            dimensions evenly, by a scramble of the row's own from the seed. Each has the
            distribution q; the average of a smooth f has a variance that falls much faster than
            1/S where few dimensions matter together. Rows are independent, samples are not: the
            error of an estimate can be seen from several seeds alone.
        generator: a torch.Generator on the CPU, or on mean's GPU, to draw the seed from in place of
            `seed`.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None, in the inputs' dtype; kl of
        shape [...] in nats, float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), equations 4 and 10; Buchholz,
        Wenzel and Mandt, "Quasi-Monte Carlo variational inference" (2018), for qmc.

    Example:
        >>> import torch, latent_kernels as lk
        >>> mean = torch.ones(3, 2, requires_grad=True)
        >>> z, kl = lk.rsample_kl(mean, 0.0, num_samples=5, seed=0)
        >>> z.shape
        torch.Size([5, 3, 2])
        >>> kl.tolist()  # nats for each row, against N(0, 1)
        [1.0, 1.0, 1.0]
        >>> kl.sum().backward()
        >>> mean.grad[0]
        tensor([1., 1.])

    """
    mean, logvar, prior_mean, prior_logvar = _parameters(mean, logvar, prior_mean, prior_logvar)
    dims, source, options = _drawn(mean, num_samples, seed, offset, generator, antithetic, qmc)
    inputs = (mean, logvar, None, prior_mean, prior_logvar)
    z, kl, _ = GAUSSIAN(dims, inputs, options, seed=source, wanted=(True, True, False))
    return z, kl


def rsample(
    mean: Tensor | float,
    logvar: Tensor | float,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    antithetic: bool = False,
    qmc: bool = False,
    generator: torch.Generator | None = None,
) -> Tensor:
    r"""Return reparameterized samples of N(mean, e^logvar).

    .. math::
        z_s = \mu + e^{l/2} \epsilon_s, \qquad \epsilon_s \sim \mathcal N(0, 1)

    `rsample_kl` says more about the noise and the derivatives.

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        num_samples: S >= 1, or None for one sample without a sample dimension.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of mean, or None to draw one.
        offset: the first element's place in the noise stream.
        antithetic: draw pairs that mirror each other at the mean, see `rsample_kl`.
        qmc: draw Sobol' points for each row, see `rsample_kl`.
        generator: a torch.Generator to draw the seed from, in place of `seed`.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), equation 4.

    Example:
        >>> import torch, latent_kernels as lk
        >>> z = lk.rsample(torch.zeros(3, 2), torch.zeros(3, 2), num_samples=5, seed=0)
        >>> z.shape
        torch.Size([5, 3, 2])
        >>> torch.equal(z, lk.normal((5, 3, 2), seed=0))  # the noise itself for mean 0, variance 1
        True
        >>> z = lk.rsample(torch.zeros(3, 2), 0.0, num_samples=6, seed=0, antithetic=True)
        >>> torch.equal(z[3:], -z[:3])
        True
        >>> z = lk.rsample(torch.zeros(3, 2), 0.0, num_samples=8, seed=0, qmc=True)
        >>> (z > 0).sum(0)[0]  # each column of each row is spread evenly
        tensor([4, 4])

    """
    mean, logvar, _, _ = _parameters(mean, logvar, None, None)
    dims, source, options = _drawn(mean, num_samples, seed, offset, generator, antithetic, qmc)
    inputs = (mean, logvar, None, None, None)
    z: Tensor = GAUSSIAN(dims, inputs, options, seed=source, wanted=(True, False, False))[0]
    return z


def rsample_log_prob(
    mean: Tensor | float,
    logvar: Tensor | float,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    antithetic: bool = False,
    qmc: bool = False,
    path_derivative: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return reparameterized samples of q = N(mean, e^logvar), and log q(z), in one pass.

    .. math::
        z_s = \mu + e^{l/2} \epsilon_s, \qquad
        \log q(z_s) = -\tfrac12 \sum_d \ln 2\pi + l + \epsilon_s^2

    log q is computed from epsilon, not from z: nothing is divided by sigma, and z in half precision
    costs no accuracy. It is the first step of an importance-weighted bound, whose weights are
    p(x, z) / q(z).

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        num_samples: S >= 1, or None for one sample without a sample dimension.
        seed: an int in [0, 2^63), a 0-d int64 tensor on the device of mean, or None to draw one.
        offset: the first element's place in the noise stream.
        antithetic: draw pairs that mirror each other at the mean, see `rsample_kl`. The twins have
            one log q.
        qmc: draw Sobol' points for each row, see `rsample_kl`.
        path_derivative: which gradient log q has. False: the total derivative by the parameters.
            Since z_s moves with them, log q(z_s) is -1/2 sum_d logvar plus a constant, and its
            gradient by z is zero (`gaussian_log_prob` has one). True: the derivative along z alone,
            with the parameters of the density held fixed: -epsilon / sigma is added to the gradient
            of z, and reaches the parameters through z. A hook on z sees the sum. The gradient of
            log p(z) - log q(z) then has no variance where q = p. Second derivatives hold those
            parameters fixed, too.
        generator: a torch.Generator to draw the seed from, in place of `seed`.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None, in the inputs' dtype; log_q
        of shape [S, ...] or [...] in nats, float32 for half-precision inputs. Neither depends on
        path_derivative.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Roeder, Wu and Duvenaud, "Sticking the landing" (2017), for the path derivative; Tucker,
        Lawson, Gu and Maddison, "Doubly reparameterized gradient estimators for Monte Carlo
        objectives" (2019), which builds on it.

    Example:
        >>> import torch, latent_kernels as lk
        >>> mean, logvar = torch.ones(3, 2), torch.zeros(3, 2)
        >>> z, log_q = lk.rsample_log_prob(mean, logvar, num_samples=5, seed=0)
        >>> z.shape, log_q.shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3]))
        >>> torch.allclose(log_q, lk.gaussian_log_prob(z, mean, logvar))
        True

    """
    path_derivative = _checks.flag("path_derivative", path_derivative)
    mean, logvar, _, _ = _parameters(mean, logvar, None, None)
    dims, source, options = _drawn(mean, num_samples, seed, offset, generator, antithetic, qmc)
    if path_derivative:
        source = shared(source, mean.device)  # for both ops
    inputs = (mean, logvar, None, None, None)
    z, _, log_q = GAUSSIAN(dims, inputs, options, seed=source, wanted=(True, False, True))
    if path_derivative:  # as a function of z alone
        of_z = z, log_q.detach(), logvar.detach()
        log_q = GAUSSIAN_PATH(dims, of_z, options, seed=source)
    return z, log_q


def rsample_scale(
    mean: Tensor | float,
    scale: Tensor | float,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return samples z = mean + scale epsilon: `rsample` with sigma in place of its logarithm."""
    mean, scale, _, _ = _parameters(mean, scale, None, None, second="scale")
    dims, source, options = _drawn(mean, num_samples, seed, offset, generator)
    inputs = (mean, None, scale, None, None)
    z: Tensor = GAUSSIAN(dims, inputs, options, seed=source, wanted=(True, False, False))[0]
    return z


def gaussian_kl(
    mean: Tensor | float,
    logvar: Tensor | float,
    *,
    prior_mean: Tensor | float | None = None,
    prior_logvar: Tensor | float | None = None,
) -> Tensor:
    r"""Return KL(N(mean, e^logvar) || prior), summed over the last dimension.

    .. math::
        \tfrac12 \sum_d (\mu - \mu_0)^2 e^{-l_0} + \psi(l - l_0), \quad \psi(d) = e^d - 1 - d

    with the prior N(mu_0, e^l_0). It is accurate to a few units in the last place for every logvar,
    and never negative. Second
    derivatives (as in a Fisher-vector product) differentiate the formula in plain torch.

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean.
        prior_mean: the prior's mean, broadcast to mean's shape; None for 0.
        prior_logvar: the prior's log-variance, broadcast likewise; None for 0. Each parameter may
            be a number or a 0-d tensor, except mean and logvar both.

    Returns:
        kl of shape [...] in nats, float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), appendix B.

    Example:
        >>> import torch, latent_kernels as lk
        >>> lk.gaussian_kl(torch.ones(2, 3), 0.0)
        tensor([1.5000, 1.5000])
        >>> lk.gaussian_kl(torch.ones(2, 3), 0.0, prior_mean=1.0)
        tensor([0., 0.])

    """
    mean, logvar, prior_mean, prior_logvar = _parameters(mean, logvar, prior_mean, prior_logvar)
    dims = _dims(mean, 0)  # of no samples
    inputs = mean, logvar, None, prior_mean, prior_logvar
    kl: Tensor = GAUSSIAN(dims, inputs, (0, INDEPENDENT), seed=0, wanted=(False, True, False))[1]
    return kl


def _parameters(
    mean: Tensor | float,
    deviation: Tensor | float,
    prior_mean: Tensor | float | None,
    prior_logvar: Tensor | float | None,
    second: str = "logvar",
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return the parameters checked, in one dtype and in the shape that they broadcast to."""
    given: Any = mean, deviation, prior_mean, prior_logvar
    if _checks.alike(*given) is not None:
        return given  # type: ignore[no-any-return]
    names = "mean", second, "prior_mean", "prior_logvar"
    given = _checks.parameters(dict(zip(names, given, strict=True)))[0]
    own, its_deviation, m0, l0 = given
    if own.shape != its_deviation.shape:
        shape = _checks.broadcast(**{"mean": own, second: its_deviation})
        own, its_deviation = own.expand(shape), its_deviation.expand(shape)
    if m0 is not None:
        m0 = _checks.expand("prior_mean", m0, own.shape, "mean")
    if l0 is not None:
        l0 = _checks.expand("prior_logvar", l0, own.shape, "mean")
    return own, its_deviation, m0, l0


def _drawn(
    mean: Tensor,
    num_samples: int | None,
    seed: Seed,
    offset: int,
    generator: torch.Generator | None,
    antithetic: bool = False,
    qmc: bool = False,
) -> tuple[Dims, SeedSource, tuple[int, int]]:
    """Check how many samples are drawn, and from where in the stream; return the axes, the seed
    or what to draw it from, and the options: the offset, and how samples depend on each other.
    """
    samples, count = None, mean.numel()
    if num_samples is not None:
        samples = _checks.samples(num_samples)
        count *= samples  # type: ignore[operator]
    source, offset = _checks.stream(seed, offset, count, mean.device, generator)
    dependence = INDEPENDENT
    if antithetic is not False or qmc is not False:
        dependence = _dependence(samples, mean.shape[-1], antithetic, qmc)
    return _dims(mean, samples), source, (offset, dependence)


def _dependence(samples: int | None, cols: int, antithetic: bool, qmc: bool) -> int:
    """Return how samples depend on each other, checked."""
    antithetic, qmc = _checks.flag("antithetic", antithetic), _checks.flag("qmc", qmc)
    if not qmc:
        return ANTITHETIC if antithetic else INDEPENDENT
    if antithetic:
        raise ValueError("qmc and antithetic exclude each other; got True for both")
    largest = 2**sobol.LARGEST_BITS
    if samples is not None and (samples > largest or samples & (samples - 1)):
        raise ValueError(
            f"num_samples must be a power of two up to {largest} where qmc=True; got {samples}"
        )
    if cols > sobol.LARGEST_COLS:
        raise ValueError(f"qmc=True takes at most {sobol.LARGEST_COLS} columns; mean has {cols}")
    return SOBOL


def _dims(mean: Tensor, num_samples: int | None) -> Dims:
    """Return what the axes are in a caller's samples [S, ..., D] or [..., D]."""
    shape = tuple(mean.shape)
    return (), () if num_samples is None else (num_samples,), shape[:-1], shape[-1:]
