"""Lasso codes on the CPU, in C++ (csrc/lasso/)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from latent_kernels.kernels import _core
from latent_kernels.kernels.extension import DTYPES
from latent_kernels.kernels.lasso import reference
from latent_kernels.kernels.lasso.problem import Outputs, Problem

Tensor = torch.Tensor

_ALGORITHMS = {algorithm.name: algorithm for algorithm in _core.LassoAlgorithm}


class Dictionary(NamedTuple):
    """A dictionary [K, F] as the kernels read it, its columns in whole registers; see
    csrc/lasso/problem.hpp.
    """

    plain: Tensor
    atoms: Tensor
    panels: Tensor
    gram: Tensor

    @property
    def norms(self) -> Tensor:
        """Return ||d_k||^2, [K]."""
        return self.gram.diagonal()


def prepare(dictionary: Tensor) -> Dictionary:
    """Pack contiguous `dictionary` and form its Gram matrix, each entry summed in float64."""
    components, features = dictionary.shape
    rows, cols = (-(-size // 16) * 16 for size in dictionary.shape)
    atoms, panels = (
        dictionary.new_empty((components, cols)),
        dictionary.new_empty((rows // 16, features, 16)),
    )
    gram = dictionary.new_empty((components, rows))
    _core.lasso_prepare(
        dtype=DTYPES[dictionary.dtype],
        threads=torch.get_num_threads(),
        features=features,
        components=components,
        dictionary=dictionary.data_ptr(),
        atoms=atoms.data_ptr(),
        panels=panels.data_ptr(),
        gram=gram.data_ptr(),
    )
    return Dictionary(dictionary, atoms, panels, gram)


def curvature(dictionary: Dictionary, scaled: bool) -> float:
    """Return what the reference's does, by NumPy: torch's own threads do not survive a fork."""
    d = dictionary.plain.numpy()
    if scaled:
        d = d / np.linalg.norm(d.astype(np.float64), axis=1, keepdims=True)
    small = np.ascontiguousarray(d if d.shape[0] <= d.shape[1] else d.T, dtype=np.float64)
    gram = prepare(torch.from_numpy(small)).gram[:, : len(small)]
    return reference.rounded_up(float(np.linalg.eigvalsh(gram.numpy())[-1]))


def forward(problem: Problem, dictionary: Dictionary, outputs: Outputs) -> None:
    """Write the codes and gaps; tensors are contiguous, of one dtype except the float64 `alpha`."""
    (rows, features, components), x, _, alpha, init, algorithm, max_iter, tol, positive = problem
    largest, scaled = float(dictionary.norms.max()), False
    if algorithm != "cd":
        scaled = reference.differ(float(dictionary.norms.min()), largest)
    arguments = _core.LassoProblem(
        dtype=DTYPES[x.dtype],
        algorithm=_ALGORITHMS[algorithm],
        positive=positive,
        rows=rows,
        features=features,
        components=components,
        max_iter=max_iter,
        tolerance=tol,
        largest=largest,
        scaled=scaled,
        curvature=0.0 if algorithm == "cd" else curvature(dictionary, scaled),
        x=x.data_ptr(),
        dictionary=dictionary.atoms.data_ptr(),
        panels=dictionary.panels.data_ptr(),
        gram=dictionary.gram.data_ptr(),
        alpha=alpha.data_ptr(),
        alpha_stride=1,
        init=None if init is None else init.data_ptr(),
    )
    codes, gap = outputs
    _core.lasso_encode(
        arguments, threads=torch.get_num_threads(), codes=codes.data_ptr(), gap=gap.data_ptr()
    )
