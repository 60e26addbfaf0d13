"""The results of each arithmetic instruction, on arrays with one value per thread.

After NVIDIA's PTX ISA, chapter "Instruction Set". A register holds bits; an instruction's type says
how they are read. Results are rounded to nearest even unless the instruction says otherwise, and
subnormals are flushed only where it says `.ftz`.

Approximate instructions (`.approx`, `.full`) are computed at full precision here: a test through
them shows nothing of a device's last bits. `rcp.approx.ftz.f64`, from which division and exp in
float64 begin, keeps the 20 bits of mantissa that the ISA promises.
"""

from __future__ import annotations

import fractions
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


INTEGERS = {f"{kind}{n}": np.dtype(f"{'i' if kind == 's' else 'u'}{n // 8}")
            for kind in "usb" for n in (8, 16, 32, 64)}  # fmt: skip
# NumPy lacks bfloat16, which is computed in float32 and rounded: a sum, a difference or a product
# has the right bits then.
FLOATS = {"f16": np.dtype("f2"), "f32": np.dtype("f4"), "f64": np.dtype("f8"),
          "bf16": np.dtype("f4")}  # fmt: skip
PAIRS = {"f16x2": "f16", "bf16x2": "bf16"}
TYPES: dict[str, np.dtype[Any]] = {**INTEGERS, **FLOATS, "pred": np.dtype(bool)}


class Unsupported(Exception):
    """An instruction that the interpreter does not know."""


# --- formats --------------------------------------------------------------------------------------


def bits_of(kind: str) -> np.dtype[Any]:
    """Return the unsigned type that holds a type's bits."""
    if kind == "pred":
        return np.dtype(bool)
    width = 32 if kind in PAIRS else int(kind.lstrip("bfus"))
    return np.dtype(f"u{width // 8}")


def decode(bits: Array, kind: str) -> Array:
    """Read bits as values of a type: bfloat16 as float32, pairs along a last axis."""
    if kind in PAIRS:
        return decode(np.ascontiguousarray(bits).view(np.uint16).reshape(-1, 2), PAIRS[kind])
    if kind == "bf16":
        return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return bits.view(TYPES[kind])


def encode(values: Array, kind: str) -> Array:
    """Return the bits of values of a type."""
    if kind in PAIRS:
        return np.ascontiguousarray(encode(values, PAIRS[kind])).view(np.uint32).reshape(-1)
    if kind == "bf16":
        return to_bfloat16(values)
    return np.ascontiguousarray(values).view(bits_of(kind))


def to_bfloat16(x: Array) -> Array:
    """Round float32 to nearest even; any NaN becomes the canonical one."""
    bits = x.astype(np.float32, copy=False).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.where(np.isnan(x), np.uint16(0x7FFF), rounded.astype(np.uint16))


def flush(x: Array) -> Array:
    """Return the values with subnormals replaced by zeros of their sign: `.ftz`."""
    tiny = np.abs(x) < np.finfo(x.dtype).tiny
    return np.where(tiny, np.copysign(x.dtype.type(0), x), x) if tiny.any() else x


def canonical(x: Array) -> Array:
    """Return the values with every NaN replaced by the one that arithmetic gives."""
    if not np.isnan(x.min()):
        return x
    bits = {2: 0x7FFF, 4: 0x7FFFFFFF, 8: 0x7FF8000000000000}[x.dtype.itemsize]
    return np.where(np.isnan(x), np.array(bits, f"u{x.dtype.itemsize}").view(x.dtype), x)


# --- fused multiply-add ---------------------------------------------------------------------------


def fma(a: Array, b: Array, c: Array) -> Array:
    """Return a b + c rounded once."""
    if a.dtype == np.float64:
        return _fma_double(a, b, c)
    # The product of two float32 is exact in float64. The sum is rounded to odd there, which loses
    # nothing that a second rounding, to 24 bits or fewer, asks about.
    product = a.astype(np.float64) * b.astype(np.float64)
    total = _to_odd(*_two_sum(product, c.astype(np.float64)))
    return total.astype(a.dtype)


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """Return the rounded sum and its rounding error, exactly (Knuth)."""
    total = a + b
    of_b = total - a
    return total, (a - (total - of_b)) + (b - of_b)


