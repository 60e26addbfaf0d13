"""`latent-kernels mixture`: EM on real data, drawn, and its speed beside scikit-learn's."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich.box import SIMPLE
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.exceptions import ConvergenceWarning

import latent_kernels as lk
from latent_kernels.examples import measure, mixture_pictures
from latent_kernels.examples.mixture_data import DATA, TOLERANCE, Data, Fit, Outcome
from latent_kernels.examples.variance_command import FORMATS, BadOption, check_writable
from latent_kernels.kernels.mixture.model import COVARIANCE_TYPES
from latent_kernels.mixtures.gaussian_mixture import GaussianMixture
from latent_kernels.mixtures.sufficient_statistics import GaussianParameters

Floats = NDArray[np.float64]
Advance = Callable[[], None]

STARTS = 5
REG_COVAR = 1e-6  # added to every variance; more of it, and the likelihood could fall
MOST_ITERATIONS = 500
LEAST_COMPARED = 8  # BIC is drawn up to this K, or to two more than the one asked for


@dataclass(frozen=True)
class Request:
    """What the command was asked for."""

    data: str
    components: int | None
    covariance_type: str
    seed: int
    out: Path
    compare: bool

    def check(self) -> None:
        """Raises BadOption, or OSError for a file that could not be written, before there is any
        work to lose.
        """
        for option, value, known in (
            ("--data", self.data, tuple(DATA)),
            ("--covariance-type", self.covariance_type, COVARIANCE_TYPES),
        ):
            if value not in known:
                raise BadOption(option, f"must be one of {', '.join(known)}; got {value!r}")
        if self.out.suffix.lower() not in FORMATS:
            raise BadOption("--out", f"must end in {', '.join(FORMATS)}; got {str(self.out)!r}")
        check_writable(self.out)


# --- fitting --------------------------------------------------------------------------------------


def fit_from(data: Data, start: GaussianParameters, covariance_type: str) -> Fit:
    """EM until the mean log-likelihood changes by less than TOLERANCE, with all that it came
    through.
    """
    trace: list[GaussianParameters] = [start]
    found: list[float] = []
    while len(found) < MOST_ITERATIONS and not (
        len(found) > 1 and abs(found[-1] - found[-2]) < TOLERANCE
    ):
        weights, means, covariances = trace[-1]
        statistics = lk.gaussian_e_step(data.X, weights, means, covariances, covariance_type)
        trace.append(statistics.m_step(reg_covar=REG_COVAR, covariances=covariances))
        found.append(statistics.log_likelihood / statistics.total_weight)
    return Fit(trace, found)


def _model(data: Data, components: int, covariance_type: str, **options: Any) -> GaussianMixture:
    """An estimator that starts from rows far apart as means, and the covariance of all rows for
    each of them.
    """
    whole = np.linalg.inv(np.cov(data.X, rowvar=False, bias=True))
    precisions = {
        "full": np.repeat(whole[None], components, axis=0),
        "tied": whole,
        "diag": np.tile(1 / data.X.var(axis=0), (components, 1)),
        "spherical": np.full(components, 1 / data.X.var(axis=0).mean()),
    }[covariance_type]
    given = {
        "init_params": "k-means++",
        "precisions_init": precisions,
        "reg_covar": REG_COVAR,
        "tol": TOLERANCE,
    }
    return GaussianMixture(components, covariance_type=covariance_type, **{**given, **options})


def _parameters(model: GaussianMixture) -> GaussianParameters:
    return GaussianParameters(model.weights_, model.means_, model.covariances_)


def plan(components: int, rows: int) -> range:
    """The numbers of components to compare."""
    return range(1, min(max(LEAST_COMPARED, components + 2), rows) + 1)


def fit(
    data: Data, components: int, covariance_type: str, seed: int, advance: Advance = lambda: None
) -> Outcome:
    """EM from STARTS random starts, and the BIC of other numbers of components; calls `advance`
    after each of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", ConvergenceWarning
        )  # too many components: `summary` says it of the best fit
        generator, fits = (
            np.random.RandomState(seed),
            [],
        )  # from which the estimator draws its starts one by one
        for _ in range(STARTS):
            start = _model(
                data, components, covariance_type, max_iter=0, random_state=generator
            ).fit(data.X)
            fits.append(fit_from(data, _parameters(start), covariance_type))
            advance()
        fits.sort(key=lambda f: -f.log_likelihood[-1])
        best = _with_parameters(data, covariance_type, fits[0].trace[-1])
        bic = {}
        for k in plan(components, len(data.X)):
            options = {"n_init": STARTS, "max_iter": MOST_ITERATIONS, "random_state": seed}
            other = (
                best if k == components else _model(data, k, covariance_type, **options).fit(data.X)
            )
            bic[k] = float(other.bic(data.X))
            advance()
    return Outcome(data, covariance_type, fits, best.predict_proba(data.X), bic)


