"""`latent-kernels sparse`: its problems, its numbers against plain torch, its pictures, and its
errors.
"""

from __future__ import annotations

import functools
import math
import re
from functools import partial

import numpy as np
import pytest
import torch

import latent_kernels as lk
from latent_kernels.cli import timing
from latent_kernels.cli.sparse import figures, problems, solvers, study
from latent_kernels.cli.sparse.command import FIGURES
from latent_kernels.kernels import backends
from latent_kernels.sparse.encoders.training import TrainingDiverged
from tests.cli import checks
from tests.cli.checks import check_picture

SMALL = problems.Photographs(
    patches=1500, held_out=100, components=30, passes=1, steps=8, batch_size=64
)
QUICK = SMALL._replace(patches=1200, components=20)
CODES = problems.Codes(features=16, components=24, samples=40)
OPTIONS = ("--layers", 3, "--features", 16, "--components", 24, "--samples", 40)


def silent(*_):
    return None


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(study, "PHOTOGRAPHS", SMALL)
    monkeypatch.setattr(study, "QUICK", QUICK)
    monkeypatch.setattr(solvers, "MOST_ITERATIONS", 30)
    monkeypatch.setattr(timing, "BUDGET", 0.0)
    train_for(16, monkeypatch)
    monkeypatch.delenv(backends.VARIABLE, raising=False)
    backends.forget()
    torch.set_num_threads(1)


def train_for(steps, monkeypatch):
    learned = {name: one._replace(steps=steps) for name, one in study.LEARNED.items()}
    monkeypatch.setattr(study, "LEARNED", learned)


call = functools.partial(checks.call, "sparse")


def soft(u, theta):
    return u - u.clamp(-theta, theta)


def ista(x, dictionary, alpha, iterations):
    """Return ISTA's codes in float64: FISTA without the momentum."""
    x, d = x.double(), dictionary.double()
    step = 1 / float(torch.linalg.matrix_norm(d, 2)) ** 2
    z = x.new_zeros(len(x), len(d))
    for _ in range(iterations):
        z = soft(z - step * (z @ d - x) @ d.T, step * alpha)
    return z


# --- problems -------------------------------------------------------------------------------------


def test_drawn_codes_are_what_the_protocol_says():
    generator = torch.Generator().manual_seed(3)
    sizes = problems.Codes(250, 500, 1)
    d = problems.draw_dictionary(sizes, generator)
    x, z = problems.draw_codes(d, 2000, generator)
    assert d.shape == (500, 250)
    assert torch.allclose(d.norm(dim=-1), torch.ones(500), atol=1e-6)
    share = (z != 0).double().mean()
    assert abs(float(share) - 0.1) < 5 * math.sqrt(0.09 / z.numel())
    assert float(z[z != 0].var()) == pytest.approx(1, abs=5 * math.sqrt(2 / 1e5))
    signal, noise = z @ d, x - z @ d
    decibels = 10 * math.log10(float(signal.square().sum() / noise.square().sum()))
    assert decibels == pytest.approx(40, abs=0.2)
    again = problems.draw_dictionary(sizes, torch.Generator().manual_seed(3))
    assert torch.equal(again, d)


def test_patches_are_of_the_photographs():
    x = problems.patches(1000, seed=1)
    assert x.dtype == torch.float32
    assert x.shape[1] == 64
    assert 200 < len(x) <= 1000
    assert float(x.mean(-1).abs().max()) < 1e-6
    assert torch.allclose(x.norm(dim=-1), torch.ones(len(x)), atol=1e-5)
    assert torch.equal(x, problems.patches(1000, seed=1))
    assert not torch.equal(x[0], problems.patches(1000, seed=2)[0])
    # neighbours are alike in photographs
    images = x.reshape(-1, 8, 8)
    assert float((images[:, 1:] * images[:, :-1]).sum(dim=(1, 2)).mean()) > 0.25


def test_atoms_have_norm_1_and_those_of_most_use_come_first():
    x = problems.patches(2000, seed=0)
    d = problems.learn_dictionary(x, problems.Photographs(components=20), seed=0)
    assert d.shape == (20, 64)
    assert torch.allclose(d.norm(dim=-1), torch.ones(20), atol=1e-5)
    use = lk.sparse_encode(x, d, algorithm="cd", alpha=0.1, tol=1e-3).abs().mean(0)
    assert (use[:-1] >= 0.99 * use[1:]).all()


