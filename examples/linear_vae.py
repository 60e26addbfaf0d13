"""
A linear VAE and the exact evidence
===================================

With a linear decoder p(x) is Gaussian and known: probabilistic PCA (Tipping and Bishop, 1999). A
VAE with a linear encoder can reach it, and its bound then equals the evidence.
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import latent_kernels as lk

LATENT = 5
digits = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
x = digits - digits.mean(0)


def exact_evidence() -> float:
    """Return the mean log p(x) at the maximum-likelihood parameters of probabilistic PCA."""
    spectrum = torch.linalg.eigvalsh(x.double().T @ x.double() / len(x)).flip(0)
    noise = spectrum[LATENT:].mean()
    variances = torch.cat([spectrum[:LATENT], noise.expand(len(spectrum) - LATENT)])
    return -0.5 * (torch.log(2 * torch.pi * variances) + 1).sum().item()


def main(steps: int = 1500) -> list[float]:
    """Train on all rows at once, and return the bound at each step."""
    torch.manual_seed(0)
    encoder, decoder = nn.Linear(64, LATENT), nn.Linear(LATENT, 64)
    logvar = torch.zeros(LATENT, requires_grad=True)  # of q(z|x): the same for each x
    noise = torch.zeros(1, requires_grad=True)  # log-variance of p(x|z)
    parameters = [*encoder.parameters(), *decoder.parameters(), logvar, noise]
    optimizer = torch.optim.Adam(parameters, lr=0.03)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    bounds = []
    for _ in range(steps):
        z, kl = lk.rsample_kl(encoder(x), logvar)
        bound = (lk.gaussian_log_prob(x, decoder(z), noise.expand(64)) - kl).mean()
        optimizer.zero_grad()
        (-bound).backward()
        optimizer.step()
        schedule.step()
        bounds.append(bound.item())
    print(f"bound {sum(bounds[-100:]) / 100:.2f}, exact evidence {exact_evidence():.2f} nats")
    plt.plot(bounds, label="bound of the linear VAE")
    plt.axhline(exact_evidence(), color="black", label="exact evidence of the best linear model")
    plt.ylim(exact_evidence() - 25, exact_evidence() + 3)
    plt.legend()
    return bounds


if __name__ == "__main__":
    main()
    plt.show()
