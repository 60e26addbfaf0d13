"""exp and log of vector registers, by Taylor series after range reduction: 2 and 3 ulp."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from latent_kernels.kernels.mixture.simd import Vector, fused


@dataclass(frozen=True)
class _Format:
    """The constants of one floating-point format."""

    mantissa: int  # bits
    bias: int
    ln2: tuple[float, float]  # the first part ends in zeros, so that an integer times it is exact
    least: float  # exp of less would be less than the least normal number
    exp_terms: int
    log_terms: int


_FORMATS = {
    types.float32: _Format(23, 127, (0.693359375, math.log(2) - 0.693359375), -87.0, 7, 5),
    types.float64: _Format(
        52, 1023, (0.693145751953125, 1.42860682030941723212e-6), -708.0, 13, 11
    ),
}


class _Registers:
    """Arithmetic on registers of one type, as instructions."""

    def __init__(self, builder: ir.IRBuilder, vector: Vector) -> None:
        self.builder = builder
        self.format = _FORMATS[vector.element]
        element = ir.FloatType() if vector.element == types.float32 else ir.DoubleType()
        self.floats = ir.VectorType(element, vector.lanes)
        self.integers = ir.VectorType(ir.IntType(vector.element.bitwidth), vector.lanes)

    def number(self, x: float) -> ir.Constant:
        return ir.Constant(self.floats, [x] * self.floats.count)

    def integer(self, n: int) -> ir.Constant:
        return ir.Constant(self.integers, [n] * self.integers.count)

    def bits(self, x: ir.Value) -> ir.Value:
        return self.builder.bitcast(x, self.integers)

    def of_bits(self, n: ir.Value) -> ir.Value:
        return self.builder.bitcast(n, self.floats)

    def polynomial(self, x: ir.Value, coefficients: list[float]) -> ir.Value:
        value = self.number(coefficients[-1])
        for c in reversed(coefficients[:-1]):
            value = fused(self.builder, value, x, self.number(c))
        return value


@intrinsic
def exp(typingctx: Any, x: Any) -> Any:
    """Return exp of x <= 0: exactly 0 below the least normal number, NaN for NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        r = _Registers(builder, x)
        f = r.format
        # Adding 1.5 * 2^mantissa leaves the nearest integer n in the low bits: x = n ln 2 + rest,
        # |rest| <= ln(2) / 2.
        magic = r.number(1.5 * 2**f.mantissa)
        shifted = fused(builder, args[0], r.number(1 / math.log(2)), magic)
        n = builder.fsub(shifted, magic)
        rest = fused(builder, n, r.number(-f.ln2[0]), args[0])
        rest = fused(builder, n, r.number(-f.ln2[1]), rest)
        series = r.polynomial(rest, [1 / math.factorial(i) for i in range(f.exp_terms + 1)])
        exponent = builder.shl(r.bits(shifted), r.integer(f.mantissa))
        power = r.of_bits(builder.add(exponent, r.integer(f.bias << f.mantissa)))
        least = builder.fcmp_ordered("<", args[0], r.number(f.least))
        return builder.select(least, r.number(0.0), builder.fmul(series, power))

    return x(x), codegen


@intrinsic
def log(typingctx: Any, x: Any) -> Any:
    """Return log of positive normal x, NaN for NaN."""

    def codegen(context: Any, builder: ir.IRBuilder, signature: Any, args: Any) -> Any:
        r = _Registers(builder, x)
        f = r.format
        one = r.number(1.0)
        # x = m 2^n with 1/sqrt(2) <= m < sqrt(2); n becomes a number as the mantissa of 2^mantissa.
        low = builder.and_(r.bits(args[0]), r.integer((1 << f.mantissa) - 1))
        m = r.of_bits(builder.or_(low, r.integer(f.bias << f.mantissa)))
        biased = builder.lshr(r.bits(args[0]), r.integer(f.mantissa))
        n = r.of_bits(builder.or_(biased, r.integer((f.bias + f.mantissa) << f.mantissa)))
        n = builder.fsub(n, r.number(float(2**f.mantissa + f.bias)))
        large = builder.fcmp_ordered(">=", m, r.number(math.sqrt(2)))
        m = builder.select(large, builder.fmul(m, r.number(0.5)), m)
        n = builder.select(large, builder.fadd(n, one), n)
        # log m = 2 atanh t, t = (m - 1)/(m + 1)
        t = builder.fdiv(builder.fsub(m, one), builder.fadd(m, one))
        series = r.polynomial(builder.fmul(t, t), [2 / (2 * i + 1) for i in range(f.log_terms + 1)])
        value = fused(builder, n, r.number(math.log(2)), builder.fmul(t, series))
        return builder.select(builder.fcmp_unordered("uno", args[0], args[0]), args[0], value)

    return x(x), codegen
