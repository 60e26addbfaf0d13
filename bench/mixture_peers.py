"""One iteration of EM as other libraries run it: scikit-learn, oneDAL, torch; the data, and the
answer in float64.

The torch peers are matrix products: log p(x | k) is linear in blocks of features of x, [x, x^2] of
a diagonal Gaussian or [x, x x^T] of a full one, so that both the densities and the sums of the
M-step are products with these blocks.
"""

from __future__ import annotations

import functools
import importlib.util
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

Tensor = torch.Tensor
Array = NDArray[Any]
REG_COVAR = 1e-6  # added to every variance: scikit-learn's default
COLUMNS = {"gaussian": 8, "bernoulli": 8, "categorical": 4}  # of mixed data, in this order
CLASSES = 5
FAMILIES = [family for family, count in COLUMNS.items() for _ in range(count)]
MISSING = 0.01
CHUNK, FULL_CHUNK = (
    8000,
    500,
)  # rows that were fastest on one thread of the machine of the saved runs


class Problem(NamedTuple):
    """Data, and the parameters that the iteration begins with."""

    kind: str  # "full", "tied", "diag", "spherical", "missing" (diag), "mixed"
    X: Array  # [N, D]
    weights: Array  # [K]
    means: Array  # [K, D]
    covariances: Array  # in the shapes of scikit-learn; of mixed data [K, Gaussian columns]
    chances: Array  # of mixed data [K, 8 + 4 * 5], of each Bernoulli column and class


class Answer(NamedTuple):
    """The results of an iteration."""

    log_likelihood: float  # at the initial parameters, a mean over rows, in nats
    weights: Array
    means: Array
    covariances: Array
    chances: Array = np.zeros(0)


@functools.lru_cache(maxsize=1)
def problem(kind: str, rows: int, size: int, components: int, dtype: str) -> Problem:
    """Return data from components a few standard deviations apart, and parameters a little off
    those of the data.

    Centres are N(0, 4) in each of up to four columns and in proportion closer in more, so that they
    overlap at any D: far apart, responsibilities would be 0 and 1, and a kernel could skip most of
    the work.
    """
    rng = np.random.default_rng(size * components)
    gaussians = COLUMNS["gaussian"] if kind == "mixed" else size
    centres = rng.standard_normal((components, gaussians)) * 2 * min(1.0, math.sqrt(4 / gaussians))
    which = rng.integers(components, size=rows)
    X = rng.standard_normal((rows, gaussians), dtype=np.dtype(dtype))
    for part in _parts(rows):
        X[part] += centres[which[part]].astype(dtype)
    chances = np.zeros((components, 0))
    if kind == "mixed":
        p = rng.uniform(0.1, 0.9, (components, COLUMNS["bernoulli"]))
        q = rng.dirichlet(np.full(CLASSES, 2.0), (components, COLUMNS["categorical"]))
        draws = rng.random((rows, COLUMNS["bernoulli"])) < p[which]
        levels = rng.random((rows, COLUMNS["categorical"], 1)) > q.cumsum(-1)[which][..., :-1]
        X = np.concatenate([X, draws, levels.sum(-1)], axis=1).astype(dtype)
        chances = np.concatenate([p, q.reshape(components, -1)], axis=1)
    if kind == "missing":
        X[rng.random(X.shape) < MISSING] = np.nan
    weights = rng.dirichlet(np.full(components, 20.0))
    means = centres + 0.2 * rng.standard_normal(centres.shape)
    return Problem(kind, X, weights, means, _covariances(kind, components, gaussians, rng), chances)


def _covariances(kind: str, components: int, size: int, rng: np.random.Generator) -> Array:
    if kind in ("full", "tied"):
        noise = rng.standard_normal((components, size, 2 * size)) / math.sqrt(2 * size)
        result = 0.6 * np.eye(size) + 0.5 * noise @ noise.transpose(0, 2, 1)
        return result if kind == "full" else result[0]
    return np.exp(
        0.2 * rng.standard_normal(components if kind == "spherical" else (components, size))
    )


def _parts(rows: int, of: int = 20_000) -> Iterator[slice]:
    for start in range(0, rows, of):
        yield slice(start, min(start + of, rows))


# --- the answer -----------------------------------------------------------------------------------


