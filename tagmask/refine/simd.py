"""Eight-wide vector operations for numba's kernels.

Written as LLVM vectors because the compiler does not find them by itself: it unrolls a loop of eight into single
operations, which were measured to take twice the time. The arrays are C-contiguous; nothing checks the bounds.
"""

from __future__ import annotations

from typing import Any

import numba
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

if numba.version_info.short < (0, 62):
    raise ImportError(f"numba {numba.__version__} is too old for tagmask, which needs 0.62.")

LANES = 8
INT = ir.IntType(32)
FAST = ["fast"]


def _vector(context: Any, kind: Any) -> Any:
    return ir.VectorType(context.get_value_type(kind.dtype), LANES)


def _place(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Pointer to the eight elements of an array from ``offset`` on."""
    data = context.make_array(kind)(context, builder, array).data
    return builder.bitcast(builder.gep(data, [offset]), _vector(context, kind).as_pointer())


def _load(builder: Any, pointer: Any) -> Any:
    value = builder.load(pointer)
    value.align = 4  # rows start anywhere
    return value


def _store(builder: Any, value: Any, pointer: Any) -> None:
    builder.store(value, pointer).align = 4


def _multiply_add(builder: Any, total: Any, factor: Any, values: Any) -> Any:
    """total + factor · values, for a scalar factor."""
    empty = ir.Constant(values.type, ir.Undefined)
    first = builder.insert_element(empty, factor, ir.Constant(INT, 0))
    factors = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))
    return builder.fadd(total, builder.fmul(values, factors, flags=FAST), flags=FAST)


@intrinsic
def add_scaled(typingctx: Any, out: Any, i: Any, values: Any, j: Any, factor: Any) -> Any:
    """out[i:i+8] += factor · values[j:j+8], with i and j counted through the flattened arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _place(context, builder, signature.args[0], args[0], args[1])
        source = _place(context, builder, signature.args[2], args[2], args[3])
        total = _multiply_add(builder, _load(builder, target), args[4], _load(builder, source))
        _store(builder, total, target)
        return context.get_dummy_value()

    return types.void(out, types.intp, values, types.intp, out.dtype), generate


@intrinsic
def add_corners(
    typingctx: Any, out: Any, i: Any, rows: Any, j: Any, index: Any, weights: Any, factors: Any, n: Any
) -> Any:
    """out[i:i+8] += Σ_v factors[v] · weights[n,v] · rows[index[n,v], j:j+8]; index is int32."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        kinds = signature.args

        def array(k: int) -> Any:
            return context.make_array(kinds[k])(context, builder, args[k])

        places, weighing, factoring = array(4).data, array(5).data, array(6).data
        width = cgutils.unpack_tuple(builder, array(2).shape, 2)[1]
        corners = cgutils.unpack_tuple(builder, array(4).shape, 2)[1]
        first = builder.mul(args[7], corners)
        target = _place(context, builder, kinds[0], args[0], args[1])
        total = cgutils.alloca_once_value(builder, _load(builder, target))  # becomes a register
        with cgutils.for_range(builder, corners) as loop:
            entry = builder.add(first, loop.index)
            row = builder.sext(builder.load(builder.gep(places, [entry])), width.type)
            weight = builder.load(builder.gep(weighing, [entry]))
            factor = builder.fmul(weight, builder.load(builder.gep(factoring, [loop.index])))
            source = _place(context, builder, kinds[2], args[2], builder.add(builder.mul(row, width), args[3]))
            builder.store(_multiply_add(builder, builder.load(total), factor, _load(builder, source)), total)
        _store(builder, builder.load(total), target)
        return context.get_dummy_value()

    return types.void(out, types.intp, rows, types.intp, index, weights, factors, types.intp), generate


@intrinsic
def prefetch(typingctx: Any, rows: Any, i: Any) -> Any:
    """Begin to fetch rows[i] and what follows, counted through the flattened array: two cache lines."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        kind = ir.FunctionType(ir.VoidType(), [byte, INT, INT, INT])
        call = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        for ahead in (0, 64 // signature.args[0].dtype.bitwidth * 8):
            place = builder.gep(data, [builder.add(args[1], ir.Constant(args[1].type, ahead))])
            builder.call(
                call, [builder.bitcast(place, byte), ir.Constant(INT, 0), ir.Constant(INT, 3), ir.Constant(INT, 1)]
            )
        return context.get_dummy_value()

    return types.void(rows, types.intp), generate
