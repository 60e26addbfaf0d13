"""torch.distributions with fused kernels underneath, and `kl_divergence` of the families."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch.distributions import Independent, Normal, register_kl

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.gaussian.scale_kl import SCALE_KL
from latent_kernels.variational.families import Bernoulli, Categorical, DiagonalGaussian
from latent_kernels.variational.gaussian import rsample_scale

Tensor = torch.Tensor
_KERNEL_DTYPES = (torch.float32, torch.float64)


class FusedNormal(Normal):
    """`torch.distributions.Normal` whose samples and KL divergence come from the fused kernels.

    ``FusedNormal(loc, scale)`` takes what Normal takes and does what it does: existing code changes
    one import. `rsample` and `sample` make noise from a seed drawn from torch's default CPU
    generator (so that ``torch.manual_seed`` governs them) and keep none of it for backward.
    ``kl_divergence`` with another FusedNormal or Normal keeps its digits where the two are close,
    and is never negative. Second derivatives and forward mode of both differentiate the formula in
    plain torch, with the same noise.

    Other names (`log_prob`, `entropy`, `cdf`, `icdf`, `expand`, ...) are inherited.
    """

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Reparameterized samples of shape [*sample_shape, *batch_shape]."""
        loc, scale, samples = self.loc, self.scale, math.prod(sample_shape)
        if samples == 0:  # nothing, with a gradient of zeros
            return (loc + scale).expand(self._extended_shape(torch.Size(sample_shape)))
        if loc.dim() == 0:
            loc, scale = loc.reshape(1), scale.reshape(1)
        z = rsample_scale(loc, scale, samples if sample_shape else None)
        if len(sample_shape) < 2 and loc is self.loc:
            return z
        return z.reshape(self._extended_shape(torch.Size(sample_shape)))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """As `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


def _kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    """KL(p || q), element by element; `Independent` sums it."""
    given: tuple[Tensor, ...] = p.loc, p.scale, q.loc, q.scale
    shape, dtype = p.loc.shape, p.loc.dtype
    wide = dtype
    if dtype not in _KERNEL_DTYPES or any(x.shape != shape or x.dtype != dtype for x in given[1:]):
        given = torch.broadcast_tensors(*given)
        shape = given[0].shape
        dtype = functools.reduce(torch.promote_types, (x.dtype for x in given))
        dtype = dtype if dtype.is_floating_point else torch.get_default_dtype()
        wide = row_dtype(dtype)
        given = tuple(x.to(wide) for x in given)
    kl: Tensor = SCALE_KL(((), tuple(shape)), given)
    return kl if wide == dtype else kl.to(dtype)


for _p, _q in ((FusedNormal, FusedNormal), (FusedNormal, Normal), (Normal, FusedNormal)):
    register_kl(_p, _q)(_kl_normal_normal)


def _as_family(d: Any) -> DiagonalGaussian:
    """Return the Gaussian that is an Independent of one event dimension over a Normal."""
    if not isinstance(d.base_dist, Normal) or d.reinterpreted_batch_ndims != 1:
        raise NotImplementedError(f"no KL divergence between a DiagonalGaussian and {d}")
    return DiagonalGaussian(d.base_dist.loc, 2 * torch.log(d.base_dist.scale))


for _family in (DiagonalGaussian, Bernoulli, Categorical):
    register_kl(_family, _family)(lambda p, q: p.kl(q))
register_kl(DiagonalGaussian, Independent)(lambda p, q: p.kl(_as_family(q)))
register_kl(Independent, DiagonalGaussian)(lambda p, q: _as_family(p).kl(q))