@functools.lru_cache(maxsize=1)
def truth(*key: Any) -> Answer:
    """Return the iteration of `problem(*key)` computed by the formulas, in NumPy and float64, one
    component after the other.
    """
    given = problem(*key)
    kind, (components, size) = given.kind, given.means.shape
    total, counts = 0.0, np.zeros(components)
    there, first = np.zeros((components, size)), np.zeros((components, size))
    second = np.zeros((components, size, size) if kind in ("full", "tied") else (components, size))
    chances = np.zeros_like(given.chances)
    roots = [_root(given, k) for k in range(components)]
    for part in _parts(len(given.X)):
        x = given.X[part].astype(np.float64)
        hot = encoded(x)[:, size:] if kind == "mixed" else x[:, :0]
        joint = np.stack(
            [_log_joint(given, k, roots[k], x[:, :size], hot) for k in range(components)], axis=1
        )
        top = joint.max(axis=1, keepdims=True)
        r = np.exp(joint - top)
        sums = r.sum(axis=1, keepdims=True)
        r /= sums
        total += float((top + np.log(sums)).sum())
        counts += r.sum(axis=0)
        there += r.T @ ~np.isnan(x[:, :size])
        chances += r.T @ hot
        for k in range(components):
            t = np.nan_to_num(x[:, :size] - given.means[k])
            first[k] += r[:, k] @ t
            second[k] += (r[:, k, None] * t).T @ t if second.ndim == 3 else r[:, k] @ (t * t)
    delta = first / there
    covariances = _maximum(kind, counts, there, delta, second)
    chances = chances / counts[:, None]
    return Answer(
        total / len(given.X), counts / counts.sum(), given.means + delta, covariances, chances
    )


def _root(given: Problem, k: int) -> Array:
    """Return U with Sigma^-1 = U U^T, or the inverse standard deviations [D]."""
    if given.kind not in ("full", "tied"):
        variances = given.covariances[k]
        return np.broadcast_to(1 / np.sqrt(variances), given.means.shape[1:])
    covariance = given.covariances if given.kind == "tied" else given.covariances[k]
    return np.linalg.inv(np.linalg.cholesky(covariance)).T


def _log_joint(given: Problem, k: int, root: Array, x: Array, hot: Array) -> Array:
    """Return log pi_k + log p(x | k) [n]; a missing value has density 1."""
    t = x - given.means[k]
    if root.ndim == 2:
        constant = np.log(np.diag(root)).sum() - 0.5 * len(root) * math.log(2 * math.pi)
        return np.log(given.weights[k]) + constant - 0.5 * ((t @ root) ** 2).sum(axis=1)
    terms = np.log(root) - 0.5 * math.log(2 * math.pi) - 0.5 * (t * root) ** 2
    result = np.log(given.weights[k]) + np.nansum(terms, axis=1)
    if given.kind == "mixed":
        slope, base = canonical(torch.from_numpy(given.chances[k]))
        result += hot @ slope.numpy() + float(base)
    return result


def _maximum(kind: str, counts: Array, there: Array, delta: Array, second: Array) -> Array:
    if kind == "spherical":
        return (second / there - delta**2).mean(axis=1) + REG_COVAR
    if second.ndim == 2:
        return second / there - delta**2 + REG_COVAR
    each = second / counts[:, None, None] - delta[:, :, None] * delta[:, None, :]
    if kind == "tied":
        each = np.einsum("k,kij->ij", counts / counts.sum(), each)
    return each + REG_COVAR * np.eye(delta.shape[1])


# --- libraries ------------------------------------------------------------------------------------


def scikit_learn(given: Problem, threads: int) -> Callable[[], Answer]:
    """Return a call of GaussianMixture's own E-step and M-step, in the data's dtype; its BLAS gets
    the threads, NumPy has one.
    """
    from sklearn.mixture import GaussianMixture
    from sklearn.mixture._gaussian_mixture import _compute_precision_cholesky
    from threadpoolctl import ThreadpoolController

    dtype = given.X.dtype
    model = GaussianMixture(len(given.weights), covariance_type=given.kind, reg_covar=REG_COVAR)
    controller = ThreadpoolController()
    weights, means, covariances = (
        x.astype(dtype) for x in (given.weights, given.means, given.covariances)
    )
    roots = _compute_precision_cholesky(
        covariances, given.kind
    )  # which an M-step leaves for the next E-step

    def call() -> Answer:
        with controller.limit(limits=threads, user_api="blas"):
            model.weights_, model.means_, model.precisions_cholesky_ = weights, means, roots
            log_likelihood, log_r = model._e_step(given.X)
            model._m_step(given.X, log_r)
        return Answer(float(log_likelihood), model.weights_, model.means_, model.covariances_)

    return call


def daal_missing() -> str | None:
    """Return why oneDAL is left out, or None."""
    if importlib.util.find_spec("daal4py") is None:
        return "daal4py is not installed: pip install scikit-learn-intelex"
    return None


