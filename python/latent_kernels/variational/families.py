"""Mean-field exponential families: samples, densities, scores, and their exponential-family view.

A family holds its parameters [..., D] (Categorical: [..., D, K]); leading dimensions are a batch,
and everything is summed over D. With natural parameters eta, sufficient statistics phi and base
measure 1,

    log p(z) = sum_d <eta_d, phi(z_d)> - A(eta),  E phi(z) = grad A(eta),  score = phi(z) - grad A.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.nn.functional as F

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.eager import plain, row_dtype
from latent_kernels.kernels.families.problem import BERNOULLI, CATEGORICAL
from latent_kernels.kernels.gaussian.reference import log1p_less_x, psi_near
from latent_kernels.kernels.score import reference
from latent_kernels.variational.densities import gaussian_log_prob
from latent_kernels.variational.gaussian import gaussian_kl, rsample, rsample_kl, rsample_log_prob

Tensor = torch.Tensor
Self = TypeVar("Self", bound="Family")
_CERTAIN = 1000.0  # of a logit beyond this, e^-|l| is 0 in every dtype


def _wide(x: Tensor) -> Tensor:
    """Half precision is computed and summed in float32."""
    return x.to(row_dtype(x.dtype))


def _softplus(x: Tensor) -> Tensor:
    """ln(1 + e^x); by torch's threshold of 20 it would lack e^-x, which are digits of float64."""
    return F.softplus(x, threshold=40)


def _probabilities(name: str, p: Tensor, most: float = math.inf) -> Tensor:
    """Return probabilities in a floating dtype, one-hot vectors of integers too, refusing values
    outside [0, most] where looking costs no synchronization.
    """
    if isinstance(p, Tensor) and not p.is_floating_point() and not p.is_complex():
        p = p.to(torch.get_default_dtype())
    _checks.float_tensor(name, p)
    if p.device.type == "cpu" and plain(p) and p.numel():
        low, high = (x.item() for x in p.detach().aminmax())
        if low < 0 or high > most:
            raise ValueError(f"{name} must hold values in [0, {most}]; got {low} to {high}")
    return p


def _link(function: Callable[[Tensor], Tensor], p: Tensor, largest: float | None = None) -> Tensor:
    """Return ln p or logit p, with gradient 0 at the ends, p = 0 and above `largest`.

    Saturated sigmoids and masked classes lie there; the infinite slope would make NaN of the 0 that
    comes back to them.
    """
    limits = torch.finfo(p.dtype)
    inside = function(p.clamp(limits.tiny * limits.eps, largest))  # from the least number above 0
    return inside + (function(p.detach()) - inside.detach())


def _bernoulli_logits(name: str, p: Tensor) -> Tensor:
    p = _probabilities(name, p, 1)
    return _link(torch.logit, p, 1 - torch.finfo(p.dtype).eps / 2)


def _categorical_logits(name: str, p: Tensor) -> Tensor:
    return _link(torch.log, _probabilities(name, p))


def _one_of(
    logits: Tensor | None, probs: Tensor | None, of_probs: Callable[[str, Tensor], Tensor]
) -> Tensor:
    """Return logits, given as such or as probabilities."""
    if probs is None and logits is not None:
        return logits
    if probs is None or logits is not None:
        got = "neither" if probs is None else "both"
        raise ValueError(f"either logits or probs must be given; got {got}")
    return of_probs("probs", probs)


