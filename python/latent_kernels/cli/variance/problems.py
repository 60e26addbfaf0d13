"""Problems to profile gradient estimators on, each with its q, its log joint and, where known, the
exact gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch.nn.functional import binary_cross_entropy_with_logits

import latent_kernels as lk
from latent_kernels.cli import digits
from latent_kernels.cli.variance import logistic_regression

Tensor = torch.Tensor
Family = lk.DiagonalGaussian | lk.Bernoulli | lk.Categorical


class Problem(NamedTuple):
    """The arguments of `lk.profile_variance`, and a line that describes the problem."""

    q: Family
    log_joint: Callable[[Tensor], Tensor]
    exact_gradient: tuple[Tensor, ...] | None  # None: unknown, or found by enumeration
    description: str


def quadratic(dims: int = 10, log_evidence: float = -30.0) -> Problem:
    """Return a Gaussian q against a Gaussian posterior, log p(x, z) = log p(x) + log N(z; 0, 1/a),
    with closed forms throughout.

    Gradient of the ELBO: -a mean by the mean, (1 - a sigma^2) / 2 by log sigma^2.
    """
    a = torch.linspace(0.5, 2.0, dims)
    mean, logvar = torch.linspace(-1.0, 1.0, dims), torch.full((dims,), -1.0)
    normalizer = log_evidence + 0.5 * float(torch.log(a / (2 * math.pi)).sum())

    def log_joint(z: Tensor) -> Tensor:
        return normalizer - 0.5 * (a * z * z).sum(-1)

    exact = (-a * mean, 0.5 * (1 - a * logvar.exp()))
    text = f"Gaussian q, {dims} dimensions, against a Gaussian posterior"
    return Problem(lk.DiagonalGaussian(mean, logvar), log_joint, exact, text)


def linear_gaussian(points: int = 64, dims: int = 4) -> Problem:
    """Return points x ~ N(z, I), z ~ N(0, I), whose posteriors are N(x / 2, I / 2).

    q = N(x / 2 + 0.2 eps, 2 I / 3) is close to them. Gradient of the ELBO: x - 2 mean by the mean,
    1/2 - sigma^2 by log sigma^2. Model and variance of q are those of Rainforth et al., "Tighter
    variational bounds are not necessarily better" (2018), sections 4 and 5.1; the means are further
    off than theirs, so that a few hundred gradients show the signal.
    """
    generator = torch.Generator().manual_seed(0)
    x = math.sqrt(2) * torch.randn(points, dims, generator=generator)
    mean = 0.5 * x + 0.2 * torch.randn(points, dims, generator=generator)
    logvar = torch.full((points, dims), math.log(2 / 3))

    def log_joint(z: Tensor) -> Tensor:
        return -0.5 * ((x - z) ** 2 + z * z).sum(-1) - dims * math.log(2 * math.pi)

    exact = (x - 2 * mean, 0.5 - logvar.exp())
    text = f"linear-Gaussian model, {points} points of {dims} dimensions, q close to its optimum"
    return Problem(lk.DiagonalGaussian(mean, logvar), log_joint, exact, text)


def logistic() -> Problem:
    """Return Bayesian logistic regression on the breast-cancer data, at the q from which a fit
    starts.
    """
    model = logistic_regression.load()
    q = model.start()
    text = (
        f"Bayesian logistic regression, breast-cancer data, {q.cols} weights, at the start of the "
        "fit"
    )
    return Problem(q, model.log_joint, model.elbo_gradient(q), text)


class BinaryVAE:
    """A VAE with p(z) = Bernoulli(1/2), p(x|z) = Bernoulli(sigmoid(decoder(z))), q(z|x) =
    Bernoulli(logits = encoder(x)).
    """

    def __init__(self, latent: int = 8, hidden: int = 64, *, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)

        def layer(inputs: int, outputs: int) -> tuple[Tensor, Tensor]:
            weight = torch.randn(inputs, outputs, generator=generator) / math.sqrt(inputs)
            return weight.requires_grad_(), torch.zeros(outputs, requires_grad=True)

        self.encoder, self.hidden, self.output = (
            layer(digits.SIDE**2, latent),
            layer(latent, hidden),
            layer(hidden, 64),
        )
        self.parameters = [*self.encoder, *self.hidden, *self.output]

    def q(self, x: Tensor) -> lk.Bernoulli:
        """Return the posterior of images [B, 64]."""
        weight, bias = self.encoder
        return lk.Bernoulli(x @ weight + bias)

    def log_joint(self, x: Tensor, z: Tensor) -> Tensor:
        """Return log p(x, z) for z [..., B, D], [..., B]."""
        h = torch.tanh((2 * z - 1) @ self.hidden[0] + self.hidden[1])
        pixels = h @ self.output[0] + self.output[1]
        likelihood = -binary_cross_entropy_with_logits(
            pixels, x.expand_as(pixels), reduction="none"
        ).sum(-1)
        return likelihood - z.size(-1) * math.log(2)

    def train(
        self, images: Tensor, *, steps: int, num_pairs: int = 4, batch: int = 64, seed: int = 0
    ) -> None:
        """Maximize the ELBO with Adam: DisARM for the encoder, the ordinary gradient for the
        decoder.
        """
        generator = torch.Generator().manual_seed(seed)
        optimizer = torch.optim.Adam(self.parameters, lr=1e-2)
        for step in range(steps):
            x = images[torch.randint(len(images), (batch,), generator=generator)]
            q = self.q(x)
            offset = step * num_pairs * batch * q.cols
            z = q.sample_antithetic(num_pairs, seed=seed, offset=offset)
            values = self.log_joint(x, z) - q.log_prob(z).detach()
            optimizer.zero_grad()
            (-lk.disarm(q, values, z).mean()).backward()
            optimizer.step()


@functools.cache
def bernoulli_vae(images: int = 4, steps: int = 200) -> Problem:
    """Return the posteriors of held-out digits in a VAE with binary latent variables, early in its
    training.
    """
    data = digits.load()
    model = BinaryVAE()
    model.train(data.train, steps=steps)
    x = data.held_out[:images]
    q = lk.Bernoulli(model.q(x).logits.detach())
    text = (
        f"Bernoulli VAE on handwritten digits, {images} images with {q.cols} binary latents, after "
        f"{steps} steps"
    )
    return Problem(q, lambda z: model.log_joint(x, z), None, text)


def categorical(flowers: int = 6, classes: int = 3) -> Problem:
    """Return which component each of a few irises belongs to, in a Gaussian mixture whose means are
    integrated out.

    x_n | z_n = k ~ N(m_k, s^2), m_k ~ N(0, 1), on standardized measurements; with N_k points in
    component k, a feature contributes -N_k/2 ln(2 pi s^2) - 1/2 ln(1 + N_k/s^2) - [sum x^2 - (sum
    x)^2 / (s^2 + N_k)] / (2 s^2).
    """
    from sklearn.datasets import load_iris

    data = torch.as_tensor(load_iris().data)
    x = ((data - data.mean(0)) / data.std(0))[:: len(data) // flowers][:flowers].float()
    s2 = 0.3

    def log_joint(z: Tensor) -> Tensor:
        one_hot = torch.nn.functional.one_hot(z, classes).to(x.dtype).movedim(-1, -2)  # [S, K, N]
        count, total, square = one_hot.sum(-1, keepdim=True), one_hot @ x, one_hot @ (x * x)
        quadratic = (square - total**2 / (s2 + count)) / (2 * s2)
        feature = (
            -0.5 * count * math.log(2 * math.pi * s2) - 0.5 * torch.log1p(count / s2) - quadratic
        )
        return feature.sum((-2, -1)) - flowers * math.log(classes)

    # Halfway to an assignment: the three components prefer the three species, as a running fit
    # would have it.
    species = torch.arange(flowers) * classes // flowers
    q = lk.Categorical(torch.nn.functional.one_hot(species, classes).float())
    text = f"mixture assignments of {flowers} irises to {classes} components, means integrated out"
    return Problem(q, log_joint, None, text)


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "quadratic": quadratic,
    "linear-gaussian": linear_gaussian,
    "logistic-regression": logistic,
    "bernoulli-vae": bernoulli_vae,
    "categorical": categorical,
}
