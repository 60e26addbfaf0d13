"""Lower bounds of log p(x) from samples of q: the ELBO and importance-weighted bounds.

All of them start from log-weights log w_s = log p(x, z_s) - log q(z_s), a tensor [S, ...] with
samples first.
"""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from latent_kernels import _checks
from latent_kernels.kernels.bounds.problem import BOUND, dims_of
from latent_kernels.kernels.eager import plain, row_dtype, unbatched
from latent_kernels.variational.diagnostics import normalized_weights

Tensor = torch.Tensor

_WEIGHTED = "_latent_kernels_weighted"  # an attribute of z
BOUND_ESTIMATORS = ("iwae", "vimco", "stl", "dreg")


def importance_bound(
    log_w: Tensor, *, estimator: str = "iwae", z: Tensor | None = None, log_q: Tensor | None = None
) -> Tensor:
    r"""Return the importance-weighted bound of log p(x), with one of four gradient estimators.

    .. math::
        L_S = \log \frac1S \sum_s w_s \le \log p(x), \qquad \tilde w_s = w_s / \sum_r w_r

    The value is the same for all four; S = 1 gives log w itself. The gradient of log_w is the
    normalised weights w~, so that a model's parameters theta in log p(x, z) always get sum_s w~_s d
    log p(x, z_s) / d theta. The estimators differ in the gradient of q's parameters:

    ========= ============================= ====================================================
    estimator what log_w must be made of    the gradient of q's parameters phi
    ========= ============================= ====================================================
    "iwae"    z reparameterized, log q(z)   sum_s w~_s d log w_s / d phi, the total derivative;
              with its gradients            unbiased, but for many samples its signal-to-noise
                                            ratio falls like 1 / sqrt(S)
    "stl"     z, log_q =                    the same, along z alone: zero where q is the
              q.rsample_log_prob(S,         posterior. Biased for S > 1, as "sticking the
              path_derivative=True)         landing" leaves out a term that has mean zero only
                                            for S = 1
    "dreg"    as for "stl"; and `z`         sum_s w~_s^2 (d log w_s / d z_s) (d z_s / d phi):
                                            doubly reparameterized, unbiased; where q is not
                                            narrower than the posterior its signal-to-noise
                                            ratio rises like sqrt(S)
    "vimco"   z any samples, also discrete  sum_s w~_s d log w_s / d phi
              ones, log q(z) with its       + sum_s (L - L_{-s}) d log q(z_s) / d phi, where
              gradients; and `log_q`        L_{-s} has the geometric mean of the other weights
                                            in the place of w_s; unbiased
    ========= ============================= ====================================================

    The forward pass reads log_w once; backward keeps log_w, its largest value and one sum. Second
    derivatives differentiate the gradient above as it stands: what "stl" holds fixed and the
    weights of "dreg" stay fixed (in a backward pass of its own, not one of the bound and its
    gradient together). "vimco", whose gradient is an estimate, has none; it and "dreg"
    have no forward mode.

    Args:
        log_w: [S, ...], float32, float64, bfloat16 or float16; -inf for a weight of zero.
        estimator: "iwae", "vimco", "stl" or "dreg".
        z: for "dreg", the samples [S, ..., D] that log_w was computed from, as `rsample_log_prob`
            returned them (not a view of them). A hook scales the whole gradient that reaches z by
            w~, also that of other terms of a loss that are computed from z: compute such terms from
            a z.clone() made before this call. Each z serves one bound; compute others, which are
            only looked at, under torch.no_grad().
        log_q: for "vimco", log q(z_s) [S, ...], the same tensor object that log_w was computed
            with. It gets a gradient; its values are not used.

    Returns:
        The bound [...] in nats, float32 for half-precision inputs. NaN where a log-weight is NaN;
        -inf where all weights are zero, with a gradient of NaN.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Burda, Grosse and Salakhutdinov, "Importance weighted autoencoders" (2016); Mnih and
        Rezende, "Variational inference for Monte Carlo objectives" (2016); Roeder, Wu and Duvenaud,
        "Sticking the landing" (2017); Rainforth et al., "Tighter variational bounds are not
        necessarily better" (2018); Tucker, Lawson, Gu and Maddison, "Doubly reparameterized
        gradient estimators for Monte Carlo objectives" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.DiagonalGaussian(torch.zeros(3, 2, requires_grad=True), torch.zeros(3, 2))
        >>> z, log_q = q.rsample_log_prob(50, seed=0, path_derivative=True)
        >>> log_w = lk.gaussian_log_prob(z, 1.0, 0.0) - log_q
        >>> bound = lk.importance_bound(log_w, estimator="dreg", z=z)
        >>> bound.shape
        torch.Size([3])
        >>> bound.sum().backward()
        >>> q.mean.grad.shape
        torch.Size([3, 2])

    """
    _checks.log_weights(log_w)
    if estimator not in BOUND_ESTIMATORS:
        known = ", ".join(repr(name) for name in BOUND_ESTIMATORS)
        raise ValueError(f"estimator must be one of {known}; got {estimator!r}")
    if z is not None or log_q is not None or estimator in ("dreg", "vimco"):
        _wanted("z", z, estimator, "dreg")
        _wanted("log_q", log_q, estimator, "vimco")
    if log_q is not None:
        (log_w, log_q), _ = _checks.together(log_w=log_w, log_q=log_q)  # type: ignore[assignment]
        assert log_q is not None
        if log_q.shape != log_w.shape:
            raise ValueError(
                f"log_q must have the shape of log_w, {tuple(log_w.shape)}; got "
                f"{tuple(log_q.shape)}"
            )
        if log_w.size(0) < 2:
            raise ValueError(
                "estimator 'vimco' compares each sample with the others: log_w must have S >= 2; "
                "got S = 1"
            )
    scale = None if z is None else _scale_by_weights(z, log_w)
    value: Tensor = BOUND(dims_of(log_w), (log_w, log_q))
    if scale is not None and value.requires_grad:
        value.register_hook(scale.of_bound)
    return value


