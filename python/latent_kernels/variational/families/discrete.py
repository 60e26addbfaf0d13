"""The Bernoulli and the categorical family."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F

from latent_kernels import _checks
from latent_kernels._checks import Seed
from latent_kernels.kernels.eager import plain
from latent_kernels.kernels.families.problem import BERNOULLI, CATEGORICAL
from latent_kernels.kernels.gaussian.reference import log1p_less_x, psi_near
from latent_kernels.variational.families.family import Family, wide

Tensor = torch.Tensor
_CERTAIN = 1000.0  # of a logit beyond this, e^-|l| is 0 in every dtype


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
        source, offset = _checks.stream(seed, offset, count, device, generator)
        pairs = (2,) if antithetic else ()
        dims = (), pairs, samples, batch, (cols,), (classes,) if classes else ()
        op = CATEGORICAL if classes else BERNOULLI
        z: Tensor = op(dims, (self.logits,), (offset, antithetic), seed=source)
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
        z = wide(self._samples_of(z))
        inside = (z == 0) | (z == 1) | z.isnan()
        self._refuse_outside(z, inside, "samples of a Bernoulli, 0 or 1")
        terms = F.logsigmoid((2 * z - 1) * wide(self.logits))
        return torch.where(inside, terms, torch.nan).sum(-1)

    def entropy(self) -> Tensor:
        """sum_d softplus(-a) + a sigmoid(-a), a = |l|, in nats: [...]. Certain variables add 0."""
        a = wide(self.logits).abs().clamp(max=_CERTAIN)
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
        here, there = torch.broadcast_tensors(wide(self.logits), wide(other.logits))
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
        return _softplus(wide(self.logits)).sum(-1)

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
        table = torch.log_softmax(wide(self.logits), -1).expand(*z.shape, self.classes)
        picked = table.gather(-1, z.clamp(0, self.classes - 1).unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, picked, torch.nan).sum(-1)

    def entropy(self) -> Tensor:
        """-sum_d sum_k p_k ln p_k in nats: [...]."""
        log_p = torch.log_softmax(wide(self.logits), -1)
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
            torch.log_softmax(wide(self.logits), -1),
            torch.log_softmax(wide(other.logits), -1),
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
        return torch.logsumexp(wide(self.logits), -1).sum(-1)

    def mean_parameters(self) -> tuple[Tensor]:
        """(softmax(logits),), [..., D, K]."""
        return (self.probs,)
