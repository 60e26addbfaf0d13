"""Lasso codes on the CPU, in C++ (csrc/lasso.hpp)."""

from __future__ import annotations

import torch

from latent_kernels import _core
from latent_kernels.kernels.lasso import reference
from latent_kernels.kernels.noise.cpp_cpu import TYPE_CODES

Tensor = torch.Tensor

ALGORITHMS = {"ista": 0, "fista": 1, "cd": 2}  # csrc/kernels.hpp, enum LassoAlgorithm
WIDTH = 16  # columns are padded to whole registers of the widest build


def encode(
    x: Tensor,
    dictionary: Tensor,
    alpha: Tensor,
    codes: Tensor,
    gap: Tensor,
    algorithm: str,
    max_iter: int,
    tol: float,
    positive: bool,
) -> None:
    """As the reference's; every tensor contiguous, of one dtype but for the float64 `alpha`."""
    components, features = dictionary.shape
    kind, threads = TYPE_CODES[x.dtype], torch.get_num_threads()
    padded = _padded(dictionary)
    panels = padded[:, :features].reshape(-1, WIDTH, features).transpose(1, 2).contiguous()
    gram = x.new_empty((components, padded.size(0)))
    _core.lasso_gram(kind, threads, features, components, padded.data_ptr(), panels.data_ptr(), gram.data_ptr())
    # the gap's allowance for rounding needs the largest ||d_k||^2, the gradient's step the largest eigenvalue
    bound = float(gram.diagonal().max()) if algorithm == "cd" else reference.curvature(dictionary)
    _core.lasso_encode(
        kind,
        threads,
        ALGORITHMS[algorithm],
        positive,
        *x.shape,
        components,
        max_iter,
        tol,
        bound,
        *(tensor.data_ptr() for tensor in (x, padded, panels, gram, alpha, codes, gap)),
    )


def _padded(x: Tensor) -> Tensor:
    """X within zeros, both sizes rounded up to whole registers."""
    rows, cols = (-(-size // WIDTH) * WIDTH for size in x.shape)
    out = x.new_zeros((rows, cols))
    out[: x.size(0), : x.size(1)] = x
    return out
