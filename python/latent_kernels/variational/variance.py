"""Variance, bias and signal of gradient estimators, against the number of samples and against time.

The objective is the ELBO, E_q[log_joint(z)] + H(q), or the importance-weighted bound E[L_S]. Each
estimator gives its gradient by q's parameters from S samples; `profile_variance` runs each many
times at each S, from seeds of its own, and tabulates the results.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from latent_kernels import _checks
from latent_kernels.variational._statistics import COLUMNS, Floats, Summary, nulls, unflatten
from latent_kernels.variational.families import DiagonalGaussian
from latent_kernels.variational.gradient_estimators import (
    OBJECTIVES,
    Family,
    Gradient,
    LogJoint,
    defined,
    enumerated_bound,
    enumerated_elbo,
    estimate,
    evaluate,
    obstacle,
)

Tensor = torch.Tensor
Exact = dict[int, tuple[Floats, ...] | None]  # by the number of samples

ESTIMATORS = tuple(name for names in OBJECTIVES.values() for name in names)
POWERS_OF_TWO = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
# Fewer repeats say next to nothing about a variance.
_FEWEST_REPEATS = 8
_FEWEST_VISITS = 20
_DTYPE = np.dtype(
    [("estimator", "U16"), ("num_samples", "i8"), ("repeats", "i8"), *((c, "f8") for c in COLUMNS)]
)


class ProfileInterrupted(KeyboardInterrupt):
    """A KeyboardInterrupt while profiling.

    Its attribute `profile` is the profile of the numbers of samples that were complete, or None.
    """

    def __init__(self, profile: VarianceProfile | None):
        super().__init__()
        self.profile = profile


@dataclass(frozen=True)
class VarianceProfile:
    """The result of `profile_variance`, whose docstring says what the columns mean.

    Args:
        table: a structured array, a row for each estimator and number of samples; NaN, and 0
            repeats, where the estimator is not defined.
        parameter_mean: the mean gradient over the repeats, an array [rows, ...] for each of q's
            parameters.
        parameter_variance: the variance of a gradient, likewise.
        exact_gradient: the exact gradient, an array for each of q's parameters, or None where it is
            not known. That of "importance_bound" depends on S: arrays [rows, ...], NaN for an S at
            which it is not known.
        seed: the seed of the profile.
        objective: "elbo" or "importance_bound".

    """

    table: npt.NDArray[np.void]
    parameter_mean: tuple[Floats, ...]
    parameter_variance: tuple[Floats, ...]
    exact_gradient: tuple[Floats, ...] | None
    seed: int
    objective: str = "elbo"

    @property
    def estimators(self) -> tuple[str, ...]:
        """The estimators, in the order of the table."""
        return tuple(dict.fromkeys(self.table["estimator"].tolist()))

    def rows(self, estimator: str) -> npt.NDArray[np.void]:
        """Return the table's rows of one estimator, by increasing number of samples."""
        if estimator not in self.estimators:
            raise ValueError(
                f"estimator must be one of {', '.join(self.estimators)}; got {estimator!r}"
            )
        chosen: npt.NDArray[np.void] = self.table[self.table["estimator"] == estimator]
        return chosen

    def to_csv(self, path: str | Path) -> None:
        """Write the table at full precision; undefined rows hold nan."""
        with open(path, "w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(self.table.dtype.names or ())
            writer.writerows(self.table.tolist())

    def to_json(self, path: str | Path) -> None:
        """Write the table and the arrays of the single parameters; NaN and infinity become null."""
        exact = self.exact_gradient
        content = {
            "seed": int(self.seed),
            "objective": self.objective,
            "confidence": 0.95,
            "rows": [
                dict(zip(self.table.dtype.names or (), row, strict=True))
                for row in self.table.tolist()
            ],
            "parameter_mean": [x.tolist() for x in self.parameter_mean],
            "parameter_variance": [x.tolist() for x in self.parameter_variance],
            "exact_gradient": None if exact is None else [x.tolist() for x in exact],
        }
        Path(path).write_text(
            json.dumps(nulls(content), allow_nan=False, indent=1) + "\n", encoding="utf-8"
        )


def profile_variance(
    q: Family,
    log_joint: LogJoint,
    *,
    objective: str = "elbo",
    estimators: Sequence[str] | None = None,
    num_samples: Sequence[int] = POWERS_OF_TWO,
    repeats: int = 256,
    seed: int = 0,
    exact_gradient: Sequence[Tensor] | Callable[[int], Sequence[Tensor] | None] | None = None,
    progress: Callable[[int, int], object] | None = None,
) -> VarianceProfile:
    r"""Return how noisy gradient estimators are, and how fast, for each number of samples.

    Objective "elbo", E_q[log_joint(z)] + H(q):

    ================== ==================================================== ======================
    estimator          the gradient from S evaluations of log_joint         needs
    ================== ==================================================== ======================
    "none"             score function, values log_joint(z) - log q(z), no
                       control variate
    "leave_one_out"    the same, less the mean of the other values          S >= 2
    "optimal"          the same, with the best coefficients, cross-fitted   S >= 2
    "disarm"           DisARM over S / 2 antithetic pairs, which are S      Bernoulli, S even
                       evaluations, as many as the others make
    "reparameterized"  gradient of mean log_joint(z(noise)) + H(q)          DiagonalGaussian,
                                                                            log_joint
                                                                            differentiable
    ================== ==================================================== ======================

    Objective "importance_bound", which differs for each S and is the ELBO for S = 1:

    .. math::
        E[L_S], \qquad L_S = \log \frac1S \sum_s e^{\text{log\_joint}(z_s) - \log q(z_s)}

    `importance_bound` says more about its estimators:

    ================== ==================================================== ======================
    "iwae"             the total derivative, along z(noise) and in log q    as "reparameterized"
    "stl"              that along z(noise) alone; biased for S > 1          as "reparameterized"
    "dreg"             the same with squares of the normalised weights      as "reparameterized"
    "vimco"            score function, each sample beside the others        S >= 2
    ================== ==================================================== ======================

    Columns of the table, computed from R repeats g_r of a gradient with P parameters (those of the
    whole batch), their mean :math:`\bar g` and standard deviation sd:

    - variance: the trace of the covariance matrix, :math:`\sum_r |g_r - \bar g|^2 / (R - 1)`.
      variance_low, variance_high: its 95% interval, a studentized bootstrap of the mean squared
      deviation on the log scale, widened at either end to the delta method's
      :math:`\exp(\log V \pm 1.96\, se / V)` where that is wider. It covers 92% to 97% of the time,
      except where rare draws make much of the variance (few Gaussian parameters and one or two
      samples): there 87% to 90% with R = 256.
    - bias_z: the largest :math:`|\bar g - g| / (sd / \sqrt R)` among the parameters, with g the
      exact gradient, as the quantile of a normal variable. bias_p: its p-value
      :math:`\min(1, P \cdot \Pr(|N(0, 1)| > \text{bias\_z}))`. For an unbiased estimator the
      probability of bias_p < p is at most p once R is large enough for the mean to be normal,
      however the parameters correlate. The exact gradient is `exact_gradient`, or found by
      enumeration for Bernoulli and Categorical up to 2^14 states ("importance_bound": S-tuples of
      states); NaN where there is none. Rounding of q's dtype counts as noise; parameters whose rare
      value is expected fewer than 20 times in all are left out.
    - signal_to_noise: :math:`|E g| / \sqrt V`, where V is the variance and the square of E g is
      estimated by :math:`|\bar g|^2` less its own variance, or 0 where that is negative.
      signal_to_noise_low, signal_to_noise_high: its 95% interval, by the jackknife of its square.
      It covers 91% to 99% of the time, nearly always where there is no signal; about 80% for a weak
      signal of a single parameter.
    - seconds: the median time of one gradient on this machine, with sampling and log_joint; the
      estimators take turns in random order.
    - variance_time: variance times seconds, the measure where a budget of time is spent on
      averaging; its interval combines those of the variance and of the median.

    Everything but the times follows from `seed`: each estimator, S and repeat has a noise seed of
    its own, which does not depend on what else is profiled. torch's own generators are not used.
    R x P float64 numbers are held at a time.

    Args:
        q: the family at whose parameters the gradient is taken.
        log_joint: a function of z [S, ..., D] that returns [S, ...], S first and then q's batch
            shape; deterministic, and of each sample by itself. It is called without autograd except
            by "reparameterized", "iwae", "stl" and "dreg".
        objective: "elbo" or "importance_bound".
        estimators: names from the table above, of that objective; None for all that apply.
        num_samples: the S to profile.
        repeats: R >= 8 gradients for each row.
        seed: an int in [0, 2^63).
        exact_gradient: the exact gradient by each of q's parameters, where it is known. For
            "importance_bound" a function of S that returns it, or None for an S at which it is not
            known.
        progress: called as progress(done, total) after each gradient.

    Returns:
        A `VarianceProfile`. Values of log_joint that are not finite make the row's numbers NaN.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        ProfileInterrupted: a KeyboardInterrupt that holds the part of the profile that is complete.

    Source:
        Mohamed, Rosca, Figurnov and Mnih, "Monte Carlo gradient estimation in machine learning"
        (2020), section 3; for the signal Rainforth et al., "Tighter variational bounds are not
        necessarily better" (2018), section 3; for the intervals Efron and Tibshirani, "An
        introduction to the bootstrap" (1993), sections 11 and 12.5.

    Example:
        >>> import torch, latent_kernels as lk
        >>> q = lk.Bernoulli(torch.zeros(3))
        >>> profile = lk.profile_variance(
        ...     q, lambda z: -(z - 0.3).square().sum(-1), num_samples=[4, 16], repeats=32
        ... )
        >>> profile.estimators
        ('none', 'leave_one_out', 'optimal', 'disarm')
        >>> few, many = profile.rows("leave_one_out")["variance"]
        >>> bool(many < few)
        True

    """
    sizes, repeats, seed = _checked(q, num_samples, repeats, seed)
    q = type(q)(*(x.detach() for x in q.parameters))
    chosen = _applicable(q, log_joint, objective, estimators)
    exact = _exact(q, log_joint, objective, exact_gradient, sizes)
    total = repeats * sum(defined(name, s) for name in chosen for s in sizes)
    rows: dict[tuple[str, int], Summary] = {}
    done, order = 0, np.random.default_rng(seed)

    def tabulate(complete: list[int]) -> VarianceProfile:
        return _tabulate(
            q,
            objective,
            [(name, s) for name in chosen for s in complete],
            rows,
            exact,
            seed,
            repeats,
        )

    try:
        for s in sizes:
            names = [name for name in chosen if defined(name, s)]
            gradients = {
                name: np.empty((repeats, sum(x.numel() for x in q.parameters))) for name in names
            }
            seconds = {name: np.empty(repeats) for name in names}
            seeds = {name: _seeds(seed, name, s, repeats) for name in names}
            for name in names:  # the first call is slower than those that follow
                estimate(name, q, log_joint, s, seeds[name][0])
            for r in range(repeats):
                for name in order.permutation(
                    names
                ).tolist():  # so that noise of the machine is shared
                    found, seconds[name][r] = _timed(name, q, log_joint, s, seeds[name][r])
                    gradients[name][r] = np.concatenate([_numpy(x).reshape(-1) for x in found])
                    done += 1
                    if progress is not None:
                        progress(done, total)
            eps = torch.finfo(q.dtype).eps
            for name in names:
                rows[name, s] = Summary.of(
                    gradients[name], seconds[name], _compared(q, exact[s], s * repeats), eps
                )
    except KeyboardInterrupt:
        # Rows come S by S; an S at which nothing is defined is as complete as can be.
        complete = (
            [s for s in sizes if all((n, s) in rows for n in chosen if defined(n, s))]
            if rows
            else []
        )
        raise ProfileInterrupted(tabulate(complete) if complete else None) from None
    return tabulate(sizes)


# --- checks ---------------------------------------------------------------------------------------


def _checked(
    q: Family, num_samples: Sequence[int], repeats: int, seed: int
) -> tuple[list[int], int, int]:
    """Return the numbers of samples, each once and in rising order, the repeats and the seed."""
    if not isinstance(q, Family):
        raise TypeError(
            f"q must be a DiagonalGaussian, Bernoulli or Categorical; got {type(q).__name__}"
        )
    if not q.parameters[0].numel():
        raise ValueError(
            "q must have at least one element; its parameters have shape "
            f"{tuple(q.parameters[0].shape)}"
        )
    given = list(map(_checks.as_int, num_samples)) if isinstance(num_samples, Iterable) else []
    sizes = sorted({s for s in given if s is not None and s >= 1})
    if not given or any(s not in sizes for s in given):
        raise ValueError(f"num_samples must hold ints >= 1; got {num_samples!r}")
    return sizes, _checks.integer("repeats", repeats, _FEWEST_REPEATS), _checks.seed_number(seed)


def _applicable(
    q: Family, log_joint: LogJoint, objective: str, estimators: Sequence[str] | None
) -> list[str]:
    """Return the estimators asked for, or all that apply; raise for those that do not."""
    if objective not in OBJECTIVES:
        raise ValueError(
            f"objective must be one of {', '.join(map(repr, OBJECTIVES))}; got {objective!r}"
        )
    if isinstance(estimators, str) or (estimators is not None and not estimators):
        raise ValueError(f"estimators must be a sequence of names or None; got {estimators!r}")
    for name in estimators or ():
        if name not in ESTIMATORS:
            raise ValueError(f"estimators must be among {', '.join(ESTIMATORS)}; got {name!r}")
    with torch.no_grad():
        evaluate(q, log_joint, q.sample(2, seed=0), 2)
    chosen = []
    for name in dict.fromkeys(estimators or OBJECTIVES[objective]):
        reason = obstacle(name, objective, q, log_joint)
        if reason is None:
            chosen.append(name)
        elif estimators is not None:
            raise ValueError(f"estimators has {name!r}, which does not apply: {reason}")
    return chosen


def _exact(
    q: Family, log_joint: LogJoint, objective: str, given: object, sizes: list[int]
) -> Exact:
    """Return the exact gradient for each number of samples: given, enumerated, or None."""
    if objective == "elbo":
        found = enumerated_elbo(q, log_joint) if given is None else _given(q, given)
        gradient = None if found is None else tuple(_numpy(x) for x in found)
        return dict.fromkeys(sizes, gradient)
    if given is not None and not callable(given):
        raise TypeError(
            f"exact_gradient must be a function of S for objective {objective!r}; got "
            f"{type(given).__name__}"
        )
    exact: Exact = {}
    for s in sizes:
        at_s = enumerated_bound(q, log_joint, s) if given is None else given(s)
        at_s = at_s if given is None or at_s is None else _given(q, at_s)
        exact[s] = None if at_s is None else tuple(_numpy(x) for x in at_s)
    return exact


def _given(q: Family, given: object) -> Sequence[Tensor]:
    """Return the exact gradient that the caller gave, checked."""
    if not isinstance(given, Sequence) or len(given) != len(q.parameters):
        raise ValueError(
            f"exact_gradient must hold {len(q.parameters)} tensors, as q has parameters; got "
            f"{type(given).__name__}"
        )
    for x, parameter in zip(given, q.parameters, strict=True):
        if not isinstance(x, Tensor):
            raise TypeError(f"exact_gradient must hold tensors; got {type(x).__name__}")
        if x.shape != parameter.shape:
            raise ValueError(
                f"exact_gradient must have the shapes of q's parameters: {tuple(parameter.shape)}; "
                f"got {tuple(x.shape)}"
            )
    return given


# --- gradients ------------------------------------------------------------------------------------


def _seeds(seed: int, name: str, samples: int, repeats: int) -> list[int]:
    """Return noise seeds of the repeats; the first ones are the same however many there are."""
    sequence = np.random.SeedSequence(seed, spawn_key=(ESTIMATORS.index(name), samples))
    words: list[int] = sequence.generate_state(repeats, np.uint64).tolist()
    return [word >> 1 for word in words]


def _timed(
    name: str, q: Family, log_joint: LogJoint, samples: int, seed: int
) -> tuple[Gradient, float]:
    if q.device.type == "cuda":
        torch.cuda.synchronize(q.device)
    start = time.perf_counter()
    found = estimate(name, q, log_joint, samples, seed)
    if q.device.type == "cuda":
        torch.cuda.synchronize(q.device)
    return found, time.perf_counter() - start


def _compared(q: Family, exact: tuple[Floats, ...] | None, draws: int) -> Floats | None:
    """Return the exact gradient [P], NaN for parameters that cannot be compared.

    Those are the ones whose rare value is expected too seldom for the mean to be normal.
    """
    if exact is None:
        return None
    truth = np.concatenate([x.reshape(-1) for x in exact])
    if not isinstance(q, DiagonalGaussian):
        p = _numpy(q.mean_parameters()[0]).reshape(-1)
        truth[draws * np.minimum(p, 1 - p) < _FEWEST_VISITS] = np.nan
    return truth


def _numpy(x: Tensor) -> Floats:
    return x.detach().to("cpu", torch.float64).numpy()


# --- the table ------------------------------------------------------------------------------------


def _tabulate(
    q: Family,
    objective: str,
    keys: list[tuple[str, int]],
    rows: dict[tuple[str, int], Summary],
    exact: Exact,
    seed: int,
    repeats: int,
) -> VarianceProfile:
    table = np.zeros(len(keys), dtype=_DTYPE)
    shapes = [tuple(x.shape) for x in q.parameters]
    nothing = np.full(sum(x.numel() for x in q.parameters), np.nan)
    for line, key in zip(table, keys, strict=True):
        row = rows.get(key)
        line["estimator"], line["num_samples"], line["repeats"] = *key, repeats if row else 0
        for column in COLUMNS:
            line[column] = row.columns[column] if row else np.nan
    means = unflatten([rows[key].mean if key in rows else nothing for key in keys], shapes)
    variances = unflatten([rows[key].variance if key in rows else nothing for key in keys], shapes)
    truth = exact[keys[0][1]]
    if objective == "importance_bound":
        known = {
            s: nothing if x is None else np.concatenate([part.reshape(-1) for part in x])
            for s, x in exact.items()
        }
        given = any(x is not None for x in exact.values())
        truth = unflatten([known[s] for _, s in keys], shapes) if given else None
    return VarianceProfile(table, means, variances, truth, seed, objective)
