"""
A VQ autoencoder on digits
==========================

Each image is four codes of 32: twenty bits. The codebook is started by k-means on the first batch
and follows the encoder by moving averages (van den Oord et al., 2017).
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
from sklearn.datasets import load_digits
from torch import nn

import latent_kernels as lk

CODES, PLACES, DIM = 32, 4, 8


class Autoencoder(nn.Module):
    """Images [B, 64] to PLACES codes and back."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, PLACES * DIM))
        self.decoder = nn.Sequential(nn.Linear(PLACES * DIM, 128), nn.ReLU(), nn.Linear(128, 64))
        self.quantizer = lk.VectorQuantizer(CODES, DIM, decay=0.95)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the reconstruction, the commitment loss and the codes."""
        found = self.quantizer(self.encoder(x).view(-1, PLACES, DIM))
        return self.decoder(found.quantized.flatten(1)), found.commitment.mean(), found.codes


def main(epochs: int = 60) -> tuple[float, int]:
    """Return the share of the pixels' variance that is lost, and how many codes are in use."""
    torch.manual_seed(0)
    x = torch.from_numpy(load_digits().data).float() / 16
    model = Autoencoder()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    for _ in range(epochs):
        for batch in x[torch.randperm(len(x))].split(128):
            optimizer.zero_grad()
            seen, commitment, _ = model(batch)
            ((seen - batch).square().mean() + 0.25 * commitment).backward()
            optimizer.step()
    with torch.no_grad():
        seen, _, codes = model.eval()(x)
    lost = float((seen - x).square().mean() / (x - x.mean(0)).square().mean())
    print(f"{lost:.0%} of the variance lost, {len(codes.unique())} of {CODES} codes in use")
    pairs = torch.stack([x[:10], seen[:10]]).view(2, 10, 8, 8).transpose(1, 2)
    plt.matshow(pairs.reshape(16, 80), cmap="gray_r")
    return lost, len(codes.unique())


if __name__ == "__main__":
    main()
    plt.show()
