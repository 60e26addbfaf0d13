"""The Gaussian op in plain torch, as the formulas stand in the paper; autograd gives its gradients.

q = N(mean, sigma^2), sigma^2 = e^logvar, prior N(m0, e^l0), all diagonal:

    z_s = mean + sigma eps_s                                           (Kingma & Welling 2014, eq. 4)
    KL  = 1/2 sum_d [ (mean - m0)^2 e^-l0 + psi(d) ],  d = logvar - l0,  psi(d) = e^d - 1 - d

psi is computed by its series near 0, where e^d - 1 - d loses every digit. Tests hold the compiled kernels against
these functions; devices without a compiled kernel run them.
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
    """ln(1 + x) - x for -0.7 < x < 2: with r = x / (2 + x), 2 (r^3/3 + r^5/5 + ...) - r x, of which none cancels."""
    r = x / (2 + x)
    y = r * r
    series = torch.zeros_like(x)
    for k in range(19, 0, -1):
        series = (series + 1 / (2 * k + 1)) * y
    return 2 * r * series - r * x


def gaussian_kl(mean: Tensor, logvar: Tensor, prior_mean: Tensor | None, prior_logvar: Tensor | None) -> Tensor:
    """KL(N(mean, e^logvar) || prior), summed over the last dimension; None stands for 0."""
    delta = mean if prior_mean is None else mean - prior_mean
    if prior_logvar is None:
        return 0.5 * (delta * delta + psi(logvar)).sum(-1)
    return 0.5 * ((delta * torch.exp(-0.5 * prior_logvar)) ** 2 + psi(logvar - prior_logvar)).sum(-1)


def noise_like(mean: Tensor, sizes: Sizes, seed: int | Tensor, offset: int) -> Tensor:
    """Eps [groups, samples, rows, cols], float32 values in the dtype that mean is computed in."""
    return torch.from_numpy(noise.of_groups("normal", sizes, seed, offset)).to(mean.device, mean.dtype)


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
) -> tuple[Tensor | None, Tensor | None]:
    groups, _, rows, cols = sizes
    shape = (groups, 1, rows, cols)
    z = kl = None
    if with_z:
        sigma = spread if spread_is_scale else torch.exp(0.5 * spread)
        z = mean.reshape(shape) + sigma.reshape(shape) * noise_like(mean, sizes, seed, offset)
    if with_kl:
        kl = gaussian_kl(mean, spread, prior_mean, prior_logvar)
    return z, kl


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
) -> None:
    """The interface of the compiled kernels, over the formulas above."""
    got_z, got_kl = _outputs(
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
    )
    if z is not None and got_z is not None:
        z.copy_(got_z.reshape(z.shape))
    if kl is not None and got_kl is not None:
        kl.copy_(got_kl.reshape(kl.shape))


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
    outputs: tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None],
) -> None:
    """Gradients by autograd through the formulas above."""
    inputs = (mean, spread, prior_mean, prior_logvar)
    leaves = [None if x is None else _compute(x).detach().requires_grad_() for x in inputs]
    with torch.enable_grad():
        z, kl = _outputs(
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
        )
    pairs = [(y, g) for y, g in ((z, z_gradient), (kl, kl_gradient)) if y is not None and g is not None]
    wanted = [x for x, out in zip(leaves, outputs, strict=True) if x is not None and out is not None]
    given = [y for y, _ in pairs]
    gradients = [g.reshape(y.shape).to(y.dtype) for y, g in pairs]
    found = iter(torch.autograd.grad(given, wanted, gradients, allow_unused=True) if given else [None] * len(wanted))
    for x, out in zip(leaves, outputs, strict=True):
        if x is None or out is None:
            continue
        gradient = next(found)
        out.zero_() if gradient is None else out.copy_(gradient.reshape(out.shape))
