"""The backward kernels: gradients of queries, of the band's keys, of global columns.

The weight of a pair is exp(score - lse), lse being +inf in rows without effect, and the gradient of its score
weight * (grad_out @ v - delta). Nothing is added by atomics: a gradient has one program, or parts that are
summed in a fixed order. `grad_columns` finds the whole gradient of a global column, band included, which
replaces what `grad_keys` found: so every sum is rounded once.

Where keys or queries are in parts, `sum_parts` adds these up and puts the sums where they belong.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.forward import across, queries_of
from lf_backend.backends.triton.pairs import (
    all_scores,
    band_keys,
    band_scores,
    column_keys,
    column_scores,
    factors,
)  # fmt: skip
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
    taps_at,
    unit,
    unpadded,
    write,
)  # fmt: skip


@triton.jit
def _weigh(score, lse, scoring, PLAIN: tl.constexpr, EXACT: tl.constexpr):
    """exp(score - lse); as in the forward, EXACT subtracts first."""
    if EXACT:
        found = tl.exp2((score * unit(scoring, PLAIN) - lse) * LOG2E)
    else:
        found = tl.exp2(score * (unit(scoring, PLAIN) * LOG2E) - lse * LOG2E)
    return found


@triton.jit
def _raw(grad, capped, scoring):
    """Gradient of a score before the softcap, over the scale."""
    if scoring.softcap is not None:
        grad = grad * (1 - capped * capped)
    return grad


@triton.jit
def _rows_of(x, heads, queries, here, inside, other, MASKED: tl.constexpr):
    """Values of x [B, H, N] for queries; if MASKED, `other` where they are not inside."""
    row = (here.batch.to(tl.int64) * heads + here.head) * queries + here.index
    found = tl.load(x + row, mask=inside, other=other) if MASKED else tl.load(x + row)
    return found


@triton.jit
def _band_to_queries(
    grad, rows, upstream, lse, delta, queries, k, v, keys, band, key_step, dims, padding, scoring, bias,
    dropout, grad_bias,
    HEAD_DIM: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    key, there, k_tile, v_tile = band_keys(k, v, keys, band, key_step, padding, dims, HEAD_DIM, MASKED)
    score, capped, seen = band_scores(
        rows, k_tile, queries, key_step[None, :], there[None, :], keys, band, padding, scoring, bias,
        PLAIN, PRECISION, MASKED,
    )  # fmt: skip
    weight = _weigh(score, lse, scoring, PLAIN, k_tile.dtype == tl.float32)
    found = tl.dot(upstream, tl.trans(v_tile), input_precision=PRECISION)
    found = weight * (found * factors(dropout, queries, key[None, :]) - delta)
    if grad_bias is not None:
        tap = key_step[None, :] - queries.step + band.left
        tl.store(taps_at(grad_bias, queries, tap), found, mask=seen)
    found = _raw(found, capped, scoring).to(k_tile.dtype)
    return tl.dot(found, k_tile, grad, input_precision=PRECISION)


@triton.jit(do_not_specialize=["queries", "keys", "left", "right", "count", "listed", "blocks", "parts"])
def grad_queries(
    q, k, v, grad_out, lse, delta, grad_q, grad_bias, positions, left, right, dilations, columns, count,
    padding, documents, bias, dropout, heads, kv_heads, queries, keys, listed, blocks, parts, scale, softcap,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    COLUMNS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, BAND: tl.constexpr,
    CAUSAL: tl.constexpr, PARTED: tl.constexpr,
):  # fmt: skip
    """Gradients of q, from the part `program_id(1)` of the keys, and of the band bias.

    Args as in `forward`, and
        grad_out: view [B, H, N, D]. `lse`, `delta`: float32 [B, H, N].
        grad_q: view [B, H, N, D], of which the computed rows are written; if PARTED, float32 of every part,
            view [parts * B, H, listed, D].
        grad_bias: view [B, H, N, taps] that holds zeros, or None.
    """
    block, pack = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    part, batch, head = tl.program_id(1), pack // heads, pack % heads
    band = None
    dilation = 1
    if BAND:
        band = band_of(left, right, dilations, head)
        dilation = band.dilation
    start, begin = block_of(block, listed, dilation, ROWS)
    class_count = class_length(listed, start, dilation)
    if (start >= dilation) | (begin >= class_count):
        return
    here, first, last, residue = queries_of(
        batch, head, begin, start, class_count, dilation, positions, listed, documents, queries, keys, ROWS, 1
    )
    rows_here = across(here)
    length = class_length(keys, residue, dilation)
    there = Keys(batch, head // (heads // kv_heads), residue, length, keys)
    scoring = Scoring(scale, softcap)
    dims = tl.arange(0, DIMS)
    lanes = tl.arange(0, KEYS)

    is_real = real(padding, batch, keys, here.position, here.inside)
    rows = read(q, rows_at(q, batch, here.head, here.index), is_real, dims, HEAD_DIM, True)
    at = rows_at(grad_out, batch, here.head, here.index)
    upstream = read(grad_out, at, is_real, dims, HEAD_DIM, True)
    own_lse = _rows_of(lse, heads, queries, rows_here, is_real[:, None], float("inf"), True)
    own_delta = _rows_of(delta, heads, queries, rows_here, is_real[:, None], 0.0, True)
    grad = tl.zeros([ROWS, DIMS], tl.float32)

    if BAND:
        low, high, holes = unpadded(padding, batch, residue, dilation, length)
        low, high, all_low, all_high = shared(
            documents, batch, keys, first, last, residue, dilation, low, high
        )
        low, high, inner, outer = span(first, last, left, right, low, high, all_low, all_high, KEYS)
        if PARTED:
            low, high, inner, outer = part_of(low, high, inner, outer, part, parts, KEYS)
        if padding is not None:
            outer = tl.where(holes, inner, outer)
        for at in tl.range(inner, outer, KEYS):
            grad = _band_to_queries(
                grad, rows, upstream, own_lse, own_delta, rows_here, k, v, there, band, at + lanes, dims,
                padding, scoring, bias, dropout, grad_bias, HEAD_DIM, PLAIN, PRECISION, False,
            )  # fmt: skip
        for tile in tl.range(0, edges(low, high, inner, outer, KEYS)):
            at = edge(tile, low, inner, outer, KEYS)
            grad = _band_to_queries(
                grad, rows, upstream, own_lse, own_delta, rows_here, k, v, there, band, at + lanes, dims,
                padding, scoring, bias, dropout, grad_bias, HEAD_DIM, PLAIN, PRECISION, True,
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
            score, capped = column_scores(
                rows, k_tile, rows_here, key[None, :], valid[None, :], band, scoring, PLAIN, PRECISION, CAUSAL
            )
            weight = _weigh(score, own_lse, scoring, PLAIN, k_tile.dtype == tl.float32)
            found = tl.dot(upstream, tl.trans(v_tile), input_precision=PRECISION)
            found = weight * (found * factors(dropout, rows_here, key[None, :]) - own_delta)
            found = _raw(found, capped, scoring).to(k_tile.dtype)
            grad = tl.dot(found, k_tile, grad, input_precision=PRECISION)

    if PARTED:
        example = part * (tl.num_programs(0) // blocks // heads) + batch
        target = rows_at(grad_q, example, here.head, here.slot)
    else:
        target = rows_at(grad_q, batch, here.head, here.index)
    write(grad_q, target, here.inside, dims, grad * scale, HEAD_DIM)


@triton.jit
def _down(queries):
    """Queries as the columns of tiles [keys, queries]."""
    ends = queries.ends
    if len(ends) > 0:
        ends = (ends[0][None, :], ends[1][None, :])
    return Queries(
        queries.batch, queries.head, queries.slot[None, :], queries.index[None, :], queries.step[None, :],
        queries.position[None, :], queries.inside[None, :], ends,
    )  # fmt: skip


@triton.jit
def _at_steps(batch, head, step, stop, residue, dilation, positions, listed, documents, queries, keys):
    """Queries at steps of a residue class of the keys, or of the list of positions, before `stop`."""
    inside = step < stop
    slot = step
    if positions is None:
        position = residue + step * dilation
    else:
        position = tl.load(positions + batch * listed + step, mask=inside, other=-1)
        inside = position >= 0
        position = tl.maximum(position, 0)
        step = position
    return queries_at(batch, head, slot, position - (keys - queries), step, position, inside, documents, keys)


@triton.jit
def _to_keys(
    state, score, capped, q_tile, upstream, lse, delta, v_tile, dropped, scoring,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Add a tile of queries to the gradients of k, over the scale, and of v."""
    grad_k, grad_v = state
    weight = _weigh(score, lse, scoring, PLAIN, v_tile.dtype == tl.float32)
    grad_v = tl.dot((weight * dropped).to(v_tile.dtype), upstream, grad_v, input_precision=PRECISION)
    found = tl.dot(v_tile, tl.trans(upstream), input_precision=PRECISION)
    found = _raw(weight * (found * dropped - delta), capped, scoring).to(v_tile.dtype)
    return tl.dot(found, q_tile, grad_k, input_precision=PRECISION), grad_v


