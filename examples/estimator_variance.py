"""
Variance against samples
========================

The variance of each estimator of the ELBO's gradient, for a model with binary latents: digits are
sums of 16 patterns that are on or off. The profiler takes any log joint.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import NMF

import latent_kernels as lk

LATENT = 16
digits = load_digits().data / 16
model = NMF(LATENT, init="nndsvda", max_iter=1000, tol=1e-3, random_state=0).fit(digits)
codes = model.transform(digits)
patterns = torch.as_tensor(model.components_ * codes.max(0)[:, None] / 2, dtype=torch.float32)
x = torch.as_tensor(digits[0], dtype=torch.float32)
noise, prior = torch.full((64,), -3.0), torch.full((LATENT,), -1.0)


def log_joint(z: torch.Tensor) -> torch.Tensor:
    """Return log p(x, z) of samples [S, LATENT], [S]."""
    return lk.gaussian_log_prob(x, z @ patterns, noise) + lk.bernoulli_log_prob(z, prior)


def main(repeats: int = 256) -> dict[str, list[float]]:
    """Return the variance of each estimator for each number of samples."""
    q = lk.Bernoulli(torch.zeros(LATENT))
    samples = (2, 4, 8, 16, 32, 64, 128)
    profile = lk.profile_variance(q, log_joint, num_samples=samples, repeats=repeats)
    found = {name: profile.rows(name)["variance"].tolist() for name in profile.estimators}
    for name, variances in found.items():
        plt.loglog(samples, variances, "o-", base=2, label=name)
        print(f"{name:14s} {variances[0]:10.1f} with 2 samples, {variances[-1]:8.2f} with 128")
    plt.xlabel("evaluations of the log joint")
    plt.ylabel("variance of the gradient")
    plt.legend()
    return found


if __name__ == "__main__":
    main()
    plt.show()
