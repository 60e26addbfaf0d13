"""The PTX interpreter itself: each instruction against exact arithmetic, threads that diverge and
reconverge, and what it refuses.
"""

from __future__ import annotations

import fractions
import math
import random
import struct
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch

from tests.triton.ptx.execute import Program
from tests.triton.ptx.memory import Fault, GlobalMemory
from tests.triton.ptx.parse import parse
from tests.triton.ptx.semantics import Unsupported

Fraction = fractions.Fraction
INF, NAN = math.inf, math.nan

MODULE = """
.version 8.0
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 global_smem[];
.visible .entry kernel(
    {parameters}
)
.reqntid {threads}
{{
    .reg .pred %p<20>;
    .reg .b16 %rs<20>;
    .reg .b32 %r<40>;
    .reg .b64 %rd<40>;
    mov.u32 %r30, %tid.x;
{begins}
{body}
    ret;
}}
"""


def execute(
    body: str, *tensors: torch.Tensor, threads: int = 32, blocks: int = 1, shared: int = 0
) -> None:
    """Run instructions: %r30 is the thread, %rd30, %rd31, ... begin the tensors."""
    names = [f"kernel_param_{i}" for i in range(len(tensors))]
    parameters = ",\n    ".join(f".param .u64 .ptr .global .align 1 {name}" for name in names)
    begins = "\n".join(f"    ld.param.b64 %rd{30 + i}, [{x}];" for i, x in enumerate(names))
    text = MODULE.format(parameters=parameters, threads=threads, begins=begins, body=body)
    memory = GlobalMemory(list(tensors))
    arguments = [region.begin for region in memory.regions]
    Program(parse(text), threads).run((blocks, 1, 1), arguments, memory, shared)


# --- one instruction at a time --------------------------------------------------------------------

REGISTERS = {"b16": "%rs", "b32": "%r", "b64": "%rd", "pred": "%p"}


def apply(instruction: str, signature: str, *operands: Sequence[int]) -> list[int]:
    """Return the bits that an instruction computes from operands' bits, by the threads of a block.

    `signature` has the registers of the operands and of the result: "b32 b32 -> b64".
    """
    *kinds, _, result = signature.split()
    count = len(operands[0])
    rows = [[x - (x >> 63 << 64) for x in row] for row in operands]
    given, out = torch.tensor(rows), torch.zeros(count, dtype=torch.int64)
    body = ["mul.wide.u32 %rd1, %r30, 8;", "add.s64 %rd2, %rd30, %rd1;"]
    body += ["add.s64 %rd3, %rd31, %rd1;"]
    names = []
    for i, kind in enumerate(kinds):
        names.append(f"{REGISTERS[kind]}{10 + i}")
        body.append(f"ld.global.b64 %rd4, [%rd2 + {8 * count * i}];")
        body.append({
            "b64": f"mov.b64 {names[i]}, %rd4;",
            "b32": f"cvt.u32.u64 {names[i]}, %rd4;",
            "b16": f"cvt.u16.u64 {names[i]}, %rd4;",
            "pred": f"setp.ne.b64 {names[i]}, %rd4, 0;",
        }[kind])  # fmt: skip
    target = f"{REGISTERS[result]}9"
    body.append(f"{instruction} {target}, {', '.join(names)};")
    body.append({
        "b64": f"mov.b64 %rd5, {target};",
        "b32": f"cvt.u64.u32 %rd5, {target};",
        "b16": f"cvt.u64.u16 %rd5, {target};",
        "pred": f"selp.b64 %rd5, 1, 0, {target};",
    }[result])  # fmt: skip
    body.append("st.global.b64 [%rd3], %rd5;")
    threads = count
    execute("\n".join(body), given, out, threads=threads)
    return [x & (2**64 - 1) for x in out.tolist()]


def integers(bits: int, count: int, seed: int) -> list[int]:
    """Return edge values, and random ones of all sizes, as bits."""
    draw = random.Random(seed)
    edges = [0, 1, 2, 2**bits - 1, 2**bits - 2, 1 << bits - 1, (1 << bits - 1) - 1]
    found = edges + [draw.getrandbits(draw.randint(1, bits)) for _ in range(count)]
    draw.shuffle(found)
    return found[:count]


def signed(x: int, bits: int) -> int:
    x &= (1 << bits) - 1
    return x - (x >> bits - 1 << bits)


