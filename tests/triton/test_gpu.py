"""Tests that need a GPU: the CPU's bits at full size, CUDA graphs, large grids and tensors, and
sizes that Triton's interpreter would take too long for. The tests of each op run on the GPU too.
"""

from __future__ import annotations

import pytest
import torch

import latent_kernels as lk
from cuda import graphed
from tests.backends import TRITON
from tests.checks import DTYPES, bits_equal
from tests.densities.checks import USUAL, DensityProblem, check_density
from tests.score.checks import FAMILIES, SCORE_SIZES, ScoreProblem, check_score
from tests.score.checks import Sizes as ScoreSizes

pytestmark = pytest.mark.gpu
Tensor = torch.Tensor


@pytest.mark.parametrize("kind", [lk.normal, lk.uniform])
@pytest.mark.parametrize("offset", [0, 1, 3, 4 * 2**32 - 9, 2**63 - 2**22])
def test_noise_has_the_cpus_bits(kind: object, offset: int) -> None:
    for seed in (0, 7, 2**32, 2**63 - 1):
        here = kind((1 << 20) + 3, seed=seed, offset=offset)  # type: ignore[operator]
        there = kind((1 << 20) + 3, seed=seed, offset=offset, device="cuda")  # type: ignore[operator]
        assert bits_equal(here, there.cpu())


@pytest.mark.parametrize("shape", [(64, 20), (63, 17), (5, 1500), (1000, 256)])
@pytest.mark.parametrize("num_samples", [None, 3])
def test_samples_have_the_cpus_bits(shape: tuple[int, ...], num_samples: int | None) -> None:
    mean, logvar = torch.randn(shape), torch.randn(shape)
    here = lk.rsample(mean, logvar, num_samples, seed=5)
    there = lk.rsample(mean.cuda(), logvar.cuda(), num_samples, seed=5)
    assert bits_equal(here, there.cpu())


def test_two_runs_give_the_same_bits() -> None:
    mean, logvar = (torch.randn(300, 70, device="cuda", requires_grad=True) for _ in range(2))
    found = []
    for _ in range(2):
        z, kl = lk.rsample_kl(mean, logvar, 50, seed=1)
        found.append([z, kl, *torch.autograd.grad(z.sum() + kl.sum(), (mean, logvar))])
    assert all(bits_equal(a, b) for a, b in zip(*found, strict=True))


def test_cuda_graph_draws_fresh_noise() -> None:
    """A captured step replays with the seed tensor's current value."""
    mean, logvar = torch.randn(64, 20, device="cuda"), torch.randn(64, 20, device="cuda")
    seed = torch.zeros((), dtype=torch.int64, device="cuda")

    def step() -> Tensor:
        z, kl = lk.rsample_kl(mean, logvar, seed=seed)
        seed.add_(1)
        return z + kl.unsqueeze(-1)

    replay = graphed(step)
    seed.fill_(10)
    for i in range(10, 13):
        out = replay()
        z, kl = lk.rsample_kl(mean, logvar, seed=i)
        assert torch.equal(out, z + kl.unsqueeze(-1))


def test_no_seed_under_capture_raises() -> None:
    """Capture without a seed raises. The graph contains another kernel, since torch warns of an
    empty one.
    """
    x = torch.zeros(4, 8, device="cuda")
    lk.rsample(x, x)
    with torch.cuda.graph(torch.cuda.CUDAGraph()):
        x.add_(1.0)
        with pytest.raises(RuntimeError, match="seed must be a 0-d int64 CUDA tensor"):
            lk.rsample(x, x)


def test_captured_backward() -> None:
    """A captured training step gives the gradients of the seed tensor's current value."""
    mean, logvar = (torch.randn(64, 20, device="cuda", requires_grad=True) for _ in range(2))
    seed = torch.zeros((), dtype=torch.int64, device="cuda")

    def step(s: Tensor | int) -> tuple[Tensor, ...]:
        z, kl = lk.rsample_kl(mean, logvar, seed=s)
        density = lk.gaussian_log_prob(z, mean, logvar)
        return torch.autograd.grad(z.square().sum() + kl.sum() + density.sum(), (mean, logvar))

    replay = graphed(lambda: step(seed))
    for i in (3, 2**40):
        seed.fill_(i)
        found = replay()
        assert all(bits_equal(a, b) for a, b in zip(found, step(i), strict=True))


