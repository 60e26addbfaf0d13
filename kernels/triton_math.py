"""Elementary functions for Triton kernels: the sequences of operations of csrc/simd/math.hpp."""

from __future__ import annotations

import torch
import triton
import triton.language as tl

LOG_TWO_PI = tl.constexpr(1.8378770664093454835606594728112)


def compute_type(dtype: torch.dtype) -> tl.constexpr:
    """Return the type that inputs of this dtype are computed in."""
    return tl.float64 if dtype == torch.float64 else tl.float32


@triton.jit
def in_fours(x, even: tl.constexpr):
    """Return x >= 0, marked as a multiple of 4 where `even`. Triton must know this to access four
    elements at once, and finds by itself only multiples of 16.
    """
    if even:
        x = (x >> 2) << 2
    return x


@triton.jit
def program(tiles, chunks, nest: tl.constexpr):
    """Return the tile, the chunk of samples and the group of this program. All share one axis of
    the grid, because the others end at 65,535. `nest` is 0 where there is one chunk and one group,
    and 1 where there is one group, so that most launches need no division by their numbers.
    """
    tile = tl.program_id(0)
    chunk = tile * 0
    group = tile * 0
    if nest > 0:
        chunk = tile // tiles
        tile = tile % tiles
    if nest > 1:
        group = chunk // chunks
        chunk = chunk % chunks
    return tile.to(tl.int64), chunk.to(tl.int64), group.to(tl.int64)


@triton.jit
def divide(x, y):
    """Return x / y, correctly rounded, which Triton's own / is not in float32."""
    return tl.div_rn(x, y) if y.dtype == tl.float32 else x / y


@triton.jit
def step(p, x, c: tl.constexpr):
    """Return p x + c, rounded once: a step of Horner's rule, with all digits of c in float64."""
    return tl.fma(p, x, tl.full(p.shape, c, p.dtype))


@triton.jit
def exp(x):
    """Return e^x: in float32 with the same bits as csrc/simd/math.hpp, in float64 by the device's
    own function.
    """
    return tl.exp(x) if x.dtype == tl.float64 else power(x, 89.0, 0)


@triton.jit
def half_exp(x):
    """Return half of e^x, which overflows only at a larger x than e^x does."""
    if x.dtype == tl.float64:  # x - 1 is exact where it is needed
        large = x > 700.0
        y = tl.exp(tl.where(large, x - 1.0, x)) * 0.5
        y = tl.where(large, y * 2.718281828459045, y)
    else:
        y = power(x, 90.0, 1)
    return y


@triton.jit
def reduced(x):
    """Return e^x = p 2^n as p and a word with n in its lowest bits, below others that a shift by 23
    pushes out.
    """
    shifted = tl.fma(x, 1.4426950216293335, 12582912.0)  # 1.5 * 2^23: rounds, ties to even
    n = shifted - 12582912.0
    r = tl.fma(n, 2.12194440e-4, tl.fma(n, -0.693359375, x))
    p = tl.fma(r, 0.0013821459142491221, 0.008368662558495998)
    p = tl.fma(p, r, 0.041668254882097244)
    p = tl.fma(p, r, 0.1666652113199234)
    p = tl.fma(p, r, 0.4999999403953552)
    p = tl.fma(p, r, 1.0)
    return tl.fma(p, r, 1.0), shifted.to(tl.int32, bitcast=True)


@triton.jit
def power(x, highest, halvings: tl.constexpr):
    """Return e^x 2^-halvings in float32; x above `highest` counts as `highest`."""
    x = tl.where(x < -104.0, -104.0, x)
    p, n = reduced(tl.where(x > highest, highest, x))
    half = n >> 1
    first = (half << 23) + 0x3F800000
    second = ((n - half) << 23) + (0x3F800000 - (halvings << 23))
    return (p * first.to(tl.float32, bitcast=True)) * second.to(tl.float32, bitcast=True)


@triton.jit
def exp_of_negative(x):
    """Return e^x for x <= 0, with the bits of exp: by way of 2^64 e^x, which is normal."""
    if x.dtype == tl.float64:
        y = tl.exp(x)
    else:
        p, n = reduced(tl.where(x < -104.0, -104.0, x))
        y = p * ((n << 23) + 0x5F800000).to(tl.float32, bitcast=True) * 5.421010862427522e-20
    return y