def daal(given: Problem, threads: int) -> Callable[[], Answer]:
    """Return a call of one iteration of oneDAL's em_gmm.

    Its loop makes one pass of 512-row blocks for the E-step and the M-step together, and the goal
    function that it returns is that of the parameters given, as ours: no E-step follows the last
    M-step. It regularizes only what is singular, so that REG_COVAR is added here.
    """
    import daal4py

    daal4py.daalinit(threads)
    dtype, storage = given.X.dtype, "diagonal" if given.kind == "diag" else "full"
    model = daal4py.em_gmm(
        nComponents=len(given.weights),
        maxIterations=1,
        covarianceStorage=storage,
        fptype="float" if dtype == np.float32 else "double",
    )
    weights, means = given.weights[None].astype(dtype), given.means.astype(dtype)
    covariances = [np.ascontiguousarray(np.atleast_2d(c)) for c in given.covariances.astype(dtype)]
    extra = REG_COVAR if storage == "diagonal" else REG_COVAR * np.eye(means.shape[1])

    def call() -> Answer:
        result = model.compute(given.X, weights, means, covariances)
        found = np.stack(result.covariances).reshape(given.covariances.shape) + extra
        return Answer(
            result.goalFunction[0, 0] / len(given.X), result.weights[0], result.means, found
        )

    return call


# --- torch ----------------------------------------------------------------------------------------

Sums = tuple[Tensor, ...]  # sum of log p(x), counts [K], and a block's sums each [K, F]


def encoded(x: Array) -> Array:
    """Return mixed data with one-hot classes: [n, 8 + 8 + 4 * 5]."""
    split = COLUMNS["gaussian"] + COLUMNS["bernoulli"]
    hot = x[:, split:, None] == np.arange(CLASSES)
    return np.concatenate([x[:, :split], hot.reshape(len(x), -1)], axis=1).astype(x.dtype)


def canonical(chances: Tensor) -> tuple[Tensor, Tensor]:
    """Return the natural parameters of Bernoulli columns and classes [..., F], and the rest of the
    log-density [...].
    """
    count = COLUMNS["bernoulli"]
    p, q = chances[..., :count], chances[..., count:]
    return torch.cat([torch.logit(p), torch.log(q)], -1), torch.log1p(-p).sum(-1)


def blocks(kind: str, x: Tensor) -> tuple[Tensor, ...]:
    """Return the features in which the log-density is linear."""
    if kind == "spherical":
        return x, (x * x).sum(1, keepdim=True)
    if kind == "full":  # i <= j: half the products that x x^T has
        i, j = torch.triu_indices(x.size(1), x.size(1))
        return x, x[:, i] * x[:, j]
    if kind == "missing":
        there = ~torch.isnan(x)
        x = torch.where(there, x, 0.0)
        return there.to(x.dtype), x, x * x
    if kind == "mixed":
        g = x[:, : COLUMNS["gaussian"]]
        return g, g * g, x[:, COLUMNS["gaussian"] :]
    return x, x * x


def coefficients(
    kind: str, weights: Tensor, means: Tensor, covariances: Tensor, chances: Tensor
) -> tuple[Tensor, ...]:
    """Return a constant [K] and a matrix [F, K] for each block."""
    size = means.size(1)
    if kind == "full":
        precision = torch.cholesky_inverse(torch.linalg.cholesky(covariances))
        linear = torch.einsum("kij,kj->ki", precision, means)
        i, j = torch.triu_indices(size, size)
        quadratic = -0.5 * precision[:, i, j] * torch.where(i == j, 1, 2)
        constant = -0.5 * (
            (linear * means).sum(1) + torch.logdet(covariances) + size * math.log(2 * math.pi)
        )
        return constant + weights.log(), linear.t(), quadratic.t()
    variances = covariances[:, None] if kind == "spherical" else covariances
    constants = -0.5 * (means**2 / variances + torch.log(2 * math.pi * variances))
    linear, quadratic = (means / variances).t(), -0.5 / variances.t()
    if kind == "missing":
        return weights.log(), constants.t(), linear, quadratic
    constant = weights.log() + constants.sum(1)
    if kind == "mixed":
        slope, base = canonical(chances)
        return constant + base, linear, quadratic, slope.t()
    return constant, linear, quadratic


def sums(kind: str, x: Tensor, constant: Tensor, *matrices: Tensor) -> Sums:
    """Return the sums over the rows x, for log-densities that are linear in `blocks`."""
    features = blocks(kind, x)
    joint = constant
    for f, matrix in zip(features, matrices, strict=True):
        joint = torch.addmm(joint, f, matrix)
    log_density = torch.logsumexp(joint, 1, keepdim=True)
    r = torch.exp(joint - log_density)
    return (log_density.sum(), r.sum(0), *(r.t() @ f for f in features))


