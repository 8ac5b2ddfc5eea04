"""Two softmaxes over disjoint keys as one."""

from __future__ import annotations

import torch
from torch import Tensor


def join(out: Tensor, lse: Tensor, more: Tensor, more_lse: Tensor) -> None:
    """Join a softmax over other keys into out [..., D] and lse [...], in place.

    A side that has seen nothing, whose lse is -inf, weighs 0.

    Args:
        more: [..., D], of any dtype.
        more_lse: [...], in the dtype of lse.
    """
    total = torch.logaddexp(lse, more_lse)
    unit = total.masked_fill(total == -torch.inf, 0)
    out.mul_((lse - unit).exp_()[..., None])
    out.addcmul_(more.to(out.dtype), (more_lse - unit).exp_()[..., None].to(out.dtype))
    lse.copy_(total)