def elbo(
    log_p: Tensor,
    *,
    kl: Tensor | None = None,
    entropy: Tensor | None = None,
    log_q: Tensor | None = None,
) -> Tensor:
    r"""Return the evidence lower bound, averaged over S samples, in one of three forms.

    The argument that is given besides log_p selects the form:

    ========= ===================================== ============================================
    `kl`      mean_s log p(x\|z_s) - KL(q || p(z))  log_p is the likelihood; the KL to the prior
                                                    is exact
    `entropy` mean_s log p(x, z_s) + H(q)           log_p is the joint; q's entropy is exact
    `log_q`   mean_s [log p(x, z_s) - log q(z_s)]   log_p is the joint; every term is estimated,
                                                    but where q is the posterior each sample
                                                    gives log p(x) itself
    ========= ===================================== ============================================

    Args:
        log_p: [S, ...], float32, float64, bfloat16 or float16.
        kl: KL(q || p(z)), [...]; see `rsample_kl` and `gaussian_kl`.
        entropy: the entropy of q, [...].
        log_q: log q(z_s), [S, ...]; see `rsample_log_prob`.

    Returns:
        The bound [...] in nats, float32 for half-precision inputs.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.

    Source:
        Kingma and Welling, "Auto-encoding variational Bayes" (2014), equations 6 and 7.

    Example:
        >>> import torch, latent_kernels as lk
        >>> z, kl = lk.rsample_kl(torch.zeros(3, 2), 0.0, num_samples=4, seed=0)
        >>> log_likelihood = lk.bernoulli_log_prob(torch.ones(3, 2), z)
        >>> lk.elbo(log_likelihood, kl=kl).shape
        torch.Size([3])

    """
    given = {
        name: x for name, x in (("kl", kl), ("entropy", entropy), ("log_q", log_q)) if x is not None
    }
    if len(given) != 1:
        raise ValueError(
            f"one of kl, entropy and log_q must be given; got {' and '.join(given) or 'none'}"
        )
    _checks.log_weights(log_p, "log_p")
    ((name, term),) = given.items()
    wanted = log_p.shape if name == "log_q" else log_p.shape[1:]
    _checks.floating(name, term)
    if term.shape != wanted:
        raise ValueError(
            f"{name} must have shape {tuple(wanted)}, to go with log_p; got {tuple(term.shape)}"
        )
    _checks.device_of(name, term, "log_p", log_p)
    dtype = row_dtype(torch.promote_types(log_p.dtype, term.dtype))
    if name == "log_q":
        return (log_p.to(dtype) - term.to(dtype)).mean(0)
    mean = log_p.mean(0, dtype=dtype)
    return mean - term if name == "kl" else mean + term