def _with_parameters(
    data: Data, covariance_type: str, parameters: GaussianParameters
) -> GaussianMixture:
    """The estimator as if it had been fitted to these."""
    weights, means, covariances = parameters
    matrices = covariance_type in ("full", "tied")
    precisions = np.linalg.inv(covariances) if matrices else 1 / covariances
    given = {"weights_init": weights, "means_init": means, "precisions_init": precisions}
    return _model(data, len(weights), covariance_type, max_iter=0, **given).fit(data.X)


def write_figure(
    path: Path,
    *,
    data: str = "iris",
    components: int | None = None,
    covariance_type: str = "full",
    seed: int = 0,
) -> Outcome:
    """Fits and draws, without a word."""
    chosen = DATA[data]()
    outcome = fit(chosen, components or chosen.classes, covariance_type, seed)
    mixture_pictures.draw(outcome, path)
    return outcome


# --- speed ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Size:
    """What is compared with scikit-learn."""

    rows: int = 200_000
    columns: int = 16
    components: int = 32
    rounds: int = 5


SIZE = Size()


@dataclass(frozen=True)
class Speed:
    """An iteration of EM, E-step and M-step, from the same parameters."""

    covariance_type: str
    dtype: str
    ours: float  # seconds
    sklearn: float
    difference: float  # the greatest of any new parameter, relative to 1 + |value|


def _start(size: Size, seed: int) -> tuple[Floats, GaussianParameters]:
    """Data, and parameters a little off those that they come from, with variances [K, D]."""
    rng, shape = np.random.default_rng(seed), (size.components, size.columns)
    centres = rng.standard_normal(shape)
    X = (
        rng.standard_normal((size.rows, size.columns))
        + centres[rng.integers(size.components, size=size.rows)]
    )
    means = centres + 0.2 * rng.standard_normal(shape)
    return X, GaussianParameters(
        np.full(size.components, 1 / size.components), means, np.ones(shape)
    )


def compare_speed(size: Size, seed: int) -> Iterator[Speed]:
    """Diagonal covariances of float32, full ones of float64."""
    start = _start(size, seed)
    for covariance_type, dtype in (("diag", "float32"), ("full", "float64")):
        yield _compare(*start, covariance_type, dtype, size.rounds)


