"""Noise stream v2 in NumPy: the readable form, step for step what the compiled kernels do.

Every float32 operation here is one IEEE operation, rounded once, in this order; `fma` is one, too.
See README.md for the contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from latent_kernels.kernels.noise import sobol

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

NORMALS, UNIFORMS, SCRAMBLES = 0, 1, 2  # substreams

f32 = np.float32
LN_P = [
    -0.5,
    0.33333316445350647,
    -0.25000810623168945,
    0.2000228613615036,
    -0.16624553501605988,
    0.14181192219257355,
    -0.13128754496574402,
    0.12881647050380707,
    -0.07859611511230469,
]
LN2 = f32(0.6931471824645996)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
PI_HIGH, PI_LOW = f32(3.1415927410125732), -8.742277657347586e-08
SIN_S = [PI_LOW, -5.167708873748779, 2.5497946739196777, -0.5892776846885681]
QUANTILE_CENTER = [
    2.338620901107788,
    0.3396347463130951,
    -0.008533752523362637,
    -0.0010472283465787768,
    0.00026481517124921083,
    -1.974185579456389e-05,
    -2.1541602563956985e-06,
    6.160152565826138e-07,
    -1.2343207345111296e-08,
    -7.155822601134787e-09,
]
QUANTILE_TAIL = [
    4.7170891761779785,
    1.4246336221694946,
    0.004638552665710449,
    -0.002905744593590498,
    0.0015194336883723736,
    -0.0009969838429242373,
    0.0006720743840560317,
    -0.0002888193994294852,
    4.875424565398134e-05,
]
COS_C = [1.0, -4.93479061126709, 4.057638168334961, -1.3065298795700073]


def philox(seed: int, counters: npt.NDArray[np.uint64], substream: int) -> Words:
    """Return Philox4x32-10 of counters (low, high, substream, 0) under key (low, high) of the seed:
    words [n, 4].

    Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC'11.
    """
    low = np.uint64(0xFFFFFFFF)
    c = [
        counters & low,
        counters >> np.uint64(32),
        np.full_like(counters, substream),
        np.zeros_like(counters),
    ]
    return philox_words(c, seed & 0xFFFFFFFF, seed >> 32)


def philox_words(c: list[npt.NDArray[np.uint64]], k0: int, k1: int) -> Words:
    """Return the result of ten rounds over four counter words, each held in a uint64 below 2^32."""
    low, shift = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p0, p2 = c[0] * np.uint64(0xD2511F53), c[2] * np.uint64(0xCD9E8D57)
        c = [
            (p2 >> shift) ^ c[1] ^ np.uint64(k0),
            p2 & low,
            (p0 >> shift) ^ c[3] ^ np.uint64(k1),
            p0 & low,
        ]
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return np.stack(c, axis=-1).astype(np.uint32)


def fma(a: npt.ArrayLike, b: npt.ArrayLike, c: npt.ArrayLike) -> Floats:
    """Return a b + c of float32, rounded once.

    In float64 the product is exact, and the sum keeps 53 of its bits. They are rounded to odd:
    where the sum is not exact its last bit is made 1, so that the rounding to float32 that follows
    sees on which side of a tie the exact value lies (Boldo and Melquiond 2008).
    """
    addend = np.asarray(c, np.float64)
    with np.errstate(over="ignore", invalid="ignore"):
        product = np.asarray(a, np.float64) * np.asarray(b, np.float64)
        total = np.asarray(product + addend)
        back = total - product
        lost = (product - (total - back)) + (addend - back)  # total + lost is exact (TwoSum)
        bits = total.view(np.int64)
        even = np.isfinite(total) & (lost != 0) & (bits & 1 == 0)
        bits += np.where(even, np.where((lost > 0) == (total > 0), 1, -1), 0)
        rounded: Floats = total.astype(f32)
    return rounded


def horner(coefficients: list[float], x: Floats) -> Floats:
    """Return c[0] + x (c[1] + x (c[2] + ...)), by fma."""
    p = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        p = fma(p, x, f32(c))
    return p


def ln(u: Floats) -> Floats:
    """Return the natural logarithm of normal u > 0, |error| < 0.9 ulp, 0 at 1."""
    return ln_of_parts(*parts(u))


def parts(u: Floats) -> tuple[Floats, Floats]:
    """Return k and f of u = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2))."""
    bits = u.view(np.int32) - SQRT_HALF_BITS
    k = (bits >> 23).astype(f32)
    return k, ((bits & np.int32(0x7FFFFF)) + SQRT_HALF_BITS).view(f32) - f32(1)


def ln_of_parts(k: Floats, f: Floats) -> Floats:
    """Return k ln 2 + ln(1 + f), ln(1 + f) = f + f^2 P(f)."""
    return fma(k, LN2, fma(horner(LN_P, f), f * f, f))


def sin_cos_pi(t: Floats) -> tuple[Floats, Floats]:
    """Return sin(pi t), cos(pi t), |t| <= 1: t = q/2 + r exactly, q = floor(2t + 1/2)."""
    q = np.floor(fma(t, f32(2), f32(0.5)))
    r = fma(q, f32(-0.5), t)
    y = r * r
    s = fma(r, PI_HIGH, horner(SIN_S, y) * r)
    c = horner(COS_C, y)
    quadrant = q.astype(np.int32)
    swap = (quadrant & 1) != 0
    sine, cosine = np.where(swap, c, s), np.where(swap, s, c)
    sine = np.where((quadrant & 2) != 0, -sine, sine)
    return sine, np.where(((quadrant + 1) & 2) != 0, -cosine, cosine)


def to_unit(words: Words) -> Floats:
    """Return a word as a float in (0, 1]: float32(w) 2^-32 + 2^-33."""
    return fma(words.astype(f32), f32(2.0**-32), f32(2.0**-33))


def box_muller(radius_words: Words, angle_words: Words) -> tuple[Floats, Floats]:
    """Return two normals: radius sqrt(-2 ln u) from the first word, angle pi t from the second as a
    signed number.
    """
    radius = np.sqrt(ln(to_unit(radius_words)) * f32(-2))
    sine, cosine = sin_cos_pi(angle_words.view(np.int32).astype(f32) * f32(2.0**-31))
    return radius * cosine, radius * sine


def _words(count: int, seed: int, offset: int, substream: int) -> Words:
    first, last = offset // 4, (offset + count + 3) // 4
    return philox(seed, np.arange(first, last, dtype=np.uint64), substream)


def normal(count: int, seed: int, offset: int = 0) -> Floats:
    """Return elements offset, ..., offset + count - 1 of the seed's standard normals."""
    w = _words(count, seed, offset, NORMALS)
    x = np.empty(w.shape, f32)
    for lane in (0, 2):
        x[:, lane], x[:, lane + 1] = box_muller(w[:, lane].copy(), w[:, lane + 1].copy())
    return x.reshape(-1)[offset % 4 :][:count]


