"""The package as a whole: its imports, their cost, and the dependencies between its parts."""

from __future__ import annotations

import ast
import importlib.metadata
import importlib.util
import itertools
import re
from collections.abc import Collection
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import numpy as np
import pytest
import torch

import latent_kernels as lk
from latent_kernels.kernels import _core, backends
from tests.processes import ROOT, run

HEAVY = ("numba", "triton", "sklearn", "matplotlib", "typer", "rich", "pandas", "scipy")


def test_public_names() -> None:
    assert set(lk.__all__) == {
        "BayesianGaussianMixture",
        "Bernoulli",
        "Categorical",
        "DiagonalGaussian",
        "DictionaryLearning",
        "FamilyDistribution",
        "FusedNormal",
        "GaussianMixture",
        "GradientVarianceMonitor",
        "LCoD",
        "LISTA",
        "MiniBatchDictionaryLearning",
        "MixtureModel",
        "PSDEncoder",
        "SparseCoder",
        "SufficientStatistics",
        "VectorQuantizer",
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
        "orthogonal_matching_pursuit",
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
        "vector_quantize",
    }
    for name in lk.__all__:
        documentation = getattr(lk, name).__doc__
        assert documentation
        assert len(documentation) > 100
    assert lk.__version__ == importlib.metadata.version("latent-kernels")


def test_estimators_come_when_asked_for() -> None:
    """Estimators are imported on first use, and the module behaves as if they had been there: dir,
    star imports, errors.
    """
    code = """
import sys, latent_kernels
later = {"DictionaryLearning", "MiniBatchDictionaryLearning", "SparseCoder"}
later |= {"BayesianGaussianMixture", "GaussianMixture", "MixtureModel"}
assert later <= set(dir(latent_kernels))
assert "sklearn" not in sys.modules
from latent_kernels import *
print(GaussianMixture.__module__, MixtureModel is latent_kernels.MixtureModel)
try:
    latent_kernels.KMeans
except AttributeError as error:
    print(error)
"""
    assert run(code).split("\n")[:2] == [
        "latent_kernels.mixtures.gaussian_mixture True",
        "module 'latent_kernels' has no attribute 'KMeans'",
    ]


def test_import_brings_nothing_heavy() -> None:
    """The import loads torch and the extension, but no package that only some ops need."""
    code = f"""
import torch, sys
before = set(sys.modules)
import latent_kernels
new = set(sys.modules) - before
print(sorted(m for m in new if m.split(".")[0] in {HEAVY!r}))
"""
    assert run(code).strip() == "[]"


def test_import_brings_few_modules() -> None:
    """The import loads at most a tenth of the modules of `import torch`, and nothing of torch's
    compiler.

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
    share, of_torch = run(code).split(" ", 1)
    assert float(share) < 0.10
    assert of_torch.strip() == "[]"


# --- imports --------------------------------------------------------------------------------------

PACKAGES = {"latent_kernels": "python/latent_kernels", "latent_kernels/kernels": "kernels"}
# Parts of the package from the lowest to the highest; "" is the package's own __init__.
LAYERS = (
    {"kernels"},
    {"_checks", "_data"},
    {"noise", "variational", "mixtures", "sparse", "quantization"},
    {""},
    {"cli"},
    {"__main__"},
)


def modules() -> dict[str, Path]:
    """Return the file of every module of the project, by the module's full name."""
    found = {}
    for package, folder in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py*")):
            if path.suffix in (".py", ".pyi"):
                parts = (
                    *package.split("/"),
                    *path.relative_to(ROOT / folder).with_suffix("").parts,
                )
                found[".".join(parts).removesuffix(".__init__")] = path
    return found


def imports(module: str, path: Path, known: Collection[str]) -> set[str]:
    """Return which of the `known` modules `module` imports, anywhere in its file.

    The packages that a module lies in are imported with it, unless `module` lies in them too.
    """
    package = module if path.stem == "__init__" else module.rpartition(".")[0]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
        elif isinstance(node, ast.ImportFrom):
            relative = "." * node.level + (node.module or "")
            source = importlib.util.resolve_name(relative, package)
            for name in node.names:
                full = f"{source}.{name.name}"
                found.add(full if full in known else source)
    for name in tuple(found):
        parents = itertools.accumulate(name.split(".")[:-1], "{}.{}".format)
        found |= {p for p in parents if not f"{module}.".startswith(f"{p}.")}
    return found & set(known)


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    found = modules()
    return {module: imports(module, path, found) for module, path in found.items()}


def test_imports_point_one_way(graph: dict[str, set[str]]) -> None:
    """A module imports only from its own part of the package and from lower layers.

    So a file in kernels/ imports of this project only other files in kernels/, and only the
    command line imports the package's root.
    """

    def part(module: str) -> str:
        return module.split(".")[1] if "." in module else ""

    height = {part: i for i, layer in enumerate(LAYERS) for part in layer}
    assert {part(module) for module in graph} == height.keys()
    assert [
        f"{module} imports {other}"
        for module, others in graph.items()
        for other in sorted(others)
        if part(module) != part(other) and height[part(module)] <= height[part(other)]
    ] == []


def test_imports_have_no_circle(graph: dict[str, set[str]]) -> None:
    """No modules import each other in a circle; imports inside functions and for type checkers
    count like all others.
    """
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


