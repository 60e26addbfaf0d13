"""How noisy the gradients of a running training are: variance and signal to noise, per group of
parameters.
"""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from latent_kernels import _checks
from latent_kernels.variational._statistics import Floats, interval, ratio_of_means

Tensor = torch.Tensor

_log = logging.getLogger(__name__)
_FEWEST = 8  # an interval from fewer measurements says next to nothing
_RESAMPLES = 200  # a report must not take long
_COLUMNS = (
    "variance",
    "variance_low",
    "variance_high",
    "signal_to_noise",
    "signal_to_noise_low",
    "signal_to_noise_high",
)


class GradientNoise(NamedTuple):
    """What the last measurements say about the gradient by one group of parameters.

    Args:
        measurements: how many there were, those that were not finite left out.
        variance: the trace of the gradient's covariance matrix, averaged over the measurements.
        variance_low: the lower end of its 95% interval; NaN for fewer than 8 measurements.
        variance_high: the upper end.
        signal_to_noise: the norm of E g over sqrt(variance), averaged likewise; 0 where noise
            explains all of the squared mean.
        signal_to_noise_low: the lower end of its 95% interval; NaN for fewer than 8 measurements.
        signal_to_noise_high: the upper end.

    """

    measurements: int
    variance: float
    variance_low: float
    variance_high: float
    signal_to_noise: float
    signal_to_noise_low: float
    signal_to_noise_high: float