def word(count: int, seed: int, offset: int = 0) -> Words:
    """Return the words of the uniforms offset, ..., offset + count - 1 of the seed."""
    return _words(count, seed, offset, UNIFORMS).reshape(-1)[offset % 4 :][:count]


def uniform(count: int, seed: int, offset: int = 0) -> Floats:
    """Return elements offset, ..., offset + count - 1 of the seed's uniforms on (0, 1)."""
    u: Floats = np.minimum(to_unit(word(count, seed, offset)), f32(1 - 2.0**-24))
    return u


def normal_quantile(words: Words) -> Floats:
    """Return the normal quantiles of (w + 1/2) 2^-32, |error| < 4.5 ulp.

    With h twice the smaller of the two tail probabilities and c = 1 - h, the quantile is c times a
    function of -ln(1 - c^2) = -ln(h (2 - h)) (Giles, "Approximating the erfinv function", 2010),
    here a polynomial of that or of its root. The upper half of the words is positive.
    """
    signed = words.view(np.int32)
    magnitude = signed ^ (signed >> 31)
    h, c = (
        fma(m.astype(f32), f32(2.0**-31), f32(2.0**-32))
        for m in (magnitude, np.int32(0x7FFFFFFF) - magnitude)
    )
    w = ln(h * (f32(2) - h)) * f32(-1)
    near, far = (
        horner(QUANTILE_CENTER, w - f32(3.125)),
        horner(QUANTILE_TAIL, np.sqrt(w) - f32(3.5)),
    )
    size: Floats = c * np.where(w < f32(6.25), near, far)
    x: Floats = (size.view(np.uint32) ^ (~words & np.uint32(2**31))).view(f32)
    return x


def sobol_words(points: int, rows: int, cols: int, seed: int, offset: int) -> Words:
    """Return scrambled Sobol' points, words [points, rows, cols].

    Column k of an element's scramble has bit 31 - k set and the stream's bits below it; the points
    are also shifted by a word (Matousek 1998; Owen 2003). Neighbours differ by one direction.
    """
    bits = sobol.bits_of(points)
    v = sobol.directions(cols, torch.device("cpu")).numpy().view(np.uint32)[:bits]
    count = (bits + 1) * rows * cols
    shift, *below = (
        _words(count, seed, offset, SCRAMBLES)
        .reshape(-1)[offset % 4 :][:count]
        .reshape(bits + 1, rows, cols)
    )
    points_ = np.repeat(shift[None], points, axis=0)
    direction = np.zeros((bits, rows, cols), np.uint32)
    for k in range(bits):
        column = np.uint32(2**31 >> k) | (below[k] >> np.uint32(k + 1))
        direction ^= column * ((v >> np.uint32(31 - k)) & np.uint32(1))[:, None]
    for s in range(points):
        for k in range(bits):
            if (s ^ s >> 1) >> k & 1:
                points_[s] ^= direction[k]
    return points_


def _seeds(seed: int | torch.Tensor, groups: int) -> list[int]:
    if isinstance(seed, int):
        return [seed] * groups
    # not tolist, which torch.func of torch before 2.9 refuses
    return [int(x) for x in seed.reshape(-1).expand(groups)]


def sobol_of_groups(
    sizes: tuple[int, int, int, int], seed: int | torch.Tensor, offset: int
) -> Floats:
    """Return the noise [groups, samples, rows, cols] that is Sobol' points for each row."""
    groups, points, rows, cols = sizes
    noise = np.empty(sizes, f32)
    for group, s in enumerate(_seeds(seed, groups)):
        noise[group] = normal_quantile(sobol_words(points, rows, cols, s, offset))
    return noise


def of_groups(
    kind: str, sizes: tuple[int, int, int, int], seed: int | torch.Tensor, offset: int
) -> npt.NDArray[Any]:
    """Return the noise of a problem [groups, samples, rows, cols]: "normal", "uniform", or the
    "word" of a uniform. `seed` is one, or one a group.
    """
    groups, count = sizes[0], sizes[1] * sizes[2] * sizes[3]
    make: Any = {"normal": normal, "uniform": uniform, "word": word}[kind]
    noise = np.empty((groups, count), np.uint32 if kind == "word" else f32)
    for group, s in enumerate(_seeds(seed, groups)):
        noise[group] = make(count, s, offset)
    return noise.reshape(sizes)