class Family:
    """What the families share: a batch shape, a number of latent dimensions, parameters in their
    order.
    """

    name: str
    names: tuple[str, ...]  # of the parameters
    classes = 0

    parameters: tuple[Tensor, ...]
    batch_shape: tuple[int, ...]
    cols: int

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parameters[0].device

    @property
    def dtype(self) -> torch.dtype:
        """The parameters' dtype."""
        return self.parameters[0].dtype

    def __repr__(self) -> str:
        """Return the name, the parameters' shapes, their dtype and device."""
        shapes = (
            f"{name}: {tuple(x.shape)}" for name, x in zip(self.names, self.parameters, strict=True)
        )
        return f"{type(self).__name__}({', '.join(shapes)}, {self.dtype}, {self.device})"

    def expand(self: Self, batch_shape: Sequence[int]) -> Self:
        """Return the family with its parameters broadcast to another batch shape, as views.

        Args:
            batch_shape: what the leading dimensions become; D (and K) stay.

        Raises:
            ValueError: where the batch shape does not broadcast to it.

        """
        shape, own = tuple(batch_shape), len(self.batch_shape)
        if _checks.broadcast_shape(self.batch_shape, shape) != shape:
            raise ValueError(
                f"batch_shape must be one that {self.batch_shape} broadcasts to; got {shape}"
            )
        return type(self)(*(x.expand(*batch_shape, *x.shape[own:]) for x in self.parameters))

    def to(self: Self, *args: Any, **kwargs: Any) -> Self:
        """Return the family with parameters of another dtype or on another device: what
        `torch.Tensor.to` takes.
        """
        return type(self)(*(x.to(*args, **kwargs) for x in self.parameters))

    def _hold(self, *parameters: Tensor | float) -> None:
        """Check the parameters and take the shapes from them."""
        names = self.names
        given, _ = _checks.parameters(dict(zip(names, parameters, strict=True)))
        held: tuple[Tensor, ...] = tuple(x for x in given if x is not None)
        if len(held) > 1 and held[0].shape != held[1].shape:
            shape = _checks.broadcast(**dict(zip(names, held, strict=True)))
            held = tuple(x.expand(shape) for x in held)
        self.parameters = held
        shape = tuple(held[0].shape[:-1]) if self.classes else tuple(held[0].shape)
        self.batch_shape, self.cols = shape[:-1], shape[-1]

    def _samples_of(self, z: Tensor) -> Tensor:
        """Samples whose trailing shape is that of q's elements, in the dtype they are computed
        with.
        """
        shape = (*self.batch_shape, self.cols)
        if not isinstance(z, Tensor):
            raise TypeError(f"z must be a torch.Tensor; got {type(z).__name__}")
        if tuple(z.shape[max(z.dim() - len(shape), 0) :]) != shape:
            raise ValueError(
                f"z must have shape [S, ..., D] ending in {shape}; got {tuple(z.shape)}"
            )
        if z.device != self.device:
            raise ValueError(f"z must be on the device of q, {self.device}; got {z.device}")
        if self.classes:
            if z.dtype not in (torch.int64, torch.int32, torch.int16, torch.uint8, torch.int8):
                raise TypeError(f"z must hold classes as integers; got {z.dtype}")
            return z.long()
        return z if z.dtype == self.dtype else z.to(self.dtype)

    def _same_family(self, name: str, other: object) -> None:
        """`other` is of the same kind, with parameters that broadcast with these."""
        if not isinstance(other, type(self)):
            raise TypeError(f"{name} must be a {type(self).__name__}; got {type(other).__name__}")
        if other.classes != self.classes:
            raise ValueError(
                f"{name} must have {self.classes} classes, as q has; got {other.classes}"
            )
        _checks.device_of(name, other.parameters[0], "q", self.parameters[0])
        ours, theirs = (*self.batch_shape, self.cols), (*other.batch_shape, other.cols)
        if _checks.broadcast_shape(ours, theirs) is None:
            raise ValueError(
                f"{name} must have a shape that broadcasts with that of q, {ours}; got {theirs}"
            )

    def _refuse_outside(self, z: Tensor, inside: Tensor, support: str) -> None:
        """Raises for samples outside the support where looking costs no synchronization."""
        if z.device.type == "cpu" and plain(z) and not bool(inside.all()):
            low, high = z[~inside].min().item(), z[~inside].max().item()
            raise ValueError(
                f"z must hold {support}; got {low}" + (f" to {high}" if high != low else "")
            )

    def score(self, z: Tensor) -> tuple[Tensor, ...]:
        """The gradient of log q(z) by each parameter, [S, ..., D] ([S, ..., D, K]), in the order of
        `parameters`.

        Args:
            z: samples [S, ..., D]; elements outside the support give NaN.

        """
        return reference.scores(self.name, self.parameters, self._samples_of(z))


