"""Samples of the discrete families: frozen values, the reference's bits, seeds and offsets,
statistics, edges.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats

import latent_kernels as lk
from latent_kernels.kernels.families import reference
from latent_kernels.kernels.families.problem import Classes, Problem, Samples, unit_weight
from latent_kernels.kernels.noise import reference as noise
from tests.checks import DTYPES

Tensor = torch.Tensor
INF = math.inf


def bernoulli(shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> lk.Bernoulli:
    return lk.Bernoulli(2 * torch.randn(shape, dtype=dtype))


def discrete(name: str, shape: tuple[int, ...]) -> Any:
    return bernoulli(shape) if name == "bernoulli" else lk.Categorical(2 * torch.randn(*shape, 3))


# --- samples --------------------------------------------------------------------------------------

# Seeds, and rows of 4 (6) samples from offset 3: part of noise stream v2.
BERNOULLI_LOGITS = [-2.0, -0.5, 0.0, 0.5, 2.0, 80.0, -80.0]
CATEGORICAL_LOGITS = [
    [0, 1, 2, 3],
    [0, 0, 0, 0],
    [5, -80, 5, 80],
    [-1, -INF, 0, -INF],
    [3, 2, 1, 0],
]
GOLDEN = {
    0: (
        "0001110 0010110 0100110 1110110",
        "0111110 0101110",
        "33320 32320 31320 23320 30301 11321",
    ),
    1: (
        "0100110 0110010 0001110 0111110",
        "0011110 0001110",
        "30320 32300 33300 33320 22320 03320",
    ),
    2**40 + 7: (
        "0011110 0101110 1001110 0001110",
        "0101110 0010110",
        "32320 30321 22300 32300 33320 10320",
    ),
}


def rows(z: Tensor) -> str:
    return " ".join("".join(str(int(x)) for x in row) for row in z.reshape(-1, z.shape[-1]))


@pytest.mark.parametrize("seed", GOLDEN)
def test_golden_samples(simd_build: str, seed: int) -> None:
    singles, twins, classes = GOLDEN[seed]
    for dtype in DTYPES:
        q, c = (
            lk.Bernoulli(torch.tensor(BERNOULLI_LOGITS, dtype=dtype)),
            lk.Categorical(torch.tensor(CATEGORICAL_LOGITS, dtype=dtype)),
        )
        assert rows(q.sample(4, seed=seed, offset=3)) == singles
        pairs = q.sample_antithetic(2, seed=seed, offset=3)
        assert rows(pairs[0]) == " ".join(singles.split()[:2])
        assert rows(pairs[1]) == twins
        assert rows(c.sample(6, seed=seed, offset=3)) == classes


DRAWS = [
    (1, 1, 1, 1),
    (3, 5, 7, 4),
    (2, 1, 33, 2),
    (4, 3, 1, 300),
    (1, 2, 1500, 3),
    (77, 1, 5, 17),
    (200, 1, 1, 70_000),
    (2, 0, 4, 3),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("sizes", DRAWS, ids=str)
def test_bits_equal_the_reference(
    simd_build: str, sizes: tuple[int, int, int, int], dtype: torch.dtype
) -> None:
    """The bits equal the reference's for [S, N, D, K] of every dtype, with NaN and infinite logits
    where these can be drawn.
    """
    samples, n, cols, classes = sizes
    logits = 3 * torch.randn(n, cols, classes, dtype=torch.float64)
    special = torch.tensor([torch.nan, INF, -INF, 80.0, -80.0, 0.0])
    places = torch.rand(n, cols, classes) < 0.03
    logits = torch.where(places, special[torch.randint(6, places.shape)].double(), logits).to(dtype)
    proper = logits.nan_to_num(nan=0.0, posinf=90.0, neginf=-INF)
    proper[..., :1].masked_fill_(proper.amax(-1, keepdim=True) == -INF, 0)
    for seed, offset in ((0, 0), (2**62 + 1, 3), (5, 2**40 + 1)):
        for k in (0, classes):
            given = proper if k else logits[..., 0].contiguous()
            q = lk.Categorical(given) if k else lk.Bernoulli(given)
            for pairs in (False, True)[: 1 if k else 2]:
                z = q.sample_antithetic(samples, seed=seed, offset=offset) if pairs else q.sample(
                    samples, seed=seed, offset=offset
                )  # fmt: skip
                expected = torch.empty_like(z)
                of_op = (1, 1 + pairs, samples, n, cols, k)
                problem = Problem(of_op, given, seed, offset, pairs)
                assert reference.sample(problem, Samples(expected))
                assert torch.equal(z.nan_to_num(nan=7), expected.nan_to_num(nan=7))
                if not k:
                    assert torch.equal(z.isnan(), given.isnan().expand(z.shape))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [1, 3, 40, 5000])
def test_a_categorical_without_probabilities_raises(
    simd_build: str, classes: int, dtype: torch.dtype
) -> None:
    """An error is raised, instead of class 0, even if one variable of many has NaN, inf or only
    impossible classes.
    """
    match = "logits must leave each variable of a Categorical some class"
    for value in (torch.nan, INF, -INF):
        logits = torch.zeros(7, 3, classes, dtype=dtype)
        logits[4, 1, :: classes if value != -INF else 1] = value
        q = lk.Categorical(logits)
        for samples in (None, 1, 50):
            with pytest.raises(ValueError, match=match):
                q.sample(samples, seed=1)
        assert lk.Categorical(logits[:4]).sample(9, seed=1).shape == (9, 4, 3)
        with pytest.raises(ValueError, match=match):
            torch.func.vmap(lambda x: lk.Categorical(x).sample(seed=1))(logits)
        problem = Problem((1, 1, 2, 7, 3, classes), logits, 1, 0, False)
        z = torch.empty(2, 7, 3, dtype=torch.int64)
        assert not reference.sample(problem, Classes(z))
        assert z[:, 4, 1].tolist() == [0, 0]
    zeros = torch.zeros(3, classes, dtype=dtype)
    with pytest.raises(ValueError, match=match):
        lk.Categorical(probs=zeros).sample(seed=1)
    assert lk.Categorical(zeros[:0]).sample(5, seed=1).shape == (5, 0)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_bits_do_not_depend_on_threads(simd_build: str, name: str) -> None:
    q = discrete(name, (70, 90))
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        found.append(
            (
                q.sample(20, seed=3),
                q.sample_antithetic(20, seed=3) if name == "bernoulli" else q.sample(seed=3),
            )
        )
    for a, b in found[1:]:
        assert torch.equal(a, found[0][0])
        assert torch.equal(b, found[0][1])


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_seeds_and_offsets(name: str) -> None:
    q = discrete(name, (3, 5))
    z = q.sample(8, seed=11)
    assert z.shape == (8, 3, 5)
    assert torch.equal(q.sample(8, seed=11), z)
    assert torch.equal(q.sample(8, seed=torch.tensor(11)), z)
    assert not torch.equal(q.sample(8, seed=12), z)
    for skipped in (1, 3, 7):
        assert torch.equal(q.sample(8 - skipped, seed=11, offset=15 * skipped), z[skipped:])
    one = q.sample(seed=11)
    assert one.shape == (3, 5)
    assert torch.equal(one, z[0])
    torch.manual_seed(3)
    fresh = q.sample(50), q.sample(50)
    torch.manual_seed(3)
    assert torch.equal(q.sample(50), fresh[0])
    assert not torch.equal(*fresh)
    if name == "bernoulli":
        pairs = q.sample_antithetic(4, seed=11, offset=15)
        assert pairs.shape == (2, 4, 3, 5)
        assert torch.equal(pairs[0], z[1:5])


def test_samples_carry_no_gradient_and_honour_strides() -> None:
    logits = torch.randn(5, 6, 4)
    for q, plain in (
        (
            lk.Bernoulli(logits[..., 1].t().requires_grad_()),
            lk.Bernoulli(logits[..., 1].t().contiguous()),
        ),
        (
            lk.Categorical(logits.transpose(0, 1).requires_grad_()),
            lk.Categorical(logits.transpose(0, 1).contiguous()),
        ),
    ):
        z = q.sample(3, seed=1)
        assert not z.requires_grad
        assert torch.equal(z, plain.sample(3, seed=1))
    row = torch.randn(6)
    assert torch.equal(
        lk.Bernoulli(row.expand(5, 6)).sample(3, seed=1),
        lk.Bernoulli(row.repeat(5, 1)).sample(3, seed=1),
    )
    assert torch.equal(
        lk.Bernoulli(torch._neg_view(row)).sample(3, seed=1), lk.Bernoulli(-row).sample(3, seed=1)
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_samples_are_the_inverse_of_the_distribution(dtype: torch.dtype) -> None:
    """z is the inverse of the distribution in float64 at the stream's own uniforms, unless u is
    within rounding of an edge.
    """
    q, c = bernoulli((40, 7), dtype), lk.Categorical(2 * torch.randn(40, 7, 6, dtype=dtype))
    u = lk.uniform((300, 40, 7), seed=9, offset=5).double()
    edge = torch.logit(u) - q.logits.double()
    sure = edge.abs() > 1e-5
    z = q.sample_antithetic(300, seed=9, offset=5).double()
    assert torch.equal(z[0][sure], (edge < 0).double()[sure])
    mirrored = torch.logit(1 - u) - q.logits.double()  # 1 - u loses digits of the smallest u
    sure = (mirrored.abs() > 1e-5) & (u > 1e-6)
    assert torch.equal(z[1][sure], (mirrored < 0).double()[sure])
    below = u.unsqueeze(-1) - torch.softmax(c.logits.double(), -1).cumsum(-1)[..., :-1]
    sure = (below.abs() > 1e-6).all(-1)
    assert sure.double().mean() > 0.99
    assert torch.equal(c.sample(300, seed=9, offset=5)[sure], (below >= 0).sum(-1)[sure])


def test_the_second_of_a_pair_is_the_mirrored_draw() -> None:
    """z' is 1 where 1 - u would give 1; except for ties, the mirrored logit draws its negation."""
    q = bernoulli((500, 9), torch.float32)
    pairs = q.sample_antithetic(30, seed=2)
    assert torch.equal(pairs[0], q.sample(30, seed=2))
    assert torch.equal(pairs[1], 1 - lk.Bernoulli(-q.logits).sample(30, seed=2))


