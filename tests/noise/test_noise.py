"""Noise stream v2: known answers, equal bits, frozen values, errors in ulp, statistics."""

from __future__ import annotations

import hashlib
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import latent_kernels as lk
from latent_kernels.kernels import _core
from latent_kernels.kernels.noise import reference
from tests.elementary import elementary

KINDS = {"normal": (lk.normal, reference.normal), "uniform": (lk.uniform, reference.uniform)}
END = 2**63


def bits(x: torch.Tensor | np.ndarray) -> np.ndarray:
    return np.asarray(x).view(np.int32)


# --- the generator --------------------------------------------------------------------------------

# Random123 1.14, tests/kat_vectors: philox4x32-10, counter, key, result
KNOWN_ANSWERS = [
    (
        "00000000 00000000 00000000 00000000",
        "00000000 00000000",
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
    ),
    (
        "ffffffff ffffffff ffffffff ffffffff",
        "ffffffff ffffffff",
        "408f276d 41c83b0e a20bc7c6 6d5451fd",
    ),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "result"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: str, key: str, result: str) -> None:
    words = [np.array([int(w, 16)], np.uint64) for w in counter.split()]
    k0, k1 = (int(w, 16) for w in key.split())
    assert [f"{w:08x}" for w in reference.philox_words(words, k0, k1)[0]] == result.split()


def test_uniforms_are_the_known_words(simd_build: str) -> None:
    """Uniforms of seed 0, counter 0 of substream 0 are the first known answer; the compiled code
    contains the same generator.
    """
    words = np.array([int(w, 16) for w in KNOWN_ANSWERS[0][2].split()], np.uint32)
    assert np.array_equal(reference.philox(0, np.zeros(1, np.uint64), 0)[0], words)
    even, odd = reference.box_muller(words[[0, 2]], words[[1, 3]])
    expected = np.stack([even, odd], 1).reshape(-1)
    assert np.array_equal(bits(lk.normal(4, seed=0)), bits(expected))


# --- the same bits everywhere ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("offset", [0, 1, 2, 3, 4 * 2**32 - 9, 12345678901, END - 4096])
def test_equals_reference(simd_build: str, kind: str, offset: int) -> None:
    ours, theirs = KINDS[kind]
    for seed in (0, 1, 2**32 - 1, 2**32, 987654321987, END - 1):
        got = ours(2049, seed=seed, offset=offset)
        assert np.array_equal(bits(got), bits(theirs(2049, seed, offset))), (seed, offset)


@given(
    seed=st.integers(0, END - 1),
    offset=st.integers(0, END - 5000),
    n=st.integers(0, 4200),
    cut=st.integers(0, 4200),
)
@settings(max_examples=60)
def test_split_calls_join(seed: int, offset: int, n: int, cut: int) -> None:
    """A call split by `offset` gives the bits of the whole call, for any split and any build."""
    cut = min(cut, n)
    for kind, (ours, theirs) in KINDS.items():
        whole = bits(theirs(n, seed, offset))
        for build in _core.simd_builds():
            _core.select_simd_build(build)
            parts = [
                ours(cut, seed=seed, offset=offset),
                ours(n - cut, seed=seed, offset=offset + cut),
            ]
            assert np.array_equal(bits(torch.cat(parts)), whole), (kind, build)


@pytest.mark.parametrize("n", [1 << 14, (1 << 17) + 3, 1_000_003])
def test_thread_count_does_not_matter(n: int) -> None:
    torch.set_num_threads(1)
    one = lk.normal(n, seed=5, offset=7)
    for threads in (2, 3, 7):
        torch.set_num_threads(threads)
        assert torch.equal(lk.normal(n, seed=5, offset=7), one)


def test_shape_is_row_major() -> None:
    flat = lk.normal(60, seed=8, offset=11)
    assert torch.equal(lk.normal((3, 4, 5), seed=8, offset=11), flat.reshape(3, 4, 5))
    assert lk.normal((0, 4), seed=1).shape == (0, 4)
    assert lk.normal((), seed=8, offset=11).item() == flat[0].item()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("kind", KINDS)
def test_other_dtypes_are_the_float32_values(
    simd_build: str, kind: str, dtype: torch.dtype
) -> None:
    ours, _ = KINDS[kind]
    for n in (1, 63, 1000):
        expected = ours(n, seed=4, offset=5).to(dtype)
        assert torch.equal(ours(n, seed=4, offset=5, dtype=dtype), expected)


