"""Parameters that a batch does not use, in distributed training.

DistributedDataParallel waits for a gradient of every parameter. A rank whose batch holds no global token
would keep it waiting for the projections of global tokens; their gradient there is 0, and said so.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _Used(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        return (grad, *(torch.zeros_like(parameter) for parameter in ctx.saved_tensors))


def used(x: Tensor, *modules: nn.Module) -> Tensor:
    """x itself, after which the modules' parameters have a gradient, of 0, if several processes train."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return x
    parameters = [parameter for module in modules for parameter in module.parameters()]
    if not torch.is_grad_enabled() or not any(parameter.requires_grad for parameter in parameters):
        return x
    marked: Tensor = _Used.apply(x, *parameters)  # type: ignore[no-untyped-call]
    return marked
