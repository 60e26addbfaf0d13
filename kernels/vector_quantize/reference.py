"""Vector quantization in plain torch, on any device. README.md has the formulas.

Scores are computed for some rows at a time, so that no N x C matrix is stored.
"""

from __future__ import annotations

import torch

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.vector_quantize.problem import (
    Assigned,
    AssignProblem,
    Gradients,
    Outputs,
    Problem,
)

Tensor = torch.Tensor
_SCORES = 1 << 22  # elements of the scores in memory


def _compute(x: Tensor) -> Tensor:
    """Return x in the dtype of the computation: float32 for half precision."""
    return x.to(row_dtype(x.dtype))


def _canonical(problem: AssignProblem | Problem) -> tuple[Tensor, Tensor]:
    """Return z [G, N, D] and the codebook [G, C, D]."""
    groups, rows, codes, cols = problem.sizes
    z, codebook = problem.z, problem.codebook
    return z.reshape(groups, rows, cols), codebook.reshape(groups, codes, cols)


def _nearest(z: Tensor, codebook: Tensor) -> Tensor:
    """Return the codes of rows [n, D], -1 for none."""
    scores = torch.addmm(-0.5 * codebook.square().sum(-1), z, codebook.T)
    scores = scores.nan_to_num(-torch.inf, torch.inf, -torch.inf)
    best = scores.amax(-1, keepdim=True)
    first = (scores == best).to(torch.uint8).argmax(-1)  # of a maximum, argmax gives the first
    return torch.where(best[:, 0] > -torch.inf, first, -1)


def _add_rows(codes: Tensor, values: Tensor, count: int) -> Tensor:
    """Return the sum of each code's rows of values [G, N, D]; those of code -1 are left out."""
    groups, _, cols = values.shape
    sums = values.new_zeros(groups, count + 1, cols)
    for total, own, rows in zip(sums, codes, values, strict=True):
        total.index_add_(0, own + 1, rows)
    return sums[:, 1:]


def assign(problem: AssignProblem, outputs: Assigned) -> None:
    """Write the codes, their counts and their sums."""
    groups, rows, count, _ = problem.sizes
    z, codebook = (_compute(x) for x in _canonical(problem))
    codes = outputs.codes.view(groups, rows)
    step = max(_SCORES // count, 1)
    for group in range(groups):
        for n in range(0, rows, step):
            codes[group, n : n + step] = _nearest(z[group, n : n + step], codebook[group])
    ones = torch.ones_like(codes).unsqueeze(-1)
    outputs.counts.copy_(_add_rows(codes, ones, count).reshape(outputs.counts.shape))
    outputs.sums.copy_(_add_rows(codes, z, count).reshape(outputs.sums.shape))


def chosen(problem: Problem) -> Tensor:
    """Return the codes' rows of the codebook, NaN where a row has no code: [G, N, D]."""
    groups, rows, _, cols = problem.sizes
    _, codebook = _canonical(problem)
    codes = problem.codes.reshape(groups, rows, 1)
    found = codebook.gather(1, codes.clamp(min=0).expand(-1, -1, cols))
    return torch.where(codes < 0, torch.nan, found)


def formula(problem: Problem, wanted: Outputs) -> Outputs:
    """Return the outputs, to be differentiated."""
    z, _ = _canonical(problem)
    e = chosen(problem)
    return Outputs(
        e.detach() + (z - z.detach()),
        (z - e.detach()).square().sum(-1),
        (z.detach() - e).square().sum(-1),
    )


def forward(problem: Problem, outputs: Outputs) -> None:
    """Write the codes' rows of the codebook and the squared distances to them."""
    e = chosen(problem)
    if outputs.quantized is not None:
        outputs.quantized.copy_(e.reshape(outputs.quantized.shape))
    distance = (_compute(_canonical(problem)[0]) - _compute(e)).square().sum(-1)
    if problem.sizes[-1] == 0:
        distance[problem.codes.reshape(distance.shape) < 0] = torch.nan
    for out in (outputs.commitment, outputs.codebook_loss):
        if out is not None:
            out.copy_(distance.reshape(out.shape))


def backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write the gradients of z and of the codebook."""
    groups, rows, count, _ = problem.sizes
    z = _compute(_canonical(problem)[0])
    difference = z - _compute(chosen(problem))
    if gradients.z is not None:
        total = torch.zeros_like(z)
        if upstream.quantized is not None:
            total += upstream.quantized.reshape(z.shape)
        if upstream.commitment is not None:
            total += 2 * upstream.commitment.reshape(groups, rows, 1) * difference
        gradients.z.copy_(total.reshape(gradients.z.shape))
    if gradients.codebook is not None:
        if upstream.codebook_loss is None:
            gradients.codebook.zero_()
            return
        terms = -2 * upstream.codebook_loss.reshape(groups, rows, 1) * difference
        codes = problem.codes.reshape(groups, rows)
        found = _add_rows(codes, terms, count)
        gradients.codebook.copy_(found.reshape(gradients.codebook.shape))