def test_seeds() -> None:
    torch.manual_seed(3)
    first = lk.normal(8, seed=None)
    torch.manual_seed(3)
    assert torch.equal(lk.normal(8, seed=None), first)
    assert not torch.equal(lk.normal(8, seed=None), first)
    assert torch.equal(lk.normal(8, seed=torch.tensor(42)), lk.normal(8, seed=42))


# --- frozen: a change here is stream v3 -----------------------------------------------------------

GOLDEN = {
    "normal": [
        0x3EF0DABE,
        0x3F8B49C5,
        0x3F9A8246,
        0xBDB23798,
        0xBF28FD1B,
        0x3E929C68,
        0x4035FC12,
        0x3CBEBADF,
    ],
    "uniform": [
        0x3F5A1CAB,
        0x3EA617A8,
        0x3F3365AA,
        0x3F6BE74F,
        0x3F2DBAA7,
        0x3F67CAE1,
        0x3EDAE482,
        0x3F1A6685,
    ],
}
DIGESTS: dict[tuple[str, int, int], str] = {
    ("normal", 0, 0): "9b8772a79068286afb95ad863e1c68652db782ba52a18553257c96ea5147d043",
    (
        "normal",
        9223372036854775807,
        3,
    ): "a96c66b6bc2e07c32dfd6414c35b460c978ff03e50fb23769d786ad7a2c80220",
    (
        "normal",
        123456789,
        17179868184,
    ): "db1ac41f32fccbbe41e402ab5583787085f17b7662853046c00768c087ea1e28",
    ("uniform", 0, 0): "82c06edf17b244f28500e568d6d6dc6981528e71ab2a78b95ee7cee931c4f309",
    (
        "uniform",
        9223372036854775807,
        3,
    ): "ef23ebaa917d7a118d4d037a3bf3f3b0429e03ba3dba4ac2467b8f65e1245f4c",
    (
        "uniform",
        123456789,
        17179868184,
    ): "932931ba93a2efe026d132f4e7ae0b6363ac2633c15ad2ae2bdf96177f27c836",
}
SOBOL = [  # [4, 3]
    0x3E77B532, 0x3FF4A52B, 0x3F69E731, 0xBF946206, 0xBF070753, 0xBFD86764,
    0xBF2804AA, 0x3EA0251C, 0x3DC87115, 0x3F41C3BB, 0xBF7557ED, 0xBEE629DC,
]  # fmt: skip


def test_golden_points(simd_build: str) -> None:
    z = lk.rsample(torch.zeros(3), 0.0, 4, seed=20131220, offset=6, qmc=True)
    assert [int(b) for b in bits(z).flatten().view(np.uint32)] == SOBOL


def test_golden_values(simd_build: str) -> None:
    for kind, (ours, _) in KINDS.items():
        assert [
            int(b) for b in bits(ours(len(GOLDEN[kind]), seed=20131220)).view(np.uint32)
        ] == GOLDEN[kind], kind


@pytest.mark.parametrize(("kind", "seed", "offset"), DIGESTS)
def test_golden_digests(simd_build: str, kind: str, seed: int, offset: int) -> None:
    x = KINDS[kind][0](1 << 16, seed=seed, offset=offset)
    assert (
        hashlib.sha256(x.numpy().astype("<f4").tobytes()).hexdigest() == DIGESTS[kind, seed, offset]
    )


