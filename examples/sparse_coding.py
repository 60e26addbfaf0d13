"""
Sparse codes of image patches
=============================

Learns a dictionary, codes with it, and trains an encoder that codes almost as well.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.datasets import load_sample_images
from sklearn.feature_extraction.image import extract_patches_2d

import latent_kernels as lk

ALPHA = 0.1  # weight of the L1 norm


def patches(count: int, side: int = 8) -> np.ndarray:
    """Return patches of two photographs, their mean taken away, of norm 1, [N, side^2]."""
    grey = [image.mean(-1) / 255 for image in load_sample_images().images]
    cut = [extract_patches_2d(x, (side, side), max_patches=count, random_state=0) for x in grey]
    X = np.concatenate(cut).reshape(-1, side * side)
    X -= X.mean(1, keepdims=True)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    clear = norms[:, 0] > 0.2  # not sky and blur
    return np.random.default_rng(0).permutation((X[clear] / norms[clear]).astype(np.float32))


def main(count: int = 4000, atoms: int = 128, layers: int = 4, steps: int = 60) -> float:
    """Train, and return how far the encoder's loss is from the least one, relative to zeros'."""
    held_out, training = np.split(patches(count), [500])
    model = lk.MiniBatchDictionaryLearning(atoms, alpha=ALPHA, max_iter=4, random_state=0)
    D = torch.from_numpy(model.fit(training).components_)
    x = torch.from_numpy(held_out)
    codes, gap = lk.sparse_encode(x, D, alpha=ALPHA, algorithm="cd", tol=1e-6, return_gap=True)
    print(f"{(codes != 0).double().mean():.1%} of a code is not 0; duality gap {gap.max():.1e}")

    def loss(z: torch.Tensor) -> float:
        return float((0.5 * (x - z @ D).square().sum(-1) + ALPHA * z.abs().sum(-1)).mean())

    encoder = lk.LISTA.from_dictionary(D, ALPHA, layers)
    lk.train_encoder(
        encoder, torch.from_numpy(training), dictionary=D, alpha=ALPHA, max_steps=steps
    )
    with torch.no_grad():
        least, ours = loss(codes), loss(encoder.eval()(x))
    share = (ours - least) / (loss(torch.zeros_like(codes)) - least)
    print(f"{layers} layers come within {share:.2%} of the least loss")
    mosaic = model.components_[:64].reshape(8, 8, 8, 8).transpose(0, 2, 1, 3)
    plt.matshow(mosaic.reshape(64, 64), cmap="gray")
    plt.title("64 of the atoms")
    return share


if __name__ == "__main__":
    main()
    plt.show()