def tied_sums(x: Tensor, root: Tensor, constant: Tensor, linear: Tensor) -> Sums:
    """Return the sums for a tied covariance: y = U^T x has the identity as covariance, and |y|^2 is
    the same for every component.
    """
    y = x @ root
    joint = torch.addmm(constant, y, linear)
    log_density = torch.logsumexp(joint, 1, keepdim=True)
    r = torch.exp(joint - log_density)
    return log_density.sum() - 0.5 * (y * y).sum(), r.sum(0), r.t() @ x, x.t() @ x


def triangular_sums(x: Tensor, roots: Tensor, shift: Tensor, constant: Tensor) -> Sums:
    """Return the sums for full covariances: y = U_k^T (x - m_k) of all components in one product,
    and r_k x x^T likewise; torch has no triangular product.
    """
    components, size, _ = roots.shape
    y = x @ roots.transpose(0, 1).reshape(size, -1) - shift.reshape(-1)
    joint = constant - 0.5 * (y * y).view(-1, components, size).sum(2)
    log_density = torch.logsumexp(joint, 1, keepdim=True)
    r = torch.exp(joint - log_density)
    weighted = (r[:, :, None] * x[:, None, :]).reshape(len(x), -1)
    return log_density.sum(), r.sum(0), r.t() @ x, (weighted.t() @ x).view(components, size, size)


def torch_call(
    given: Problem, function: Any, chunk: int | None = None, features: bool = True
) -> Callable[[], Answer]:
    """Return the iteration with `function`, one of the sums above: over all rows at once, or over
    chunks of them.
    """
    kind = given.kind
    X = torch.from_numpy(encoded(given.X) if kind == "mixed" else given.X)
    parameters = [torch.from_numpy(a).to(X.dtype) for a in given[2:]]

    def call() -> Answer:
        with torch.no_grad():
            made = _arguments(kind, features, *parameters)
            parts = X.split(chunk or len(X))
            found = function(parts[0], *made)
            for part in parts[1:]:
                found = tuple(a + b for a, b in zip(found, function(part, *made), strict=True))
            return _m_step(kind, len(X), [a.double() for a in found])

    return call


def _arguments(
    kind: str, features: bool, weights: Tensor, means: Tensor, covariances: Tensor, chances: Tensor
) -> Any:
    if kind != "tied" and (features or kind != "full"):
        return coefficients(kind, weights, means, covariances, chances)
    root = torch.linalg.inv(torch.linalg.cholesky(covariances)).mT
    constant = weights.log() + torch.diagonal(root, dim1=-2, dim2=-1).log().sum(-1)
    constant = constant - 0.5 * means.size(1) * math.log(2 * math.pi)
    if kind == "full":
        return root, torch.einsum("ki,kij->kj", means, root), constant
    centres = means @ root
    return root, constant - 0.5 * (centres * centres).sum(1), centres.t()


def _m_step(kind: str, rows: int, found: list[Tensor]) -> Answer:
    """Return the new parameters by E x^2 - (E x)^2, which loses digits where the mean is large
    compared with the standard deviation.
    """
    total, counts, *moments = found
    chances = (
        moments.pop() / counts[:, None] if kind == "mixed" else counts.new_zeros(len(counts), 0)
    )
    there = moments.pop(0) if kind == "missing" else counts[:, None]
    means = moments[0] / there
    size = means.size(1)
    if kind == "spherical":
        covariances = (moments[1] / there - (means**2).sum(1, keepdim=True))[
            :, 0
        ] / size + REG_COVAR
    elif kind == "tied":
        covariances = (
            moments[1] - (means * counts[:, None]).t() @ means
        ) / rows + REG_COVAR * torch.eye(size)
    elif kind == "full":
        second = moments[1]
        if second.dim() == 2:  # of i <= j
            i, j = torch.triu_indices(size, size)
            square = second.new_empty(len(counts), size, size)
            square[:, i, j] = square[:, j, i] = second
            second = square
        covariances = second / counts[:, None, None] - means[:, :, None] * means[:, None, :]
        covariances = covariances + REG_COVAR * torch.eye(size)
    else:
        covariances = moments[1] / there - means**2 + REG_COVAR
    arrays = (counts / counts.sum(), means, covariances, chances)
    return Answer(float(total) / rows, *(a.numpy() for a in arrays))