# (radius word, angle word) -> bits of the even and the odd normal
EDGES: dict[tuple[int, int], tuple[int, int]] = {
    (0x00000000, 0x00000000): (0x40D87047, 0x00000000),
    (0x00000000, 0x00000001): (0x40D87047, 0x3229FD8F),
    (0x00000000, 0x20000000): (0x40990B91, 0x40990B91),
    (0x00000000, 0x40000000): (0x80000000, 0x40D87047),
    (0x00000000, 0x60000000): (0xC0990B91, 0x40990B91),
    (0x00000000, 0x7FFFFFFF): (0xC0D87047, 0x80000000),
    (0x00000000, 0x80000000): (0xC0D87047, 0x80000000),
    (0x00000000, 0xC0000000): (0x00000000, 0xC0D87047),
    (0x00000000, 0xE0000000): (0x40990B91, 0xC0990B91),
    (0x00000000, 0xFFFFFFFF): (0x40D87047, 0xB229FD8F),
    (0x00000001, 0x00000000): (0x40D32D4C, 0x00000000),
    (0x00000001, 0x00000001): (0x40D32D4C, 0x3225DBA5),
    (0x00000001, 0x20000000): (0x4095531C, 0x4095531C),
    (0x00000001, 0x40000000): (0x80000000, 0x40D32D4C),
    (0x00000001, 0x60000000): (0xC095531C, 0x4095531C),
    (0x00000001, 0x7FFFFFFF): (0xC0D32D4C, 0x80000000),
    (0x00000001, 0x80000000): (0xC0D32D4C, 0x80000000),
    (0x00000001, 0xC0000000): (0x00000000, 0xC0D32D4C),
    (0x00000001, 0xE0000000): (0x4095531C, 0xC095531C),
    (0x00000001, 0xFFFFFFFF): (0x40D32D4C, 0xB225DBA5),
    (0xFFFFFFFF, 0x00000000): (0x80000000, 0x80000000),
    (0xFFFFFFFF, 0x00000001): (0x80000000, 0x80000000),
    (0xFFFFFFFF, 0x20000000): (0x80000000, 0x80000000),
    (0xFFFFFFFF, 0x40000000): (0x00000000, 0x80000000),
    (0xFFFFFFFF, 0x60000000): (0x00000000, 0x80000000),
    (0xFFFFFFFF, 0x7FFFFFFF): (0x00000000, 0x00000000),
    (0xFFFFFFFF, 0x80000000): (0x00000000, 0x00000000),
    (0xFFFFFFFF, 0xC0000000): (0x80000000, 0x00000000),
    (0xFFFFFFFF, 0xE0000000): (0x80000000, 0x00000000),
    (0xFFFFFFFF, 0xFFFFFFFF): (0x80000000, 0x00000000),
    (0xFFFFFF80, 0x00000000): (0x80000000, 0x80000000),
    (0xFFFFFF80, 0x00000001): (0x80000000, 0x80000000),
    (0xFFFFFF80, 0x20000000): (0x80000000, 0x80000000),
    (0xFFFFFF80, 0x40000000): (0x00000000, 0x80000000),
    (0xFFFFFF80, 0x60000000): (0x00000000, 0x80000000),
    (0xFFFFFF80, 0x7FFFFFFF): (0x00000000, 0x00000000),
    (0xFFFFFF80, 0x80000000): (0x00000000, 0x00000000),
    (0xFFFFFF80, 0xC0000000): (0x80000000, 0x00000000),
    (0xFFFFFF80, 0xE0000000): (0x80000000, 0x00000000),
    (0xFFFFFF80, 0xFFFFFFFF): (0x80000000, 0x00000000),
    (0xFFFFFF7F, 0x00000000): (0x39B504F3, 0x00000000),
    (0xFFFFFF7F, 0x00000001): (0x39B504F3, 0x2B0E2C19),
    (0xFFFFFF7F, 0x20000000): (0x397FFFFF, 0x397FFFFF),
    (0xFFFFFF7F, 0x40000000): (0x80000000, 0x39B504F3),
    (0xFFFFFF7F, 0x60000000): (0xB97FFFFF, 0x397FFFFF),
    (0xFFFFFF7F, 0x7FFFFFFF): (0xB9B504F3, 0x80000000),
    (0xFFFFFF7F, 0x80000000): (0xB9B504F3, 0x80000000),
    (0xFFFFFF7F, 0xC0000000): (0x00000000, 0xB9B504F3),
    (0xFFFFFF7F, 0xE0000000): (0x397FFFFF, 0xB97FFFFF),
    (0xFFFFFF7F, 0xFFFFFFFF): (0x39B504F3, 0xAB0E2C19),
    (0x80000000, 0x00000000): (0x3F96B55F, 0x00000000),
    (0x80000000, 0x00000001): (0x3F96B55F, 0x30ECBB7A),
    (0x80000000, 0x20000000): (0x3F55224C, 0x3F55224C),
    (0x80000000, 0x40000000): (0x80000000, 0x3F96B55F),
    (0x80000000, 0x60000000): (0xBF55224C, 0x3F55224C),
    (0x80000000, 0x7FFFFFFF): (0xBF96B55F, 0x80000000),
    (0x80000000, 0x80000000): (0xBF96B55F, 0x80000000),
    (0x80000000, 0xC0000000): (0x00000000, 0xBF96B55F),
    (0x80000000, 0xE0000000): (0x3F55224C, 0xBF55224C),
    (0x80000000, 0xFFFFFFFF): (0x3F96B55F, 0xB0ECBB7A),
    (0x5A827999, 0x00000000): (0x3FB89456, 0x00000000),
    (0x5A827999, 0x00000001): (0x3FB89456, 0x3110F7E6),
    (0x5A827999, 0x20000000): (0x3F828472, 0x3F828472),
    (0x5A827999, 0x40000000): (0x80000000, 0x3FB89456),
    (0x5A827999, 0x60000000): (0xBF828472, 0x3F828472),
    (0x5A827999, 0x7FFFFFFF): (0xBFB89456, 0x80000000),
    (0x5A827999, 0x80000000): (0xBFB89456, 0x80000000),
    (0x5A827999, 0xC0000000): (0x00000000, 0xBFB89456),
    (0x5A827999, 0xE0000000): (0x3F828472, 0xBF828472),
    (0x5A827999, 0xFFFFFFFF): (0x3FB89456, 0xB110F7E6),
}


