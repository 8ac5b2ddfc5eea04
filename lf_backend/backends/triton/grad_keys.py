"""The kernel of the gradients of keys and values through the band: a block of keys, all who see it.

Rows of global tokens are queries that see all keys. There the kernel can find the gradients of the queries as
well: each block of keys writes its part of them, so that k and v are read once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.gradients import down, rows_of, to_keys
from lf_backend.backends.triton.pairs import band_scores, factors
from lf_backend.backends.triton.tiles import (
    Keys,
    Scoring,
    among,
    band_of,
    block_of,
    class_length,
    edge,
    edges,
    queries_at,
    read,
    real,
    rows_at,
    shared,
    span,
    unpadded,
    without_holes,
    write,
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
def _band_to_keys(
    state, k_tile, v_tile, q, grad_out, lse, delta, queries, heads, total, key_step, key, keys, band, dims,
    padding, scoring, bias, dropout,
    HEAD_DIM: tl.constexpr, PLAIN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    inside = queries.inside
    if MASKED:
        inside = real(padding, queries.batch, keys.total, queries.position, inside)
    at = rows_at(q, queries.batch, queries.head, queries.index)
    q_tile = read(q, at, inside, dims, HEAD_DIM, MASKED)
    at = rows_at(grad_out, queries.batch, queries.head, queries.index)
    upstream = read(grad_out, at, inside, dims, HEAD_DIM, MASKED)
    across = down(queries)
    own_lse = rows_of(lse, heads, total, across, inside[None, :], float("inf"), MASKED)
    own_delta = rows_of(delta, heads, total, across, inside[None, :], 0.0, MASKED)
    score, capped, _ = band_scores(  # padded keys are cleared once, at the end
        k_tile, q_tile, across, key_step[:, None], None, keys, band, None, scoring, bias, PLAIN, PRECISION,
        MASKED,
    )  # fmt: skip
    dropped = factors(dropout, across, key[:, None])
    return to_keys(
        state, score, capped, q_tile, upstream, own_lse, own_delta, v_tile, dropped, scoring, PLAIN, PRECISION
    )


@triton.jit(do_not_specialize=["queries", "keys", "left", "right", "listed", "blocks", "group"])
def grad_keys(
    q, k, v, grad_out, lse, delta, grad_k, grad_v, grad_q, positions, left, right, dilations, padding,
    documents, bias, dropout, heads, kv_heads, queries, keys, listed, blocks, group, scale, softcap,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr, ADD: tl.constexpr, FEW: tl.constexpr,
):  # fmt: skip
    """Gradients of k and v through the band: a block of KEYS keys, all queries that see them.

    Args as in `forward`, and
        grad_k, grad_v: views [B, H / group, M, D], which are written, or added to if ADD.
        grad_q: view [blocks * B, H, listed, D], float32, of what each block of keys finds for the queries if
            these are FEW; else None. Takes no dilation and no documents, so that every block meets them all.
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
        high, inner, outer, last = without_holes(low, high, inner, outer, padding, holes)
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
            grad_of_k, grad_of_v, _ = _band_to_keys(
                (grad_of_k, grad_of_v), k_tile, v_tile, q, grad_out, lse, delta, here, heads, queries,
                key_step, key, there, band, dims, padding, scoring, bias, dropout,
                HEAD_DIM, PLAIN, PRECISION, False,
            )  # fmt: skip
        for tile in tl.range(0, edges(low, high, inner, outer, ROWS)):
            at = edge(tile, low, inner, outer, ROWS)
            here = _at_steps(
                batch, head, at + lanes, high, residue, band.dilation, positions, listed, documents, queries,
                keys,
            )  # fmt: skip
            grad_of_k, grad_of_v, found = _band_to_keys(
                (grad_of_k, grad_of_v), k_tile, v_tile, q, grad_out, lse, delta, here, heads, queries,
                key_step, key, there, band, dims, None, scoring, bias, dropout,
                HEAD_DIM, PLAIN, PRECISION, True,
            )  # fmt: skip
            if FEW:
                if padding is not None:
                    found = tl.where(is_real[:, None], found, 0.0).to(k_tile.dtype)
                found = tl.dot(tl.trans(found), k_tile, input_precision=PRECISION)
                example = block * (tl.num_programs(0) // blocks // (heads // group)) + batch
                target = rows_at(grad_q, example, head, here.slot)
                write(grad_q, target, here.slot < listed, dims, found * scale, HEAD_DIM)
        if padding is not None and positions is None:
            has_holes = last > low  # a loop without rounds costs more
            if has_holes:
                for at in tl.range(low, last, ROWS):
                    here = _at_steps(
                        batch, head, at + lanes, last, residue, band.dilation, positions, listed, documents,
                        queries, keys,
                    )  # fmt: skip
                    grad_of_k, grad_of_v, _ = _band_to_keys(
                        (grad_of_k, grad_of_v), k_tile, v_tile, q, grad_out, lse, delta, here, heads, queries,
                        key_step, key, there, band, dims, padding, scoring, bias, dropout,
                        HEAD_DIM, PLAIN, PRECISION, True,
                    )  # fmt: skip
    if padding is not None:
        grad_of_k = tl.where(is_real[:, None], grad_of_k, 0.0)
        grad_of_v = tl.where(is_real[:, None], grad_of_v, 0.0)
    grad_of_k = grad_of_k * scale
    to_k, to_v = rows_at(grad_k, batch, own, key), rows_at(grad_v, batch, own, key)
    if ADD:
        grad_of_k += read(grad_k, to_k, inside, dims, HEAD_DIM, True).to(tl.float32)
        grad_of_v += read(grad_v, to_v, inside, dims, HEAD_DIM, True).to(tl.float32)
    write(grad_k, to_k, inside, dims, grad_of_k, HEAD_DIM)
    write(grad_v, to_v, inside, dims, grad_of_v, HEAD_DIM)
