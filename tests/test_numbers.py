"""Numbers of every type that users pass: NumPy's scalars, 0-d tensors, and absurd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import latent_kernels as lk

MEAN, X = torch.zeros(3, 5), lk.normal((20, 8), seed=1)
D = torch.nn.functional.normalize(lk.normal((12, 8), seed=2), dim=-1)
Q = lk.DiagonalGaussian(MEAN, MEAN)


def encoder(n_layers: Any = 2, alpha: Any = 0.1) -> lk.LISTA:
    return lk.LISTA.from_dictionary(D, alpha, n_layers)


def trained(n: Callable[[int], Any], f: Callable[[float], Any]) -> torch.Tensor:
    one = encoder()
    options: dict[str, Any] = {"max_steps": n(3), "batch_size": n(5), "seed": n(1)}
    lk.train_encoder(
        one, X, dictionary=D, alpha=f(0.25), learning_rate=f(0.125), progress=False, **options
    )
    return one(X)


# The types that `n` and `f` make must not matter; 0.25 and the like are exact in float32.
CALLS: dict[str, Callable[[Any, Any], Any]] = {
    "normal": lambda n, f: lk.normal((n(3), n(4)), seed=n(1), offset=n(4)),
    "uniform": lambda n, f: lk.uniform(n(3), seed=n(1)),
    "rsample": lambda n, f: lk.rsample(MEAN, MEAN, n(3), seed=n(1), offset=n(7)),
    "rsample_kl": lambda n, f: lk.rsample_kl(MEAN, MEAN, n(3), seed=n(1)),
    "rsample_log_prob": lambda n, f: lk.rsample_log_prob(MEAN, MEAN, n(3), seed=n(1)),
    "Bernoulli": lambda n, f: lk.Bernoulli(MEAN).sample(n(3), seed=n(1), offset=n(9)),
    "antithetic": lambda n, f: lk.Bernoulli(MEAN).sample_antithetic(n(3), seed=n(1)),
    "Categorical": lambda n, f: lk.Categorical(MEAN).sample(n(3), seed=n(1)),
    "streamed_bound": lambda n, f: lk.streamed_bound(
        Q, lambda z: -z.square().sum(-1), n(8), chunk=n(4), seed=n(1)
    ),
    "profile_variance": lambda n, f: lk.profile_variance(
        Q, lambda z: -z.square().sum(-1), num_samples=[n(2)], repeats=n(8), seed=n(1)
    ).table["variance"],
    "sparse_encode": lambda n, f: lk.sparse_encode(
        X, D, alpha=f(0.25), max_iter=n(9), tol=f(0.125), return_gap=True
    ),
    "LISTA": lambda n, f: encoder(n(3), f(0.25))(X, n_layers=n(2)),
    "LCoD": lambda n, f: lk.LCoD.from_dictionary(D, f(0.25), n(3))(X),
    "lista_encode": lambda n, f: lk.lista_encode(
        X, D.T, torch.zeros(12, 12), f(0.25), n_layers=n(2), step=f(0.5), select=n(1)
    ),
    "train_encoder": trained,
}


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize(
    ("integer", "number"),
    [
        (np.int64, np.float32),
        (np.int32, np.float64),
        (np.uint8, np.array),
        (torch.tensor, torch.tensor),
    ],
    ids=["int64-float32", "int32-float64", "uint8-array", "tensor"],
)
def test_numbers_of_every_type(name: str, integer: Any, number: Any) -> None:
    torch.set_num_threads(1)
    call = CALLS[name]
    got, expected = call(integer, number), call(int, float)
    torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda: lk.rsample(MEAN, MEAN, True),
        lambda: lk.rsample(MEAN, MEAN, np.bool_(True)),
        lambda: lk.rsample(MEAN, MEAN, 3.0),
        lambda: lk.rsample(MEAN, MEAN, np.float64(3)),
        lambda: lk.rsample(MEAN, MEAN, 3, seed=True),
        lambda: lk.sparse_encode(X, D, alpha=True),
        lambda: lk.sparse_encode(X, D, alpha="0.1"),
        lambda: lk.sparse_encode(X, D, alpha=np.ones(20)),
        lambda: encoder(np.bool_(True)),
    ],
)
def test_what_is_no_number_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="must be"):
        call()


def test_flags_of_numpy() -> None:
    _, log_q = lk.rsample_log_prob(MEAN, MEAN, 2, seed=1, path_derivative=np.bool_(True))
    assert log_q.shape == (2, 3)
    codes = lk.sparse_encode(X, D, alpha=0.25, positive=np.bool_(True), return_gap=np.bool_(False))
    assert isinstance(codes, torch.Tensor)
    assert bool((codes >= 0).all())


HUGE = 2**60
NOTHING = torch.zeros(0, 5)


@pytest.mark.parametrize(
    ("call", "shape"),
    [
        (lambda: lk.rsample(NOTHING, NOTHING, HUGE, seed=1), (HUGE, 0, 5)),
        (lambda: lk.rsample(torch.zeros(3, 0), torch.zeros(3, 0), HUGE, seed=1), (HUGE, 3, 0)),
        (lambda: lk.rsample_kl(NOTHING, NOTHING, HUGE, seed=1)[0], (HUGE, 0, 5)),
        (lambda: lk.rsample_kl(torch.zeros(3, 0), torch.zeros(3, 0), HUGE, seed=1)[1], (3,)),
        (lambda: lk.rsample_log_prob(NOTHING, NOTHING, HUGE, seed=1)[0], (HUGE, 0, 5)),
        (lambda: lk.Bernoulli(NOTHING).sample(HUGE, seed=1), (HUGE, 0, 5)),
        (lambda: lk.Categorical(torch.zeros(0, 5, 3)).sample(HUGE, seed=1), (HUGE, 0, 5)),
        (lambda: lk.normal((HUGE, 0), seed=1), (HUGE, 0)),
        (lambda: lk.importance_bound(torch.zeros(1, 0).expand(HUGE, 0)), (0,)),
        (
            lambda: lk.gaussian_log_prob(NOTHING.expand(HUGE, 0, 5), NOTHING, NOTHING),
            (HUGE, 0),
        ),
        (lambda: lk.bernoulli_log_prob(NOTHING.expand(HUGE, 0, 5), NOTHING), (HUGE, 0)),
    ],
)
def test_a_huge_size_beside_a_zero_is_an_empty_result(
    call: Callable[[], torch.Tensor], shape: tuple[int, ...]
) -> None:
    assert tuple(call().shape) == shape


def test_a_huge_size_beside_a_zero_has_gradients() -> None:
    mean = torch.zeros(0, 5, requires_grad=True)
    z, kl = lk.rsample_kl(mean, mean, HUGE, seed=1)
    (z.sum() + kl.sum()).backward()
    assert mean.grad is not None
    assert mean.grad.shape == (0, 5)
