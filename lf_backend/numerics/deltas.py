"""Sums that a softmax needs of each row for its backward, by ordinary operators."""

from __future__ import annotations

import torch
from torch import Tensor


def deltas(grad_out: Tensor, out: Tensor, lse: Tensor, idle: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the sum of grad_out * out over D, and lse with +inf in rows without effect; both [B, H, N].

    Args:
        grad_out, out: [B, H, N, D].
        lse: [B, H, N], whose dtype is that of the sums; rows that saw nothing, with lse -inf, have no effect.
        idle: int64 [B, R], indices of other rows without effect, -1 for none; or None.
    """
    without = lse == -torch.inf
    if idle is not None:
        batch, queries = len(idle), lse.shape[2]
        listed = torch.zeros(batch, queries + 1, dtype=torch.bool, device=lse.device)
        at = torch.where(idle < 0, queries, idle)
        listed.scatter_(1, at, torch.ones_like(at, dtype=torch.bool))
        without = without | listed[:, None, :queries]
    return (grad_out.to(lse.dtype) * out).sum(-1), lse.masked_fill(without, torch.inf)