def _to_odd(total: Array, lost: Array) -> Array:
    """Round an inexact sum to that of its two neighbours whose last bit is odd."""
    bits = total.view(np.int64)
    change = np.isfinite(lost) & (lost != 0) & (bits & 1 == 0)
    away = np.where((lost > 0) == (total > 0), 1, -1)
    return np.where(change, bits + away, bits).view(np.float64)


def _fma_double(a: Array, b: Array, c: Array) -> Array:
    """Return fma in double by Boldo and Melquiond (2008) where no intermediate result leaves the
    range, else by fractions.
    """
    a, b, c = np.broadcast_arrays(a, b, c)
    splitter = 134217729.0  # 2^27 + 1

    def split(x: Array) -> tuple[Array, Array]:
        high = x * splitter - (x * splitter - x)
        return high, x - high

    product = a * b
    (a1, a2), (b1, b2) = split(a), split(b)
    lost = ((a1 * b1 - product) + a1 * b2 + a2 * b1) + a2 * b2
    high, low = _two_sum(c, lost)
    total, rest = _two_sum(product, high)
    result = total + _to_odd(*_two_sum(rest, low))

    def usual(x: Array) -> Array:
        size = np.abs(x)
        return (size > 2.0**-400) & (size < 2.0**400)

    inside = usual(a) & usual(b) & (usual(c) | (c == 0))
    result = np.where(inside, result, product + c)  # also right where an operand is not finite
    exact = ~inside & np.isfinite(a) & np.isfinite(b) & np.isfinite(c) & (a != 0) & (b != 0)
    for i in np.flatnonzero(exact):
        result[i] = _fma_exact(float(a[i]), float(b[i]), float(c[i]))
    return result


def _fma_exact(a: float, b: float, c: float) -> float:
    total = fractions.Fraction(a) * fractions.Fraction(b) + fractions.Fraction(c)
    if total == 0:  # exactly: 0.0 unless both are negative zeros, of which the product is none
        return 0.0
    try:
        return float(total)  # rounds once, to nearest even
    except OverflowError:
        return np.inf if total > 0 else -np.inf


# --- integers -------------------------------------------------------------------------------------


def _wide(x: Array) -> Array:
    return x.astype(np.dtype(f"{x.dtype.kind}{2 * x.dtype.itemsize}"))


def multiply_high(a: Array, b: Array) -> Array:
    """Return the high half of the product."""
    bits = 8 * a.dtype.itemsize
    if bits < 64:
        return (_wide(a) * _wide(b) >> bits).astype(a.dtype)
    product = a.astype(object) * b.astype(object)
    return np.array((product >> 64) & (2**64 - 1), dtype=np.uint64).view(a.dtype)


def divide(a: Array, b: Array) -> Array:
    """Return the quotient, rounded toward zero. Division by zero is unspecified, and refused."""
    if (b == 0).any():
        raise ZeroDivisionError("division by zero")
    if a.dtype.kind == "u":
        return a // b
    quotient = a // b
    return quotient + ((quotient * b != a) & ((a < 0) != (b < 0)))


def remainder(a: Array, b: Array) -> Array:
    """Return the remainder of the division, with the sign of a."""
    return a - divide(a, b) * b


def shift_left(a: Array, by: Array) -> Array:
    """Return a shifted left; a shift by more than all bits leaves 0."""
    bits = 8 * a.dtype.itemsize
    return np.where(by < bits, a << np.minimum(by, bits - 1).astype(a.dtype), a.dtype.type(0))


