"""bfloat16 in Triton's interpreter, against torch's."""

from __future__ import annotations

import pytest
import torch
import triton
import triton.language as tl
from triton.runtime.errors import InterpreterError

from lf_backend.backends.triton.interpreter import exact_bfloat16


@triton.jit
def round_trip(x, y, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(y + at, tl.load(x + at).to(y.dtype.element_ty))


@triton.jit
def product(a, b, out, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)[:, None] * SIZE + tl.arange(0, SIZE)[None, :]
    tl.store(out + at, tl.dot(tl.load(a + at), tl.load(b + at)))


@triton.jit
def double(x, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(x + at, tl.load(x + at) + tl.load(x + at))


def test_rounding_is_to_the_nearest_and_ties_to_even() -> None:
    ties = 1 + torch.arange(64) * 2.0**-8
    strange = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.4e38, -3.4e38, 1e-40])
    every = torch.cat([ties, -ties, strange, torch.randn(120) * 10.0 ** torch.randint(-30, 30, (120,))])
    found = torch.empty(256, dtype=torch.bfloat16)
    with exact_bfloat16():
        round_trip[1,](every, found, SIZE=256)
    torch.testing.assert_close(found, every.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_widening_is_exact(dtype: torch.dtype) -> None:
    x = torch.randn(256).bfloat16()
    found = torch.empty(256, dtype=dtype)
    with exact_bfloat16():
        round_trip[1,](x, found, SIZE=256)
    assert torch.equal(found, x.to(dtype))


def test_products_are_of_the_numbers() -> None:
    a, b = torch.randn(2, 16, 16).bfloat16()
    found = torch.empty(16, 16)
    with exact_bfloat16():
        product[1,](a, b, found, SIZE=16)
    torch.testing.assert_close(found, a.float() @ b.float())


def test_other_arithmetic_is_refused_and_only_inside() -> None:
    x = torch.ones(16).bfloat16()
    with exact_bfloat16(), pytest.raises(InterpreterError, match="of bfloat16: a cast to float32 before"):
        double[1,](x, SIZE=16)
    double[1,](x, SIZE=16)  # wrong, and theirs
