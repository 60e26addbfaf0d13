"""Vector registers as a numba type: `load`, `store`, and arithmetic by operators.

LLVM's loop vectorizer does not keep a block of accumulators in registers over a loop, which is what
makes a product of matrices fast; with registers as values, numba code says what stays in them. A
`Vector` has as many lanes as fit the widest registers of this machine. Addresses are (array, index
of the first element), with no check of bounds.
"""

from __future__ import annotations

import operator
from typing import Any

import llvmlite.binding
from llvmlite import ir
from numba.core import cgutils, config, types
from numba.core.datamodel.models import PrimitiveModel
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, register_model


def _features() -> set[str]:
    """Return the CPU features of this machine, or those in NUMBA_CPU_FEATURES."""
    chosen = getattr(config, "CPU_FEATURES", None)
    if chosen is not None:
        return {name[1:] for name in chosen.split(",") if name.startswith("+")}
    return {name for name, present in llvmlite.binding.get_host_cpu_features().items() if present}


_wide = _features() if getattr(config, "ENABLE_AVX", True) else set()
WIDTH = 64 if "avx512f" in _wide else 32 if "avx" in _wide else 16  # bytes
_arm = llvmlite.binding.get_process_triple().startswith(("aarch64", "arm64"))
REGISTERS = 32 if _arm or "avx512f" in _wide else 16  # that hold vectors
LANES = {4: WIDTH // 4, 8: WIDTH // 8}  # by the size of an element
_IR = {types.float32: ir.FloatType(), types.float64: ir.DoubleType()}


class Vector(types.Type):
    """A register of float32 or float64 lanes."""

    def __init__(self, element: types.Float) -> None:
        self.element = element
        self.lanes = LANES[element.bitwidth // 8]
        super().__init__(name=f"Vector({element} x {self.lanes})")

    @property
    def key(self) -> Any:
        """Return what tells these types apart."""
        return (self.element, self.lanes)


def _ir_type(vector: Vector) -> ir.VectorType:
    return ir.VectorType(_IR[vector.element], vector.lanes)


@register_model(Vector)
class _VectorModel(PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Vector) -> None:
        super().__init__(dmm, fe_type, _ir_type(fe_type))  # type: ignore[no-untyped-call]


def _pointer(
    context: Any, builder: ir.IRBuilder, array: types.Array, value: Any, index: Any
) -> ir.Value:
    data = cgutils.create_struct_proxy(array)(context, builder, value).data
    return builder.gep(data, [index])


def _vector_pointer(
    context: Any, builder: ir.IRBuilder, signature: Any, args: Any, vector: Vector
) -> ir.Value:
    element = _pointer(context, builder, signature.args[0], args[0], args[1])
    return builder.bitcast(element, _ir_type(vector).as_pointer())


def _splat(builder: ir.IRBuilder, vector: Vector, scalar: ir.Value) -> ir.Value:
    kind = _ir_type(vector)
    first = builder.insert_element(
        ir.Constant(kind, ir.Undefined), scalar, ir.Constant(ir.IntType(32), 0)
    )
    mask = ir.Constant(ir.VectorType(ir.IntType(32), vector.lanes), [0] * vector.lanes)
    return builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask)


@intrinsic
def load(typingctx: Any, array: Any, index: Any) -> Any:
    """Return the lanes array[index:index + lanes]."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _vector_pointer(context, builder, signature, args, vector)
        return builder.load(pointer, align=array.dtype.bitwidth // 8)

    return vector(array, types.intp), codegen


@intrinsic
def store(typingctx: Any, array: Any, index: Any, value: Any) -> Any:
    """Set array[index:index + lanes] = value."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _vector_pointer(context, builder, signature, args, value)
        builder.store(args[2], pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()

    return types.void(array, types.intp, value), codegen


@intrinsic
def broadcast(typingctx: Any, array: Any, index: Any) -> Any:
    """Return array[index] in every lane."""
    vector = Vector(array.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        scalar = builder.load(_pointer(context, builder, array, args[0], args[1]))
        return _splat(builder, vector, scalar)

    return vector(array, types.intp), codegen


@intrinsic
def full_like(typingctx: Any, model: Any, value: Any) -> Any:
    """Return the number `value` in every lane of a register like `model` (an array or register)."""
    vector = model if isinstance(model, Vector) else Vector(model.dtype)

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return _splat(
            builder, vector, context.cast(builder, args[1], signature.args[1], vector.element)
        )

    return vector(model, value), codegen


class _Elementwise(AbstractTemplate):
    """The typing of a binary operator: two registers of one type give a third."""

    def generic(self, args: Any, kws: Any) -> Any:
        """Return the signature, or None if the arguments are not two registers of one type."""
        if len(args) == 2 and isinstance(args[0], Vector) and args[0] == args[1]:
            return args[0](*args)
        return None


def _define_operator(symbol: Any, instruction: str) -> None:
    infer_global(symbol)(type(f"_{instruction}", (_Elementwise,), {}))

    @lower_builtin(symbol, Vector, Vector)  # type: ignore[untyped-decorator]
    def lower(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return getattr(builder, instruction)(*args)


_define_operator(operator.add, "fadd")
_define_operator(operator.sub, "fsub")
_define_operator(operator.mul, "fmul")
_define_operator(operator.truediv, "fdiv")


def fused(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
    """Return a*b + c as an instruction, rounded once if the machine has one for it."""
    bits = 32 if isinstance(a.type.element, ir.FloatType) else 64
    signature = ir.FunctionType(a.type, [a.type] * 3)
    name = f"llvm.fmuladd.v{a.type.count}f{bits}"
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), [a, b, c])


@intrinsic
def multiply_add(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """Return a*b + c, rounded once if the machine has an instruction for it."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return fused(builder, *args)

    return a(a, a, a), codegen


@intrinsic
def select_less(typingctx: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """Return `then` in the lanes where a < b, `otherwise` in the others and for NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("<", args[0], args[1]), args[2], args[3])

    return then(a, a, then, then), codegen


@intrinsic
def select_equal(typingctx: Any, a: Any, b: Any, then: Any, otherwise: Any) -> Any:
    """Return `then` in the lanes where a == b, `otherwise` in the others and for NaN."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered("==", args[0], args[1]), args[2], args[3])

    return then(a, a, then, then), codegen


def _shuffle(builder: ir.IRBuilder, a: ir.Value, b: ir.Value, lanes: list[int]) -> ir.Value:
    mask = ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), lanes)
    return builder.shuffle_vector(a, b, mask)


def _lane_sums(builder: ir.IRBuilder, registers: list[ir.Value]) -> list[ir.Value]:
    """Return the sums over the lanes of each of 2^n registers, in order, in fewer registers.

    A register holds groups of lanes that have yet to be summed, at first one group. A step adds the
    two halves of every group, from two registers into one, or from the last register into half of
    one.
    """
    width = registers[0].type.count
    while width > 1:
        width //= 2
        lanes = registers[0].type.count
        first = [group + i for group in range(0, lanes, 2 * width) for i in range(width)]
        if len(registers) > 1:
            first += [lanes + i for i in first]
            pairs = list(zip(registers[::2], registers[1::2], strict=True))
        else:
            pairs = [(registers[0], registers[0])]
        second = [i + width for i in first]
        registers = [
            builder.fadd(_shuffle(builder, a, b, first), _shuffle(builder, a, b, second))
            for a, b in pairs
        ]
    return registers


@intrinsic
def store_sums(typingctx: Any, array: Any, index: Any, registers: Any) -> Any:
    """Set array[index + i] to the sum over the lanes of registers[i], a tuple of 2^n."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        pointer = _pointer(context, builder, array, args[0], args[1])
        for sums in _lane_sums(builder, cgutils.unpack_tuple(builder, args[2])):
            builder.store(
                sums,
                builder.bitcast(pointer, sums.type.as_pointer()),
                align=array.dtype.bitwidth // 8,
            )
            pointer = builder.gep(pointer, [ir.Constant(ir.IntType(64), sums.type.count)])
        return context.get_dummy_value()

    return types.void(array, types.intp, registers), codegen


@intrinsic
def lanes(typingctx: Any, array: Any) -> Any:
    """Return the number of lanes in a register of the array's elements."""
    count = LANES[array.dtype.bitwidth // 8]

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return context.get_constant(types.intp, count)

    return types.intp(array), codegen
