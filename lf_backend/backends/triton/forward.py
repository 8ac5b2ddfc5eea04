"""The forward kernel: a block of queries, all keys they see, one softmax.

A program holds some queries of one residue class of the dilation, of PACK heads that share keys. It walks
the tiles of the band that all its queries see, without masks, then those at the edges, then the global
columns. Keys can be split among programs; what these write is joined by `combine`.

The online softmax is FlashAttention-2's (Dao, 2023), algorithm 1.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.pairs import band_keys, band_scores, column_keys, column_scores, factors
from lf_backend.backends.triton.tiles import (
    LOG2E,
    Keys,
    Queries,
    Scoring,
    among,
    band_of,
    block_of,
    class_length,
    edge,
    edges,
    part_of,
    queries_at,
    read,
    real,
    rows_at,
    shared,
    span,
    unit,
    unpadded,
    without_holes,
    write,
)  # fmt: skip


@triton.jit
def queries_of(
    batch, first_head, begin, start, count, dilation, positions, listed, documents, queries, keys,
    ROWS: tl.constexpr, PACK: tl.constexpr,
):  # fmt: skip
    """Queries of a block: those of steps `begin`, ... of the `count` that are start, start + dilation, ...

    Returns:
        The queries; first and last step; the residue class of their keys.
    """
    lane = tl.arange(0, ROWS)
    own = begin + lane // PACK
    inside = (own < count) & (lane // PACK < ROWS // PACK)
    slot = start + own * dilation
    if positions is None:
        index = slot
        position = keys - queries + slot
        step = position // dilation
        residue = (keys - queries + start) % dilation
        first = (keys - queries + start) // dilation + begin
        last = first + tl.minimum(ROWS // PACK, count - begin) - 1
    else:
        position = tl.load(positions + batch * listed + slot, mask=inside, other=-1)
        inside = position >= 0
        position = tl.maximum(position, 0)
        index = position - (keys - queries)
        step = position
        residue = 0
        first = tl.min(tl.where(inside, position, keys - 1))
        last = tl.max(tl.where(inside, position, 0))
    head = first_head + lane % PACK
    here = queries_at(batch, head, slot, index, step, position, inside, documents, keys)
    return here, first, last, residue


@triton.jit
def across(queries):
    """Queries as the rows of tiles [queries, keys]."""
    ends = queries.ends
    if len(ends) > 0:
        ends = (ends[0][:, None], ends[1][:, None])
    return Queries(
        queries.batch, queries.head[:, None], queries.slot[:, None], queries.index[:, None],
        queries.step[:, None], queries.position[:, None], queries.inside[:, None], ends,
    )  # fmt: skip


@triton.jit
def _join(state, score, v_tile, dropped, factor, PRECISION: tl.constexpr):
    """A tile joins the softmax of its rows: sums of weights, maximum, sums of weights times v.

    The exponent is one multiply-add in half precision, whose product rounds with the larger number; float32
    subtracts first.
    """
    total, top, values = state
    raised = tl.maximum(top, tl.max(score, 1))
    reference = tl.where(raised == float("-inf"), 0.0, raised)
    if v_tile.dtype == tl.float32:
        weight = tl.exp2((score - reference[:, None]) * factor)
    else:
        weight = tl.exp2(score * factor - (reference * factor)[:, None])
    shrink = tl.exp2((top - reference) * factor)
    total = total * shrink + tl.sum(weight, 1)
    weight = (weight * dropped).to(v_tile.dtype)
    return total, raised, tl.dot(weight, v_tile, values * shrink[:, None], input_precision=PRECISION)


@triton.jit
def _join_band(
    state, rows, queries, k, v, keys, band, key_step, dims, padding, scoring, bias, dropout,
    HEAD_DIM: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    key, there, k_tile, v_tile = band_keys(k, v, keys, band, key_step, padding, dims, HEAD_DIM, MASKED)
    score, _, _ = band_scores(
        rows, k_tile, queries, key_step[None, :], there[None, :], keys, band, padding, scoring, bias,
        PLAIN, PRECISION, MASKED,
    )  # fmt: skip
    dropped = factors(dropout, queries, key[None, :])
    return _join(state, score, v_tile, dropped, unit(scoring, PLAIN) * LOG2E, PRECISION)


@triton.jit(do_not_specialize=["queries", "keys", "left", "right", "count", "listed", "blocks", "parts"])
def forward(
    q, k, v, out, lse, positions, left, right, dilations, columns, count, padding, documents, bias,
    dropout, heads, kv_heads, queries, keys, listed, blocks, parts, scale, softcap,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    COLUMNS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, BAND: tl.constexpr,
    CAUSAL: tl.constexpr, PARTED: tl.constexpr,
):  # fmt: skip
    """Out and lse of some queries: all, or those at `positions`; of the part `program_id(1)` of the keys.

    A query that is padded has out 0 and lse -inf.

    Args:
        q, k, v: views [B, H, N, D], [B, Hkv, M, D].
        out, lse: view [B, H, N, D] and float32 [B, H, N]; if PARTED, of what every part finds for the queries
            in their order, view [parts * B, H, listed, D] and float32 [parts * B, H, listed].
        positions: int32 [B, listed] of the queries, -1 for none; None where they are the last N of the M.
        left, right, dilations: the band, in steps <= M; int32 [H] or None for 1; meaningless without BAND.
        columns, count: positions of global columns, int32 [B, count], -1 for none; or None.
        padding, documents, dropout: or None. `bias`: view [B, H, N, taps], or None.
        heads, kv_heads, queries, keys: H, Hkv, N, M.
        listed: the number of queries; N without positions.
        blocks: of queries, of one pack of heads; program_id(0) counts them, then packs, then examples.
        PLAIN: scores need no more than the scale, which is positive.
        CAUSAL: a query sees a column only if it is not ahead.
        PARTED: keys are in more than one part.
    """
    packs = heads // PACK
    block, pack = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    part, batch, first_head = tl.program_id(1), pack // packs, pack % packs * PACK
    band = None
    dilation = 1
    if BAND:
        band = band_of(left, right, dilations, first_head)
        dilation = band.dilation
    start, begin = block_of(block, listed, dilation, ROWS // PACK)
    class_count = class_length(listed, start, dilation)
    if (start >= dilation) | (begin >= class_count):
        return
    here, first, last, residue = queries_of(
        batch, first_head, begin, start, class_count, dilation, positions, listed, documents, queries, keys,
        ROWS, PACK,
    )  # fmt: skip
    rows_here = across(here)
    low, high, holes = unpadded(padding, batch, residue, dilation, class_length(keys, residue, dilation))
    there = Keys(batch, first_head // (heads // kv_heads), residue, high, keys)
    scoring = Scoring(scale, softcap)
    dims = tl.arange(0, DIMS)
    lanes = tl.arange(0, KEYS)

    is_real = real(padding, batch, keys, here.position, here.inside)
    rows = read(q, rows_at(q, batch, here.head, here.index), is_real, dims, HEAD_DIM, True)
    total = tl.zeros([ROWS], tl.float32)
    top = tl.full([ROWS], float("-inf"), tl.float32)
    values = tl.zeros([ROWS, DIMS], tl.float32)

    if BAND:
        low, high, all_low, all_high = shared(
            documents, batch, keys, first, last, residue, dilation, low, high
        )
        low, high, inner, outer = span(first, last, left, right, low, high, all_low, all_high, KEYS)
        if PARTED:
            low, high, inner, outer = part_of(low, high, inner, outer, part, parts, KEYS)
        high, inner, outer, stop = without_holes(low, high, inner, outer, padding, holes)
        for at in tl.range(inner, outer, KEYS):
            total, top, values = _join_band(
                (total, top, values), rows, rows_here, k, v, there, band, at + lanes, dims, padding, scoring,
                bias, dropout, HEAD_DIM, PLAIN, PRECISION, False,
            )  # fmt: skip
        for tile in tl.range(0, edges(low, high, inner, outer, KEYS)):
            at = edge(tile, low, inner, outer, KEYS)
            total, top, values = _join_band(
                (total, top, values), rows, rows_here, k, v, there, band, at + lanes, dims, None, scoring,
                bias, dropout, HEAD_DIM, PLAIN, PRECISION, True,
            )  # fmt: skip
        if padding is not None:
            has_holes = stop > low  # a loop without rounds costs more
            if has_holes:
                for at in tl.range(low, stop, KEYS):
                    total, top, values = _join_band(
                        (total, top, values), rows, rows_here, k, v, there, band, at + lanes, dims, padding,
                        scoring, bias, dropout, HEAD_DIM, PLAIN, PRECISION, True,
                    )  # fmt: skip
    if columns is not None:
        slots, end = among(
            documents, batch, keys, residue + first * dilation, residue + last * dilation, count
        )
        if PARTED:
            slots = tl.where(part == 0, slots, end)
        for at in tl.range(slots, end, COLUMNS):
            slot = at + tl.arange(0, COLUMNS)
            key, valid, k_tile, v_tile = column_keys(k, v, there, columns, count, slot, dims, HEAD_DIM)
            score, _ = column_scores(
                rows, k_tile, rows_here, key[None, :], valid[None, :], band, scoring, PLAIN, PRECISION, CAUSAL
            )
            dropped = factors(dropout, rows_here, key[None, :])
            total, top, values = _join(
                (total, top, values), score, v_tile, dropped, unit(scoring, PLAIN) * LOG2E, PRECISION
            )

    if padding is not None:
        total, top = tl.where(is_real, total, 0.0), tl.where(is_real, top, float("-inf"))
        values = tl.where(is_real[:, None], values, 0.0)
    safe = tl.where(total == 0, 1.0, total)
    found = top * unit(scoring, PLAIN) + tl.log(safe)
    if PARTED:
        example = part * (tl.num_programs(0) // blocks // packs) + batch
        target = rows_at(out, example, here.head, here.slot)
        row = (example.to(tl.int64) * heads + here.head) * listed + here.slot
    else:
        target = rows_at(out, batch, here.head, here.index)
        row = (batch.to(tl.int64) * heads + here.head) * queries + here.index
    write(out, target, here.inside, dims, values / safe[:, None], HEAD_DIM)
    tl.store(lse + row, found, mask=here.inside)


@triton.jit(do_not_specialize=["heads", "queries", "keys", "listed", "rows", "parts"])
def combine(
    partial, partial_lse, out, lse, positions, heads, queries, keys, listed, rows, parts,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Join `parts` <= PARTS softmaxes over disjoint keys, of one query a program.

    partial [parts, rows, HEAD_DIM] and partial_lse [parts, rows] are contiguous and float32; their rows are
    those of [B, H, listed]. All else is as in `forward`. A part that saw nothing has lse -inf and weighs 0.
    """
    row = tl.program_id(0).to(tl.int64)
    batch, head, slot = row // listed // heads, row // listed % heads, row % listed
    index = slot
    if positions is not None:
        position = tl.load(positions + batch * listed + slot)
        if position < 0:
            return
        index = position - (keys - queries)
    part = tl.arange(0, PARTS)
    dims = tl.arange(0, DIMS)
    at = part.to(tl.int64) * rows + row
    top = tl.max(tl.load(partial_lse + at, mask=part < parts, other=float("-inf")))
    reference = tl.where(top == float("-inf"), 0.0, top)
    total = reference * 0
    values = tl.zeros([DIMS], tl.float32)
    for one in tl.range(0, parts):
        own = row + rows.to(tl.int64) * one
        share = tl.exp2((tl.load(partial_lse + own) - reference) * LOG2E)
        total += share
        values += share * tl.load(partial + own * HEAD_DIM + dims, mask=dims < HEAD_DIM, other=0.0)
    safe = tl.where(total == 0, 1.0, total)
    found = (values / safe).to(out.ptr.dtype.element_ty)
    tl.store(rows_at(out, batch, head, index) + dims * out.stride[3], found, mask=dims < HEAD_DIM)
    tl.store(lse + (batch * heads + head) * queries + index, top + tl.log(safe))