def test_no_call_waits_for_the_device() -> None:
    """No call waits for the device: plain, mapped and compiled, forward and backward, with each
    kind of seed.
    """
    mean, logvar = (torch.randn(8, 16, 20, device="cuda", requires_grad=True) for _ in range(2))
    logits = torch.randn(16, 20, 5, device="cuda")
    given = torch.tensor(5, device="cuda")

    def step(m: Tensor, l: Tensor, seed: Tensor | int | None = None) -> Tensor:
        z, kl = lk.rsample_kl(m, l, 3, seed=seed)
        log_w = lk.gaussian_log_prob(z, m, l) + lk.bernoulli_log_prob(torch.ones_like(z), z)
        return lk.importance_bound(log_w.flatten(1)).sum() + kl.sum()

    def score() -> Tensor:
        q = lk.Categorical(logits)
        z = q.sample(8, seed=3)
        return lk.score_function_gradient(q, z.float().sum(-1), z)[0]

    mapped = torch.func.vmap(lambda m, l: lk.rsample(m, l, 2, seed=1))
    compiled = torch.compile(step, fullgraph=True)
    calls = [
        lambda: [torch.autograd.grad(step(mean, logvar, s), mean) for s in (None, 7, given)],
        lambda: torch.autograd.grad(compiled(mean, logvar), mean),
        lambda: mapped(mean, logvar),
        lambda: lk.Bernoulli(logits).sample(4),
        score,
    ]
    for call in calls:
        call()  # compiles
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            call()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_side_stream() -> None:
    """Kernels run on the current stream, after the work already queued there, and on no other."""
    x = torch.zeros(2000, 256, device="cuda")
    lk.rsample(x, x, seed=1)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        torch.cuda._sleep(100_000_000)  # cycles
        x.fill_(3.0)
        z = lk.rsample(x, x, seed=1)
    side.synchronize()
    three = torch.full((2000, 256), 3.0)
    assert bits_equal(z.cpu(), lk.rsample(three, three, seed=1))


def test_second_device() -> None:
    """A kernel runs on the device of its tensors, whichever is current and was used before."""
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two GPUs")
    mean, logvar = torch.randn(64, 20), torch.randn(64, 20)
    here = lk.rsample(mean, logvar, seed=4)
    for device in ("cuda:0", "cuda:1", "cuda:0"):
        leaves = [x.to(device).requires_grad_() for x in (mean, logvar)]
        z, kl = lk.rsample_kl(*leaves, seed=4)
        (z.sum() + kl.sum()).backward()
        assert z.device == torch.device(device)
        assert bits_equal(z.detach().cpu(), here)
        assert torch.cuda.current_device() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_addresses_of_no_vector(dtype: torch.dtype) -> None:
    """Slices that begin at no multiple of 16 bytes are right after the same call on whole
    tensors.
    """
    flat = torch.randn(3, 64 * 256 + 1, device="cuda").to(dtype)
    for begin in (0, 1):
        x, mean, logvar = flat[:, begin : begin + 64 * 256].unflatten(1, (64, 256))
        for call in (
            lambda m=mean, l=logvar: lk.rsample_kl(m, l, seed=1),
            lambda x=x, m=mean, l=logvar: (lk.gaussian_log_prob(x, m, l),),
            lambda x=x, m=mean: (lk.bernoulli_log_prob(x.sigmoid(), m),),
            lambda x=x: (lk.importance_bound(x),),
        ):
            found, again = call(), call()
            assert all(bits_equal(a.cpu(), b.cpu()) for a, b in zip(found, again, strict=True))
        z, kl = lk.rsample_kl(mean, logvar, seed=1)
        whole = lk.rsample_kl(mean.clone(), logvar.clone(), seed=1)
        assert bits_equal(z.cpu(), whole[0].cpu())
        assert torch.allclose(kl, whole[1], rtol=1e-5)


def test_seed_on_another_device() -> None:
    x = torch.zeros(4, 8)
    with pytest.raises(ValueError, match="seed must be on the device of the op"):
        lk.rsample(x, x, seed=torch.tensor(1, device="cuda"))
    y = x.cuda()
    assert torch.equal(lk.rsample(y, y, seed=torch.tensor(1)), lk.rsample(y, y, seed=1))


def test_gradcheck() -> None:
    mean, logvar = (
        torch.randn(3, 5, device="cuda", dtype=torch.float64, requires_grad=True) for _ in range(2)
    )
    assert torch.autograd.gradcheck(
        lambda m, l: lk.rsample_kl(m, l, 2, seed=1), (mean, logvar), nondet_tol=0
    )


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compile(mode: str) -> None:
    def step(m: Tensor, l: Tensor) -> tuple[Tensor, Tensor]:
        z, kl = lk.rsample_kl(m, l, 3, seed=11)
        return z * 2, kl

    compiled = torch.compile(step, fullgraph=True, mode=mode)
    mean, logvar = (torch.randn(6, 5, device="cuda", requires_grad=True) for _ in range(2))
    for a, b in zip(compiled(mean, logvar), step(mean, logvar), strict=True):
        assert torch.equal(a, b)


