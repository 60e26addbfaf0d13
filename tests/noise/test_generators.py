"""Sources of seeds: the caller's own generator, and torch.compile's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch.func import vmap

import latent_kernels as lk

Tensor = torch.Tensor
X = torch.randn(4, 3, generator=torch.Generator().manual_seed(5))
GAUSSIAN, BERNOULLI = lk.DiagonalGaussian(X, X), lk.Bernoulli(X)
SAMPLERS: dict[str, Callable[..., Any]] = {
    "normal": lambda **own: lk.normal((2, 3), **own),
    "uniform": lambda **own: lk.uniform(5, **own),
    "rsample": lambda **own: lk.rsample(X, X, 2, **own),
    "rsample_kl": lambda **own: lk.rsample_kl(X, X, **own)[0],
    "rsample_log_prob": lambda **own: lk.rsample_log_prob(X, X, 2, **own)[0],
    "Gaussian's rsample": lambda **own: GAUSSIAN.rsample(2, **own),
    "Gaussian's rsample_kl": lambda **own: GAUSSIAN.rsample_kl(2, **own)[0],
    "Gaussian's rsample_log_prob": lambda **own: GAUSSIAN.rsample_log_prob(2, **own)[0],
    "Gaussian's sample": lambda **own: GAUSSIAN.sample(2, **own),
    "Bernoulli's sample": lambda **own: BERNOULLI.sample(2, **own),
    "antithetic": lambda **own: BERNOULLI.sample_antithetic(2, **own),
    "Categorical's sample": lambda **own: lk.Categorical(X).sample(40, **own),
    "streamed_bound": lambda **own: lk.streamed_bound(GAUSSIAN, lambda z: z.sum(-1), 5, **own),
}
every_sampler = pytest.mark.parametrize("name", SAMPLERS)


def generator(seed: int = 7) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@every_sampler
def test_a_generator_governs_the_noise(name: str) -> None:
    """Each draw advances the generator given, and not torch's default generator."""
    draw, own = SAMPLERS[name], generator()
    state = torch.get_rng_state()
    first, second = draw(generator=own), draw(generator=own)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(draw(generator=generator()), first)
    assert not torch.equal(second, first)
    drawn = torch.randint(2**63 - 1, (), generator=generator())
    assert torch.equal(draw(seed=drawn), first)
    torch.manual_seed(7)
    assert torch.equal(draw(), first)


@every_sampler
def test_a_drawn_seed_is_that_of_randint(name: str) -> None:
    """A drawn seed equals that of torch.randint, and leaves torch's default generator in the same
    state.
    """
    draw = SAMPLERS[name]
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with torch.random.fork_rng(devices=[]):
        in_fork = draw()
    assert torch.equal(torch.get_rng_state(), before)
    drawn = draw()
    after = torch.get_rng_state()
    torch.set_rng_state(before)
    seed = torch.randint(2**63 - 1, ())
    assert torch.equal(torch.get_rng_state(), after)
    assert torch.equal(drawn, in_fork)
    assert torch.equal(drawn, draw(seed=int(seed)))


def test_threads_draw_seeds_side_by_side() -> None:
    """Several threads draw seeds at once, each from a generator of its own, and the first time in
    inference mode.
    """

    def draws(seed: int) -> list[Tensor]:
        own = generator(seed)
        with torch.inference_mode():
            first = lk.normal(3, generator=own)
        return [first, *[lk.normal(3, generator=own) for _ in range(300)]]

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(draws, range(4)))
    for seed, own in enumerate(found):
        expected = generator(seed)
        for x in own:
            drawn = int(torch.randint(2**63 - 1, (), generator=expected))
            assert torch.equal(x, lk.normal(3, seed=drawn))


@every_sampler
def test_a_seed_and_a_generator(name: str) -> None:
    with pytest.raises(ValueError, match="seed and generator cannot both be given"):
        SAMPLERS[name](seed=1, generator=generator())
    with pytest.raises(TypeError, match=r"generator must be a torch\.Generator or None; got int"):
        SAMPLERS[name](generator=1)


@pytest.mark.gpu
def test_a_generator_of_the_gpu() -> None:
    """The seed of a GPU's generator stays on the GPU, and cannot be used on the CPU."""
    with pytest.raises(ValueError, match="generator must be on the device of the op, cpu"):
        lk.normal(3, generator=torch.Generator("cuda"))
    x = X.cuda()
    first = lk.rsample(x, x, 2, generator=torch.Generator("cuda").manual_seed(3))
    drawn = torch.randint(
        2**63 - 1, (), device="cuda", generator=torch.Generator("cuda").manual_seed(3)
    )
    assert torch.equal(lk.rsample(x, x, 2, seed=drawn), first)
    assert torch.equal(
        lk.rsample(x, x, 2, generator=generator()).cpu(), lk.rsample(X, X, 2, generator=generator())
    )


def test_under_vmap() -> None:
    zero = torch.zeros(5, 4, 3)

    def run(x: Tensor) -> Tensor:
        return lk.rsample(x, x, generator=own)

    own = generator()
    same = vmap(run, randomness="same")(zero)
    assert torch.equal(same[0], lk.rsample(zero[0], zero[0], generator=generator()))
    different = vmap(run, randomness="different")(zero)
    assert not torch.equal(different[0], different[1])


def test_one_manual_seed_for_eager_and_compiled_code() -> None:
    """With fallback_random one manual seed gives eager and compiled code the same noise, as
    noise.py says; an explicit seed does so always.
    """
    import torch._inductor.config as inductor

    def run(x: Tensor, seed: int | None = None) -> Tensor:
        return lk.rsample(x, x, 2, seed=seed)

    torch._dynamo.reset()
    compiled = torch.compile(run, fullgraph=True)
    with inductor.patch(fallback_random=True):
        for seed in (None, 3):
            torch.manual_seed(1)
            eager = run(X, seed)
            torch.manual_seed(1)
            assert torch.equal(compiled(X, seed), eager)
