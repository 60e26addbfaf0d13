"""The Gaussian with a diagonal covariance matrix."""

from __future__ import annotations

import math

import torch

from latent_kernels._checks import Seed
from latent_kernels.variational.densities import gaussian_log_prob
from latent_kernels.variational.families.family import Family, wide
from latent_kernels.variational.gaussian import gaussian_kl, rsample, rsample_kl, rsample_log_prob

Tensor = torch.Tensor


class DiagonalGaussian(Family):
    r"""Independent Gaussians N(mean, e^logvar) over the last dimension.

    .. math::
        \log q(z) = -\tfrac12 \sum_d \ln 2\pi + l_d + (z_d - \mu_d)^2 e^{-l_d}

    with mean mu and log-variance l. The natural parameters are (mean e^-logvar, -e^-logvar / 2),
    the sufficient statistics (z, z^2).

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean. One of the two may be a number or a 0-d tensor.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.DiagonalGaussian(torch.ones(3, 2), torch.zeros(3, 2))
        >>> z = q.rsample(5, seed=0)  # q.sample(5, seed=0) is the same without gradient
        >>> torch.equal(z, q.sample(5, seed=0)), q.log_prob(z).shape
        (True, torch.Size([5, 3]))
        >>> z, log_q = q.rsample_log_prob(5, seed=0)  # the same samples, and log q(z)
        >>> z, kl = q.rsample_kl(5, seed=0)  # the same samples, and KL(q || N(0, 1))
        >>> p = lk.DiagonalGaussian(torch.zeros(2), 0.0)
        >>> q.kl(p), q.entropy().shape
        (tensor([1., 1., 1.]), torch.Size([3]))
        >>> same = lk.DiagonalGaussian.from_natural_parameters(*q.natural_parameters())
        >>> also = lk.DiagonalGaussian.from_mean_parameters(*q.mean_parameters())
        >>> torch.equal(same.mean, q.mean), torch.equal(also.logvar, q.logvar)
        (True, True)
        >>> [x.shape for x in q.sufficient_statistics(z)], q.log_partition().shape
        ([torch.Size([5, 3, 2]), torch.Size([5, 3, 2])], torch.Size([3]))

    """

    name, names = "gaussian", ("mean", "logvar")

    def __init__(self, mean: Tensor | float, logvar: Tensor | float):
        self._hold(mean, logvar)

    @property
    def mean(self) -> Tensor:
        """The mean, [..., D]."""
        return self.parameters[0]

    @property
    def logvar(self) -> Tensor:
        """The log-variance, [..., D]."""
        return self.parameters[1]

    @property
    def mode(self) -> Tensor:
        """The mode, which is the mean, [..., D]."""
        return self.mean

    @property
    def variance(self) -> Tensor:
        """The variance e^logvar, [..., D]."""
        return torch.exp(self.logvar)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation e^(logvar/2), [..., D]."""
        return torch.exp(0.5 * self.logvar)

    @classmethod
    def from_natural_parameters(cls, linear: Tensor, quadratic: Tensor) -> DiagonalGaussian:
        """Return the Gaussian with natural parameters (mean / sigma^2, -1 / (2 sigma^2))."""
        logvar = -torch.log(-2 * quadratic)
        return cls(linear * torch.exp(logvar), logvar)

    @classmethod
    def from_mean_parameters(cls, first: Tensor, second: Tensor) -> DiagonalGaussian:
        """Return the Gaussian with the moments E z and E z^2."""
        return cls(first, torch.log(second - first * first))

    def rsample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        antithetic: bool = False,
        qmc: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return reparameterized samples [S, ..., D], or [..., D] where num_samples is None.

        `latent_kernels.rsample` explains the arguments.
        """
        return rsample(
            self.mean,
            self.logvar,
            num_samples,
            seed=seed,
            offset=offset,
            antithetic=antithetic,
            qmc=qmc,
            generator=generator,
        )

    def rsample_kl(
        self,
        num_samples: int | None = None,
        *,
        prior: DiagonalGaussian | None = None,
        seed: Seed = None,
        offset: int = 0,
        antithetic: bool = False,
        qmc: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return reparameterized samples, and KL(q || prior), in one pass.

        The prior None stands for N(0, 1). `latent_kernels.rsample_kl` explains the rest.
        """
        given = (None, None)
        if prior is not None:
            self._same_family("prior", prior)
            given = prior.parameters  # type: ignore[assignment]
        return rsample_kl(
            self.mean,
            self.logvar,
            num_samples,
            prior_mean=given[0],
            prior_logvar=given[1],
            seed=seed,
            offset=offset,
            antithetic=antithetic,
            qmc=qmc,
            generator=generator,
        )

    def rsample_log_prob(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        antithetic: bool = False,
        qmc: bool = False,
        path_derivative: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Return reparameterized samples, and log q(z), in one pass.

        `latent_kernels.rsample_log_prob` explains the arguments; `log_prob` is log q as a function
        of any z.
        """
        return rsample_log_prob(
            self.mean,
            self.logvar,
            num_samples,
            seed=seed,
            offset=offset,
            antithetic=antithetic,
            qmc=qmc,
            generator=generator,
            path_derivative=path_derivative,
        )

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        antithetic: bool = False,
        qmc: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return samples as `rsample` does, without gradient."""
        with torch.no_grad():
            return self.rsample(
                num_samples,
                seed=seed,
                offset=offset,
                antithetic=antithetic,
                qmc=qmc,
                generator=generator,
            )

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) in nats, summed over D, [S, ...]."""
        return gaussian_log_prob(self._samples_of(z), self.mean, self.logvar)

    def entropy(self) -> Tensor:
        """Return the differential entropy 1/2 sum_d (1 + ln 2 pi + logvar) in nats, [...]."""
        return 0.5 * (1 + math.log(2 * math.pi) + wide(self.logvar)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """Return KL(self || other) in nats, [...]; never negative. See `gaussian_kl`."""
        self._same_family("other", other)
        return gaussian_kl(self.mean, self.logvar, prior_mean=other.mean, prior_logvar=other.logvar)

    def natural_parameters(self) -> tuple[Tensor, Tensor]:
        """Return (mean e^-logvar, -e^-logvar / 2), [..., D] each."""
        precision = torch.exp(-self.logvar)
        return self.mean * precision, -0.5 * precision

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return (z, z^2), [S, ..., D] each."""
        z = self._samples_of(z)
        return z, z * z

    def log_partition(self) -> Tensor:
        """Return A = 1/2 sum_d (mean^2 e^-logvar + logvar + ln 2 pi), [...]."""
        mean, logvar = wide(self.mean), wide(self.logvar)
        return 0.5 * (mean**2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(-1)

    def mean_parameters(self) -> tuple[Tensor, Tensor]:
        """Return (E z, E z^2), [..., D] each."""
        return self.mean, self.mean**2 + torch.exp(self.logvar)
