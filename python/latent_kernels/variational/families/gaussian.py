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
    """Independent Gaussians N(mean, e^logvar) over the last dimension.

    Natural parameters (mean e^-logvar, -e^-logvar / 2), sufficient statistics (z, z^2).

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean. One of the two may be a number or a 0-d tensor.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    """

    name, names = "gaussian", ("mean", "logvar")

    def __init__(self, mean: Tensor | float, logvar: Tensor | float):
        self._hold(mean, logvar)

    @property
    def mean(self) -> Tensor:
        """[..., D]."""
        return self.parameters[0]

    @property
    def logvar(self) -> Tensor:
        """[..., D]."""
        return self.parameters[1]

    @property
    def mode(self) -> Tensor:
        """The mean, [..., D]."""
        return self.mean

    @property
    def variance(self) -> Tensor:
        """e^logvar, [..., D]."""
        return torch.exp(self.logvar)

    @property
    def stddev(self) -> Tensor:
        """sigma = e^(logvar/2), [..., D]."""
        return torch.exp(0.5 * self.logvar)

    @classmethod
    def from_natural_parameters(cls, linear: Tensor, quadratic: Tensor) -> DiagonalGaussian:
        """The Gaussian with natural parameters (mean / sigma^2, -1 / (2 sigma^2))."""
        logvar = -torch.log(-2 * quadratic)
        return cls(linear * torch.exp(logvar), logvar)

    @classmethod
    def from_mean_parameters(cls, first: Tensor, second: Tensor) -> DiagonalGaussian:
        """The Gaussian with moments E z, E z^2."""
        return cls(first, torch.log(second - first * first))

    def rsample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return reparameterized samples [S, ..., D], or [..., D] for None; see `rsample`."""
        return rsample(
            self.mean, self.logvar, num_samples, seed=seed, offset=offset, generator=generator
        )

    def rsample_kl(
        self,
        num_samples: int | None = None,
        *,
        prior: DiagonalGaussian | None = None,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples, and KL(q || prior), in one pass; None stands for N(0, 1). See
        `latent_kernels.rsample_kl`.
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
            generator=generator,
        )

    def rsample_log_prob(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        path_derivative: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples, and log q of them, in one pass; see `latent_kernels.rsample_log_prob`. For log q
        as a function of any z there is `log_prob`.
        """
        return rsample_log_prob(
            self.mean,
            self.logvar,
            num_samples,
            seed=seed,
            offset=offset,
            generator=generator,
            path_derivative=path_derivative,
        )

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(num_samples, seed=seed, offset=offset, generator=generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, summed over D: [S, ...]."""
        return gaussian_log_prob(self._samples_of(z), self.mean, self.logvar)

    def entropy(self) -> Tensor:
        """The differential entropy 1/2 sum_d [1 + ln 2 pi + logvar] in nats: [...]."""
        return 0.5 * (1 + math.log(2 * math.pi) + wide(self.logvar)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) in nats: [...]. Never negative; see `gaussian_kl`."""
        self._same_family("other", other)
        return gaussian_kl(self.mean, self.logvar, prior_mean=other.mean, prior_logvar=other.logvar)

    def natural_parameters(self) -> tuple[Tensor, Tensor]:
        """(mean e^-logvar, -e^-logvar / 2), [..., D] each."""
        precision = torch.exp(-self.logvar)
        return self.mean * precision, -0.5 * precision

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(z, z^2), [S, ..., D] each."""
        z = self._samples_of(z)
        return z, z * z

    def log_partition(self) -> Tensor:
        """A = 1/2 sum_d [mean^2 e^-logvar + logvar + ln 2 pi]: [...]."""
        mean, logvar = wide(self.mean), wide(self.logvar)
        return 0.5 * (mean**2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(-1)

    def mean_parameters(self) -> tuple[Tensor, Tensor]:
        """(E z, E z^2), [..., D] each."""
        return self.mean, self.mean**2 + torch.exp(self.logvar)
