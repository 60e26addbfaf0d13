"""`lk.orthogonal_matching_pursuit` against scikit-learn's `orthogonal_mp_gram`, for the same codes.

scikit-learn is given the products that it wants with the data, as in its `sparse_encode`.
"""

from __future__ import annotations

import functools
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import orthogonal_mp_gram

import harness
import latent_kernels as lk
from harness import Contest, Group, groups, rows

Tensor = torch.Tensor
Case = tuple[int, int, int, int, str]  # rows, features, components, atoms of a row, dtype

CASES: tuple[Case, ...] = (
    (2000, 20, 30, 2, "float32"),
    (1000, 64, 256, 6, "float32"),
    (1000, 64, 256, 6, "float64"),
    (1000, 100, 400, 10, "float32"),
    (500, 250, 500, 25, "float32"),
    (300, 256, 1024, 50, "float32"),
    (300, 256, 1024, 50, "float64"),
)


def _problem(case: Case) -> tuple[Tensor, Tensor]:
    count, features, components, atoms, dtype = case
    generator = np.random.default_rng(0)
    d = generator.standard_normal((components, features))
    d /= np.linalg.norm(d, axis=1, keepdims=True)
    codes = np.zeros((count, components))
    for row in codes:
        row[generator.choice(components, atoms, replace=False)] = generator.standard_normal(atoms)
    x = codes @ d + 0.05 * generator.standard_normal((count, features))
    return torch.from_numpy(x.astype(dtype)), torch.from_numpy(d.astype(dtype))


def _sklearn(x: Tensor, d: Tensor, atoms: int) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        gram, products = (d @ d.T).numpy(), (d @ x.T).numpy()
        return orthogonal_mp_gram(gram, products, n_nonzero_coefs=atoms, copy_Xy=False).T


def _prepare(case: Case) -> Contest:
    x, d = _problem(case)
    atoms = case[3]
    ours = functools.partial(lk.orthogonal_matching_pursuit, x, d, n_nonzero_coefs=atoms)
    expected = lk.orthogonal_matching_pursuit(x.double(), d.double(), n_nonzero_coefs=atoms)
    least = (x.double() - expected @ d.double()).square().sum(-1)

    def check(_: str, out: Any) -> None:
        codes = torch.as_tensor(out).double()
        assert int((codes != 0).sum(-1).max()) <= atoms
        # where two atoms fit equally well, rounding may choose
        same = ((codes != 0) == (expected != 0)).all(-1)
        assert float(same.double().mean()) > 0.99, "other atoms than in float64"
        left = (x.double() - codes @ d.double()).square().sum(-1)
        above = float(((left - least) / least)[same].max())
        assert above <= 1e-4, f"residuals {above:.1e} above those in float64"

    return Contest({"ours": ours, "sklearn": functools.partial(_sklearn, x, d, atoms)}, check)


def _group(case: Case, threads: int, device: str) -> Group:
    count, features, components, atoms, dtype = case
    size = 8 if dtype == "float64" else 4
    return Group(
        f"omp {atoms} atoms",
        (count, features, components),
        threads,
        device,
        ("ours", "sklearn"),
        count * components,
        # x and D read, codes written
        size * (count * (features + components) + features * components),
        # of the correlations, and of the rows of the factor
        count * components * (2 * features + atoms * (atoms + 1)),
        functools.partial(_prepare, case),
        dtype=dtype,
    )


GROUPS = groups(_group, CASES, two=CASES[3:6])


@pytest.mark.parametrize(("group", "contender"), rows(GROUPS))
def test_omp(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time batches beside scikit-learn."""
    harness.run(benchmark, group, contender)