@pytest.mark.parametrize(("radius", "angle"), EDGES)
def test_edge_words(radius: int, angle: int) -> None:
    even, odd = reference.box_muller(np.array([radius], np.uint32), np.array([angle], np.uint32))
    assert (int(bits(even).view(np.uint32)[0]), int(bits(odd).view(np.uint32)[0])) == EDGES[
        radius, angle
    ]


# --- fused multiply-add ---------------------------------------------------------------------------


def rounded_to_float32(exact: Fraction) -> np.float32:
    """Return the float32 nearest to a number; of two equally near ones, that with an even last
    bit.
    """
    near = np.float32(float(exact))
    around = [np.nextafter(near, np.float32(s)) for s in (-np.inf, np.inf)]
    return min((near, *around), key=lambda x: (abs(Fraction(float(x)) - exact), bits(x).item() & 1))


def test_fma_of_the_reference_rounds_once() -> None:
    """fma rounds once: on random operands, on sums that cancel, and on sums next to the middle of
    two numbers.
    """
    rng = np.random.default_rng(5)
    a, b, c = (rng.standard_normal(2000).astype(np.float32) for _ in range(3))
    c[:500] = -(a[:500] * b[:500])
    scale = np.float32(2.0) ** rng.integers(-40, 40, 500).astype(np.float32)
    c[500:1000] *= scale
    # (1 + 2^-k)(1 + 2^-(24 - k)) = 1 + ... + 2^-24 + ...: half a unit, and a little more or less.
    k = np.arange(2, 22)
    ties = np.ldexp(np.float32(1), -k) + np.float32(1), np.ldexp(np.float32(1), k - 24) + 1
    for tiny in (0.0, 2.0**-70, -(2.0**-70), 2.0**-149, -(2.0**-149)):
        a = np.append(a, ties[0].astype(np.float32))
        b = np.append(b, ties[1].astype(np.float32))
        c = np.append(c, np.full(k.size, tiny, np.float32))
    got = reference.fma(a, b, c)
    exact = [
        Fraction(x) * Fraction(y) + Fraction(z)
        for x, y, z in zip(a.tolist(), b.tolist(), c.tolist(), strict=True)
    ]
    expected = np.array([rounded_to_float32(value) for value in exact])
    assert np.array_equal(got, expected)
    unfused = a * b + c
    assert np.count_nonzero(unfused != expected) > 100, "the cases tell fused from unfused"


def test_fma_of_the_reference_beyond_numbers() -> None:
    big, inf, nan = np.float32(3e38), np.float32(np.inf), np.float32(np.nan)
    assert reference.fma(big, big, big) == inf
    assert reference.fma(-big, np.float32(2), big) == -big
    assert np.isnan(reference.fma(inf, np.float32(0), big))
    assert np.isnan(reference.fma(nan, big, big))
    assert np.isnan(reference.fma(big, big, nan))
    assert bits(reference.fma(np.float32(-1), np.float32(0), np.float32(-0.0))).item() < 0


# --- elementary functions -------------------------------------------------------------------------


