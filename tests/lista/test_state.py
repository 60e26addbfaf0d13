"""The state that unrolled layers keep between calls, and the effect of torch's modes on them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from latent_kernels.kernels.lista import cpp_cpu, reference
from latent_kernels.kernels.lista.values import finite
from latent_kernels.sparse.lista import coupled_lista_encode, lista_encode
from tests.lista.checks import Choices, Tensors, as_problem, forward
from tests.processes import run

Tensor = torch.Tensor


@pytest.fixture
def problem() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    dictionary = torch.nn.functional.normalize(torch.randn(6, 4, generator=generator), dim=1)
    x = torch.randn(3, 4, generator=generator)
    return x, dictionary.t().contiguous(), torch.eye(6) - 0.3 * dictionary @ dictionary.t()


def test_steps_that_turn_nan_behind_torchs_back_stay_inside_their_lists(
    problem: tuple[Tensor, Tensor, Tensor],
) -> None:
    """NaN in unused lanes of a register (6 components leave some) must not look like codes beyond
    the end of a list.
    """
    x, weight, recurrent = problem
    memory = np.array(0.5, np.float32)
    step, theta = torch.from_numpy(memory), torch.tensor(0.01)
    tensors, choices = Tensors(x, weight, theta, recurrent=recurrent, step=step), Choices(3)
    assert bool(torch.isfinite(forward(cpp_cpu, tensors, choices)[0]).all())
    memory[...] = np.nan
    for _ in range(50):
        z, _ = forward(cpp_cpu, tensors._replace(x=x.repeat(40, 1)), choices)
        assert z.shape == (120, 6)
        assert bool(z.isnan().all())
    with pytest.raises(ValueError, match="step must be finite"):
        lista_encode(x, weight, recurrent, 0.01, n_layers=3, step=step)


def test_second_derivatives_by_way_of_another_term_raise(
    problem: tuple[Tensor, Tensor, Tensor],
) -> None:
    """Second derivatives are refused where the upstream gradient of the codes needs no gradient,
    but x does.
    """
    x, weight, recurrent = problem
    x.requires_grad_()
    loss = lista_encode(x, weight, recurrent, 0.01, n_layers=2).sum() + (x @ weight).square().sum()
    (g,) = torch.autograd.grad(loss, x, create_graph=True)
    with pytest.raises(RuntimeError, match="second derivatives"):
        g.square().sum().backward()


def test_another_default_device_changes_nothing(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, recurrent = problem
    expected = lista_encode(x, weight, recurrent, 0.01, n_layers=2)
    with torch.device("meta"):
        assert torch.equal(lista_encode(x, weight, recurrent, 0.01, n_layers=2), expected)
        z = lista_encode(x.clone().requires_grad_(), weight, recurrent, 0.01, n_layers=2)
    assert torch.equal(z, expected)


@pytest.mark.filterwarnings("ignore")
def test_a_trace_computes_anew(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, recurrent = problem
    traced = torch.jit.trace(
        lambda x: lista_encode(x, weight, recurrent, 0.01, n_layers=2), x, check_trace=False
    )
    other = 2 * x + 1
    assert torch.equal(traced(other), lista_encode(other, weight, recurrent, 0.01, n_layers=2))


def test_codes_are_let_go_with_the_graph(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, recurrent = problem
    weight.requires_grad_()
    z = lista_encode(x, weight, recurrent, 0.01, n_layers=2)
    z.sum().backward(retain_graph=True)
    assert z.grad_fn is not None
    assert z.grad_fn.tape.held is not None  # type: ignore[attr-defined]
    z.sum().backward()
    assert z.grad_fn.tape.held is None  # type: ignore[attr-defined]


class Number(float):
    """A subclass of float, like NumPy's float64."""