def truncated(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


INTEGER: dict[str, Callable[..., int]] = {
    "add": lambda a, b, n: a + b,
    "sub": lambda a, b, n: a - b,
    "mul.lo": lambda a, b, n: a * b,
    "mul.hi": lambda a, b, n: a * b >> n,
    "div": lambda a, b, n: truncated(a, b or 3),
    "rem": lambda a, b, n: a - truncated(a, b or 3) * (b or 3),
    "min": lambda a, b, n: min(a, b),
    "max": lambda a, b, n: max(a, b),
    "mad.lo": lambda a, b, n: a * b + a,
}


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("name", INTEGER)
def test_integers(name: str, kind: str) -> None:
    bits = int(kind[1:])
    a, b = integers(bits, 128, 1), integers(bits, 128, 2)
    if name in ("div", "rem"):
        b = [y or 3 for y in b]
        b = [3 if signed(y, bits) == -1 and kind[0] == "s" else y for y in b]
    operands = (a, b, a) if name == "mad.lo" else (a, b)
    register = f"b{bits}"
    found = apply(
        f"{name}.{kind}", f"{' '.join([register] * len(operands))} -> {register}", *operands
    )
    for x, y, z in zip(a, b, found, strict=True):
        given = (signed(x, bits), signed(y, bits)) if kind[0] == "s" else (x, y)
        assert z == INTEGER[name](*given, bits) % 2**bits, (x, y)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind: str) -> None:
    bits = int(kind[1:])
    a, b, c = integers(bits, 128, 1), integers(bits, 128, 2), integers(2 * bits, 128, 3)
    narrow, wide = f"b{bits}", f"b{2 * bits}"
    products = apply(f"mul.wide.{kind}", f"{narrow} {narrow} -> {wide}", a, b)
    sums = apply(f"mad.wide.{kind}", f"{narrow} {narrow} {wide} -> {wide}", a, b, c)
    for x, y, z, product, total in zip(a, b, c, products, sums, strict=True):
        expected = signed(x, bits) * signed(y, bits) if kind[0] == "s" else x * y
        assert product == expected % 4**bits
        assert total == (expected + z) % 4**bits


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_bits(bits: int) -> None:
    a, b = integers(bits, 128, 1), integers(bits, 128, 2)
    by = [x % (2 * bits) if i % 8 else 2**32 - 1 for i, x in enumerate(integers(32, 128, 3))]
    register = f"b{bits}"
    two, one = f"{register} {register} -> {register}", f"{register} b32 -> {register}"
    assert apply(f"and.b{bits}", two, a, b) == [x & y for x, y in zip(a, b, strict=True)]
    assert apply(f"or.b{bits}", two, a, b) == [x | y for x, y in zip(a, b, strict=True)]
    assert apply(f"xor.b{bits}", two, a, b) == [x ^ y for x, y in zip(a, b, strict=True)]
    assert apply(f"not.b{bits}", f"{register} -> {register}", a) == [x ^ (2**bits - 1) for x in a]
    shifted = list(zip(a, by, strict=True))
    mask = 2**bits - 1
    assert apply(f"shl.b{bits}", one, a, by) == [x << min(n, 99) & mask for x, n in shifted]
    assert apply(f"shr.u{bits}", one, a, by) == [x >> min(n, 99) for x, n in shifted]
    right = [signed(x, bits) >> min(n, 99) & mask for x, n in shifted]
    assert apply(f"shr.s{bits}", one, a, by) == right


def test_fields_and_bytes() -> None:
    a, b = integers(32, 128, 1), integers(32, 128, 2)
    position, length = ([x % 40 for x in integers(32, 128, i)] for i in (3, 4))
    four = "b32 b32 b32 -> b32"
    for x, p, n, u, s in zip(
        a, position, length,
        apply("bfe.u32", four, a, position, length), apply("bfe.s32", four, a, position, length),
        strict=True,
    ):  # fmt: skip
        n = max(0, min(n, 32 - p))
        field = (x >> p) & ((1 << n) - 1)
        assert u == field
        if p < 32 and n:
            assert signed(s, 32) == signed(field, n)
    for x, y, p, n, z in zip(
        a, b, position, length, apply("bfi.b32", f"b32 {four}", a, b, position, length), strict=True
    ):
        mask = ((1 << n) - 1 << p) & (2**32 - 1)
        assert z == (y & ~mask | (x << p) & mask)
    # Byte 0, the sign of byte 7, byte 4, the sign of byte 4.
    assert apply("prmt.b32", four, [0x33221100], [0xF7665544], [0xC4F0]) == [0x0044FF00]
    assert apply("shf.l.wrap.b32", four, [0x80000001], [0x12345678], [36]) == [0x23456788]
    assert apply("shf.r.clamp.b32", four, [0x80000001], [0x12345678], [40]) == [0x12345678]


# --- floats, rounded once -------------------------------------------------------------------------

FORMATS = {"f16": (11, -24, "e"), "f32": (24, -149, "f"), "f64": (53, -1074, "d")}


def bits_of(x: float, kind: str) -> int:
    if kind == "bf16":
        return bits_of(x, "f32") >> 16
    letter = FORMATS[kind][2]
    code = {"e": "H", "f": "I", "d": "Q"}[letter]
    return int(struct.unpack(f"<{code}", struct.pack(f"<{letter}", x))[0])


def value_of(bits: int, kind: str) -> float:
    if kind == "bf16":
        return value_of(bits << 16, "f32")
    letter = FORMATS[kind][2]
    code = {"e": "H", "f": "I", "d": "Q"}[letter]
    return float(struct.unpack(f"<{letter}", struct.pack(f"<{code}", bits))[0])


