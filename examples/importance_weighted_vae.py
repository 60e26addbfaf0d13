"""
An importance-weighted VAE
==========================

Burda, Grosse and Salakhutdinov (2016), with the gradient of Tucker et al. (2019): ten seconds.
"""

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import latent_kernels as lk

LATENT = 20
encoder = nn.Sequential(nn.Linear(64, 200), nn.SiLU(), nn.Linear(200, 2 * LATENT))
decoder = nn.Sequential(nn.Linear(LATENT, 200), nn.SiLU(), nn.Linear(200, 64))
zero = torch.zeros(LATENT)


def log_joint(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
    """Return log p(x, z) of samples z [S, B, LATENT], [S, B]."""
    return lk.bernoulli_log_prob(x, decoder(z)) + lk.gaussian_log_prob(z, zero, zero)


def train(images: torch.Tensor, num_samples: int, epochs: int) -> None:
    """Maximize the bound of `num_samples` samples."""
    optimizer = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=3e-3)
    for _ in range(epochs):
        for rows in torch.randperm(len(images)).split(64):
            x = torch.bernoulli(images[rows])
            q = lk.DiagonalGaussian(*encoder(x).chunk(2, dim=-1))
            z, log_q = q.rsample_log_prob(num_samples, path_derivative=True)
            bound = lk.importance_bound(log_joint(x, z) - log_q, estimator="dreg", z=z)
            optimizer.zero_grad()
            (-bound.mean()).backward()
            optimizer.step()


def main(num_samples: int = 8, epochs: int = 30) -> float:
    """Train, and return the mean bound of 5000 samples of held-out images."""
    torch.manual_seed(0)
    images = torch.as_tensor(load_digits().data, dtype=torch.float32) / 16
    held_out, training = images[torch.randperm(len(images))].split([360, len(images) - 360])
    train(training, num_samples, epochs)
    x = torch.bernoulli(held_out)
    with torch.no_grad():  # in chunks: 5000 samples of 360 images never stand in memory at once
        q = lk.DiagonalGaussian(*encoder(x).chunk(2, dim=-1))
        bound = lk.streamed_bound(q, lambda z: log_joint(x, z), 5000, chunk=50).mean().item()
        pictures = torch.stack([x[:10], torch.sigmoid(decoder(q.mean[:10]))]).view(2, 10, 8, 8)
    plt.matshow(pictures.transpose(1, 2).reshape(16, 80), cmap="gray_r")
    plt.title("held-out images, and what the decoder makes of their codes")
    print(f"trained with {num_samples} samples: log p(x) of held-out images >= {bound:.2f} nats")
    return bound


if __name__ == "__main__":
    main()
    plt.show()
