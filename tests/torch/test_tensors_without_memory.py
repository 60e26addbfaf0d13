"""Tensors that have no memory of their own, or that are not strided."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functionalize
from torch.utils._python_dispatch import TorchDispatchMode

import latent_kernels as lk

Tensor = torch.Tensor


def zeros(*shape: int) -> Tensor:
    """Return what autograd takes for zeros: a tensor with a shape and no address."""
    return torch._efficientzerotensor(shape)


def functional(x: Tensor) -> Tensor:
    """Return a tensor that has left torch.func.functionalize, as a module may leak one."""
    leaked: list[Tensor] = []
    functionalize(lambda x: leaked.append(x) or x + 1)(x)  # type: ignore[func-returns-value]
    return leaked[0]


X = torch.randn(3, 4, generator=torch.Generator().manual_seed(5))
Z = torch.stack((X, -X))
WEIGHT, RECURRENT = torch.randn(4, 6), 0.1 * torch.eye(6)
CALLS: dict[str, Callable[[Tensor], Tensor]] = {
    "rsample": lambda x: lk.rsample(X, x, 2, seed=1),
    "rsample_kl": lambda x: lk.rsample_kl(x, X, seed=1)[1],
    "prior": lambda x: lk.gaussian_kl(X, X, prior_mean=X, prior_logvar=x),
    "path": lambda x: lk.rsample_log_prob(x, X, 2, seed=1, path_derivative=True)[1],
    "gaussian_log_prob": lambda x: lk.gaussian_log_prob(Z, x, X),
    "bernoulli_log_prob": lambda x: lk.bernoulli_log_prob(x, X),
    "importance_bound": lk.importance_bound,
    "normalized_weights": lk.normalized_weights,
    "Bernoulli.rsample_relaxed": lambda x: lk.Bernoulli(x).rsample_relaxed(2, tau=0.5, seed=1),
    "Categorical.rsample_relaxed": lambda x: lk.Categorical(x).rsample_relaxed(tau=0.5, seed=1),
    "Bernoulli.sample": lambda x: lk.Bernoulli(x).sample(5, seed=1),
    "score": lambda x: lk.score_function_gradient(lk.Bernoulli(x), Z[..., 0], Z.gt(0).float())[0],
    "lista_encode": lambda x: lk.lista_encode(x, WEIGHT, RECURRENT, 0.1, n_layers=3),
}
every_call = pytest.mark.parametrize("name", CALLS)


@every_call
def test_zero_tensors(name: str) -> None:
    assert torch.equal(CALLS[name](zeros(3, 4)), CALLS[name](torch.zeros(3, 4)))


@every_call
def test_functional_tensors(name: str) -> None:
    found = CALLS[name](functional(X))
    assert torch.equal(torch._from_functional_tensor(found), CALLS[name](X))


DIFFERENTIABLE = [n for n in CALLS if n not in ("normalized_weights", "Bernoulli.sample", "score")]


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_upstream_gradients(name: str) -> None:
    """Zero tensors, sparse and functional ones count as the gradients that they represent."""
    x = X.clone().requires_grad_()
    out = CALLS[name](x)
    some = torch.where(torch.arange(out.numel()).reshape(out.shape) % 3 == 0, out.detach(), 0)
    for given, dense in (
        (zeros(*out.shape), torch.zeros_like(out)),
        (some.to_sparse(), some),
    ):
        expected = torch.autograd.grad(out, x, dense, retain_graph=True)
        assert torch.equal(torch.autograd.grad(out, x, given, retain_graph=True)[0], *expected)


def test_embedding_like_gradients() -> None:
    """The sparse gradient of an embedding passes through a sampler."""
    weight = torch.randn(5, 4, requires_grad=True)
    z = lk.rsample(weight, weight, seed=3)
    torch.nn.functional.embedding(torch.tensor([1, 3, 1]), z, sparse=True).sum().backward()
    (expected,) = torch.autograd.grad(
        lk.rsample(weight, weight, seed=3),
        weight,
        torch.tensor([0.0, 2, 0, 1, 0])[:, None].expand(5, 4),
    )
    assert weight.grad is not None
    assert torch.equal(weight.grad, expected)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_are_refused() -> None:
    rows = [torch.randn(2, 4), torch.randn(3, 4)]
    for layout in (torch.strided, torch.jagged):
        nested = torch.nested.nested_tensor(rows, layout=layout)
        for name, argument in (
            ("rsample", "logvar"),
            ("rsample_kl", "mean"),
            ("prior", "prior_logvar"),
            ("gaussian_log_prob", "mean"),
            ("importance_bound", "log_w"),
            ("Bernoulli.sample", "logits"),
            ("lista_encode", "x"),
        ):
            with pytest.raises(TypeError, match=rf"{argument} must be a dense \(strided\) tensor"):
                CALLS[name](nested)


class Copies(TorchDispatchMode):
    """A mode that records the copies to a GPU, each with whether the CPU waits for it."""

    def __init__(self) -> None:
        super().__init__()
        self.blocking: list[bool] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        options = kwargs or {}
        if "_to_copy" in str(function) and torch.device(options["device"]).type == "cuda":
            self.blocking.append(not options.get("non_blocking", False))
        return function(*args, **options)


@pytest.mark.parametrize(
    "source",
    [{"seed": 3}, {"seed": None}, {"generator": torch.Generator()}, {"seed": torch.tensor(3)}],
    ids=["number", "drawn", "generator", "tensor"],
)
def test_seeds_reach_a_gpu_without_waiting_for_it(
    monkeypatch: pytest.MonkeyPatch, source: dict[str, Any]
) -> None:
    """Seeds reach a GPU without waiting for it; the tensors belong to a GPU that is not there."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, 4, device="cuda")
        with Copies() as copies:
            assert lk.rsample(x, x, **source).is_cuda
            assert lk.normal(5, **source, device="cuda:0").is_cuda
    assert not any(copies.blocking)


def test_a_seed_on_the_cpu_is_refused_under_capture_by_every_door(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A captured copy would read the CPU's memory again at every replay, so every way to the
    kernels refuses the seed.
    """
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    with FakeTensorMode(allow_non_fake_inputs=True):
        x = torch.empty(3, 4, device="cuda")
        assert lk.rsample(x, x, seed=3).is_cuda
        with pytest.raises(RuntimeError, match="0-d int64 CUDA tensor"):
            lk.rsample(x, x, seed=torch.tensor(3))
