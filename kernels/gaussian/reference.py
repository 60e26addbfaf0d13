"""The Gaussian op in plain torch, as the formulas stand in the paper; autograd gives its gradients.

q = N(mean, sigma^2), sigma^2 = e^logvar, prior N(m0, e^l0), all diagonal:

    z_s = mean + sigma eps_s                                           (Kingma & Welling 2014, eq. 4)
    KL  = 1/2 sum_d [ (mean - m0)^2 e^-l0 + psi(d) ],  d = logvar - l0,  psi(d) = e^d - 1 - d
    log q(z_s) = -1/2 sum_d [ ln 2 pi + logvar + eps_s^2 ]

psi is computed by its series near 0, where e^d - 1 - d loses every digit. Tests hold the compiled
kernels against these functions; devices without a compiled kernel run them.
"""

from __future__ import annotations

import math

import torch

from latent_kernels.kernels.noise import reference as noise

Tensor = torch.Tensor
Sizes = tuple[int, int, int, int]  # groups, samples, rows, cols


def psi(d: Tensor) -> Tensor:
    """e^d - 1 - d = d^2 (1/2! + d/3! + d^2/4! + ...), by the series where |d| < 1."""
    near = d.abs() < 1
    x = torch.where(near, d, torch.zeros_like(d))
    series = torch.zeros_like(d)
    for k in range(19, 1, -1):
        series = series * x + 1 / math.factorial(k)
    return torch.where(near, x * x * series, torch.expm1(d) - d)


def log1p_less_x(x: Tensor) -> Tensor:
    """ln(1 + x) - x for -0.7 < x < 2: with r = x / (2 + x), 2 (r^3/3 + r^5/5 + ...) - r x, of which
    none cancels.
    """
    r = x / (2 + x)
    y = r * r
    series = torch.zeros_like(x)
    for k in range(19, 0, -1):
        series = (series + 1 / (2 * k + 1)) * y
    return 2 * r * series - r * x


def gaussian_kl(
    mean: Tensor, logvar: Tensor, prior_mean: Tensor | None, prior_logvar: Tensor | None
) -> Tensor:
    """KL(N(mean, e^logvar) || prior), summed over the last dimension; None stands for 0."""
    delta = mean if prior_mean is None else mean - prior_mean
    if prior_logvar is None:
        return 0.5 * (delta * delta + psi(logvar)).sum(-1)
    return 0.5 * ((delta * torch.exp(-0.5 * prior_logvar)) ** 2 + psi(logvar - prior_logvar)).sum(
        -1
    )


def noise_like(mean: Tensor, sizes: Sizes, seed: int | Tensor, offset: int) -> Tensor:
    """Eps [groups, samples, rows, cols], float32 values in the dtype that mean is computed in."""
    return torch.from_numpy(noise.of_groups("normal", sizes, seed, offset)).to(
        mean.device, mean.dtype
    )


def _compute(x: Tensor) -> Tensor:
    """Half precision is computed in float32."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _outputs(
    sizes: Sizes,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    spread_is_scale: bool,
    seed: int | Tensor,
    offset: int,
    with_z: bool,
    with_kl: bool,
    with_log_q: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    groups, _, rows, cols = sizes
    shape = (groups, 1, rows, cols)
    z = kl = log_q = None
    if with_z or with_log_q:
        eps = noise_like(mean, sizes, seed, offset)
    if with_z:
        sigma = spread if spread_is_scale else torch.exp(0.5 * spread)
        z = mean.reshape(shape) + sigma.reshape(shape) * eps
    if with_kl:
        kl = gaussian_kl(mean, spread, prior_mean, prior_logvar)
    if with_log_q:
        log_q = -0.5 * (eps * eps + (spread.reshape(shape) + math.log(2 * math.pi))).sum(-1)
    return z, kl, log_q


def forward(
    sizes: Sizes,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    spread_is_scale: bool,
    seed: int | Tensor,
    offset: int,
    z: Tensor | None,
    kl: Tensor | None,
    log_q: Tensor | None,
) -> None:
    """The interface of the compiled kernels, over the formulas above."""
    results = _outputs(
        sizes,
        _compute(mean),
        _compute(spread),
        None if prior_mean is None else _compute(prior_mean),
        None if prior_logvar is None else _compute(prior_logvar),
        spread_is_scale,
        seed,
        offset,
        z is not None,
        kl is not None,
        log_q is not None,
    )
    for out, got in zip((z, kl, log_q), results, strict=True):
        if out is not None and got is not None:
            out.copy_(got.reshape(out.shape))


def backward(
    sizes: Sizes,
    mean: Tensor,
    spread: Tensor,
    prior_mean: Tensor | None,
    prior_logvar: Tensor | None,
    spread_is_scale: bool,
    seed: int | Tensor,
    offset: int,
    z_gradient: Tensor | None,
    kl_gradient: Tensor | None,
    log_q_gradient: Tensor | None,
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Gradients by autograd through the formulas above."""
    inputs = (mean, spread, prior_mean, prior_logvar)
    leaves = [None if x is None else _compute(x).detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        results = _outputs(
            sizes,
            leaves[0],  # type: ignore[arg-type]
            leaves[1],  # type: ignore[arg-type]
            leaves[2],
            leaves[3],
            spread_is_scale,
            seed,
            offset,
            z_gradient is not None,
            kl_gradient is not None,
            log_q_gradient is not None,
        )
    upstream = (z_gradient, kl_gradient, log_q_gradient)
    pairs = [
        (y, g) for y, g in zip(results, upstream, strict=True) if y is not None and g is not None
    ]
    wanted = [
        x for x, out in zip(leaves, outputs, strict=True) if x is not None and out is not None
    ]
    given = [y for y, _ in pairs]
    gradients = [g.reshape(y.shape).to(y.dtype) for y, g in pairs]
    found = iter(
        torch.autograd.grad(given, wanted, gradients, allow_unused=True)
        if given
        else [None] * len(wanted)
    )
    for x, out in zip(leaves, outputs, strict=True):
        if x is None or out is None:
            continue
        gradient = next(found)
        out.zero_() if gradient is None else out.copy_(gradient.reshape(out.shape))


def path_backward(
    sizes: Sizes,
    logvar: Tensor,
    seed: int | Tensor,
    offset: int,
    log_q_gradient: Tensor,
    z_gradient: Tensor,
) -> None:
    """The gradient of z where log q depends on z alone, d log q / dz = -eps / sigma, into
    `z_gradient`.
    """
    groups, samples, rows, cols = sizes
    logvar = _compute(logvar).reshape(groups, 1, rows, cols)
    slope = noise_like(logvar, sizes, seed, offset) * torch.exp(-0.5 * logvar)
    upstream = log_q_gradient.reshape(groups, samples, rows, 1).to(slope.dtype)
    z_gradient.copy_((-upstream * slope).reshape(z_gradient.shape))
