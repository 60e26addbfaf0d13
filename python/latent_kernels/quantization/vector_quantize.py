"""The nearest code of each row: quantized rows, losses, and the codes' sufficient statistics."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from latent_kernels import _checks
from latent_kernels.kernels.vector_quantize.problem import ASSIGN, QUANTIZE

Tensor = torch.Tensor
Dims = tuple[tuple[int, ...], ...]


class Quantized(NamedTuple):
    """What `vector_quantize` returns."""

    codes: Tensor
    quantized: Tensor
    commitment: Tensor
    codebook_loss: Tensor
    counts: Tensor
    sums: Tensor


def vector_quantize(z: Tensor, codebook: Tensor) -> Quantized:
    r"""Return the nearest code of each row, with the losses and statistics that train a codebook.

    .. math::
        k_n = \arg\min_k \lVert z_n - e_k \rVert^2
            = \arg\max_k \; z_n \cdot e_k - \tfrac12 \lVert e_k \rVert^2

    The lowest k of equally near ones. It is the E-step of hard EM for a mixture of spherical
    Gaussians with equal weights, and `counts` and `sums` are its sufficient statistics: the M-step,
    e_k = sums_k / counts_k, is an iteration of k-means, and a moving average of both is how VQ-VAEs
    learn a codebook. The N x K distances are never stored.

    Scores are computed by the second form, as matrix products are: of two codes whose distances
    differ by less than rounding, about ``D eps |z| |e|``, either may be chosen. The distances that
    are returned are sums of (z - e)^2, in which nothing cancels. Codes and statistics have the same
    bits for every number of threads and instruction set, and on a GPU.

    Gradients: that of `quantized` passes to z as it is (straight-through), and `commitment` has
    one of z alone, 2 (z - e), `codebook_loss` one of the codebook alone, 2 (e - z) summed over the
    code's rows. Second derivatives and forward mode differentiate the formula in plain torch.

    Args:
        z: [..., D], float32, float64, bfloat16 or float16.
        codebook: e, [K, D] with K >= 1; or [H, K, D] for z of shape [H, ..., D]: a codebook for
            each of H heads. Both are converted to the dtype that they promote to; half precision
            is computed in float32.

    Returns:
        A named tuple:

        - codes [...], int64. A row gets -1 if no score is a number above -infinity, as one that
          holds NaN; its quantized row and its distances are NaN, and no statistic counts it.
        - quantized [..., D], the codes' rows of the codebook, bit for bit.
        - commitment [...], \|z - e\|^2 of each row; float32 for half precision.
        - codebook_loss [...], the same numbers.
        - counts [K] or [H, K], int64, the number of rows of each code.
        - sums [K, D] or [H, K, D], the sum of each code's rows, accumulated in float64; float32
          for half precision. Counts and sums have no gradient.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        van den Oord, Vinyals, Kavukcuoglu, "Neural discrete representation learning" (2017),
        equations 1 to 3; Celeux, Govaert, "A classification EM algorithm for clustering and two
        stochastic versions" (1992).

    Example:
        >>> import torch, latent_kernels as lk
        >>> z = torch.tensor([[0.0, 1.0], [3.0, 3.5], [0.0, 0.0]])
        >>> found = lk.vector_quantize(z, torch.tensor([[0.0, 0.0], [3.0, 3.0]]))
        >>> found.codes, found.commitment
        (tensor([0, 1, 0]), tensor([1.0000, 0.2500, 0.0000]))
        >>> found.counts, found.sums
        (tensor([2, 1]), tensor([[0.0000, 1.0000],
                [3.0000, 3.5000]]))

    """
    (z, codebook), dims = checked(z, codebook)
    codes, counts, sums = ASSIGN(dims, (z, codebook))
    quantized, commitment, codebook_loss = QUANTIZE(dims, (z, codebook, codes))
    return Quantized(codes, quantized, commitment, codebook_loss, counts, sums)


def checked(z: Any, codebook: Any) -> tuple[list[Tensor], Dims]:
    """Return z and the codebook in one dtype, and the dimensions of their axes."""
    _checks.float_tensor("codebook", codebook)
    given, _ = _checks.together(z=z, codebook=codebook)
    tensors: list[Tensor] = given  # type: ignore[assignment]
    z, codebook = tensors
    if codebook.dim() not in (2, 3) or codebook.size(-2) < 1:
        raise ValueError(
            f"codebook must have shape [K, D] or [H, K, D] with K >= 1; got {tuple(codebook.shape)}"
        )
    heads, cols = tuple(codebook.shape[:-2]), codebook.size(-1)
    if z.dim() <= len(heads) or z.size(-1) != cols or tuple(z.shape[: len(heads)]) != heads:
        wanted = f"[{', '.join(map(str, (*heads, '...', cols)))}]"
        raise ValueError(
            f"z must have shape {wanted} for a codebook of shape {tuple(codebook.shape)}; "
            f"got {tuple(z.shape)}"
        )
    return tensors, (heads, tuple(z.shape[len(heads) : -1]), (codebook.size(-2),), (cols,))