def shift_right(a: Array, by: Array) -> Array:
    """Return a shifted right, with copies of the sign; a shift by more than all bits leaves the
    sign, or 0.
    """
    bits = 8 * a.dtype.itemsize
    shifted = a >> np.minimum(by, bits - 1).astype(a.dtype)
    return shifted if a.dtype.kind == "i" else np.where(by < bits, shifted, a.dtype.type(0))


def extract_field(a: Array, position: Array, length: Array) -> Array:
    """Return `bfe`: a field of bits, of which the last is the sign if it is signed."""
    bits = 8 * a.dtype.itemsize
    position, length = (np.minimum(x & 0xFF, bits).astype(np.int64) for x in (position, length))
    length = np.minimum(length, bits - position)
    if bits != 32:
        raise Unsupported("bfe of 64 bits")
    field = (a.astype(np.int64) >> position) & ((np.int64(1) << length) - 1)
    if a.dtype.kind == "i":
        field -= ((field >> np.maximum(length - 1, 0)) & (length > 0)) << length
    return field.astype(a.dtype)


def insert_field(a: Array, b: Array, position: Array, length: Array) -> Array:
    """Return `bfi`: b with the low bits of a in place of a field."""
    one = np.uint64(1)
    position, length = (np.minimum(x & 0xFF, 63).astype(np.uint64) for x in (position, length))
    mask = ((one << length) - one) << position
    found = (b.astype(np.uint64) & ~mask) | ((a.astype(np.uint64) << position) & mask)
    return found.astype(b.dtype)


def permute(a: Array, b: Array, selector: Array) -> Array:
    """Return `prmt`: four bytes chosen among the eight of b, a."""
    eight = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    found = np.zeros_like(eight)
    for i in range(4):
        choice = (selector >> np.uint32(4 * i)).astype(np.uint64)
        byte = (eight >> (np.uint64(8) * (choice & np.uint64(7)))) & np.uint64(0xFF)
        sign = np.where(byte & np.uint64(0x80), np.uint64(0xFF), np.uint64(0))
        byte = np.where(choice & np.uint64(8), sign, byte)
        found |= byte << np.uint64(8 * i)
    return found.astype(np.uint32)


def funnel(a: Array, b: Array, by: Array, left: bool, clamp: bool) -> Array:
    """Return `shf`: 32 bits of b, a shifted by at most 32, or by the low five bits."""
    both = a.astype(np.uint64) | (b.astype(np.uint64) << np.uint64(32))
    by = (np.minimum(by, 32) if clamp else by & 31).astype(np.uint64)
    return ((both << by >> np.uint64(32)) if left else (both >> by)).astype(np.uint32)


# --- floats ---------------------------------------------------------------------------------------


def _extreme(choose: Callable[[Array, Array], Array], propagate: bool) -> Callable[..., Array]:
    """Return the function min or max: a number wins over a NaN, and -0 is below +0."""

    def extreme(a: Array, b: Array) -> Array:
        if a.dtype.kind != "f":
            return choose(a, b)
        found = choose(a, b)  # NaN where either is
        if not propagate:
            found = np.where(np.isnan(a), b, np.where(np.isnan(b), a, found))
        negative = np.signbit(a) | np.signbit(b)
        if choose is np.maximum:
            negative = np.signbit(a) & np.signbit(b)
        zero = np.where(negative, a.dtype.type(-0.0), a.dtype.type(0.0))
        return np.where((a == 0) & (b == 0), zero, found)

    return extreme


def approximate_reciprocal(x: Array) -> Array:
    """Return `rcp.approx.ftz.f64`: the low words of argument and result count as zeros."""
    high = np.uint64(0xFFFFFFFF00000000)
    x = flush((x.view(np.uint64) & high).view(np.float64))
    return flush(((1.0 / x).view(np.uint64) & high).view(np.float64))


APPROXIMATE: dict[str, Callable[[Array], Array]] = {
    "ex2": np.exp2,
    "lg2": np.log2,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "rcp": lambda x: 1.0 / x,
    "sqrt": np.sqrt,
}

