"""Training of sparse encoders, layer by layer."""

from __future__ import annotations

import copy
import importlib.util
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from latent_kernels import _checks
from latent_kernels._checks import integer
from latent_kernels.kernels.eager import draw_seed
from latent_kernels.sparse.encoders import _batches
from latent_kernels.sparse.encoders._batches import Batch, Batches, Stream, Validation
from latent_kernels.sparse.encoders._start import (
    Thresholding,
    checked_dictionary,
    non_negative,
)
from latent_kernels.sparse.encoders.lista import LISTA

Tensor = torch.Tensor
Watcher = bool | Callable[[int, int], object] | None

# Shares of the learning rate: after a new layer alone, all layers are trained with lower rates
# (Chen et al. 2018, appendix).
_REFINEMENTS = (0.2, 0.02)
# Training has diverged when the validation loss is this many times the best loss, or that of codes
# that are all 0 where this is more.
_EXPLODED = 10.0
# The rate is halved at most this often in a row to recover from divergence.
_BACKOFFS = 6
# Training has diverged after this many batches in a row that are not finite, or whose loss or
# gradient is not; fewer are skipped.
_SKIPPED = 5
# Gradients are shortened to this many times the running mean of their length.
_CLIP = 5.0
# A relative improvement below this does not count for patience.
_SMALLEST_GAIN = 1e-4
# Adam's epsilon for a parameter of size 1. It is divided by the size, as gradients are larger where
# the parameter is smaller.
_EPSILON = 1e-8


class TrainingDiverged(RuntimeError):
    """Training diverged, and lower learning rates did not help.

    The loss is not finite, or many times that of codes of zeros.
    """


class Stage(NamedTuple):
    """The result of training up to one depth."""

    n_layers: int | None  # None for an encoder that does not come in layers
    steps: int
    losses: tuple[float, ...]  # in validation, per row: before the stage, then at each check
    loss: float  # in validation, of the weights that were kept


class Training(NamedTuple):
    """The result of `train_encoder`; the encoder itself was trained in place."""

    stages: tuple[Stage, ...]

    @property
    def loss(self) -> float:
        """The final validation loss of the encoder, per row."""
        return self.stages[-1].loss


