"""The plan that a `LISTA` keeps: when it is used, and everything that invalidates it."""

from __future__ import annotations

import copy
import os
import pickle
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.func import functional_call, stack_module_state, vmap

import latent_kernels as lk
from latent_kernels.kernels import backends
from latent_kernels.kernels.lista import problem
from tests.checks import bits_equal
from tests.processes import run_forked

Tensor = torch.Tensor
VARIANTS: list[dict[str, Any]] = [
    {"variant": "lista", "bias": True},
    {"variant": "lista", "tied": False, "thresholds": "layer", "select": (0.2, 0.5)},
    {"variant": "lista", "thresholds": "shared", "positive": True},
    {"variant": "cp", "tied": False},
    {"variant": "alista"},
    {"variant": "step"},
]
every_variant = pytest.mark.parametrize(
    "options", VARIANTS, ids=lambda o: "-".join(map(str, o.values()))
)
every_mode = pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Record the names of the tensors whose values are checked from now on."""
    names: list[str] = []
    finite = problem.finite

    def listed(name: str, *arguments: Any, **options: Any) -> None:
        names.append(name)
        finite(name, *arguments, **options)

    monkeypatch.setattr(problem, "finite", listed)
    return names


def encoder_of(options: dict[str, Any], training: bool = False, layers: int = 3) -> lk.LISTA:
    """Return an encoder whose thresholds (steps) have both signs in training mode."""
    generator = torch.Generator().manual_seed(1)
    encoder = lk.LISTA(4, 6, layers, dictionary=torch.randn(6, 4, generator=generator), **options)
    with torch.no_grad():
        for p in encoder.parameters():
            p += 0.05 * (p.abs().mean() or 1.0) * torch.randn(p.shape, generator=generator)
        if training:
            name = "step" if encoder.threshold is None else "threshold"
            getattr(encoder, name).view(-1)[::2] *= -1
    return encoder.train(training)


def draw(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(2))


def fresh(encoder: lk.LISTA, x: Tensor, **options: Any) -> Tensor:
    """Return the codes of a new encoder with the same parameters."""
    other = copy.deepcopy(encoder)
    assert other._plan is None
    with torch.no_grad():
        z: Tensor = other(x, **options)
    return z


# --- it serves ------------------------------------------------------------------------------------


@every_mode
@every_variant
def test_parameters_are_checked_once(
    options: dict[str, Any], training: bool, checks: list[str]
) -> None:
    """Parameters are checked once, with gradients off or on while nothing requires them, for x of
    any number of rows.
    """
    encoder = encoder_of(options, training)
    with torch.no_grad():
        first = encoder(draw(3, 4))
        assert checks
        checks.clear()
        assert bits_equal(encoder(draw(3, 4)), first)
        assert encoder(draw(0, 4)).shape == (0, 6)
        assert bits_equal(encoder(draw(70, 4)), fresh(encoder, draw(70, 4)))
    encoder.requires_grad_(False)
    checks.clear()
    assert bits_equal(encoder(draw(3, 4)), first)
    with torch.inference_mode():
        assert bits_equal(encoder(draw(3, 4)), first)
    assert checks == []


@every_mode
@every_variant
def test_first_layers_have_plans_too(
    options: dict[str, Any], training: bool, checks: list[str]
) -> None:
    encoder, x = encoder_of(options, training), draw(3, 4)
    for layers in (2, 1, 3, None, 2):
        with torch.no_grad():
            z = encoder(x, n_layers=layers)
            checks.clear()
            assert bits_equal(encoder(x, n_layers=layers), z)
        assert checks == []
        assert bits_equal(z, fresh(encoder, x, n_layers=layers))


@every_mode
def test_a_plan_made_in_inference_mode(training: bool, checks: list[str]) -> None:
    encoder, x = encoder_of({"variant": "step"}, training), draw(3, 4)
    with torch.inference_mode():
        z = encoder(x)
    checks.clear()
    with torch.no_grad():
        assert bits_equal(encoder(x), z)
    assert checks == []


# --- it gives way ---------------------------------------------------------------------------------


def halve(p: Tensor) -> None:
    with torch.no_grad():
        p.mul_(0.5)


def optimize(p: Tensor) -> None:
    p.grad = -torch.ones_like(p)  # away from negative thresholds
    torch.optim.SGD([p], lr=0.01).step()


CHANGES: dict[str, Callable[[Tensor], Any]] = {
    "in place": halve,
    "by an optimizer": optimize,
    "by data": lambda p: p.data.mul_(0.5),
    "by NumPy": lambda p: np.multiply(p.detach().numpy(), 0.5, out=p.detach().numpy()),
    "by another data": lambda p: setattr(p, "data", p.data * 0.5),
}


@pytest.mark.parametrize("change", list(CHANGES))
@every_mode
@every_variant
def test_codes_follow_the_parameters(options: dict[str, Any], training: bool, change: str) -> None:
    encoder, x = encoder_of(options, training), draw(5, 4)
    named = {**dict(encoder.named_parameters()), **dict(encoder.named_buffers())}
    used = [name for name in named if name != "dictionary" or encoder.variant == "cp"]
    for name in used:
        with torch.no_grad():
            before = [encoder(x) for _ in range(2)][-1]
        CHANGES[change](named[name])
        with torch.no_grad():
            for _ in range(2):
                after = encoder(x)
                assert bits_equal(after, fresh(encoder, x)), name
        assert not torch.equal(before, after), name


def test_memory_in_another_order() -> None:
    """The plan is renewed for the same address, shape and version read by other strides, and for
    other memory.
    """
    encoder, x = encoder_of({"variant": "lista"}), draw(5, 4)
    for parameter in (encoder.recurrent, encoder.weight):
        assert parameter is not None
        with torch.no_grad():
            [encoder(x) for _ in range(2)]
            if parameter is encoder.recurrent:
                parameter.data = parameter.data.t()
            else:
                parameter.data = parameter.data.t().contiguous().t()
            for _ in range(2):
                assert bits_equal(encoder(x), fresh(encoder, x))


@every_mode
@every_variant
def test_signs_may_change_at_any_time(options: dict[str, Any], training: bool) -> None:
    encoder, x = encoder_of(options), draw(5, 4)
    name = "step" if encoder.threshold is None else "threshold"
    encoder.train(training)
    with torch.no_grad():
        z = [encoder(x) for _ in range(2)][-1]
        getattr(encoder, name).neg_()
        if training:
            assert bits_equal(encoder(x), z)
            encoder.eval()(x)
            encoder.train()
            getattr(encoder, name).data.neg_()  # which torch does not know of
            assert bits_equal(encoder(x), z)
        else:
            with pytest.raises(ValueError, match=f"{name} must be >= 0"):
                encoder(x)
            encoder.project_()
            assert bits_equal(encoder(x), z)


@every_mode
@every_variant
def test_values_that_cease_to_be_finite(options: dict[str, Any], training: bool) -> None:
    encoder, x = encoder_of(options, training), draw(5, 4)
    for name, p in [*encoder.named_parameters(), *encoder.named_buffers()]:
        if name == "dictionary" and encoder.variant != "cp":
            continue
        with torch.no_grad():
            z = [encoder(x) for _ in range(2)][-1]
            kept = p.view(-1)[-1].clone()
            p.view(-1)[-1] = torch.nan
            for _ in range(2):
                with pytest.raises(ValueError, match="must be finite"):
                    encoder(x)
            p.view(-1)[-1] = kept
            assert bits_equal(encoder(x), z)


def test_other_options() -> None:
    x = draw(5, 4)
    for options, change in (
        ({"variant": "lista"}, {"positive": True}),
        ({"variant": "step"}, {"alpha": 0.3}),
    ):
        encoder = encoder_of(options)
        with torch.no_grad():
            before = [encoder(x) for _ in range(2)][-1]
            for name, value in change.items():
                setattr(encoder, name, value)
            after = encoder(x)
        assert bits_equal(after, fresh(encoder, x))
        assert not torch.equal(before, after)


@every_mode
@every_variant
def test_a_lazy_negation_of_the_same_memory(options: dict[str, Any], training: bool) -> None:
    """The plan is renewed if the values change although address, version and shape are the same."""
    encoder, x = encoder_of(options, training), draw(5, 4)
    other = copy.deepcopy(encoder)
    with torch.no_grad():
        for _ in range(2):
            encoder(x)
        encoder.weight.data = torch._neg_view(encoder.weight.data)
        other.weight.data = -other.weight.data
        for _ in range(2):
            assert bits_equal(encoder(x), other(x))


@pytest.mark.parametrize(
    "kind", [np.array, lambda t: torch.tensor(t, dtype=torch.float64)], ids=["array", "tensor"]
)
def test_an_alpha_that_changes_in_its_place(kind: Callable[[float], Any]) -> None:
    """The plan is renewed if the value of alpha changes although the object is the same."""
    encoder, x = encoder_of({"variant": "step"}), draw(5, 4)
    encoder.alpha = kind(0.1)
    with torch.no_grad():
        before = [encoder(x) for _ in range(2)][-1]
        encoder.alpha[...] = 0.3
        after = encoder(x)
    assert bits_equal(after, fresh(encoder, x))
    assert not torch.equal(before, after)


@every_variant
def test_training_and_evaluation_in_turn(options: dict[str, Any]) -> None:
    """Calls are right with gradients wanted, not wanted and wanted again, and with changes of mode
    in between.
    """
    encoder, x = encoder_of(options), draw(5, 4)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.05)
    for i in range(6):
        encoder.train(i % 3 != 0)
        with torch.no_grad():
            z = [encoder(x) for _ in range(2)][-1]
        assert bits_equal(z, fresh(encoder, x))
        found = encoder(x)
        assert found.requires_grad
        assert bits_equal(found.detach(), z)
        optimizer.zero_grad()
        found.square().sum().backward()
        optimizer.step()
        encoder.project_()


def test_x_whose_gradient_is_wanted() -> None:
    encoder, x = encoder_of({"variant": "lista"}).requires_grad_(False), draw(5, 4)
    z = [encoder(x) for _ in range(2)][-1]
    leaf = x.clone().requires_grad_()
    found = encoder(leaf)
    assert bits_equal(found.detach(), z)
    found.sum().backward()
    assert leaf.grad is not None
    with forward_ad.dual_level(), pytest.raises((NotImplementedError, RuntimeError)):
        encoder(forward_ad.make_dual(x, torch.ones_like(x)))


def test_x_of_every_kind() -> None:
    encoder, x = encoder_of({"variant": "lista"}), draw(5, 4)
    with torch.no_grad():
        z = [encoder(x) for _ in range(2)][-1]
        assert bits_equal(encoder(x.t().contiguous().t()), z)
        assert bits_equal(encoder(torch.complex(x, -x).conj().imag), z)
        assert bits_equal(encoder(x[2]), z[2])
        assert bits_equal(encoder(x[:, None]), z[:, None])
        assert bits_equal(encoder(x.double()), fresh(encoder, x.double()))
        assert encoder(x, torch.zeros(5, 6)).shape == (5, 6)
        assert bits_equal(vmap(encoder)(x), z)
        with pytest.raises(ValueError, match="weight must have shape"):
            encoder(draw(5, 3))
        with pytest.raises(TypeError, match=r"x must be a torch\.Tensor"):
            encoder([1.0])
        with pytest.raises(ValueError, match="n_layers must be at most 3"):
            encoder(x, n_layers=4)
        assert bits_equal(encoder(x), z)


@every_mode
@every_variant
def test_loading_casting_and_moving(options: dict[str, Any], training: bool) -> None:
    encoder, x = encoder_of(options, training), draw(5, 4)
    other = encoder_of(options, training)
    halve(next(other.parameters()))
    with torch.no_grad():
        for assign in (False, True):
            [encoder(x) for _ in range(2)]
            encoder.load_state_dict(other.state_dict(), assign=assign)
            assert bits_equal(encoder(x), fresh(other, x))
            halve(next(other.parameters()))
        encoder(x)
        assert encoder._plan is not None
        wide = encoder.double()
        assert wide._plan is None
        for _ in range(2):
            assert bits_equal(wide(x.double()), fresh(encoder, x.double()))
        half = encoder.bfloat16()
        for _ in range(2):
            assert half(x.bfloat16()).dtype == torch.bfloat16
        assert half._plan is None
        assert encoder.to("meta")(x.to("meta", torch.bfloat16)).is_meta


@every_mode
@every_variant
def test_copies_and_pickles_have_no_plan(options: dict[str, Any], training: bool) -> None:
    encoder, x = encoder_of(options, training), draw(5, 4)
    before = pickle.dumps(encoder)
    with torch.no_grad():
        z = [encoder(x) for _ in range(2)][-1]
        assert encoder._plan is not None
        assert len(pickle.dumps(encoder)) == len(before)
        for duplicate in (copy.copy, copy.deepcopy, lambda e: pickle.loads(pickle.dumps(e))):
            other = duplicate(encoder)
            assert other._plan is None
            for _ in range(2):
                assert bits_equal(other(x), z)
        other = copy.deepcopy(encoder)
        other(x)
        for p in other.parameters():
            halve(p)
        assert not torch.equal(other(x), z)
        assert bits_equal(encoder(x), z)


def test_parameters_swapped_for_a_call() -> None:
    """Parameters swapped by torch.func.functional_call, or stacked for vmap, are used."""
    encoders, x = [encoder_of({"variant": "lista"}) for _ in range(2)], draw(5, 4)
    for p in encoders[1].parameters():
        halve(p)
    with torch.no_grad():
        first, second = ([encoder(x) for _ in range(2)][-1] for encoder in encoders)
        state = {name: p.detach() for name, p in encoders[1].named_parameters()}
        for _ in range(2):
            assert bits_equal(functional_call(encoders[0], state, (x,)), second)
            assert bits_equal(encoders[0](x), first)
        parameters, buffers = stack_module_state(encoders)  # type: ignore[arg-type]
        stacked = vmap(lambda p, b: functional_call(encoders[0], (p, b), (x,)))(parameters, buffers)
        assert torch.allclose(stacked, torch.stack([first, second]))


def test_parameters_that_become_computed() -> None:
    class Doubled(torch.nn.Module):
        def forward(self, p: Tensor) -> Tensor:
            return 2 * p

    encoder, x = encoder_of({"variant": "lista", "bias": True}), draw(5, 4)
    with torch.no_grad():
        z = [encoder(x) for _ in range(2)][-1]
        for name in ("bias", "weight", "threshold"):
            torch.nn.utils.parametrize.register_parametrization(encoder, name, Doubled())
            for _ in range(2):
                doubled = encoder(x)
            assert not torch.equal(doubled, z)
            torch.nn.utils.parametrize.remove_parametrizations(
                encoder, name, leave_parametrized=False
            )
            for _ in range(2):
                assert bits_equal(encoder(x), z)


def test_a_bias_that_comes_and_goes() -> None:
    encoder, x = encoder_of({"variant": "lista"}), draw(5, 4)
    with torch.no_grad():
        z = [encoder(x) for _ in range(2)][-1]
        encoder.bias = torch.nn.Parameter(torch.ones(6))
        for _ in range(2):
            assert not torch.equal(encoder(x), z)
        encoder.bias = None
        assert bits_equal(encoder(x), z)


@every_mode
@every_variant
def test_compiles_after_and_before_plain_calls(options: dict[str, Any], training: bool) -> None:
    torch._dynamo.reset()
    encoder, x = encoder_of(options, training), draw(5, 4)
    compiled = torch.compile(encoder, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        for _ in range(2):
            assert torch.allclose(compiled(x), encoder(x))
            for p in encoder.parameters():
                halve(p)
    assert compiled(x).requires_grad


def test_another_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, x = encoder_of({"variant": "lista"}), draw(5, 4)
    with torch.no_grad():
        z = [encoder(x) for _ in range(2)][-1]
        called = []
        reference = backends._module("lista", "reference")
        monkeypatch.setattr(
            reference, "encode", lambda *a, f=reference.encode: called.append(1) or f(*a)
        )
        monkeypatch.setenv(backends.VARIABLE, "lista=reference")
        backends.forget()
        assert torch.allclose(encoder(x), z, atol=1e-6)
        assert called


# --- threads and processes ------------------------------------------------------------------------


@every_mode
def test_several_threads_share_a_plan(training: bool) -> None:
    encoder, x = encoder_of({"variant": "step"}, training), draw(200, 4)
    with torch.no_grad():
        expected = [encoder(x[:rows]) for rows in (1, 7, 200)]
    wrong = []

    def work() -> None:
        with torch.no_grad():
            for _ in range(50):
                for z in expected:
                    if not torch.equal(encoder(x[: len(z)]), z):
                        wrong.append(len(z))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert wrong == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_forked_processes_and_workers() -> None:
    """A child process checks the parameters anew, with more weights than torch sums on one
    thread.
    """
    code = """
import os, torch, latent_kernels as lk
torch.set_num_threads(3)
torch.manual_seed(0)
encoder = lk.LISTA(20, 200, 10, tied=False, dictionary=torch.randn(200, 20))
x = torch.randn(50, 20)
def encode(training):
    with torch.no_grad(): return encoder.train(training)(x).numpy().tobytes()
expected = encode(True)
assert encode(False) == expected
def child():
    if encode(True) != expected or encode(True) != expected: return False
    with torch.no_grad(): encoder.threshold[0, 0] += 0  # a new version
    return encode(True) == expected and encode(True) == expected
pid = os.fork()
if pid == 0: os._exit(0 if child() else 1)
assert os.waitpid(pid, 0)[1] == 0
class Codes(torch.utils.data.Dataset):
    def __len__(self): return 4
    def __getitem__(self, i): return int(encode(True) == expected)
loader = torch.utils.data.DataLoader(Codes(), num_workers=2, multiprocessing_context="fork")
assert all(int(ok) == 1 for ok in loader)
"""
    run_forked(code)