def edge_unit() -> np.ndarray:
    """Return u at both ends of (0, 1], around powers of two and the reduction's edge, and at
    random.
    """
    rng = np.random.default_rng(0)
    near_one = np.float32(1) - np.arange(0, 3000, dtype=np.float32) * np.float32(2**-24)
    powers = np.float32(2.0) ** -np.arange(33, dtype=np.float32)
    around = np.concatenate(
        [powers * (np.float32(1) + k * np.float32(2**-22)) for k in range(-3, 4)]
    )
    root = np.float32(np.sqrt(0.5)) * powers
    spread = (10 ** rng.uniform(-9.9, 0, 8000)).astype(np.float32)
    u = np.concatenate([near_one, around, root, np.nextafter(root, np.float32(0)), spread]).astype(
        np.float32
    )
    return u[(u >= 2**-33) & (u <= 1)]


def edge_angle() -> np.ndarray:
    """Return t around every multiple of 1/4 in [-1, 1], and at random."""
    rng = np.random.default_rng(1)
    quarters = np.arange(-4, 5, dtype=np.float32) / np.float32(4)
    near = np.concatenate(
        [quarters + s * np.float32(2.0**-k) for k in range(2, 31) for s in (-1, 1)]
    )
    words = rng.integers(0, 2**32, 8000, dtype=np.uint32).view(np.int32).astype(
        np.float32
    ) * np.float32(2**-31)
    t = np.concatenate([quarters, near, words]).astype(np.float32)
    return t[np.abs(t) <= 1]


def worst_ulp(x: np.ndarray, y: np.ndarray, exact: object) -> float:
    with mpmath.workdps(40):
        worst = 0.0
        for a, b in zip(x, y, strict=True):
            truth = exact(mpmath.mpf(float(a)))  # type: ignore[operator]
            unit = mpmath.mpf(float(np.spacing(np.float32(abs(float(truth))))))
            worst = max(worst, float(abs(mpmath.mpf(float(b)) - truth) / unit))
    return worst


def test_elementary_functions_equal_the_reference(simd_build: str) -> None:
    u, t = edge_unit(), edge_angle()
    assert np.array_equal(bits(elementary("ln", u)), bits(reference.ln(u)))
    sine, cosine = reference.sin_cos_pi(t)
    assert np.array_equal(bits(elementary("sin_pi", t)), bits(sine))
    assert np.array_equal(bits(elementary("cos_pi", t)), bits(cosine))


def test_elementary_functions_in_ulp() -> None:
    """Errors are within the bounds that kernels/noise/README.md states."""
    u, t = edge_unit(), edge_angle()
    assert worst_ulp(u[u < 1], reference.ln(u[u < 1]), mpmath.log) < 0.9
    assert np.all(bits(reference.ln(np.ones(3, np.float32))) == 0), "ln(1) is exactly +0"
    sine, cosine = reference.sin_cos_pi(t)
    whole = np.abs(t) == 1  # sin(pi) is 0: there the error is absolute
    assert np.all(np.abs(sine[whole]) == 0)
    half = np.abs(t) == 0.5
    assert np.all(np.abs(cosine[half]) == 0)
    inside = ~whole & (t != 0)
    assert worst_ulp(t[inside], sine[inside], mpmath.sinpi) < 1.4
    assert worst_ulp(t[~half], cosine[~half], mpmath.cospi) < 1.4


def test_range() -> None:
    largest = reference.box_muller(np.zeros(1, np.uint32), np.zeros(1, np.uint32))[0][0]
    assert largest == pytest.approx(np.sqrt(2 * 33 * np.log(2)), rel=1e-6)  # 6.7637
    u = lk.uniform(1 << 20, seed=1)
    assert u.min() > 0
    assert u.max() < 1
    words = np.array([0, 2**32 - 1], np.uint32)
    low, high = np.minimum(reference.to_unit(words), np.float32(1 - 2.0**-24))
    assert low == 2.0**-33
    assert high == 1 - 2.0**-24


# --- statistics -----------------------------------------------------------------------------------


def moments_are_normal(x: np.ndarray, sigmas: float) -> dict[str, float]:
    """Check the first four moments against those of N(0, 1) by their z-scores."""
    n = x.size
    powers = [np.mean(x**k, dtype=np.float64) for k in (1, 2, 3, 4)]
    deviations = [1.0, 2.0, 15.0, 96.0]  # variances of x, x^2, x^3, x^4
    z = {
        f"E x^{k}": (p - m) * np.sqrt(n / v)
        for k, p, m, v in zip((1, 2, 3, 4), powers, (0, 1, 0, 3), deviations, strict=True)
    }
    assert max(abs(v) for v in z.values()) < sigmas, z
    return {k: float(v) for k, v in z.items()}


