"""Calls that have more than one task, of every kind there is."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import lf_backend as lf

LONG: dict[str, tuple[lf.Pattern, dict[str, Any]]] = {
    "two-sided": (lf.Window(40, 30), {}),
    "unlimited": (lf.Causal(), {}),
    "dilation per head": (lf.Window(20, 9, dilation=(1, 2, 3, 3)), {}),
    "several windows, globals": (lf.Window(30, 5) | lf.Window(9, 9, dilation=4) | lf.Global(0, 77), {}),
    "windows that cross": (lf.Window(9, 4, dilation=2) | lf.Window(5, 5, dilation=3), {}),
    "padding, globals per example": (lf.Window(40, 30), {"padding": True, "globals": True}),
    "dropout, softcap": (lf.Window(40, 30), {"dropout_p": 0.3, "softcap": 3.0}),
    "band bias": (lf.Window(12, 7), {"bias": True}),
    "grouped heads": (lf.Window(100, 0), {"kv_heads": 1}),
    "rules": (lf.sparsity.big_bird(700, block=20) | lf.Window(9, 9), {"padding": True, "kv_heads": 2}),
}


def inputs(
    kv_heads: int = 4, length: int = 700, dim: int = 24, dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, length, heads, dim) for heads in (4, kv_heads, kv_heads))
    drawn = (torch.randn(shape, generator=generator).to(dtype) for shape in shapes)
    return [x.transpose(1, 2).requires_grad_() for x in drawn]


def results(
    name: str, dtype: torch.dtype = torch.float32, length: int = 700, backend: str = "native"
) -> list[Tensor]:
    """Out, lse and all gradients."""
    pattern, options = LONG[name]
    options = dict(options)
    q, k, v = inputs(options.pop("kv_heads", 4), length, dtype=dtype)
    generator = torch.Generator().manual_seed(1)
    if options.pop("padding", False):
        options["key_padding"] = torch.rand(2, length, generator=generator) < 0.3
    if options.pop("globals", False):
        options["global_mask"] = torch.rand(2, length, generator=generator) < 0.01
    leaves = [q, k, v]
    if options.pop("bias", False):
        bias = torch.randn(1, 4, length, 20, generator=generator).to(dtype).requires_grad_()
        options["band_bias"] = bias
        leaves.append(bias)
    torch.manual_seed(2)
    out, lse = lf.attention(q, k, v, pattern, return_lse=True, backend=backend, **options)
    upstream = torch.randn(out.shape, generator=generator).to(dtype)
    return [out.detach(), lse.detach(), *torch.autograd.grad(out, leaves, upstream)]