def train_encoder(
    encoder: nn.Module,
    x: Tensor | Stream,
    *,
    codes: Tensor | None = None,
    dictionary: Tensor | None = None,
    alpha: float | None = None,
    loss: Literal["codes", "lasso"] | None = None,
    learning_rate: float = 0.02,
    batch_size: int = 256,
    max_steps: int = 1000,
    check_every: int = 50,
    patience: int = 4,
    layerwise: bool = True,
    validation: Validation = 0.1,
    seed: int | None = None,
    progress: Watcher = None,
) -> Training:
    r"""Train an encoder in place, and leave it with the weights that were best in validation.

    The loss is a mean over rows z = encoder(x):

    .. math::
        \text{"codes"}: ||z - z^*||^2, \qquad \text{"lasso"}: \tfrac12 ||x - z D||^2 + \alpha
        ||z||_1

    A `LISTA` is trained in stages. Stage t adds layer t and trains its parameters (and those that
    the layers share), then all of the first t layers with 0.2 and with 0.02 of the rate, on the
    codes of layer t (Chen et al. 2018). In the end the whole encoder has been trained, and its
    first layers alone are no longer at their best. Other encoders are trained with these three
    rates in one stage.

    Adam's rate and epsilon for a parameter are relative to the parameter's root mean square, so
    that neither the scale of the data nor that of the dictionary matters as long as squares stay in
    the dtype's range. Each phase checks the validation loss every `check_every` steps, halves the
    rate when the loss rose, and ends after `patience` checks without improvement. A batch that is
    not finite, or whose loss or gradient is not, is skipped. After five of them in a row, or when
    the loss explodes, training returns to its best weights and halves the rate; where this does not
    help, `TrainingDiverged` is raised.

    The encoder is trained in training mode (if it is in that mode already, submodules in evaluation
    mode stay in it) and validated in evaluation mode, without a change to torch's generators. All
    modes are restored at the end. The best weights are a whole `state_dict`, with buffers such as
    running statistics.

    Args:
        encoder: `LISTA`, `LCoD`, `PSDEncoder`, or any module that maps [B, m] to [B, n], in float32
            or float64. (Train an encoder for half precision in float32, and convert it afterwards.)
        x: [N, m]; or a stream: a callable that returns a batch, or an iterable of batches (a
            DataLoader) that can be iterated over repeatedly. A batch is x, (x,) or (x, codes). All
            of it is converted to the encoder's device and dtype.
        codes: z* [N, n] for the loss "codes", such as the optimal codes of PSD (Kavukcuoglu et al.
            2008).
        dictionary: D [n, m] for the loss "lasso"; None for that of the encoder, if it has one.
        alpha: for the loss "lasso", >= 0; None for that of the encoder.
        loss: "codes" or "lasso"; None for "codes" where there are codes.
        learning_rate: Adam's, relative to each parameter's root mean square.
        batch_size: for tensors; a stream has batches of its own.
        max_steps: the most steps in each of the three phases of a stage.
        check_every: steps between two validations.
        patience: checks without improvement before a phase ends.
        layerwise: train in stages; otherwise all layers at once.
        validation: the share of x that is kept for validation; or x, or (x, codes), to validate
            with. Where x is a stream and this a share of any size, the first four batches are kept.
            They are left out each time an iterable is iterated over. If its order changes
            (shuffle=True), later epochs train with rows that are validated with: then give the
            rows to validate with.
        seed: for the split and the order of the rows, in [0, 2^63); None draws one from torch's
            default CPU generator.
        progress: True for a bar (needs the package rich), False for none, None for a bar where rich
            is installed and standard error is a terminal; or a function that is called as
            progress(done, total) after each step.

    Returns:
        `Training`, with the validation losses of each stage.

    Raises:
        TypeError, ValueError: an argument is wrong; the message names it.
        TrainingDiverged: see above. The encoder has the best weights found until then.

    Source:
        Chen, Liu, Wang, Yin, "Theoretical linear convergence of unfolded ISTA and its practical
        weights and thresholds" (2018); the loss "lasso" is that of Ablin, Moreau, Massias,
        Gramfort, "Learning step sizes for unfolded sparse coding" (2019).

    Example:
        >>> import torch, latent_kernels as lk
        >>> D = torch.nn.functional.normalize(lk.normal((8, 4), seed=0), dim=1)
        >>> encoder = lk.LISTA.from_dictionary(D, alpha=0.1, n_layers=2)
        >>> x = lk.normal((500, 4), seed=1)
        >>> training = lk.train_encoder(
        ...     encoder, x, dictionary=D, alpha=0.1, max_steps=50, seed=0, progress=False
        ... )
        >>> [stage.n_layers for stage in training.stages]
        [1, 2]
        >>> last = training.stages[-1]
        >>> last.loss <= last.losses[0]
        True

    """
    options = _Options(
        non_negative("learning_rate", learning_rate),
        integer("max_steps", max_steps),
        integer("check_every", check_every),
        integer("patience", patience),
    )
    trained = [p for p in encoder.parameters() if p.requires_grad]
    if not trained:
        raise ValueError("encoder must have parameters that require gradients")
    for dtype in {p.dtype for p in trained} - {torch.float32, torch.float64}:
        raise TypeError(
            "encoder must have float32 or float64 parameters (train in float32, then convert it);"
            f" got {dtype}"
        )
    generator = torch.Generator().manual_seed(_seed(seed))
    data = _batches.prepare(x, codes, validation, integer("batch_size", batch_size), generator)
    objective = _objective(encoder, data.validation.to(trained[0]), loss, dictionary, alpha)
    layers = encoder.n_layers if isinstance(encoder, LISTA) else None
    depths: list[int | None] = (
        [*range(1, layers + 1)] if layers is not None and layerwise else [layers]
    )
    phases = 3 * len(depths)
    try:
        with _modes_kept(encoder), _bar(progress, phases * options.max_steps) as report:
            if not encoder.training:
                encoder.train()
            trainer = _Trainer(encoder, data, objective, options, report)
            return Training(tuple(trainer.stage(depth, alone=not layerwise) for depth in depths))
    finally:
        for parameter in trained:
            parameter.grad = None


def _seed(seed: int | None) -> int:
    if seed is None:
        return int(draw_seed(torch.device("cpu")))
    return _checks.seed_number(seed)


# --- the loss -------------------------------------------------------------------------------------


class _Objective(NamedTuple):
    """The mean loss of rows: the Lasso objective with a dictionary, else the error of codes."""

    dictionary: Tensor | None = None
    alpha: float = 0.0

    def __call__(self, z: Tensor, batch: Batch) -> Tensor:
        if self.dictionary is None:
            if batch.codes is None:
                raise ValueError("x must give (x, codes) in every batch where loss is 'codes'")
            if batch.codes.shape != z.shape:
                raise ValueError(
                    f"codes must have the encoder's shape, {tuple(z.shape)};"
                    f" got {tuple(batch.codes.shape)}"
                )
            return (z - batch.codes).square().sum(-1).mean()
        shape = (z.size(-1), batch.x.size(-1))
        if tuple(self.dictionary.shape) != shape:
            raise ValueError(
                f"dictionary must have shape {shape}, as encoder and x have;"
                f" got {tuple(self.dictionary.shape)}"
            )
        residual = batch.x - z @ self.dictionary
        return (0.5 * residual.square().sum(-1) + self.alpha * z.abs().sum(-1)).mean()