class GradientVarianceMonitor:
    r"""Measure variance and signal-to-noise ratio of gradients while a model is trained.

    One step of a training is one call of `step`, after backward. Every `every` steps the monitor
    takes a measurement for each group of parameters: an estimate of the gradient's variance (the
    trace of its covariance matrix, V) and one of the squared signal :math:`|E g|^2`. It draws no
    random numbers, changes no gradient, and calls neither the model nor backward. There are three
    ways to measure; which one is right depends on the gradient estimator in use:

    ==================== ======================================== =================================
    training with        call                                     V is the variance of
    ==================== ======================================== =================================
    score functions,     `record`, with what                      the estimator, from the S samples
    DisARM               ``score_function_gradient(...,           of the step: parameters and data
                         return_variance=True)`` returned         held fixed
    ``rsample`` with     `watch`, before backward                 the same; for a loss that is a
    S >= 2 samples                                                mean over the samples
    any other, such as   `step` alone                             the estimator and the choice of
    ``importance_bound``                                          the mini-batch together, from
    or S = 1                                                      two successive steps
    ==================== ======================================== =================================

    Samples that a bound couples by their weights give one value of its gradient, not S, and nothing
    to compare it with inside the step: hence the third way. With g, g' of two successive steps,

    .. math::
        V \approx \tfrac12 |g' - g|^2, \qquad |E g|^2 \approx \langle g, g' \rangle,

    unbiased but for the parameters' one step in between, which adds half of the squared change of
    the mean gradient to V. Keep gradients unclipped and unscaled until `step` has read them (with a
    GradScaler: after ``unscale_``). `profile_variance` measures at fixed parameters, from gradients
    of its own.

    After every `window` measurements the monitor makes a report of them: a row for each group in
    `history`, an INFO message of the logger ``latent_kernels.variational.monitor``, and scalars of
    the `writer`. Reported are the mean of V, the root of the ratio of the two means, and their 95%
    intervals, by the methods that `profile_variance` documents. These are means over the window,
    during which parameters may move. On a GPU nothing is copied to the CPU before a report is due.

    Args:
        q_parameters: the groups, by name: a tensor each, or an iterable of tensors. A sequence of
            tensors makes groups "0", "1", ... A sequence of names is enough for `record` and
            `watch`, where an encoder makes q's parameters anew in each step.
        every: steps between the beginnings of two measurements, >= 1.
        window: measurements of a report, >= 8.
        writer: a ``torch.utils.tensorboard.SummaryWriter`` or any object with its ``add_scalar``,
            or None.

    Attributes:
        names: the groups' names.
        every: as given.
        window: as given.

    Raises:
        TypeError, ValueError: naming the argument that is wrong.

    Source:
        The mean of successive squared differences is von Neumann, Kent, Bellinson and Hart's, "The
        mean square successive difference" (1941); signal to noise of gradients is as in Rainforth
        et al., "Tighter variational bounds are not necessarily better" (2018), section 3.

    Example:
        >>> import torch, latent_kernels as lk
        >>> mean, logvar = torch.zeros(4, requires_grad=True), torch.zeros(4, requires_grad=True)
        >>> optimizer = torch.optim.SGD([mean, logvar], lr=1e-3)
        >>> monitor = lk.GradientVarianceMonitor({"mean": mean, "logvar": logvar}, every=2)
        >>> for step in range(40):
        ...     q = lk.DiagonalGaussian(mean, logvar)
        ...     z = q.sample(16, seed=step)
        ...     values = -0.5 * (z - 3).square().sum(-1) - q.log_prob(z).detach()
        ...     loss = -lk.score_function_expectation(q, values, z)
        ...     optimizer.zero_grad()
        ...     loss.backward()
        ...     if monitor.due:
        ...         monitor.record(*lk.score_function_gradient(q, values, z, return_variance=True))
        ...     monitor.step()
        ...     optimizer.step()
        >>> noise = monitor.summary()["mean"]
        >>> noise.measurements, noise.variance_low < noise.variance < noise.variance_high
        (20, True)

        The same for reparameterized samples, which the monitor watches in backward:

        >>> monitor = lk.GradientVarianceMonitor({"mean": mean, "logvar": logvar}, every=2)
        >>> for step in range(40):
        ...     z, kl = lk.rsample_kl(mean, logvar, 16, seed=step)
        ...     loss = (kl - lk.gaussian_log_prob(z, 3.0, 0.0)).mean()
        ...     optimizer.zero_grad()
        ...     if monitor.due:
        ...         monitor.watch(z, mean, logvar)
        ...     loss.backward()
        ...     monitor.step()
        >>> sorted(monitor.report())
        ['logvar', 'mean']

    """

    def __init__(
        self,
        q_parameters: Mapping[str, Tensor | Iterable[Tensor]] | Sequence[Tensor] | Sequence[str],
        *,
        every: int = 10,
        window: int = 100,
        writer: Any = None,
    ):
        self._groups = _groups(q_parameters)
        self.names = tuple(self._groups)
        self.every = _checks.integer("every", every)
        self.window = _checks.integer("window", window, _FEWEST)
        if writer is not None and not callable(getattr(writer, "add_scalar", None)):
            raise TypeError(
                "writer must be a SummaryWriter, with a method add_scalar, or None; got "
                f"{type(writer).__name__}"
            )
        self._writer = writer
        self._steps = self._measured = 0
        self._by_record: bool | None = None  # else by pairs of steps; None before the first
        self._found: _Measurement | None = None  # of the step under way
        self._watch: _Watch | None = None
        self._first: list[list[Tensor]] | None = None  # gradients of a pair's first step
        self._kept: deque[_Measurement] = deque(maxlen=self.window)
        width = max(map(len, self.names))
        self._dtype = np.dtype(
            [
                ("step", "i8"),
                ("group", f"U{width}"),
                ("measurements", "i8"),
                *((column, "f8") for column in _COLUMNS),
            ]
        )
        self._rows: list[tuple[Any, ...]] = []

    @property
    def due(self) -> bool:
        """Whether a measurement begins in the step under way."""
        return self._steps % self.every == 0

    @property
    def history(self) -> npt.NDArray[np.void]:
        """The reports so far, a structured array: a row for each report and group, with the columns
        step (calls of `step` until then), group, and those of `GradientNoise`.
        """
        return np.array(self._rows, dtype=self._dtype)

    def record(self, gradients: Sequence[Tensor], variances: Sequence[Tensor]) -> None:
        """Take the measurement of this step from a gradient and its estimated variance.

        That is what `score_function_gradient` and `disarm_gradient` return with
        ``return_variance=True``, for q's parameters in their order. To have terms without noise in
        the signal, such as the gradient of an analytic KL, add them to the gradients first. Does
        nothing in a step in which none is due.

        The measured variance is as good as what is given: those of `score_function_gradient` and
        `disarm_gradient` are unbiased.

        Args:
            gradients: for each group one tensor, of any shape.
            variances: the variance of each of their elements, in the same shapes.

        Raises:
            TypeError, ValueError: naming the argument that is wrong; also after `step` has measured
                by pairs of steps, or for a second measurement in one step.

        """
        if not self._begins("record"):
            return
        for name, given in (("gradients", gradients), ("variances", variances)):
            if not isinstance(given, (tuple, list)) or len(given) != len(self.names):
                got = f"{len(given)} of them" if isinstance(given, (tuple, list)) else repr(given)
                raise ValueError(
                    f"{name} must hold a tensor for each of the groups {', '.join(self.names)}; "
                    f"got {got}"
                )
            for x in given:
                _checks.floating(name, x)
        for gradient, variance in zip(gradients, variances, strict=True):
            if gradient.shape != variance.shape:
                raise ValueError(
                    f"variances must have the shapes of gradients, {tuple(gradient.shape)}; got "
                    f"{tuple(variance.shape)}"
                )
        with torch.no_grad():
            traces = [_wide(x).sum() for x in variances]
            self._found = _Measurement(traces, [_square(x) for x in gradients])

    def watch(self, z: Tensor, mean: Tensor, logvar: Tensor) -> None:
        r"""Take the measurement of this step in backward, from the gradient that reaches each
        sample.

        For z = mean + e^(logvar/2) eps and a loss that is a mean (or sum) over the samples, plus
        what depends on mean and logvar without noise: the gradient is a sum of independent terms,
        dL/dz_s for the mean and dL/dz_s (z_s - mean) / 2 for logvar, and its variance is S times
        the sample variance of the terms, unbiased. The signal is that of the whole gradient that
        reaches mean and logvar. Not for losses that weigh the samples by one another, as
        importance_bound does: measure these by `step` alone. Does nothing in a step in which no
        measurement is due.

        Args:
            z: samples of `rsample` or `rsample_kl`, [S, ..., D] with S >= 2, before backward.
            mean: what z was drawn with, [..., D].
            logvar: likewise. Groups are those of mean and logvar that require grad, in this order.

        Raises:
            TypeError, ValueError: naming the argument that is wrong; also after `step` has measured
                by pairs of steps, or for a second measurement in one step.

        """
        if not self._begins("watch"):
            return
        for name, x in (("z", z), ("mean", mean), ("logvar", logvar)):
            _checks.floating(name, x)
        shape = _checks.broadcast(mean=mean, logvar=logvar)
        if z.dim() != len(shape) + 1 or z.shape[1:] != shape or z.size(0) < 2:
            raise ValueError(
                f"z must have shape [S, *{shape}] with S >= 2 samples; got {tuple(z.shape)}"
            )
        if not z.requires_grad:
            raise ValueError("z must require grad: reparameterized samples, before backward")
        parameters = [x for x in (mean, logvar) if x.requires_grad]
        if len(parameters) != len(self.names):
            raise ValueError(
                f"mean and logvar must require grad for the groups {', '.join(self.names)}; "
                f"{len(parameters)} of the two do"
            )
        self._watch = _Watch(z, mean, logvar)

    def step(self) -> None:
        """End a step of the training: after backward, before the gradients are changed or cleared.

        Where neither `record` nor `watch` measures, reads the gradients of the parameters, in the
        step that is due and in the next.

        Raises:
            ValueError: where parameters of a group have no gradient; where `watch` saw no backward.

        """
        if self._watch is not None:
            watch, self._watch = self._watch, None
            self._found = watch.measurement()
        elif self._found is None and (self._first is not None or self._pair_due()):
            with torch.no_grad():
                self._pair()
        found, self._found = self._found, None
        self._steps += 1
        if found is not None:
            self._kept.append(found)
            self._measured += 1
            if self._measured % self.window == 0:
                self.report()

    def summary(self) -> dict[str, GradientNoise]:
        """Return what the last `window` measurements say, by the group's name."""
        return {name: _noise(*self._estimates(i)) for i, name in enumerate(self.names)}

    def _estimates(self, group: int) -> tuple[Floats, Floats]:
        """Return V and |E g|^2 by each of the last measurements of a group, those that are not
        finite left out.
        """
        first, second = (
            torch.stack([x[part][group] for x in self._kept]).double().cpu().numpy()
            if self._kept
            else np.empty(0)
            for part in (0, 1)
        )
        finite = np.isfinite(first) & np.isfinite(second)
        first, second = first[finite], second[finite]
        # V and |g|^2, whose mean is |E g|^2 + V; or |g' - g|^2 and <g, g'> of a pair
        return (first, second - first) if self._by_record else (0.5 * first, second)

    def report(self) -> dict[str, GradientNoise]:
        """Make a report of the last `window` measurements now: at the end of a training, say.

        Returns:
            The summary that was reported.

        """
        found = self.summary()
        for name, noise in found.items():
            self._rows.append((self._steps, name, *noise))
            _log.info(
                "step %d, gradient of %s: variance %.3g (95%%: %.3g to %.3g), signal to noise %.3g "
                "(95%%: %.3g to %.3g), from %d measurements",
                self._steps,
                name,
                *noise[1:],
                noise.measurements,
            )
            if self._writer is not None:
                for column in _COLUMNS:
                    value = getattr(noise, column)
                    self._writer.add_scalar(f"gradient_{column}/{name}", value, self._steps)
        return found

    def _begins(self, method: str) -> bool:
        """Return whether a measurement by `record` or `watch` is due, refusing a second way and a
        second one in this step.
        """
        if self._by_record is False:
            raise ValueError(
                f"{method} must be called in every step that is due, from the first on: this "
                "monitor measures by pairs of steps"
            )
        if not self.due:
            return False
        if self._found is not None or self._watch is not None:
            raise ValueError(
                f"{method} must be called once a step: there is a measurement already; step() "
                "ends a step"
            )
        self._by_record = True
        return True

    def _pair_due(self) -> bool:
        """Return whether a pair of steps begins: never where other ways measure, or by names."""
        return self.due and not self._by_record and all(self._groups.values())

    def _pair(self) -> None:
        """Keep the gradients of the first of two steps, and compare them with the second's."""
        if self._first is None:
            self._by_record = False
            self._first = [
                [x.clone() for x in _gradients(*group)] for group in self._groups.items()
            ]
            return
        traces, squares = [], []
        for first, group in zip(self._first, self._groups.items(), strict=True):
            pairs = list(zip(first, _gradients(*group), strict=True))
            traces.append(_total(_square(_wide(b) - _wide(a)) for a, b in pairs))
            squares.append(_total(_product(a, b) for a, b in pairs))
        self._first = None
        self._found = _Measurement(traces, squares)


