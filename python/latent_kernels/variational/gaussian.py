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
from latent_kernels.kernels.gaussian.problem import GAUSSIAN, GAUSSIAN_PATH

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
        generator: a torch.Generator on the CPU, or on mean's GPU, to draw the seed from in place of
            `seed`.

    Returns:
        z of shape [S, ..., D], or [..., D] where num_samples is None, in the inputs' dtype; kl of
        shape [...] in nats, float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), equations 4 and 10.

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
    dims, source, offset = _drawn(mean, num_samples, seed, offset, generator)
    inputs = (mean, logvar, None, prior_mean, prior_logvar)
    z, kl, _ = GAUSSIAN(dims, inputs, (offset,), seed=source, wanted=(True, True, False))
    return z, kl


def rsample(
    mean: Tensor | float,
    logvar: Tensor | float,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
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

    """
    mean, logvar, _, _ = _parameters(mean, logvar, None, None)
    dims, source, offset = _drawn(mean, num_samples, seed, offset, generator)
    inputs = (mean, logvar, None, None, None)
    z: Tensor = GAUSSIAN(dims, inputs, (offset,), seed=source, wanted=(True, False, False))[0]
    return z


def rsample_log_prob(
    mean: Tensor | float,
    logvar: Tensor | float,
    num_samples: int | None = None,
    *,
    seed: Seed = None,
    offset: int = 0,
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
    dims, source, offset = _drawn(mean, num_samples, seed, offset, generator)
    if path_derivative:
        source = shared(source, mean.device)  # for both ops
    inputs = (mean, logvar, None, None, None)
    z, _, log_q = GAUSSIAN(dims, inputs, (offset,), seed=source, wanted=(True, False, True))
    if path_derivative:  # as a function of z alone
        of_z = z, log_q.detach(), logvar.detach()
        log_q = GAUSSIAN_PATH(dims, of_z, (offset,), seed=source)
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
    dims, source, offset = _drawn(mean, num_samples, seed, offset, generator)
    inputs = (mean, None, scale, None, None)
    z: Tensor = GAUSSIAN(dims, inputs, (offset,), seed=source, wanted=(True, False, False))[0]
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
    kl: Tensor = GAUSSIAN(dims, inputs, (0,), seed=0, wanted=(False, True, False))[1]
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
) -> tuple[Dims, SeedSource, int]:
    """Check how many samples are drawn, and from where in the stream; return the axes, the seed
    or what to draw it from, and the offset.
    """
    samples, count = None, mean.numel()
    if num_samples is not None:
        samples = _checks.samples(num_samples)
        count *= samples  # type: ignore[operator]
    return _dims(mean, samples), *_checks.stream(seed, offset, count, mean.device, generator)


def _dims(mean: Tensor, num_samples: int | None) -> Dims:
    """Return what the axes are in a caller's samples [S, ..., D] or [..., D]."""
    shape = tuple(mean.shape)
    return (), () if num_samples is None else (num_samples,), shape[:-1], shape[-1:]