def test_scores_by_hand():
    truth = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
    z = torch.tensor([[3.0, 0.3], [0.0, 3.6]])
    assert problems.nmse(z, truth) == pytest.approx(10 * math.log10(0.25 / 25), abs=1e-5)
    x, d = torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    assert problems.lasso(x, torch.tensor([[0.5, -1.0]]), d, 0.1) == pytest.approx(
        0.5 * 9.25 + 0.15, rel=1e-6
    )


# --- curves ---------------------------------------------------------------------------------------


def test_the_solver_that_needs_fewest():
    calls = []

    class Falling(solvers.Solver):
        def codes(self, iterations):
            calls.append(iterations)
            return torch.tensor(1 / iterations, dtype=torch.float64)

    x = torch.zeros(1, 1)
    solver = Falling("ista", x, x, 0.1, float)
    for target in (1.0, 0.5, 0.3, 1 / 7, 1 / 29.5, 1 / 30):
        assert solver.fewest(target, 30) == math.ceil(1 / target - 1e-6)
    assert solver.fewest(1 / 31, 30) is None
    assert solver.fewest(2.0, 30) == 1
    assert len(calls) == len(set(calls))


@pytest.mark.parametrize("most", [1, 2, 3, 5, 8])
def test_no_more_iterations_than_asked_for(most):
    class Steep(solvers.Solver):
        def codes(self, iterations):
            assert iterations <= most
            return torch.tensor(-float(iterations))

    x = torch.zeros(1, 1)
    solver = Steep("ista", x, x, 0.1, float)
    assert solver.fewest(-most, most) == most
    assert solver.fewest(-most - 0.5, most) is None


def test_points_of_the_encoder_are_of_the_stages():
    """The last point is that of the final encoder, and each other point that of the encoder trained
    up to its stage.
    """
    generator = torch.Generator().manual_seed(0)
    dictionary = problems.draw_dictionary(problems.Codes(12, 20, 1), generator)
    x, truth = problems.draw_codes(dictionary, 64, generator)
    options = {
        "validation": problems.draw_codes(dictionary, 50, generator),
        "seed": 1,
    }

    def score(z):
        return problems.nmse(z, truth)

    def trained(layers):
        encoder = lk.LISTA.from_dictionary(dictionary, 0.1, layers)
        batches = partial(problems.draw_codes, dictionary, 64, torch.Generator().manual_seed(5))
        return encoder, study.train_by_layer(encoder, batches, x, score, silent, 12, **options)

    encoder, found = trained(3)
    assert not encoder.training
    with torch.no_grad():
        assert score(encoder(x)) == found[-1]
    assert len(found) == 3
    for layers in (1, 2):  # stages know nothing of those that come
        assert trained(layers)[1] == pytest.approx(found[:layers], abs=1e-4)


# --- outcomes -------------------------------------------------------------------------------------


def test_drawn_codes_by_layer(monkeypatch):
    train_for(40, monkeypatch)
    outcome = study.compare_drawn(CODES, 3, 0, silent)
    assert list(outcome.curves) == ["ISTA", "FISTA", "LISTA", "LISTA-CP", "ALISTA"]
    assert all(len(curve) == 3 for curve in outcome.curves.values())
    generator = torch.Generator().manual_seed(0)
    dictionary = problems.draw_dictionary(CODES, generator)
    x, z = problems.draw_codes(dictionary, 40, generator)
    for t, (value, alpha) in enumerate(
        zip(outcome.curves["ISTA"], outcome.alphas["ISTA"], strict=True), 1
    ):
        by_hand = [problems.nmse(ista(x, dictionary, a, t), z.double()) for a in solvers.ALPHAS]
        assert value == pytest.approx(min(by_hand), abs=0.01)
        assert alpha in solvers.ALPHAS
    assert outcome.curves["FISTA"][0] == outcome.curves["ISTA"][0]
    for name in ("LISTA", "ALISTA"):
        assert outcome.curves[name][-1] < outcome.curves["FISTA"][-1]
        seconds, worth = outcome.worth[name]
        assert seconds > 0
        if worth is not None:
            assert worth.iterations > 3
            options = {"max_iter": worth.iterations, "tol": 0.0, "return_gap": True}
            codes, _ = lk.sparse_encode(x, dictionary, alpha=worth.alpha, **options)
            assert problems.nmse(codes, z) <= outcome.curves[name][-1]