def rounded(x: Fraction, kind: str) -> float:
    """Return the nearest value of a format, ties to even, computed with integers alone."""
    digits, lowest, _ = FORMATS[kind]
    if x == 0:
        return 0.0
    exponent = math.floor(math.log2(abs(x.numerator)) - math.log2(x.denominator)) - digits
    exponent = max(exponent, lowest)
    scaled = abs(x) / Fraction(2) ** exponent
    while scaled >= 2**digits:
        exponent += 1
        scaled = abs(x) / Fraction(2) ** exponent
    if scaled < 2 ** (digits - 1) and exponent > lowest:
        exponent -= 1
        scaled *= 2
    whole = round(scaled) * Fraction(2) ** exponent  # Python rounds ties to even
    limit = Fraction(2) ** ({"f16": 16, "f32": 128, "f64": 1024}[kind])
    size = INF if whole >= limit else float(whole)
    return size if x > 0 else -size


def floats(kind: str, count: int, seed: int) -> list[float]:
    """Return edge values, and random bits: every exponent, and many near each other."""
    draw = random.Random(seed)
    digits, lowest, _ = FORMATS[kind]
    edges = [
        0.0,
        -0.0,
        1.0,
        -1.0,
        INF,
        -INF,
        NAN,
        2.0**lowest,
        -(2.0**lowest),
        1.5,
        1 + 2.0 ** (1 - digits),
    ]
    width = {"f16": 16, "f32": 32, "f64": 64}[kind]
    found = [value_of(draw.getrandbits(width), kind) for _ in range(count // 2)]
    found += [rounded(Fraction(draw.uniform(-4, 4)), kind) for _ in range(count // 2)]
    found = edges + found
    draw.shuffle(found)
    return found[:count]


def same(found: float, expected: float) -> bool:
    if math.isnan(expected):
        return math.isnan(found)
    return found == expected and math.copysign(1, found) == math.copysign(1, expected)


def exactly(work: Callable[..., Fraction], kind: str, *operands: float) -> float | None:
    """Return the exact result, rounded once; None where infinities, NaN or a zero's sign matter."""
    if not all(math.isfinite(x) for x in operands):
        return None
    try:
        exact = work(*(Fraction(x) for x in operands))
    except ZeroDivisionError:
        return None
    return rounded(exact, kind) if exact else None


EXACT: dict[str, tuple[Callable[..., Any], int]] = {
    "add": (lambda a, b: a + b, 2),
    "sub": (lambda a, b: a - b, 2),
    "mul": (lambda a, b: a * b, 2),
    "div": (lambda a, b: a / b, 2),
    "fma": (lambda a, b, c: a * b + c, 3),
}


@pytest.mark.parametrize("kind", ["f32", "f64"])
@pytest.mark.parametrize("name", EXACT)
def test_floats_are_rounded_once(name: str, kind: str) -> None:
    work, count = EXACT[name]
    operands = [floats(kind, 512, seed) for seed in range(count)]
    register = f"b{kind[1:]}"
    bits = [[bits_of(x, kind) for x in row] for row in operands]
    signature = f"{' '.join([register] * count)} -> {register}"
    found = [value_of(x, kind) for x in apply(f"{name}.rn.{kind}", signature, *bits)]
    checked = 0
    for *given, z in zip(*operands, found, strict=True):
        expected = exactly(work, kind, *given)
        if expected is not None:
            assert same(z, expected), given
            checked += 1
        elif any(math.isnan(x) for x in given):
            assert math.isnan(z)
    assert checked > 300


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_fma_where_rounding_twice_would_show(kind: str) -> None:
    """fma is right where rounding twice would show: products that cancel, or lie beside half a unit
    of the sum; subnormals; intermediate overflow.
    """
    digits, lowest, _ = FORMATS[kind]
    unit, tiny, draw = 2.0**-digits, 2.0**lowest, random.Random(0)
    cases = [
        (1 + 2 * unit, 1 - unit, -1.0),
        (1 + 2 * unit, 1 + 2 * unit, -(1 + 4 * unit)),
        (tiny, 0.5, 1.0), (tiny, -0.5, 1.0), (tiny, 0.5, tiny), (tiny, 0.25, 0.0),
        (2.0**-60, 2.0**-60, 1 + 2 * unit), (-(2.0**-60), 2.0**-60, 1 + 2 * unit),
        (unit, 1.0, 1.0), (unit, 1 + 2 * unit, 1.0), (unit, 1 - unit, 1.0),
        (-0.0, 1.0, -0.0), (0.0, 1.0, -0.0), (1.0, 1.0, -1.0),
        (value_of(bits_of(INF, kind) - 1, kind), 2.0, -value_of(bits_of(INF, kind) - 1, kind)),
        (value_of(bits_of(INF, kind) - 1, kind), 2.0, 0.0),
        (INF, 0.0, 1.0), (INF, 1.0, -INF), (INF, 1.0, 3.0), (2.0, NAN, 1.0),
    ]  # fmt: skip
    while len(cases) < 512:
        a, b = (rounded(Fraction(draw.uniform(1, 2)), kind) for _ in range(2))
        scale = draw.choice([0, 3, digits - 1, digits, digits + 1, 2 * digits, -5])
        cases.append((a, b, -rounded(Fraction(a) * Fraction(b) * Fraction(2) ** scale, kind)))
    register = f"b{kind[1:]}"
    bits = [[bits_of(x, kind) for x in row] for row in zip(*cases, strict=True)]
    found = apply(f"fma.rn.{kind}", f"{register} {register} {register} -> {register}", *bits)
    for given, z in zip(cases, found, strict=True):
        expected = exactly(EXACT["fma"][0], kind, *given)
        if expected is None:
            a, b, c = given
            expected = a * b + c  # zeros, infinities and NaN
        assert same(value_of(z, kind), expected), given


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_roots_and_reciprocals(kind: str) -> None:
    x = [abs(x) for x in floats(kind, 256, 1) if math.isfinite(x) and x]
    register = f"b{kind[1:]}"
    bits = [bits_of(a, kind) for a in x]
    roots = apply(f"sqrt.rn.{kind}", f"{register} -> {register}", bits)
    inverses = apply(f"rcp.rn.{kind}", f"{register} -> {register}", bits)
    for a, root, inverse in zip(x, roots, inverses, strict=True):
        assert same(value_of(inverse, kind), rounded(1 / Fraction(a), kind))
        got = value_of(root, kind)
        below, above = (value_of(root + step, kind) for step in (-1, 1))
        middles = [(Fraction(got) + Fraction(other)) / 2 for other in (below, above)]
        assert middles[0] ** 2 <= Fraction(a) <= middles[1] ** 2


COMPARED = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a < b or a > b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
    "equ": lambda a, b: not (a < b or a > b), "neu": lambda a, b: a != b,
    "ltu": lambda a, b: not a >= b, "leu": lambda a, b: not a > b,
    "gtu": lambda a, b: not a <= b, "geu": lambda a, b: not a < b,
    "num": lambda a, b: a == a and b == b, "nan": lambda a, b: a != a or b != b,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARED)
def test_comparisons(name: str) -> None:
    values = [NAN, -INF, -1.0, -0.0, 0.0, 1.0, INF]
    pairs = [(a, b) for a in values for b in values]
    expected = [int(COMPARED[name](a, b)) for a, b in pairs]
    for kind, register in (("f32", "b32"), ("f64", "b64"), ("f16", "b16"), ("bf16", "b16")):
        bits = [[bits_of(x, kind) for x in row] for row in zip(*pairs, strict=True)]
        assert apply(f"setp.{name}.{kind}", f"{register} {register} -> pred", *bits) == expected
    if name in ("lt", "le", "gt", "ge", "eq", "ne"):
        whole = [(a, b) for a in (-2, 0, 5) for b in (-2, 0, 5)]
        bits = [[x % 2**32 for x in row] for row in zip(*whole, strict=True)]
        for kind, of in (("s32", lambda x: x), ("u32", lambda x: x % 2**32)):
            assert apply(f"setp.{name}.{kind}", "b32 b32 -> pred", *bits) == [
                int(COMPARED[name](of(a), of(b))) for a, b in whole
            ]
    mixed = [i % 2 for i in range(len(pairs))]
    bits = [[bits_of(x, "f32") for x in row] for row in zip(*pairs, strict=True)]
    for combine, work in (("and", int.__and__), ("or", int.__or__), ("xor", int.__xor__)):
        found = apply(f"setp.{name}.{combine}.f32", "b32 b32 pred -> pred", *bits, mixed)
        assert found == [work(x, y) for x, y in zip(expected, mixed, strict=True)]


def test_extremes_and_signs() -> None:
    values = [NAN, -INF, -1.0, -0.0, 0.0, 1.0, INF]
    pairs = [(a, b) for a in values for b in values]
    bits = [[bits_of(x, "f32") for x in row] for row in zip(*pairs, strict=True)]
    two = "b32 b32 -> b32"
    for name, choose in (("min", min), ("max", max)):
        plain, strict = apply(f"{name}.f32", two, *bits), apply(f"{name}.NaN.f32", two, *bits)
        for (a, b), x, y in zip(pairs, plain, strict, strict=True):
            numbers = [v for v in (a, b) if v == v]
            want = choose(numbers, key=lambda v: (v, math.copysign(1, v))) if numbers else NAN
            assert same(value_of(x, "f32"), want), (name, a, b)
            assert same(value_of(y, "f32"), want if len(numbers) == 2 else NAN)
    one = [bits_of(x, "f32") for x in values]
    assert apply("neg.f32", "b32 -> b32", one) == [x ^ 1 << 31 for x in one]
    assert apply("abs.f32", "b32 -> b32", one) == [x & (1 << 31) - 1 for x in one]
    pair = bits_of(-1.5, "bf16") << 16 | bits_of(2.0, "bf16")
    assert apply("abs.bf16x2", "b32 -> b32", [pair]) == [pair & 0x7FFF7FFF]
    low = [bits_of(1e-40, "f32"), bits_of(-1e-40, "f32"), bits_of(1e-30, "f32")]
    assert apply("abs.f32", "b32 -> b32", low) == [low[0], low[0], low[2]]
    assert apply("abs.ftz.f32", "b32 -> b32", low) == [0, 0, low[2]]
    assert apply("add.rn.ftz.f32", two, low, [0] * 3) == [0, 0, low[2]]


# --- conversions ----------------------------------------------------------------------------------


def test_integer_conversions() -> None:
    x = integers(64, 128, 1)
    for to, of in (("s64", "s32"), ("u64", "u32"), ("u32", "u64"), ("s32", "s16"), ("u16", "u32")):
        n, m = int(to[1:]), int(of[1:])
        found = apply(f"cvt.{to}.{of}", f"b{m} -> b{n}", x)
        read = signed if of[0] == "s" else lambda v, k: v % 2**k
        assert found == [read(v, m) % 2**n for v in x], (to, of)


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_integers_to_floats(kind: str) -> None:
    bits = int(kind[1:])
    x = integers(bits, 256, 1) + [2**24 + 1, 2**24 + 3, 2**31 - 1]
    for to in ("f32", "f64"):
        found = apply(f"cvt.rn.{to}.{kind}", f"b{bits} -> b{to[1:]}", x)
        for v, z in zip(x, found, strict=True):
            value = signed(v, bits) if kind[0] == "s" else v
            assert value_of(z, to) == rounded(Fraction(value), to), v


@pytest.mark.parametrize("of", ["f32", "f64"])
@pytest.mark.parametrize("to", ["s32", "u32", "s64", "u64"])
def test_floats_to_integers(to: str, of: str) -> None:
    bits = int(to[1:])
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if to[0] == "s" else (0, 2**bits - 1)
    x = [*floats(of, 200, 3), 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 2.0**31, 2.0**32, 2.0**63, 2.0**64,
         -(2.0**31), -(2.0**63), 2.0**31 - 128]  # fmt: skip
    for mode, work in (
        ("rzi", math.trunc),
        ("rmi", math.floor),
        ("rpi", math.ceil),
        ("rni", round),
    ):
        found = apply(f"cvt.{mode}.{to}.{of}", f"b{of[1:]} -> b{bits}", [bits_of(v, of) for v in x])
        for v, z in zip(x, found, strict=True):
            if math.isnan(v):
                wide = of == "f64" or bits == 64
                assert z == (1 << bits - 1 if wide else 0)
            else:
                whole = (high if v > 0 else low) if math.isinf(v) else work(v)
                assert z == min(max(whole, low), high) % 2**bits, (mode, v)


def test_floats_to_floats() -> None:
    wide = [*floats("f64", 400, 4), 65519.9, 65520.0, 2.0**-25, 2.0**-25 * 1.01, 1 + 2.0**-11]
    halves = [bits_of(x, "f64") for x in wide]
    for to, of, given in (("f32", "f64", wide), ("f16", "f32", None), ("f16", "f64", wide)):
        values = given or [
            v for x in wide for v in [rounded(Fraction(x), "f32") if math.isfinite(x) else x]
        ]
        bits = halves if of == "f64" else [bits_of(v, of) for v in values]
        found = apply(f"cvt.rn.{to}.{of}", f"b{of[1:]} -> b{to[1:]}", bits)
        for v, z in zip(values, found, strict=True):
            expected = rounded(Fraction(v), to) if math.isfinite(v) and v else v
            assert same(value_of(z, to), expected), (to, of, v)
    singles = floats("f32", 400, 5)
    bits = [bits_of(v, "f32") for v in singles]
    expected = torch.tensor(singles).bfloat16().view(torch.int16)
    found = apply("cvt.rn.bf16.f32", "b32 -> b16", bits)
    for v, z, want in zip(singles, found, expected.tolist(), strict=True):
        assert z == (0x7FFF if math.isnan(v) else want % 2**16), v
    paired = apply("cvt.rn.bf16x2.f32", "b32 b32 -> b32", bits, bits[::-1])
    assert paired == [a << 16 | b for a, b in zip(found, found[::-1], strict=True)]
    for kind in ("f16", "bf16"):
        every = list(range(0, 2**16, 97))
        back = apply(f"cvt.f32.{kind}", "b16 -> b32", every)
        assert all(
            same(value_of(z, "f32"), value_of(v, kind)) for v, z in zip(every, back, strict=True)
        )
    for mode, work in (
        ("rmi", math.floor),
        ("rpi", math.ceil),
        ("rzi", math.trunc),
        ("rni", round),
    ):
        x = [0.5, 1.5, -0.5, -2.5, 1e20, 3.0]
        got = apply(f"cvt.{mode}.f32.f32", "b32 -> b32", [bits_of(v, "f32") for v in x])
        assert [value_of(z, "f32") for z in got] == [
            float(work(value_of(bits_of(v, "f32"), "f32"))) for v in x
        ]


def test_approximate_instructions_at_full_precision() -> None:
    x = [0.5, 1.0, 3.0, 10.0, 0.1]
    bits = [bits_of(v, "f32") for v in x]
    for name, work in (
        ("ex2.approx.f32", lambda v: 2.0**v), ("lg2.approx.f32", math.log2),
        ("rcp.approx.ftz.f32", lambda v: 1 / v), ("rsqrt.approx.f32", lambda v: v**-0.5),
        ("sqrt.approx.f32", math.sqrt), ("sin.approx.f32", math.sin), ("cos.approx.f32", math.cos),
        ("tanh.approx.f32", math.tanh),
    ):  # fmt: skip
        for v, z in zip(x, apply(name, "b32 -> b32", bits), strict=True):
            exact = work(value_of(bits_of(v, "f32"), "f32"))
            assert abs(value_of(z, "f32") - exact) <= 2.0**-22 * abs(exact), (name, v)
    (seed,) = apply("rcp.approx.ftz.f64", "b64 -> b64", [bits_of(3.0, "f64")])
    assert seed % 2**32 == 0
    assert abs(value_of(seed, "f64") * 3 - 1) < 2.0**-19
    found = apply("div.full.f32", "b32 b32 -> b32", bits, bits[::-1])
    assert [value_of(z, "f32") for z in found] == pytest.approx(
        [a / b for a, b in zip(x, x[::-1], strict=True)]
    )


@pytest.mark.parametrize(
    "instruction",
    ["sin.f32 %r1, %r30;", "add.rz.f32 %r1, %r30, %r30;", "atom.global.add.u32 %r1, [%rd30], 1;",
     "fma.rn.bf16 %rs1, %rs1, %rs1, %rs1;", "mov.u32 %r1, %clock;", "bar.sync 1, 32;",
     "ld.volatile.global.b32 %r1, [%rd30];", "frobnicate.b32 %r1, %r30;"],
)  # fmt: skip
def test_unknown_instructions_are_named(instruction: str) -> None:
    with pytest.raises(Unsupported) as raised:
        execute(instruction, torch.zeros(4))
    assert instruction.rstrip(";") in str(raised.value)


# --- threads --------------------------------------------------------------------------------------


def test_threads_part_and_meet() -> None:
    """Threads diverge in a loop of as many turns as the thread's number, with a branch in it, and
    reconverge for a shuffle.
    """
    out = torch.zeros(64, dtype=torch.int32)
    body = """
    mov.b32 %r1, 0;
    mov.b32 %r2, 0;
    bra.uni $head;
$odd:
    add.s32 %r2, %r2, 100;
$next:
    add.s32 %r1, %r1, 1;
$head:
    setp.ge.s32 %p1, %r1, %r30;
    @%p1 bra $end;
    and.b32 %r3, %r1, 1;
    setp.eq.s32 %p2, %r3, 1;
    @%p2 bra $odd;
    add.s32 %r2, %r2, 1;
    bra.uni $next;
$end:
    shfl.sync.bfly.b32 %r4, %r2, 1, 31, -1;
    mad.wide.u32 %rd1, %r30, 4, %rd30;
    st.global.b32 [%rd1], %r4;
"""
    execute(body, out, threads=64)
    of = [(t + 1) // 2 + 100 * (t // 2) for t in range(64)]
    assert out.tolist() == [of[t ^ 1] for t in range(64)]


@pytest.mark.parametrize(
    ("mode", "b", "c", "source"),
    [
        ("bfly", 16, 31, lambda lane: lane ^ 16),
        ("up", 1, 0, lambda lane: lane - 1 if lane else lane),
        ("down", 3, 31, lambda lane: lane + 3 if lane < 29 else lane),
        ("idx", 5, 31, lambda lane: 5),
        ("idx", 2, 0x181F, lambda lane: lane // 8 * 8 + 2),
        ("up", 4, 0x1800, lambda lane: lane - 4 if lane % 8 >= 4 else lane),
        ("down", 4, 0x181F, lambda lane: lane + 4 if lane % 8 < 4 else lane),
    ],
)
def test_shuffles(mode: str, b: int, c: int, source: Callable[[int], int]) -> None:
    out = torch.zeros(96, dtype=torch.int32)
    body = f"""
    shfl.sync.{mode}.b32 %r1, %r30, {b}, {c}, -1;
    mad.wide.u32 %rd1, %r30, 4, %rd30;
    st.global.b32 [%rd1], %r1;
"""
    execute(body, out, threads=96)
    assert out.tolist() == [t - t % 32 + source(t % 32) for t in range(96)]


def test_reductions_of_warps() -> None:
    out = torch.zeros(2, 64, dtype=torch.int32)
    body = """
    sub.s32 %r1, %r30, 40;
    redux.sync.min.s32 %r2, %r1, -1;
    redux.sync.add.s32 %r3, %r1, -1;
    mad.wide.u32 %rd1, %r30, 4, %rd30;
    st.global.b32 [%rd1], %r2;
    st.global.b32 [%rd1 + 256], %r3;
"""
    execute(body, out, threads=64)
    assert out.reshape(2, 2, 32)[:, :, 7].tolist() == [
        [-40, -8],
        [sum(range(-40, -8)), sum(range(-8, 24))],
    ]


def test_matrices_in_shared_memory() -> None:
    """Plain loads and ldmatrix find what stmatrix stores by rows of eight 16-bit elements."""
    out = torch.zeros(3, 32, dtype=torch.int32)
    body = """
    mov.b32 %r1, global_smem;
    and.b32 %r2, %r30, 7;
    shl.b32 %r3, %r2, 4;
    add.s32 %r3, %r3, %r1;
    stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r3], {%r30};
    bar.sync 0;
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r4}, [%r3];
    shl.b32 %r5, %r30, 2;
    add.s32 %r5, %r5, %r1;
    ld.shared.b32 %r6, [%r5];
    mad.wide.u32 %rd1, %r30, 4, %rd30;
    st.global.b32 [%rd1], %r4;
    st.global.b32 [%rd1 + 128], %r6;
"""
    execute(body, out, shared=128)
    assert out[0].tolist() == out[1].tolist() == list(range(32))


def test_vectors_scopes_and_predicates() -> None:
    x = torch.arange(32, dtype=torch.int32)
    out = torch.zeros(32, dtype=torch.int32)
    body = """
    setp.lt.u32 %p1, %r30, 8;
    mul.wide.u32 %rd1, %r30, 16;
    add.s64 %rd2, %rd30, %rd1;
    add.s64 %rd3, %rd31, %rd1;
    @%p1 ld.global.v4.b32 { %r1, %r2, %r3, %r4 }, [ %rd2 + 0 ];
    { .reg .b32 tmp; mov.b64 %rd4, {%r1, %r2}; mov.b64 {tmp, %r5}, %rd4; add.s32 %r1, tmp, %r5; }
    @!%p1 bra $end;
    st.global.v4.b32 [%rd3], {%r4, %r3, %r2, %r1};
$end:
"""
    execute(body, x, out)
    rows = x.reshape(8, 4)
    expected = torch.stack([rows[:, 3], rows[:, 2], rows[:, 1], rows[:, 0] + rows[:, 1]], 1)
    assert torch.equal(out.reshape(8, 4), expected.int())


# Threads below 4 load what they stored; all lanes of the warp add up that register, by shuffles.
FIRST_LANES = """
    mov.b32 %r1, global_smem;
    shl.b32 %r2, %r30, 2;
    add.s32 %r2, %r2, %r1;
    setp.lt.u32 %p1, %r30, 4;
    @%p1 st.shared.b32 [%r2], %r30;
    @%p1 ld.shared.b32 %r3, [%r2];
    shfl.sync.bfly.b32 %r4, %r3, 2, 31, -1;
    add.s32 %r5, %r3, %r4;
    mov.b64 %rd1, {%r5, %r30};
    mov.b64 {%r6, %r7}, %rd1;
    selp.b32 %r8, %r6, 7, %p1;
    mad.wide.u32 %rd2, %r30, 4, %rd30;
"""


def test_what_some_threads_did_not_write_may_be_shuffled() -> None:
    """Unwritten values of some threads may be shuffled as long as no thread stores the result or
    acts on it.
    """
    out = torch.zeros(2, 32, dtype=torch.int32)
    stores = "@%p1 st.global.b32 [%rd2], %r6; st.global.b32 [%rd2 + 128], %r8;"
    execute(FIRST_LANES + stores, out, shared=16)
    assert out[0].tolist() == [2, 4, 2, 4] + [0] * 28
    assert out[1].tolist() == [2, 4, 2, 4] + [7] * 28


@pytest.mark.parametrize(
    ("use", "register"),
    [
        ("st.global.b32 [%rd2], %r3;", "%r3"),
        ("st.global.b32 [%rd2], %r6;", "%r6"),
        ("st.shared.b32 [%r1], %r5;", "%r5"),
        ("mad.wide.u32 %rd3, %r5, 4, %rd30; ld.global.b32 %r9, [%rd3];", "%rd3"),
        ("setp.eq.s32 %p2, %r5, 0; @%p2 st.global.b32 [%rd2], %r30;", "%p2"),
        ("setp.eq.s32 %p2, %r5, 0; @%p2 bra $end; $end:", "%p2"),
        ("setp.eq.s32 %p2, %r5, 0; selp.b32 %r9, 1, 2, %p2; st.global.b32 [%rd2], %r9;", "%r9"),
        ("selp.b32 %r9, 7, %r5, %p1; st.global.b32 [%rd2], %r9;", "%r9"),
        # Lanes 0 to 3 themselves, from lanes that wrote nothing.
        ("shfl.sync.bfly.b32 %r9, %r3, 4, 31, -1; @%p1 st.global.b32 [%rd2], %r9;", "%r9"),
        ("@%p1 mov.b32 %r9, %r4; @!%p1 mov.b32 %r9, %r4; st.global.b32 [%rd2], %r9;", "%r9"),
    ],
)
def test_what_some_threads_did_not_write_is_refused(use: str, register: str) -> None:
    """Unwritten values are refused in a store, an address and a predicate, by whatever way they got
    there.
    """
    with pytest.raises(Fault, match=f"{register} is read by threads that did not write it"):
        execute(FIRST_LANES + use, torch.zeros(64, dtype=torch.int32), shared=16)


# --- what is refused ------------------------------------------------------------------------------

AT = "mad.wide.u32 %rd1, %r30, 4, %rd30;\n"
SHARED = (
    "mov.b32 %r1, global_smem; shl.b32 %r2, %r30, 2; add.s32 %r2, %r2, %r1; xor.b32 %r3, %r2, 4;\n"
)
PUT, GET = "st.shared.b32 [%r2], %r30;\n", "ld.shared.b32 %r4, [%r3];\n"
FAULTS = {
    "bytes 124 to 128": AT + "ld.global.b32 %r1, [%rd1];",
    "bytes -4 to 0": AT + "ld.global.b32 %r1, [%rd1 + -4];",
    "outside every tensor": "ld.global.b32 %r1, [%rd5];",
    "not aligned, in a tensor": AT + "@%p5 ld.global.b64 %rd2, [%rd1];",
    "%r7 is read before it is written": "add.s32 %r1, %r7, %r30;",
    "two threads write different values, in a tensor": "st.global.b32 [%rd30], %r30;",
    "reads what another thread writes": "setp.lt.u32 %p1, %r30, 16;" + AT
    + "@%p1 st.global.b32 [%rd1], %r30; ld.global.b32 %r2, [%rd30];",
    "shared memory that nothing wrote": SHARED + GET,
    "another thread wrote since a barrier": SHARED + PUT + GET,
    "overwrites shared memory that another thread read": SHARED + PUT + "bar.sync 0;" + GET + PUT,
    "two threads write different values to shared": SHARED + "st.shared.b32 [%r1], %r30;",
    "of 256 bytes of shared memory": SHARED + "st.shared.b32 [%r2 + 252], %r30;",
    "not aligned, in shared memory": SHARED + "st.shared.b32 [%r2 + 2], %r30;",
    "a barrier that 16 threads reach": "setp.lt.u32 %p1, %r30, 16; @%p1 bra $on; bar.sync 0; $on:",
    "lanes of its mask do not take part": "setp.lt.u32 %p1, %r30, 16; @%p1 bra $on;"
    "shfl.sync.bfly.b32 %r1, %r30, 1, 31, -1; $on:",
    "division by zero": "div.u32 %r1, %r30, %r30;",
    "does not end": "$on: bra.uni $on;",
}  # fmt: skip


@pytest.mark.parametrize("message", FAULTS)
def test_faults(message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.triton.ptx.execute.LONGEST", 1000)
    prelude = "setp.lt.u32 %p5, %r30, 2; mov.b64 %rd5, 64;"
    with pytest.raises((Fault, ZeroDivisionError), match=message):
        execute(prelude + FAULTS[message], torch.zeros(31, dtype=torch.int32), shared=256)


def test_barriers_order_shared_memory() -> None:
    """A block's barrier orders accesses of the threads of a block, a warp's those of a warp."""
    execute(SHARED + PUT + "bar.sync 0;" + GET + "bar.sync 0;" + PUT, shared=256)
    execute(SHARED + PUT + "bar.warp.sync -1;" + GET + "bar.warp.sync -1;" + PUT, shared=256)
    across = SHARED + "xor.b32 %r3, %r2, 128;" + PUT + "bar.warp.sync -1;" + GET
    with pytest.raises(Fault, match="another thread wrote since a barrier"):
        execute(across, threads=64, shared=256)


def test_blocks_run_apart() -> None:
    """More blocks than run at once each have their own shared memory."""
    out = torch.zeros(100, 64, dtype=torch.int32)
    body = (
        SHARED
        + """
    mov.u32 %r5, %ctaid.x;
    mov.u32 %r6, %ntid.x;
    mad.lo.s32 %r7, %r5, %r6, %r30;
    st.shared.b32 [%r2], %r7;
    bar.sync 0;
    ld.shared.b32 %r4, [%r3];
    mad.wide.u32 %rd1, %r7, 4, %rd30;
    st.global.b32 [%rd1], %r4;
"""
    )
    execute(body, out, threads=64, blocks=100, shared=256)
    assert out.flatten().tolist() == [i ^ 1 for i in range(6400)]
