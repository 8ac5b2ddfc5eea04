"""Attention weights in Hugging Face's layout, for `output_attentions=True`.

The output itself always comes from `lf_backend.attention`; the weights are computed beside it from the
same queries, keys and log-sum-exp, weight = exp(score - lse), in memory linear in length, and carry
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

from lf_backend import dropout
from lf_backend.api import _seed
from lf_backend.backend import Columns
from lf_backend.bands import Band
from lf_backend.errors import PatternError
from lf_backend.globals import positions
from lf_backend.pattern import Pattern

BLOCK = 256  # queries whose scores exist at once


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
            return cls(p, _seed(q))

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
    """What the weights are computed from.

    Attributes:
        q, k: [B, H, N, D].
        lse: [B, H, N], of every row's softmax.
        global_q, global_k: [B, H, N, D], the projections of global rows, None if there are none.
        padded: bool [B, N] or None.
        replay: the dropout of the call.
    """

    q: Tensor
    k: Tensor
    lse: Tensor
    global_q: Tensor | None
    global_k: Tensor | None
    padded: Tensor | None
    replay: Replay


def weights(s: Scored, pattern: Pattern, global_mask: Tensor | None) -> tuple[Tensor, ...]:
    """The weights of one layer: local rows, and those of global tokens if the batch has any.

    Raises:
        PatternError: the layout has no place for the pattern, which is not one limited window.
    """
    band = _only_band(pattern)
    columns = positions(pattern.lowered, pattern.is_causal, global_mask, s.padded, s.k)
    hidden = _scattered(columns, s.k) if s.padded is None else _scattered(columns, s.k) | s.padded
    local = _window(s, band, ~hidden)  # padding and globals are keys of no tap and rows of no weight
    if columns is not None:
        local = torch.cat([_columns(s, columns), local], dim=-1)
    local = local.masked_fill(hidden[:, None, :, None], 0).to(s.q.dtype).transpose(1, 2)
    return (local,) if columns is None else (local, _rows(s, columns).to(s.q.dtype))


def _only_band(pattern: Pattern) -> Band:
    lowered = pattern.lowered
    if len(lowered.bands) != 1 or lowered.bands[0].taps() is None or lowered.others:
        raise PatternError(
            f"output_attentions: a pattern of one limited window and global tokens wanted, got {pattern}"
        )
    return lowered.bands[0]


def _window(s: Scored, band: Band, shown: Tensor) -> Tensor:
    """[B, H, N, taps], from blocks of queries and the range of keys that they reach."""
    length = s.q.shape[2]
    starts = range(0, max(length, 1), BLOCK)
    return torch.cat([_block(s, band, shown, at, min(at + BLOCK, length)) for at in starts], dim=2)


def _block(s: Scored, band: Band, shown: Tensor, start: int, stop: int) -> Tensor:
    """[B, H, stop - start, taps]; `shown` [B, N] are the keys that a tap may show."""
    batch, heads, length, _ = s.q.shape
    back, ahead = band.span()
    assert back is not None and ahead is not None, "the window is limited"
    assert band.left is not None and band.right is not None
    low, high = max(start - back, 0), min(stop + ahead, length)
    queries = torch.arange(start, stop, device=s.q.device)
    keys = torch.arange(low, high, device=s.q.device)
    dilations = torch.tensor([band.dilation(head) for head in range(heads)], device=s.q.device)
    steps = torch.arange(-band.left, band.right + 1, device=s.q.device)
    at = queries[:, None] + dilations[:, None, None] * steps  # [H, block, taps]
    inside = (at >= 0) & (at < length)
    at = at.clamp(low, high - 1).expand(batch, -1, -1, -1)
    visible = inside & shown[:, None, None].expand(-1, heads, stop - start, -1).gather(3, at)
    scores = _scores(s.q[:, :, start:stop], s.k[:, :, low:high], s.lse).gather(3, at - low)
    found = _weights(scores, s.lse[:, :, start:stop], visible)
    factors = s.replay.factors(found, queries.expand(batch, -1), keys.expand(batch, -1))
    return found if factors is None else found * factors.gather(3, at - low)


def _columns(s: Scored, columns: Columns) -> Tensor:
    """[B, H, N, G]: every row's weights on the global keys."""
    at, valid, causal = columns
    queries = torch.arange(s.q.shape[2], device=s.q.device).expand(at.shape[0], -1)
    visible = valid[:, None, None]
    if causal:
        visible = visible & (at[:, None, None] <= queries[:, None, :, None])
    found = _weights(_scores(s.q, _at(s.k, at), s.lse), s.lse, visible)
    factors = s.replay.factors(found, queries, at)
    return found if factors is None else found * factors


def _rows(s: Scored, columns: Columns) -> Tensor:
    """[B, H, G, N]: the global rows' weights on all keys."""
    assert s.global_q is not None and s.global_k is not None, "a layer with globals projects them"
    at, valid, causal = columns
    length = s.q.shape[2]
    keys = torch.arange(length, device=s.q.device).expand(at.shape[0], -1)
    visible = torch.ones_like(keys, dtype=torch.bool)[:, None, None]
    if causal:
        visible = keys[:, None, None] <= at[:, None, :, None]
    if s.padded is not None:
        visible = visible & ~s.padded[:, None, None]
    lse = s.lse.gather(2, at[:, None].expand(-1, s.lse.shape[1], -1))
    found = _weights(_scores(_at(s.global_q, at), s.global_k, s.lse), lse, visible)
    factors = s.replay.factors(found, at, keys)
    found = found if factors is None else found * factors
    return torch.where(valid[:, None, :, None], found, 1 / length)


def _scores(q: Tensor, k: Tensor, lse: Tensor) -> Tensor:
    """Scaled scores [B, H, N, M] in the dtype of the log-sum-exp."""
    return q.to(lse.dtype) @ k.to(lse.dtype).mT * float(q.shape[-1] ** -0.5)


def _weights(scores: Tensor, lse: Tensor, visible: Tensor) -> Tensor:
    """exp(scores - lse) where visible, else 0 without a gradient; lse [B, H, N]."""
    finite = lse.masked_fill(lse == -torch.inf, 0)[..., None]
    return (scores - finite).masked_fill(~visible, -torch.inf).exp()


def _at(x: Tensor, index: Tensor) -> Tensor:
    """Rows [B, H, G, D] of x [B, H, N, D] at index [B, G]."""
    return x.gather(2, index[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3]))


def _scattered(columns: Columns | None, like: Tensor) -> Tensor:
    """bool [B, N], True at the global tokens; like [B, H, N, D]."""
    empty = torch.zeros(like.shape[0], like.shape[2], dtype=torch.bool, device=like.device)
    return empty if columns is None else empty.scatter(1, columns.positions, columns.valid)