@triton.jit
def half_psi_expm1(d, half_of_exp):
    """Return half of psi(d) = e^d - 1 - d and half of expm1(d), given half of e^d. Where |d| < 2,
    psi is computed by its series.
    """
    if d.dtype == tl.float64:
        p = tl.full(d.shape, 6.446950284384474e-26, tl.float64)  # 1 / 25!, 1 / 24!, ...
        p = step(p, d, 1.6117375710961184e-24)
        p = step(p, d, 3.868170170630684e-23)
        p = step(p, d, 8.896791392450574e-22)
        p = step(p, d, 1.9572941063391263e-20)
        p = step(p, d, 4.110317623312165e-19)
        p = step(p, d, 8.22063524662433e-18)
        p = step(p, d, 1.5619206968586225e-16)
        p = step(p, d, 2.8114572543455206e-15)
        p = step(p, d, 4.779477332387385e-14)
        p = step(p, d, 7.647163731819816e-13)
        p = step(p, d, 1.1470745597729725e-11)
        p = step(p, d, 1.6059043836821613e-10)
        p = step(p, d, 2.08767569878681e-09)
        p = step(p, d, 2.505210838544172e-08)
        p = step(p, d, 2.755731922398589e-07)
        p = step(p, d, 2.7557319223985893e-06)
        p = step(p, d, 2.48015873015873e-05)
        p = step(p, d, 0.0001984126984126984)
        p = step(p, d, 0.001388888888888889)
        p = step(p, d, 0.008333333333333333)
        p = step(p, d, 0.041666666666666664)
        p = step(p, d, 0.16666666666666666)
        p = step(p, d, 0.5)
    else:
        p = tl.fma(d, 2.5569949713144524e-08, 2.9672227697119524e-07)
        p = step(p, d, 2.759976723609725e-06)
        p = step(p, d, 2.4728875359869562e-05)
        p = step(p, d, 0.00019839138258248568)
        p = step(p, d, 0.0013889892725273967)
        p = step(p, d, 0.008333361707627773)
        p = step(p, d, 0.04166661947965622)
        p = step(p, d, 0.1666666567325592)
        p = step(p, d, 0.5)
    half = d * 0.5
    small = (half * d) * p
    large = half_of_exp - 0.5
    near = (d < 2.0) & (d > -2.0)
    return tl.where(near, small, large - half), tl.where(near, small + half, large)


@triton.jit
def expm1(x):
    """Return e^x - 1."""
    _, half = half_psi_expm1(x, half_exp(x))
    return half * 2.0


@triton.jit
def log1p(e, positive: tl.constexpr = False):
    """Return ln(1 + e) for -1/2 <= e <= 1: e - s (e - R), s = e / (2 + e), R = s^2 Q(s^2).

    Where e is known as `positive`, s is found without a division, which has to look for subnormals
    and branches: from a polynomial for 1 / (2 + e) and a step of Newton's. Of all e in [0, 1] the
    result has the same bits.
    """
    if e.dtype == tl.float64:
        s = e / (e + 2.0)
        y = s * s
        q = tl.full(y.shape, 0.05714285714285714, tl.float64)  # 2 / (2 k + 3)
        q = step(q, y, 0.06060606060606061)
        q = step(q, y, 0.06451612903225806)
        q = step(q, y, 0.06896551724137931)
        q = step(q, y, 0.07407407407407407)
        q = step(q, y, 0.08)
        q = step(q, y, 0.08695652173913043)
        q = step(q, y, 0.09523809523809523)
        q = step(q, y, 0.10526315789473684)
        q = step(q, y, 0.11764705882352941)
        q = step(q, y, 0.13333333333333333)
        q = step(q, y, 0.15384615384615385)
        q = step(q, y, 0.18181818181818182)
        q = step(q, y, 0.2222222222222222)
        q = step(q, y, 0.2857142857142857)
        q = step(q, y, 0.4)
        q = step(q, y, 0.6666666666666666)
    else:
        if positive:
            r = tl.fma(e, -0.026661112904548645, 0.10664445161819458)
            r = step(r, e, -0.24661529064178467)
            r = step(r, e, 0.499895840883255)
            r = tl.fma(tl.fma(-(e + 2.0), r, 1.0), r, r)
            s = e * r
            s = tl.fma(tl.fma(-s, e + 2.0, e), r, s)
        else:
            s = divide(e, e + 2.0)
        y = s * s
        q = tl.fma(y, 0.2802472710609436, 0.2799908220767975)
        q = step(q, y, 0.4002170264720917)
        q = step(q, y, 0.6666641235351562)
    return tl.fma(-s, tl.fma(-y, q, e), e)