KINDS = {
    "float": float,
    "NumPy scalar": np.float64,
    "subclass": Number,
    "0-d array": np.array,
    "0-d tensor": lambda t: torch.tensor(t, dtype=torch.float64),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("form", ["recurrent", "steps", "coupled", "coupled steps"])
def test_no_call_answers_for_another(
    problem: tuple[Tensor, Tensor, Tensor], form: str, kind: Callable[[float], Any]
) -> None:
    """A result is not reused for another number that takes the freed memory of the first."""
    x, weight, recurrent = problem
    dictionary = weight.t().contiguous()

    def run(threshold: Any, step: Any) -> Tensor:
        if form.startswith("coupled"):
            return coupled_lista_encode(x, dictionary, weight, threshold, n_layers=3, step=step)
        return lista_encode(x, weight, recurrent, threshold, n_layers=3, step=step)

    for i in range(200):
        threshold, step = 0.001 * (i % 40 + 1), 0.2 + 0.002 * i
        vector = torch.tensor([[threshold]] * 3)
        expected = run(vector, torch.tensor([step] * 3) if "steps" in form else None)
        for _ in range(2):
            z = run(kind(threshold), kind(step) if "steps" in form else None)
            assert torch.equal(z, expected), i


class Changing:
    """A number with another value each time it is read, as 0-d arrays and tensors may have."""

    value = 0.0

    def __float__(self) -> float:
        return self.value


@pytest.mark.parametrize("form", ["recurrent", "coupled"])
def test_a_number_that_changes_between_calls(
    problem: tuple[Tensor, Tensor, Tensor], form: str
) -> None:
    x, weight, recurrent = problem

    def run(threshold: Any, step: Any) -> Tensor:
        if form == "coupled":
            dictionary = weight.t().contiguous()
            return coupled_lista_encode(x, dictionary, weight, threshold, n_layers=3, step=step)
        return lista_encode(x, weight, recurrent, threshold, n_layers=3, step=step)

    objects = [(Changing(), Changing()), (np.zeros(()), np.zeros(()))]
    objects.append((torch.zeros((), dtype=torch.float64), torch.zeros((), dtype=torch.float64)))
    for threshold, step in objects:
        for value in (0.01, 0.3, 0.02):
            if isinstance(threshold, Changing):
                threshold.value, step.value = value, 1 - value
            else:
                threshold[...], step[...] = value, 1 - value
            assert torch.equal(run(threshold, step), run(value, 1 - value))


def test_weights_that_die_and_others_in_their_place(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    """A plan is not used for new tensors that get the identities and the memory of old ones."""
    x, weight, recurrent = problem
    identities = set()
    for i in range(200):
        w, s, theta = weight * (1 + i), recurrent / (1 + i), torch.tensor([0.01 * i] * 6)
        identities |= {id(w), id(s), id(theta)}
        z = lista_encode(x, w, s, theta, n_layers=2)
        choices = Choices(2)
        expected = reference.encode(as_problem(Tensors(x, w, theta, recurrent=s), choices))
        assert torch.allclose(z, expected, rtol=1e-4, atol=1e-4), i
        bad = torch.full((6,), -0.01) if i % 2 else torch.full((6,), torch.nan)
        with pytest.raises(ValueError, match="threshold must be"):
            lista_encode(x, w, s, bad, n_layers=2)
    assert len(identities) < 600


def test_few_rows_and_many_give_x_the_same_gradient(problem: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, recurrent = problem
    found = []
    for copies in (1, 300):
        rows = x.repeat(copies, 1).requires_grad_()
        (g,) = torch.autograd.grad(
            lista_encode(rows, weight, recurrent, 0.01, n_layers=3).sum(), rows
        )
        found.append(g)
    assert torch.equal(found[1], found[0].repeat(300, 1))


def test_memory_that_cannot_be_had_is_an_error() -> None:
    """With little memory in the process, threads raise MemoryError and do not end the process."""
    code = """
import resource, torch, latent_kernels as lk
from pathlib import Path
torch.set_num_threads(4)
n = 2048
x, w, s = torch.randn(4096, 64), torch.randn(64, n) / 100, torch.eye(n)
lk.lista_encode(x[:600], w, s, 0.01, n_layers=2)
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
failed = 0
for spare in (1, 5, 40, 44, 48):
    resource.setrlimit(resource.RLIMIT_AS, (used + (spare << 20), resource.RLIM_INFINITY))
    try:
        lk.lista_encode(x.requires_grad_(), w, s, 0.01, n_layers=2)
    except (MemoryError, RuntimeError):
        failed += 1
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
print(failed, lk.lista_encode(x[:9], w, s, 0.01, n_layers=2).shape)
"""
    failed, shape = run(code).split(" ", 1)
    assert int(failed) > 0
    assert "[9, 2048]" in shape


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.usefixtures("simd_build")
def test_a_value_that_is_not_finite_is_found_wherever_it_stands(dtype: torch.dtype) -> None:
    for count in (0, 1, 15, 64, 65, 130):
        x = torch.randn(count, dtype=dtype)
        finite("x", x)
        if count:
            finite("x", x, least=float(x.min()))
            with pytest.raises(ValueError, match=r"x must be >= 9"):
                finite("x", x, least=9)
        for place in range(count):
            for value in (torch.nan, torch.inf, -torch.inf):
                spoiled = x.index_fill(0, torch.tensor([place]), value)
                with pytest.raises(ValueError, match="x must be finite"):
                    finite("x", spoiled)
