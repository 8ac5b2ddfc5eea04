"""Dropout of attention weights, decided by a hash of (seed, batch, head, query, key).

The answer does not depend on tiles, on the order of dilated positions or on the backend, so that a
backward pass, on any backend, replays the forward's. The mixer is the 32-bit finaliser of MurmurHash3,
chosen because it is a handful of integer operations that every device has.

A seed is an int64 tensor of one element, or of two: then the second is the position in the row that the first
key of the call has, as where a rank holds a part of the row.
"""

from __future__ import annotations

import torch
from torch import Tensor


def draw_seed(q: Tensor) -> Tensor:
    """A fresh seed on q's device, from the generator that `torch.manual_seed` sets."""
    return torch.randint(2**62, (1,), device=q.device)


def keep(
    seed: Tensor, batch: int, heads: Tensor, queries: Tensor, keys: Tensor, p: float, dtype: torch.dtype
) -> Tensor:
    """Factors [H, N, M]: 0 where dropped, with probability `p`, else 1 / (1 - p).

    Args:
        seed: int64 [1] or [2].
        batch: index of the example.
        heads, queries, keys: int64 [H], [N], [M]; indices of query heads, positions in the call.
    """
    start = starts(seed, torch.tensor([batch], device=keys.device))
    queries, keys = _in_row(seed, queries), _in_row(seed, keys)
    rows = _mix(_mix(start ^ _word(heads))[:, None] ^ _word(queries))  # [H, N]
    hashed = _mix(rows[..., None] ^ _mix(_word(keys)))
    return (hashed >= threshold(p)).to(dtype).mul_(1 / (1 - p))


def factors(
    seed: Tensor, batch: Tensor, heads: Tensor, queries: Tensor, keys: Tensor, p: float, dtype: torch.dtype
) -> Tensor:
    """`keep` for indices of any shapes that broadcast with each other, which the factors have."""
    start = starts(seed, batch.flatten()).view(batch.shape)
    queries, keys = _in_row(seed, queries), _in_row(seed, keys)
    hashed = _mix(_mix(_mix(start ^ _word(heads)) ^ _word(queries)) ^ _mix(_word(keys)))
    return (hashed >= threshold(p)).to(dtype) * (1 / (1 - p))


def starts(seed: Tensor, batches: Tensor) -> Tensor:
    """Return the starts of the hashes of examples, int32 [B]; `batches` are their indices."""
    low = _mix(_word(seed[:1]))
    return _mix(_mix(low ^ _word(seed[:1] >> 32)) ^ _word(batches))


def origin(seed: Tensor) -> Tensor:
    """Return int64 [1], the position in the row that the first key of the call has."""
    return seed[1:] if len(seed) == 2 else torch.zeros_like(seed)


def threshold(p: float) -> int:
    """Return the signed word below which the hash of a weight drops it; a word itself, also next to p = 1."""
    return min(round(p * 2**32), 2**32 - 1) - 2**31


def _in_row(seed: Tensor, positions: Tensor) -> Tensor:
    return positions if len(seed) == 1 else positions + seed[1]


def _word(x: Tensor) -> Tensor:
    """The low 32 bits as a signed word."""
    return (((x & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000).to(torch.int32)


def _mix(x: Tensor) -> Tensor:
    """MurmurHash3's fmix32; right shifts are made logical by masks, products wrap around."""
    x = x ^ ((x >> 16) & 0xFFFF)
    x = x * -0x7A143595  # 0x85EBCA6B
    x ^= (x >> 13) & 0x7FFFF
    x *= -0x3D4D51CB  # 0xC2B2AE35
    x ^= (x >> 16) & 0xFFFF
    return x