def _compare(
    X: Floats, start: GaussianParameters, covariance_type: str, dtype: str, rounds: int
) -> Speed:
    from sklearn.mixture import GaussianMixture as Theirs

    X = X.astype(dtype)
    weights, means, covariances = (a.astype(dtype) for a in start)
    if covariance_type == "full":
        covariances = covariances[:, :, None] * np.eye(X.shape[1], dtype=dtype)
    theirs = Theirs(len(weights), covariance_type=covariance_type)
    found: dict[str, list[Any]] = {}

    def ours() -> None:
        statistics = lk.gaussian_e_step(X, weights, means, covariances, covariance_type)
        found["ours"] = [
            statistics.log_likelihood / len(X),
            *statistics.m_step(reg_covar=theirs.reg_covar),
        ]

    def sklearn() -> None:
        theirs.weights_, theirs.means_ = weights, means
        theirs.precisions_cholesky_ = covariances  # of unit ones
        log_likelihood, log_r = theirs._e_step(X)
        theirs._m_step(X, log_r)
        found["sklearn"] = [log_likelihood, theirs.weights_, theirs.means_, theirs.covariances_]

    with _blas_threads():
        seconds = measure.interleaved(ours, sklearn, rounds=rounds)
    pairs = zip(found["ours"], found["sklearn"], strict=True)
    difference = max(float((abs(a - b) / (1 + abs(np.asarray(b)))).max()) for a, b in pairs)
    return Speed(covariance_type, dtype, *seconds, difference)


@contextmanager
def _blas_threads() -> Iterator[None]:
    """Give NumPy's BLAS as many threads as torch has."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    with threadpool_limits(limits=torch.get_num_threads(), user_api="blas"):
        yield


# --- the command ----------------------------------------------------------------------------------


def run(request: Request, console: Console) -> bool:
    """Fits, draws, compares and prints; returns whether it was interrupted while it compared."""
    request.check()
    data = DATA[request.data]()
    components = request.components or data.classes
    if components > len(data.X):
        raise BadOption(
            "--components", f"must be at most {len(data.X)}, the number of rows; got {components}"
        )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("fits", total=STARTS + len(plan(components, len(data.X))))
        outcome = fit(
            data, components, request.covariance_type, request.seed, lambda: progress.advance(task)
        )
        mixture_pictures.draw(outcome, request.out)
    for line in (*summary(outcome), f"In {request.out}."):
        console.print(line, highlight=False, soft_wrap=True)
    try:
        if request.compare:
            with console.status("Measuring against scikit-learn"):
                speeds = list(compare_speed(SIZE, request.seed))
            console.print(_table(speeds))
    except KeyboardInterrupt:
        return True
    return False


def summary(outcome: Outcome) -> list[str]:
    """What was fitted, and what BIC says."""
    best, components = outcome.fits[0], outcome.responsibilities.shape[1]
    rows = len(outcome.data.X)
    least = min(outcome.bic, key=outcome.bic.__getitem__)
    lines = [
        f"{outcome.data.title}: {rows} rows, {components} components, {outcome.covariance_type} "
        "covariances.",
        f"Log-likelihood {best.log_likelihood[-1]:.6f} nats per row after "
        f"{len(best.log_likelihood)} iterations, the best of {STARTS} starts.",
        f"BIC {outcome.bic[components]:.1f}; it is least, {outcome.bic[least]:.1f}, with {least} "
        "components.",
    ]
    if not best.converged:
        lines.append(f"It did not converge in {len(best.log_likelihood)} iterations.")
    if best.lost:
        lines.append(f"{best.lost} of {components} components have lost all their weight.")
    return lines


def _table(speeds: list[Speed]) -> Table:
    threads = torch.get_num_threads()
    title = f"An iteration of EM, {SIZE.rows} x {SIZE.columns}, {SIZE.components} components, "
    caption = (
        "medians of runs in turns; difference: the greatest of the new parameters, relative to 1 + "
        "|value|"
    )
    table = Table(
        title=title + f"{threads} thread{'s' * (threads > 1)}", caption=caption, box=SIMPLE
    )
    for name in ("covariances", "dtype", "latent-kernels", "scikit-learn", "ratio", "difference"):
        table.add_column(
            name, justify="left" if name in ("covariances", "dtype") else "right", no_wrap=True
        )
    for s in speeds:
        times = (
            f"{1e3 * s.ours:.1f} ms",
            f"{1e3 * s.sklearn:.1f} ms",
            f"{s.sklearn / s.ours:.1f}x",
        )
        table.add_row(s.covariance_type, s.dtype, *times, f"{s.difference:.0e}")
    return table
