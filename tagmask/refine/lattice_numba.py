"""The permutohedral lattice's inner loops, compiled by numba: on first use (some seconds), then kept on disk.

All release the interpreter's lock and write only rows start..stop, so threads share one call's work. The eight-wide
operations are written as LLVM vectors because the compiler does not find them by itself: it unrolls a loop of eight
into single operations, which were measured to take twice the time. They take C-contiguous arrays and check no bounds.
(They are in this file because numba's cache follows the changes of a single one.)
"""

# mypy: disable-error-code="call-arg"

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

if numba.version_info.short < (0, 62):
    raise ImportError(f"numba {numba.__version__} is too old for tagmask, which needs 0.62.")
if getattr(numba.config, "DISABLE_JIT", False):
    raise ImportError("NUMBA_DISABLE_JIT is set: vector operations have no form in Python.")

LANES = 8
INT = ir.IntType(32)
FAST = ["fast"]
AHEAD = 8
"""Rows to fetch before they are needed: they lie anywhere in an array larger than the cache."""


def _place(context: Any, builder: Any, kind: Any, array: Any, offset: Any) -> Any:
    """Pointer to the eight elements of an array from ``offset`` on."""
    data = context.make_array(kind)(context, builder, array).data
    vector = ir.VectorType(context.get_value_type(kind.dtype), LANES)
    return builder.bitcast(builder.gep(data, [offset]), vector.as_pointer())