def test_patches_by_layer():
    outcome = study.compare_patches(SMALL, 3, 0, silent)
    d = outcome.dictionary
    x = problems.patches(SMALL.patches, 0)[: SMALL.held_out]
    best = lk.sparse_encode(x, d, algorithm="cd", alpha=0.1, tol=1e-8)
    minimum = problems.lasso(x, best, d, 0.1)
    assert outcome.zeros == pytest.approx(0.5 - minimum, abs=1e-6)
    assert outcome.density == float((best != 0).double().mean())
    for t, value in enumerate(outcome.curves["ISTA"], 1):
        assert value == pytest.approx(
            problems.lasso(x, ista(x, d, 0.1, t), d, 0.1) - minimum, abs=1e-4
        )
    assert outcome.rows == len(problems.patches(SMALL.patches, 0)) - SMALL.held_out
    for t, (value, iterations) in enumerate(
        zip(outcome.curves["LISTA"], outcome.layers_worth, strict=True), 1
    ):
        assert 0 < value < outcome.curves["ISTA"][t - 1]
        assert outcome.fista[iterations] <= value
        assert iterations == 1 or outcome.fista[iterations - 1] > value
    assert outcome.worth.worth.iterations == outcome.layers_worth[-1]
    assert list(outcome.fista) == sorted(outcome.fista)


def numbers(outcome):
    return outcome.curves, outcome.layers_worth, outcome.zeros, outcome.fista


def test_numbers_depend_on_the_seed_alone():
    a, b, c = (study.compare_patches(SMALL, 2, seed, silent) for seed in (1, 1, 2))
    assert torch.equal(a.dictionary, b.dictionary)
    assert numbers(a) == numbers(b) != numbers(c)
    quick = CODES._replace(steps=0.25)
    a, b, c = (study.compare_drawn(quick, 2, seed, silent) for seed in (1, 1, 2**32 - 1))
    assert a.curves == b.curves != c.curves


# --- pictures -------------------------------------------------------------------------------------


def test_tiles_hold_the_atoms_and_white():
    atoms = torch.randn(7, 16, generator=torch.Generator().manual_seed(0))
    canvas = figures.tiles(atoms)
    assert canvas.shape == (3 * 5 + 1, 3 * 5 + 1)
    for i, atom in enumerate(atoms.double().numpy()):
        top, left = 1 + 5 * (i // 3), 1 + 5 * (i % 3)
        np.testing.assert_allclose(
            canvas[top : top + 4, left : left + 4].ravel(), atom / abs(atom).max()
        )
    assert (canvas[::5] == 1).all()
    assert (canvas[-5:, 6:] == 1).all()


def test_crossing():
    fista = {k: k**-2.0 for k in (1, 2, 4, 5, 8)}
    for at in (4.0, 4.5, 5.0):
        assert figures.crossing(fista, math.ceil(at) + (at == 4), at**-2) == pytest.approx(at)


def test_pictures_without_an_equal(tmp_path):
    """Pictures are drawn even where FISTA does not reach the encoder's error, or the encoder needs
    no arrow.
    """
    outcome = study.compare_patches(SMALL, 2, 0, silent)
    for worth in ([None, None], [1, 2]):
        figures.draw_patches(outcome._replace(layers_worth=worth), tmp_path / "p.png")
        check_picture(tmp_path / "p.png")


# --- the command ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("quick", "steps", "photographs"), [((), 1.0, SMALL), (("--quick",), 0.25, QUICK)]
)
def test_the_command_draws_and_prints(quick, steps, photographs, tmp_path, monkeypatch):
    out, found = tmp_path / "a" / "b", {}

    def kept(name, compare, *arguments):
        found[name] = arguments[:3], compare(*arguments)
        return found[name][1]

    for name in ("compare_drawn", "compare_patches"):
        monkeypatch.setattr(study, name, partial(kept, name, getattr(study, name)))
    result = call(*OPTIONS, "--seed", 4, "--out", out, *quick)
    assert result.exit_code == 0, result.output
    assert sorted(p.name for p in out.iterdir()) == sorted(FIGURES)
    for name in FIGURES:
        check_picture(out / name)
    rows = re.findall(
        r"^ *(\d) +(-?\d+\.\d+) +(-?\d+\.\d+) +(-?\d+\.\d+) +(-?\d+\.\d+) +(-?\d+\.\d+) *$",
        result.output,
        re.M,
    )
    assert [row[0] for row in rows] == ["1", "2", "3"]
    arguments, outcome = found["compare_drawn"]
    assert arguments == (CODES._replace(steps=steps), 3, 4)
    for t, row in enumerate(rows):
        assert [float(v) for v in row[1:]] == pytest.approx(
            [c[t] for c in outcome.curves.values()], abs=0.006
        )
    arguments, patches = found["compare_patches"]
    assert arguments == (photographs, 3, 4)
    rows = re.findall(r"^ *(\d) +(\d+\.\d+) +(\d+\.\d+) +(\d+\.\d+) +(\d+) *$", result.output, re.M)
    for t, row in enumerate(rows):
        expected = [1e3 * curve[t] for curve in patches.curves.values()]
        assert [float(v) for v in row[1:4]] == pytest.approx(expected, abs=0.0006)
        assert int(row[4]) == patches.layers_worth[t]
    assert len(rows) == 3
    assert "Codes of 24 numbers, 10% of them not 0, seen by 16 with 40 dB" in result.output
    assert f"3 layers are worth {patches.layers_worth[-1]}." in result.output
    assert all(str(out / name) in result.output for name in FIGURES)


