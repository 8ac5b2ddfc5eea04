"""Triton's interpreter: a device on the CPU, with bfloat16 as others have it.

Triton keeps bfloat16 as uint16 in numpy: products multiply the bits as integers, and rounding cuts off. Here
products are of the numbers, rounding is to the nearest, ties to even, and other arithmetic, which no kernel
of ours asks for, is refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

from lf_backend.backends.triton.device import Device
from lf_backend.backends.triton.tuning import Tiles, Wanted

# Small, so that short sequences cross every edge.
TILES = {
    "forward": Tiles(32, 16, 1, 1),
    "grad_queries": Tiles(32, 16, 1, 1),
    "grad_keys": Tiles(16, 32, 1, 1),
    "grad_columns": Tiles(32, 32, 1, 1),
}


class Interpreter(Device):
    """A device for tensors of the CPU."""

    def tiles(self, wanted: Wanted) -> Tiles:
        return TILES[wanted.kernel]

    def launch(self, kernel: Any, grid: tuple[int, int], size: Tiles, **arguments: Any) -> None:
        with exact_bfloat16():
            kernel[grid](**arguments)


@contextmanager
def exact_bfloat16() -> Iterator[None]:
    """Launches inside compute bfloat16 right; others, of whatever kernels, are left as they are."""
    builder = interpreter.interpreter_builder
    before = builder.__class__
    builder.__class__ = _Builder
    try:
        yield
    finally:
        builder.__class__ = before


class _Builder(interpreter.InterpreterBuilder):  # type: ignore[misc]
    def cast_impl(self, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar != tl.bfloat16:
            return super().cast_impl(_wide(src), dst_type)
        return _handle(_rounded(super().cast_impl(_wide(src), tl.float32).data), tl.bfloat16)

    def create_dot(self, a: Any, b: Any, *rest: Any) -> Any:
        return super().create_dot(_wide(a), _wide(b), *rest)

    def binary_op(self, lhs: Any, rhs: Any, op: Any) -> Any:
        if lhs.dtype.scalar == tl.bfloat16:
            raise NotImplementedError(f"{op} of bfloat16: a cast to float32 before it wanted")
        return super().binary_op(lhs, rhs, op)


def _wide(value: Any) -> Any:
    """Return the same numbers, in float32 if they were in bfloat16."""
    if value.dtype.scalar != tl.bfloat16:
        return value
    return _handle((value.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


def _rounded(data: Any) -> Any:
    """float32 to the bits of bfloat16."""
    bits = np.ascontiguousarray(data).view(np.uint32)
    nearest = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = (bits >> 16) | 0x40  # a NaN, whose payload must not round to infinity
    return np.where(np.isnan(data), quiet, nearest).astype(np.uint16)


def _handle(data: Any, dtype: Any) -> Any:
    return interpreter.TensorHandle(data, dtype)