def test_compiled_graphs_draw_fresh_noise() -> None:
    """mode="reduce-overhead" captures CUDA graphs; no seed may freeze in them."""
    compiled = torch.compile(
        lambda x: lk.rsample(x, x) + 0.0, mode="reduce-overhead", fullgraph=True
    )
    x = torch.zeros(64, 20, device="cuda")
    draws = [compiled(x).clone() for _ in range(5)]
    assert not any(torch.equal(a, b) for i, a in enumerate(draws) for b in draws[:i])


@pytest.mark.parametrize("shape", [(5,), (1, 8), (1, 1), (1,)])
def test_one_row(shape: tuple[int, ...]) -> None:
    """A size of 1, which Triton makes a constant, works."""
    mean, logvar = (torch.randn(shape, device="cuda", requires_grad=True) for _ in range(2))
    z, kl = lk.rsample_kl(mean, logvar, 3, seed=1)
    (z.sum() + kl.sum() + lk.gaussian_log_prob(z, mean, logvar).sum()).backward()
    here = lk.rsample(mean.detach().cpu(), logvar.detach().cpu(), 3, seed=1)
    assert bits_equal(z.detach().cpu(), here)


def test_many_groups_and_samples() -> None:
    """Groups and samples may exceed 65,535, the limit of a grid's second and third axes."""
    mean = torch.zeros(70_000, 3, device="cuda")
    z = torch.func.vmap(lambda m: lk.rsample(m, m, seed=2))(mean)
    assert torch.equal(z[0], z[-1])
    samples = torch.randn(70_000, 2, 3, device="cuda", requires_grad=True)
    density = lk.gaussian_log_prob(samples, mean[:2], mean[:2])
    density.sum().backward()
    assert torch.allclose(samples.grad, -samples, rtol=1e-5)


def test_strides_broadcasting_autocast() -> None:
    mean = torch.randn(20, 64, device="cuda").t()
    logvar = torch.randn(20, device="cuda")
    plain = lk.rsample_kl(mean.contiguous(), logvar.expand(64, 20).contiguous(), seed=2)
    for a, b in zip(lk.rsample_kl(mean, logvar, seed=2), plain, strict=True):
        assert torch.equal(a, b)
    with torch.autocast("cuda", torch.bfloat16):
        layer = torch.nn.Linear(20, 8, device="cuda")
        z, kl = lk.rsample_kl(*layer(mean.contiguous()).chunk(2, -1), seed=1)
    assert z.dtype == torch.bfloat16
    assert kl.dtype == torch.float32


def test_more_than_2_to_the_31_elements() -> None:
    """64-bit indexing: the last elements of a tensor past 2^31 are those of the stream."""
    rows, cols = (1 << 25) + 1, 64
    if torch.cuda.mem_get_info()[0] < 3 * rows * cols * 2 + (1 << 30):
        pytest.skip("needs 13 GB of GPU memory")
    zero = torch.zeros(1, cols, device="cuda", dtype=torch.bfloat16).expand(rows, cols)
    z = lk.rsample(zero, zero, seed=3)
    expected = lk.normal((5, cols), seed=3, offset=(rows - 5) * cols, dtype=torch.bfloat16)
    assert torch.equal(z[-5:].cpu(), expected)


# --- score function and discrete samples ----------------------------------------------------------

