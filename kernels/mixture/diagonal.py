from __future__ import annotations
from numba import njit
from latent_kernels.kernels.mixture.simd import load, like, store, spread, store_sums, multiply_add, select_less, lanes
from latent_kernels.kernels.mixture.tiles import OPT, pack, normalize


@njit(**OPT)
def _square(sum_, x, scale, shift):
    y = multiply_add(x, scale, shift)
    return multiply_add(y, y, sum_)


@njit(**OPT)
def density4(x, stride, padded, D, P, p, constant, k, joint):
    L = lanes(x)
    for g in range(0, padded, 2 * L):
        z = like(x, 0.0)
        a0 = b0 = c0 = d0 = z
        a1 = b1 = c1 = d1 = z
        for d in range(D):
            x0 = load(x, d * stride + g)
            x1 = load(x, d * stride + g + L)
            i = p + 8 * d
            s, m = spread(P, i), spread(P, i + 4)
            a0 = _square(a0, x0, s, m)
            a1 = _square(a1, x1, s, m)
            s, m = spread(P, i + 1), spread(P, i + 5)
            b0 = _square(b0, x0, s, m)
            b1 = _square(b1, x1, s, m)
            s, m = spread(P, i + 2), spread(P, i + 6)
            c0 = _square(c0, x0, s, m)
            c1 = _square(c1, x1, s, m)
            s, m = spread(P, i + 3), spread(P, i + 7)
            d0 = _square(d0, x0, s, m)
            d1 = _square(d1, x1, s, m)
        half = like(x, -0.5)
        o = k * stride + g
        store(joint, o, multiply_add(a0, half, spread(constant, k)))
        store(joint, o + L, multiply_add(a1, half, spread(constant, k)))
        o += stride
        store(joint, o, multiply_add(b0, half, spread(constant, k + 1)))
        store(joint, o + L, multiply_add(b1, half, spread(constant, k + 1)))
        o += stride
        store(joint, o, multiply_add(c0, half, spread(constant, k + 2)))
        store(joint, o + L, multiply_add(c1, half, spread(constant, k + 2)))
        o += stride
        store(joint, o, multiply_add(d0, half, spread(constant, k + 3)))
        store(joint, o + L, multiply_add(d1, half, spread(constant, k + 3)))


@njit(**OPT)
def moments4(joint, k, x, d, stride, padded, sums, at):
    L = lanes(x)
    z = like(x, 0.0)
    f00 = f01 = f10 = f11 = f20 = f21 = f30 = f31 = z
    s00 = s01 = s10 = s11 = s20 = s21 = s30 = s31 = z
    for g in range(0, padded, L):
        x0 = load(x, d * stride + g)
        x1 = load(x, d * stride + stride + g)
        q0 = x0 * x0
        q1 = x1 * x1
        o = k * stride + g
        r = load(joint, o)
        f00 = multiply_add(r, x0, f00)
        f01 = multiply_add(r, x1, f01)
        s00 = multiply_add(r, q0, s00)
        s01 = multiply_add(r, q1, s01)
        r = load(joint, o + stride)
        f10 = multiply_add(r, x0, f10)
        f11 = multiply_add(r, x1, f11)
        s10 = multiply_add(r, q0, s10)
        s11 = multiply_add(r, q1, s11)
        r = load(joint, o + 2 * stride)
        f20 = multiply_add(r, x0, f20)
        f21 = multiply_add(r, x1, f21)
        s20 = multiply_add(r, q0, s20)
        s21 = multiply_add(r, q1, s21)
        r = load(joint, o + 3 * stride)
        f30 = multiply_add(r, x0, f30)
        f31 = multiply_add(r, x1, f31)
        s30 = multiply_add(r, q0, s30)
        s31 = multiply_add(r, q1, s31)
    store_sums(sums, at, (f00, s00, f01, s01, f10, s10, f11, s11, f20, s20, f21, s21, f30, s30, f31, s31))


@njit(**OPT)
def counts(joint, stride, padded, K, sums):
    L = lanes(joint)
    for k in range(K):
        n = like(joint, 0.0)
        for g in range(0, padded, L):
            n = n + load(joint, k * stride + g)
        store_sums(sums, k, (n,))


def span(X, first, last, R, center, P, constant, K, w, x, joint, loglik, sums, total):
    D = X.shape[1]
    D2 = D + (D & 1)
    stride = R + 16
    L = lanes(x)
    for start in range(first, last, R):
        rows = min(R, last - start)
        padded = (rows + 2 * L - 1) // (2 * L) * (2 * L)
        pack(X, start, rows, padded, center, x, stride)
        for k in range(0, K, 4):
            density4(x, stride, padded, D, P, k * 2 * D, constant, k, joint)
        for r in range(padded):
            w[r] = 1.0 if r < rows else 0.0
        normalize(joint, stride, padded, K, w, loglik)
        at = 0
        for k in range(0, K, 4):
            for d in range(0, D2, 2):
                moments4(joint, k, x, d, stride, padded, sums, at)
                at += 16
        counts(joint, stride, padded, K, sums[at:])
        for i in range(at + K):
            total[i] += sums[i]
        s = 0.0
        for r in range(rows):
            s += loglik[r]
        total[at + K] += s
