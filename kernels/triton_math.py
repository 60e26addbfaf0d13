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
def divide(x, y):
    """x / y, correctly rounded: Triton's own / is not in float32."""
    return tl.div_rn(x, y) if y.dtype == tl.float32 else x / y


@triton.jit
def exp(x):
    """e^x: in float32 as csrc/simd/math.hpp does it, bit for bit; in float64 the device's own."""
    return tl.exp(x) if x.dtype == tl.float64 else power(x, 89.0, 0)


@triton.jit
def half_exp(x):
    """Half of e^x, which overflows later."""
    if x.dtype == tl.float64:  # x - 1 is exact where it is needed
        large = x > 700.0
        y = tl.exp(tl.where(large, x - 1.0, x)) * 0.5
        y = tl.where(large, y * 2.718281828459045, y)
    else:
        y = power(x, 90.0, 1)
    return y


@triton.jit
def power(x, highest, halvings: tl.constexpr):
    """e^x 2^-halvings in float32, of x up to `highest`."""
    x = tl.where(x < -104.0, -104.0, x)
    x = tl.where(x > highest, highest, x)
    shifted = x * 1.4426950216293335 + 12582912.0  # 1.5 * 2^23: rounds to an integer, ties to even
    n = shifted - 12582912.0
    r = (x - n * 0.693359375) - n * -2.12194440e-4
    q = r * 0.0013813144760206342 + 0.008369418792426586
    q = q * r + 0.04166845604777336
    q = q * r + 0.16666515171527863
    q = q * r + 0.4999999403953552
    p = (r * r) * q + r + 1.0
    k = shifted.to(tl.int32, bitcast=True) - (0x4B400000 + halvings)
    half = k >> 1
    return (p * ((half + 127) << 23).to(tl.float32, bitcast=True)) * ((k - half + 127) << 23).to(
        tl.float32, bitcast=True
    )


@triton.jit
def half_psi_expm1(d):
    """Half of psi(d) = e^d - 1 - d and of expm1(d), by psi's series where |d| < 2."""
    if d.dtype == tl.float64:
        p = d * 6.446950284384474e-26 + 1.6117375710961184e-24  # 1 / 25!, 1 / 24!, ...
        p = p * d + 3.868170170630684e-23
        p = p * d + 8.896791392450574e-22
        p = p * d + 1.9572941063391263e-20
        p = p * d + 4.110317623312165e-19
        p = p * d + 8.22063524662433e-18
        p = p * d + 1.5619206968586225e-16
        p = p * d + 2.8114572543455206e-15
        p = p * d + 4.779477332387385e-14
        p = p * d + 7.647163731819816e-13
        p = p * d + 1.1470745597729725e-11
        p = p * d + 1.6059043836821613e-10
        p = p * d + 2.08767569878681e-09
        p = p * d + 2.505210838544172e-08
        p = p * d + 2.755731922398589e-07
        p = p * d + 2.7557319223985893e-06
        p = p * d + 2.48015873015873e-05
        p = p * d + 0.0001984126984126984
        p = p * d + 0.001388888888888889
        p = p * d + 0.008333333333333333
        p = p * d + 0.041666666666666664
        p = p * d + 0.16666666666666666
        p = p * d + 0.5
    else:
        p = d * 2.5569949713144524e-08 + 2.9672227697119524e-07
        p = p * d + 2.759976723609725e-06
        p = p * d + 2.4728875359869562e-05
        p = p * d + 0.00019839138258248568
        p = p * d + 0.0013889892725273967
        p = p * d + 0.008333361707627773
        p = p * d + 0.04166661947965622
        p = p * d + 0.1666666567325592
        p = p * d + 0.5
    half = d * 0.5
    small = (half * d) * p
    large = half_exp(d) - 0.5
    near = (d < 2.0) & (d > -2.0)
    return tl.where(near, small, large - half), tl.where(near, small + half, large)


@triton.jit
def expm1(x):
    """e^x - 1."""
    _, half = half_psi_expm1(x)
    return half * 2.0


@triton.jit
def log1p(e):
    """ln(1 + e) for -1/2 <= e <= 1: e - s (e - R), s = e / (2 + e), R = s^2 Q(s^2)."""
    if e.dtype == tl.float64:
        s = e / (e + 2.0)
        y = s * s
        q = y * 0.05714285714285714 + 0.06060606060606061  # 2 / (2 k + 3)
        q = q * y + 0.06451612903225806
        q = q * y + 0.06896551724137931
        q = q * y + 0.07407407407407407
        q = q * y + 0.08
        q = q * y + 0.08695652173913043
        q = q * y + 0.09523809523809523
        q = q * y + 0.10526315789473684
        q = q * y + 0.11764705882352941
        q = q * y + 0.13333333333333333
        q = q * y + 0.15384615384615385
        q = q * y + 0.18181818181818182
        q = q * y + 0.2222222222222222
        q = q * y + 0.2857142857142857
        q = q * y + 0.4
        q = q * y + 0.6666666666666666
    else:
        s = divide(e, e + 2.0)
        y = s * s
        q = y * 0.2802472710609436 + 0.2799908220767975
        q = q * y + 0.4002170264720917
        q = q * y + 0.6666641235351562
    return e - s * (e - y * q)