# --- measurements ---------------------------------------------------------------------------------


class _Measurement(NamedTuple):
    """Two scalars for each group: V and |g|^2, or |g' - g|^2 and <g, g'> of a pair."""

    first: list[Tensor]
    second: list[Tensor]


class _Watch:
    """Hooks that see one backward: the gradient of each sample, and of mean and logvar."""

    def __init__(self, z: Tensor, mean: Tensor, logvar: Tensor):
        self._z, self._mean = z.detach(), mean.detach()
        self._parameters = [
            (x.shape, of_mean) for x, of_mean in ((mean, True), (logvar, False)) if x.requires_grad
        ]
        self._sums: dict[int, Tensor] = {}
        watched = (z, *(x for x in (mean, logvar) if x.requires_grad))
        self._hooks = [x.register_hook(self._adder(i)) for i, x in enumerate(watched)]

    def _adder(self, i: int) -> Callable[[Tensor], None]:
        """Return a hook that adds up what several backward passes bring."""

        def add(gradient: Tensor) -> None:
            gradient = gradient.detach()
            # copied: what comes here may be changed in place later, as a .grad is
            self._sums[i] = self._sums[i] + gradient if i in self._sums else gradient.clone()

        return add

    def measurement(self) -> _Measurement:
        """Remove the hooks, and return what they saw."""
        for hook in self._hooks:
            hook.remove()
        if len(self._sums) < len(self._hooks):
            raise ValueError("z of watch() must have been through backward before step()")
        terms = _wide(self._sums[0])
        samples, traces = len(terms), []
        for shape, of_mean in self._parameters:
            x = terms if of_mean else 0.5 * terms * (self._z - self._mean)
            padded = (1,) * (x.dim() - 1 - len(shape)) + tuple(shape)
            x = x.sum_to_size(samples, *padded)  # for a parameter that rows share
            traces.append(samples * x.var(0).sum())
        return _Measurement(traces, [_square(self._sums[i]) for i in range(1, len(self._hooks))])


