"""The one collective that tensors travel by, and its derivative.

Tensors of all dtypes travel to all ranks in one uneven all-to-all of bytes, which sends nothing to a rank
that needs nothing. The derivative is one such collective the other way: gradients return to where their
tensors came from and are added in one order, so that the sum is the same in every run. Who has work
meanwhile lands later than they depart.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
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


@dataclass(frozen=True, eq=False)
class Flight:
    """Tensors on their way between ranks.

    Attributes:
        group: the ranks.
        work: the collective.
        outgoing, incoming: its bytes, which nobody may touch before it has landed.
        own: for each tensor, the part that this rank keeps.
        counts: for each rank, how long the parts that come from it are.
        likes: [B, H, 0, D], shape and dtype of every tensor.
    """

    group: Group
    work: Any
    outgoing: Tensor
    incoming: Tensor
    own: list[Tensor]
    counts: list[list[int]]
    likes: list[Tensor]

    def land(self) -> list[list[Tensor]]:
        """Wait, and return for each tensor what every rank sent, with what this one kept as it is."""
        with self.group.waiting():
            self.work.wait()
        read = _reader(self.incoming)
        arrived = [
            self.own
            if rank == self.group.rank
            else [read(n, like) for n, like in zip(row, self.likes, strict=True)]
            for rank, row in enumerate(self.counts)
        ]
        return [list(pieces) for pieces in zip(*arrived, strict=True)]


def depart(group: Group, parcels: Sequence[Parcel]) -> Flight:
    """Send tensors on their way; all ranks do."""
    parts = [[x[:, :, slice(*route.sends[rank])] for x, route in parcels] for rank in range(group.size)]
    counts = [[route.counts[rank] for _, route in parcels] for rank in range(group.size)]
    return _all_to_all(group, parts, counts, [like_of(x) for x, _ in parcels])


def depart_back(group: Group, grads: Sequence[Parcel], likes: list[Tensor]) -> Flight:
    """Send the gradients of what came by some routes back to where it came from; all ranks do.

    Args:
        likes: [B, H, 0, D], shape and dtype of every tensor.
    """
    came = [grad.split(route.counts, 2) for grad, route in grads]
    parts = [[pieces[rank] for pieces in came] for rank in range(group.size)]
    counts = [[_length(route.sends[rank]) for _, route in grads] for rank in range(group.size)]
    return _all_to_all(group, parts, counts, likes)


def add_returned(total: Tensor, route: Route, pieces: Sequence[Tensor], own: int) -> Tensor:
    """Add to a gradient [B, H, X, D], in place, what has come back: other ranks' in their order."""
    for rank, piece in enumerate(pieces):
        if rank != own:
            total[:, :, slice(*route.sends[rank])] += piece
    return total


def sum_returned(like: Tensor, length: int, route: Route, pieces: Sequence[Tensor], own: int) -> Tensor:
    """Return the gradient [B, H, length, D] of what has come back, a rank's own part first."""
    total = like.new_zeros((*like.shape[:2], length, like.shape[3]))
    total[:, :, slice(*route.sends[own])] = pieces[own]
    return add_returned(total, route, pieces, own)


def exchange(group: Group, parcels: Sequence[Parcel]) -> list[Tensor]:
    """Return for each parcel what comes from all ranks, this one included, joined in the order of ranks."""
    apply: Any = _Exchange.apply
    return list(apply(group, [parcel.route for parcel in parcels], *(parcel.tensor for parcel in parcels)))


def like_of(x: Tensor) -> Tensor:
    """Return [B, H, 0, D] in the dtype of a tensor [B, H, X, D]."""
    return x.new_empty((*x.shape[:2], 0, x.shape[3]))


def bytes_each(tensor: Tensor) -> int:
    """Return the bytes of one step along the third dimension of [B, H, X, D]."""
    batch, heads, _, width = tensor.shape
    return batch * heads * width * tensor.element_size()


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, routes: list[Route], *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.group, ctx.routes = group, routes
        ctx.likes = [like_of(x) for x in tensors]
        ctx.lengths = [x.shape[2] for x in tensors]
        ctx.floats = [index for index, x in enumerate(tensors) if x.is_floating_point()]
        arrived = depart(group, list(map(Parcel, tensors, routes))).land()
        found = tuple(torch.cat(pieces, 2) for pieces in arrived)
        ctx.mark_non_differentiable(*(x for x in found if not x.is_floating_point()))
        return found

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        group: Group = ctx.group
        routes, likes = ([of[index] for index in ctx.floats] for of in (ctx.routes, ctx.likes))
        back = list(map(Parcel, (grads[index] for index in ctx.floats), routes))
        arrived = depart_back(group, back, likes).land()
        found: list[Tensor | None] = [None] * len(grads)
        for index, route, like, pieces in zip(ctx.floats, routes, likes, arrived, strict=True):
            found[index] = sum_returned(like, ctx.lengths[index], route, pieces, group.rank)
        return None, None, *found


def _all_to_all(
    group: Group, parts: list[list[Tensor]], counts: list[list[int]], likes: list[Tensor]
) -> Flight:
    """Send what every rank gets, but this rank's own parts.

    Args:
        parts: for each rank, its part of every tensor.
        counts: for each rank, how long the parts that come from it are.
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
        work = dist.all_to_all_single(incoming, outgoing, sizes, sent, group=group.handle, async_op=True)
    return Flight(group, work, outgoing, incoming, parts[group.rank], counts, likes)


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
