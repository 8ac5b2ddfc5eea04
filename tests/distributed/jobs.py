"""What ranks run in the tests."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lf_backend import distributed
from lf_backend.distributed import parts
from lf_backend.testing.case import Case, Tensors

_POSITIONS = {"key_padding": 1, "global_mask": 1, "documents": 1, "sinks": None}


def sliced(tensors: Tensors, first: int, end: int) -> dict[str, Any]:
    """Return the arguments of the rank that has the positions first .. end - 1."""
    found: dict[str, Any] = {}
    for name, x in tensors.named().items():
        dim = _POSITIONS.get(name, 2)
        if x is None or dim is None:
            found[name] = x
        elif name == "global_positions":
            inside = (x >= first) & (x < end)
            found[name] = torch.where(inside, x - first, -1)
        else:
            found[name] = x.narrow(dim, first, end - first)
    return found


def upstream(case: Case, out: Tensor, lse: Tensor, first: int, end: int) -> Tensor:
    """Return the part of one random loss that positions first .. end - 1 contribute."""
    draw = torch.Generator().manual_seed(case.seed + 1)
    shape = (case.batch, case.heads, case.queries)
    width = case.head_dim if case.value_dim is None else case.value_dim
    of_out = torch.randn(*shape, width, generator=draw, dtype=torch.float64)[:, :, first:end]
    of_lse = torch.randn(shape, generator=draw, dtype=torch.float64)[:, :, first:end]
    return (out * of_out).sum() + (lse.masked_fill(lse == -torch.inf, 0) * of_lse).sum()


def bounds(sizes: tuple[int, ...], rank: int) -> tuple[int, int]:
    """Return the first position and the end of a rank's slice."""
    return sum(sizes[:rank]), sum(sizes[: rank + 1])


def attend(mesh: Any, case: Case, sizes: tuple[int, ...], dtype: torch.dtype, short: int) -> dict[str, Any]:
    """Return the slice of out and lse, and gradients of the whole tensors as this rank knows them.

    Args:
        short: reaches of a slice below which its interior is not computed apart.
    """
    parts.SHORT = short
    tensors = case.tensors(torch.float64, torch.device("cpu")).to(dtype)
    first, end = bounds(sizes, mesh.get_local_rank())
    options = case.options()
    given = sliced(tensors, first, end)
    torch.manual_seed(case.seed)
    out, lse = distributed.attention(**given, pattern=case.pattern, mesh=mesh, return_lse=True, **options)
    upstream(case, out, lse, first, end).backward()
    grads = {
        name: (torch.zeros_like(x) if x.grad is None else x.grad).numpy()
        for name, x in tensors.leaves().items()
    }
    return {"out": out.detach().numpy(), "lse": lse.detach().numpy(), "grads": grads}
