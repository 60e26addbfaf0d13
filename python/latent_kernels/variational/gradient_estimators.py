"""One gradient of an objective by q's parameters, by each estimator or exactly by enumeration.

Objectives, summed over q's batch, of values log w = log_joint(z) - log q(z):

    "elbo"              E_q[log w]
    "importance_bound"  E[L_S], L_S = log 1/S sum_s w_s over S samples of q; for S = 1 the ELBO
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from latent_kernels.variational.bounds import importance_bound
from latent_kernels.variational.families import Bernoulli, Categorical, DiagonalGaussian
from latent_kernels.variational.score import (
    CONTROL_VARIATES,
    disarm_gradient,
    score_function_gradient,
)

Tensor = torch.Tensor
Family = DiagonalGaussian | Bernoulli | Categorical
LogJoint = Callable[[Tensor], Tensor]
Gradient = tuple[Tensor, ...]

# Noise seeds follow from a name's place in this list: add new names at the end.
OBJECTIVES = {
    "elbo": (*CONTROL_VARIATES, "disarm", "reparameterized"),
    "importance_bound": ("iwae", "stl", "dreg", "vimco"),
}
_NEED_PATHS = ("reparameterized", "iwae", "stl", "dreg")
_MOST_STATES = 2**14


def defined(name: str, samples: int) -> bool:
    """Return whether an estimator exists for so many samples."""
    if name == "disarm":
        return samples % 2 == 0
    return samples >= 2 or name == "none" or name in _NEED_PATHS


def obstacle(name: str, objective: str, q: Family, log_joint: LogJoint) -> str | None:
    """Return why an estimator cannot be used, or None."""
    if name not in OBJECTIVES[objective]:
        (own,) = (known for known, names in OBJECTIVES.items() if name in names)
        return f"it is for the objective {own!r}; got objective {objective!r}"
    if name == "disarm" and not isinstance(q, Bernoulli):
        return f"it is for a Bernoulli; q is a {type(q).__name__}"
    if name not in _NEED_PATHS:
        return None
    if not isinstance(q, DiagonalGaussian):
        return f"it is for a DiagonalGaussian; q is a {type(q).__name__}"
    with torch.enable_grad():
        z = q.sample(2, seed=0).requires_grad_()
        try:
            values = log_joint(z)
        except (
            Exception
        ) as error:  # of any kind that log_joint raises: without autograd it has just worked
            return f"log_joint cannot be differentiated ({type(error).__name__}: {error})"
        if (
            not values.requires_grad
            or torch.autograd.grad(values.sum(), z, allow_unused=True)[0] is None
        ):
            return (
                "log_joint cannot be differentiated: its result does not depend on z through "
                "autograd"
            )
    return None


def estimate(name: str, q: Family, log_joint: LogJoint, samples: int, seed: int) -> Gradient:
    """Return one gradient by q's parameters, from `samples` evaluations of log_joint."""
    if name in OBJECTIVES["importance_bound"]:
        return _of_bound(name, q, log_joint, samples, seed)
    if name == "reparameterized":
        return _reparameterized(q, log_joint, samples, seed)
    with torch.no_grad():
        if name == "disarm":
            assert isinstance(q, Bernoulli)
            z = q.sample_antithetic(samples // 2, seed=seed)
            values = _log_weights(q, log_joint, z.flatten(0, 1), samples)
            return disarm_gradient(q, values.reshape(z.shape[:-1]), z)
        z = q.sample(samples, seed=seed)
        return score_function_gradient(
            q, _log_weights(q, log_joint, z, samples), z, control_variate=name
        )


def _reparameterized(q: Family, log_joint: LogJoint, samples: int, seed: int) -> Gradient:
    leaves = tuple(x.detach().requires_grad_() for x in q.parameters)
    with torch.enable_grad():
        tracked = DiagonalGaussian(*leaves)
        values = evaluate(tracked, log_joint, tracked.rsample(samples, seed=seed), samples)
        objective = values.mean(0).sum() + tracked.entropy().sum()
        return torch.autograd.grad(objective, leaves, allow_unused=True, materialize_grads=True)


def _of_bound(name: str, q: Family, log_joint: LogJoint, samples: int, seed: int) -> Gradient:
    leaves = tuple(x.detach().requires_grad_() for x in q.parameters)
    with torch.enable_grad():
        tracked = type(q)(*leaves)
        if name == "vimco":
            z = q.sample(samples, seed=seed)
            with torch.no_grad():
                values = evaluate(q, log_joint, z, samples)
            log_q = tracked.log_prob(z)
            bound = importance_bound(values - log_q, estimator=name, log_q=log_q)
        else:
            assert isinstance(tracked, DiagonalGaussian)
            z, log_q = tracked.rsample_log_prob(samples, seed=seed, path_derivative=name != "iwae")
            values = evaluate(q, log_joint, z, samples)
            bound = importance_bound(
                values - log_q, estimator=name, z=z if name == "dreg" else None
            )
        return torch.autograd.grad(bound.sum(), leaves, allow_unused=True, materialize_grads=True)


def _log_weights(q: Family, log_joint: LogJoint, z: Tensor, samples: int) -> Tensor:
    return evaluate(q, log_joint, z, samples) - q.log_prob(z)


def evaluate(q: Family, log_joint: LogJoint, z: Tensor, samples: int) -> Tensor:
    """Return log_joint(z), checked."""
    values = log_joint(z)
    shape = (samples, *q.batch_shape)
    if not isinstance(values, Tensor):
        raise TypeError(f"log_joint must return a torch.Tensor; got {type(values).__name__}")
    if not values.is_floating_point() or tuple(values.shape) != shape:
        raise ValueError(
            f"log_joint must return floating values of shape {shape} for z of shape "
            f"{tuple(z.shape)}; got {values.dtype}, {tuple(values.shape)}"
        )
    return values


# --- enumeration ----------------------------------------------------------------------------------


def enumerated_elbo(q: Family, log_joint: LogJoint) -> Gradient | None:
    """Return the gradient of sum_z q(z) log_joint(z) + H(q) over all z, in float64.

    It is None where there are too many z.
    """
    z = _states(q, 1)
    if z is None:
        return None
    found = _evaluated(q, log_joint, z)
    with torch.enable_grad():
        logits = q.parameters[0].detach().double().requires_grad_()
        exact = type(q)(logits)  # type: ignore[call-arg]
        p = torch.exp(exact.log_prob(z))
        objective = (p * found.masked_fill(p == 0, 0)).sum() + exact.entropy().sum()
        return torch.autograd.grad(objective, logits)


def enumerated_bound(q: Family, log_joint: LogJoint, samples: int) -> Gradient | None:
    """Return the gradient of E[L_S] over all S-tuples of states; None for too many of them."""
    z = _states(q, samples)
    if z is None:
        return None
    found = _evaluated(q, log_joint, z)
    states = torch.arange(len(z), device=q.device)
    which = torch.cartesian_prod(*[states] * samples).reshape(-1, samples).T  # [S, tuples]
    with torch.enable_grad():
        logits = q.parameters[0].detach().double().requires_grad_()
        log_q = type(q)(logits).log_prob(z)  # type: ignore[call-arg]
        log_w = (found - log_q).masked_fill(log_q == -math.inf, 0)
        p = torch.exp(log_q[which].sum(0))
        bound = torch.logsumexp(log_w[which], 0) - math.log(samples)
        return torch.autograd.grad((p * bound).sum(), logits)


def _states(q: Family, samples: int) -> Tensor | None:
    """Return all z of a discrete q, [states, ..., D]; None where their S-tuples are too many."""
    classes = q.classes or 2
    if isinstance(q, DiagonalGaussian) or samples * q.cols * math.log2(classes) > math.log2(
        _MOST_STATES
    ):
        return None
    places = classes ** torch.arange(q.cols, device=q.device)
    states = (torch.arange(classes**q.cols, device=q.device)[:, None] // places) % classes
    z = states.reshape(-1, *(1 for _ in q.batch_shape), q.cols).expand(-1, *q.batch_shape, -1)
    return z if q.classes else z.to(q.dtype)


def _evaluated(q: Family, log_joint: LogJoint, z: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat(
            [evaluate(q, log_joint, part, len(part)) for part in z.split(1024)]
        ).double()
