"""The parts that the score-function kernels of triton_gpu.py share: weights, the sums left in
memory, and the estimator computed from sums.

For each parameter j, over samples s, with f centred by a constant where a control variate asks for
it:

    A = sum f s_j   B = sum s_j   C = sum f s_j^2   D = sum s_j^2   E = sum (f s_j)^2   F = sum f
"""

from __future__ import annotations

import triton
import triton.language as tl

from latent_kernels.kernels.triton_math import divide, exp

# How the weights are centred, and which sums this needs:
PLAIN = tl.constexpr(0)  # by the baseline given, or not at all: A
ROWS = tl.constexpr(1)  # leave-one-out about the mean of each row's values, given as a baseline: A
ELEMENTS = tl.constexpr(
    2
)  # leave-one-out about an element's first value, corrected afterwards: all sums
OPTIMAL = tl.constexpr(3)  # by the coefficients of the other folds: all sums, of each fold

# What the sums left in memory are of, in pairs that lie side by side:
SCORES = tl.constexpr(0)  # A, B, C, D of two scores, F twice, E
BINARY = tl.constexpr(
    1
)  # of f, of 1 and of f^2, over the samples where the event happens, and where it does not
PAIRS = tl.constexpr(2)  # A and E of antithetic pairs


def count_of_sums(kind: int, mode: int, with_variance: bool) -> int:
    """Return how many sums a part leaves in memory."""
    if kind == int(PAIRS):
        return 2
    more = mode >= int(ELEMENTS)
    return (2 if not more else 10 if kind == int(SCORES) else 4) + (2 if with_variance else 0)


@triton.jit
def samples_of_part(part, S, folds, chunks):
    """Return the first and the last sample (exclusive) of a part: chunk part % chunks of fold part
    // chunks.
    """
    fold = part // chunks
    chunk = part % chunks
    first = fold * S // folds
    count = (fold + 1) * S // folds - first
    return first + chunk * count // chunks, first + (chunk + 1) * count // chunks


@triton.jit
def load_weight(values_at, baseline_at, mask, has_baseline: tl.constexpr, compute: tl.constexpr):
    """Return values less their baseline, subtracted in the wider of the two types, then rounded."""
    f = tl.load(values_at, mask=mask, other=0.0)
    if has_baseline:
        b = tl.load(baseline_at, mask=mask, other=0.0)
        f = f.to(b.dtype) - b
    return f.to(compute)


@triton.jit
def mean_of_first(values_at, stride, mask, S, compute: tl.constexpr):
    """Return the mean of the first four samples' values, or of all if there are fewer: the shift of
    a value per element.
    """
    count = tl.minimum(S, 4)
    total = tl.load(values_at, mask=mask, other=0.0).to(compute)
    for s in range(1, count):
        total += tl.load(values_at + s * stride, mask=mask, other=0.0).to(compute)
    return total * divide(1.0, count.to(compute))


@triton.jit
def probabilities(logits):
    """Return sigmoid(logits) and sigmoid(-logits), each without cancellation."""
    e = exp(0.0 - tl.abs(logits))
    larger = divide(1.0, 1.0 + e)
    smaller = e * larger
    return tl.where(logits >= 0.0, larger, smaller), tl.where(logits >= 0.0, smaller, larger)


@triton.jit
def over_event(p, q, on, off):
    """Return the sums of x s and of x s^2 from the sums of x over samples where the event happens,
    s = q, and where it does not, s = -p.
    """
    return tl.fma(q, on, 0.0 - p * off), tl.fma(q * q, on, (p * p) * off)


@triton.jit
def centred_squares(b, C, D, E):
    """Return the sum of ((f - b) s)^2 = E - 2 b C + b^2 D."""
    return tl.fma(0.0 - b, tl.fma(0.0 - b, D, C + C), E)


@triton.jit
def mean_of_terms(A, B, C, D, E, F, S, mode: tl.constexpr, with_variance: tl.constexpr):
    """Return the mean of the S terms and the sum of their squares, from sums over all samples."""
    n = S.to(A.dtype)
    if mode == PLAIN:
        G = A * divide(1.0, n)
    else:  # f_s - b_s = (f_s - mean f) S / (S - 1)
        others = tl.maximum(n - 1.0, 1.0)
        if mode == ELEMENTS:
            a = F * divide(1.0, n)
            A = tl.fma(0.0 - a, B, A)
            if with_variance:
                E = centred_squares(a, C, D, E)
        G = A * divide(1.0, others)
        if with_variance:
            factor = divide(n, others)
            E *= factor * factor
    return G, E


