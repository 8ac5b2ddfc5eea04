"""A call as the library reads it: `Call` in src/call.h, field by field."""

from __future__ import annotations

import struct
from array import array
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backend import Call
from lf_backend.backends.native import rules
from lf_backend.numerics import dropout
from lf_backend.pattern.bands import Band

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
UNLIMITED = 2**40  # a reach beyond any sequence

_SHAPE, _ROWS, _COLUMNS, _BIAS, _NUMBERS = "7q", "P3q", "PPP2q3P", "P5q", "2dqPqdq"
_RULES = "4PqP"
_LAYOUT = struct.Struct(
    "@"
    + _SHAPE
    + 3 * _ROWS
    + "Pq"
    + _COLUMNS
    + _RULES
    + _BIAS
    + _NUMBERS
    + _ROWS
    + "P"
    + _ROWS
    + "P"
    + _ROWS
    + "3P"
)
_NO_ROWS = (0, 0, 0, 0)
_NO_RULES = (0, 0, 0, 0, 0)


class Forward(NamedTuple):
    """The results of a forward pass: out as in the call, lse [B, H, N]."""

    out: Tensor
    lse: Tensor

    def fields(self) -> tuple[int, ...]:
        return (*_rows(self.out), self.lse.data_ptr(), *_NO_ROWS, 0, *_NO_ROWS, 0, 0, 0)


class Backward(NamedTuple):
    """Tensors that a backward pass reads and writes besides the call; shapes as in `Backend.backward`."""

    grad_out: Tensor
    delta: Tensor
    lse: Tensor
    grad_q: Tensor
    grad_k: Tensor
    grad_v: Tensor
    grad_bias: Tensor | None

    def fields(self) -> tuple[int, ...]:
        return (
            *_NO_ROWS,
            self.lse.data_ptr(),
            *_rows(self.grad_out),
            self.delta.data_ptr(),
            *_rows(self.grad_q),
            self.grad_k.data_ptr(),
            self.grad_v.data_ptr(),
            _address(self.grad_bias),
        )


class Packed(NamedTuple):
    """The bytes, and the tensors that must live as long as they are read."""

    data: bytes
    kept: tuple[object, ...]


def packed(call: Call, results: Forward | Backward) -> Packed:
    """The call and its results. Copies only rows whose elements are apart."""
    q, k, v = _readable(call.q), _readable(call.k), _readable(call.v)
    if isinstance(results, Backward):
        results = results._replace(
            grad_out=_readable(results.grad_out),
            delta=results.delta.contiguous(),
            lse=results.lse.contiguous(),
        )
    batch, heads, queries, head_dim = q.shape
    _, kv_heads, keys, _ = k.shape
    lowered, documents = call.lowered, call.documents
    bands = _bands(lowered.bands, heads)
    seed = _placed(call.seed)
    positions = None if call.positions is None else call.positions.contiguous()
    padding = None if call.key_padding is None else call.key_padding.contiguous()
    columns, shown, count, causal = _columns(call)
    runs, hidden = (rules.runs_of(call), _hidden(call)) if lowered.others else (None, None)
    data = _LAYOUT.pack(
        DTYPES[q.dtype],
        batch,
        heads,
        kv_heads,
        queries,
        keys,
        head_dim,
        *_rows(q),
        *_rows(k),
        *_rows(v),
        bands.buffer_info()[0],
        len(lowered.bands),
        _address(positions),
        _address(columns),
        _address(shown),
        count,
        causal,
        _address(padding),
        *((0, 0) if documents is None else map(_address, documents)),
        *_runs(runs),
        _address(hidden),
        *_bias(call.band_bias),
        *_numbers(call, seed),
        *results.fields(),
    )
    return Packed(
        data, (q, k, v, bands, positions, padding, columns, shown, runs, hidden, seed, call, results)
    )


def _readable(x: Tensor) -> Tensor:
    return x if x.stride()[3] == 1 else x.contiguous()


def _rows(x: Tensor) -> tuple[int, ...]:
    batch, head, row, _ = x.stride()
    return x.data_ptr(), batch, head, row


def _address(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


@lru_cache(maxsize=1024)
def _bands(bands: tuple[Band, ...], heads: int) -> array[int]:
    """Left, right and dilation of each band and head."""
    return array("q", (x for band in bands for head in range(heads) for x in _reach(band, head)))


def _reach(band: Band, head: int) -> Iterable[int]:
    left, right = (UNLIMITED if reach is None else min(reach, UNLIMITED) for reach in (band.left, band.right))
    return left, right, min(band.dilation(head), UNLIMITED)


def _columns(call: Call) -> tuple[Tensor | None, Tensor | None, int, bool]:
    if call.columns is None:
        return None, None, 0, False
    positions, valid, causal = call.columns
    return positions.contiguous(), valid.contiguous(), positions.shape[1], causal


def _runs(runs: rules.Runs | None) -> tuple[int, ...]:
    if runs is None:
        return _NO_RULES
    return (*map(_address, (runs.first, runs.start, runs.stop, runs.queries)), runs.maps)


def _hidden(call: Call) -> Tensor | None:
    """Return the keys that rules show to nobody."""
    hidden = rules.elsewhere(call)
    return None if hidden is None else hidden.contiguous()


def _bias(bias: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0, 0, 0, 0) if bias is None else (bias.data_ptr(), *bias.stride(), bias.shape[0])


def _placed(seed: Tensor | None) -> Tensor | None:
    """Return the seed and the place of the call in its row."""
    return seed if seed is None or len(seed) == 2 else torch.cat([seed, torch.zeros_like(seed)])


def _numbers(call: Call, seed: Tensor | None) -> tuple[float, ...]:
    drops, threshold, keep = 0, 0, 0.0
    if call.dropout_p:
        drops, threshold, keep = 1, dropout.threshold(call.dropout_p), 1 / (1 - call.dropout_p)
    return (call.scale, call.softcap or 0.0, drops, _address(seed), threshold, keep, torch.get_num_threads())