# --- statistics -----------------------------------------------------------------------------------

DRAWN = 1 << 17


def test_bernoulli_frequencies_and_antithetic_pairs() -> None:
    """Both of a pair have the right marginal, and E z z' = max(2 p - 1, 0), the least that the
    marginals allow.
    """
    logits = torch.tensor([-6.0, -2.0, -0.3, 0.0, 0.7, 3.0])
    p = torch.sigmoid(logits.double())
    z, twin = lk.Bernoulli(logits).sample_antithetic(DRAWN, seed=21).double()
    for x, expected in ((z, p), (twin, p), (z * twin, (2 * p - 1).clamp(min=0))):
        error = (x.mean(0) - expected) / (expected * (1 - expected) / DRAWN).sqrt().clamp(min=1e-12)
        assert error.abs().max() < 5
    covariance = (z * twin).mean(0) - z.mean(0) * twin.mean(0)
    assert bool((covariance < 0).all())
    half = (z * twin)[:, 3]  # p = 1/2: z' = 1 - z, for every u
    assert half.sum() == 0
    assert bool((z[:, 3] + twin[:, 3] == 1).all())


@pytest.mark.parametrize("classes", [1, 2, 5, 40])
def test_categorical_frequencies(classes: int) -> None:
    logits = 1.5 * torch.randn(3, classes)
    z = lk.Categorical(logits).sample(DRAWN, seed=22)
    for d in range(3):
        expected = torch.softmax(logits[d].double(), -1) * DRAWN
        found = torch.bincount(z[:, d], minlength=classes)
        assert len(found) == classes
        if classes > 1:
            assert stats.chisquare(found.numpy(), expected.numpy()).pvalue > 1e-6