ROUNDED = {"rcp", "sqrt"}  # which NumPy rounds correctly

# Ordered comparisons are false where either is NaN; those with a `u` are true.
COMPARISONS: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal,
    "ne": lambda a, b: (a < b) | (a > b) if a.dtype.kind == "f" else a != b,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
COMBINATIONS = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}

SIMPLE: dict[str, Callable[..., Array]] = {
    "add": np.add,
    "sub": np.subtract,
    "min": _extreme(np.minimum, False),
    "max": _extreme(np.maximum, False),
    "abs": np.abs,
    "neg": np.negative,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "not": np.invert,
    "shl": shift_left,
    "shr": shift_right,
    "bfe": extract_field,
    "bfi": insert_field,
    "prmt": permute,
    "rem": remainder,
    "copysign": lambda a, b: np.copysign(b, a),
}
# The types of operands where they are not all the instruction's own.
OTHER_TYPES = {
    "shl": (None, "u32"),
    "shr": (None, "u32"),
    "bfe": (None, "u32", "u32"),
    "bfi": (None, None, "u32", "u32"),
    "prmt": ("u32", "u32", "u32"),
}
FLOAT_MODIFIERS = {"rn", "ftz", "approx", "full", "NaN"}


class Arithmetic:
    """A function of arrays of values, with the types of its operands and of its result."""

    def __init__(self, function: Callable[..., Array], operands: tuple[str, ...], result: str):
        self.function, self.operands, self.result = function, operands, result


def arithmetic(opcode: str, modifiers: tuple[str, ...], count: int) -> Arithmetic:
    """Return what an instruction with `count` operands after its destination computes."""
    if not modifiers or modifiers[-1] not in {**TYPES, **PAIRS}:
        raise Unsupported("its type")
    *flags, kind = modifiers
    if opcode == "cvt":
        return conversion(tuple(flags[:-1]), flags[-1], kind, count)
    if opcode == "setp":
        return comparison(flags, kind, count)
    if opcode == "selp":
        return Arithmetic(lambda a, b, p: np.where(p, a, b), (kind, kind, "pred"), kind)
    if opcode in ("mul", "mad"):
        found = product(opcode, flags, kind)
        if found:
            return found
    is_float = kind in FLOATS or kind in PAIRS
    result, operands = kind, (kind,) * count
    if is_float:
        function = float_function(opcode, flags, kind)
    elif opcode == "div" and not flags:
        function = divide
    elif opcode == "shf" and len(flags) == 2:
        function = lambda a, b, by: funnel(a, b, by, flags[0] == "l", flags[1] == "clamp")  # noqa: E731
    elif opcode in SIMPLE and not flags:
        function = SIMPLE[opcode]
        operands = tuple(other or kind for other in OTHER_TYPES.get(opcode, operands))
    else:
        raise Unsupported("it")
    return Arithmetic(function, operands, result)


def product(opcode: str, flags: list[str], kind: str) -> Arithmetic | None:
    """Return the function for products of integers: their low or high half, or all bits."""
    if kind not in INTEGERS:
        return None
    if flags not in (["lo"], ["hi"], ["wide"]):
        raise Unsupported("its modifiers")
    result = kind
    multiply: Callable[[Array, Array], Array] = np.multiply
    if flags == ["hi"]:
        multiply = multiply_high
    elif flags == ["wide"]:
        result = f"{kind[0]}{2 * int(kind[1:])}"
        multiply = lambda a, b: _wide(a) * _wide(b)  # noqa: E731
    if opcode == "mul":
        return Arithmetic(multiply, (kind, kind), result)
    return Arithmetic(lambda a, b, c: multiply(a, b) + c, (kind, kind, result), result)


