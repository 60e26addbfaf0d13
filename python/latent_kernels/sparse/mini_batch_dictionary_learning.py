"""`MiniBatchDictionaryLearning`: online, in the memory of a batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import nn

from latent_kernels.sparse import _sparse_codes
from latent_kernels.sparse._dictionary_steps import Learner
from latent_kernels.sparse._sparse_codes import Array
from latent_kernels.sparse.dictionary_learning import DictionaryLearning


class MiniBatchDictionaryLearning(DictionaryLearning):
    """A dictionary learned online by mini-batches, of which no codes are kept.

    It is `DictionaryLearning` but for two things. Batches of later passes are as new as those of
    the first: older ones count less and less, and `fit` is `partial_fit` batch by batch. And it
    ends as sklearn.decomposition.MiniBatchDictionaryLearning does, whose arguments and defaults it
    has; there is no warning where max_iter passes end it.

    Args:
        n_components, alpha, batch_size, shuffle, dict_init, transform_algorithm,
            transform_n_nonzero_coefs, transform_alpha, split_sign, n_jobs, transform_max_iter,
            transform_tol, positive_code, positive_dict, encoder, encoder_weight,
            encoder_learning_rate, random_state, verbose: as in `DictionaryLearning`.
        max_iter: the maximum number of passes over X, >= 1.
        fit_algorithm: as there; "lars" is "cd".
        callback: a function that is called after every batch but the one that ends it, with a dict:
            "i", the batch from 0; "dictionary"; "batch_cost", the mean objective of its rows.
        tol: `fit` ends where a batch changes the dictionary by at most this,
            ||D_new - D_old||_F / n_components; 0 for never.
        max_no_improvement: `fit` ends after so many batches in a row that do not lower a smoothed
            objective, the mean objective of a batch weighted by batch_size / (N + 1) and its past
            by the rest; None for never. Both look at batches after the first min(100, N /
            batch_size).

    Attributes:
        as those of `DictionaryLearning`; converged_ is whether tol or max_no_improvement ended
        `fit`.

    Source: Mairal, Bach, Ponce, Sapiro, "Online dictionary learning for sparse coding" (2009).

    """

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1,
        max_iter: int = 1000,
        fit_algorithm: str = "lars",
        n_jobs: int | None = None,
        batch_size: int = 256,
        shuffle: bool = True,
        dict_init: ArrayLike | None = None,
        transform_algorithm: str = "omp",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        verbose: int = False,
        split_sign: bool = False,
        random_state: Any = None,
        positive_code: bool = False,
        positive_dict: bool = False,
        transform_max_iter: int = 1000,
        transform_tol: float = 1e-6,
        callback: Callable[[dict[str, Any]], object] | None = None,
        tol: float = 1e-3,
        max_no_improvement: int | None = 10,
        encoder: str | nn.Module | Callable[[torch.Tensor], nn.Module] | None = None,
        encoder_weight: float = 1.0,
        encoder_learning_rate: float = 0.02,
    ) -> None:
        super().__init__(
            n_components,
            alpha=alpha,
            max_iter=max_iter,
            fit_algorithm=fit_algorithm,
            n_jobs=n_jobs,
            batch_size=batch_size,
            shuffle=shuffle,
            dict_init=dict_init,
            transform_algorithm=transform_algorithm,
            transform_n_nonzero_coefs=transform_n_nonzero_coefs,
            transform_alpha=transform_alpha,
            verbose=verbose,
            split_sign=split_sign,
            random_state=random_state,
            positive_code=positive_code,
            positive_dict=positive_dict,
            transform_max_iter=transform_max_iter,
            transform_tol=transform_tol,
            callback=callback,
            tol=tol,
            encoder=encoder,
            encoder_weight=encoder_weight,
            encoder_learning_rate=encoder_learning_rate,
        )
        self.max_no_improvement = max_no_improvement

    def _passes(
        self, learner: Learner, data: Array, batches: list[NDArray[np.int64]]
    ) -> tuple[Learner, list[float], bool]:
        options, objectives = self._options(), list[float]()
        stopping = _Stopping(self.tol, self.max_no_improvement, len(data))
        while len(objectives) < self.max_iter:
            total, seen = 0.0, 0
            for rows in batches:
                before = learner.dictionary
                learner, _, objective = learner.step(data[rows], options, None)
                total, seen = total + objective, seen + len(rows)
                cost = objective / len(rows)
                change = float(np.linalg.norm(learner.dictionary - before)) / len(before)
                if stopping.after(len(rows), cost, change):
                    self._end_pass(objectives, total / seen)
                    return learner, objectives, True
                if self.callback is not None:
                    state = {"i": stopping.step - 1, "batch_cost": cost}
                    self.callback({**state, "dictionary": learner.dictionary})
            self._end_pass(objectives, total / seen)
        return learner, objectives, False

    def _warn(self) -> None:
        """Do nothing: max_iter is a usual end of online learning."""

    def _check_settings(self) -> None:
        super()._check_settings()
        if self.max_no_improvement is not None:
            _sparse_codes.check_integer("max_no_improvement", self.max_no_improvement, 0)


class _Stopping:
    """When learning ends: see tol and max_no_improvement."""

    def __init__(self, tol: float, patience: int | None, rows: int) -> None:
        self.tol, self.patience, self.rows = tol, patience, rows
        self.step = self.unimproved = 0
        self.smoothed: float | None = None
        self.least = float("inf")

    def after(self, size: int, cost: float, change: float) -> bool:
        """Return whether to end after a batch of `size` rows, with this mean objective."""
        self.step += 1
        if self.step <= min(100, self.rows / size):
            return False
        weight = min(size / (self.rows + 1), 1.0)
        past = cost if self.smoothed is None else self.smoothed
        self.smoothed = past * (1 - weight) + cost * weight
        if self.tol > 0 and change <= self.tol:
            return True
        if self.smoothed < self.least:
            self.unimproved, self.least = 0, self.smoothed
        else:
            self.unimproved += 1
        return self.patience is not None and self.unimproved >= self.patience
