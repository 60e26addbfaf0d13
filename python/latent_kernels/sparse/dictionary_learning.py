"""`DictionaryLearning`: online, optionally with an encoder beside the dictionary."""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from sklearn.utils import check_array, check_random_state
from sklearn.utils.validation import check_is_fitted, validate_data
from torch import nn

from latent_kernels._data import as_array, warn
from latent_kernels.sparse import _dictionary_steps, _sparse_codes
from latent_kernels.sparse._dictionary_steps import (
    Learner,
    Options,
    Statistics,
    Visit,
    discount_factor,
)
from latent_kernels.sparse._sparse_codes import CHECKS, Array, SparseTransformer
from latent_kernels.sparse.encoders.psd import PSDEncoder
from latent_kernels.sparse.lasso import Algorithm

Floats = NDArray[np.float64]
Self = TypeVar("Self", bound="DictionaryLearning")

# scikit-learn's other way to Lasso codes leads to the same ones.
_FIT_ALGORITHMS: dict[str, Algorithm] = {
    "cd": "cd",
    "lars": "cd",
    "lasso_cd": "cd",
    "fista": "fista",
    "ista": "ista",
}


class DictionaryLearning(SparseTransformer):
    r"""A dictionary over which the rows of X have sparse codes, learned online.

    .. math::
        \min_{D, Z} \sum_i \tfrac12 \lVert x_i - z_i D \rVert^2 + \alpha \lVert z_i \rVert_1,
        \qquad \lVert d_k \rVert = 1

    A batch is coded by `latent_kernels.sparse_encode`, its codes are added to A = sum z^T z and
    B = sum z^T x (float64), and one pass of block coordinate descent over the atoms follows. In the
    first pass older batches count less, by the factors of Mairal et al. From its second pass on,
    `fit` replaces a batch's old codes (which it keeps, sparse) by its new ones in A and B: the
    objective of all rows as they were last coded then falls with every step. Atoms have norm 1,
    whereas Mairal et al. allow at most 1: scaling a shorter atom up only lowers the objective. An
    atom that no code has used in 10 n_components rows is replaced by the worst coded row of the
    batch.

    The arguments have the names and meanings of sklearn.decomposition.DictionaryLearning; max_iter,
    tol and fit_algorithm have other defaults. `MiniBatchDictionaryLearning` keeps no codes.

    With an encoder F the objective is that of predictive sparse decomposition,

    .. math::
        \sum_i \tfrac12 \lVert x_i - z_i D \rVert^2 + \alpha \lVert z_i \rVert_1
        + \tfrac\kappa2 \lVert z_i - F(x_i) \rVert^2,

    whose codes are those of a Lasso too; a step of Adam on F follows each batch.
    ``transform_algorithm="encoder"`` is then the fast path, and
    ``SparseCoder(model.components_, encoder=model.encoder_)`` starts solvers from its codes.

    Args:
        n_components: the number of atoms; None for the number of columns.
        alpha: >= 0.
        max_iter: the maximum number of passes over X, >= 1.
        fit_algorithm: "cd", "fista" or "ista", of `sparse_encode`. "lars", scikit-learn's name for
            another way to the same codes, is "cd" here, for positive codes too.
        batch_size: the number of rows in a batch.
        shuffle: whether the rows are put into a random order, once, before they are cut into
            batches.
        dict_init: [n_components, n_features] to start from, made to have norm 1; None for random
            rows of X.
        code_init: [N, n_components], the codes from which the first pass starts; only used beside
            dict_init.
        callback: a function that is called after every fifth pass, the first one too, with a dict:
            "ii", the pass from 0; "dictionary"; "errors", as ``error_``; and "current_cost", the
            last of these.
        transform_algorithm: "omp", "cd" (or "lasso_cd"), "fista", "ista", "lasso_lars", "lars",
            "threshold", as in `SparseCoder`; "encoder" for the codes of ``encoder_``.
        transform_n_nonzero_coefs: atoms of a row for "omp" and "lars"; None for n_features / 10 but
            at least 1.
        transform_alpha: of the Lasso or the threshold; None for alpha.
        split_sign: whether codes are [max(Z, 0), max(-Z, 0)], of 2 n_components columns.
        n_jobs: an int or None, for scikit-learn's sake: threads are torch.get_num_threads().
        transform_max_iter: the maximum number of iterations for codes, in `fit` too.
        transform_tol: the tolerance of `sparse_encode`, in `fit` too.
        positive_code: codes >= 0 only; transform refuses it for "omp" and "lars".
        positive_dict: atoms >= 0 only.
        tol: `fit` stops where a pass changes the mean objective by less than this share; 0 goes on
            to max_iter.
        encoder: None; "psd" for a `PSDEncoder` that starts from the first dictionary; a module [N,
            n_features] -> [N, n_components], of which a copy in X's dtype is trained; or a function
            of the first dictionary (a tensor) that returns such a module, such as
            functools.partial(lk.LISTA.from_dictionary, alpha=0.1, n_layers=3).
        encoder_weight: kappa >= 0.
        encoder_learning_rate: Adam's, relative to each parameter's root mean square.
        random_state: int, RandomState or None: the first dictionary and the batches.
        verbose: whether `fit` prints a line for each pass to stderr.

    Attributes:
        components_: D [n_components, n_features] in X's dtype.
        encoder_: the trained module, in evaluation mode; None without an encoder.
        error_: the objectives of the passes of `fit`, sums over all rows when they were coded.
        objectives_: mean objectives of a row, when it was coded: one for each pass of `fit`, then
            one for each batch of `partial_fit`. With an encoder they include its term.
        converged_: whether `fit` stopped by tol.
        n_iter_: the number of passes of `fit`; 1 after `partial_fit` alone.
        n_steps_: the number of batches seen.
        n_features_in_: the number of columns of X.
        feature_names_in_: column names, where X has them.

    float32 data are computed in float32, except for A, B and the update of the atoms. The same
    random_state gives the same result, for a given number of threads. A ConvergenceWarning is
    raised if max_iter passes were not enough.

    Source:
        Mairal, Bach, Ponce, Sapiro, "Online dictionary learning for sparse coding" (2009),
        algorithms 1 and 2, section 3.4; Mairal, "Incremental majorization-minimization
        optimization" (2015) for what later passes do; Kavukcuoglu, Ranzato, LeCun, "Fast inference
        in sparse coding algorithms with applications to object recognition" (2008).

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> generator = np.random.default_rng(0)
        >>> X = generator.normal(size=(200, 8))
        >>> model = lk.DictionaryLearning(
        ...     12, alpha=0.5, tol=0.01, transform_algorithm="cd", random_state=0
        ... ).fit(X)
        >>> codes = model.transform(X)
        >>> model.components_.shape, codes.shape, model.inverse_transform(codes).shape
        ((12, 8), (200, 12), (200, 8))
        >>> model.objectives_[-1] < model.objectives_[0]
        True

    """

    components_: Array
    encoder_: nn.Module | None
    objectives_: list[float]

    def __init__(
        self,
        n_components: int | None = None,
        *,
        alpha: float = 1.0,
        max_iter: int = 100,
        fit_algorithm: str = "cd",
        batch_size: int = 256,
        shuffle: bool = True,
        dict_init: ArrayLike | None = None,
        code_init: ArrayLike | None = None,
        callback: Callable[[dict[str, Any]], object] | None = None,
        transform_algorithm: str = "omp",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        n_jobs: int | None = None,
        transform_max_iter: int = 1000,
        transform_tol: float = 1e-6,
        positive_code: bool = False,
        positive_dict: bool = False,
        tol: float = 1e-4,
        encoder: str | nn.Module | Callable[[torch.Tensor], nn.Module] | None = None,
        encoder_weight: float = 1.0,
        encoder_learning_rate: float = 0.02,
        random_state: Any = None,
        verbose: int = 0,
    ) -> None:
        self.n_components = n_components
        self.alpha = alpha
        self.max_iter = max_iter
        self.fit_algorithm = fit_algorithm
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.dict_init = dict_init
        self.code_init = code_init
        self.callback = callback
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_alpha = transform_alpha
        self.split_sign = split_sign
        self.n_jobs = n_jobs
        self.transform_max_iter = transform_max_iter
        self.transform_tol = transform_tol
        self.positive_code = positive_code
        self.positive_dict = positive_dict
        self.tol = tol
        self.encoder = encoder
        self.encoder_weight = encoder_weight
        self.encoder_learning_rate = encoder_learning_rate
        self.random_state = random_state
        self.verbose = verbose

    # --- fitting ----------------------------------------------------------------------------------

    def fit(self: Self, X: Any, y: Any = None) -> Self:
        """Learn the dictionary anew.

        Args:
            X: [N, n_features], float32 or float64 (other types become float64); an array, or a
                tensor on the CPU.
            y: ignored.

        Raises:
            ValueError: X has a wrong shape, NaN or infinity; an argument of the constructor is
                wrong.

        """
        self._check_settings()
        data: Array = validate_data(self, as_array(X), **CHECKS)
        generator = check_random_state(self.random_state)
        learner = self._learner(data, generator)
        order = generator.permutation(len(data)) if self.shuffle else np.arange(len(data))
        batches = [order[i : i + self.batch_size] for i in range(0, len(data), self.batch_size)]
        learner, objectives, self.converged_ = self._passes(learner, data, batches)
        self._store(learner)
        self.objectives_, self.n_iter_ = objectives, len(objectives)
        self.error_ = [len(data) * mean for mean in objectives]
        if not self.converged_:
            self._warn()
        return self

    def _warn(self) -> None:
        """Warn that max_iter passes were not enough."""
        if self.tol > 0:
            warn(
                f"the objective still changed by more than tol = {self.tol:g} in the last of "
                f"max_iter = {self.max_iter} passes: raise max_iter or tol"
            )

    def _passes(
        self, learner: Learner, data: Array, batches: list[NDArray[np.int64]]
    ) -> tuple[Learner, list[float], bool]:
        """Learn from the batches pass by pass.

        Return (learner, mean objectives of the passes, whether they have converged).
        """
        options, start = self._options(), self._start(data, len(learner.dictionary))
        weights = _weights([len(rows) for rows in batches])
        visits: list[Visit | None] = [None] * len(batches)
        objectives: list[float] = []
        while len(objectives) < self.max_iter:
            total = 0.0
            for i, rows in enumerate(batches):
                first = None if start is None else start[rows]
                learner, codes, objective = learner.step(data[rows], options, visits[i], first)
                weight = 1.0 if objectives else weights[i]
                visits[i] = Visit(csr_array(codes), weight, learner.statistics.step)
                total += objective
            self._end_pass(objectives, total / len(data))
            if self.callback is not None and len(objectives) % 5 == 1:
                errors = [len(data) * mean for mean in objectives]
                state = {"ii": len(objectives) - 1, "errors": errors, "current_cost": errors[-1]}
                self.callback({**state, "dictionary": learner.dictionary})
            if self.tol > 0 and len(objectives) > 1:
                before, now = objectives[-2:]
                if abs(before - now) <= self.tol * before:
                    return learner, objectives, True
        return learner, objectives, False

    def _end_pass(self, objectives: list[float], mean: float) -> None:
        """Add the objective of a pass, and print it where verbose asks for it."""
        objectives.append(mean)
        if self.verbose:
            message = f"pass {len(objectives)}/{self.max_iter}: objective {mean:.6g}"
            print(message, file=sys.stderr)

    def _start(self, data: Array, n_components: int) -> Array | None:
        """Return code_init, checked, in X's dtype; None where it is not to be used."""
        if self.code_init is None or self.dict_init is None:
            return None
        codes: Array = check_array(as_array(self.code_init), input_name="code_init", **CHECKS)
        if codes.shape != (len(data), n_components):
            raise ValueError(
                f"code_init must have shape {(len(data), n_components)}; got {codes.shape}"
            )
        codes = np.maximum(codes, 0) if self.positive_code else codes
        return codes.astype(data.dtype, copy=False)

    def partial_fit(self: Self, X: Any, y: Any = None) -> Self:
        """Take one step on one batch, of any number of rows.

        The first call starts a dictionary, unless `fit` has done so. Called with the batches of
        `fit` one after the other, from the same dictionary, it is the first pass of `fit`.

        Args:
            X: [N, n_features], as in `fit`; converted to the dtype of the present dictionary.
            y: ignored.

        Raises:
            ValueError: as in `fit`.

        Example:
            >>> import numpy as np, latent_kernels as lk
            >>> generator = np.random.default_rng(0)
            >>> model = lk.DictionaryLearning(12, alpha=0.5, random_state=0)
            >>> for _ in range(3):
            ...     model = model.partial_fit(generator.normal(size=(50, 8)))
            ...
            >>> model.components_.shape, model.n_steps_
            ((12, 8), 3)

        """
        self._check_settings()
        begun = hasattr(self, "components_")
        checks = {**CHECKS, "dtype": self.components_.dtype} if begun else CHECKS
        data: Array = validate_data(self, as_array(X), reset=not begun, **checks)
        if begun:
            self._check_components()
            learner = Learner(self.components_, self._statistics, self.encoder_, self._predictor)
        else:
            learner = self._learner(data, check_random_state(self.random_state))
        learner, _, objective = learner.step(data, self._options(), None)
        self._store(learner)
        if not begun:
            self.objectives_, self.converged_, self.n_iter_ = [], False, 1
        self.objectives_ = [*self.objectives_, objective / len(data)]
        return self

    def _learner(self, data: Array, generator: np.random.RandomState) -> Learner:
        """Return the state in which learning starts."""
        n = data.shape[1] if self.n_components is None else int(self.n_components)
        positive = bool(self.positive_dict)
        if self.dict_init is None:
            atoms = _dictionary_steps.first_dictionary(data, n, positive, generator)
        else:
            given = _sparse_codes.checked_dictionary("dict_init", self.dict_init)
            if given.shape != (n, data.shape[1]):
                raise ValueError(
                    f"dict_init must have shape {(n, data.shape[1])}; got {given.shape}"
                )
            if positive and (given < 0).any():
                raise ValueError(
                    "dict_init must be >= 0 where positive_dict is True; got negative entries"
                )
            wide = given.astype(np.float64)
            largest = np.abs(wide).max(axis=1, keepdims=True)
            wide /= np.where(largest > 0, largest, 1)
            norms = np.linalg.norm(wide, axis=1, keepdims=True)
            atoms = wide / np.where(norms > 0, norms, 1)
        dictionary = atoms.astype(data.dtype)
        return Learner(dictionary, Statistics(*dictionary.shape), self._first_encoder(dictionary))

    def _first_encoder(self, dictionary: Array) -> nn.Module | None:
        """Return the encoder in the dictionary's dtype, before training."""
        if self.encoder is None:
            return None
        atoms = _sparse_codes.tensor(dictionary)
        if isinstance(self.encoder, nn.Module):
            module: object = copy.deepcopy(self.encoder)
        else:
            assert not isinstance(self.encoder, str) or self.encoder == "psd"
            module = (
                PSDEncoder.from_dictionary(atoms)
                if isinstance(self.encoder, str)
                else self.encoder(atoms)
            )
        if not isinstance(module, nn.Module):
            raise ValueError(f"encoder must return a torch.nn.Module; got {module!r}")
        return module.to(atoms.dtype).eval()

    def _store(self, learner: Learner) -> None:
        self.components_, self.encoder_ = learner.dictionary, learner.encoder
        self._statistics, self._predictor = learner.statistics, learner.predictor
        self.n_steps_ = learner.statistics.step

    # --- codes ------------------------------------------------------------------------------------

    def transform(self, X: Any) -> Array:
        """Return the codes.

        Args:
            X: [N, n_features], as in `fit`.

        Returns:
            Z [N, n_components], or [N, 2 n_components] with split_sign; float32 for float32 and
            else float64.

        Raises:
            ValueError: as in `fit`; transform_algorithm is "encoder" and the model has none.

        A ConvergenceWarning reports rows that did not reach transform_tol.

        """
        check_is_fitted(self, "components_")
        self._check_settings()
        data: Array = validate_data(self, as_array(X), reset=False, **CHECKS)
        if self.transform_algorithm != "encoder":
            how = self._how(self.alpha)
            return self._split(_sparse_codes.solved(data, self.components_, how, warn=True))
        if self.encoder_ is None:
            raise ValueError(
                "the model was fitted without encoder: transform_algorithm must not be 'encoder'"
            )
        n = len(self.components_)
        codes = _sparse_codes.predicted(data, self.encoder_, n, bool(self.positive_code))
        return self._split(codes.numpy())

    def inverse_transform(self, X: Any) -> Array:
        """Return the rows Z D [N, n_features] of codes Z from `transform`, in the dtype of Z."""
        check_is_fitted(self, "components_")
        return self._restored(X, self.components_)

    @property
    def _n_features_out(self) -> int:
        return len(self.components_) * (2 if self.split_sign else 1)

    # --- settings ---------------------------------------------------------------------------------

    def _options(self) -> Options:
        algorithm = _FIT_ALGORITHMS[self.fit_algorithm]
        how = self._how(0.0)._replace(algorithm=algorithm, alpha=float(self.alpha))
        return Options(
            how,
            bool(self.positive_dict),
            float(self.encoder_weight),
            float(self.encoder_learning_rate),
        )

    def _check_settings(self) -> None:
        for name in ("max_iter", "batch_size"):
            _sparse_codes.check_integer(name, getattr(self, name), 1)
        for name in ("alpha", "tol", "encoder_weight", "encoder_learning_rate"):
            _sparse_codes.check_number(name, getattr(self, name))
        for name in ("shuffle", "positive_dict"):
            _sparse_codes.check_bool(name, getattr(self, name))
        _sparse_codes.check_choice("fit_algorithm", self.fit_algorithm, tuple(_FIT_ALGORITHMS))
        self._check_transform_settings()
        if self.callback is not None and not callable(self.callback):
            raise ValueError(f"callback must be a function or None; got {self.callback!r}")
        if self.n_components is not None:
            _sparse_codes.check_integer("n_components", self.n_components, 1)
        if not (self.encoder is None or callable(self.encoder) or self.encoder == "psd"):
            raise ValueError(
                f"encoder must be None, 'psd', a module or a function; got {self.encoder!r}"
            )

    def _check_components(self) -> None:
        """Raise if the constructor's arguments do not agree with the present dictionary."""
        if self.n_components is not None and len(self.components_) != self.n_components:
            raise ValueError(
                f"the model has {len(self.components_)} components, which does not go with "
                f"n_components = {self.n_components}: set it back, or call fit"
            )
        if (self.encoder is None) != (self.encoder_ is None):
            raise ValueError(
                "encoder must be None where the model was fitted without, and must not be otherwise"
            )


def _weights(sizes: list[int]) -> list[float]:
    """Return the weights of batches of these sizes after the first pass.

    Each has been discounted by every batch after it.
    """
    factors = [discount_factor(t, rows) for t, rows in enumerate(sizes, 1)]
    weights = np.append(np.cumprod(factors[:0:-1])[::-1], 1.0)
    return [float(w) for w in weights]
