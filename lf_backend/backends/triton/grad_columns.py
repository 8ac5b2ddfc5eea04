"""The kernel of the whole gradient of global columns: a tile of columns, some of the queries.

It holds the band as well, and replaces what `grad_keys` found: so every sum is rounded once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.gradients import down, rows_of, to_keys
from lf_backend.backends.triton.pairs import all_scores, column_keys, factors
from lf_backend.backends.triton.tiles import Keys, Scoring, band_of, queries_at, read, real, rows_at, write


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
            across = down(here)
            own_lse = rows_of(lse, heads, queries, across, inside[None, :], float("inf"), True)
            own_delta = rows_of(delta, heads, queries, across, inside[None, :], 0.0, True)
            score, capped = all_scores(
                k_tile, q_tile, across, key[:, None], valid[:, None], band, scoring, bias, PLAIN, PRECISION,
                CAUSAL,
            )  # fmt: skip
            dropped = factors(dropout, across, key[:, None])
            grad_of_k, grad_of_v, _ = to_keys(
                (grad_of_k, grad_of_v), score, capped, q_tile, upstream, own_lse, own_delta, v_tile, dropped,
                scoring, PLAIN, PRECISION,
            )  # fmt: skip
    example = part * (tl.num_programs(0) // slots // kv_heads) + batch
    there_at = slot < count
    write(grad_k, rows_at(grad_k, example, kv_head, slot), there_at, dims, grad_of_k * scale, HEAD_DIM)
    write(grad_v, rows_at(grad_v, example, kv_head, slot), there_at, dims, grad_of_v, HEAD_DIM)