@intrinsic
def add_scaled(typingctx: Any, out: Any, i: Any, values: Any, j: Any, factor: Any) -> Any:
    """out[i:i+8] += factor · values[j:j+8], with i and j counted through the flattened arrays."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        target = _place(context, builder, signature.args[0], args[0], args[1])
        source = _place(context, builder, signature.args[2], args[2], args[3])
        total, added = builder.load(target), builder.load(source)
        total.align = added.align = 4  # rows start anywhere
        empty = ir.Constant(added.type, ir.Undefined)
        first = builder.insert_element(empty, args[4], ir.Constant(INT, 0))
        factors = builder.shuffle_vector(first, empty, ir.Constant(ir.VectorType(INT, LANES), [0] * LANES))
        total = builder.fadd(total, builder.fmul(added, factors, flags=FAST), flags=FAST)
        builder.store(total, target).align = 4
        return context.get_dummy_value()

    return types.void(out, types.intp, values, types.intp, out.dtype), generate


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


def compiled(**options: Any) -> Callable[[Any], Any]:
    """numba's ``njit`` without the interpreter's lock, kept on disk where there is a place to keep it."""

    def decorate(function: Any) -> Any:
        try:
            return numba.njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # read-only installation, no home
            return numba.njit(nogil=True, **options)(function)

    return decorate


@compiled()
def embed(features: Any, scale: Any, lowest: Any, strides: Any, keys: Any, weights: Any) -> None:
    """Numbers and barycentric weights of the d+1 lattice points around each feature vector.

    features (N,d); scale (d,); lowest, strides int64 (d,); out: keys int64 (N,d+1), weights (N,d+1).
    """
    count, d = features.shape
    elevated = np.empty(d + 1, features.dtype)
    nearest = np.empty(d + 1, np.int64)
    rank = np.empty(d + 1, np.int64)
    corner = np.empty(d + 2, features.dtype)
    fall = np.empty(d + 1, np.int64)
    rise = strides.sum()
    size = features.dtype.type(d + 1)
    share = features.dtype.type(1) / size
    residual = np.empty(d + 1, features.dtype)
    for n in range(count):
        # Elevate onto the hyperplane whose coordinates sum to 0.
        total = features.dtype.type(0)
        for j in range(d, 0, -1):
            value = features[n, j - 1] * scale[j - 1]
            elevated[j] = total - j * value
            total += value
        elevated[0] = total
        # The nearest lattice point of colour 0 ...
        excess = 0
        for i in range(d + 1):
            down = np.floor(elevated[i] * share) * size
            if down + size - elevated[i] < elevated[i] - down:
                down += size
            nearest[i] = np.int64(down)
            residual[i] = elevated[i] - down
            excess += nearest[i]
            rank[i] = 0
        excess //= d + 1
        for i in range(d):
            for j in range(i + 1, d + 1):
                if residual[i] < residual[j]:
                    rank[i] += 1
                else:
                    rank[j] += 1
        # ... with its sum mended to 0 along the ranks.
        for i in range(d + 1):
            rank[i] += excess
            if rank[i] > d:
                rank[i] -= d + 1
                nearest[i] -= d + 1
                residual[i] += size
            elif rank[i] < 0:
                rank[i] += d + 1
                nearest[i] += d + 1
                residual[i] -= size
        corner[:] = 0
        for i in range(d + 1):
            corner[d - rank[i]] += residual[i] * share
            corner[d + 1 - rank[i]] -= residual[i] * share
        corner[0] += 1 + corner[d + 1]
        # From one corner to the next all coordinates rise by 1, and the one of that rank falls by d+1.
        key = np.int64(0)
        for i in range(d):
            key += (nearest[i] - lowest[i]) * strides[i]
            fall[d - rank[i]] = strides[i] * (d + 1)
        fall[d - rank[d]] = 0
        for k in range(d + 1):
            keys[n, k] = key
            weights[n, k] = corner[k]
            key += rise - fall[k]


@compiled(inline="always")
def _slot(key: Any, mask: Any) -> Any:
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed >> np.uint64(32)) & np.uint64(mask))


@compiled()
def _rehash(numbers: Any, found: int, size: int) -> Any:
    table = np.zeros(size, np.int32)
    for m in range(found):
        slot = _slot(numbers[m], size - 1)
        while table[slot] != 0:
            slot = (slot + 1) & (size - 1)
        table[slot] = m + 1
    return table


@compiled()
def number(keys: Any) -> Any:
    """Consecutive indices for the different keys (N,d+1), by a hash table with open addressing.

    Returns index int32 (N,d+1), the different keys int64 (M,) in order of appearance, and the table.
    """
    count, corners = keys.shape
    size = 4096  # grows with the points: a table that fits the cache is what makes this fast
    table = np.zeros(size, np.int32)  # index + 1; 0 is free
    numbers = np.empty(max(1, count * corners), np.int64)
    index = np.empty((count, corners), np.int32)
    found = 0
    for n in range(count):
        for k in range(corners):
            key = keys[n, k]
            if n > 0 and keys[n - 1, k] == key:  # neighbouring pixels mostly share their points
                index[n, k] = index[n - 1, k]
                continue
            slot = _slot(key, size - 1)
            while table[slot] != 0 and numbers[table[slot] - 1] != key:
                slot = (slot + 1) & (size - 1)
            if table[slot] == 0:
                numbers[found] = key
                found += 1
                table[slot] = found
                index[n, k] = found - 1
                if 2 * found > size:
                    size *= 4
                    table = _rehash(numbers, found, size)
            else:
                index[n, k] = table[slot] - 1
    return index, numbers[:found].copy(), table


@compiled()
def find(numbers: Any, table: Any, steps: Any, start: int, stop: int, neighbours: Any) -> None:
    """Both neighbours of the points start..stop along each axis into int32 (d+1,2,M); M where there is none."""
    mask = len(table) - 1
    for axis in range(len(steps)):
        for side in range(2):
            step = steps[axis] if side == 0 else -steps[axis]
            for m in range(start, stop):
                key = numbers[m] + step
                slot = _slot(key, mask)
                while table[slot] != 0 and numbers[table[slot] - 1] != key:
                    slot = (slot + 1) & mask
                neighbours[axis, side, m] = table[slot] - 1 if table[slot] != 0 else len(numbers)


@compiled(fastmath=True)
def splat(values: Any, index: Any, weights: Any, start: int, stop: int, lattice: Any) -> None:
    """lattice[index[n,v]] += weights[n,v] · values[n], for n in start..stop. values (N,K)."""
    width = values.shape[1]
    for n in range(start, stop):
        for v in range(index.shape[1]):
            for k in range(0, width, LANES):
                add_scaled(lattice, index[n, v] * width + k, values, n * width + k, weights[n, v])


@compiled(fastmath=True)
def merge(parts: Any, spans: Any, start: int, stop: int, out: Any) -> None:
    """out = the sum of parts (T,M,K), for rows start..stop; ``out`` may be parts[0].

    Of parts[t] only the rows spans[t,0]..spans[t,1] count, the others hold anything. spans: int64 (T,2).
    """
    one = out.dtype.type(1)
    width = out.shape[1]
    for m in range(start, stop):
        inside = spans[0, 0] <= m < spans[0, 1]
        for k in range(width):
            out[m, k] = parts[0, m, k] if inside else 0
        for t in range(1, parts.shape[0]):
            if spans[t, 0] <= m < spans[t, 1]:
                for k in range(0, width, LANES):
                    add_scaled(out, m * width + k, parts[t], m * width + k, one)


@compiled()
def span(index: Any, start: int, stop: int) -> Any:
    """The first and behind the last of the lattice points of the pixels start..stop; index int32 (N,d+1)."""
    low, high = np.int32(2**31 - 1), np.int32(-1)
    for n in range(start, stop):
        for v in range(index.shape[1]):
            low, high = min(low, index[n, v]), max(high, index[n, v])
    return low, high + 1


@compiled(fastmath=True)
def blur(old: Any, pair: Any, start: int, stop: int, new: Any) -> None:
    """new[m] = old[m] + ½ (old[one neighbour] + old[the other]), for m in start..stop. pair: int32 (2,M)."""
    half = old.dtype.type(0.5)
    width = old.shape[1]
    new[start:stop] = old[start:stop]
    for m in range(start, stop):
        if m + AHEAD < stop:
            for side in range(2):
                prefetch(old, pair[side, m + AHEAD] * width)
        for side in range(2):
            for k in range(0, width, LANES):
                add_scaled(new, m * width + k, old, pair[side, m] * width + k, half)


@compiled(fastmath=True)
def slice_rows(lattice: Any, index: Any, weights: Any, factors: Any, start: int, stop: int, out: Any) -> None:
    """out[n] += Σ_v factors[v] · weights[n,v] · lattice[index[n,v]], for n in start..stop."""
    width = out.shape[1]
    for n in range(start, stop):
        for k in range(0, width, LANES):
            for v in range(index.shape[1]):
                add_scaled(out, n * width + k, lattice, index[n, v] * width + k, factors[v] * weights[n, v])