@triton.jit
def put_result(
    gradient_ptr, variance_ptr, at, mask, G, E, scale, S, upstream_ptr, of_upstream, upstream_mask,
    mode: tl.constexpr, has_upstream: tl.constexpr, with_variance: tl.constexpr,
):  # fmt: skip
    """Store the gradient, G scale upstream, and the variance of G scale, from the sum of the
    terms' squares E; README.md derives that of leave-one-out.
    """
    g = G * scale
    if has_upstream:
        g *= tl.load(upstream_ptr + of_upstream, mask=upstream_mask, other=0.0)
    tl.store(gradient_ptr + at, g.to(gradient_ptr.dtype.element_ty), mask=mask)
    if with_variance:
        n = S.to(G.dtype)
        others = tl.maximum(n - 1.0, 1.0)
        if mode >= ROWS and mode != OPTIMAL:  # leave-one-out
            variance = tl.fma(0.0 - G * (n - 2.0), G, E * divide(others, n))
            variance *= divide(1.0, tl.fma(others, others, 1.0))
        else:
            variance = tl.fma(0.0 - G, G, E * divide(1.0, n)) * divide(1.0, others)
        variance = tl.where(variance < 0.0, 0.0, variance)  # keeps NaN
        variance = tl.where(n == 1.0, float("nan"), variance) * scale * scale
        tl.store(variance_ptr + at, variance.to(variance_ptr.dtype.element_ty), mask=mask)


@triton.jit
def put_sums(partial_ptr, at, mask, size, first: tl.constexpr, a, b):
    """Store a pair of sums: `first` and the one after it, each of `size` elements."""
    here = partial_ptr + first * size + at
    tl.store(here, a.to(partial_ptr.dtype.element_ty), mask=mask)
    tl.store(here + size, b.to(partial_ptr.dtype.element_ty), mask=mask)


@triton.jit
def finish_binary(
    gradient_ptr, variance_ptr, partial_ptr, at, mask, p, q, F1, F0, n1, H1, H0, part, count, S,
    size,
    upstream_ptr, of_upstream, upstream_mask,
    mode: tl.constexpr, has_upstream: tl.constexpr, with_variance: tl.constexpr,
    finish: tl.constexpr,
):  # fmt: skip
    """Write the sums of a Bernoulli or a categorical variable over `count` samples: to the result
    where these are all samples, else to memory.
    """
    n0 = count - n1
    if finish:
        A, C = over_event(p, q, F1, F0)
        B, D = over_event(p, q, n1.to(F1.dtype), n0.to(F1.dtype))
        _, E = over_event(p, q, H1, H0)
        G, E = mean_of_terms(A, B, C, D, E, F1 + F0, S, mode, with_variance)
        put_result(
            gradient_ptr, variance_ptr, at, mask, G, E, 1.0, S, upstream_ptr, of_upstream,
            upstream_mask, mode,
            has_upstream, with_variance,
        )  # fmt: skip
    else:
        more: tl.constexpr = mode >= ELEMENTS
        sums: tl.constexpr = (4 if more else 2) + (2 if with_variance else 0)
        partial_ptr += part * sums * size
        put_sums(partial_ptr, at, mask, size, 0, F1, F0)
        if more:
            put_sums(partial_ptr, at, mask, size, 2, n1, n0)
        if with_variance:
            put_sums(partial_ptr, at, mask, size, sums - 2, H1, H0)


@triton.jit
def take_sums(
    partial_ptr, part, at, mask, size, p, q, sums: tl.constexpr, kind: tl.constexpr,
    j: tl.constexpr,
    mode: tl.constexpr, with_variance: tl.constexpr,
):  # fmt: skip
    """Return A, B, C, D, E, F of parameter j from the sums of a part; sums that the estimator does
    not use are zeros.
    """
    here = partial_ptr + (part * sums + j) * size + at
    A = tl.load(here, mask=mask, other=0.0)
    B, C, D, E, F = (
        tl.zeros_like(A),
        tl.zeros_like(A),
        tl.zeros_like(A),
        tl.zeros_like(A),
        tl.zeros_like(A),
    )
    if kind == BINARY:
        off = tl.load(here + size, mask=mask, other=0.0)
        F = A + off
        A, C = over_event(p, q, A, off)
        if mode >= ELEMENTS:
            on = tl.load(here + 2 * size, mask=mask, other=0.0)
            B, D = over_event(p, q, on, tl.load(here + 3 * size, mask=mask, other=0.0))
    elif mode >= ELEMENTS:
        B = tl.load(here + 2 * size, mask=mask, other=0.0)
        C = tl.load(here + 4 * size, mask=mask, other=0.0)
        D = tl.load(here + 6 * size, mask=mask, other=0.0)
        F = tl.load(here + 8 * size, mask=mask, other=0.0)
    if with_variance:
        if kind == PAIRS:
            E = tl.load(here + size, mask=mask, other=0.0)
        else:
            last = here + (sums - 2) * size
            E = tl.load(last, mask=mask, other=0.0)
            if kind == BINARY:
                _, E = over_event(p, q, E, tl.load(last + size, mask=mask, other=0.0))
    return A, B, C, D, E, F