def tails_are_normal(
    x: np.ndarray, thresholds: tuple[float, ...], sigmas: float
) -> dict[float, float]:
    """Check how many |x| exceed each threshold by z-scores."""
    scores = {}
    for threshold in thresholds:
        p = 2 * stats.norm.sf(threshold)
        count = int(np.count_nonzero(np.abs(x) > threshold))
        scores[threshold] = (count - x.size * p) / np.sqrt(x.size * p * (1 - p))
    assert max(abs(v) for v in scores.values()) < sigmas, scores
    return scores


def test_moments_tails_and_shape() -> None:
    x = lk.normal(1 << 20, seed=11).numpy().astype(np.float64)
    moments_are_normal(x, 4)
    tails_are_normal(x, (1, 2, 3, 4), 4)
    assert stats.kstest(x, "norm").pvalue > 1e-3
    assert (
        stats.kstest(lk.uniform(1 << 20, seed=11).numpy().astype(np.float64), "uniform").pvalue
        > 1e-3
    )


def correlation_score(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a * b).mean() / (a.std() * b.std()) * len(a) ** 0.5)


def test_neighbours_are_uncorrelated() -> None:
    """Neighbouring seeds, offsets and lanes are uncorrelated, and their squares, since Box-Muller's
    pair shares a radius.
    """
    n = 1 << 19
    x = lk.normal(n, seed=100)
    others = {"seed": lk.normal(n, seed=101), "seed high word": lk.normal(n, seed=100 + 2**32)}
    others |= {f"offset {k}": lk.normal(n, seed=100, offset=k) for k in (1, 2, 3, 4, 5, 64)}
    for name, other in others.items():
        assert abs(correlation_score(x, other)) < 4.5, name
        assert abs(correlation_score(x**2 - 1, other**2 - 1)) < 4.5, name
    lanes = x.reshape(-1, 4)
    for i in range(4):
        for j in range(i):
            assert abs(correlation_score(lanes[:, i], lanes[:, j])) < 4.5, (i, j)
            assert abs(correlation_score(lanes[:, i] ** 2 - 1, lanes[:, j] ** 2 - 1)) < 4.5, (i, j)


@pytest.mark.slow
def test_statistics_of_2_to_the_28(capsys: pytest.CaptureFixture[str]) -> None:
    """2^28 draws in 64 pieces have the statistics of normal noise; kernels/noise/README.md has the
    figures.
    """
    pieces, size = 64, 1 << 22
    thresholds = (1.0, 2.0, 3.0, 4.0, 4.5, 5.0)
    sums, counts = np.zeros(4), np.zeros(len(thresholds))
    edges = stats.norm.ppf(np.arange(1, 4096) / 4096)
    histogram = np.zeros(4096)
    largest = 0.0
    for i in range(pieces):
        x = lk.normal(size, seed=2026, offset=i * size).numpy().astype(np.float64)
        sums += [np.sum(x**k) for k in (1, 2, 3, 4)]
        counts += [np.count_nonzero(np.abs(x) > t) for t in thresholds]
        histogram += np.bincount(np.searchsorted(edges, x), minlength=4096)
        largest = max(largest, float(np.abs(x).max()))
    n = pieces * size
    z = (sums / n - [0, 1, 0, 3]) * np.sqrt(n / np.array([1.0, 2.0, 15.0, 96.0]))
    p = 2 * stats.norm.sf(thresholds)
    tail = (counts - n * p) / np.sqrt(n * p * (1 - p))
    # Kolmogorov-Smirnov on the 4096 bins' edges, a lower bound of the statistic and near it at this
    # resolution
    distance = float(np.abs(np.cumsum(histogram) / n - np.arange(1, 4097) / 4096).max())
    ks = stats.kstwobign.sf(distance * np.sqrt(n))
    chi2 = stats.chi2.sf(np.sum((histogram - n / 4096) ** 2) / (n / 4096), 4095)
    with capsys.disabled():
        print(f"\nmoments z {np.round(z, 2)}, tails beyond {thresholds} z {np.round(tail, 2)}")
        print(
            f"Kolmogorov-Smirnov p {ks:.3f}, chi-square (4096 bins) p {chi2:.3f}, "
            f"largest |x| {largest:.4f}"
        )
    assert np.abs(z).max() < 4.5
    assert np.abs(tail).max() < 4.5
    assert ks > 1e-4
    assert chi2 > 1e-4
