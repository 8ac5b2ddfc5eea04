"""The one collective that tensors travel by, and its derivative.

Tensors of all dtypes travel to all ranks in one uneven all-to-all of bytes, which sends nothing to a rank
that needs nothing. The derivative is one such collective the other way: gradients return to where their
tensors came from and are added in one order, so that the sum is the same in every run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lf_backend.distributed.group import Group
from lf_backend.distributed.slices import Route


class Parcel(NamedTuple):
    """A tensor [B, H, X, D], of one shape but for X on all ranks, and its way."""

    tensor: Tensor
    route: Route


def exchange(group: Group, parcels: Sequence[Parcel]) -> list[Tensor]:
    """Return for each parcel what comes from all ranks, this one included, joined in the order of ranks."""
    apply: Any = _Exchange.apply
    return list(apply(group, [parcel.route for parcel in parcels], *(parcel.tensor for parcel in parcels)))


def bytes_each(tensor: Tensor) -> int:
    """Return the bytes of one step along the third dimension of [B, H, X, D]."""
    batch, heads, _, width = tensor.shape
    return batch * heads * width * tensor.element_size()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, routes: list[Route], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.routes = group, routes
        ctx.likes = [x.new_empty((*x.shape[:2], 0, x.shape[3])) for x in tensors]
        ctx.lengths = [x.shape[2] for x in tensors]
        ctx.floats = [index for index, x in enumerate(tensors) if x.is_floating_point()]
        parts = [
            [x[:, :, slice(*route.sends[rank])] for x, route in zip(tensors, routes, strict=True)]
            for rank in range(group.size)
        ]
        counts = [[route.counts[rank] for route in routes] for rank in range(group.size)]
        arrived = _all_to_all(group, parts, counts, ctx.likes)
        found = tuple(torch.cat(pieces, 2) for pieces in zip(*arrived, strict=True))
        ctx.mark_non_differentiable(*(x for x in found if not x.is_floating_point()))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        group: Group = ctx.group
        routes, likes = ([of[index] for index in ctx.floats] for of in (ctx.routes, ctx.likes))
        came = [grads[index].split(route.counts, 2) for index, route in zip(ctx.floats, routes, strict=True)]
        parts = [[pieces[rank] for pieces in came] for rank in range(group.size)]
        counts = [[_length(route.sends[rank]) for route in routes] for rank in range(group.size)]
        arrived = _all_to_all(group, parts, counts, likes)
        found: list[Tensor | None] = [None] * len(grads)
        for place, index in enumerate(ctx.floats):
            like, route = likes[place], routes[place]
            pieces = [parts[place] for parts in arrived]
            found[index] = _added(like, ctx.lengths[index], route, pieces, group.rank)
        return None, None, *found


def _added(like: Tensor, length: int, route: Route, pieces: Sequence[Tensor], own: int) -> Tensor:
    """Return the sum [B, H, length, D] of what comes back: a rank's own first, then others in their order."""
    others = [rank for rank in range(len(pieces)) if rank != own]
    if route.sends[own] == (0, length):  # all of it: a copy in place of zeros and a sum
        total = pieces[own].clone(memory_format=torch.contiguous_format)
    else:
        total = like.new_zeros((*like.shape[:2], length, like.shape[3]))
        others.insert(0, own)
    for rank in others:
        total[:, :, slice(*route.sends[rank])] += pieces[rank]
    return total


def _all_to_all(
    group: Group, parts: list[list[Tensor]], counts: list[list[int]], likes: list[Tensor]
) -> list[list[Tensor]]:
    """Return what every rank sends here, with this rank's own parts as they are.

    Args:
        parts: for each rank, its part of every tensor.
        counts: for each rank, how long its parts are.
        likes: [B, H, 0, D], shape and dtype of every tensor.
    """
    sizes = [
        0 if rank == group.rank else sum(n * bytes_each(x) for n, x in zip(row, likes, strict=True))
        for rank, row in enumerate(counts)
    ]
    packed = [[] if rank == group.rank else [_as_bytes(x) for x in row] for rank, row in enumerate(parts)]
    sent = [sum(len(x) for x in row) for row in packed]
    device = likes[0].device
    outgoing = torch.cat(
        [torch.empty(0, dtype=torch.uint8, device=device), *(x for row in packed for x in row)]
    )
    incoming = torch.empty(sum(sizes), dtype=torch.uint8, device=device)
    with group.waiting():
        dist.all_to_all_single(incoming, outgoing, sizes, sent, group=group.handle)
    read = _reader(incoming)
    return [
        parts[rank] if rank == group.rank else [read(n, like) for n, like in zip(row, likes, strict=True)]
        for rank, row in enumerate(counts)
    ]


def _as_bytes(x: Tensor) -> Tensor:
    return x.contiguous().flatten().view(torch.uint8)


def _reader(buffer: Tensor) -> Callable[[int, Tensor], Tensor]:
    """Return a function that takes the next tensor [B, H, n, D] off a buffer of bytes."""
    at = 0

    def read(count: int, like: Tensor) -> Tensor:
        nonlocal at
        size = count * bytes_each(like)
        # A copy begins where every dtype may begin.
        found = buffer[at : at + size].clone().view(like.dtype)
        at += size
        return found.view(*like.shape[:2], count, like.shape[3])

    return read


def _length(ends: tuple[int, int]) -> int:
    return ends[1] - ends[0]
