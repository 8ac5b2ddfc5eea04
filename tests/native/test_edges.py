"""Shapes at the edges of blocks, windows and sequences, and tensors in odd places."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

import lf_backend as lf
from lf_backend.testing import Case, check

pytestmark = pytest.mark.usefixtures("compiled")

WINDOWS = [lf.Window(0, 0), lf.Window(3, 1), lf.Window(200, 200), lf.Window(1, 1, dilation=500)]


@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 97, 130])
@pytest.mark.parametrize("pattern", WINDOWS, ids=str)
def test_lengths(length: int, pattern: lf.Pattern) -> None:
    check(Case(pattern, batch=1, heads=2, queries=length, head_dim=24), "native", torch.float32)


@pytest.mark.parametrize("head_dim", [1, 7, 8, 24, 56, 72, 104, 160, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_head_dims(head_dim: int, dtype: torch.dtype) -> None:
    pattern = lf.Window(20, 9) | lf.Global(3)
    check(Case(pattern, batch=1, queries=70, head_dim=head_dim, padding="middle"), "native", dtype)


def test_head_dim_has_a_limit() -> None:
    q = torch.zeros(1, 1, 4, 264)
    with pytest.raises(lf.UnsupportedError, match="head_dim <= 256 wanted, call has 264"):
        lf.attention(q, q, q, lf.Window(1, 1), backend="native")


@pytest.mark.parametrize("queries", [1, 2, 7, 20])
@pytest.mark.parametrize("heads", [2, 6])
@pytest.mark.parametrize("keys", [40, 3000])
def test_decoding(queries: int, heads: int, keys: int) -> None:
    case = Case(lf.Window(1000, 0) | lf.Global(0) & lf.Causal(), 2, heads, 2, queries, keys)
    check(case, "native", torch.float32)


FEW: dict[str, dict[str, Any]] = {
    "softcap": {"softcap": 3.0},
    "two windows": {"pattern": lf.Window(700, 0) | lf.Window(900, 0, dilation=2) | lf.Global(0, 2)},
    "dilation": {"pattern": lf.Window(300, 0, dilation=3)},
    "ahead": {"pattern": lf.Window(300, 200), "heads": 4},
    "padding": {"padding": "middle"},
    "documents": {"documents": 5},
    "narrow heads": {"head_dim": 36},
    "wide heads": {"head_dim": 200},
}


@pytest.mark.parametrize("name", FEW)
@pytest.mark.parametrize("queries", [1, 2, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_few_queries(name: str, queries: int, dtype: torch.dtype) -> None:
    case = Case(lf.Window(1000, 0) | lf.Global(0), 2, 2, 2, queries, keys=1500, head_dim=64)
    check(replace(case, **FEW[name]), "native", dtype)


def test_several_rounds_of_keys() -> None:
    """More keys than are copied at once: sums wait between rounds."""
    case = Case(
        lf.Window(None, 3) | lf.Global(5), batch=1, queries=150, keys=5000, head_dim=256, padding="middle"
    )
    check(case, "native", torch.float32)


def test_elements_apart() -> None:
    q, k, v = (torch.randn(1, 2, 16, 100).transpose(2, 3).requires_grad_() for _ in range(3))
    for backend in ("native", "reference"):
        out = lf.attention(q, k, v, lf.Window(9, 9), backend=backend)
        grads = torch.autograd.grad(out.sum(), (q, k, v))  # its upstream is one number, expanded
        if backend == "native":
            found = (out, *grads)
    for one, other in zip(found, (out, *grads), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_nothing_is_written_outside() -> None:
    """q, k and v are parts of larger memory that holds NaN."""
    memory = torch.full((3, 2, 90, 3, 32), torch.nan)
    q, k, v = memory[:, :, 10:80, 1:, 8:24].copy_(torch.randn(3, 2, 70, 2, 16)).transpose(2, 3)
    before = memory.clone()
    out = lf.attention(q, k, v, lf.Window(9, 9), backend="native")
    assert out.isfinite().all()
    assert torch.equal(memory.nan_to_num(7.0), before.nan_to_num(7.0))