class DiagonalGaussian(Family):
    """Independent Gaussians N(mean, e^logvar) over the last dimension.

    Natural parameters (mean e^-logvar, -e^-logvar / 2), sufficient statistics (z, z^2).

    Args:
        mean: [..., D], float32, float64, bfloat16 or float16.
        logvar: log sigma^2, broadcast with mean. One of the two may be a number or a 0-d tensor.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    """

    name, names = "gaussian", ("mean", "logvar")

    def __init__(self, mean: Tensor | float, logvar: Tensor | float):
        self._hold(mean, logvar)

    @property
    def mean(self) -> Tensor:
        """[..., D]."""
        return self.parameters[0]

    @property
    def logvar(self) -> Tensor:
        """[..., D]."""
        return self.parameters[1]

    @property
    def mode(self) -> Tensor:
        """The mean, [..., D]."""
        return self.mean

    @property
    def variance(self) -> Tensor:
        """e^logvar, [..., D]."""
        return torch.exp(self.logvar)

    @property
    def stddev(self) -> Tensor:
        """sigma = e^(logvar/2), [..., D]."""
        return torch.exp(0.5 * self.logvar)

    @classmethod
    def from_natural_parameters(cls, linear: Tensor, quadratic: Tensor) -> DiagonalGaussian:
        """The Gaussian with natural parameters (mean / sigma^2, -1 / (2 sigma^2))."""
        logvar = -torch.log(-2 * quadratic)
        return cls(linear * torch.exp(logvar), logvar)

    @classmethod
    def from_mean_parameters(cls, first: Tensor, second: Tensor) -> DiagonalGaussian:
        """The Gaussian with moments E z, E z^2."""
        return cls(first, torch.log(second - first * first))

    def rsample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return reparameterized samples [S, ..., D], or [..., D] for None; see `rsample`."""
        return rsample(
            self.mean, self.logvar, num_samples, seed=seed, offset=offset, generator=generator
        )

    def rsample_kl(
        self,
        num_samples: int | None = None,
        *,
        prior: DiagonalGaussian | None = None,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples, and KL(q || prior), in one pass; None stands for N(0, 1). See
        `latent_kernels.rsample_kl`.
        """
        given = (None, None)
        if prior is not None:
            self._same_family("prior", prior)
            given = prior.parameters  # type: ignore[assignment]
        return rsample_kl(
            self.mean,
            self.logvar,
            num_samples,
            prior_mean=given[0],
            prior_logvar=given[1],
            seed=seed,
            offset=offset,
            generator=generator,
        )

    def rsample_log_prob(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        path_derivative: bool = False,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Samples, and log q of them, in one pass; see `latent_kernels.rsample_log_prob`. For log q
        as a function of any z there is `log_prob`.
        """
        return rsample_log_prob(
            self.mean,
            self.logvar,
            num_samples,
            seed=seed,
            offset=offset,
            generator=generator,
            path_derivative=path_derivative,
        )

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """As `rsample`, without gradient."""
        with torch.no_grad():
            return self.rsample(num_samples, seed=seed, offset=offset, generator=generator)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, summed over D: [S, ...]."""
        return gaussian_log_prob(self._samples_of(z), self.mean, self.logvar)

    def entropy(self) -> Tensor:
        """The differential entropy 1/2 sum_d [1 + ln 2 pi + logvar] in nats: [...]."""
        return 0.5 * (1 + math.log(2 * math.pi) + _wide(self.logvar)).sum(-1)

    def kl(self, other: DiagonalGaussian) -> Tensor:
        """KL(self || other) in nats: [...]. Never negative; see `gaussian_kl`."""
        self._same_family("other", other)
        return gaussian_kl(self.mean, self.logvar, prior_mean=other.mean, prior_logvar=other.logvar)

    def natural_parameters(self) -> tuple[Tensor, Tensor]:
        """(mean e^-logvar, -e^-logvar / 2), [..., D] each."""
        precision = torch.exp(-self.logvar)
        return self.mean * precision, -0.5 * precision

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """(z, z^2), [S, ..., D] each."""
        z = self._samples_of(z)
        return z, z * z

    def log_partition(self) -> Tensor:
        """A = 1/2 sum_d [mean^2 e^-logvar + logvar + ln 2 pi]: [...]."""
        mean, logvar = _wide(self.mean), _wide(self.logvar)
        return 0.5 * (mean**2 * torch.exp(-logvar) + logvar + math.log(2 * math.pi)).sum(-1)

    def mean_parameters(self) -> tuple[Tensor, Tensor]:
        """(E z, E z^2), [..., D] each."""
        return self.mean, self.mean**2 + torch.exp(self.logvar)


class _Discrete(Family):
    """Families over logits, sampled from the stream's uniforms."""

    names = ("logits",)

    @property
    def logits(self) -> Tensor:
        """[..., D], or [..., D, K] of a Categorical."""
        return self.parameters[0]

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Samples without gradient; the same from one seed on every device
        (kernels/families/README.md has the rule).

        Args:
            num_samples: S >= 1, or None for one sample without a sample dimension.
            seed: an int in [0, 2^63), a 0-d int64 tensor on the parameters' device, or None to draw
                one.
            offset: the first element's place in the noise stream.
            generator: a torch.Generator to draw the seed from, in place of `seed`.

        Returns:
            [S, ..., D], or [..., D] for None: 0 and 1 in the logits' dtype (Bernoulli), int64
            classes (Categorical).

        Raises:
            ValueError: for a Categorical with a variable that has no probabilities, its logits NaN,
                inf or -inf for every class. On a GPU class 0 is drawn for it.

        """
        given = _checks.samples(num_samples)
        samples = () if given is None else (given,)
        return self._draw(samples, seed, offset, generator, antithetic=False)

    def _draw(
        self,
        samples: tuple[int, ...],
        seed: Seed,
        offset: int,
        generator: torch.Generator | None,
        *,
        antithetic: bool,
    ) -> Tensor:
        batch, cols, classes, device = self.batch_shape, self.cols, self.classes, self.device
        count = math.prod((*samples, *batch, cols))
        seed, offset = _checks.stream(seed, offset, count, device, generator)
        pairs = (2,) if antithetic else ()
        dims = (), pairs, samples, batch, (cols,), (classes,) if classes else ()
        op = CATEGORICAL if classes else BERNOULLI
        z: Tensor = op(dims, (self.logits,), (offset, antithetic), seed=seed)
        return z


class Bernoulli(_Discrete):
    """Independent Bernoulli variables over the last dimension, P(z = 1) = sigmoid(logits).

    Natural parameter the logit, sufficient statistic z. Everything keeps its digits for large
    logits.

    Args:
        logits: [..., D], float32, float64, bfloat16 or float16.
        probs: P(z = 1) in their place, [..., D]; 0 and 1 are certain, and have gradient 0.

    Raises:
        TypeError, ValueError: naming the argument that is wrong; also for probabilities outside
            [0, 1] on the CPU (elsewhere they give NaN).

    """

    name = "bernoulli"

    def __init__(self, logits: Tensor | None = None, *, probs: Tensor | None = None):
        self._hold(_one_of(logits, probs, _bernoulli_logits))

    @property
    def probs(self) -> Tensor:
        """P(z = 1), [..., D]."""
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        """P(z = 1), [..., D]."""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """The likelier value, [..., D]; NaN where both are, as torch's is."""
        tied = (self.logits == 0) | self.logits.isnan()
        return (self.logits > 0).to(self.dtype).masked_fill(tied, torch.nan)

    @property
    def variance(self) -> Tensor:
        """p (1 - p), [..., D]."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    @property
    def stddev(self) -> Tensor:
        """The root of p (1 - p), [..., D]; its gradient is 0 where that is 0."""
        return torch.exp(0.5 * (F.logsigmoid(self.logits) + F.logsigmoid(-self.logits)))

    @classmethod
    def from_natural_parameters(cls, logits: Tensor) -> Bernoulli:
        """The Bernoulli with these logits."""
        return cls(logits)

    @classmethod
    def from_mean_parameters(cls, probabilities: Tensor) -> Bernoulli:
        """The Bernoulli with E z = probabilities: `probs` by its name here."""
        return cls(_bernoulli_logits("probabilities", probabilities))

    def sample_antithetic(
        self,
        num_pairs: int,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Antithetic pairs for `disarm`, without gradient.

        Both samples of a pair come from one uniform: the first is what `sample` draws from u, the
            second what it
        would draw from 1 - u. Each is a sample of q; the two of a pair are as negatively correlated
        as can be.

        Args:
            num_pairs: S >= 1.
            seed: an int in [0, 2^63), a 0-d int64 tensor on the parameters' device, or None to draw
                one.
            offset: the first element's place in the noise stream.
            generator: a torch.Generator to draw the seed from, in place of `seed`.

        Returns:
            [2, S, ..., D], 0 and 1 in the logits' dtype.

        """
        pairs = _checks.integer("num_pairs", num_pairs)
        return self._draw((pairs,), seed, offset, generator, antithetic=True)

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) = sum_d log sigmoid(+-l_d) in nats: [S, ...].

        Other values than 0 and 1 raise; on a GPU they give NaN.
        """
        z = _wide(self._samples_of(z))
        inside = (z == 0) | (z == 1) | z.isnan()
        self._refuse_outside(z, inside, "samples of a Bernoulli, 0 or 1")
        terms = F.logsigmoid((2 * z - 1) * _wide(self.logits))
        return torch.where(inside, terms, torch.nan).sum(-1)

    def entropy(self) -> Tensor:
        """sum_d softplus(-a) + a sigmoid(-a), a = |l|, in nats: [...]. Certain variables add 0."""
        a = _wide(self.logits).abs().clamp(max=_CERTAIN)
        return (F.softplus(-a) + a * torch.sigmoid(-a)).sum(-1)

    def kl(self, other: Bernoulli) -> Tensor:
        """KL(self || other) in nats, [...]: the Bregman divergence A(l') - A(l) - (l' - l)
        sigmoid(l), summed over D.

        Signs are turned so that p = sigmoid(l) <= 1/2. Where d = l' - l is below 1 it is p psi(d) +
        [ln(1 + x) - x], x = p (e^d - 1), both by series, so that close pairs keep their digits; it
        is never negative. It is infinite where `other` rules out a value to which `self` gives a
        probability above 0 (in floating point: one that does not round to 0).
        """
        self._same_family("other", other)
        here, there = torch.broadcast_tensors(_wide(self.logits), _wide(other.logits))
        sign = torch.where(here > 0, -1.0, 1.0).to(here.dtype)
        here, there = (sign * here).clamp(min=-_CERTAIN), sign * there
        p, infinite = torch.sigmoid(here), there.isinf()
        d = torch.where(infinite, 0, there - here)
        near = d.abs() < 1
        small = torch.where(near, d, 0)
        close = p * psi_near(small) + log1p_less_x(p * torch.expm1(small))
        far = _softplus(there) - _softplus(here) - p * d
        ruled_out = infinite & torch.where(there > 0, p >= 0, p > 0)
        kl = torch.where(near, close.clamp(min=0), far)
        return kl.masked_fill(ruled_out, math.inf).sum(-1)

    def natural_parameters(self) -> tuple[Tensor]:
        """(logits,)."""
        return (self.logits,)

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor]:
        """(z,), [S, ..., D]."""
        return (self._samples_of(z),)

    def log_partition(self) -> Tensor:
        """A = sum_d ln(1 + e^l): [...]."""
        return _softplus(_wide(self.logits)).sum(-1)

    def mean_parameters(self) -> tuple[Tensor]:
        """(P(z = 1),), [..., D]."""
        return (self.probs,)


class Categorical(_Discrete):
    """Independent variables over D with K classes each, P(z = k) = softmax(logits)_k.

    Natural parameters the logits (up to a constant of each softmax), sufficient statistic the
    one-hot vector. Logits of -inf rule a class out.

    Args:
        logits: [..., D, K], K >= 1, float32, float64, bfloat16 or float16.
        probs: probabilities in their place, [..., D, K], up to a factor of each row; a class of
            probability 0 is ruled out, and has gradient 0.

    Raises:
        TypeError, ValueError: naming the argument that is wrong; also for negative probabilities on
            the CPU (elsewhere they give NaN).

    """

    name = "categorical"

    def __init__(self, logits: Tensor | None = None, *, probs: Tensor | None = None):
        logits = _one_of(logits, probs, _categorical_logits)
        _checks.float_tensor("logits", logits)
        if logits.dim() < 2 or logits.size(-1) < 1:
            raise ValueError(
                f"logits must have shape [..., D, K] with K >= 1; got {tuple(logits.shape)}"
            )
        self.classes = logits.size(-1)
        self._hold(logits)

    @property
    def probs(self) -> Tensor:
        """P(z = k), [..., D, K]; they add up to 1 over K."""
        return torch.softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """NaN, [..., D], as torch's is: classes have no order. (`probs` is E of the one-hot z.)"""
        return self.logits.new_full((*self.batch_shape, self.cols), torch.nan)

    @property
    def mode(self) -> Tensor:
        """The likeliest class, [..., D], the first of several: int64."""
        return self.logits.argmax(-1)

    @property
    def variance(self) -> Tensor:
        """NaN, [..., D], as the mean is."""
        return self.mean

    @property
    def stddev(self) -> Tensor:
        """NaN, [..., D], as the mean is."""
        return self.mean

    @classmethod
    def from_natural_parameters(cls, logits: Tensor) -> Categorical:
        """The Categorical with these logits."""
        return cls(logits)

    @classmethod
    def from_mean_parameters(cls, probabilities: Tensor) -> Categorical:
        """The Categorical with these probabilities [..., D, K]: `probs` by its name here."""
        return cls(_categorical_logits("probabilities", probabilities))

    def log_prob(self, z: Tensor) -> Tensor:
        """log q(z) in nats, summed over D: [S, ...]. Classes out of range raise; on a GPU they give
        NaN.
        """
        z = self._samples_of(z)
        inside = (z >= 0) & (z < self.classes)
        self._refuse_outside(z, inside, f"classes 0, ..., {self.classes - 1}")
        table = torch.log_softmax(_wide(self.logits), -1).expand(*z.shape, self.classes)
        picked = table.gather(-1, z.clamp(0, self.classes - 1).unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, picked, torch.nan).sum(-1)

    def entropy(self) -> Tensor:
        """-sum_d sum_k p_k ln p_k in nats: [...]."""
        log_p = torch.log_softmax(_wide(self.logits), -1)
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum((-2, -1))

    def kl(self, other: Categorical) -> Tensor:
        """KL(self || other) = sum_d sum_k p_k (ln p_k - ln p'_k) in nats: [...].

        As sum_k p_k psi(d_k), d_k = ln p'_k - ln p_k, psi(d) = e^d - 1 - d, whose terms are all
        positive; beyond |d| = 1 as p'_k - p_k - p_k d_k, where e^d may overflow. A class that q
        rules out adds p'_k, and nothing where both do. It is infinite where `other` rules out a
        class to which `self` gives a probability above 0 (in floating point: one that does not
        round to 0).
        """
        self._same_family("other", other)
        log_p, log_q = (
            torch.log_softmax(_wide(self.logits), -1),
            torch.log_softmax(_wide(other.logits), -1),
        )
        p, impossible = log_p.exp(), log_p == -math.inf
        infinite = log_q == -math.inf
        d = (log_q - log_p.masked_fill(impossible, 0)).masked_fill(infinite, 0)
        near = d.abs() < 1
        far = log_q.exp() - p - p * d
        terms = torch.where(near & ~impossible, p * psi_near(torch.where(near, d, 0)), far)
        return terms.masked_fill(infinite & (p > 0), math.inf).sum((-2, -1))

    def natural_parameters(self) -> tuple[Tensor]:
        """(logits,)."""
        return (self.logits,)

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor]:
        """(one-hot z,), [S, ..., D, K]."""
        classes = torch.arange(self.classes, device=self.device)
        return ((self._samples_of(z).unsqueeze(-1) == classes).to(self.dtype),)

    def log_partition(self) -> Tensor:
        """A = sum_d logsumexp_k l_k: [...]."""
        return torch.logsumexp(_wide(self.logits), -1).sum(-1)

    def mean_parameters(self) -> tuple[Tensor]:
        """(softmax(logits),), [..., D, K]."""
        return (self.probs,)
