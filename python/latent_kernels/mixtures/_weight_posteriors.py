"""Posteriors of mixture weights: a truncated Dirichlet process, and a Dirichlet distribution.

Each is a class without state over `Concentration`, the parameters of the posterior:

| | prior | posterior |
| --- | --- | --- |
| `StickBreaking` | v_k ~ Beta(1, g) | v_k ~ Beta(a_k, b_k): (a, b) |
| `DirichletWeights` | pi ~ Dirichlet(g, ..., g) | Dirichlet(a): (a,) |

Sticks give weights pi_k = v_k prod_(j<k) (1 - v_j).

Source: Blei and Jordan, "Variational inference for Dirichlet process mixtures" (2006); Bishop,
"Pattern recognition and machine learning" (2006), section 10.2.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import betaln, digamma, gammaln

Floats = NDArray[np.float64]
Concentration = tuple[Floats, ...]  # arrays [K]


class StickBreaking:
    """Sticks of a truncated Dirichlet process."""

    @staticmethod
    def posterior(counts: Floats, prior: float) -> Concentration:
        """Return the posterior given the weight of each component [K]."""
        behind = np.append(np.cumsum(counts[::-1])[-2::-1], 0.0)
        return 1.0 + counts, prior + behind

    @staticmethod
    def expected_logs(concentration: Concentration) -> Floats:
        """Return E ln pi_k [K]."""
        a, b = concentration
        whole = digamma(a + b)
        rest = np.append(0.0, np.cumsum(digamma(b) - whole)[:-1])
        result: Floats = digamma(a) - whole + rest
        return result

    @staticmethod
    def means(concentration: Concentration) -> Floats:
        """Return E pi_k [K], scaled to sum 1."""
        a, b = concentration
        weights = a / (a + b) * np.append(1.0, np.cumprod(b / (a + b))[:-1])
        result: Floats = weights / weights.sum()
        return result

    @staticmethod
    def log_norm(concentration: Concentration) -> float:
        """Return the logarithm of the density's normalizing constant."""
        return -float(betaln(*concentration).sum())

    @staticmethod
    def divergence(concentration: Concentration, prior: float) -> float:
        """Return KL(posterior || prior) in nats."""
        a, b = concentration
        terms = (a - 1) * digamma(a) + (b - prior) * digamma(b)
        terms -= (a + b - 1 - prior) * digamma(a + b)
        return float((betaln(1.0, prior) - betaln(a, b) + terms).sum())


class DirichletWeights:
    """Weights with a symmetric Dirichlet prior."""

    @staticmethod
    def posterior(counts: Floats, prior: float) -> Concentration:
        """Return the posterior given the weight of each component [K]."""
        return (prior + counts,)

    @staticmethod
    def expected_logs(concentration: Concentration) -> Floats:
        """Return E ln pi_k [K]."""
        (a,) = concentration
        result: Floats = digamma(a) - digamma(a.sum())
        return result

    @staticmethod
    def means(concentration: Concentration) -> Floats:
        """Return E pi_k [K]."""
        (a,) = concentration
        result: Floats = a / a.sum()
        return result

    @staticmethod
    def log_norm(concentration: Concentration) -> float:
        """Return the logarithm of the density's normalizing constant."""
        (a,) = concentration
        return float(gammaln(a.sum()) - gammaln(a).sum())

    @staticmethod
    def divergence(concentration: Concentration, prior: float) -> float:
        """Return KL(posterior || prior) in nats."""
        (a,) = concentration
        expected_logs = digamma(a) - digamma(a.sum())
        norms = DirichletWeights.log_norm((a,)) - DirichletWeights.log_norm(
            (np.full(len(a), prior),)
        )
        return norms + float((a - prior) @ expected_logs)


WEIGHTS: dict[str, type[StickBreaking] | type[DirichletWeights]] = {
    "dirichlet_process": StickBreaking,
    "dirichlet_distribution": DirichletWeights,
}
