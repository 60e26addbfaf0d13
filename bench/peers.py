"""The ops through torch.distributions, and score-function gradients in plain torch.

The other ops in plain torch stand in `latent_kernels.cli.plain_torch`, since the commands compare
with them too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch.distributions import Bernoulli, Categorical, Distribution, Normal, kl_divergence
from torch.quasirandom import SobolEngine

from latent_kernels.cli import plain_torch

Tensor = torch.Tensor
Parameters = tuple[Tensor, ...]  # for a family: mean and logvar [B, D]; logits [B, D] or [B, D, K]


def vimco(log_w: Tensor, log_q: Tensor) -> Tensor:
    """Return the importance-weighted bound with VIMCO's gradient for log_q, as one writes it: all
    S x S log-weights of the baselines at once.
    """
    samples = log_w.size(0)
    bound = plain_torch.importance_bound(log_w)
    values = log_w.detach()
    mean = (values.sum(0) - values) / (samples - 1)
    replaced = values.unsqueeze(0) + torch.diag_embed((mean - values).movedim(0, -1)).movedim(
        (-2, -1), (0, 1)
    )
    signal = bound.detach() - plain_torch.importance_bound(replaced.movedim(1, 0))
    surrogate = (signal * log_q).sum(0)
    return bound + surrogate - surrogate.detach()


def antithetic_rsample_kl(mean: Tensor, logvar: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return antithetic samples and the KL divergence to N(0, I); num_samples is even."""
    eps = torch.randn(num_samples // 2, *mean.shape, device=mean.device)
    z = mean + torch.exp(0.5 * logvar) * torch.cat([eps, -eps])
    return z, plain_torch.gaussian_kl(mean, logvar)


def sobol_rsample_kl(mean: Tensor, logvar: Tensor, num_samples: int) -> tuple[Tensor, Tensor]:
    """Return samples at Sobol' points, scrambled once and shifted for each row, and the KL
    divergence to N(0, I).
    """
    engine = SobolEngine(mean.shape[-1], scramble=True)
    points = engine.draw(num_samples).to(mean.device).unsqueeze(1)
    u = (points + torch.rand(mean.shape, device=mean.device)).frac().clamp(1e-7, 1 - 1e-7)
    z = mean + torch.exp(0.5 * logvar) * (math.sqrt(2) * torch.erfinv(2 * u - 1))
    return z, plain_torch.gaussian_kl(mean, logvar)


def distributions_rsample_kl(
    mean: Tensor, logvar: Tensor, samples: int | None, prior: Normal
) -> tuple[Tensor, Tensor]:
    """Return what `rsample_kl` does, through torch.distributions."""
    q = Normal(mean, torch.exp(0.5 * logvar))
    z = q.rsample() if samples is None else q.rsample((samples,))
    return z, kl_divergence(q, prior).sum(-1)


def distributions_kl(mean: Tensor, logvar: Tensor, prior: Normal) -> Tensor:
    """Return what `gaussian_kl` does, through torch.distributions."""
    return kl_divergence(Normal(mean, torch.exp(0.5 * logvar)), prior).sum(-1)


def distributions_log_prob(z: Tensor, mean: Tensor, logvar: Tensor) -> Tensor:
    """Return what `gaussian_log_prob` does, through torch.distributions."""
    return Normal(mean, torch.exp(0.5 * logvar)).log_prob(z).sum(-1)


def distributions_bernoulli_log_prob(x: Tensor, logits: Tensor) -> Tensor:
    """Return what `bernoulli_log_prob` does, through torch.distributions; its checks would refuse
    grey values.
    """
    return Bernoulli(logits=logits, validate_args=False).log_prob(x).sum(-1)


def standard_normal(device: str) -> Normal:
    """Return the prior of the peers that use torch.distributions."""
    return Normal(torch.zeros((), device=device), torch.ones((), device=device))


# --- score-function gradients: values f [S, B], z [S, B, D], leave-one-out ------------------------


def surrogate(
    family: str, values: Tensor, z: Tensor, parameters: Parameters, upstream: Tensor | None
) -> Parameters:
    """Return the usual surrogate loss's gradient: of the mean of (f - the mean of the other f) log
    q(z), by autograd.
    """
    others = (values.sum(0) - values) / (len(values) - 1)
    log_prob = distribution(family, parameters).log_prob(z).sum(-1)
    loss = ((values - others) * log_prob).mean(0)
    return torch.autograd.grad(
        loss.sum() if upstream is None else (loss * upstream).sum(), parameters
    )


def distribution(family: str, parameters: Parameters) -> Distribution:
    """Return the family's distribution from torch.distributions."""
    if family == "gaussian":
        return Normal(parameters[0], torch.exp(0.5 * parameters[1]))
    return (
        Bernoulli(logits=parameters[0])
        if family == "bernoulli"
        else Categorical(logits=parameters[0])
    )


def scores(family: str, z: Tensor, parameters: Parameters) -> Parameters:
    """Return gradients of log q(z), derived by hand: [S, B, D] or [S, B, D, K]."""
    if family == "gaussian":
        mean, logvar = parameters
        inverse = torch.exp(-0.5 * logvar)
        t = (z - mean) * inverse
        return t * inverse, 0.5 * (t * t - 1)
    (logits,) = parameters
    if family == "bernoulli":
        return (z - torch.sigmoid(logits),)
    hot = z.unsqueeze(-1) == torch.arange(logits.size(-1), device=z.device)
    return (hot.to(logits.dtype) - torch.softmax(logits, -1),)


def formula(
    family: str, values: Tensor, z: Tensor, parameters: Parameters, upstream: Tensor | None
) -> Parameters:
    """Return the mean of (f - b) times the score, derived by hand: S / (S - 1) (f - mean f) is f
    minus the others' mean.
    """
    weight = (values - values.mean(0)) / (len(values) - 1)
    if upstream is not None:
        weight = weight * upstream
    return tuple((_like(weight, s) * s).sum(0) for s in scores(family, z, parameters))


def sums(
    family: str, values: Tensor, z: Tensor, parameters: Parameters, upstream: Tensor | None
) -> Parameters:
    """Return the same estimate as `formula` from weighted sums of sufficient statistics, by
    torch.einsum: the weights sum to 0, so E phi drops out.
    """
    weight = (values - values.mean(0)) / (len(values) - 1)
    if upstream is not None:
        weight = weight * upstream
    if family == "bernoulli":
        return (torch.einsum("sb,sbd->bd", weight, z),)
    if family == "categorical":
        where, what = z.permute(1, 2, 0), weight.t().unsqueeze(1).expand(z.size(1), z.size(2), -1)
        return (torch.zeros_like(parameters[0]).scatter_add_(2, where, what),)
    mean, logvar = parameters
    precision = torch.exp(-logvar)
    first, second = (torch.einsum("sb,sbd->bd", weight, x) for x in (z, z * z))
    return precision * first, 0.5 * precision * (second - 2 * mean * first)


class Estimator(torch.autograd.Function):
    """The mean of values, whose gradient is a formula: an autograd.Function for training with a
    derivation by hand.
    """

    @staticmethod
    def forward(
        ctx: Any,
        function: Callable[..., Parameters],
        values: Tensor,
        z: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        """Return the mean over samples."""
        ctx.function = function
        ctx.save_for_backward(values, z, *parameters)
        return values.mean(0)

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        """Return the gradients that the formula gives."""
        values, z, *parameters = ctx.saved_tensors
        return None, None, None, *ctx.function(values, z, tuple(parameters), upstream)


def formula_optimal(family: str, values: Tensor, z: Tensor, parameters: Parameters) -> Parameters:
    """Return the gradient with a coefficient for each parameter, sum f s^2 / sum s^2, computed from
    the other half of the samples.
    """
    samples, half = len(values), len(values) // 2
    f = values - values.mean(0)
    gradients = []
    for s in scores(family, z, parameters):
        w = _like(f, s)
        square = s * s
        parts, a = (slice(0, half), slice(half, samples)), []
        for part in parts:
            a.append((w[part] * square[part]).sum(0) / square[part].sum(0))
        each = [
            ((w[part] - other) * s[part]).sum(0) for part, other in zip(parts, a[::-1], strict=True)
        ]
        gradients.append((each[0] + each[1]) / samples)
    return tuple(gradients)


def formula_with_variance(
    family: str, values: Tensor, z: Tensor, parameters: Parameters
) -> Parameters:
    """Return leave-one-out gradients, then the variance of each as a mean of S terms."""
    samples = len(values)
    weight = (values - values.mean(0)) * (samples / (samples - 1))
    terms = [_like(weight, s) * s for s in scores(family, z, parameters)]
    gradients = [t.mean(0) for t in terms]
    variances = [
        ((t - g) ** 2).sum(0) / (samples * (samples - 1))
        for t, g in zip(terms, gradients, strict=True)
    ]
    return (*gradients, *variances)


def _like(weight: Tensor, s: Tensor) -> Tensor:
    return weight.reshape(*weight.shape, *[1] * (s.dim() - weight.dim()))


# --- samples of the families: z [S, B, D] ---------------------------------------------------------


def sample(family: str, parameters: Parameters, samples: int) -> Tensor:
    """Return samples by plain torch: randn, torch.bernoulli, torch.multinomial."""
    if family == "gaussian":
        mean, logvar = parameters
        return mean + torch.exp(0.5 * logvar) * torch.randn(
            samples, *mean.shape, device=mean.device
        )
    (logits,) = parameters
    if family == "bernoulli":
        return torch.bernoulli(torch.sigmoid(logits).expand(samples, *logits.shape))
    flat = torch.softmax(logits, -1).reshape(-1, logits.size(-1))
    return (
        torch.multinomial(flat, samples, replacement=True).t().reshape(samples, *logits.shape[:-1])
    )


def sample_by_noise(family: str, parameters: Parameters, samples: int) -> Tensor:
    """Return samples made from uniforms, by a comparison or the inverse of the distribution; a
    compiler makes one loop of it.
    """
    (logits,) = parameters
    if family == "bernoulli":
        return (
            torch.rand(samples, *logits.shape, device=logits.device) < torch.sigmoid(logits)
        ).to(logits.dtype)
    edges = torch.softmax(logits, -1).cumsum(-1)[..., :-1]
    u = torch.rand(samples, *logits.shape[:-1], 1, device=logits.device)
    return (u >= edges).sum(-1)


# --- vector quantization: codes, quantized rows, squared distances, counts, sums ------------------


def _finish(z: Tensor, codebook: Tensor, codes: Tensor, counts: Tensor, sums: Tensor) -> Parameters:
    e = torch.nn.functional.embedding(codes, codebook)
    return codes, z + (e - z).detach(), (z - e).square().sum(-1), counts, sums


def one_hot_quantize(z: Tensor, codebook: Tensor) -> Parameters:
    """Return what `vector_quantize` does, in the way of vector-quantize-pytorch: distances, their
    argmin, and sums as products with one-hot rows.
    """
    rows = z.detach()
    squares = rows.square().sum(-1, keepdim=True) + codebook.square().sum(-1)
    distances = (squares - 2 * rows @ codebook.T).clamp(min=0).sqrt()
    codes = (-distances).argmax(-1)
    members = torch.nn.functional.one_hot(codes, len(codebook)).to(z.dtype)
    return _finish(z, codebook, codes, members.sum(0), members.T @ rows)


def indexed_quantize(z: Tensor, codebook: Tensor) -> Parameters:
    """Return the same with what torch is quickest in: scores by one product, sums by indices."""
    rows = z.detach()
    codes = torch.addmm(-0.5 * codebook.square().sum(-1), rows, codebook.T).argmax(-1)
    counts = torch.bincount(codes, minlength=len(codebook))
    sums = torch.zeros_like(codebook).index_add_(0, codes, rows)
    return _finish(z, codebook, codes, counts, sums)
