"""Tiles of keys, and the scores of queries with them: in the band, and with global columns.

A tile of scores is [queries, keys] or transposed: queries and keys come as [R, 1] and [1, K], or as [1, R]
and [K, 1]. What is invisible scores -inf.
"""

from __future__ import annotations

import triton
import triton.language as tl

from lf_backend.backends.triton.tiles import (
    class_length,
    in_band,
    keep,
    read,
    real,
    rows_at,
    scores,
    taps_at,
)  # fmt: skip


@triton.jit
def band_keys(k, v, keys, band, key_step, padding, dims, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr):
    """Positions of keys at `key_step`; which of them are there, if MASKED; and their tiles of k and v."""
    key = keys.residue + key_step * band.dilation
    inside = key_step < keys.length
    if MASKED:
        inside = real(padding, keys.batch, keys.total, key, inside)
    k_tile = read(k, rows_at(k, keys.batch, keys.head, key), inside, dims, HEAD_DIM, MASKED)
    v_tile = read(v, rows_at(v, keys.batch, keys.head, key), inside, dims, HEAD_DIM, MASKED)
    return key, inside, k_tile, v_tile


@triton.jit
def column_keys(k, v, keys, columns, count, slot, dims, HEAD_DIM: tl.constexpr):
    """Positions of the global columns in `slot`, which of them there are, and their tiles of k and v."""
    key = tl.load(columns + keys.batch * count + slot, mask=slot < count, other=-1)
    valid = key >= 0
    key = tl.maximum(key, 0)
    k_tile = read(k, rows_at(k, keys.batch, keys.head, key), valid, dims, HEAD_DIM, True)
    v_tile = read(v, rows_at(v, keys.batch, keys.head, key), valid, dims, HEAD_DIM, True)
    return key, valid, k_tile, v_tile


@triton.jit
def band_scores(
    rows, columns, queries, key_step, there, keys, band, padding, scoring, bias,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Scores of rows @ columns.T, tanh(score / softcap), and what is seen; without MASKED, everything is.

    Rows of no query have scores unless there is a bias or a mask. `there` is looked at if there is padding.
    """
    score, capped = scores(rows, columns, scoring, PLAIN, PRECISION)
    seen = queries.inside
    if MASKED or bias is not None:
        tap = key_step - queries.step + band.left
        taps = band.left + 1 + tl.minimum(band.right, keys.length - 1 - queries.step)
        least = 0
        if len(queries.ends) > 0:
            begin = class_length(queries.ends[0], keys.residue, band.dilation)
            end = class_length(queries.ends[1], keys.residue, band.dilation)
            least = tl.maximum(begin - queries.step + band.left, 0)
            taps = tl.minimum(taps, band.left + end - queries.step) - least
        taps = tl.where(queries.inside, tl.maximum(taps, 0), 0)  # below 0 where all keys are ahead: left < 0
        # One comparison for both ends: a tap below the least is a large one without its sign. Tiles at the
        # left and at the right end apart would save the subtraction, 32 of 438 instructions of such a tile on
        # sm_90, 1.5 % of a window of 256 + 256, and take one loop more, whose pipeline is filled once more.
        seen = (tap - least).to(tl.uint32, bitcast=True) < taps.to(tl.uint32, bitcast=True)
        if padding is not None and MASKED:
            seen = seen & there
        if bias is not None:
            score += _bias_of(bias, queries, tap, seen)
        score = tl.where(seen, score, float("-inf"))
    return score, capped, seen


@triton.jit
def column_scores(
    rows, columns, queries, key, valid, band, scoring,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Scores and tanh(score / softcap) of pairs that the band does not show as well."""
    score, capped = scores(rows, columns, scoring, PLAIN, PRECISION)
    seen = valid
    if CAUSAL:
        seen = seen & (key <= queries.position)
    if band is not None:
        seen = seen & ~in_band(key - queries.position, band)
    if len(queries.ends) > 0:
        seen = seen & (key >= queries.ends[0]) & (key < queries.ends[1])
    return tl.where(seen, score, float("-inf")), capped


@triton.jit
def all_scores(
    rows, columns, queries, key, valid, band, scoring, bias,
    PLAIN: tl.constexpr, PRECISION: tl.constexpr, CAUSAL: tl.constexpr,
):  # fmt: skip
    """Whether pairs with global columns are visible, the band's own included."""
    score, capped = scores(rows, columns, scoring, PLAIN, PRECISION)
    there = valid & queries.inside
    if len(queries.ends) > 0:
        there = there & (key >= queries.ends[0]) & (key < queries.ends[1])
    seen = there
    if CAUSAL:
        seen = seen & (key <= queries.position)
    if band is not None:
        shown = there & in_band(key - queries.position, band)
        seen = seen | shown
        if bias is not None:
            tap = (key - queries.position) // band.dilation + band.left
            score += _bias_of(bias, queries, tap, shown)
    return tl.where(seen, score, float("-inf")), capped


@triton.jit
def _bias_of(bias, queries, tap, seen):
    """The band bias where it is seen, else 0."""
    return tl.load(taps_at(bias, queries, tap), mask=seen, other=0.0).to(tl.float32)


@triton.jit
def factors(dropout, queries, key):
    """Return dropout's factors of the weights."""
    found = 1.0 if dropout is None else keep(dropout, queries.batch, queries.head, queries.position, key)
    return found