def one_of_many() -> Tensor:
    """Return logits of 250,000 classes, the first of probability 0.99 and the others small."""
    logits = torch.zeros(250_000)
    logits[0] = math.log(99 * (len(logits) - 1))
    return logits


MANY_CLASSES = {
    "one of 250,000": one_of_many,
    "Zipf's million": lambda: -torch.arange(1, 10**6 + 1).double().log().float(),
    "2 to 1": lambda: torch.tensor([math.log(2.0), 0.0]).repeat_interleave(2**23),
}
many_classes = pytest.mark.parametrize(
    "name",
    ["one of 250,000", "Zipf's million", pytest.param("2 to 1", marks=pytest.mark.slow)],
)


@many_classes
def test_the_small_classes_of_very_many_are_drawn(name: str) -> None:
    """Small classes are drawn as often as they should be, counted by blocks of neighbours, and
    exactly by the rule.
    """
    logits = MANY_CLASSES[name]()
    block = -(-len(logits) // 1000)
    probabilities = torch.softmax(logits.double(), 0)
    expected = torch.zeros(1000).double()
    expected.index_add_(0, torch.arange(len(logits)) // block, probabilities)
    z = lk.Categorical(logits[None]).sample(400_000, seed=1)[:, 0]
    found = torch.bincount(z // block, minlength=1000)
    error = (found / len(z) - expected) / (expected * (1 - expected) / len(z)).sqrt()
    assert error.abs().max() < 5
    assert (error**2).mean() < 1.2
    table, _ = reference.cumulative(logits)
    word = noise.word(len(z), 1).astype(object)  # Python's integers: products of 94 bits
    thresholds = (word * int(table[-1]) >> 32).astype(np.uint64)
    assert np.array_equal(z.numpy(), np.searchsorted(table[:-1], thresholds, side="right"))


@many_classes
def test_every_class_has_its_probability(name: str) -> None:
    """Frequencies over all 2^32 words are within the bound of kernels/families/README.md."""
    logits = MANY_CLASSES[name]()
    table, proper = reference.cumulative(logits)
    assert proper
    total = int(table[-1])
    # The words below which a class up to k is drawn: the least w with floor(w total / 2^32) >= c_k.
    # ceil(2^32 c_k / total) in float64 is right to a word or so.
    words = np.minimum(np.ceil(table.astype(np.float64) * (2.0**32 / total)), 2.0**32)
    found = np.diff(words, prepend=0.0) / 2.0**32
    p = torch.softmax(logits.double(), 0).numpy()
    unit = unit_weight(len(logits))
    allowed = 2 * 2.0**-32 + (1 + len(p) * p) / unit + 2.0**-21 * p
    assert np.all(np.abs(found - p) < allowed)
    assert np.all(np.abs(np.cumsum(found) - np.cumsum(p)) < 2.0**-21)


@pytest.mark.parametrize("name", ["bernoulli", "categorical"])
def test_elements_are_independent(name: str) -> None:
    """Neighbours along S and along D are independent, and neighbouring seeds."""
    q = lk.Bernoulli(torch.zeros(8)) if name == "bernoulli" else lk.Categorical(torch.zeros(8, 2))
    z = q.sample(DRAWN // 4, seed=5).double() * 2 - 1
    other = q.sample(DRAWN // 4, seed=6).double() * 2 - 1
    for a, b in ((z[1:], z[:-1]), (z[:, 1:], z[:, :-1]), (z, other)):
        assert abs(float((a * b).mean())) * a.numel() ** 0.5 < 5


def test_certain_variables() -> None:
    z = lk.Bernoulli(torch.tensor([80.0, -80.0, INF, -INF, 23.0, -23.0])).sample_antithetic(
        DRAWN, seed=3
    )
    assert z.amin((0, 1)).tolist() == [1, 0, 1, 0, 1, 0]
    assert z.amax((0, 1)).tolist() == [1, 0, 1, 0, 1, 0]
    logits = torch.tensor(
        [[80.0, -80.0, 0.0], [-INF, 0.0, -INF], [-200.0, -INF, 3.0], [0.0, 0.0, -INF]]
    )
    z = lk.Categorical(logits).sample(DRAWN, seed=3)
    assert z.unique(dim=0).tolist() == [[0, 1, 2, 0], [0, 1, 2, 1]]


@pytest.mark.parametrize(
    ("seed", "place", "u"), [(4, 440253, 1 - 2.0**-24), (6, 27527655, 2.0**-33)]
)
def test_at_the_ends_of_the_stream(simd_build: str, seed: int, place: int, u: float) -> None:
    """At the least and greatest possible u, where 1 - u rounds to 1 and u c_K to below c_K, no
    impossible class is drawn.
    """
    assert lk.uniform(1, seed=seed, offset=place).item() == u
    low = u < 0.5
    logits = torch.tensor([-22.88, -22.86, 16.63, 16.64])
    pairs = torch.stack(
        [
            lk.Bernoulli(x.reshape(1)).sample_antithetic(1, seed=seed, offset=place).flatten()
            for x in logits
        ]
    )
    assert pairs[:, 0].tolist() == ([0, 1, 1, 1] if low else [0, 0, 0, 1])
    logits = torch.tensor([-16.64, -16.63, 22.86, 22.88])
    pairs = torch.stack(
        [
            lk.Bernoulli(x.reshape(1)).sample_antithetic(1, seed=seed, offset=place).flatten()
            for x in logits
        ]
    )
    assert pairs[:, 1].tolist() == ([0, 0, 0, 1] if low else [0, 1, 1, 1])
    for possible in (1, 2, 3, 5, 7, 11, 100, 1000):
        row = torch.full((1, possible + 2), -INF)
        row[0, 1 : possible + 1] = torch.linspace(0, 0.1, possible)
        k = lk.Categorical(row).sample(seed=seed, offset=place).item()
        assert k == (1 if low else possible)
