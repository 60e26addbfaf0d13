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
from latent_kernels.kernels.relaxed.problem import BERNOULLI as BERNOULLI_RELAXED
from latent_kernels.kernels.relaxed.problem import CATEGORICAL as CATEGORICAL_RELAXED
from latent_kernels.variational.families.family import Family, wide

Tensor = torch.Tensor
_CERTAIN = 1000.0  # e^-|l| is 0 in every dtype for a logit beyond this


def _softplus(x: Tensor) -> Tensor:
    """Return ln(1 + e^x); torch's threshold of 20 would lose e^-x, which float64 can hold."""
    return F.softplus(x, threshold=40)


def _probabilities(name: str, p: Tensor, most: float = math.inf) -> Tensor:
    """Return probabilities in a floating dtype; they may be given as one-hot vectors of integers.

    Values outside [0, most] raise where the check needs no synchronization.
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
    """Return ln p or logit p, with gradient 0 at p = 0 and above `largest`.

    Saturated sigmoids and masked classes lie there: the gradient that reaches them is 0, which
    times the infinite slope would be NaN.
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
    """Return the logits, from the one of the two arguments that is given."""
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
        """The logits, [..., D], or [..., D, K] of a Categorical."""
        return self.parameters[0]

    def sample(
        self,
        num_samples: int | None = None,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return samples without gradient; a seed gives the same ones on every device.

        Args:
            num_samples: S >= 1, or None for one sample without a sample dimension.
            seed: an int in [0, 2^63), a 0-d int64 tensor on the parameters' device, or None to draw
                one.
            offset: the first element's place in the noise stream.
            generator: a torch.Generator to draw the seed from, in place of `seed`.

        Returns:
            Samples [S, ..., D], or [..., D] where num_samples is None; 0 and 1 in the logits' dtype
            for a Bernoulli, int64 classes for a Categorical.

        Raises:
            ValueError: a variable of a Categorical has no probabilities, since its logits are NaN,
                inf, or -inf for every class. On a GPU class 0 is drawn for it instead.

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

    def rsample_relaxed(
        self,
        num_samples: int | None = None,
        *,
        tau: float,
        hard: bool = False,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        r"""Return relaxed samples, which the logits have gradients through.

        .. math::
            y = \sigma\big((l - x) / \tau\big), \qquad
            y_k = \frac{e^{(l_k + g_k) / \tau}}{\sum_j e^{(l_j + g_j) / \tau}}

        with standard logistic x for a Bernoulli, and standard Gumbel g for a Categorical (the
        Gumbel-softmax). With hard=True the samples are discrete, with the probabilities of q, and
        their gradient is that of the relaxed ones (straight-through). The gradient of an expected
        value is biased either way; a smaller tau lowers the bias and raises the variance.

        Args:
            num_samples: S >= 1, or None for one sample without a sample dimension.
            tau: the temperature, a number above 0.
            hard: return 0 and 1, or one-hot vectors.
            seed: an int in [0, 2^63), a 0-d int64 tensor on the parameters' device, or None to draw
                one.
            offset: the first element's place in the noise stream.
            generator: a torch.Generator to draw the seed from, in place of `seed`.

        Returns:
            Samples [S, ..., D] of a Bernoulli, [S, ..., D, K] of a Categorical, in the logits'
            dtype, without the first dimension where num_samples is None. Hard samples of a
            Bernoulli are those of `sample` with the same seed. Logits of NaN give NaN; a variable
            of a Categorical is NaN if one of its logits is NaN or inf, or all are -inf. A class of
            logit -inf has y = 0 and gradient 0.

        Sources: Jang, Gu, Poole, "Categorical reparameterization with Gumbel-softmax", 2017;
        Maddison, Mnih, Teh, "The Concrete distribution", 2017.

        Example:
            >>> import torch, latent_kernels as lk
            >>> q = lk.Categorical(torch.zeros(3, 2, 4, requires_grad=True))
            >>> y = q.rsample_relaxed(5, tau=0.5, seed=0)
            >>> y.shape, torch.allclose(y.sum(-1), torch.ones(5, 3, 2))
            (torch.Size([5, 3, 2, 4]), True)
            >>> one_hot = q.rsample_relaxed(tau=0.5, hard=True, seed=0)
            >>> torch.equal(one_hot.argmax(-1), y[0].argmax(-1))
            True
            >>> one_hot[..., 0].sum().backward()
            >>> q.logits.grad.shape
            torch.Size([3, 2, 4])

        """
        given = _checks.samples(num_samples)
        samples = () if given is None else (given,)
        options = _checks.positive("tau", tau), _checks.flag("hard", hard)
        batch, cols, classes = self.batch_shape, self.cols, self.classes
        count = math.prod((*samples, *batch, cols, classes or 1))
        source, offset = _checks.stream(seed, offset, count, self.device, generator)
        op, own = (CATEGORICAL_RELAXED, ((classes,),)) if classes else (BERNOULLI_RELAXED, ())
        dims = (), samples, batch, (cols,), *own
        y: Tensor = op(dims, (self.logits,), (offset, *options), seed=source)
        return y


class Bernoulli(_Discrete):
    r"""Independent Bernoulli variables over the last dimension, P(z = 1) = sigmoid(logits).

    .. math::
        \log q(z) = \sum_d z_d l_d - \ln(1 + e^{l_d})

    The natural parameter is the logit l, the sufficient statistic z. All methods keep their
    precision for large logits.

    Args:
        logits: [..., D], float32, float64, bfloat16 or float16.
        probs: P(z = 1) in place of the logits, [..., D]; values of 0 and 1 have gradient 0.

    Raises:
        TypeError, ValueError: an argument is wrong (the message names it); also for probabilities
            outside [0, 1] on the CPU (elsewhere they give NaN).

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.Bernoulli(torch.zeros(3, 2))
        >>> z = q.sample(5, seed=0)
        >>> z.shape, q.log_prob(z).shape
        (torch.Size([5, 3, 2]), torch.Size([5, 3]))
        >>> q.sample_antithetic(5, seed=0).shape
        torch.Size([2, 5, 3, 2])
        >>> certain = lk.Bernoulli(probs=torch.tensor([0.0, 1.0]))
        >>> certain.sample(seed=0), certain.entropy()
        (tensor([0., 1.]), tensor(0.))
        >>> q.kl(q)
        tensor([0., 0., 0.])
        >>> (logits,), (p,) = q.natural_parameters(), q.mean_parameters()
        >>> same = lk.Bernoulli.from_natural_parameters(logits)
        >>> also = lk.Bernoulli.from_mean_parameters(p)
        >>> torch.equal(same.probs, p), torch.equal(also.logits, logits)
        (True, True)
        >>> q.sufficient_statistics(z)[0].shape, q.log_partition().shape
        (torch.Size([5, 3, 2]), torch.Size([3]))

    """

    name = "bernoulli"

    def __init__(self, logits: Tensor | None = None, *, probs: Tensor | None = None):
        self._hold(_one_of(logits, probs, _bernoulli_logits))

    @property
    def probs(self) -> Tensor:
        """The probabilities P(z = 1), [..., D]."""
        return torch.sigmoid(self.logits)

    @property
    def mean(self) -> Tensor:
        """The mean P(z = 1), [..., D]."""
        return self.probs

    @property
    def mode(self) -> Tensor:
        """The more probable value, [..., D]; NaN where both are equally probable, as in torch."""
        tied = (self.logits == 0) | self.logits.isnan()
        return (self.logits > 0).to(self.dtype).masked_fill(tied, torch.nan)

    @property
    def variance(self) -> Tensor:
        """The variance p (1 - p), [..., D]."""
        return torch.sigmoid(self.logits) * torch.sigmoid(-self.logits)

    @property
    def stddev(self) -> Tensor:
        """The standard deviation, [..., D]; its gradient is 0 where it is 0."""
        return torch.exp(0.5 * (F.logsigmoid(self.logits) + F.logsigmoid(-self.logits)))

    @classmethod
    def from_natural_parameters(cls, logits: Tensor) -> Bernoulli:
        """Return the Bernoulli with these logits."""
        return cls(logits)

    @classmethod
    def from_mean_parameters(cls, probabilities: Tensor) -> Bernoulli:
        """Return the Bernoulli with E z = probabilities, which is ``Bernoulli(probs=...)``."""
        return cls(_bernoulli_logits("probabilities", probabilities))

    def sample_antithetic(
        self,
        num_pairs: int,
        *,
        seed: Seed = None,
        offset: int = 0,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return antithetic pairs of samples for `disarm`, without gradient.

        Both samples of a pair come from one uniform u: the first is what `sample` draws from u, the
        second what it would draw from 1 - u. Each is a sample of q, and the correlation within a
        pair is as negative as possible.

        Args:
            num_pairs: S >= 1.
            seed: an int in [0, 2^63), a 0-d int64 tensor on the parameters' device, or None to draw
                one.
            offset: the first element's place in the noise stream.
            generator: a torch.Generator to draw the seed from, in place of `seed`.

        Returns:
            Pairs [2, S, ..., D], 0 and 1 in the logits' dtype.

        """
        pairs = _checks.integer("num_pairs", num_pairs)
        return self._draw((pairs,), seed, offset, generator, antithetic=True)

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) in nats, summed over D, [S, ...].

        Values other than 0 and 1 raise a ValueError; on a GPU they give NaN.
        """
        z = wide(self._samples_of(z))
        inside = (z == 0) | (z == 1) | z.isnan()
        self._refuse_outside(z, inside, "samples of a Bernoulli, 0 or 1")
        terms = F.logsigmoid((2 * z - 1) * wide(self.logits))
        return torch.where(inside, terms, torch.nan).sum(-1)

    def entropy(self) -> Tensor:
        """Return sum_d softplus(-a) + a sigmoid(-a), a = abs(logits), in nats, [...]."""
        a = wide(self.logits).abs().clamp(max=_CERTAIN)
        return (F.softplus(-a) + a * torch.sigmoid(-a)).sum(-1)

    def kl(self, other: Bernoulli) -> Tensor:
        r"""Return KL(self || other) in nats, [...]; never negative.

        .. math::
            \sum_d A(l'_d) - A(l_d) - (l'_d - l_d)\, \sigma(l_d), \qquad A(l) = \ln(1 + e^l)

        It is infinite where `other` rules out a value to which `self` gives a probability above 0
        (in floating point: one that does not round to 0).
        """
        # Signs are flipped so that p = sigmoid(l) <= 1/2. For |d| < 1, d = l' - l, the divergence
        # is p psi(d) + [ln(1 + x) - x], x = p (e^d - 1), both by series, which are accurate for
        # close pairs.
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
        """Return (logits,)."""
        return (self.logits,)

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor]:
        """Return (z,), [S, ..., D]."""
        return (self._samples_of(z),)

    def log_partition(self) -> Tensor:
        """Return A = sum_d ln(1 + e^l), [...]."""
        return _softplus(wide(self.logits)).sum(-1)

    def mean_parameters(self) -> tuple[Tensor]:
        """Return (P(z = 1),), [..., D]."""
        return (self.probs,)


class Categorical(_Discrete):
    r"""Independent variables over D with K classes each, P(z = k) = softmax(logits) at k.

    .. math::
        \log q(z) = \sum_d l_{d z_d} - \ln \sum_k e^{l_{dk}}

    The natural parameters are the logits l (up to a constant in each softmax), the sufficient
    statistic is the one-hot vector. A logit of -inf rules a class out.

    Args:
        logits: [..., D, K], K >= 1, float32, float64, bfloat16 or float16.
        probs: probabilities in place of the logits, [..., D, K], which need not be normalised; a
            class of probability 0 is ruled out, and has gradient 0.

    Raises:
        TypeError, ValueError: an argument is wrong (the message names it); also for negative
            probabilities on the CPU (elsewhere they give NaN).

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.Categorical(torch.zeros(3, 2, 4))  # a batch of 3; two variables, four classes
        >>> z = q.sample(5, seed=0)
        >>> z.shape, z.dtype
        (torch.Size([5, 3, 2]), torch.int64)
        >>> q.log_prob(z).shape
        torch.Size([5, 3])
        >>> (one_hot,) = q.sufficient_statistics(z)
        >>> one_hot.shape
        torch.Size([5, 3, 2, 4])
        >>> round(q.entropy()[0].item(), 4), round(q.log_partition()[0].item(), 4)  # 2 ln 4
        (2.7726, 2.7726)
        >>> (logits,), (p,) = q.natural_parameters(), q.mean_parameters()
        >>> same = lk.Categorical.from_natural_parameters(logits)
        >>> also = lk.Categorical.from_mean_parameters(p)
        >>> q.kl(same), torch.allclose(also.probs, p)
        (tensor([0., 0., 0.]), True)

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
        """The probabilities P(z = k), [..., D, K], which add up to 1 over K."""
        return torch.softmax(self.logits, -1)

    @property
    def mean(self) -> Tensor:
        """NaN, [..., D], as in torch: classes have no order. (`probs` is the mean of one-hot z.)"""
        return self.logits.new_full((*self.batch_shape, self.cols), torch.nan)

    @property
    def mode(self) -> Tensor:
        """The most probable class, the first of several, [..., D] int64."""
        return self.logits.argmax(-1)

    @property
    def variance(self) -> Tensor:
        """NaN, [..., D], like the mean."""
        return self.mean

    @property
    def stddev(self) -> Tensor:
        """NaN, [..., D], like the mean."""
        return self.mean

    @classmethod
    def from_natural_parameters(cls, logits: Tensor) -> Categorical:
        """Return the Categorical with these logits."""
        return cls(logits)

    @classmethod
    def from_mean_parameters(cls, probabilities: Tensor) -> Categorical:
        """Return the Categorical with these probabilities, which is ``Categorical(probs=...)``."""
        return cls(_categorical_logits("probabilities", probabilities))

    def log_prob(self, z: Tensor) -> Tensor:
        """Return log q(z) in nats, summed over D, [S, ...].

        Classes out of range raise a ValueError; on a GPU they give NaN.
        """
        z = self._samples_of(z)
        inside = (z >= 0) & (z < self.classes)
        self._refuse_outside(z, inside, f"classes 0, ..., {self.classes - 1}")
        table = torch.log_softmax(wide(self.logits), -1).expand(*z.shape, self.classes)
        picked = table.gather(-1, z.clamp(0, self.classes - 1).unsqueeze(-1)).squeeze(-1)
        return torch.where(inside, picked, torch.nan).sum(-1)

    def entropy(self) -> Tensor:
        """Return the entropy -sum_d sum_k p_k ln p_k in nats, [...]."""
        log_p = torch.log_softmax(wide(self.logits), -1)
        return -(log_p.exp() * log_p.clamp(min=torch.finfo(log_p.dtype).min)).sum((-2, -1))

    def kl(self, other: Categorical) -> Tensor:
        r"""Return KL(self || other) in nats, [...].

        .. math::
            \sum_d \sum_k p_{dk} (\ln p_{dk} - \ln p'_{dk})

        It is infinite where `other` rules out a class to which `self` gives a probability above 0
        (in floating point: one that does not round to 0).
        """
        # It is computed as sum_k p_k psi(d_k), d_k = ln p'_k - ln p_k, psi(d) = e^d - 1 - d, whose
        # terms are all positive; for |d| >= 1 as p'_k - p_k - p_k d_k, since e^d may overflow. A
        # class that self rules out adds p'_k, or nothing where both rule it out.
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
        """Return (logits,)."""
        return (self.logits,)

    def sufficient_statistics(self, z: Tensor) -> tuple[Tensor]:
        """Return (one-hot z,), [S, ..., D, K]."""
        classes = torch.arange(self.classes, device=self.device)
        return ((self._samples_of(z).unsqueeze(-1) == classes).to(self.dtype),)

    def log_partition(self) -> Tensor:
        """Return A = sum_d logsumexp_k l_k, [...]."""
        return torch.logsumexp(wide(self.logits), -1).sum(-1)

    def mean_parameters(self) -> tuple[Tensor]:
        """Return (softmax(logits),), [..., D, K]."""
        return (self.probs,)
