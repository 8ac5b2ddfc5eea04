"""The kernel of the gradients of queries and of the band bias: a block of queries, all keys they see.

Its walk over keys is that of `forward`. Where global columns are few, it finds their gradients as well: each
block of queries writes its part of them, so that q and grad_out are read once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.forward import across, queries_of
from lf_backend.backends.triton.gradients import raw, rows_of, weigh
from lf_backend.backends.triton.pairs import (
    all_scores,
    band_keys,
    band_scores,
    column_keys,
    column_scores,
    factors,
)  # fmt: skip
from lf_backend.backends.triton.tiles import (
    Keys,
    Scoring,
    among,
    band_of,
    block_of,
    class_length,
    edge,
    edges,
    in_band,
    part_of,
    read,
    real,
    rows_at,
    shared,
    span,
    taps_at,
    unpadded,
    without_holes,
    write,
)  # fmt: skip


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
    weight = weigh(score, lse, scoring, PLAIN, k_tile.dtype == tl.float32)
    found = tl.dot(upstream, tl.trans(v_tile), input_precision=PRECISION)
    found = weight * (found * factors(dropout, queries, key[None, :]) - delta)
    if grad_bias is not None:
        tap = key_step[None, :] - queries.step + band.left
        tl.store(taps_at(grad_bias, queries, tap), found, mask=seen)
    found = raw(found, capped, scoring).to(k_tile.dtype)
    return tl.dot(found, k_tile, grad, input_precision=PRECISION)


@triton.jit(do_not_specialize=["queries", "keys", "left", "right", "count", "listed", "blocks", "parts"])
def grad_queries(
    q, k, v, grad_out, lse, delta, grad_q, grad_bias, grad_k, grad_v, positions, left, right, dilations,
    columns, count, padding, documents, bias, dropout, heads, kv_heads, queries, keys, listed, blocks, parts,
    scale, softcap,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, PACK: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    COLUMNS: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, BAND: tl.constexpr,
    CAUSAL: tl.constexpr, PARTED: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Gradients of q, from the part `program_id(1)` of the keys, and of the band bias.

    Args as in `forward`, and
        grad_out: view [B, H, N, D]. `lse`, `delta`: float32 [B, H, N].
        grad_q: view [B, H, N, D], of which the computed rows are written; if PARTED, float32 of every part,
            view [parts * B, H, listed, D].
        grad_bias: view [B, H, N, taps] that holds zeros, or None.
        grad_k, grad_v: views [blocks * H / Hkv / PACK * B, Hkv, count, D], float32, of what each block of
            queries finds for global columns, band included, if these are FEW; else None. Takes no bias, no
            dilation, no documents and no parts, so that every block meets every column.
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
    at = rows_at(grad_out, batch, here.head, here.index)
    upstream = read(grad_out, at, is_real, dims, HEAD_DIM, True)
    own_lse = rows_of(lse, heads, queries, rows_here, is_real[:, None], float("inf"), True)
    own_delta = rows_of(delta, heads, queries, rows_here, is_real[:, None], 0.0, True)
    grad = tl.zeros([ROWS, DIMS], tl.float32)

    if BAND:
        low, high, all_low, all_high = shared(
            documents, batch, keys, first, last, residue, dilation, low, high
        )
        low, high, inner, outer = span(first, last, left, right, low, high, all_low, all_high, KEYS)
        if PARTED:
            low, high, inner, outer = part_of(low, high, inner, outer, part, parts, KEYS)
        high, inner, outer, stop = without_holes(low, high, inner, outer, padding, holes)
        for at in tl.range(inner, outer, KEYS):
            grad = _band_to_queries(
                grad, rows, upstream, own_lse, own_delta, rows_here, k, v, there, band, at + lanes, dims,
                padding, scoring, bias, dropout, grad_bias, HEAD_DIM, PLAIN, PRECISION, False,
            )  # fmt: skip
        for tile in tl.range(0, edges(low, high, inner, outer, KEYS)):
            at = edge(tile, low, inner, outer, KEYS)
            grad = _band_to_queries(
                grad, rows, upstream, own_lse, own_delta, rows_here, k, v, there, band, at + lanes, dims,
                None, scoring, bias, dropout, grad_bias, HEAD_DIM, PLAIN, PRECISION, True,
            )  # fmt: skip
        if padding is not None:
            has_holes = stop > low  # a loop without rounds costs more
            if has_holes:
                for at in tl.range(low, stop, KEYS):
                    grad = _band_to_queries(
                        grad, rows, upstream, own_lse, own_delta, rows_here, k, v, there, band, at + lanes,
                        dims, padding, scoring, bias, dropout, grad_bias, HEAD_DIM, PLAIN, PRECISION, True,
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
            if not FEW:
                score, capped = column_scores(
                    rows, k_tile, rows_here, key[None, :], valid[None, :], band, scoring, PLAIN, PRECISION,
                    CAUSAL,
                )  # fmt: skip
            else:
                score, capped = all_scores(
                    rows, k_tile, rows_here, key[None, :], valid[None, :], band, scoring, None, PLAIN,
                    PRECISION, CAUSAL,
                )  # fmt: skip
            weight = weigh(score, own_lse, scoring, PLAIN, k_tile.dtype == tl.float32)
            found = tl.dot(upstream, tl.trans(v_tile), input_precision=PRECISION)
            dropped = factors(dropout, rows_here, key[None, :])
            found = raw(weight * (found * dropped - own_delta), capped, scoring).to(k_tile.dtype)
            if FEW:
                share = block + blocks * (pack % packs % (packs // kv_heads))
                example = share * (tl.num_programs(0) // blocks // packs) + batch
                to_k = rows_at(grad_k, example, there.head, slot)
                to_v = rows_at(grad_v, example, there.head, slot)
                of_k = tl.dot(tl.trans(found), rows, input_precision=PRECISION)
                weight = (weight * dropped).to(k_tile.dtype)
                of_v = tl.dot(tl.trans(weight), upstream, input_precision=PRECISION)
                write(grad_k, to_k, slot < count, dims, of_k * scale, HEAD_DIM)
                write(grad_v, to_v, slot < count, dims, of_v, HEAD_DIM)
                if band is not None:
                    is_near = in_band(key[None, :] - rows_here.position, band)
                    found = tl.where(is_near, 0.0, found).to(k_tile.dtype)
            grad = tl.dot(found, k_tile, grad, input_precision=PRECISION)

    if PARTED:
        example = part * (tl.num_programs(0) // blocks // packs) + batch
        target = rows_at(grad_q, example, here.head, here.slot)
    else:
        target = rows_at(grad_q, batch, here.head, here.index)
    write(grad_q, target, here.inside, dims, grad * scale, HEAD_DIM)
