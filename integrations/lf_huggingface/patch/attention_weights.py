"""Attention weights in Hugging Face's layout, for `output_attentions=True`.

The output itself always comes from `lf_backend.attention`; the weights are computed beside it from the
same queries and keys, in float32 (float64 for float64) and in memory linear in length, and carry
gradients. As upstream they are returned after dropout, with the factors that the output has seen.

Layout, G being the largest number of global tokens of an example, in the order of their positions:

- [B, N, H, G + taps]: first the global keys, then the window, tap t being the key `t - left` dilated
  steps away. 0 where there is no such key or slot, where the key is padding or (in the window) global,
  and in the rows of padding and of global tokens.
- [B, H, G, N]: the rows of the global tokens over all keys. A slot that an example does not use holds
  1 / N throughout, as upstream's softmax of nothing does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lf_backend.backend import Columns
from lf_backend.errors import PatternError
from lf_backend.numerics import dropout
from lf_backend.numerics.precision import accumulation_dtype
from lf_backend.ops.global_tokens import columns as global_columns
from lf_backend.pattern.bands import Band
from lf_backend.pattern.terms import Pattern

BLOCK = 256  # queries that are scored against all keys in their reach at once


class Replay(NamedTuple):
    """The dropout of one call, to be seen again. `seed` is None without dropout."""

    p: float
    seed: Tensor | None

    @classmethod
    def of_next_call(cls, q: Tensor, p: float) -> Replay:
        """The dropout that the next call of `lf_backend.attention` will draw."""
        if not p:
            return cls(p, None)
        on_cpu = q.device.type == "cpu"
        with torch.random.fork_rng([] if on_cpu else [q.device], device_type=q.device.type):
            return cls(p, dropout.draw_seed(q))

    def factors(self, like: Tensor, queries: Tensor, keys: Tensor) -> Tensor | None:
        """[B, H, N, M] for `like` [B, H, ...]; queries [B, N] and keys [B, M] are positions."""
        if self.seed is None:
            return None
        heads = torch.arange(like.shape[1], device=like.device)
        examples = [
            dropout.keep(self.seed, index, heads, queries[index], keys[index], self.p, like.dtype)
            for index in range(like.shape[0])
        ]
        return torch.stack(examples)


class Scored(NamedTuple):
    """Everything that the weights are computed from.

    Attributes:
        q, k: [B, H, N, D].
        global_q, global_k: [B, H, N, D], the projections of global rows, None if there are none.
        padded: bool [B, N] or None.
        replay: the dropout of the call.
    """

    q: Tensor
    k: Tensor
    global_q: Tensor | None
    global_k: Tensor | None
    padded: Tensor | None
    replay: Replay


class Part(NamedTuple):
    """Some keys of some rows: scores, whether they are visible, dropout; all broadcast to [B, H, R, K]."""

    scores: Tensor
    visible: Tensor
    factors: Tensor | None


def weights(
    s: Scored, pattern: Pattern, global_mask: Tensor | None, positions: Tensor | None
) -> tuple[Tensor, ...]:
    """The weights of one layer: local rows, and those of global tokens if the batch has any.

    Raises:
        PatternError: the layout has no place for the pattern, which is not one limited window.
    """
    band, length = _only_band(pattern), s.q.shape[2]
    columns = global_columns(pattern, s.k, s.padded, mask=global_mask, positions=positions)
    hidden = _scattered(columns, s.k) if s.padded is None else _scattered(columns, s.k) | s.padded
    blocks = [range(at, min(at + BLOCK, length)) for at in range(0, max(length, 1), BLOCK)]
    with torch.autocast(s.q.device.type, enabled=False):
        local = torch.cat([_local(s, band, columns, ~hidden, rows) for rows in blocks], dim=2)
        local = local.masked_fill(hidden[:, None, :, None], 0).to(s.q.dtype).transpose(1, 2)
        return (local,) if columns is None else (local, _global(s, columns).to(s.q.dtype))


def _only_band(pattern: Pattern) -> Band:
    lowered = pattern.lowered
    if len(lowered.bands) != 1 or lowered.bands[0].taps() is None or lowered.others:
        raise PatternError(
            f"output_attentions: a pattern of one limited window and global tokens wanted, got {pattern}"
        )
    return lowered.bands[0]


def _local(s: Scored, band: Band, columns: Columns | None, shown: Tensor, rows: range) -> Tensor:
    """[B, H, R, G + taps] of some rows."""
    window = _window(s, band, shown, rows)
    return _softmax(window) if columns is None else _softmax(_columns(s, columns, rows), window)


def _window(s: Scored, band: Band, shown: Tensor, rows: range) -> Part:
    """The window's taps, of which `shown` [B, N] says which keys they may show."""
    batch, heads, length, _ = s.q.shape
    back, ahead = band.span()
    assert back is not None and ahead is not None, "the window is limited"
    assert band.left is not None and band.right is not None
    low, high = max(rows.start - back, 0), min(rows.stop + ahead, length)
    queries = torch.arange(rows.start, rows.stop, device=s.q.device)
    keys = torch.arange(low, high, device=s.q.device)
    dilations = torch.tensor([band.dilation(head) for head in range(heads)], device=s.q.device)
    steps = torch.arange(-band.left, band.right + 1, device=s.q.device)
    at = queries[:, None] + dilations[:, None, None] * steps  # [H, R, taps]
    inside = (at >= 0) & (at < length)
    at = at.clamp(low, high - 1).expand(batch, -1, -1, -1)
    visible = inside & shown[:, None, None].expand(-1, heads, len(rows), -1).gather(3, at)
    scores = _scores(s.q[:, :, rows.start : rows.stop], s.k[:, :, low:high])
    factors = s.replay.factors(scores, queries.expand(batch, -1), keys.expand(batch, -1))
    return Part(scores.gather(3, at - low), visible, None if factors is None else factors.gather(3, at - low))


