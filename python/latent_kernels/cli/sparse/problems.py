"""The problems on which `latent-kernels sparse` compares encoders: codes drawn at random, and
photographs.
"""

from __future__ import annotations

import math
import warnings
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

import latent_kernels as lk

Tensor = torch.Tensor

SIDE = 8  # of a patch
DENSITY = 0.1  # of the drawn codes
DECIBELS = 40.0  # of the signal over the noise
# Patches whose grey values, of 0 to 1, deviate less from their mean than this in the mean square
# are sky and blur.
_FLAT = 0.025
_CODES_TOLERANCE = 1e-3  # of codes while a dictionary is learned
_ATOMS_BATCH = 512
_RANKED = 2000  # rows whose codes show which atoms are used most


class Codes(NamedTuple):
    """The sizes of the problem of drawn codes."""

    features: int
    components: int
    samples: int  # held out
    steps: float = 1.0  # of training, as a share of those in LEARNED


class Photographs(NamedTuple):
    """The sizes of the problem of patches."""

    patches: int = 140_000  # flat ones too, which are left out
    held_out: int = 1000
    components: int = 256
    alpha: float = 0.1
    passes: int = 2  # of dictionary learning
    steps: int = 500  # of training, as in LEARNED
    learning_rate: float = 0.025
    batch_size: int = 128


def draw_dictionary(sizes: Codes, generator: torch.Generator) -> Tensor:
    """Return Gaussian atoms of norm 1 [components, features]."""
    atoms = torch.randn(sizes.components, sizes.features, generator=generator)
    return torch.nn.functional.normalize(atoms, dim=-1)


def draw_codes(dictionary: Tensor, rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return rows x = z D + noise [N, n_features], and their codes z [N, n_components].

    An entry of z is standard normal with probability DENSITY and else 0; the noise is Gaussian,
    DECIBELS below the rows. Source: Gregor and LeCun (2010); Chen, Liu, Wang, Yin (2018),
    section 4.
    """
    n, m = dictionary.shape
    z = torch.randn(rows, n, generator=generator)
    z *= torch.rand(rows, n, generator=generator) < DENSITY
    # The expected square of a row is DENSITY n.
    noise = math.sqrt(DENSITY * n / m) * 10 ** (-DECIBELS / 20)
    return z @ dictionary + noise * torch.randn(rows, m, generator=generator), z


def patches(rows: int, seed: int) -> Tensor:
    """Return grey 8 x 8 patches of scikit-learn's two photographs [N, 64], in random order.

    Their mean is taken away and they have norm 1, after flat ones are left out, so that N may be
    less than `rows`.
    """
    from sklearn.datasets import load_sample_images
    from sklearn.feature_extraction.image import extract_patches_2d

    generator, images = np.random.RandomState(seed), load_sample_images().images
    found = []
    for image in images:
        grey = image @ np.array([0.299, 0.587, 0.114]) / 255  # ITU-R BT.601
        cut = extract_patches_2d(
            grey, (SIDE, SIDE), max_patches=-(-rows // len(images)), random_state=generator
        )
        found.append(cut.reshape(len(cut), -1))
    X: NDArray[np.float64] = np.concatenate(found)
    X -= X.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(X, axis=1, keepdims=True)
    clear = norms[:, 0] > _FLAT * SIDE
    X = generator.permutation(X[clear] / norms[clear])
    return torch.from_numpy(X.astype(np.float32))


def learn_dictionary(x: Tensor, sizes: Photographs, seed: int) -> Tensor:
    """Return atoms [components, n_features] of norm 1 for sparse codes, the most used first."""
    from sklearn.exceptions import ConvergenceWarning

    model = lk.DictionaryLearning(
        sizes.components,
        alpha=sizes.alpha,
        max_iter=sizes.passes,
        batch_size=_ATOMS_BATCH,
        transform_algorithm="cd",
        transform_tol=_CODES_TOLERANCE,
        tol=0.0,
        random_state=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # a few passes are enough for a picture
        use = np.abs(model.fit(x.numpy()).transform(x[:_RANKED].numpy())).mean(axis=0)
    return torch.from_numpy(model.components_[np.argsort(-use, kind="stable")])


# --- how good codes are ---------------------------------------------------------------------------


def nmse(z: Tensor, truth: Tensor) -> float:
    """Return 10 log10(E||z - truth||^2 / E||truth||^2), in dB."""
    error = (z - truth).double().square().sum() / truth.double().square().sum()
    return 10 * math.log10(float(error))


def lasso(x: Tensor, z: Tensor, dictionary: Tensor, alpha: float) -> float:
    """Return the mean over rows of 1/2 ||x - z D||^2 + alpha ||z||_1."""
    wide = z.double()
    residual = x.double() - wide @ dictionary.double()
    return float((0.5 * residual.square().sum(-1) + alpha * wide.abs().sum(-1)).mean())
