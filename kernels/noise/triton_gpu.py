"""Noise stream v2 in Triton: the same operations in the same order as csrc/noise/kernel.hpp and
reference.py.

Launched without fp fusion, with the correctly rounded square root; a minus sign is written as a
flip of the sign bit, since Triton's -x is 0 - x and loses the sign of zero.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from latent_kernels.kernels.launch import block_of, cdiv, launch, on_device_of


@triton.jit
def philox(seed, counter, substream: tl.constexpr):
    """Return Philox4x32-10 of counters (low, high, substream, 0) under key (low, high) of the
    seed.
    """
    c0 = (counter & 0xFFFFFFFF).to(tl.uint32)
    c1 = (counter >> 32).to(tl.uint32)
    c2 = tl.zeros_like(c0) + substream
    c3 = tl.zeros_like(c0)
    k0 = (seed & 0xFFFFFFFF).to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        p0 = c0.to(tl.uint64) * 0xD2511F53  # one instruction for both words
        p2 = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (p2 >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = p2.to(tl.uint32)
        c2 = (p0 >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = p0.to(tl.uint32)
        k0 = k0 + tl.full((), 0x9E3779B9, tl.uint32)
        k1 = k1 + tl.full((), 0xBB67AE85, tl.uint32)
    return c0, c1, c2, c3


@triton.jit
def parts(u):
    """Return k, times 2^23, and f of normal u = 2^k (1 + f), 1 + f in [sqrt(1/2), sqrt(2))."""
    bits = u.to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) & -0x800000
    return k, (bits - k).to(tl.float32, bitcast=True) - 1.0


@triton.jit
def ln_of_parts(k, f):
    """Return k / 2^23 ln 2 + ln(1 + f); see reference.py."""
    p = tl.fma(f, -0.07859611511230469, 0.12881647050380707)
    p = tl.fma(p, f, -0.13128754496574402)
    p = tl.fma(p, f, 0.14181192219257355)
    p = tl.fma(p, f, -0.16624553501605988)
    p = tl.fma(p, f, 0.2000228613615036)
    p = tl.fma(p, f, -0.25000810623168945)
    p = tl.fma(p, f, 0.33333316445350647)
    p = tl.fma(p, f, -0.5)
    return tl.fma(k.to(tl.float32), 8.262958317573066e-08, tl.fma(p, f * f, f))  # ln 2 / 2^23


@triton.jit
def flipped(x, sign):
    """Return x with its sign flipped where the highest bit of `sign` is set."""
    bits = x.to(tl.uint32, bitcast=True) ^ (sign & 0x80000000)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def ln(u):
    """Return the natural logarithm of normal u > 0."""
    k, f = parts(u)
    return ln_of_parts(k, f)


@triton.jit
def sin_cos_pi(t):
    """Return sin(pi t) and cos(pi t) for |t| <= 1, but for a sign that both share, and this sign in
    the highest bit of a word: t = q/2 + r with q = floor(2t + 1/2), exactly.
    """
    q = tl.floor(tl.fma(t, 2.0, 0.5))
    r = tl.fma(q, -0.5, t)
    y = r * r
    s = tl.fma(y, -0.5892776846885681, 2.5497946739196777)
    s = tl.fma(s, y, -5.167708873748779)
    s = tl.fma(s, y, -8.742277657347586e-08)  # the low part of pi
    s = tl.fma(r, 3.1415927410125732, s * r)
    c = tl.fma(y, -1.3065298795700073, 4.057638168334961)
    c = tl.fma(c, y, -4.93479061126709)
    c = tl.fma(c, y, 1.0)
    quadrant = (q + 12582912.0).to(tl.uint32, bitcast=True)  # 1.5 * 2^23: q in the lowest bits
    swap = (quadrant & 1) != 0
    return tl.where(swap, c, s), tl.where(swap, flipped(s, 0x80000000), c), quadrant << 30


@triton.jit
def to_unit(word):
    """Return a word as a number in (0, 1]."""
    return tl.fma(word.to(tl.float32), 2.3283064365386963e-10, 1.1641532182693481e-10)  # 2^-32, -33


@triton.jit
def radius_and_angle(radius_word, angle_word):
    """Return sqrt(-2 ln u), and the sine and cosine of the angle: the parts of Box-Muller. The
    first has the sign that the others lack.
    """
    u = to_unit(radius_word)
    radius = tl.sqrt_rn(ln(u) * -2.0)
    t = angle_word.to(tl.int32, bitcast=True).to(tl.float32) * 4.656612873077393e-10  # 2^-31
    sine, cosine, sign = sin_cos_pi(t)
    return flipped(radius, sign), sine, cosine


@triton.jit
def to_uniform(word):
    """Return a word as a uniform number in (0, 1)."""
    u = to_unit(word)
    return tl.where(u < 0.9999999403953552, u, 0.9999999403953552)


@triton.jit
def words_of_groups(seed, group, substream: tl.constexpr = 1):
    """Return the words 4 g, ..., 4 g + 3 of a substream, by default of the uniforms, for counters g
    [..., n], in order: [..., 4 n].
    """
    w0, w1, w2, w3 = philox(seed, group, substream)
    return tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3))


@triton.jit
def word_of_elements(seed, element, substream: tl.constexpr = 1):
    """Return single words of a substream at any indices: four times the work of
    words_of_groups.
    """
    w0, w1, w2, w3 = philox(seed, element >> 2, substream)
    second = (element & 2) != 0
    return tl.where((element & 1) != 0, tl.where(second, w3, w1), tl.where(second, w2, w0))


@triton.jit
def noise_of_groups(seed, group, substream: tl.constexpr):
    """Return elements 4 g, ..., 4 g + 3 of the stream for counters g [..., n], in order along the
    last axis: [..., 4 n].
    """
    if substream == 0:
        w0, w1, w2, w3 = philox(seed, group, 0)
        radius0, sine0, cosine0 = radius_and_angle(w0, w1)
        radius2, sine2, cosine2 = radius_and_angle(w2, w3)
        x = tl.interleave(
            tl.interleave(radius0 * cosine0, radius2 * cosine2),
            tl.interleave(radius0 * sine0, radius2 * sine2),
        )
    else:
        x = to_uniform(words_of_groups(seed, group))
    return x


@triton.jit
def normal_of_elements(seed, element):
    """Return single elements of the normal stream at any indices: four times the work of
    noise_of_groups.
    """
    w0, w1, w2, w3 = philox(seed, element >> 2, 0)
    second = (element & 2) != 0
    radius, sine, cosine = radius_and_angle(tl.where(second, w2, w0), tl.where(second, w3, w1))
    return radius * tl.where((element & 1) != 0, sine, cosine)


@triton.jit
def normal_quantile(word):
    """Return the normal quantiles of (w + 1/2) 2^-32 for words in int32; see reference.py."""
    magnitude = word ^ (word >> 31)
    h = tl.fma(magnitude.to(tl.float32), 4.656612873077393e-10, 2.3283064365386963e-10)
    above = 0x7FFFFFFF - magnitude
    c = tl.fma(above.to(tl.float32), 4.656612873077393e-10, 2.3283064365386963e-10)
    w = ln(h * (2.0 - h)) * -1.0
    t = w - 3.125
    near = tl.fma(t, -7.155822601134787e-09, -1.2343207345111296e-08)
    near = tl.fma(near, t, 6.160152565826138e-07)
    near = tl.fma(near, t, -2.1541602563956985e-06)
    near = tl.fma(near, t, -1.974185579456389e-05)
    near = tl.fma(near, t, 0.00026481517124921083)
    near = tl.fma(near, t, -0.0010472283465787768)
    near = tl.fma(near, t, -0.008533752523362637)
    near = tl.fma(near, t, 0.3396347463130951)
    near = tl.fma(near, t, 2.338620901107788)
    t = tl.sqrt_rn(w) - 3.5
    far = tl.fma(t, 4.875424565398134e-05, -0.0002888193994294852)
    far = tl.fma(far, t, 0.0006720743840560317)
    far = tl.fma(far, t, -0.0009969838429242373)
    far = tl.fma(far, t, 0.0015194336883723736)
    far = tl.fma(far, t, -0.002905744593590498)
    far = tl.fma(far, t, 0.004638552665710449)
    far = tl.fma(far, t, 1.4246336221694946)
    far = tl.fma(far, t, 4.7170891761779785)
    size = c * tl.where(w < 6.25, near, far)
    sign = (word ^ -1) & -0x80000000
    return (size.to(tl.int32, bitcast=True) ^ sign).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["seed", "offset"])
def fill_kernel(
    out_ptr, n, seed, offset,
    substream: tl.constexpr, seed_is_pointer: tl.constexpr, shift: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Write out[i] = element offset + i of the stream; shift = offset % 4."""
    pid = tl.program_id(0).to(tl.int64)
    key = tl.load(seed) if seed_is_pointer else seed
    key = key.to(tl.int64)
    first = offset.to(tl.int64) // 4 + pid * (BLOCK // 4)
    x = noise_of_groups(key, first + tl.arange(0, BLOCK // 4), substream)
    i = pid * BLOCK + tl.arange(0, BLOCK) - shift
    tl.store(out_ptr + i, x.to(out_ptr.dtype.element_ty), mask=(i >= 0) & (i < n))


def fill(kind: str, out: torch.Tensor, seed: int | torch.Tensor, offset: int) -> None:
    """Fill contiguous `out` with elements offset, offset + 1, ... of the seed's `kind` ("normal"
    or "uniform").
    """
    n, shift = out.numel(), offset % 4
    if n == 0:
        return
    block = block_of(n)
    with on_device_of(out):
        launch(
            fill_kernel, cdiv(n + shift, block),
            out, n, seed, offset, substream=0 if kind == "normal" else 1,
            seed_is_pointer=isinstance(seed, torch.Tensor), shift=shift, BLOCK=block,
        )  # fmt: skip
