"""`lk.sparse_encode` against SPAMS and scikit-learn, to the same objective.

"unsolved" in the name of a row says that its objective is not the same: our ISTA ends where its
iterations do, and scikit-learn's descent where its own tolerance says.

`pip install spams-bin` brings SPAMS, the fastest rival we know; the rows run without it. Both
rivals take paths: LARS ends at the exact optimum, coordinate descent at the tolerance that is
given.
"""

from __future__ import annotations

import functools
import importlib.util
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.decomposition import sparse_encode
from sklearn.exceptions import ConvergenceWarning

import harness
import latent_kernels as lk
from harness import Contest, Group, groups, rows
from latent_kernels.cli.timing import Call

Tensor = torch.Tensor
Case = tuple[
    str, int, int, int, float, float
]  # atoms, rows, features, components, density of the codes, alpha

# Random atoms and smooth ones, as patches of images have; the optimum's codes are 4 to 17% dense.
CASES: tuple[Case, ...] = (
    ("random", 1000, 100, 400, 0.05, 0.3),
    ("random", 1000, 100, 400, 0.1, 0.15),
    ("smooth", 8192, 64, 256, 0.06, 0.3),
    ("smooth", 2000, 64, 256, 0.12, 0.1),
    ("random", 1000, 250, 500, 0.05, 0.3),
)
SPAMS = importlib.util.find_spec("spams") is not None
OURS = {"cd": "cd", "fista": "fista", "ista unsolved": "ista"}  # by contender
UNSOLVED = {
    "ista unsolved": 1.0,
    "sklearn cd unsolved": 1e-3,
}  # the most that objectives may be above the minimum, as shares of it
FEW = 50  # rows that scikit-learn is given: it takes 20 to 600 times as long


def _problem(case: Case) -> tuple[Tensor, Tensor]:
    atoms, count, features, components, density, _ = case
    generator = np.random.default_rng(0)
    d = generator.standard_normal((components, features))
    if atoms == "smooth":
        side = round(features**0.5)
        d = d.reshape(components, side, side)
        for axis in (1, 2):
            d = d + np.roll(d, 1, axis) + 0.5 * np.roll(d, 2, axis)
        d = d.reshape(components, features)
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    codes = generator.standard_normal((count, components)) * (
        generator.random((count, components)) < density
    )
    x = codes @ d + 0.05 * generator.standard_normal((count, features))
    return torch.from_numpy(x.astype(np.float32)), torch.from_numpy(d.astype(np.float32))


def _objective(x: Tensor, d: Tensor, z: Any, alpha: float) -> Tensor:
    z = torch.as_tensor(z.toarray().T if hasattr(z, "toarray") else z).double()
    return 0.5 * (x.double() - z @ d.double()).square().sum(-1) + alpha * z.abs().sum(-1)


def _ours(x: Tensor, d: Tensor, alpha: float, algorithm: Any) -> Tensor:
    codes, _ = lk.sparse_encode(x, d, algorithm=algorithm, alpha=alpha, return_gap=True)
    return codes  # whether they are solved is for the check to say, not for a warning


def _sklearn(x: Tensor, d: Tensor, alpha: float, algorithm: str) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return sparse_encode(
            x.numpy(), d.numpy(), algorithm=algorithm, alpha=alpha, max_iter=10_000
        )


def _prepare(case: Case, threads: int, few: bool) -> Contest:
    alpha = case[-1]
    x, d = _problem(case)
    calls: dict[str, Call] = {}
    if few:
        x = x[:FEW].contiguous()
        calls["sklearn lars"] = functools.partial(_sklearn, x, d, alpha, "lasso_lars")
        calls["sklearn cd unsolved"] = functools.partial(_sklearn, x, d, alpha, "lasso_cd")
    else:
        import spams

        columns, atoms = np.asfortranarray(x.numpy().T), np.asfortranarray(d.numpy().T)
        calls["spams"] = lambda: spams.lasso(
            columns, D=atoms, lambda1=alpha, mode=2, numThreads=threads
        )
    for name, algorithm in OURS.items():
        calls[name] = functools.partial(_ours, x, d, alpha, algorithm)

    best, gap = lk.sparse_encode(
        x.double(), d.double(), algorithm="cd", alpha=alpha, tol=1e-12, return_gap=True
    )
    least = _objective(x, d, best, alpha)
    assert bool((gap <= 1e-11 * least).all())

    def check(contender: str, out: Any) -> None:
        above = float(((_objective(x, d, out, alpha) - least) / least).max())
        assert above <= UNSOLVED.get(contender, 1e-6), f"{above:.1e} of the minimum above it"

    return Contest(calls, check)


def _group(few: bool, case: Case, threads: int, device: str) -> Group:
    atoms, count, features, components, density, _ = case
    count = FEW if few else count
    return Group(
        f"lasso {atoms} {density:.0%}",
        (count, features, components),
        threads,
        device,
        (*OURS, "sklearn lars", "sklearn cd unsolved") if few else (*OURS, "spams"),
        count * components,
        4
        * (count * (features + components) + features * components),  # x and D read, codes written
        2
        * count
        * features
        * components,  # of the correlations alone; what follows depends on the codes
        functools.partial(_prepare, case, threads, few),
        ours=tuple(OURS),
    )


GROUPS = groups(functools.partial(_group, False), CASES, two=CASES) if SPAMS else []
GROUPS += groups(functools.partial(_group, True), CASES[:3:2], two=())


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_lasso(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time batches beside SPAMS, and a few rows beside scikit-learn."""
    harness.run(benchmark, group, contender)