def test_worth_beyond_what_was_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(solvers, "MOST_ITERATIONS", 1)
    result = call(*OPTIONS, "--layers", 1, "--out", tmp_path)
    assert result.exit_code == 0, result.output
    assert "one learned layer is worth > 1 iterations" in result.output


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--layers", 0),
        ("--layers", 65),
        ("--features", 7),
        ("--components", 15),
        ("--samples", 31),
        ("--samples", "many"),
        ("--seed", -1),
        ("--seed", 2**32),
        ("--threads", 0),
    ],
)
def test_bad_options(option, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = call(option, value)
    assert result.exit_code == 2
    assert option in result.output
    assert "Traceback" not in result.output
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("kept")
    (tmp_path / "out" / FIGURES[1]).mkdir(parents=True)
    for out, named in (
        (occupied, occupied),
        (occupied / "below", occupied),
        (tmp_path / "out", tmp_path / "out"),
    ):
        result = call(*OPTIONS, "--out", out)
        assert result.exit_code == 1
        assert result.output.startswith(f"latent-kernels: cannot write to {named}")
        assert result.output.count("\n") == 1
    assert occupied.read_text() == "kept"


def test_an_unknown_backend_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(backends.VARIABLE, "lista=fortran")
    result = call()
    assert result.exit_code == 1
    assert "got 'lista=fortran'" in result.output
    assert list(tmp_path.iterdir()) == []


def test_training_that_diverges_is_one_clear_line(tmp_path, monkeypatch):
    def diverge(*args, **kwargs):
        raise TrainingDiverged("training diverged with 2 layers")

    monkeypatch.setattr(lk, "train_encoder", diverge)
    result = call(*OPTIONS, "--out", tmp_path)
    assert result.exit_code == 1
    assert result.output.splitlines()[-1] == "latent-kernels: training diverged with 2 layers"


@pytest.mark.parametrize(
    ("where", "drawn", "message"),
    [
        ("compare_drawn", [], "stopped before there was anything to draw"),
        ("compare_patches", ["sparse_layers.png"], "stopped; sparse_layers.png is complete"),
    ],
)
def test_ctrl_c(where, drawn, message, tmp_path, monkeypatch):
    def interrupt(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(study, where, interrupt)
    result = call(*OPTIONS, "--layers", 1, "--out", tmp_path)
    assert result.exit_code == 130
    assert message in result.output.splitlines()[-1]
    assert "Traceback" not in result.output
    assert [p.name for p in tmp_path.iterdir()] == drawn
