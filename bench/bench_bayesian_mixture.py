"""One iteration of variational Bayes for a Gaussian mixture, beside scikit-learn's.

A `fit` of one iteration with warm_start is ours: a pass over the data and the update of the
posterior and its bound. scikit-learn's is its E-step, its update and its bound, without the checks
of `fit`.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.mixture import BayesianGaussianMixture
from threadpoolctl import ThreadpoolController

import harness
import latent_kernels as lk
from bench_mixture import operations
from harness import Contest, Group, close, groups, rows
from mixture_peers import problem

# A fit of one iteration does not converge.
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

DIAGONAL, FULL = ((200_000, 16, 32), (100_000, 64, 64)), ((200_000, 16, 32),)
FITTED = ("weight_concentration_", "means_", "covariances_")


def _start(model: Any, kind: str, given: Any) -> Any:
    """Return the model after one iteration on a few rows, from which the contest goes on."""
    components, size = given.means.shape
    scale = {"full": np.eye(size), "diag": np.ones(size)}[kind]
    model.set_params(
        n_components=components,
        covariance_type=kind,
        init_params="random_from_data",
        max_iter=1,
        tol=0,
        mean_prior=np.zeros(size),
        covariance_prior=scale,
        random_state=0,
        warm_start=True,
    )
    return model.fit(given.X[:2000])


def _prepare(kind: str, shape: tuple[int, int, int], dtype: str) -> Contest:
    given, threads = problem(kind, *shape, dtype), torch.get_num_threads()
    ours = _start(lk.BayesianGaussianMixture(), kind, given)
    theirs = _start(BayesianGaussianMixture(), kind, given)
    begin, start = dict(vars(ours)), theirs._get_parameters()
    controller = ThreadpoolController()

    def call() -> Any:
        vars(ours).update(begin)
        return ours.fit(given.X)

    def scikit_learn() -> Any:
        with controller.limit(limits=threads, user_api="blas"):
            theirs._set_parameters(start)
            log_norm, log_r = theirs._e_step(given.X)
            theirs._m_step(given.X, log_r)
            theirs._compute_lower_bound(log_r, log_norm)
        return theirs

    wanted = {name: np.asarray(getattr(scikit_learn(), name)).copy() for name in FITTED}

    def check(contender: str, out: Any) -> None:
        for name, x in wanted.items():
            found = torch.as_tensor(np.asarray(getattr(out, name)))
            close(found, torch.as_tensor(x), 1e-9, f"{contender}'s {name}")

    return Contest({"ours": call, "scikit-learn": scikit_learn}, check)


def _group(kind: str, shape: tuple[int, int, int], threads: int, device: str) -> Group:
    return Group(
        f"mixture, variational Bayes, {kind}",
        shape,
        threads,
        device,
        ("ours", "scikit-learn"),
        shape[0] * shape[1],
        math.prod(shape[:2]) * 8,
        operations(kind, shape),
        functools.partial(_prepare, kind, shape, "float64"),
        dtype="float64",
    )


GROUPS = groups(functools.partial(_group, "diag"), DIAGONAL, two=DIAGONAL[:1])
GROUPS += groups(functools.partial(_group, "full"), FULL, two=FULL)


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_bayesian_mixture(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time an iteration of variational Bayes."""
    harness.run(benchmark, group, contender)