def _square(x: Tensor) -> Tensor:
    return _product(x, x)


def _product(x: Tensor, y: Tensor) -> Tensor:
    """<x, y>, of all elements."""
    return torch.dot(_wide(x).reshape(-1), _wide(y).reshape(-1))


def _wide(x: Tensor) -> Tensor:
    """Half precision is subtracted, multiplied and summed in float32."""
    return x if x.dtype in (torch.float32, torch.float64) else x.float()


def _total(parts: Iterable[Tensor]) -> Tensor:
    """Return the sum of the tensors of a group, on the device of the first."""
    first, *others = parts
    for x in others:
        first = first + x.to(first.device)
    return first


def _gradients(name: str, group: list[Tensor]) -> list[Tensor]:
    """Return the gradients of the group's parameters, 0 for one that took no part in the loss."""
    if all(x.grad is None for x in group):
        raise ValueError(
            f"q_parameters {name!r} must have a gradient: call step() after backward() and before "
            "zero_grad()"
        )
    return [torch.zeros_like(x) if x.grad is None else x.grad.to_dense() for x in group]


def _noise(variances: Floats, squares: Floats) -> GradientNoise:
    """Return what the estimates of V and of |E g|^2 of one group say."""
    count, unknown = len(variances), (math.nan, math.nan)
    if not count:
        return GradientNoise(0, math.nan, *unknown, math.nan, *unknown)
    ratio, *limits = ratio_of_means(squares, variances)
    few = count < _FEWEST
    return GradientNoise(
        count,
        float(variances.mean()),
        *(unknown if few else interval(variances, _RESAMPLES)),
        ratio,
        *(unknown if few else limits),
    )