DISCRETE = [
    (1, 3, 5, 7, 0),
    (2, 3, 64, 20, 0),
    (1, 2, 3, 4096, 0),
    (3, 4000, 1, 1, 0),
    (1, 8, 512, 256, 0),
]
DISCRETE += [
    (*sizes[:4], classes) for sizes, classes in zip(DISCRETE, (3, 1, 17, 1000, 10), strict=True)
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", DISCRETE, ids=str)
def test_discrete_samples_have_the_cpus_bits(sizes: ScoreSizes, dtype: torch.dtype) -> None:
    from latent_kernels.kernels.families import reference, triton_gpu
    from latent_kernels.kernels.families.problem import Problem, Samples

    groups, samples, rows, cols, classes = sizes
    logits = (
        3 * torch.randn(groups, rows, cols, *([classes] if classes else []), dtype=torch.float64)
    ).to(dtype)
    logits.view(-1)[:3] = torch.tensor([float("nan"), float("-inf"), 90.0])
    seeds = torch.arange(groups) * 2**33 + 5
    for antithetic in (False,) if classes else (False, True):
        for offset in (0, 3, 2**34 - 5):
            shape = (groups, *((2,) if antithetic else ()), samples, rows, cols)
            here, there = (
                torch.full(shape, 77, dtype=torch.int64 if classes else dtype, device=device)
                for device in ("cpu", "cuda")
            )
            problem = Problem(
                (groups, 1 + antithetic, samples, rows, cols, classes),
                logits,
                seeds,
                offset,
                antithetic,
            )
            reference.sample(problem, Samples(here))
            on_gpu = problem._replace(logits=logits.cuda(), seed=seeds.cuda())
            triton_gpu.sample(on_gpu, Samples(there))
            assert bits_equal(here.double(), there.cpu().double())


# Each of these compiles kernels of its own: the sizes, controls and types are covered, not all
# their products.
@pytest.mark.parametrize("control", ["leave_one_out", "optimal"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("sizes", SCORE_SIZES, ids=str)
def test_score_of_every_size(sizes: ScoreSizes, family: str, control: str) -> None:

    check_score(TRITON, ScoreProblem(family, sizes, torch.float32, control))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_score_of_every_type(family: str, dtype: torch.dtype) -> None:

    for control in ("leave_one_out", "optimal"):
        for double_values in (False, True):
            problem = ScoreProblem(
                family, (1, 100, 64, 32, 3), dtype, control, double_values=double_values
            )
            check_score(TRITON, problem)


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("sizes", [(1, 16, 64, 20, 3), (2, 5, 5, 7, 4), (1, 777, 1, 5, 3)], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_score_of_samples_drawn_again(family: str, sizes: ScoreSizes, offset: int) -> None:

    for control in ("none", "optimal"):
        problem = ScoreProblem(family, sizes, torch.float32, control, from_seed=True, offset=offset)
        check_score(TRITON, problem)


@pytest.mark.parametrize("family", FAMILIES)
def test_score_with_folds(family: str) -> None:

    for folds in (3, 10):
        for per_element in (False, True):
            problem = ScoreProblem(
                family,
                (2, 777, 3, 40, 5),
                torch.float32,
                "optimal",
                folds=folds,
                per_element=per_element,
            )
            check_score(TRITON, problem)


@pytest.mark.parametrize("control", ["none", "leave_one_out", "optimal"])
@pytest.mark.parametrize("family", ["bernoulli", "antithetic", "categorical"])
def test_score_outside_the_support(family: str, control: str) -> None:
    """A sample outside the support gives NaN in that element's gradient alone; the rest equals the
    CPU's.
    """
    from latent_kernels.kernels.score import triton_gpu

    problem = ScoreProblem(family, (1, 40, 5, 7, 4), torch.float32, control)
    z = problem.problem.z
    assert z is not None
    clean = problem.run(triton_gpu, "cuda")
    for value in (-(2**62), 2**62) if family == "categorical" else (0.5, float("nan")):
        z.view(-1)[39 * 35 + 10] = value  # row 1, column 3; of a pair's first sample
        for name, found in problem.run(triton_gpu, "cuda").items():
            nan = found.isnan().reshape(5, 7, -1)
            assert nan[1, 3].all()
            assert nan.sum() == nan[1, 3].numel()
            assert torch.equal(found[~found.isnan()], clean[name][~found.isnan()])


@pytest.mark.parametrize("family", FAMILIES)
def test_two_runs_of_the_score_give_the_same_bits(family: str) -> None:
    from latent_kernels.kernels.score import triton_gpu

    problem = ScoreProblem(family, (1, 500, 3, 70, 10), torch.float32, "optimal", from_seed=True)
    runs = [problem.run(triton_gpu, "cuda") for _ in range(2)]
    assert all(bits_equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("shape", [(4, 20), (63, 17), (5,), (1, 1)])
def test_public_score(shape: tuple[int, ...]) -> None:
    """The gradient is the same from a seed, from the samples it drew, and on a CPU."""
    logits, tail = torch.randn(shape), torch.randn(*shape, 5)
    for q_of, parameters in (
        (lk.DiagonalGaussian, (logits, tail[..., 0].contiguous())),
        (lk.Bernoulli, (logits,)),
        (lk.Categorical, (tail,)),
    ):
        there = tuple(x.cuda().requires_grad_() for x in parameters)
        q = q_of(*there)
        z = q.sample(64, seed=7)
        here = q_of(*parameters)
        assert (
            bits_equal(here.sample(64, seed=7).double(), z.cpu().double())
            or q_of is lk.DiagonalGaussian
        )
        values = z.float().square().sum(-1)
        expected = lk.score_function_gradient(here, values.cpu(), z.cpu())
        lk.score_function_expectation(q, values, seed=7).sum().backward()
        for leaf, by_samples, wanted in zip(
            there, lk.score_function_gradient(q, values, z), expected, strict=True
        ):
            assert leaf.grad is not None
            for found in (leaf.grad, by_samples):
                assert torch.allclose(
                    found.cpu(), wanted, rtol=1e-4, atol=1e-4 * float(1 + wanted.abs().max())
                )


def test_cuda_graph_of_the_score() -> None:
    """A captured step replays with the seed tensor's current value, and frees nothing that it
    reads.
    """
    logits = torch.randn(64, 20, 5, device="cuda")
    seed = torch.zeros((), dtype=torch.int64, device="cuda")

    def step(s: Tensor | int) -> tuple[Tensor, ...]:
        q = lk.Categorical(logits)
        values = q.sample(32, seed=s).float().sum(-1)
        return lk.score_function_gradient(q, values, seed=s, control_variate="optimal")

    replay = graphed(lambda: step(seed))
    for i in range(3):
        seed.fill_(i)
        (out,) = replay()
        assert bits_equal(out.cpu(), step(i)[0].cpu())


def test_score_of_more_than_2_to_the_31_elements() -> None:
    """With 64-bit offsets into z, the last row of a sample past 2^31 gives the same as alone."""
    samples, rows, cols = 3, (1 << 20) + 3, 1024
    if torch.cuda.mem_get_info()[0] < 4 * samples * rows * cols:
        pytest.skip("needs 13 GB of GPU memory")
    logits = torch.zeros(rows, cols, device="cuda", dtype=torch.float16)
    z = torch.zeros(samples, rows, cols, device="cuda", dtype=torch.float16)
    z[:, -1] = torch.randint(2, (samples, cols), device="cuda").half()
    values = torch.randn(samples, rows, device="cuda")
    (whole,) = lk.score_function_gradient(lk.Bernoulli(logits), values, z)
    (last,) = lk.score_function_gradient(
        lk.Bernoulli(logits[-1:].clone()), values[:, -1:].contiguous(), z[:, -1:].contiguous()
    )
    assert torch.equal(whole[-1:], last)


# --- log-densities --------------------------------------------------------------------------------

DENSITIES = ["gaussian", "bernoulli"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_densities_of_images(density: str, dtype: torch.dtype) -> None:

    for sharing in USUAL[density]:
        check_density(TRITON, DensityProblem(density, (1, 50, 64, 784), dtype, sharing))


@pytest.mark.parametrize("density", DENSITIES)
def test_elements_of_densities_have_the_cpus_bits(density: str) -> None:
    from latent_kernels.kernels.densities import cpp_cpu, triton_gpu

    for sizes in ((1, 500, 40, 1), (2, 3, 50, 784)):
        problem = DensityProblem(density, sizes, torch.float32, USUAL[density][-1])
        there, here = problem.run(triton_gpu, "cuda"), problem.run(cpp_cpu)
        for name, x in there.items():
            if name != "log_prob" or sizes[3] == 1:
                assert bits_equal(x, here[name]), (sizes, name)


def test_two_runs_of_densities_give_the_same_bits() -> None:
    x, logits = (
        torch.rand(64, 784, device="cuda"),
        torch.randn(50, 64, 784, device="cuda", requires_grad=True),
    )
    logvar = torch.randn(784, device="cuda", requires_grad=True)
    found = []
    for _ in range(2):
        outputs = lk.gaussian_log_prob(x, logits, logvar), lk.bernoulli_log_prob(x, logits)
        found.append(
            [*outputs, *torch.autograd.grad([out.sum() for out in outputs], (logits, logvar))]
        )
    assert all(bits_equal(a, b) for a, b in zip(*found, strict=True))


def test_density_of_more_than_2_to_the_31_elements() -> None:
    """With 64-bit indexing, the last rows have the same densities as alone."""
    rows, cols = (1 << 25) + 1, 64
    if torch.cuda.mem_get_info()[0] < 2 * rows * cols * 2 + (1 << 30):
        pytest.skip("needs 10 GB of GPU memory")
    logits = torch.zeros(rows, cols, device="cuda", dtype=torch.bfloat16)
    logits[-5:] = torch.randn(5, cols, device="cuda").bfloat16()
    x = torch.rand(cols, device="cuda").bfloat16()
    assert bits_equal(
        lk.bernoulli_log_prob(x, logits)[-5:].cpu(), lk.bernoulli_log_prob(x, logits[-5:]).cpu()
    )
