"""Print the table of kernels/gaussian/README.md: the error of the KL against mpmath, for this
library and for the textbook's formula.

One dimension, mean 0, standard normal prior, float32: `python bench/accuracy.py`.
"""

from __future__ import annotations

import mpmath
import numpy as np
import torch

import latent_kernels as lk

LOGVARS = (
    *(1e-8, 1e-6, 1e-4, -1e-4, 1e-3, 1e-2, -1e-2, 0.1, 0.5),
    *(1.0, -1.0, 1.9, 2.5, -2.5, 10.0, -10.0, 80.0, -80.0),
)


def main() -> None:
    """Print the table in Markdown."""
    print("| logvar | exact KL | ours, ulp | textbook, relative | expm1 form, relative |")
    print("| --- | --- | --- | --- | --- |")
    with mpmath.workdps(50):
        for value in LOGVARS:
            logvar = torch.tensor([[value]], dtype=torch.float32)
            zero = torch.zeros_like(logvar)
            exact_logvar = mpmath.mpf(logvar.item())
            exact = (mpmath.exp(exact_logvar) - 1 - exact_logvar) / 2
            unit = mpmath.mpf(float(np.spacing(np.float32(float(exact)))))
            ours = abs(mpmath.mpf(lk.gaussian_kl(zero, logvar).item()) - exact) / unit
            textbook = -0.5 * (1 + logvar - zero**2 - logvar.exp()).sum().item()
            expm1 = 0.5 * (torch.expm1(logvar) - logvar).sum().item()
            errors = [float(abs(mpmath.mpf(x) - exact) / exact) for x in (textbook, expm1)]
            print(
                f"| {value:g} | {float(exact):.4g} | {float(ours):.2f} "
                f"| {errors[0]:.1e} | {errors[1]:.1e} |"
            )


if __name__ == "__main__":
    main()