def _columns(s: Scored, columns: Columns, rows: range) -> Part:
    """The global keys."""
    at, valid, causal = columns
    queries = torch.arange(rows.start, rows.stop, device=s.q.device).expand(at.shape[0], -1)
    visible = valid[:, None, None].expand(-1, -1, len(rows), -1)
    if causal:
        visible = visible & (at[:, None, None] <= queries[:, None, :, None])
    scores = _scores(s.q[:, :, rows.start : rows.stop], _at(s.k, at))
    return Part(scores, visible, s.replay.factors(scores, queries, at))


def _global(s: Scored, columns: Columns) -> Tensor:
    """[B, H, G, N]: the global rows' weights on all keys."""
    assert s.global_q is not None and s.global_k is not None, "a layer with globals projects them"
    at, valid, causal = columns
    length = s.q.shape[2]
    keys = torch.arange(length, device=s.q.device).expand(at.shape[0], -1)
    visible = keys[:, None, None] <= at[:, None, :, None] if causal else keys[:, None, None] >= 0
    if s.padded is not None:
        visible = visible & ~s.padded[:, None, None]
    scores = _scores(_at(s.global_q, at), s.global_k)
    found = _softmax(Part(scores, visible, s.replay.factors(scores, at, keys)))
    return torch.where(valid[:, None, :, None], found, 1 / length)


def _softmax(*parts: Part) -> Tensor:
    """[B, H, R, K]: one softmax over the visible keys of all parts, then dropout; 0 where invisible."""
    scores = torch.cat([part.scores for part in parts], dim=3)
    hidden = ~torch.cat([part.visible.expand_as(part.scores) for part in parts], dim=3)
    found = scores.masked_fill(hidden, torch.finfo(scores.dtype).min).softmax(3).masked_fill(hidden, 0)
    factors = [part.factors for part in parts if part.factors is not None]
    return found * torch.cat(factors, dim=3) if factors else found


def _scores(q: Tensor, k: Tensor) -> Tensor:
    """Scaled scores [B, H, R, K]."""
    dtype = accumulation_dtype(q.dtype)
    return q.to(dtype) @ k.to(dtype).mT * float(q.shape[3] ** -0.5)


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows [B, H, G, D] of x [B, H, N, D] at index [B, G]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _scattered(columns: Columns | None, like: Tensor) -> Tensor:
    """bool [B, N], True at the global tokens; like [B, H, N, D]."""
    empty = torch.zeros(like.shape[0], like.shape[2], dtype=torch.bool, device=like.device)
    return empty if columns is None else empty.scatter(1, columns.positions, columns.valid)
