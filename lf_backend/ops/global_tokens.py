"""Positions of the global tokens of a call: those of its pattern, and those that it brings itself."""

from __future__ import annotations

import operator
from functools import reduce

import torch
from torch import Tensor

from lf_backend._device_constants import on_device
from lf_backend._looked import once
from lf_backend.backend import Columns, Documents
from lf_backend.ops.arguments import Arguments
from lf_backend.pattern.terms import Pattern


def columns_of(a: Arguments, documents: Documents | None) -> Columns | None:
    """Return the global tokens of every example of a call; None if there are none anywhere."""
    return columns(
        a.resolved,
        a.k,
        a.key_padding,
        mask=a.global_mask,
        positions=a.global_positions,
        documents=documents,
    )


def columns(
    pattern: Pattern,
    k: Tensor,
    padding: Tensor | None,
    *,
    mask: Tensor | None = None,
    positions: Tensor | None = None,
    documents: Documents | None = None,
) -> Columns | None:
    """Return the global tokens of every example; None if there are none anywhere.

    Static positions cost nothing, nor do `positions`. A `mask` is compacted to the largest number of globals
    in the batch, which the host reads: free on a CPU, one synchronisation elsewhere. So are the pattern's own
    positions in packed documents, of which nobody knows the number.

    Args:
        k: [B, Hkv, M, D].
        padding: bool [B, M]; a padded global token is padding.
        mask, positions: global tokens besides those of the pattern, as in `lf_backend.attention`.
    """
    brings = mask is not None or positions is not None
    lowered = pattern.lowered_with_globals if brings else pattern.lowered
    if not brings and not lowered.positions:
        return None
    causal = pattern.is_causal if brings else lowered.causal_globals
    if not brings and documents is None and padding is None:
        return Columns(*_fixed(lowered.positions, k.shape[0], k.device), causal)
    starts = None if documents is None else documents.start
    size = k.shape[0], k.shape[2]
    found = once(_found, padding, mask, positions, starts, lowered.positions, size)
    return None if found is None else Columns(*found, causal)


def _fixed(static: tuple[int, ...], batch: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return positions int64 [B, G] that are the same in all examples, and that there are all of them."""
    there = (True,) * len(static)
    return on_device((static,) * batch, torch.int64, device), on_device((there,) * batch, torch.bool, device)


def _found(
    padding: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    starts: Tensor | None,
    static: tuple[int, ...],
    size: tuple[int, int],
) -> tuple[Tensor, Tensor] | None:
    """Return positions int64 [B, G] of global tokens and which of them there are; None if there are none."""
    first = next(x for x in (padding, mask, positions, starts) if x is not None)
    if mask is None and positions is None and starts is None and padding is not None:
        at, _ = _fixed(static, size[0], first.device)
        return at, ~padding.gather(1, at)
    marks = marked(static, size, first.device, padding, mask, positions, starts)
    counted = mask is not None or positions is None or (starts is not None and static)
    count = _most(marks) if counted or positions is None else positions.shape[1] + len(static)
    return _compacted(marks, count) if count else None


def marked(
    static: tuple[int, ...],
    size: tuple[int, int],
    device: torch.device,
    padding: Tensor | None,
    mask: Tensor | None,
    positions: Tensor | None,
    starts: Tensor | None,
) -> Tensor:
    """Return bool [B, M], True for every global token, of which there can be some; without a look at data.

    Args:
        size: [B, M].
        starts: int64 [B, M], where documents start; None where each row is one.
    """
    batch, keys = size
    found = [] if mask is None else [mask]
    if positions is not None:
        found.append(_mask_of(positions, keys))
    if static:  # exporters do not agree on what any of nothing is
        at = torch.arange(keys, device=device).expand(batch, -1)
        inside = at if starts is None else at - starts
        found.append((inside[..., None] == on_device(static, torch.int64, device)).any(2))
    marks = reduce(operator.or_, found)
    return marks if padding is None else marks & ~padding


def with_positions(a: Arguments) -> Arguments:
    """Return the same call with its mask's global tokens as positions, so that its backward need not look."""
    if a.global_mask is None:
        return a
    return a.replaced(global_mask=None, global_positions=once(positions_of, a.global_mask))


def positions_of(mask: Tensor, most: int | None = None) -> Tensor:
    """Return int64 [B, G], the marks of a mask [B, M] in ascending order, then -1.

    Args:
        most: no less than the marks of any example; if it is left out, the host counts them.
    """
    at, valid = _compacted(mask, _most(mask) if most is None else most)
    return at.masked_fill(~valid, -1)


def _mask_of(positions: Tensor, keys: int) -> Tensor:
    """Return bool [B, M], True at positions [B, G]; -1 marks nothing."""
    at = torch.where(positions < 0, keys, positions).long()
    wide = torch.zeros(positions.shape[0], keys + 1, dtype=torch.bool, device=positions.device)
    return wide.scatter(1, at, torch.ones_like(at, dtype=torch.bool))[:, :keys]


def _most(mask: Tensor) -> int:
    return int(mask.sum(1).max()) if mask.numel() else 0


def _compacted(mask: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Return int64 and bool [B, count]: marked positions, then others, each in ascending order, and which."""
    marks = mask.cumsum(1)
    total, at = marks[:, -1:], torch.arange(mask.shape[1], device=mask.device).expand_as(mask)
    slot = torch.where(mask, marks - 1, total + at - marks)
    count = min(count, mask.shape[1])
    used = torch.arange(count, device=mask.device) < total
    return torch.empty_like(slot).scatter_(1, slot, at)[:, :count], used
