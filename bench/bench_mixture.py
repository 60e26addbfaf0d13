"""Time an iteration of EM, E-step and M-step from given parameters, against scikit-learn, oneDAL
and torch.

Shapes are N x D x K. The contenders get the same data, parameters and number of threads; what they
have of the last iteration's M-step (scikit-learn: Cholesky factors of the precisions) is theirs
before the clock starts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import harness
import latent_kernels as lk
import mixture_peers as peers
from harness import Contest, Group, close, groups, rows

Shape = tuple[int, int, int]
Call = Callable[[], Any]

DIAGONAL: tuple[Shape, ...] = ((200_000, 8, 8), (200_000, 16, 32), (100_000, 64, 64))
FULL: tuple[Shape, ...] = ((200_000, 16, 32),)
LARGEST_FULL: tuple[Shape, ...] = ((100_000, 64, 64),)
ONE: tuple[Shape, ...] = ((200_000, 16, 32),)
MIXED: tuple[Shape, ...] = ((200_000, len(peers.FAMILIES), 32),)
GROWING: tuple[Shape, ...] = tuple((10**power, 8, 8) for power in (4, 5, 6, 7))

# Relative to 1 + |value|. Float32: log-densities of size 100 are good to 1e-5; E x^2 - (E x)^2, as
# all peers but oneDAL have the variance, of 200 000 terms, was up to 5e-4 off. Ours sums in float64
# about the previous means.
TOLERANCE = {"float32": 2e-3, "float64": 1e-9}
TOLERANCE_OURS = {"float32": 2e-5, "float64": 1e-9}

LIBRARIES = {"scikit-learn": ("diag", "full", "tied", "spherical"), "daal4py": ("diag", "full")}


def operations(kind: str, shape: Shape) -> int:
    """Count the operations of the least algorithm, a product and a sum as two; softmax, K
    exponentials a row, is not counted.

    For each row and component: diag, and with missing values as if they were there: ((x - m) / s)^2
        and the sums of r x and r x^2 take four
            products with sums for each column;
        spherical: the same but for r |x - m|^2, which is one for all columns;
        mixed: a Bernoulli column takes two products with sums, a categorical one two sums at its
            class;
        full: D (D + 1) / 2 products with sums for U^T (x - m) and as many for r x x^T; squares and
            r x D each;
    tied: U^T x and x x^T once a row; x . U U^T m and r x D each.
    """
    n, d, k = shape
    each = {
        "spherical": 6 * d + 2,
        "mixed": 8 * peers.COLUMNS["gaussian"]
        + 4 * peers.COLUMNS["bernoulli"]
        + 2 * peers.COLUMNS["categorical"],
        "full": 2 * d * (d + 1) + 4 * d,
        "tied": 4 * d,
    }.get(kind, 8 * d)
    return n * k * each + (2 * n * d * (d + 1) if kind == "tied" else 0)


def _ours(given: peers.Problem) -> Call:
    """Return the call that computes statistics and parameters."""
    if given.kind != "mixed":
        kind = "diag" if given.kind == "missing" else given.kind

        def call() -> Any:
            found = lk.gaussian_e_step(given.X, given.weights, given.means, given.covariances, kind)
            return found, found.m_step(reg_covar=peers.REG_COVAR)

        return call
    p, q = np.split(given.chances, [peers.COLUMNS["bernoulli"]], axis=1)
    parameters = [
        *zip(given.means.T, given.covariances.T, strict=True),
        *p.T,
        *q.reshape(len(q), -1, peers.CLASSES).transpose(1, 0, 2),
    ]

    def call_mixed() -> Any:
        found = lk.exponential_family_e_step(given.X, given.weights, peers.FAMILIES, parameters)
        return found, found.m_step(reg_covar=peers.REG_COVAR), found.mean_parameters()

    return call_mixed


def _answer(out: Any) -> peers.Answer:
    found, parameters, *chances = out
    return peers.Answer(found.log_likelihood / found.total_weight, *parameters, *chances)


def _prepare(kind: str, shape: Shape, dtype: str, contenders: tuple[str, ...]) -> Contest:
    key = (kind, *shape, dtype)
    given, threads = peers.problem(*key), torch.get_num_threads()
    sums = peers.tied_sums if kind == "tied" else functools.partial(peers.sums, kind)
    chunk = peers.FULL_CHUNK if kind == "full" else peers.CHUNK
    ways: dict[str, Callable[[], Call]] = {
        "ours": lambda: _ours(given),
        "scikit-learn": lambda: peers.scikit_learn(given, threads),
        "daal4py": lambda: peers.daal(given, threads),
        "eager": lambda: peers.torch_call(given, sums),
        "chunks": lambda: peers.torch_call(given, sums, chunk),
        "compile": lambda: peers.torch_call(given, torch.compile(sums)),
    }
    if kind == "full":  # a whole array of N x K x D would not fit
        compiled = torch.compile(peers.triangular_sums)
        ways["eager"] = lambda: peers.torch_call(
            given, peers.triangular_sums, chunk, features=False
        )
        ways["compile"] = lambda: peers.torch_call(given, compiled, chunk, features=False)

    def check(contender: str, out: Any) -> None:
        allowed = (TOLERANCE_OURS if contender == "ours" else TOLERANCE)[dtype]
        found = _answer(out) if contender == "ours" else out
        for name, x, y in zip(peers.Answer._fields, found, peers.truth(*key), strict=True):
            wanted = torch.as_tensor(np.asarray(y, np.float64))
            if wanted.numel():
                got = torch.as_tensor(np.asarray(x, np.float64)).reshape(wanted.shape)
                close(got, wanted, allowed, f"{contender}'s {name}")

    return Contest({name: ways[name]() for name in contenders}, check)


def _group(
    kind: str, dtype: str, contenders: tuple[str, ...], shape: Shape, threads: int, device: str
) -> Group:
    names = tuple(name for name in contenders if kind in LIBRARIES.get(name, (kind,)))
    if peers.daal_missing() is not None:
        names = tuple(name for name in names if name != "daal4py")
    return Group(
        f"mixture {kind}",
        shape,
        threads,
        device,
        names,
        shape[0] * shape[1],
        math.prod(shape[:2])
        * np.dtype(dtype).itemsize,  # X read once; parameters and sums are nothing beside it
        operations(kind, shape),
        functools.partial(_prepare, kind, shape, dtype, names),
        dtype=dtype,
    )


ALL = ("ours", "scikit-learn", "daal4py", "eager", "chunks", "compile")


def _rows(groups: list[Group]) -> list[Any]:
    """Return the rows, and one skipped for each group that lacks oneDAL, with the reason."""
    params = rows(groups)
    missing = peers.daal_missing()
    if missing is not None:
        kinds = LIBRARIES["daal4py"]
        skipped = [
            group
            for group in groups
            if "scikit-learn" in group.contenders and group.op.split()[1] in kinds
        ]
        params += [
            pytest.param(group, "daal4py", marks=pytest.mark.skip(reason=missing))
            for group in skipped
        ]
    return params


DIAG, FULL64 = (
    functools.partial(_group, "diag", "float32"),
    functools.partial(_group, "full", "float64"),
)
GROUPS = groups(functools.partial(DIAG, ALL), DIAGONAL, two=DIAGONAL)
GROUPS += groups(functools.partial(FULL64, ALL), FULL, two=FULL)
# Seconds a round: without scikit-learn (five seconds a call), and of torch the faster way alone.
GROUPS += groups(
    functools.partial(FULL64, ("ours", "daal4py", "chunks")), LARGEST_FULL, two=LARGEST_FULL
)
for kind, shapes in (("spherical", ONE), ("tied", ONE), ("missing", ONE), ("mixed", MIXED)):
    GROUPS += groups(functools.partial(_group, kind, "float32", ALL), shapes, two=())
# The time of a row must not grow with their number; whole arrays in torch would be gigabytes in the
# last two.
GROUPS += groups(
    functools.partial(DIAG, ("ours", "eager", "chunks", "compile")), GROWING[:2], two=()
)
GROUPS += groups(functools.partial(DIAG, ("ours", "chunks")), GROWING[2:], two=())


@pytest.mark.parametrize(("group", "contender"), _rows(GROUPS))
def test_mixture(benchmark: Any, group: Group, contender: str) -> None:
    """Check and time an iteration of EM, by covariances, families and numbers of rows."""
    harness.run(benchmark, group, contender)
