"""train_encoder: the losses that it reaches, its recovery from failures, and its arguments."""

from __future__ import annotations

import copy
import math
import sys
from typing import Any

import pytest
import torch

from latent_kernels.sparse.encoders import (
    LISTA,
    LCoD,
    PSDEncoder,
    Training,
    TrainingDiverged,
    training,
)
from latent_kernels.sparse.encoders import train_encoder as train

Tensor = torch.Tensor
M, N, LAYERS, ALPHA = 20, 40, 4, 0.1
SHORT: dict[str, Any] = {"max_steps": 40, "check_every": 20, "seed": 1}
FULL: dict[str, Any] = {"max_steps": 150, "check_every": 25, "seed": 1}


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def dictionary() -> Tensor:
    d = torch.randn(N, M, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(d, dim=-1)


def problem(n: int = 2000, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Return rows x = z D of Gaussian codes that are 8% dense, and the codes."""
    g = torch.Generator().manual_seed(seed)
    z = torch.randn(n, N, generator=g) * (torch.rand(n, N, generator=g) < 0.08)
    return z @ dictionary(), z


def fista(x: Tensor, alpha: float, steps: int) -> Tensor:
    d = dictionary()
    step = 1 / float(torch.linalg.matrix_norm(d, 2)) ** 2
    y = z = x.new_zeros(len(x), N)
    t = 1.0
    for _ in range(steps):
        u = y + step * (x - y @ d) @ d.T
        after = torch.sign(u) * torch.clamp(u.abs() - alpha * step, min=0)
        t, last = (1 + math.sqrt(1 + 4 * t * t)) / 2, t
        y, z = after + (last - 1) / t * (after - z), after
    return z


def lasso(x: Tensor, z: Tensor, alpha: float = ALPHA) -> float:
    return float((0.5 * (x - z @ dictionary()).square().sum(-1) + alpha * z.abs().sum(-1)).mean())


@torch.no_grad()
def codes_error(encoder: torch.nn.Module, **options: Any) -> float:
    """Return the codes' NMSE in dB on other rows than those of training."""
    x, z = problem(seed=2)
    return decibels(encoder(x, **options), z)


def decibels(found: Tensor, z: Tensor) -> float:
    return 10 * math.log10(float((found - z).square().sum() / z.square().sum()))


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


# --- what it reaches ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variant", "options", "gain"),
    [
        ("lista", {}, 5.0),
        pytest.param("cp", {"tied": False, "select": (0.025, 0.12)}, 8.0, marks=pytest.mark.slow),
        ("alista", {"select": (0.025, 0.12)}, 9.0),
        ("step", {}, 1.5),  # one number a layer
    ],
)
def test_learned_layers_beat_as_many_of_fista(variant: Any, options: Any, gain: float) -> None:
    """The encoder beats FISTA at its best alpha by `gain` decibels of NMSE; ISTA is behind
    FISTA.
    """
    x, z = problem()
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, LAYERS, variant=variant, **options)
    start = codes_error(encoder)
    result = train(encoder, x, codes=z, **FULL)
    assert [stage.n_layers for stage in result.stages] == [1, 2, 3, 4]
    held_out, truth = problem(seed=2)
    rival = min(
        decibels(fista(held_out, alpha, LAYERS), truth) for alpha in (0.02, 0.05, 0.1, 0.2, 0.3)
    )
    ista = min(
        codes_error(LISTA.from_dictionary(dictionary(), alpha, LAYERS))
        for alpha in (0.02, 0.05, 0.1, 0.2, 0.3)
    )
    assert codes_error(encoder) < min(rival, ista, start) - gain
    losses = [stage.loss for stage in result.stages]
    assert losses == sorted(losses, reverse=True)
    assert result.loss == losses[-1]


def test_learned_layers_beat_as_many_of_fista_at_the_lasso() -> None:
    """Without codes the encoder is within a quarter of FISTA's distance from the optimum, and
    nearer than FISTA of twice its layers.
    """
    x, _ = problem()
    held_out, _ = problem(seed=2)
    optimum = lasso(held_out, fista(held_out, ALPHA, 2000))
    rival, doubled = (
        lasso(held_out, fista(held_out, ALPHA, steps)) - optimum for steps in (LAYERS, 2 * LAYERS)
    )
    for variant in ("lista", "alista"):
        encoder = LISTA.from_dictionary(dictionary(), ALPHA, LAYERS, variant=variant)  # type: ignore[arg-type]
        result = train(encoder, x, dictionary=dictionary(), **FULL)
        with torch.no_grad():
            z = encoder(held_out)
        assert 0 < lasso(held_out, z) - optimum < min(rival / 4, doubled)
        assert math.isclose(result.loss, lasso(held_out, z), rel_tol=0.1)


