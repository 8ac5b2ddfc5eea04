"""Scales for kernels that want them positive: they find the largest score before they scale it."""

from __future__ import annotations

from torch import Tensor


def positive_scale(q: Tensor, scale: float) -> tuple[Tensor, float, int]:
    """Return queries and a positive scale that give the same scores, and the factor that the queries have.

    The gradient of q is that factor times the gradient of these queries.
    """
    if scale > 0:
        return q, scale, 1
    sign = -1 if scale else 0
    return sign * q, abs(scale) or 1.0, sign
