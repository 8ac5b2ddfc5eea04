"""Kernels that add up: parts of gradients, and grad_out * out."""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.tiles import read, rows_at


@triton.jit
def _sum(
    partial, to, batch, head, slot, index, examples, parts,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    dims = tl.arange(0, DIMS)
    total = tl.zeros([DIMS], tl.float32)
    for first in tl.range(0, parts, PARTS):
        part = first + tl.arange(0, PARTS)
        at = rows_at(partial, part * examples + batch, head, slot)
        total += tl.sum(read(partial, at, part < parts, dims, HEAD_DIM, True), 0)
    target = rows_at(to, batch, head, index) + dims * to.stride[3]
    tl.store(target, total.to(to.ptr.dtype.element_ty), mask=dims < HEAD_DIM)


@triton.jit(do_not_specialize=["heads", "slots", "parts", "first"])
def sum_parts(
    partial, to, other_partial, other_to, positions, heads, slots, parts, first,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, PARTS: tl.constexpr, PAIR: tl.constexpr,
):  # fmt: skip
    """Sum `parts` of rows into some rows of `to`, PARTS at a time; a row a program.

    Args:
        partial: view [parts * B, H, slots, D], float32.
        to: view [B, H, N, D]. `heads`: H.
        other_partial, other_to: the like, of the same shapes, which are summed as well if PAIR; else None.
        positions: int32 [B, slots], where a row belongs, -1 for nowhere; `first` is the position of the first
            row of `to`. None where they are all rows.
    """
    slot, plane = tl.program_id(0) % slots, tl.program_id(0) // slots
    batch, head = plane // heads, plane % heads
    index = slot
    if positions is not None:
        index = tl.load(positions + batch * slots + slot) - first
        if index < 0:
            return
    examples = tl.num_programs(0) // slots // heads
    _sum(partial, to, batch, head, slot, index, examples, parts, HEAD_DIM, DIMS, PARTS)
    if PAIR:
        _sum(other_partial, other_to, batch, head, slot, index, examples, parts, HEAD_DIM, DIMS, PARTS)


@triton.jit(do_not_specialize=["heads", "queries", "count"])
def deltas(
    grad_out, out, lse, rows, delta, local, heads, queries, count,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, LISTED: tl.constexpr,
):  # fmt: skip
    """The sums of grad_out * out over D, and lse with +inf in rows that have no effect; ROWS rows a program.

    Args:
        grad_out, out: views [B, H, N, D]. `lse`, and what is written, `delta` and `local`: float32 [B, H, N].
        rows, count: int32 [B, count], indices of rows without effect, -1 for none; or None. Rows that saw
            nothing, whose lse is -inf, have none either.
    """
    blocks = tl.cdiv(queries, ROWS)
    block, plane = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, head = plane // heads, plane % heads
    index = block * ROWS + tl.arange(0, ROWS)
    inside = index < queries
    dims = tl.arange(0, DIMS)
    row = plane.to(tl.int64) * queries + index
    upstream = read(grad_out, rows_at(grad_out, batch, head, index), inside, dims, HEAD_DIM, True)
    found = read(out, rows_at(out, batch, head, index), inside, dims, HEAD_DIM, True)
    tl.store(delta + row, tl.sum(upstream.to(tl.float32) * found.to(tl.float32), 1), mask=inside)
    own = tl.load(lse + row, mask=inside, other=0.0)
    idle = own == float("-inf")
    if rows is not None:
        for at in tl.range(0, count, LISTED):
            slot = at + tl.arange(0, LISTED)
            named = tl.load(rows + batch * count + slot, mask=slot < count, other=-1)
            idle = idle | (tl.max((named[None, :] == index[:, None]).to(tl.int32), 1) > 0)
    tl.store(local + row, tl.where(idle, float("inf"), own), mask=inside)