@triton.jit
def merge(
    partial_ptr, at, mask, size, p, q, S, folds, chunks, sums: tl.constexpr, kind: tl.constexpr,
    j: tl.constexpr,
    mode: tl.constexpr, with_variance: tl.constexpr,
):  # fmt: skip
    """Return the mean of the S terms of parameter j and the sum of their squares, less the coupling
    of the folds (README.md), from the sums of all parts in their order.
    """
    parts = folds * chunks
    origin = tl.full((), 0, tl.int64)  # so that products with it have 64 bits
    size = origin + size
    A, B, C, D, E, F = take_sums(
        partial_ptr, origin, at, mask, size, p, q, sums, kind, j, mode, with_variance
    )
    if mode != OPTIMAL:
        for part in range(origin + 1, parts):
            more_A, more_B, more_C, more_D, more_E, more_F = take_sums(
                partial_ptr, part, at, mask, size, p, q, sums, kind, j, mode, with_variance
            )
            A += more_A
            if mode == ELEMENTS:
                B += more_B
                C += more_C
                D += more_D
                F += more_F
            if with_variance:
                E += more_E
        G, squares = mean_of_terms(A, B, C, D, E, F, S, mode, with_variance)
    else:
        G = tl.zeros_like(A)
        squares = tl.zeros_like(A)
        first, sum_B, sum_Bd, sum_Bdd = squares, squares, squares, squares  # of d = a_k - a_0
        for fold in range(origin, folds):
            C, D, F = tl.zeros_like(A), tl.zeros_like(A), tl.zeros_like(A)
            for other in range(origin, parts - chunks):  # from the samples outside the fold
                part = tl.where(other < fold * chunks, other, other + chunks)
                _, _, more_C, more_D, _, more_F = take_sums(
                    partial_ptr, part, at, mask, size, p, q, sums, kind, j, mode, False
                )
                C += more_C
                D += more_D
                F += more_F
            outside = S - ((fold + 1) * S // folds - fold * S // folds)
            none = D == 0.0
            a = divide(tl.where(none, F, C), tl.where(none, outside.to(A.dtype), D))
            first = tl.where(fold == 0, a, first)
            own_B = tl.zeros_like(A)
            for part in range(fold * chunks, (fold + 1) * chunks):
                A, B, C, D, E, _ = take_sums(
                    partial_ptr, part, at, mask, size, p, q, sums, kind, j, mode, with_variance
                )
                G += tl.fma(0.0 - a, B, A)
                if with_variance:
                    squares += centred_squares(a, C, D, E)
                    own_B += B
            if with_variance:
                Bd = own_B * (a - first)
                sum_B += own_B
                sum_Bd += Bd
                sum_Bdd = tl.fma(Bd, a - first, sum_Bdd)
        if with_variance:
            squares -= tl.fma(sum_B, sum_Bdd, 0.0 - sum_Bd * sum_Bd)
        G *= divide(1.0, S.to(A.dtype))
    return G, squares


# Sizes that may be 1 are not specialized: Triton would make constants of them, without a `.to`.
@triton.jit(do_not_specialize=["S", "folds", "chunks", "width"])
def finish_kernel(
    first_gradient_ptr, second_gradient_ptr, first_variance_ptr, second_variance_ptr,
    partial_ptr, first_ptr, second_ptr, upstream_ptr, S, folds, chunks, size, width,
    sums: tl.constexpr, kind: tl.constexpr, classes: tl.constexpr, mode: tl.constexpr,
    has_upstream: tl.constexpr,
    with_variance: tl.constexpr, compute: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Write gradients and variances from the sums of the parts [parts, sums, size]; `width`
    elements share an upstream gradient.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = at < size
    if kind == SCORES:
        G, E = merge(
            partial_ptr, at, mask, size, 0, 0, S, folds, chunks, sums, kind, 0, mode, with_variance
        )
        logvar = tl.load(second_ptr + at, mask=mask, other=0.0).to(compute)
        put_result(
            first_gradient_ptr, first_variance_ptr, at, mask, G, E, exp(logvar * -0.5), S,
            upstream_ptr, at // width, mask, mode, has_upstream, with_variance,
        )  # fmt: skip
        G, E = merge(
            partial_ptr, at, mask, size, 0, 0, S, folds, chunks, sums, kind, 1, mode, with_variance
        )
        put_result(
            second_gradient_ptr, second_variance_ptr, at, mask, G, E, 0.5, S,
            upstream_ptr, at // width, mask, mode, has_upstream, with_variance,
        )  # fmt: skip
    else:
        first = tl.load(first_ptr + at, mask=mask, other=0.0).to(compute)
        scale = tl.full((BLOCK,), 1.0, compute)
        if classes:
            p = first
            q = tl.load(second_ptr + at, mask=mask, other=0.0)
        else:
            p, q = probabilities(first)
        if kind == PAIRS:
            scale = tl.maximum(p, q)
        G, E = merge(
            partial_ptr, at, mask, size, p, q, S, folds, chunks, sums, kind, 0, mode, with_variance
        )
        put_result(
            first_gradient_ptr, first_variance_ptr, at, mask, G, E, scale, S,
            upstream_ptr, at // width, mask, mode, has_upstream, with_variance,
        )  # fmt: skip