def test_circles_are_seen(tmp_path: Path) -> None:
    """The graph contains every form of import, resolved to a module."""
    known = ("p", "p.a", "p.b", "p.sub", "p.sub.c", "p.sub.d")
    for text, expected in {
        "import os, p": {"p"},
        "import p.a": {"p.a"},
        "from p import a, thing": {"p.a", "p"},
        "from p.sub import c": {"p.sub.c", "p.sub"},
        "from p.sub.c import thing": {"p.sub.c", "p.sub"},
        "from . import a\nfrom .sub.d import thing": {"p.a", "p.sub.d", "p.sub"},
        "if TYPE_CHECKING:\n    def f():\n        import p.a": {"p.a"},
    }.items():
        path = tmp_path / "b.py"
        path.write_text(text)
        assert imports("p.b", path, known) == expected, text
    assert imports("p.sub.d", path, known) == {"p.a"}
    path.write_text("from p.sub import c\nfrom .c import thing")
    assert imports("p.sub.d", path, known) == {"p.sub.c"}


def test_packaging_takes_the_kernels_once() -> None:
    """Editors and linters follow the link to kernels/; wheels and sdists take the folder itself."""
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["scikit-build"]
    link = "python/latent_kernels/kernels"
    assert settings["wheel"]["packages"] == PACKAGES
    assert f"/{link}" in settings["sdist"]["exclude"]
    assert "DESTINATION latent_kernels/kernels)" in (ROOT / "CMakeLists.txt").read_text()
    if (ROOT / ".git").exists():  # an sdist has no link
        assert (ROOT / link).is_symlink()
        assert (ROOT / link).resolve() == (ROOT / "kernels").resolve()


def test_the_changelog_is_of_this_version() -> None:
    """The version is that of pyproject.toml and of the changelog's newest release; no other file
    states it.
    """
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    released = re.findall(
        r"^## \[(\d.*?)\] - \d{4}-\d\d-\d\d$", (ROOT / "CHANGELOG.md").read_text(), re.M
    )
    assert released[0] == version
    assert not re.search(r"^version:", (ROOT / "CITATION.cff").read_text(), re.M)


def test_the_lowest_versions_are_those_declared() -> None:
    """Every version that `make test-lowest` installs is the lower bound that pyproject.toml
    declares.
    """
    tomllib = pytest.importorskip("tomllib", reason="in the standard library since Python 3.11")
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project = settings["project"]
    declared = project["dependencies"] + settings["build-system"]["requires"]
    for extra in project["optional-dependencies"].values():
        declared += extra
    bounds = dict(re.findall(r"^([\w-]+)>=([\d.]+)", "\n".join(declared), re.M))
    pins = re.findall(r"^([\w-]+)==([\d.]+)", (ROOT / "constraints-lowest.txt").read_text(), re.M)
    assert [
        f"{name} {pin}" for name, pin in pins if not f"{pin}.".startswith(f"{bounds[name]}.")
    ] == []
    assert {"torch", "numpy", "numba", "scikit-learn", "triton"} <= {name for name, _ in pins}


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
    monkeypatch.setattr(backends, "interpreting", lambda: False)
    backends.forget()
    with pytest.raises(
        RuntimeError, match="forces noise=triton, which cannot run: torch finds no GPU"
    ):
        lk.normal(3, seed=1)


def test_automatic_choice() -> None:
    assert backends.backend_name("gaussian", torch.device("cpu")) == "cpp"
    assert backends.backend_name("gaussian", torch.device("mps")) == "reference"


def test_without_avx2(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor that supports no build the reference runs; a forced backend says why it
    cannot.
    """
    noise, codes = lk.normal(9, seed=3, offset=2), lk.SparseCoder(np.eye(4, dtype=np.float32))
    x = torch.arange(12.0).reshape(3, 4).numpy()
    expected = codes.transform(x)
    module = lk.LISTA(4, 6, 2).eval()
    with torch.no_grad():
        encoded = module(torch.from_numpy(x))
    monkeypatch.setattr(_core, "simd_builds", list)
    backends.forget()
    for op, names in backends.BACKENDS.items():
        expected_name = "reference" if names[0] == "cpp" else names[0]
        assert backends.backend_name(op, torch.device("cpu")) == expected_name
    assert torch.equal(lk.normal(9, seed=3, offset=2), noise)
    assert np.allclose(codes.transform(x), expected, rtol=1e-5, atol=1e-6)
    with torch.no_grad():
        assert torch.allclose(module(torch.from_numpy(x)), encoded, rtol=1e-5, atol=1e-6)
    monkeypatch.setenv("LATENT_KERNELS_BACKEND", "noise=cpp")
    backends.forget()
    with pytest.raises(RuntimeError, match="noise=cpp, which cannot run: this processor lacks"):
        lk.normal(3, seed=1)


def test_without_triton() -> None:
    """Without Triton, everything on the CPU works."""
    code = """
import sys
sys.modules["triton"] = None
import torch, latent_kernels as lk
print(lk.rsample_kl(torch.zeros(3, 4), torch.zeros(3, 4), seed=1)[0].shape)
"""
    run(code)


def test_in_tritons_own_interpreter() -> None:
    """TRITON_INTERPRET=1 runs the Triton kernels on CPU tensors, as `latent-kernels info` says."""
    pytest.importorskip("triton")
    code = """
import torch, latent_kernels as lk
from latent_kernels.kernels import backends
x = torch.linspace(-2, 2, 60).reshape(3, 20)
found = []
for forced in ("gaussian=triton,noise=triton", ""):
    backends.os.environ[backends.VARIABLE] = forced
    backends.forget()
    found.append([lk.normal(99, seed=5, offset=3), *lk.rsample_kl(x, 0.1 * x, 2, seed=2)])
for ours, theirs in zip(*found):
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=1e-6)
"""
    run(code, TRITON_INTERPRET="1")


def test_simd_builds() -> None:
    builds = _core.simd_builds()
    for build in builds:
        assert _core.select_simd_build(build)
        assert _core.simd_build() == build
        assert _core.simd_lanes() == {"generic": 4, "avx2": 8, "avx512": 16}[build]
    assert not _core.select_simd_build("avx1024")
    assert _core.simd_build() == builds[-1]