@pytest.mark.parametrize(
    "make", [lambda: LCoD.from_dictionary(dictionary(), ALPHA, 3), lambda: PSDEncoder(M, N)]
)
def test_encoders_without_layers(make: Any) -> None:
    torch.manual_seed(0)
    encoder = make()
    start = codes_error(encoder)
    x, z = problem()
    result = train(encoder, x, codes=z, **FULL)
    assert codes_error(encoder) < start - 0.5
    assert [stage.n_layers for stage in result.stages] == [None]


def test_scales_do_not_matter() -> None:
    """Scaling data, codes, alpha and dictionary by powers of two, which leave roundings the same,
    scales the result.
    """
    x, z = problem(400)
    results = []
    for data, atoms in (
        (1.0, 1.0),
        (256.0, 1.0),
        (1.0, 64.0),
        (2.0**40, 1.0),
        (2.0**-40, 1.0),
        (1.0, 2.0**-30),
    ):
        encoder = LISTA.from_dictionary(atoms * dictionary(), ALPHA * data * atoms, 2)
        train(encoder, data * x, codes=data / atoms * z, **SHORT)
        with torch.no_grad():
            results.append(encoder(data * x) * atoms / data)
    for result in results[1:]:
        assert torch.allclose(results[0], result, rtol=1e-3, atol=1e-4)


# --- how ------------------------------------------------------------------------------------------


def test_a_new_layer_trains_before_the_others() -> None:
    """In the first phase of a stage, the parameters that only earlier layers have do not change."""
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 3, variant="cp", tied=False)
    before = copy.deepcopy(encoder)
    data = training._batches.prepare(x, z, 0.1, 64, torch.Generator().manual_seed(0))
    options = training._Options(0.02, 10, 5, 4)
    trainer = training._Trainer(encoder, data, training._Objective(), options, lambda done: None)
    trainer.depth = 2
    trainer._validate()
    trainer.best_loss = trainer.losses[0]
    trainer._phase(0.02, 2)
    for name in ("weight", "threshold"):
        ours, theirs = getattr(encoder, name), getattr(before, name)
        assert torch.equal(ours[0], theirs[0])
        assert not torch.equal(ours[1], theirs[1])
        assert torch.equal(ours[2], theirs[2])
    trainer._phase(0.02, None)
    assert not torch.equal(encoder.weight[0], before.weight[0])
    assert torch.equal(encoder.weight[2], before.weight[2])


def test_the_seed_decides() -> None:
    x, z = problem(300)
    trained = []
    for seed in (1, 1, 2):
        trained.append(LISTA.from_dictionary(dictionary(), ALPHA, 2))
        train(trained[-1], x, codes=z, **SHORT | {"seed": seed})
    assert equal(trained[0], trained[1])
    assert not equal(trained[0], trained[2])
    for _ in range(2):  # without one, torch's generator does
        torch.manual_seed(7)
        trained.append(LISTA.from_dictionary(dictionary(), ALPHA, 2))
        train(trained[-1], x, codes=z, **SHORT | {"seed": None})
    assert equal(trained[3], trained[4])


def test_best_weights_are_kept() -> None:
    """At a rate that does harm the result is no worse than the start, and its loss is the reported
    one.
    """
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 2)
    start = float((encoder(x) - z).square().sum(-1).mean().detach())
    result = train(
        encoder, x, codes=z, validation=(x, z), learning_rate=1.0, layerwise=False, **SHORT
    )
    with torch.no_grad():
        end = float((encoder(x) - z).square().sum(-1).mean())
    assert math.isclose(result.loss, end, rel_tol=1e-6)
    assert end <= start
    assert len(result.stages) == 1
    assert math.isclose(result.stages[0].losses[0], start, rel_tol=1e-6)
    assert min(result.stages[0].losses) == result.loss


def test_patience_ends_a_phase() -> None:
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 1)
    result = train(
        encoder, x, codes=z, learning_rate=0.0, max_steps=1000, check_every=2, patience=3, seed=1
    )
    assert result.stages[0].steps == 3 * 3 * 2
    assert equal(encoder, LISTA.from_dictionary(dictionary(), ALPHA, 1))


