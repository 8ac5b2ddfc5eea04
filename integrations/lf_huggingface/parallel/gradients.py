"""Gradients of parameters, averaged over ranks, and a watch that no optimizer goes without."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import register_optimizer_step_pre_hook

from lf_backend.distributed.group import Group
from lf_backend.errors import DistributedError

BUCKET = 1 << 25  # elements that travel together


def apart(model: nn.Module, group: Group) -> list[nn.Parameter]:
    """Return the parameters whose gradients nobody else averages over these ranks.

    A parameter that is sharded over a mesh which holds them, as FSDP2 does it, is not among them.
    """
    ranks = set(dist.get_process_group_ranks(group.handle))
    return [x for x in model.parameters() if x.requires_grad and not ranks <= _ranks_of(x)]


def average(group: Group, parameters: list[nn.Parameter]) -> None:
    """Replace every gradient by its mean over ranks; one that a rank has not counts as 0.

    Raises:
        DistributedError: a rank that does not come.
    """
    for dtype in sorted({x.dtype for x in parameters}, key=str):
        some = [x for x in parameters if x.dtype == dtype]
        has = torch.tensor([x.grad is not None for x in some], dtype=torch.int64)
        anywhere = group.gather(has).any(0).tolist()
        chosen = [x for x, wanted in zip(some, anywhere, strict=True) if wanted]
        for x in chosen:
            if x.grad is None:
                x.grad = torch.zeros_like(x)
        for bucket in _buckets([_local(x.grad) for x in chosen if x.grad is not None]):
            flat = torch.cat([x.flatten() for x in bucket])
            with group.waiting():
                dist.all_reduce(flat, group=group.handle)
            means = torch.split(flat / group.size, [x.numel() for x in bucket])
            for grad, mean in zip(bucket, means, strict=True):
                grad.copy_(mean.view_as(grad))


class Watch:
    """Whether some backward has left gradients that are not averaged yet; an optimizer's step asks."""

    def __init__(self, parameters: list[nn.Parameter]) -> None:
        self.pending = False
        self._ids = {id(x) for x in parameters}
        hooked: list[Any] = list(parameters)
        self._hooks: list[Any] = [x.register_post_accumulate_grad_hook(self._see) for x in hooked]
        self._hooks.append(register_optimizer_step_pre_hook(self._ask))

    def _see(self, parameter: Tensor) -> None:
        self.pending = True

    def _ask(self, optimizer: Any, *_: Any) -> None:
        if self.pending and any(id(x) in self._ids for g in optimizer.param_groups for x in g["params"]):
            self.check()

    def check(self) -> None:
        """Raise DistributedError if gradients are not averaged."""
        if self.pending:
            raise DistributedError(
                "average_gradients(): a call between backward and an optimizer's step wanted; until then "
                "every rank has gradients of its own slice"
            )

    def close(self) -> None:
        """Take the hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []


def _ranks_of(x: Tensor) -> set[int]:
    return set(x.device_mesh.mesh.flatten().tolist()) if isinstance(x, DTensor) else set()


def _local(x: Tensor) -> Tensor:
    return x.to_local() if isinstance(x, DTensor) else x


def _buckets(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    found: list[Tensor] = []
    for x in tensors:
        found.append(x)
        if sum(y.numel() for y in found) >= BUCKET:
            yield found
            found = []
    if found:
        yield found
