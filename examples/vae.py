"""
A variational autoencoder
=========================

One call draws z and computes the KL divergence. Trained on 8 x 8 digits in some ten seconds.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import latent_kernels as lk


class VAE(nn.Module):
    """p(z) = N(0, I), p(x|z) = Bernoulli(logits = decoder(z)), q(z|x) = N(mean(x), e^logvar(x))."""

    def __init__(self, pixels: int = 64, hidden: int = 256, latent: int = 10) -> None:
        super().__init__()

        def mlp(rows: int, columns: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(rows, hidden), nn.SiLU(), nn.Linear(hidden, columns))

        self.encoder, self.decoder = mlp(pixels, 2 * latent), mlp(latent, pixels)

    def elbo(self, x: torch.Tensor, seed: int | None = None) -> torch.Tensor:
        """Return the evidence lower bound of each image, in nats."""
        z, kl = lk.rsample_kl(
            *self.encoder(x).chunk(2, dim=-1), seed=seed
        )  # one pass; backward draws the noise again
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
        bound = model.elbo(held_out, seed=0).mean().item()
        if epoch % 10 == 0 or epoch == epochs:
            print(f"epoch {epoch:3d}: ELBO of held-out images {bound:.2f} nats")
    drawn = torch.sigmoid(model.decoder(lk.normal((8, 10), seed=0))).detach().view(8, 8, 8)
    plt.matshow(torch.cat(list(drawn), 1), cmap="gray_r")
    plt.title("drawn from the prior")
    return bound


if __name__ == "__main__":
    main()
    plt.show()