# --- checks ---------------------------------------------------------------------------------------


def _groups(given: Any) -> dict[str, list[Tensor]]:
    """Return the tensors of each group by its name; of names alone, none."""
    if isinstance(given, Mapping):
        items = list(given.items())
    elif isinstance(given, Sequence) and not isinstance(given, str):
        items = [(x, ()) if isinstance(x, str) else (str(i), x) for i, x in enumerate(given)]
    else:
        raise TypeError(
            "q_parameters must be a mapping from names to tensors, or a sequence of tensors or of "
            f"names; got {type(given).__name__}"
        )
    if not items:
        raise ValueError("q_parameters must hold at least one group; got none")
    groups: dict[str, list[Tensor]] = {}
    for name, group in items:
        if not isinstance(name, str):
            raise TypeError(f"q_parameters must have names that are strings; got {name!r}")
        if name in groups:
            raise ValueError(f"q_parameters must have different names; got {name!r} twice")
        if not isinstance(group, (Tensor, Iterable)):
            raise TypeError(f"q_parameters {name!r} must be tensors; got {type(group).__name__}")
        tensors = [group] if isinstance(group, Tensor) else list(group)
        for x in tensors:
            _checks.floating(f"q_parameters {name!r}", x)
            if not x.is_leaf or not x.requires_grad:
                raise ValueError(
                    f"q_parameters {name!r} must be leaves that require grad; for what an encoder "
                    "computes, give names alone, and use record() or watch()"
                )
        if not tensors and (isinstance(given, Mapping) or not isinstance(given[len(groups)], str)):
            raise ValueError(f"q_parameters {name!r} must hold at least one tensor; got none")
        groups[name] = tensors
    if len({bool(group) for group in groups.values()}) > 1:
        raise TypeError("q_parameters must hold tensors or names; got both")
    return groups
