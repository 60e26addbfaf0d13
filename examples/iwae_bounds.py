"""
Importance-weighted bounds against k
====================================

The bound of k samples grows with k and approaches log p(x), which is known here: z ~ N(0, I),
x ~ N(z, I), and a q that is the prior, far from the posterior N(x / 2, I / 2).
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch

import latent_kernels as lk

D, REPEATS = 8, 2000
x = 1.5 * lk.normal(D, seed=0)
zero = torch.zeros(D)
evidence = float(lk.gaussian_log_prob(x, zero, torch.full((D,), 2.0).log()))


def main(ks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)) -> dict[int, float]:
    """Return the mean bound for each k, over many draws."""
    q = lk.DiagonalGaussian(zero, zero).expand((REPEATS, D))
    bounds, reliable = {}, {}
    for k in ks:
        z, log_q = q.rsample_log_prob(k, seed=1)  # [k, REPEATS, D], [k, REPEATS]
        log_joint = lk.gaussian_log_prob(z, zero, zero) + lk.gaussian_log_prob(x, z, zero)
        log_w = log_joint - log_q
        bounds[k] = lk.importance_bound(log_w).mean().item()
        reliable[k] = lk.effective_sample_size(log_w).mean().item()
        print(f"k = {k:3d}: bound {bounds[k]:7.3f}, effective samples {reliable[k]:5.1f}")
    print(f"log p(x) = {evidence:.3f}")
    plt.semilogx(ks, list(bounds.values()), "o-", base=2, label="bound of k samples")
    plt.axhline(evidence, color="black", label="log p(x)")
    plt.xlabel("k")
    plt.ylabel("nats")
    plt.legend()
    return bounds


if __name__ == "__main__":
    main()
    plt.show()