@triton.jit
def _band_to_keys(
    state, k_tile, v_tile, q, grad_out, lse, delta, queries, heads, total, key_step, key, there, keys, band,
    dims, padding, scoring, bias, dropout,
    HEAD_DIM: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    inside = queries.inside
    if MASKED:
        inside = real(padding, queries.batch, keys.total, queries.position, inside)
    at = rows_at(q, queries.batch, queries.head, queries.index)
    q_tile = read(q, at, inside, dims, HEAD_DIM, MASKED)
    at = rows_at(grad_out, queries.batch, queries.head, queries.index)
    upstream = read(grad_out, at, inside, dims, HEAD_DIM, MASKED)
    down = _down(queries)
    own_lse = _rows_of(lse, heads, total, down, inside[None, :], float("inf"), MASKED)
    own_delta = _rows_of(delta, heads, total, down, inside[None, :], 0.0, MASKED)
    score, capped, _ = band_scores(
        k_tile, q_tile, down, key_step[:, None], there[:, None], keys, band, padding, scoring, bias,
        PLAIN, PRECISION, MASKED,
    )  # fmt: skip
    dropped = factors(dropout, down, key[:, None])
    return _to_keys(
        state, score, capped, q_tile, upstream, own_lse, own_delta, v_tile, dropped, scoring, PLAIN, PRECISION
    )


@triton.jit(do_not_specialize=["queries", "keys", "left", "right", "listed", "blocks", "group"])
def grad_keys(
    q, k, v, grad_out, lse, delta, grad_k, grad_v, positions, left, right, dilations, padding, documents,
    bias, dropout, heads, kv_heads, queries, keys, listed, blocks, group, scale, softcap,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v through the band: a block of KEYS keys, all queries that see them.

    Args as in `forward`, and
        grad_k, grad_v: views [B, H / group, M, D], which are written, or added to if ADD.
        group: heads of queries whose gradients one program sums.
        blocks: of keys.
    """
    block, pack = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, own = pack // (heads // group), pack % (heads // group)
    band = band_of(left, right, dilations, own * group)
    residue, begin = block_of(block, keys, band.dilation, KEYS)
    length = class_length(keys, residue, band.dilation)
    if (residue >= band.dilation) | (begin >= length):
        return
    there = Keys(batch, own * group // (heads // kv_heads), residue, length, keys)
    scoring = Scoring(scale, softcap)
    dims = tl.arange(0, DIMS)
    lanes = tl.arange(0, ROWS)
    key_step = begin + tl.arange(0, KEYS)
    inside = key_step < length
    key = residue + key_step * band.dilation
    is_real = real(padding, batch, keys, key, inside)
    k_tile = read(k, rows_at(k, batch, there.head, key), is_real, dims, HEAD_DIM, True)
    v_tile = read(v, rows_at(v, batch, there.head, key), is_real, dims, HEAD_DIM, True)
    grad_of_k = tl.zeros([KEYS, DIMS], tl.float32)
    grad_of_v = tl.zeros([KEYS, DIMS], tl.float32)

    if positions is None:
        first, stop, holes = unpadded(padding, batch, residue, band.dilation, length)
        first = tl.maximum(first, class_length(keys - queries, residue, band.dilation))
        end = tl.minimum(begin + KEYS, length) - 1
        low, high, all_low, all_high = shared(
            documents, batch, keys, begin, end, residue, band.dilation, first, stop
        )
        low, high, inner, outer = span(begin, end, right, left, low, high, all_low, all_high, ROWS)
        if padding is not None:
            outer = tl.where(holes, inner, outer)
    else:
        low, high = among(documents, batch, keys, begin, tl.minimum(begin + KEYS, length) - 1, listed)
        inner, outer = low, low
    for member in tl.range(0, group):
        head = own * group + member
        for at in tl.range(inner, outer, ROWS):
            here = _at_steps(
                batch, head, at + lanes, high, residue, band.dilation, positions, listed, documents, queries,
                keys,
            )  # fmt: skip
            grad_of_k, grad_of_v = _band_to_keys(
                (grad_of_k, grad_of_v), k_tile, v_tile, q, grad_out, lse, delta, here, heads, queries,
                key_step, key, is_real, there, band, dims, padding, scoring, bias, dropout,
                HEAD_DIM, PLAIN, PRECISION, False,
            )  # fmt: skip
        for tile in tl.range(0, edges(low, high, inner, outer, ROWS)):
            at = edge(tile, low, inner, outer, ROWS)
            here = _at_steps(
                batch, head, at + lanes, high, residue, band.dilation, positions, listed, documents, queries,
                keys,
            )  # fmt: skip
            grad_of_k, grad_of_v = _band_to_keys(
                (grad_of_k, grad_of_v), k_tile, v_tile, q, grad_out, lse, delta, here, heads, queries,
                key_step, key, is_real, there, band, dims, padding, scoring, bias, dropout,
                HEAD_DIM, PLAIN, PRECISION, True,
            )  # fmt: skip
    if padding is not None:  # tiles without masks have given padded keys a gradient
        grad_of_k = tl.where(is_real[:, None], grad_of_k, 0.0)
        grad_of_v = tl.where(is_real[:, None], grad_of_v, 0.0)
    grad_of_k = grad_of_k * scale
    to_k, to_v = rows_at(grad_k, batch, own, key), rows_at(grad_v, batch, own, key)
    if ADD:
        grad_of_k += read(grad_k, to_k, inside, dims, HEAD_DIM, True).to(tl.float32)
        grad_of_v += read(grad_v, to_v, inside, dims, HEAD_DIM, True).to(tl.float32)
    write(grad_k, to_k, inside, dims, grad_of_k, HEAD_DIM)
    write(grad_v, to_v, inside, dims, grad_of_v, HEAD_DIM)


@triton.jit(do_not_specialize=["queries", "keys", "left", "right", "count", "slots", "parts"])
def grad_columns(
    q, k, v, grad_out, lse, delta, grad_k, grad_v, left, right, dilations, columns, count, padding, documents,
    bias, dropout, heads, kv_heads, queries, keys, slots, parts, scale, softcap,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr, BAND: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v of global columns, from the part `program_id(1)` of the queries.

    Args as in `forward`, and
        grad_k, grad_v: views [parts * B, Hkv, count, D], float32.
        slots: tiles of columns; program_id(0) counts them, then key heads, then examples.
    """
    tile, pack = tl.program_id(0) % slots, tl.program_id(0) // slots
    part, batch, kv_head = tl.program_id(1), pack // kv_heads, pack % kv_heads
    group = heads // kv_heads
    slot = tile * COLUMNS + tl.arange(0, COLUMNS)
    there = Keys(batch, kv_head, 0, keys, keys)
    scoring = Scoring(scale, softcap)
    dims = tl.arange(0, DIMS)
    key, valid, k_tile, v_tile = column_keys(k, v, there, columns, count, slot, dims, HEAD_DIM)
    grad_of_k = tl.zeros([COLUMNS, DIMS], tl.float32)
    grad_of_v = tl.zeros([COLUMNS, DIMS], tl.float32)

    low, high = 0, queries
    if documents is not None:  # those of the documents that the columns belong to
        example = batch.to(tl.int64) * keys
        top = tl.max(tl.where(valid, key, 0))
        base = tl.minimum(tl.min(tl.where(valid, key, keys)), top)
        low = tl.maximum(tl.load(documents.start + example + base) - (keys - queries), 0)
        high = tl.maximum(tl.load(documents.end + example + top) - (keys - queries), low)
    size = tl.cdiv(tl.cdiv(high - low, ROWS), parts) * ROWS
    stop = tl.minimum(low + (part + 1) * size, high)
    for member in tl.range(0, group):
        head = kv_head * group + member
        band = None
        if BAND:
            band = band_of(left, right, dilations, head)
        for at in tl.range(low + part * size, stop, ROWS):
            index = at + tl.arange(0, ROWS)
            position = keys - queries + index
            inside = real(padding, batch, keys, position, index < stop)
            here = queries_at(batch, head, index, index, position, position, inside, documents, keys)
            q_tile = read(q, rows_at(q, batch, head, index), inside, dims, HEAD_DIM, True)
            upstream = read(grad_out, rows_at(grad_out, batch, head, index), inside, dims, HEAD_DIM, True)
            down = _down(here)
            own_lse = _rows_of(lse, heads, queries, down, inside[None, :], float("inf"), True)
            own_delta = _rows_of(delta, heads, queries, down, inside[None, :], 0.0, True)
            score, capped = all_scores(
                k_tile, q_tile, down, key[:, None], valid[:, None], band, scoring, bias, PLAIN, PRECISION,
                CAUSAL,
            )  # fmt: skip
            dropped = factors(dropout, down, key[:, None])
            grad_of_k, grad_of_v = _to_keys(
                (grad_of_k, grad_of_v), score, capped, q_tile, upstream, own_lse, own_delta, v_tile, dropped,
                scoring, PLAIN, PRECISION,
            )  # fmt: skip
    example = part * (tl.num_programs(0) // slots // kv_heads) + batch
    there_at = slot < count
    write(grad_k, rows_at(grad_k, example, kv_head, slot), there_at, dims, grad_of_k * scale, HEAD_DIM)
    write(grad_v, rows_at(grad_v, example, kv_head, slot), there_at, dims, grad_of_v, HEAD_DIM)


@triton.jit(do_not_specialize=["heads", "slots", "parts", "first"])
def sum_parts(
    partial, to, positions, heads, slots, parts, first,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, SLOTS: tl.constexpr,
):  # fmt: skip
    """Sum `parts` of rows into some rows of `to`, in the order of the parts; SLOTS rows a program.

    Args:
        partial: view [parts * B, H, slots, D], float32.
        to: view [B, H, N, D]. `heads`: H.
        positions: int32 [B, slots], where a row belongs, -1 for nowhere; `first` is the position of the first
            row of `to`. None where they are all rows.
    """
    blocks = tl.cdiv(slots, SLOTS)
    block, plane = tl.program_id(0) % blocks, tl.program_id(0) // blocks
    batch, head = plane // heads, plane % heads
    slot = block * SLOTS + tl.arange(0, SLOTS)
    dims = tl.arange(0, DIMS)
    inside = slot < slots
    index = slot
    if positions is not None:
        index = tl.load(positions + batch * slots + slot, mask=inside, other=-1) - first
        inside = index >= 0
    total = tl.zeros([SLOTS, DIMS], tl.float32)
    for part in tl.range(0, parts):
        example = part * (tl.num_programs(0) // blocks // heads) + batch
        total += read(partial, rows_at(partial, example, head, slot), inside, dims, HEAD_DIM, True)
    write(to, rows_at(to, batch, head, index), inside, dims, total, HEAD_DIM)


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
