"""The base of Gaussian mixtures: the forms of the covariances, and samples."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.exceptions import NotFittedError

from latent_kernels.mixtures import _initialization
from latent_kernels.mixtures._mixture_estimator import MixtureEstimator
from latent_kernels.mixtures.e_step import covariance_shape, precisions_cholesky
from latent_kernels.mixtures.sufficient_statistics import SufficientStatistics

Floats = NDArray[np.float64]


class _Form:
    """One of the forms of the covariances: those that are not set are derived when they are read.

    A fit sets all of them; the first that is then assigned by hand replaces them all.
    """

    def __set_name__(self, owner: type, name: str) -> None:
        self._name = name

    def __get__(self, model: GaussianEstimator | None, owner: type | None = None) -> Any:
        if model is None:
            return self
        forms = model.__dict__
        return forms[self._name] if self._name in forms else model._derived(self._name)

    def __set__(self, model: GaussianEstimator, value: Floats) -> None:
        if model.__dict__.pop("_fitted_type", None) is not None:
            for name in _FORMS:
                model.__dict__.pop(name, None)
        model.__dict__[self._name] = value

    def __delete__(self, model: GaussianEstimator) -> None:
        del model.__dict__[self._name]


_FORMS = ("covariances_", "precisions_cholesky_", "precisions_")


class GaussianEstimator(MixtureEstimator):
    """A mixture of Gaussians with the attributes of scikit-learn's."""

    weights_: Floats
    means_: Floats
    covariances_ = _Form()
    precisions_cholesky_ = _Form()
    precisions_ = _Form()

    def _check_settings(self) -> None:
        super()._check_settings()
        covariance_shape(self.covariance_type, self.n_components, 1)
        if not isinstance(self.verbose_interval, Integral) or self.verbose_interval < 1:
            raise ValueError(
                f"verbose_interval must be an integer >= 1; got {self.verbose_interval!r}"
            )

    def _initial(self, name: str, shape: tuple[int, ...]) -> Floats | None:
        """Return one of the constructor's initial arrays, checked, or None."""
        value = getattr(self, name)
        if value is None:
            return None
        array = np.array(value, np.float64)
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite with shape {shape}; got shape {array.shape}")
        return array

    def _array(self, name: str) -> Floats:
        """Return a fitted attribute as an array, of the shape that goes with means_."""
        fitted = getattr(self, "_fitted_type", self.covariance_type)
        if fitted != self.covariance_type:
            raise ValueError(
                f"the model was fitted with covariance_type = {fitted!r}, which does not go with "
                f"covariance_type = {self.covariance_type!r}: set it back, or fit again without "
                "warm_start"
            )
        means = np.shape(self.means_)
        if len(means) != 2:
            raise ValueError(f"means_ must have shape [K, D]; got {means}")
        shapes = {"weights_": means[:1], "means_": means}
        shape = shapes.get(name) or covariance_shape(self.covariance_type, *means)
        array: Floats = np.ascontiguousarray(getattr(self, name), np.float64)
        if array.shape != shape:
            raise ValueError(
                f"{name} must have shape {shape} with means_ of shape {means} and covariance_type "
                f"= {self.covariance_type!r}; got {array.shape}"
            )
        return array

    def _factors(self) -> Floats:
        """Return precisions_cholesky_ as the kernels need it: upper triangular."""
        u = self._array("precisions_cholesky_")
        fitted = hasattr(self, "_fitted_type")
        if fitted or self.covariance_type not in ("full", "tied") or not np.tril(u, -1).any():
            return u
        # With P for the reversal of rows, U^T P = Q R makes U U^T = (P R^T P)(P R^T P)^T.
        r = np.asarray(np.linalg.qr(u[..., ::-1, :].swapaxes(-1, -2), mode="r"), np.float64)
        upper = r.swapaxes(-1, -2)[..., ::-1, ::-1]
        signs = np.sign(np.diagonal(upper, axis1=-2, axis2=-1))
        return np.ascontiguousarray(np.triu(upper * signs[..., None, :]))

    def _derived(self, name: str) -> Floats:
        """Return one form of the covariances, given another."""
        matrices = self.covariance_type in ("full", "tied")
        if name == "precisions_":
            u = self._array("precisions_cholesky_")
            return u @ u.swapaxes(-1, -2) if matrices else u**2
        given = {
            "covariances_": "precisions_cholesky_",
            "precisions_cholesky_": "covariances_",
        }[name]
        if given not in vars(self):
            raise NotFittedError(f"this {type(self).__name__} has no {name}: {self._advice}")
        array = self._array(given)
        if name == "precisions_cholesky_":
            return precisions_cholesky(array, self.covariance_type)
        if not matrices:
            return 1 / array**2
        inverse = np.linalg.inv(array)
        covariances: Floats = inverse.swapaxes(-1, -2) @ inverse
        return covariances

    def _width(self) -> int:
        return int(np.shape(self.means_)[-1])

    def _assigned(
        self,
        Z: Floats,
        weight: Floats | None,
        unknown: NDArray[np.bool_],
        generator: np.random.RandomState,
    ) -> SufficientStatistics:
        """Return the statistics of a sample's first assignment to components, by `init_params`."""
        assignment = _initialization.assign(
            self.init_params, Z, weight, self.n_components, generator
        )
        single = self.init_params in _initialization.SINGLE_ROWS
        return _initialization.gaussian_statistics(
            Z, weight, assignment, self.covariance_type, single, unknown
        )

    def _draw(self, labels: NDArray[np.int64], generator: np.random.RandomState) -> Floats:
        _, means, covariances = map(self._array, ("weights_", "means_", "covariances_"))
        if self.covariance_type == "tied":
            covariances = np.broadcast_to(covariances, (len(means), *covariances.shape))
        counts = np.bincount(labels, minlength=len(means))
        return np.concatenate(
            [
                self._draw_component(*component, generator)
                for component in zip(means, covariances, counts, strict=True)
            ]
        )

    def _draw_component(
        self, mean: Floats, covariance: Floats, rows: int, generator: np.random.RandomState
    ) -> Floats:
        if self.covariance_type in ("full", "tied"):
            drawn: Floats = generator.multivariate_normal(mean, covariance, rows)
            return drawn
        result: Floats = mean + generator.standard_normal((rows, len(mean))) * np.sqrt(covariance)
        return result