def _objective(
    encoder: nn.Module,
    sample: Batch,
    loss: str | None,
    dictionary: Tensor | None,
    alpha: float | None,
) -> _Objective:
    if loss not in ("codes", "lasso", None):
        raise ValueError(f"loss must be 'codes', 'lasso' or None; got {loss!r}")
    if loss == "codes" or (loss is None and sample.codes is not None):
        if sample.codes is None:
            raise ValueError("codes must be given where loss is 'codes', in validation too")
        for name, value in (("dictionary", dictionary), ("alpha", alpha)):
            if value is not None:
                raise ValueError(f"{name} must be None where loss is 'codes'; got {value!r}")
        return _Objective()
    dictionary = getattr(encoder, "dictionary", None) if dictionary is None else dictionary
    alpha = getattr(encoder, "alpha", None) if alpha is None else alpha
    for name, value in (("dictionary", dictionary), ("alpha", alpha)):
        if value is None:
            raise ValueError(f"{name} must be given where loss is 'lasso' and the encoder has none")
    assert dictionary is not None
    return _Objective(checked_dictionary(dictionary).to(sample.x), non_negative("alpha", alpha))


# --- stages ---------------------------------------------------------------------------------------


class _Options(NamedTuple):
    learning_rate: float
    max_steps: int
    check_every: int
    patience: int


