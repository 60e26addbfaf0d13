"""The steps of online dictionary learning: codes of a batch, statistics, atoms, and an encoder."""

from __future__ import annotations

import math
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array
from threadpoolctl import ThreadpoolController
from torch import nn

from latent_kernels.sparse import _sparse_codes
from latent_kernels.sparse._sparse_codes import Array, Lasso
from latent_kernels.sparse.encoders._start import Thresholding

Floats = NDArray[np.float64]

# An atom that no code has used for this many rows per atom is replaced: one used by a row in
# n_components, which is rare for an atom, passes for unused with a probability of e^-10.
_UNUSED_LIMIT = 10
# Atoms are updated by blocks of this many numbers, which stay in the cache.
_BLOCK = 8192
# Below this many multiplications in a batch's A, NumPy's BLAS uses one thread: its threads and
# those that code the batch would wait for one another, which takes ten times as long on a busy
# machine.
_MIN_THREADED_WORK = 1 << 28


# --- statistics and atoms -------------------------------------------------------------------------


class Statistics:
    """The statistics for the dictionary's update, in float64.

    These are A = sum_i w_i z_i^T z_i [n, n] and B = sum_i w_i z_i^T x_i [n, m].

    Args:
        n_components: n.
        n_features: m.

    """

    def __init__(self, n_components: int, n_features: int) -> None:
        self.A: Floats = np.zeros((n_components, n_components))
        self.B: Floats = np.zeros((n_components, n_features))
        # rows since a code used the atom, and the step in which it was replaced
        self.unused_rows: NDArray[np.int64] = np.zeros(n_components, np.int64)
        self.replaced_at: NDArray[np.int64] = np.zeros(n_components, np.int64)
        self.step = 0

    def add(self, codes: Array, X: Array, weight: float = 1.0) -> None:
        """Add rows, or take them away with a weight < 0."""
        z = codes.astype(np.float64)
        self.A += weight * (z.T @ z)
        self.B += weight * (z.T @ X.astype(np.float64))

    def discount(self, rows: int) -> None:
        """Make all rows so far count less, before a batch of `rows` rows is added."""
        beta = discount_factor(self.step + 1, rows)
        self.A *= beta
        self.B *= beta

    def count_unused(self, codes: Array) -> None:
        """Count the rows since each atom was last used."""
        used = codes.any(axis=0)
        self.unused_rows = np.where(used, 0, self.unused_rows + len(codes))

    def update(self, dictionary: Floats, positive: bool) -> None:
        r"""Do one pass of block coordinate descent over the atoms, in place.

        .. math::
            \min_D \tfrac12 \operatorname{tr}(D^T A D) - \operatorname{tr}(D^T B) \text{ where }
            ||d_k|| = 1, \qquad d_k \leftarrow v_k / ||v_k||, \quad v_k = b_k - \sum_{j \ne k}
            A_{kj} d_j

        which is the minimum over one atom (over those >= 0 with v_k clipped at 0). Atoms that are
        hardly used stay as they are.

        Source: Mairal et al. (2009), algorithm 2, on the sphere instead of the ball.
        """
        A, B, D = self.A, self.B, dictionary
        diagonal = A.diagonal()
        least = 1e-9 * float(diagonal.max())
        size = max(_BLOCK // D.shape[1], 1)
        for start in range(0, len(D), size):
            end = min(start + size, len(D))
            others = B[start:end] - A[start:end] @ D
            change = np.zeros_like(others)
            for i, k in enumerate(range(start, end)):
                if diagonal[k] <= least:
                    continue
                v = others[i] - A[k, start:k] @ change[:i] + diagonal[k] * D[k]
                if positive:
                    np.maximum(v, 0, out=v)
                norm = math.sqrt(float(v @ v))
                if norm > 0:
                    v /= norm
                    change[i] = v - D[k]
                    D[k] = v

    def replace_unused(self, dictionary: Floats, X: Array, loss: Array, positive: bool) -> int:
        """Replace atoms that have long been unused by rows of X, those of greatest loss first.

        Returns how many were replaced.
        """
        unused = np.flatnonzero(self.unused_rows >= _UNUSED_LIMIT * len(dictionary))
        if len(unused) == 0:
            return 0
        atoms = directions(X[np.argsort(-loss, kind="stable")[: 4 * len(unused)]], positive)[
            : len(unused)
        ]
        unused = unused[: len(atoms)]
        dictionary[unused] = atoms
        self.A[unused], self.A[:, unused], self.B[unused] = 0, 0, 0
        self.unused_rows[unused], self.replaced_at[unused] = 0, self.step
        return len(unused)


def discount_factor(t: int, rows: int) -> float:
    r"""Return the factor of the statistics before batch t >= 1, of eta rows.

    .. math::
        \beta_t = \frac{\theta_t + 1 - \eta}{\theta_t + 1}, \qquad
        \theta_t = t \eta \text{ for } t < \eta, \text{ else } \eta^2 + t - \eta

    Source: Mairal et al. (2009), section 3.4.3.
    """
    theta = t * rows if t < rows else rows * rows + t - rows
    return (theta + 1 - rows) / (theta + 1)


class Visit(NamedTuple):
    """The codes of a batch when it was last seen, and its weight in the statistics."""

    codes: csr_array
    weight: float
    step: int

    def current_codes(self, statistics: Statistics) -> Array:
        """Return the codes, 0 for atoms that have been replaced since."""
        codes: Array = self.codes.toarray()
        codes[:, statistics.replaced_at > self.step] = 0
        return codes


def directions(X: Array, positive: bool) -> Floats:
    """Return the distinct rows of X that are not 0, at length 1 and in float64.

    positive: negative entries are set to 0 first.
    """
    rows = X.astype(np.float64)
    if positive:
        rows = np.maximum(rows, 0)
    greatest = np.abs(rows).max(axis=1, initial=0.0)
    # Scaled, so that squares neither overflow nor vanish.
    rows = rows[greatest > 0] / greatest[greatest > 0, None]
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    first = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    result: Floats = rows[first]
    return result


def first_dictionary(
    X: Array, n_components: int, positive: bool, generator: np.random.RandomState
) -> Floats:
    """Return rows of X at length 1 in random order; random directions if there are too few."""
    atoms = directions(X[generator.permutation(len(X))[: 4 * n_components]], positive)[
        :n_components
    ]
    noise = generator.standard_normal((n_components - len(atoms), X.shape[1]))
    noise = np.abs(noise) if positive else noise
    return np.concatenate([atoms, noise / np.linalg.norm(noise, axis=1, keepdims=True)])


# --- codes ----------------------------------------------------------------------------------------


def joint_codes(
    X: Array,
    dictionary: Array,
    how: Lasso,
    prediction: torch.Tensor,
    weight: float,
    start: torch.Tensor | None = None,
) -> Array:
    r"""Return codes that are sparse and near a prediction.

    This is the inference of predictive sparse decomposition,

    .. math::
        \min_z \tfrac12 ||x - z D||^2 + \alpha ||z||_1 + \tfrac\kappa2 ||z - F(x)||^2,

    which is the Lasso of [x, sqrt(kappa) F(x)] over [D, sqrt(kappa) I].

    Args:
        X: x [N, m].
        dictionary: D [n, m].
        how: alpha and the solver.
        prediction: F(x) [N, n].
        weight: kappa >= 0.
        start: the solver's starting point, [N, n].

    Source: Kavukcuoglu, Ranzato, LeCun (2008), equation 5.

    """
    root = math.sqrt(weight)
    wide = np.hstack([X, (root * prediction.numpy()).astype(X.dtype, copy=False)])
    atoms = np.hstack(
        [dictionary.astype(X.dtype, copy=False), root * np.eye(len(dictionary), dtype=X.dtype)]
    )
    return _sparse_codes.solved(wide, atoms, how, start)


def row_losses(X: Array, codes: Array, dictionary: Array, alpha: float) -> Floats:
    """Return 1/2 ||x - z D||^2 + alpha ||z||_1 of each row, [N] in float64."""
    residual = X - codes @ dictionary.astype(X.dtype, copy=False)
    squares: Floats = np.einsum("ij,ij->i", residual, residual, dtype=np.float64)
    result: Floats = 0.5 * squares + alpha * np.abs(codes).sum(axis=1, dtype=np.float64)
    return result


# --- the encoder ----------------------------------------------------------------------------------


class Predictor:
    """An encoder F that is trained to predict codes, by Adam on the mean of 1/2 ||z - F(x)||^2.

    Adam's rate is relative to each parameter's root mean square, as in `train_encoder`.

    Args:
        encoder: a module with parameters, trained in place.
        codes: of a batch; they set the scale of parameters that start at 0.
        rate: Adam's.

    """

    def __init__(self, encoder: nn.Module, codes: Array, rate: float) -> None:
        self.encoder = encoder
        trained = [p for p in encoder.parameters() if p.requires_grad]
        if not trained:
            raise ValueError("encoder must have parameters that require gradients")
        scale = float(np.sqrt(np.square(codes, dtype=np.float64).mean())) or 1.0
        groups: list[dict[str, Any]] = [
            {
                "params": [p],
                "lr": rate * (float(p.detach().double().square().mean().sqrt()) or scale),
            }
            for p in trained
        ]
        self.optimizer = torch.optim.Adam(groups)

    def step(self, X: Array, codes: Array) -> None:
        """Do one step on a batch."""
        like = self.optimizer.param_groups[0]["params"][0]
        x, z = _sparse_codes.tensor(X).to(like), _sparse_codes.tensor(codes).to(like)
        self.encoder.train()
        self.optimizer.zero_grad()
        loss = 0.5 * (self.encoder(x) - z).square().sum(-1).mean()
        loss.backward()
        self.optimizer.step()
        if isinstance(self.encoder, Thresholding):
            self.encoder.project_()
        self.encoder.eval()


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


# --- a step ---------------------------------------------------------------------------------------


class Options(NamedTuple):
    """The settings of a step."""

    how: Lasso
    positive_dict: bool
    encoder_weight: float
    encoder_rate: float


class Learner(NamedTuple):
    """The state of learning: a dictionary in the dtype of the data, statistics, and an encoder."""

    dictionary: Array
    statistics: Statistics
    encoder: nn.Module | None
    predictor: Predictor | None = None  # None before the first step

    def step(
        self, X: Array, options: Options, visit: Visit | None, start: Array | None = None
    ) -> tuple[Learner, Array, float]:
        """Learn from a batch.

        Args:
            X: [N, m] in the dictionary's dtype.
            options: see above.
            visit: the codes and weight of the same batch before; None for a new one, before which
                the others are discounted.
            start: codes that the solver starts from, [N, n], where there is no visit.

        Returns:
            (the learner after it, codes [N, n], the sum of the rows' objectives). Statistics,
            encoder and predictor were changed in place, the dictionary was not.

        """
        small = len(X) * len(self.dictionary) ** 2 < _MIN_THREADED_WORK
        with _libraries().limit(limits=1 if small else None, user_api="blas"):
            return self._step(X, options, visit, start)

    def _step(
        self, X: Array, options: Options, visit: Visit | None, start: Array | None
    ) -> tuple[Learner, Array, float]:
        how, statistics = options.how, self.statistics
        old = None if visit is None else visit.current_codes(statistics)
        codes, losses = self._codes(X, options, start if old is None else old)
        if visit is None or old is None:
            statistics.discount(len(X))
        else:
            statistics.add(old, X, -visit.weight)
        statistics.add(codes, X)
        statistics.step += 1
        statistics.count_unused(codes)
        atoms = self.dictionary.astype(np.float64)
        statistics.update(atoms, options.positive_dict)
        if statistics.unused_rows.max() >= _UNUSED_LIMIT * len(atoms):
            statistics.replace_unused(
                atoms, X, row_losses(X, codes, atoms, how.alpha), options.positive_dict
            )
        predictor = self.predictor
        if self.encoder is not None:
            predictor = predictor or Predictor(self.encoder, codes, options.encoder_rate)
            predictor.step(X, codes)
        after = self._replace(dictionary=atoms.astype(self.dictionary.dtype), predictor=predictor)
        return after, codes, float(losses.sum())

    def _codes(self, X: Array, options: Options, start: Array | None) -> tuple[Array, Floats]:
        """Return codes, and the objectives of the rows."""
        how, first = options.how, None if start is None else _sparse_codes.tensor(start)
        if self.encoder is None:
            codes = _sparse_codes.solved(X, self.dictionary, how, first)
            return codes, row_losses(X, codes, self.dictionary, how.alpha)
        prediction = _sparse_codes.predicted(X, self.encoder, len(self.dictionary), positive=False)
        codes = joint_codes(X, self.dictionary, how, prediction, options.encoder_weight, first)
        apart = np.square(codes - prediction.numpy(), dtype=np.float64).sum(axis=1)
        losses: Floats = (
            row_losses(X, codes, self.dictionary, how.alpha) + 0.5 * options.encoder_weight * apart
        )
        return codes, losses