@pytest.mark.parametrize("mode", [True, False])
def test_mode_and_feasibility(mode: bool) -> None:
    """The module's mode is restored, with thresholds that evaluation can use; frozen parameters do
    not change.
    """
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), 1e-3, 2).train(mode)
    encoder.weight.requires_grad_(False)
    weight = encoder.weight.clone()
    train(encoder, x, codes=z, learning_rate=0.3, **SHORT)
    assert encoder.training is mode
    assert all(parameter.grad is None for parameter in encoder.parameters())
    assert float(encoder.threshold.detach().min()) >= 0  # type: ignore[union-attr]
    assert torch.equal(encoder.weight, weight)


def test_a_bias_and_thresholds_of_zero_learn() -> None:
    """Parameters of zero are trained, although relative rates would never move them."""
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), 0.0, 2, bias=True)
    train(encoder, x, codes=z, **SHORT)
    assert encoder.bias is not None
    assert encoder.threshold is not None
    assert float(encoder.bias.detach().abs().max()) > 1e-3
    assert float(encoder.threshold.detach().max()) > 1e-3


def test_streams() -> None:
    """Callables and restartable iterables are accepted, all with or without codes."""
    x, z = problem(256)
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, z), batch_size=32)
    for stream in (loader, lambda: (x[:64], z[:64]), [(x, z)] * 5):
        encoder = LISTA.from_dictionary(dictionary(), ALPHA, 2)
        result = train(encoder, stream, **SHORT)
        assert result.loss < 0.9 * result.stages[0].losses[0]
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 2, variant="alista")
    result = train(encoder, lambda: x.double(), validation=x, **SHORT)
    assert result.loss < result.stages[0].losses[0]
    with pytest.raises(ValueError, match="x gave no more batches"):
        train(encoder, iter([x] * 8), **SHORT)


def test_an_iterables_first_batches_are_only_validated_with() -> None:
    """The first batches are used for validation only, in every epoch; with validation data given,
    all are trained on.
    """
    items = [torch.full((3, M), float(i)) for i in range(7)]
    generator = torch.Generator().manual_seed(0)
    data = training._batches.prepare(items, None, 0.5, 1, generator)
    assert data.validation.x[:, 0].tolist() == [i for i in range(4) for _ in range(3)]
    assert [int(next(data.training).x[0, 0]) for _ in range(9)] == [4, 5, 6] * 3
    data = training._batches.prepare(items[:2], None, items[0], 1, generator)
    assert [int(next(data.training).x[0, 0]) for _ in range(4)] == [0, 1] * 2
    calls = iter(items)
    data = training._batches.prepare(lambda: next(calls), None, 0.5, 1, generator)
    assert [int(next(data.training).x[0, 0]) for _ in range(3)] == [4, 5, 6]
    for few in (items[:1], items[:4]):
        with pytest.raises(
            ValueError, match=f"x must give more than 4 batches .* got {len(few)}. Pass the rows"
        ):
            training._batches.prepare(few, None, 0.5, 1, generator)


