"""The kernels drop what `lf_backend.dropout` drops, bit by bit."""

from __future__ import annotations

import pytest
import torch

import lf_backend as lf
from lf_backend.numerics import dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("p", [1e-9, 0.1, 0.5, 0.999, 1 - 1e-9])
@pytest.mark.parametrize("pattern", [lf.Window(None, None), lf.Window(40, 30, dilation=3)], ids=str)
def test_the_same_weights(compiled: object, dtype: torch.dtype, p: float, pattern: lf.Pattern) -> None:
    """With unit vectors as values, an element of out is a weight."""
    length = 150
    q, k = torch.zeros(2, 2, 3, length, length, dtype=dtype)
    v = torch.eye(length, dtype=dtype).expand(2, 3, -1, -1)
    torch.manual_seed(7)
    seed = torch.randint(2**62, (1,))
    torch.manual_seed(7)
    out = lf.attention(q, k, v, pattern, dropout_p=p, backend="native")
    at = torch.arange(length)
    for batch in range(2):
        kept = dropout.keep(seed, batch, torch.arange(3), at, at, p, torch.float64)
        assert torch.equal(out[batch] != 0, (kept != 0) & pattern.mask(length))
