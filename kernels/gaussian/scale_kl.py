"""The KL of Gaussians given by their scales, element by element, by the KL kernel in q's units.

    KL(N(m, s^2) || N(m0, s0^2)) = 1/2 [ t^2 + psi(d) ],  t = (m - m0) / s0,  d = 2 ln(s / s0)

ln(s / s0) = +-ln(1 + |s - s0| / min(s, s0)) has every digit: the difference is exact where the
scales are close. In C++ it is one pass (`cpp_cpu.py`); elsewhere a few operations of torch prepare
t and d for the KL kernel.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.backends import function
from latent_kernels.kernels.gaussian import problem as gaussian
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


class Problem(NamedTuple):
    """N pairs of Gaussians p and q, in G groups."""

    sizes: tuple[int, int]
    loc: Annotated[Tensor, "GN"]
    scale: Annotated[Tensor, "GN"]
    q_loc: Annotated[Tensor, "GN"]
    q_scale: Annotated[Tensor, "GN"]


class Outputs(NamedTuple):
    """KL(p || q) of each pair; in a backward pass, its gradient."""

    kl: Annotated[Tensor, "GN"]


class Gradients(NamedTuple):
    """The gradients of the inputs."""

    loc: Tensor | None
    scale: Tensor | None
    q_loc: Tensor | None
    q_scale: Tensor | None


def scale_kl_forward(problem: Problem, outputs: Outputs) -> None:
    """Write the KL of each pair by operations of torch and the KL kernel."""
    (groups, pairs), loc, scale, q_loc, q_scale = problem
    t = torch.sub(loc, q_loc).div_(q_scale)
    difference = torch.sub(scale, q_scale)
    d = difference.abs().div_(torch.minimum(scale, q_scale)).log1p_()
    d.mul_(difference.sign_())  # in less than copysign's time
    d.add_(d)
    columns = t.unsqueeze_(-1), d.unsqueeze_(-1), None, None, None
    function("gaussian", "forward", loc.device)(
        gaussian.Problem((groups, 0, pairs, 1), *columns, 0, 0, gaussian.INDEPENDENT),
        gaussian.Outputs(None, outputs.kl, None),
    )


def scale_kl_backward(problem: Problem, upstream: Outputs, gradients: Gradients) -> None:
    """Write g t / s0 and g (r^2 - 1) / s for p; -g t / s0 and -g (t^2 + r^2 - 1) / s0 for q.

    r^2 - 1 = e (2 + e), e = (s - s0) / s0.
    """
    _, loc, scale, q_loc, q_scale = problem
    g, t = upstream.kl, torch.sub(loc, q_loc).div_(q_scale)
    if gradients.scale is not None or gradients.q_scale is not None:
        e = torch.sub(scale, q_scale).div_(q_scale)
        excess = (e + 2).mul_(e)
        if gradients.scale is not None:
            torch.mul(excess, g, out=gradients.scale).div_(scale)
        if gradients.q_scale is not None:
            torch.addcmul(excess, t, t, out=gradients.q_scale).mul_(g).div_(q_scale).neg_()
    if gradients.loc is not None or gradients.q_loc is not None:
        t = t.mul_(g).div_(q_scale)
        if gradients.loc is not None:
            gradients.loc.copy_(t)
        if gradients.q_loc is not None:
            torch.neg(t, out=gradients.q_loc)


SCALE_KL = Op(
    "gaussian_scale_kl",
    "gaussian",
    "GN",
    Problem,
    Outputs,
    Gradients,
    forward="scale_kl_forward",
    backward="scale_kl_backward",
    formula="scale_kl_formula",
)
