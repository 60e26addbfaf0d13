"""The interface of sampling discrete families: problem and outputs, the same for all backends."""

from __future__ import annotations

from typing import Annotated, NamedTuple

import torch

from latent_kernels.kernels.backends import function
from latent_kernels.kernels.op import Op

Tensor = torch.Tensor


def _int64(dtype: torch.dtype) -> torch.dtype:
    return torch.int64


class Problem(NamedTuple):
    """S samples of each of N x D variables, in G groups; README.md has the rules."""

    sizes: tuple[int, int, int, int, int, int]  # G, P (2 for pairs, else 1), S, N, D, K
    logits: Annotated[Tensor, "GNDK"]  # a Bernoulli's have no K
    seed: int | Tensor
    offset: int
    antithetic: bool  # pairs of a Bernoulli


class Samples(NamedTuple):
    """Samples of a Bernoulli: 0 and 1, and NaN where the logit is NaN."""

    z: Annotated[Tensor, "GPSND"]


class Classes(NamedTuple):
    """Samples of a Categorical: classes."""

    z: Annotated[Tensor, "GPSND", _int64]


def _sample(problem: Problem, outputs: Samples | Classes) -> None:
    """Draw by the device's backend; GPUs do not check that every variable has probabilities."""
    if function("families", "sample", problem.logits.device)(problem, outputs) is False:
        raise ValueError(
            "logits must leave each variable of a Categorical some class; those of at least one "
            "hold NaN or inf, or are -inf for every class"
        )


BERNOULLI = Op(
    "bernoulli_sample",
    "families",
    "GPSNDK",
    Problem,
    Samples,
    forward=_sample,
    absent=lambda offset, antithetic: "EK" if antithetic else "PEK",
)
CATEGORICAL = Op(
    "categorical_sample",
    "families",
    "GPSNDK",
    Problem,
    Classes,
    forward=_sample,
    absent=lambda offset, antithetic: "PE",
)


def unit_weight(classes: int) -> float:
    """Return the weight of the most probable of K classes in fixed point, 2^(62 - ceil(log2 K)): K
    of them sum to 2^62 at most.
    """
    return 2.0 ** (62 - (classes - 1).bit_length())


def classes_of(problem: Problem, outputs: Samples | Classes) -> int:
    """Return the number of classes, 0 for a Bernoulli: the dtype of z tells it from one class."""
    return problem.sizes[-1] if outputs.z.dtype == torch.int64 else 0