class _Trainer:
    """Training in stages of three phases each, which keeps the best weights."""

    def __init__(
        self,
        encoder: nn.Module,
        data: Batches,
        objective: _Objective,
        options: _Options,
        report: Callable[[int], object],
    ) -> None:
        self.encoder, self.objective, self.options, self.report = (
            encoder,
            objective,
            options,
            report,
        )
        self.trained: list[Tensor] = [p for p in encoder.parameters() if p.requires_grad]
        self.batches, self.validation = data.training, data.validation.to(self.trained[0])
        self.devices = {p.device for p in self.trained if p.device.type == "cuda"}
        self.depth: int | None = None
        self.skipped = 0  # batches in a row
        self.done = 0  # steps for the progress bar, with those that phases left out
        self.best, self.best_loss = self._weights(), math.inf
        self.losses: list[float] = []
        self.exploded: tuple[float, float] | None = None  # the loss and the rate, in this stage
        self.unit = 1.0  # the loss of codes of zeros

    def stage(self, depth: int | None, *, alone: bool) -> Stage:
        """Run all phases for the first `depth` layers; `alone` says that no stage came before."""
        self.depth, self.losses, self.exploded, steps = depth, [], None, 0
        self.best, self.best_loss = self._weights(), self._validate()
        if not math.isfinite(self.best_loss):
            raise TrainingDiverged(f"the validation loss is {self.best_loss} before the first step")
        new = None if alone or depth in (None, 1) else depth
        for factor in (1.0, *_REFINEMENTS):
            steps += self._phase(factor * self.options.learning_rate, new)
            new = None
        if self.exploded is not None and self.best_loss >= self.losses[0]:
            raise TrainingDiverged(self._explanation(*self.exploded))
        return Stage(depth, steps, tuple(self.losses), self.best_loss)

    def _phase(self, rate: float, new: int | None) -> int:
        """Train from the best weights until patience ends, and return the number of steps.

        The best weights are restored at the end.
        """
        end, limit = self.done + self.options.max_steps, _EXPLODED * max(self.best_loss, self.unit)
        optimizer, previous, waited, backoffs, step = self._optimizer(rate), self.best_loss, 0, 0, 0
        self.norm = math.inf  # of gradients, their running mean
        try:
            for step in range(1, self.options.max_steps + 1):
                sound = self._step(optimizer, new)
                self.report(self.done + step)
                if sound and step % self.options.check_every and step < self.options.max_steps:
                    continue
                loss = self._validate() if sound else math.nan
                if not loss <= limit:
                    self.exploded, self.skipped = (loss, rate), 0
                    backoffs, rate, previous = backoffs + 1, rate / 2, self.best_loss
                    self._restore()
                    if backoffs > _BACKOFFS:
                        raise TrainingDiverged(self._explanation(*self.exploded))
                    optimizer, self.norm = self._optimizer(rate), math.inf
                    continue
                waited = 0 if loss < (1 - _SMALLEST_GAIN) * self.best_loss else waited + 1
                if loss < self.best_loss:
                    self.best, self.best_loss, backoffs = self._weights(), loss, 0
                if waited == self.options.patience:
                    break
                if loss > previous:
                    rate /= 2
                    for group in optimizer.param_groups:
                        group["lr"] /= 2
                previous = loss
        finally:
            self._restore()
        self.done = end
        self.report(end)
        return step

    def _step(self, optimizer: torch.optim.Optimizer, new: int | None) -> bool:
        """Take a step of Adam, or skip it where the batch, the loss or its gradient is not finite.

        Return False after too many skipped steps in a row, or if the weights are not finite.
        """
        batch = next(self.batches).to(self.trained[0])
        # An encoder that keeps running statistics must not see such a batch.
        if not bool(torch.isfinite(batch.x).all()):
            return self._skip()
        loss = self.objective(self._encode(batch.x), batch) / self.unit
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in self.trained if p.grad is not None]
        if new is not None:
            self._freeze_before(new)
        norm = _norm(gradients)
        if not math.isfinite(norm) or not math.isfinite(float(loss.detach())):
            return self._skip()
        self.skipped = 0
        bound = _CLIP * self.norm
        if norm > bound:
            torch._foreach_mul_(gradients, bound / norm)
            norm = bound
        self.norm = norm if math.isinf(self.norm) else 0.9 * self.norm + 0.1 * norm
        optimizer.step()
        if isinstance(self.encoder, Thresholding):
            self.encoder.project_()
        return math.isfinite(_norm(self.trained))

    def _skip(self) -> bool:
        """Skip a step, and return whether this one may be skipped."""
        self.skipped += 1
        return self.skipped < _SKIPPED

    def _freeze_before(self, new: int) -> None:
        """Set the gradients of the layers before a new one to 0; a new Adam then leaves them."""
        assert isinstance(self.encoder, LISTA)
        for name in self.encoder.layered:
            parameter: Tensor | None = getattr(self.encoder, name)
            if parameter is not None and parameter.grad is not None:
                parameter.grad[: new - 1] = 0

    def _encode(self, x: Tensor) -> Tensor:
        z: Tensor = self.encoder(x) if self.depth is None else self.encoder(x, n_layers=self.depth)
        return z

    @torch.no_grad()
    def _codes(self) -> Tensor:
        """Return the codes of the validation rows, computed in evaluation mode.

        torch's generators and the modes stay as they are.
        """
        with _modes_kept(self.encoder), torch.random.fork_rng(self.devices):
            self.encoder.eval()
            return self._encode(self.validation.x)

    @torch.no_grad()
    def _validate(self) -> float:
        z = self._codes()
        self.unit = float(self.objective(torch.zeros_like(z), self.validation)) or 1.0
        self.losses.append(float(self.objective(z, self.validation)))
        return self.losses[-1]

    @torch.no_grad()
    def _optimizer(self, rate: float) -> torch.optim.Adam:
        sizes = [self._size(p) for p in self.trained]
        pairs = zip(self.trained, sizes, strict=True)
        return torch.optim.Adam(
            [{"params": [p], "lr": rate * size, "eps": _EPSILON / size} for p, size in pairs]
        )

    def _size(self, parameter: Tensor) -> float:
        """Return the root mean square of a parameter.

        For a parameter that is 0 (a bias, thresholds without alpha) it is that of the codes.
        """
        return _root_mean_square(parameter) or _root_mean_square(self._codes()) or 1.0

    def _weights(self) -> dict[str, Any]:
        return copy.deepcopy(self.encoder.state_dict())

    def _restore(self) -> None:
        self.encoder.load_state_dict(self.best)

    def _explanation(self, loss: float, rate: float) -> str:
        where = "" if self.depth is None else f" with {self.depth} layers"
        return (
            f"training diverged{where}: the loss came to {loss:.3g} from {self.best_loss:.3g} at a"
            f" learning rate of {rate:.3g}, and backing off did not help; the best weights so far"
            " are back. Try a smaller learning_rate"
        )


@torch.no_grad()
def _norm(tensors: list[Tensor]) -> float:
    return float(
        torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(x) for x in tensors]))
    )


def _root_mean_square(x: Tensor) -> float:
    return float(x.detach().double().square().mean().sqrt())


@contextmanager
def _modes_kept(encoder: nn.Module) -> Iterator[None]:
    """Restore the training or evaluation mode of each submodule afterwards."""
    modes = [(module, module.training) for module in encoder.modules()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


# --- progress -------------------------------------------------------------------------------------


@contextmanager
def _bar(progress: Watcher, total: int) -> Iterator[Callable[[int], object]]:
    """Yield the function to call with the number of steps done."""
    if callable(progress):
        watcher = progress
        yield lambda done: watcher(done, total)
        return
    if progress is None:
        progress = sys.stderr.isatty() and importlib.util.find_spec("rich") is not None
    if not progress:
        yield lambda done: None
        return
    try:
        from rich.console import Console
        from rich.progress import (
            BarColumn,
            Progress,
            TaskProgressColumn,
            TextColumn,
            TimeElapsedColumn,
        )
    except ImportError as error:
        raise ImportError(
            "progress=True needs the package rich: pip install 'latent-kernels[cli]'"
        ) from error
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("encoder", total=total)
        yield lambda done: bar.update(task, completed=done)
