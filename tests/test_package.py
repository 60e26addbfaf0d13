"""The package as a whole: what it imports, what it costs to import, how its parts depend on one
another.
"""

from __future__ import annotations

import ast
import importlib.metadata
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import _core, backends

ROOT = Path(__file__).parents[1]
HEAVY = ("numba", "triton", "sklearn", "matplotlib", "typer", "rich", "pandas", "scipy")


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | environment,
        timeout=120,
    )


def test_public_names() -> None:
    assert set(lk.__all__) == {
        "Bernoulli",
        "Categorical",
        "DiagonalGaussian",
        "DictionaryLearning",
        "FusedNormal",
        "GaussianMixture",
        "LCoD",
        "LISTA",
        "MixtureModel",
        "PSDEncoder",
        "SparseCoder",
        "SufficientStatistics",
        "bernoulli_log_prob",
        "coupled_lista_encode",
        "disarm",
        "disarm_gradient",
        "effective_sample_size",
        "elbo",
        "exponential_family_e_step",
        "gaussian_e_step",
        "gaussian_kl",
        "gaussian_log_prob",
        "importance_bound",
        "lista_encode",
        "normal",
        "normalized_weights",
        "pareto_k",
        "profile_variance",
        "rsample",
        "rsample_kl",
        "rsample_log_prob",
        "score_function_expectation",
        "score_function_gradient",
        "sparse_encode",
        "streamed_bound",
        "train_encoder",
        "uniform",
    }
    for name in lk.__all__:
        documentation = getattr(lk, name).__doc__
        assert documentation
        assert len(documentation) > 100
    assert lk.__version__ == importlib.metadata.version("latent-kernels")


def test_estimators_come_when_asked_for() -> None:
    """And the rest of the module behaves as if they had been there: dir, star imports, errors."""
    code = """
import sys, latent_kernels
assert {"DictionaryLearning", "GaussianMixture", "MixtureModel", "SparseCoder"} <= set(dir(latent_kernels))
assert "sklearn" not in sys.modules
from latent_kernels import *
print(GaussianMixture.__module__, MixtureModel is latent_kernels.MixtureModel)
try:
    latent_kernels.KMeans
except AttributeError as error:
    print(error)
"""
    result = python(code)
    assert result.stdout.split("\n")[:2] == [
        "latent_kernels.mixtures.gaussian_mixture True",
        "module 'latent_kernels' has no attribute 'KMeans'",
    ], result.stderr


def test_import_brings_nothing_heavy() -> None:
    """Importing us imports torch and the extension, and none of the packages that single ops need."""
    code = f"""
import torch, sys
before = set(sys.modules)
import latent_kernels
new = set(sys.modules) - before
print(sorted(m for m in new if m.split(".")[0] in {HEAVY!r}))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"


def test_import_brings_few_modules() -> None:
    """At most a tenth of what `import torch` brings, and nothing of torch's compiler.

    How long it takes is measured by bench/bench_start.py.
    """
    code = """
import sys
python = set(sys.modules)
import torch
torchs = set(sys.modules) - python
import latent_kernels
ours = set(sys.modules) - torchs - python
print(len(ours) / len(torchs), sorted(m for m in ours if m.startswith("torch.")))
"""
    result = python(code)
    assert result.returncode == 0, result.stderr
    share, of_torch = result.stdout.split(" ", 1)
    assert float(share) < 0.10
    assert of_torch.strip() == "[]"


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
    return found


def test_kernels_do_not_import_the_public_ops() -> None:
    """Imports point one way: public op -> kernels -> shared plumbing -> _core."""
    public = {
        f"latent_kernels.{p.stem}" for p in (ROOT / "python/latent_kernels").glob("[a-z]*.py")
    }
    for path in (ROOT / "kernels").rglob("*.py"):
        assert not imports(path) & public, path
    for path in (ROOT / "python/latent_kernels").glob("_[a-z]*.py"):
        assert not {
            i for i in imports(path) if i in public or i.startswith("latent_kernels.kernels")
        }, path


def test_every_op_has_its_backends() -> None:
    for op, names in backends.BACKENDS.items():
        for name in names:
            assert (ROOT / "kernels" / op / f"{backends._MODULES[name]}.py").exists()


# --- choosing a backend ---------------------------------------------------------------------------


def test_forced_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(5, 7, requires_grad=True)
    z, kl = lk.rsample_kl(x, x, 3, seed=2)
    noise = lk.uniform(9, seed=3, offset=2)
    (gradient,) = torch.autograd.grad(z.sum() + kl.sum(), x)
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "reference")
    backends.forget()
    assert backends.backend_name("gaussian", torch.device("cpu")) == "reference"
    z2, kl2 = lk.rsample_kl(x, x, 3, seed=2)
    assert torch.equal(lk.uniform(9, seed=3, offset=2), noise)
    assert torch.allclose(z, z2, rtol=1e-6, atol=1e-7)
    assert torch.allclose(kl, kl2, rtol=1e-6)
    assert torch.allclose(
        torch.autograd.grad(z2.sum() + kl2.sum(), x)[0], gradient, rtol=1e-5, atol=1e-6
    )
    assert torch.equal(
        lk.rsample(x.detach(), x.detach(), seed=torch.tensor(2)),
        lk.rsample(x.detach(), x.detach(), seed=2),
    )


@pytest.mark.parametrize(
    "value", ["fast", "gaussian", "gaussian=numba", "mixture=cpp", "gaussian=cpp;noise=cpp"]
)
def test_bad_choice(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", value)
    backends.forget()
    with pytest.raises(ValueError, match=r"LATENT_KERNELS_BACKEND must be 'reference' or a list"):
        lk.normal(3, seed=1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says why there is no GPU")
def test_forced_triton_says_why_it_cannot_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "noise=triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    backends.forget()
    with pytest.raises(
        RuntimeError, match="forces noise=triton, which cannot run: torch finds no GPU"
    ):
        lk.normal(3, seed=1)


def test_automatic_choice() -> None:
    assert backends.backend_name("gaussian", torch.device("cpu")) == "cpp"
    assert backends.backend_name("gaussian", torch.device("mps")) == "reference"


def test_without_triton() -> None:
    """Where Triton is absent everything on the CPU works."""
    code = """
import sys
sys.modules["triton"] = None
import torch, latent_kernels as lk
print(lk.rsample_kl(torch.zeros(3, 4), torch.zeros(3, 4), seed=1)[0].shape)
"""
    result = python(code)
    assert result.returncode == 0, result.stderr


def test_simd_builds() -> None:
    builds = _core.simd_builds()
    assert builds[0] == "baseline"
    for build in builds:
        assert _core.select_simd_build(build)
        assert _core.simd_build() == build
        assert _core.simd_lanes() == {"baseline": 4, "avx2": 8, "avx512": 16}[build]
    assert not _core.select_simd_build("avx1024")
    assert _core.simd_build() == builds[-1]
