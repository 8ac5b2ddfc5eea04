"""Values of whole sequences from those of slices, with derivatives for the sum of all ranks' losses."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from lf_backend.distributed.exchange import Parcel, exchange
from lf_backend.distributed.group import Group
from lf_backend.distributed.slices import gathering


def summed(group: Group, x: Tensor) -> Tensor:
    """Return the sum of a tensor over ranks, on all of them."""
    apply: Any = _Sum.apply
    found: Tensor = apply(group, x)
    return found


def largest(group: Group, x: Tensor) -> Tensor:
    """Return the largest of each element over ranks; a constant to derivatives."""
    found = x.detach().clone()
    with group.waiting():
        dist.all_reduce(found, dist.ReduceOp.MAX, group=group.handle)
    return found


def first_token(group: Group, hidden: Tensor) -> Tensor:
    """Return [B, 1, E], the first token of the first rank's [B, n, E], on all ranks."""
    apply: Any = _First.apply
    found: Tensor = apply(group, hidden)
    return found


def whole(group: Group, x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return [B, N, ...] of the slices [B, n, ...] of all ranks, on all of them."""
    flat = x.reshape(x.shape[0], 1, x.shape[1], -1).contiguous()
    [found] = exchange(group, [Parcel(flat, gathering(sizes, group.rank))])
    return found.view(x.shape[0], -1, *x.shape[2:])


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, x: Tensor) -> Tensor:
        ctx.group = group
        return _reduced(group, x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, _reduced(ctx.group, grad)


class _First(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, group: Group, hidden: Tensor) -> Tensor:
        ctx.group, ctx.shape = group, hidden.shape
        batch, _, width = hidden.shape
        own = hidden[:, :1] if group.rank == 0 else hidden.new_zeros(batch, 1, width)
        return _reduced(group, own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        total = _reduced(ctx.group, grad)
        found = grad.new_zeros(ctx.shape)
        if ctx.group.rank == 0:
            found[:, :1] = total
        return None, found


def _reduced(group: Group, x: Tensor) -> Tensor:
    found = x.detach().clone(memory_format=torch.contiguous_format)
    with group.waiting():
        dist.all_reduce(found, group=group.handle)
    return found