def _wanted(name: str, x: Tensor | None, estimator: str, user: str) -> None:
    """Check an argument that one estimator needs and the others do not take."""
    if (x is not None) == (estimator == user):
        return
    if x is None:
        raise ValueError(f"estimator {estimator!r} needs {name}; got None")
    raise ValueError(f"{name} is for estimator {user!r}; got it with {estimator!r}")


class _ScaleByWeights:
    """A hook of z that scales its gradient by the weights.

    Derivatives of a gradient that was scaled before are not scaled again: the weights are constants
    in them. Further hooks, on the bound, tell which of the two a backward pass differentiates.
    """

    def __init__(self, weights: Tensor):
        self.weights = weights
        # Ids of the last backward passes that differentiated the bound, and a gradient of it.
        self.first = self.second = -1

    def __call__(self, gradient: Tensor) -> Tensor:
        this = torch._C._current_graph_task_id()
        if this == self.second:
            if this == self.first:
                raise RuntimeError(
                    "a backward pass of estimator 'dreg' may differentiate the bound or a gradient "
                    "of it, not both at once: their sum reaches z. Differentiate them one by one"
                )
            return gradient
        scaled = gradient * self.weights.to(gradient.dtype)
        if scaled.requires_grad:  # create_graph=True
            scaled.register_hook(self.of_gradient)
        return scaled

    def of_bound(self, gradient: Tensor) -> None:
        """Note which backward pass differentiates the bound; a hook of the bound."""
        self.first = torch._C._current_graph_task_id()

    def of_gradient(self, gradient: Tensor) -> None:
        """Note which backward pass differentiates a scaled gradient; a hook of that."""
        self.second = torch._C._current_graph_task_id()


def _scale_by_weights(z: Tensor, log_w: Tensor) -> _ScaleByWeights | None:
    """Have backward multiply z's gradient by the normalised weights; return the hook that does."""
    _checks.float_tensor("z", z)
    _checks.device_of("z", z, "log_w", log_w)
    if z.shape[: log_w.dim()] != log_w.shape or z.dim() != log_w.dim() + 1:
        raise ValueError(
            f"z must have shape [*{tuple(log_w.shape)}, D], to go with log_w; got {tuple(z.shape)}"
        )
    if not torch.is_grad_enabled():
        return None
    if plain(z) and z.requires_grad:
        if z.is_leaf:
            raise ValueError(
                "z must be computed from q's parameters, as rsample_log_prob does; got a leaf of "
                "the graph"
            )
        if getattr(z, _WEIGHTED, False):
            raise ValueError(
                "z already carries the weights of another bound with estimator 'dreg': draw new "
                "samples"
            )
        setattr(z, _WEIGHTED, True)
    z, weights = unbatched(z, normalized_weights(log_w).unsqueeze(-1))
    if z.requires_grad:
        if torch.compiler.is_compiling():  # which has no second derivatives, and knows no methods
            z.register_hook(lambda gradient: gradient * weights.to(gradient.dtype))
            return None
        scale = _ScaleByWeights(weights)
        z.register_hook(scale)
        return scale
    if forward_ad._current_level >= 0 and forward_ad.unpack_dual(z).tangent is not None:
        raise NotImplementedError(
            "estimator 'dreg' scales gradients on their way back, and has no forward-mode "
            "derivatives of its own (jacfwd of jacrev, as in hessian, works)"
        )
    return None
