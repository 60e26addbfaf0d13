"""torch.distributions with fused kernels underneath: a Normal, the families as distributions, and
`kl_divergence` between them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import distributions
from torch.distributions import Distribution, Independent, Normal, constraints, register_kl

from latent_kernels.kernels.eager import row_dtype
from latent_kernels.kernels.gaussian.scale_kl import SCALE_KL
from latent_kernels.variational.families import Bernoulli, Categorical, DiagonalGaussian
from latent_kernels.variational.gaussian import rsample_scale
from latent_kernels.variational.gradient_estimators import Family

Tensor = torch.Tensor
_KERNEL_DTYPES = (torch.float32, torch.float64)
_FAMILIES = (DiagonalGaussian, Bernoulli, Categorical)


class FusedNormal(Normal):
    """`torch.distributions.Normal` whose samples and KL divergence come from the fused kernels.

    ``FusedNormal(loc, scale)`` has Normal's arguments and behaviour: existing code changes one
    import. `rsample` and `sample` compute the noise from a seed drawn from torch's default CPU
    generator (so that ``torch.manual_seed`` governs them) and store none of it for backward.
    ``kl_divergence`` with another FusedNormal or Normal keeps its precision where the two are
    close, and is never negative. Second derivatives and forward mode of both differentiate the
    formula in plain torch, with the same noise.

    Other names (`log_prob`, `entropy`, `cdf`, `icdf`, `expand`, ...) are inherited.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.FusedNormal(torch.ones(3, requires_grad=True), torch.ones(3))
        >>> q.rsample((5,)).shape, q.sample().requires_grad
        (torch.Size([5, 3]), False)
        >>> p = torch.distributions.Normal(0.0, 1.0)
        >>> torch.distributions.kl_divergence(q, p).tolist()
        [0.5, 0.5, 0.5]

    """

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Return reparameterized samples of shape ``[*sample_shape, *batch_shape]``."""
        loc, scale, samples = self.loc, self.scale, math.prod(sample_shape)
        if samples == 0:  # an empty result, with a gradient of zeros
            return (loc + scale).expand(self._extended_shape(torch.Size(sample_shape)))
        if loc.dim() == 0:
            loc, scale = loc.reshape(1), scale.reshape(1)
        z = rsample_scale(loc, scale, samples if sample_shape else None)
        if len(sample_shape) < 2 and loc is self.loc:
            return z
        return z.reshape(self._extended_shape(torch.Size(sample_shape)))

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Return samples as `rsample` does, without gradient."""
        with torch.no_grad():
            return self.rsample(sample_shape)


class FamilyDistribution(Distribution):
    """A family as a `torch.distributions.Distribution`: its D variables are one event.

    It has what code written for torch.distributions asks for: `sample(sample_shape)`, `rsample` of
    a DiagonalGaussian, `log_prob`, `entropy`, `expand`, `kl_divergence`. Samples come from a seed
    drawn from torch's default CPU generator, so that ``torch.manual_seed`` governs them. In Pyro it
    takes Pyro's mixin as any distribution of torch does: docs/guides/pyro.md.

    Args:
        family: a DiagonalGaussian, Bernoulli or Categorical; batch_shape is its own, event_shape
            is (D,).
        validate_args: whether `log_prob` refuses values outside the support; None for torch's
            default.

    Raises:
        TypeError: for a family that is none.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.FamilyDistribution(lk.Categorical(torch.zeros(5, 3, 4)))
        >>> q.batch_shape, q.event_shape, q.sample((2,)).shape
        (torch.Size([5]), torch.Size([3]), torch.Size([2, 5, 3]))
        >>> wide = q.expand((7, 5))
        >>> wide.log_prob(wide.sample()).shape, wide.entropy().shape
        (torch.Size([7, 5]), torch.Size([7, 5]))
        >>> lk.FamilyDistribution(lk.DiagonalGaussian(torch.zeros(3), 0.0)).rsample((2,)).shape
        torch.Size([2, 3])

    """

    arg_constraints: ClassVar[dict[str, constraints.Constraint]] = {}  # the family has its checks

    def __init__(self, family: Family, validate_args: bool | None = None):
        if not isinstance(family, Family):
            raise TypeError(
                "family must be a DiagonalGaussian, Bernoulli or Categorical; got "
                f"{type(family).__name__}"
            )
        self.family = family
        super().__init__(
            torch.Size(family.batch_shape), torch.Size((family.cols,)), validate_args=validate_args
        )

    def __repr__(self) -> str:
        """Return the name, and the family's own representation."""
        return f"{type(self).__name__}({self.family!r})"

    @property
    def has_rsample(self) -> bool:  # type: ignore[override]  # an attribute in torch
        """Whether the family is a DiagonalGaussian."""
        return isinstance(self.family, DiagonalGaussian)

    @property
    def support(self) -> constraints.Constraint:
        """The values of an event [D]."""
        if isinstance(self.family, DiagonalGaussian):
            return constraints.real_vector
        if isinstance(self.family, Bernoulli):
            return constraints.independent(constraints.boolean, 1)
        return constraints.independent(constraints.integer_interval(0, self.family.classes - 1), 1)

    @property
    def mean(self) -> Tensor:
        """The mean, ``[*batch_shape, D]``; NaN for a Categorical."""
        return self.family.mean

    @property
    def mode(self) -> Tensor:
        """The most probable value, ``[*batch_shape, D]``."""
        return self.family.mode

    @property
    def variance(self) -> Tensor:
        """The variance, ``[*batch_shape, D]``; NaN for a Categorical."""
        return self.family.variance

    def expand(
        self, batch_shape: Sequence[int], _instance: Distribution | None = None
    ) -> FamilyDistribution:
        """Return the distribution with another batch shape, its parameters broadcast as views."""
        new: FamilyDistribution = self._get_checked_instance(  # type: ignore[no-untyped-call]
            FamilyDistribution, _instance
        )
        FamilyDistribution.__init__(new, self.family.expand(batch_shape), validate_args=False)
        new._validate_args = self._validate_args
        return new

    def sample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Return samples ``[*sample_shape, *batch_shape, D]``, without gradient."""
        with torch.no_grad():
            return self._drawn(self.family.sample, sample_shape)

    def rsample(self, sample_shape: torch.Size | list[int] | tuple[int, ...] = ()) -> Tensor:
        """Return reparameterized samples of the same shape; only a DiagonalGaussian has them."""
        if not isinstance(self.family, DiagonalGaussian):
            raise NotImplementedError(f"a {type(self.family).__name__} has no reparameterization")
        return self._drawn(self.family.rsample, sample_shape)

    def _drawn(self, draw: Callable[[int], Tensor], sample_shape: Sequence[int]) -> Tensor:
        samples = math.prod(sample_shape)
        z = draw(max(samples, 1))[:samples]  # of none, an empty tensor with a gradient of zeros
        return z.reshape(self._extended_shape(torch.Size(sample_shape)))

    def log_prob(self, value: Tensor) -> Tensor:
        """Return log q(value) in nats, ``[*sample_shape, *batch_shape]``; value may broadcast."""
        if self._validate_args and value.numel():  # torch's constraints take nothing empty
            self._validate_sample(value)
        family, own = self.family, (*self.batch_shape, *self.event_shape)
        if value.shape[-len(own) :] != own:
            value = value.expand(torch.broadcast_shapes(value.shape, own))
            family = family.expand(value.shape[-len(own) : -1])
        return family.log_prob(value)

    def entropy(self) -> Tensor:
        """Return the entropy in nats, ``[*batch_shape]``."""
        return self.family.entropy()


def _kl_normal_normal(p: Normal, q: Normal) -> Tensor:
    """Return KL(p || q), element by element; `Independent` sums it."""
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


def _as_family(d: Any) -> Any:
    """Return the family that a distribution is: the one it holds, or that of an Independent of one
    event dimension over a Normal, Bernoulli or Categorical.
    """
    if isinstance(d, FamilyDistribution):
        return d.family
    if isinstance(d, Independent) and d.reinterpreted_batch_ndims == 1:
        if isinstance(d.base_dist, Normal):
            return DiagonalGaussian(d.base_dist.loc, 2 * torch.log(d.base_dist.scale))
        if isinstance(d.base_dist, distributions.Bernoulli):
            return Bernoulli(d.base_dist.logits)
        if isinstance(d.base_dist, distributions.Categorical):
            return Categorical(d.base_dist.logits)
    return d


def _kl_of_families(p: Any, q: Any) -> Tensor:
    """KL(p || q) of two distributions that are families, of the same kind."""
    ours: Any = _as_family(p)
    theirs = _as_family(q)
    if type(ours) not in _FAMILIES or type(ours) is not type(theirs):
        raise NotImplementedError(f"no KL divergence between {p} and {q}")
    kl: Tensor = ours.kl(theirs)
    return kl


for _family in _FAMILIES:
    register_kl(_family, _family)(lambda p, q: p.kl(q))
_PAIRS: tuple[tuple[type, type], ...] = (
    (DiagonalGaussian, Independent),
    (Independent, DiagonalGaussian),
    (FamilyDistribution, FamilyDistribution),
    (FamilyDistribution, Independent),
    (Independent, FamilyDistribution),
)
for _types in _PAIRS:
    register_kl(*_types)(_kl_of_families)