def float_function(opcode: str, flags: list[str], kind: str) -> Callable[..., Array]:
    """Return the function for floats, with `.ftz` applied to inputs and results."""
    if not set(flags) <= FLOAT_MODIFIERS:
        raise Unsupported("its modifiers")
    function: Callable[..., Array]
    if opcode in ("abs", "neg", "copysign"):  # which change a sign alone
        function = SIMPLE[opcode]
        return (lambda *operands: flush(function(*operands))) if "ftz" in flags else function
    if opcode in ("add", "sub"):
        function = SIMPLE[opcode]
    elif opcode in ("min", "max"):
        function = _extreme(np.minimum if opcode == "min" else np.maximum, "NaN" in flags)
    elif opcode == "mul":
        function = np.multiply
    elif opcode in ("fma", "mad") and "rn" in flags and kind in ("f32", "f64"):
        function = fma
    elif opcode == "div" and {"rn", "full", "approx"} & set(flags):
        function = np.divide
    elif opcode == "rcp" and "approx" in flags and kind == "f64":
        return approximate_reciprocal
    elif opcode in APPROXIMATE and ("approx" in flags or ("rn" in flags and opcode in ROUNDED)):
        function = APPROXIMATE[opcode]
    else:
        raise Unsupported("it")
    if "ftz" not in flags:
        return lambda *operands: canonical(function(*operands))
    return lambda *operands: canonical(flush(function(*(flush(x) for x in operands))))


def comparison(flags: list[str], kind: str, count: int) -> Arithmetic:
    """Return the function of `setp`, combined with a predicate where it has a third operand."""
    flush_first = "ftz" in flags
    compare = COMPARISONS[flags[0]]
    combine = COMBINATIONS[flags[1]] if count == 3 else None

    def function(a: Array, b: Array, *rest: Array) -> Array:
        found = compare(*((flush(a), flush(b)) if flush_first else (a, b)))
        return combine(found, rest[0]) if combine else found

    return Arithmetic(function, (kind, kind, "pred")[:count], "pred")


# --- conversions ----------------------------------------------------------------------------------

TO_INTEGRAL = {"ni": np.rint, "zi": np.trunc, "mi": np.floor, "pi": np.ceil}


def conversion(flags: tuple[str, ...], to: str, of: str, count: int) -> Arithmetic:
    """Return the function of `cvt.flags.to.of`; of two floats to a pair, the first is the high
    half.
    """
    rounding = next((flag[1:] for flag in flags if flag[0] == "r"), None)
    if not set(flags) <= {"rn", "rni", "rzi", "rmi", "rpi", "ftz"}:
        raise Unsupported("its modifiers")
    if to in PAIRS and count == 2:
        return Arithmetic(lambda a, b: np.stack([b, a], -1).astype(TYPES[PAIRS[to]]), (of, of), to)

    def function(x: Array) -> Array:
        if "ftz" in flags and x.dtype == np.float32:
            x = flush(x)
        if of in FLOATS and to in INTEGERS:
            return _saturated(TO_INTEGRAL[rounding or ""](x), of, to)
        if rounding in TO_INTEGRAL:
            x = TO_INTEGRAL[rounding](x)
        found = x.astype(TYPES[to])
        return flush(found) if "ftz" in flags and found.dtype == np.float32 else found

    if to == "bf16" and of not in ("f32", "bf16"):
        raise Unsupported("its types")  # which would round twice
    return Arithmetic(function, (of,), to)


def _saturated(x: Array, of: str, to: str) -> Array:
    """Return integral floats as the nearest integers that exist; for NaN zero, or what the ISA
    says.
    """
    limits = np.iinfo(TYPES[to])
    nan = 0
    if of == "f64" or limits.bits == 64:
        nan = int(limits.min) or 1 << (limits.bits - 1)
    low, high = x <= float(limits.min), x >= float(limits.max)
    inside = np.where(low | high | np.isnan(x), 0, x).astype(TYPES[to])
    found = np.where(low, limits.min, np.where(high, limits.max, inside))
    return np.where(np.isnan(x), TYPES[to].type(nan), found).astype(TYPES[to])
