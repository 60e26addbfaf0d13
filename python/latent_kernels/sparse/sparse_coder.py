"""`SparseCoder`: sparse codes over a given dictionary."""

from __future__ import annotations

from typing import Any, TypeVar

from numpy.typing import ArrayLike
from sklearn.utils.validation import validate_data

from latent_kernels._data import as_array
from latent_kernels.sparse import _sparse_codes
from latent_kernels.sparse._sparse_codes import CHECKS, Array, Encoder, SparseTransformer
from latent_kernels.sparse.lasso import SOLVERS

Self = TypeVar("Self", bound="SparseCoder")


class SparseCoder(SparseTransformer):
    r"""Sparse codes of rows over a given dictionary.

    .. math::
        x \approx z D, \qquad \text{or}\quad
        \min_z \tfrac12 \lVert x - z D \rVert^2 + \alpha \lVert z \rVert_1
        \qquad (z \ge 0 \text{ if positive})

    They are computed by `latent_kernels.sparse_encode`, or predicted by an encoder that was trained
    for it: the fast path. Arguments are those of sklearn.decomposition.SparseCoder, with the same
    defaults. Atoms need not have norm 1, though "omp" and "threshold" compare them as they are.
    `transform` computes the codes; `fit` only checks X.

    Args:
        dictionary: D [n_components, n_features], finite; an array, or a tensor on the CPU.
        transform_algorithm: "omp", orthogonal matching pursuit; "cd" (or "lasso_cd", scikit-learn's
            name for it), "fista" or "ista", solvers of the Lasso; "lasso_lars", the Lasso without a
            tolerance; "lars"; "threshold"; "encoder" for the encoder's codes as they are. See
            `sparse_encode`.
        transform_n_nonzero_coefs: atoms of a row for "omp" and "lars"; None for n_features / 10 but
            at least 1.
        transform_alpha: alpha >= 0 of the Lasso, or the threshold; None for 1. "omp" does not use
            it, as in scikit-learn: `orthogonal_matching_pursuit` has a tolerance.
        split_sign: whether codes are [max(Z, 0), max(-Z, 0)], of 2 n_components columns.
        n_jobs: an int or None, for scikit-learn's sake: threads are torch.get_num_threads().
        transform_max_iter: the maximum number of iterations of the Lasso's solvers; 0 leaves the
            start as it is.
        transform_tol: a row is done when its duality gap is at most transform_tol * 0.5 ||x||^2.
        positive_code: whether codes must be >= 0, not for "omp" and "lars"; negative codes of an
            encoder become 0.
        encoder: a trained `LISTA`, `LCoD` or `PSDEncoder`, or any module or function that maps a
            tensor [N, n_features] to codes [N, n_components]. The solvers "cd", "fista" and "ista"
            then start from its codes instead of 0: with transform_max_iter=5 they refine them a
            little, with more they come to the optimum. A module works on its own device, in its own
            dtype and in the mode that it is in (call `eval()` first); a function gets float32 or
            float64 on the CPU. `clone` copies a module.

    Attributes:
        n_components_: the number of atoms.
        n_features_in_: columns of X. Both exist after `fit`.
        feature_names_in_: column names, where X has them.

    float32 rows are coded in float32 and give float32 codes, whatever the dictionary's dtype; other
    dtypes are converted to float64.

    Source:
        The sources of `sparse_encode`; Gregor and LeCun, "Learning fast approximations of sparse
        coding" (2010), for encoders.

    Example:
        >>> import numpy as np, latent_kernels as lk
        >>> coder = lk.SparseCoder(np.eye(3), transform_algorithm="cd", transform_alpha=1.0)
        >>> X = np.array([[3.0, -0.5, 0.0]])
        >>> codes = coder.fit(X).transform(X)
        >>> codes.round(6) + 0.0
        array([[2., 0., 0.]])
        >>> coder.inverse_transform(codes).shape
        (1, 3)

    """

    n_components_: int
    n_features_in_: int

    def __init__(
        self,
        dictionary: ArrayLike,
        *,
        transform_algorithm: str = "omp",
        transform_n_nonzero_coefs: int | None = None,
        transform_alpha: float | None = None,
        split_sign: bool = False,
        n_jobs: int | None = None,
        positive_code: bool = False,
        transform_max_iter: int = 1000,
        transform_tol: float = 1e-6,
        encoder: Encoder | None = None,
    ) -> None:
        self.dictionary = dictionary
        self.transform_algorithm = transform_algorithm
        self.transform_n_nonzero_coefs = transform_n_nonzero_coefs
        self.transform_alpha = transform_alpha
        self.split_sign = split_sign
        self.n_jobs = n_jobs
        self.positive_code = positive_code
        self.transform_max_iter = transform_max_iter
        self.transform_tol = transform_tol
        self.encoder = encoder

    def fit(self: Self, X: Any, y: Any = None) -> Self:
        """Check X and the arguments, and remember the columns' names; nothing is learned.

        Raises:
            ValueError: as in `transform`.

        """
        dictionary, _ = self._checked(X, reset=True)
        self.n_components_ = len(dictionary)
        return self

    def transform(self, X: Any) -> Array:
        """Return the codes.

        Args:
            X: [N, n_features] array, or a tensor on the CPU. It need not have been fitted.

        Returns:
            Z [N, n_components], or [N, 2 n_components] with split_sign; float32 for float32 and
            else float64. Codes of a row do not depend on the rows around it.

        Raises:
            ValueError: an argument of the constructor is wrong; X has a wrong shape, NaN or
                infinity, or the encoder's codes have.

        A ConvergenceWarning reports rows that did not reach transform_tol, unless there is an
        encoder.

        """
        dictionary, data = self._checked(X, reset=False)
        start = None
        if self.encoder is not None:
            start = _sparse_codes.predicted(
                data, self.encoder, len(dictionary), bool(self.positive_code)
            )
            if self.transform_algorithm == "encoder":
                return self._split(start.numpy())
        how = self._how(1.0)
        codes = _sparse_codes.solved(data, dictionary, how, start, warn=self.encoder is None)
        return self._split(codes)

    def inverse_transform(self, X: Any) -> Array:
        """Return the rows Z D [N, n_features] of codes Z from `transform`, in the dtype of Z."""
        return self._restored(X, self._checked_dictionary())

    def _checked_dictionary(self) -> Array:
        return _sparse_codes.checked_dictionary("dictionary", self.dictionary)

    def _checked(self, X: Any, *, reset: bool) -> tuple[Array, Array]:
        """Return the checked (dictionary, X)."""
        self._check_settings()
        dictionary = self._checked_dictionary()
        data: Array = validate_data(self, as_array(X), reset=reset, **CHECKS)
        if data.shape[1] != dictionary.shape[1]:
            raise ValueError(
                "Dictionary and X have different numbers of features: X must have as many columns "
                f"as dictionary, {dictionary.shape[1]}; "
                f"got n_features = {data.shape[1]}"
            )
        return dictionary, data

    def _check_settings(self) -> None:
        self._check_transform_settings()
        if self.encoder is not None and not callable(self.encoder):
            raise ValueError(f"encoder must be a module, a function or None; got {self.encoder!r}")
        if self.transform_algorithm == "encoder" and self.encoder is None:
            raise ValueError(
                "encoder must be given where transform_algorithm is 'encoder'; got None"
            )
        if self.encoder is not None and self.transform_algorithm not in (*SOLVERS, "encoder"):
            raise ValueError(
                "encoder must be None where transform_algorithm does not start from codes: that is "
                f"'encoder', {', '.join(map(repr, SOLVERS))}; got {self.transform_algorithm!r}"
            )

    @property
    def _n_features_out(self) -> int:
        return len(self._checked_dictionary()) * (2 if self.split_sign else 1)

    def __sklearn_tags__(self) -> Any:
        """Return scikit-learn's tags: transform needs no fit."""
        tags = super().__sklearn_tags__()
        tags.requires_fit = False
        return tags
