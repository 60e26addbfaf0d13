"""Show that an installed package works: `python bench/smoke.py`, with nothing but the package and
its dependencies. `make wheel` and cibuildwheel run it on every wheel.
"""

from __future__ import annotations

import numpy as np
import torch

import latent_kernels as lk
from latent_kernels.kernels import _core, backends


def main() -> None:
    """Run each family of compiled kernels once, and check its results."""
    builds = _core.simd_builds()
    cpp = "cpp" if builds else "reference"
    for op, names in backends.BACKENDS.items():
        expected = cpp if names[0] == "cpp" else names[0]
        assert backends.backend_name(op, torch.device("cpu")) == expected

    mean = torch.linspace(-1, 1, 60).reshape(3, 20).requires_grad_()
    z, kl = lk.rsample_kl(mean, torch.zeros(3, 20), 500, seed=1)
    (gradient,) = torch.autograd.grad(kl.sum(), mean)
    assert torch.allclose(gradient, mean.detach())
    assert torch.allclose(z.detach().mean(0), mean.detach(), atol=0.25)
    assert torch.equal(lk.normal(7, seed=3, offset=2), lk.normal(9, seed=3)[2:])

    rows = np.concatenate([np.eye(4) - 5, np.eye(4) + 5])
    labels = lk.GaussianMixture(2, covariance_type="diag", random_state=0).fit(rows).predict(rows)
    assert len(set(labels[:4])) == len(set(labels[4:])) == 1
    assert labels[0] != labels[4]

    code, gap = lk.sparse_encode(torch.eye(4), torch.eye(4), alpha=0.25, return_gap=True)
    assert torch.allclose(code, 0.75 * torch.eye(4))
    assert gap.max() < 1e-4
    print(f"latent-kernels {lk.__version__} works on torch {torch.__version__}: {builds}")


if __name__ == "__main__":
    main()
