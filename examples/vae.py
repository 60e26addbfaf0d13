"""A variational autoencoder on handwritten digits: python examples/vae.py (some ten seconds)."""

from __future__ import annotations

import torch
from sklearn.datasets import load_digits
from torch import nn

import latent_kernels as lk


class VAE(nn.Module):
    """p(z) = N(0, I), p(x|z) = Bernoulli(logits = decoder(z)), q(z|x) = N(mean(x), e^logvar(x))."""

    def __init__(self, pixels: int = 64, hidden: int = 256, latent: int = 10) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Linear(pixels, hidden), nn.SiLU(), nn.Linear(hidden, 2 * latent)
        )
        self.decoder = nn.Sequential(
            nn.Linear(latent, hidden), nn.SiLU(), nn.Linear(hidden, pixels)
        )

    def elbo(self, x: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """Return the evidence lower bound of each image, in nats.

        torch.manual_seed governs the noise; a seed fixes it, under torch.compile too.
        """
        mean, logvar = self.encoder(x).chunk(2, dim=-1)
        z, kl = lk.rsample_kl(mean, logvar, seed=seed)  # one pass; backward draws the noise again
        return lk.bernoulli_log_prob(x, self.decoder(z)) - kl


def main(epochs: int = 50) -> float:
    """Train, and return the mean bound of the images that were held out."""
    torch.manual_seed(0)
    images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    held_out, training = images[torch.randperm(len(images))].split([360, len(images) - 360])
    model = VAE()
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for epoch in range(1, epochs + 1):
        for rows in torch.randperm(len(training)).split(64):
            loss = -model.elbo(training[rows]).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            bound = model.elbo(held_out, seed=0).mean().item()
        if epoch % 10 == 0 or epoch == epochs:
            print(f"epoch {epoch:3d}: ELBO of held-out images {bound:.2f} nats")
    return bound


if __name__ == "__main__":
    main()