class Noisy(torch.nn.Module):
    """A module with running statistics and with noise from torch's generator, in evaluation mode
    too.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.frozen = torch.nn.BatchNorm1d(M), torch.nn.BatchNorm1d(M)
        self.linear, self.drop = torch.nn.Linear(M, N), torch.nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        z: Tensor = self.drop(self.linear(self.norm(x) + self.frozen(x)))
        return z + 1e-4 * torch.randn_like(z)


def noisy() -> Noisy:
    torch.manual_seed(0)
    encoder = Noisy()
    encoder.frozen.eval()
    return encoder


@pytest.mark.parametrize("rate", [0.02, 5.0])
def test_buffers_and_modes_come_back(rate: float) -> None:
    """The best weights are restored with their running statistics: the final encoder has the
    reported loss.
    """
    x, z = problem(300)
    encoder = noisy()
    frozen = copy.deepcopy(encoder.frozen.state_dict())
    result = train(encoder, x + 3, codes=z, validation=(x + 3, z), learning_rate=rate, **SHORT)
    assert [
        encoder.training,
        encoder.norm.training,
        encoder.frozen.training,
        encoder.drop.training,
    ] == [1, 1, 0, 1]
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(encoder.frozen, name), frozen[name])
    encoder.eval()
    with torch.no_grad():
        loss = float((encoder(x + 3) - z).square().sum(-1).mean())
    assert math.isclose(result.loss, loss, rel_tol=1e-3)
    assert result.loss <= result.stages[0].losses[0]
    train(encoder, x, codes=z, **SHORT)
    assert not any(module.training for module in encoder.modules())


@torch.no_grad()
def test_the_best_weights_have_their_running_statistics() -> None:
    """Statistics of later batches with another distribution are dropped, and those of a batch of
    NaN are never kept.
    """
    x, z = problem(300)
    count = 0

    def stream() -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return (x * math.nan if count % 5 == 2 else x + 0.02 * count), z

    encoder = noisy()
    with torch.enable_grad():
        result = train(
            encoder, stream, validation=(x, z), learning_rate=0.0, **SHORT | {"check_every": 4}
        )
    encoder.eval()
    loss = float((encoder(x) - z).square().sum(-1).mean())
    losses = result.stages[0].losses
    assert math.isclose(result.loss, loss, rel_tol=1e-3)
    assert max(losses) > 1.1 * result.loss
    assert all(map(math.isfinite, losses))


def test_validation_leaves_no_trace() -> None:
    """More frequent validation changes neither running statistics nor the global generator."""
    x, z = problem(300)
    trained = []
    for every in (1, 4):
        trained.append(noisy())
        for parameter in trained[-1].parameters():
            parameter.requires_grad_(False)
        trained[-1].linear.bias.requires_grad_(True)
        data = training._batches.prepare(x, z, 0.1, 64, torch.Generator().manual_seed(0))
        trainer = training._Trainer(
            trained[-1],
            data,
            training._Objective(),
            training._Options(0.01, 4, every, 4),
            lambda done: None,
        )
        torch.manual_seed(1)
        state = torch.get_rng_state()
        trainer._validate()
        assert torch.equal(torch.get_rng_state(), state)
        optimizer = trainer._optimizer(0.01)
        trainer.norm = math.inf
        for step in range(1, 5):
            assert trainer._step(optimizer, None)
            if step % every == 0:
                trainer._validate()
    states = [encoder.state_dict() for encoder in trained]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert float(states[0]["norm.num_batches_tracked"]) == 4


def test_progress(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    x, z = problem(100)
    calls: list[tuple[int, int]] = []
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 2)
    train(encoder, x, codes=z, progress=lambda done, total: calls.append((done, total)), **SHORT)
    assert [done for done, _ in calls] == sorted(done for done, _ in calls)
    assert calls[-1] == (240, 240)
    train(encoder, x, codes=z, **SHORT)  # standard error is not a terminal here
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    train(encoder, x, codes=z, progress=True, **SHORT)
    assert "encoder" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with pytest.raises(ImportError, match=r"progress=True needs the package rich"):
        train(encoder, x, codes=z, progress=True, **SHORT)
    train(encoder, x, codes=z, progress=False, **SHORT)


# --- what goes wrong ------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["lista", "cp", "alista", "step"])
def test_divergence_raises_and_leaves_good_weights(variant: Any) -> None:
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 3, variant=variant)
    start = codes_error(encoder)
    for rate in (1e6, 1e12, 1e36):
        with pytest.raises(
            TrainingDiverged,
            match=r"training diverged with \d layers: the loss came to .* learning_rate",
        ):
            train(encoder, x, codes=z, learning_rate=rate, **SHORT)
    assert codes_error(encoder) <= start + 0.1
    assert issubclass(TrainingDiverged, RuntimeError)


def test_a_rate_that_is_too_high_heals() -> None:
    """Backing off finds a rate at which training works."""
    x, z = problem(300)
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 3)
    result = train(
        encoder,
        x,
        codes=z,
        learning_rate=24.0,
        layerwise=False,
        max_steps=300,
        check_every=10,
        seed=1,
    )
    losses = result.stages[0].losses
    assert max(losses) > 10 * losses[0]
    assert result.loss < losses[0]


def test_a_batch_that_is_not_finite_is_skipped() -> None:
    """A batch of NaN only costs its step: with every other batch NaN, twice the steps give the same
    encoder.
    """
    x, z = problem(300)
    trained = []
    for bad in (1, 2, 4):  # one in so many batches is good
        count = 0

        def stream(bad: int = bad) -> tuple[Tensor, Tensor]:
            nonlocal count
            count += 1
            return (x if count % bad == 0 else x * math.nan), z

        trained.append(LISTA.from_dictionary(dictionary(), ALPHA, 1))
        train(
            trained[-1], stream, validation=(x, z), max_steps=20 * bad, check_every=10 * bad, seed=1
        )
    assert equal(trained[0], trained[1])
    assert equal(trained[0], trained[2])
    assert not equal(trained[0], LISTA.from_dictionary(dictionary(), ALPHA, 1))


def test_batches_that_are_not_finite_do_no_harm() -> None:
    """A batch that is not finite costs one step; an error is raised only if all batches are
    such.
    """
    x, z = problem(300)
    count = 0

    def stream() -> tuple[Tensor, Tensor]:
        nonlocal count
        count += 1
        return (x * math.nan if count == 30 else x), z

    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 1)
    result = train(encoder, stream, validation=(x, z), **SHORT)
    assert result.loss < result.stages[0].losses[0]
    with pytest.raises(TrainingDiverged, match="the loss came to nan"):
        train(encoder, lambda: (x * math.nan, z), validation=(x, z), **SHORT)
    with pytest.raises(TrainingDiverged, match="the validation loss is nan before the first step"):
        train(encoder, lambda: (x * math.nan, z), **SHORT)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"learning_rate": -1.0}, ValueError, "learning_rate must be a finite number >= 0"),
        ({"max_steps": 0}, ValueError, "max_steps must be an int >= 1"),
        ({"seed": 0.5}, TypeError, "seed must be an int or None"),
        ({"seed": 2**64}, ValueError, r"seed must lie in \[0, 2\^63\); got 18446744073709551616"),
        ({"seed": -1}, ValueError, r"seed must lie in \[0, 2\^63\)"),
        ({"patience": 1.5}, TypeError, "patience must be an int >= 1"),
        ({"batch_size": 0}, ValueError, "batch_size must be an int >= 1"),
        ({"loss": "mse"}, ValueError, "loss must be 'codes', 'lasso' or None"),
        ({"loss": "codes"}, ValueError, "codes must be given where loss is 'codes'"),
        ({"dictionary": None}, ValueError, "dictionary must be given where loss is 'lasso'"),
        ({"alpha": -1.0}, ValueError, "alpha must be a finite number >= 0"),
        ({"dictionary": torch.zeros(N, M)}, ValueError, "dictionary must have a row that is not"),
        (
            {"dictionary": torch.ones(N, M + 1)},
            ValueError,
            r"dictionary must have shape \(40, 20\)",
        ),
        (
            {"dictionary": torch.ones(N + 1, M)},
            ValueError,
            r"dictionary must have shape \(40, 20\)",
        ),
        (
            {"codes": torch.zeros(50, N)},
            ValueError,
            "dictionary must be None where loss is 'codes'",
        ),
        (
            {"codes": torch.zeros(49, N), "dictionary": None},
            ValueError,
            "codes must have as many rows as x, 50; got 49",
        ),
        (
            {"codes": torch.zeros(50, N - 1), "dictionary": None},
            ValueError,
            "codes must have the encoder's shape",
        ),
        ({"x": torch.zeros(50)}, ValueError, "x must have two dimensions"),
        ({"x": torch.zeros(1, M)}, ValueError, "x must have at least 2 rows"),
        ({"x": torch.zeros(0, M)}, ValueError, "x must have rows"),
        ({"x": torch.full((50, M), math.inf)}, ValueError, "x must be finite"),
        ({"x": 3.0}, TypeError, "x must be a torch.Tensor, or a callable or iterable"),
        ({"x": [(1, 2, 3)]}, ValueError, r"x must give x or \(x, codes\); got 3 values"),
        (
            {"validation": 5.0, "x": [torch.ones(9, M)] * 9},
            ValueError,
            r"validation must be a share in \(0, 1\)",
        ),
        ({"validation": 1}, ValueError, r"validation must be a share in \(0, 1\)"),
        ({"validation": 1.0}, ValueError, r"validation must be a share in \(0, 1\)"),
        ({"validation": torch.full((5, M), math.nan)}, ValueError, "validation must be finite"),
    ],
)
def test_bad_input(change: dict[str, Any], error: type[Exception], message: str) -> None:
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 1)
    given = {"x": torch.zeros(50, M), "dictionary": dictionary()} | change
    with pytest.raises(error, match=message):
        train(encoder, **given)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_refused(dtype: torch.dtype) -> None:
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 1, dtype=dtype)
    with pytest.raises(
        TypeError, match=f"encoder must have float32 or float64 parameters .*; got {dtype}"
    ):
        train(encoder, torch.zeros(50, M), dictionary=dictionary())


def test_nothing_to_train() -> None:
    encoder = LISTA.from_dictionary(dictionary(), ALPHA, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="encoder must have parameters that require gradients"):
        train(encoder, torch.zeros(50, M), dictionary=dictionary())


def test_data_of_zeros() -> None:
    """Data of zeros train nothing, and the loss is not divided by zero."""
    result = train(
        LISTA.from_dictionary(dictionary(), ALPHA, 1),
        torch.zeros(50, M),
        codes=torch.zeros(50, N),
        **SHORT,
    )
    assert isinstance(result, Training)
    assert result.loss == 0
