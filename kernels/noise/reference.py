"""Noise stream v1 in NumPy: the readable form, step for step what the compiled kernels do.

Every float32 operation here is one IEEE operation, rounded once, in this order. See README.md for
the contract.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Words = npt.NDArray[np.uint32]
Floats = npt.NDArray[np.float32]

NORMALS, UNIFORMS = 0, 1  # substreams

f32 = np.float32
LN_P = [
    0.33333316445350647,
    -0.25000810623168945,
    0.2000228613615036,
    -0.16624553501605988,
    0.14181192219257355,
    -0.13128754496574402,
    0.12881647050380707,
    -0.07859611511230469,
]
LN2_HIGH, LN2_LOW = f32(0.693359375), f32(-2.12194440e-4)
SQRT_HALF_BITS = np.int32(0x3F3504F3)
SIN_S = [-5.1677093505859375, 2.5498106479644775, -0.5894796848297119]
COS_C = [-4.934802055358887, 4.0587077140808105, -1.3350584506988525, 0.2314295470714569]
PI_HIGH, PI_LOW = f32(3.1415927410125732), f32(-8.742277657347586e-08)


def philox(seed: int, counters: npt.NDArray[np.uint64], substream: int) -> Words:
    """Philox4x32-10 of counters (low, high, substream, 0) under key (low, high) of the seed: words
    [n, 4].

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
    """Ten rounds over four counter words, each held in a uint64 below 2^32."""
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


def horner(coefficients: list[float], x: Floats) -> Floats:
    """c[0] + x (c[1] + x (c[2] + ...)), every product and sum rounded."""
    p = np.full_like(x, coefficients[-1])
    for c in coefficients[-2::-1]:
        p = p * x + f32(c)
    return p


def ln(u: Floats) -> Floats:
    """Natural logarithm of normal u > 0, |error| < 0.9 ulp, 0 at 1.

    u = 2^k (1 + f) with 1 + f in [sqrt(1/2), sqrt(2)); ln(1 + f) = f - f^2/2 + f^3 P(f).
    """
    bits = u.view(np.int32) - SQRT_HALF_BITS
    k = (bits >> 23).astype(f32)
    f = ((bits & np.int32(0x7FFFFF)) + SQRT_HALF_BITS).view(f32) - f32(1)
    s = f * f
    y = horner(LN_P, f) * f * s
    y = y + k * LN2_LOW
    y = y - s * f32(0.5)
    y = y + f
    result: Floats = y + k * LN2_HIGH
    return result


def sin_cos_pi(t: Floats) -> tuple[Floats, Floats]:
    """Return sin(pi t), cos(pi t), |t| <= 1: t = q/2 + r exactly, q = floor(2t + 1/2)."""
    q = np.floor(t * f32(2) + f32(0.5))
    r = t - q * f32(0.5)
    y = r * r
    s = (horner(SIN_S, y) * y + PI_LOW) * r + r * PI_HIGH
    c = horner(COS_C, y) * y + f32(1)
    quadrant = q.astype(np.int32)
    swap = (quadrant & 1) != 0
    sine, cosine = np.where(swap, c, s), np.where(swap, s, c)
    sine = np.where((quadrant & 2) != 0, -sine, sine)
    return sine, np.where(((quadrant + 1) & 2) != 0, -cosine, cosine)


def to_unit(words: Words) -> Floats:
    """A word as a float in (0, 1]: float32(w) 2^-32 + 2^-33."""
    u: Floats = words.astype(f32) * f32(2.0**-32) + f32(2.0**-33)
    return u


def box_muller(radius_words: Words, angle_words: Words) -> tuple[Floats, Floats]:
    """Two normals: radius sqrt(-2 ln u) from the first word, angle pi t from the second as a signed
    number.
    """
    radius = np.sqrt(ln(to_unit(radius_words)) * f32(-2))
    sine, cosine = sin_cos_pi(angle_words.view(np.int32).astype(f32) * f32(2.0**-31))
    return radius * cosine, radius * sine


def _words(count: int, seed: int, offset: int, substream: int) -> Words:
    first, last = offset // 4, (offset + count + 3) // 4
    return philox(seed, np.arange(first, last, dtype=np.uint64), substream)


def normal(count: int, seed: int, offset: int = 0) -> Floats:
    """Elements offset, ..., offset + count - 1 of the seed's standard normals."""
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


def of_groups(
    kind: str, sizes: tuple[int, int, int, int], seed: int | torch.Tensor, offset: int
) -> npt.NDArray[Any]:
    """Noise of a problem [groups, samples, rows, cols]: "normal", "uniform", or the "word" of a
    uniform. `seed` is one, or one a group.
    """
    groups, count = sizes[0], sizes[1] * sizes[2] * sizes[3]
    seeds = [seed] * groups if isinstance(seed, int) else seed.reshape(-1).expand(groups).tolist()
    make: Any = {"normal": normal, "uniform": uniform, "word": word}[kind]
    noise = np.empty((groups, count), np.uint32 if kind == "word" else f32)
    for group, s in enumerate(seeds):
        noise[group] = make(count, s, offset)
    return noise.reshape(sizes)
