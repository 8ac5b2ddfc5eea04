"""Gradients of tiles of scores, for all kernels of the backward.

The weight of a pair is exp(score - lse), lse being +inf in rows without effect, and the gradient of its score
weight * (grad_out @ v - delta). Nothing is added by atomics: a gradient has one program, or parts that are
summed in a fixed order by `sums.sum_parts`.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.tiles import LOG2E, Queries, unit


@triton.jit
def weigh(score, lse, scoring, PLAIN: tl.constexpr, EXACT: tl.constexpr):
    """exp(score - lse); as in the forward, EXACT subtracts first."""
    if EXACT:
        found = tl.exp2((score * unit(scoring, PLAIN) - lse) * LOG2E)
    else:
        found = tl.exp2(score * (unit(scoring, PLAIN) * LOG2E) - lse * LOG2E)
    return found


@triton.jit
def raw(grad, capped, scoring):
    """Gradient of a score before the softcap, over the scale."""
    if scoring.softcap is not None:
        grad = grad * (1 - capped * capped)
    return grad


@triton.jit
def rows_of(x, heads, queries, here, inside, other, MASKED: tl.constexpr):
    """Values of x [B, H, N] for queries; if MASKED, `other` where they are not inside."""
    row = (here.batch.to(tl.int64) * heads + here.head) * queries + here.index
    found = tl.load(x + row, mask=inside, other=other) if MASKED else tl.load(x + row)
    return found


@triton.jit
def down(queries):
    """Queries as the columns of tiles [keys, queries]."""
    ends = queries.ends
    if len(ends) > 0:
        ends = (ends[0][None, :], ends[1][None, :])
    return Queries(
        queries.batch, queries.head, queries.slot[None, :], queries.index[None, :], queries.step[None, :],
        queries.position[None, :], queries.inside[None, :], ends,
    )  # fmt: skip


@triton.jit
def to_keys(
    state, score, capped, q_tile, upstream, lse, delta, v_tile, dropped, scoring,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of queries to the gradients of k, over the scale, and of v.

    Returns:
        Both, and the gradients of the products q @ k of the tile, over the scale.
    """
    grad_k, grad_v = state
    weight = weigh(score, lse, scoring, PLAIN, v_tile.dtype == tl.float32)
    grad_v = tl.dot((weight * dropped).to(v_tile.dtype), upstream, grad_v, input_precision=PRECISION)
    found = tl.dot(v_tile, tl.trans(upstream), input_precision=PRECISION)
    found = raw(weight * (found * dropped - delta), capped, scoring).to(v_tile.dtype)
    return tl.dot(found, q_tile, grad_k, input_precision=PRECISION), grad_v, found
