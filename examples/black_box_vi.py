"""
Black-box variational inference
===============================

The log joint is only evaluated, never differentiated: some ten seconds.
Bayesian logistic regression, p(y = 1 | w) = sigmoid(<x, w>), w ~ N(0, I), q(w) = N(mean, e^logvar).
Ranganath, Gerrish and Blei, "Black box variational inference" (2014).
"""

from __future__ import annotations

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from sklearn.datasets import load_breast_cancer

import latent_kernels as lk

data, classes = (torch.as_tensor(a) for a in load_breast_cancer(return_X_y=True))
x = F.pad((data - data.mean(0)) / data.std(0, correction=0), (0, 1), value=1.0)  # and an intercept
signed = ((2 * classes[:, None] - 1) * x).float()  # <signed, w> > 0: w says the right class


def log_joint(w: torch.Tensor) -> torch.Tensor:
    """Return log p(y, w) up to a constant, [S, D] -> [S]."""
    return F.logsigmoid(w @ signed.T).sum(-1) - 0.5 * w.square().sum(-1)


def fit(
    control_variate: str = "leave_one_out", num_samples: int = 64, steps: int = 2000, seed: int = 0
) -> lk.DiagonalGaussian:
    """Return q with the parameters averaged over the last half of the steps."""
    mean = torch.zeros(signed.size(1), requires_grad=True)
    logvar = torch.full_like(mean, -3.0, requires_grad=True)
    optimizer = torch.optim.Adam([mean, logvar], lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    average = torch.zeros(2, len(mean))
    for step in range(steps):
        q = lk.DiagonalGaussian(mean, logvar)
        with torch.no_grad():  # no gradient of the model is needed
            w = q.sample(num_samples, seed=seed, offset=step * num_samples * len(mean))
            values = log_joint(w) - q.log_prob(w)
        elbo = lk.score_function_expectation(q, values, w, control_variate=control_variate)
        optimizer.zero_grad()
        (-elbo).backward()
        optimizer.step()
        schedule.step()
        if step >= steps // 2:
            average += torch.stack([mean, logvar]).detach() / (steps - steps // 2)
    return lk.DiagonalGaussian(*average)


if __name__ == "__main__":
    q = fit()
    right = (signed @ q.mean > 0).double().mean().item()
    plt.errorbar(range(31), q.mean, 2 * q.stddev, fmt="o")
    plt.title("posterior means of the weights, and two standard deviations")
    print(f"the posterior mean classifies {right:.1%} of {len(signed)} tumours correctly")
    plt.show()
