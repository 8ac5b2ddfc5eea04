"""torch's own context parallelism, as peers: full attention, and windows by FlexAttention's masks of blocks.

Both are asked first for the answer of one device on a small row. Where torch refuses, or answers otherwise,
that is what a row says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional  # in which torch puts another function

_THEIRS = "torch.distributed.tensor.experimental._context_parallel._attention"  # what has no public name
BLOCK = 128  # positions of FlexAttention's blocks, of which every rank has as many as the others
Run = Callable[[list[Tensor]], Tensor]  # of this rank's q, k, v; what it returns has had its backward


def full(mesh: Any, length: int, reach: int) -> Run:
    """Return full attention over ranks."""
    from torch.distributed.tensor.experimental import context_parallel

    theirs: Any = import_module(_THEIRS)
    theirs._cp_options.enable_load_balance = False
    anything = [torch.zeros(length, device=mesh.device_type)]

    def run(own: list[Tensor]) -> Tensor:
        with context_parallel(mesh, buffers=anything, buffer_seq_dims=[0]):
            q, k, v = own
            out = functional.scaled_dot_product_attention(q, k, v)
            out.sum().backward()
        return out

    return run


class _Flex(nn.Module):
    """FlexAttention as a module, which is what can be made parallel."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor, block_mask: Any) -> Any:
        from torch.nn.attention.flex_attention import flex_attention

        return torch.compile(flex_attention)(q, k, v, block_mask=block_mask)


def windows(mesh: Any, length: int, reach: int) -> Run:
    """Return windows over ranks, each of which gathers all keys."""
    from torch.distributed.tensor.parallel import parallelize_module

    theirs: Any = import_module(_THEIRS)
    style = theirs._ContextParallel
    mask = theirs._create_cp_block_mask(
        lambda batch, head, query, key: (query - key).abs() <= reach, 1, 1, length, length, mesh
    )
    module = parallelize_module(_Flex(), mesh, style(seq_dim=2, attention_type=style.AttentionType.FLEX))

    def run(own: list[Tensor]) -> Tensor:
        out: Tensor = module(*own, block_mask=mask)
        out.sum().backward()
        return out

    return run


PEERS: Mapping[str, tuple[Callable[[Any, int, int], Run], bool]] = {  # and whether it sees all keys
    "torch context_parallel, full attention": (full, True),
    "torch _ContextParallel, windows of flex": (windows, False),
}


def reason_against(mesh: Any, make: Callable[[Any, int, int], Run], everything: bool) -> str | None:
    """Return why a peer is not timed, on all ranks; None if it gives the answer of one device."""
    reasons: list[Any] = [None] * mesh.size()
    dist.all_gather_object(reasons, _tried(mesh, make, everything), group=mesh.get_group())
    return next((reason for reason in reasons if reason is not None), None)


def _tried(mesh: Any, make: Callable[[Any, int, int], Run], everything: bool) -> str | None:
    length, reach = 2 * BLOCK * mesh.size(), BLOCK // 2
    torch.manual_seed(1)
    whole = [x.requires_grad_() for x in torch.randn(3, 1, 2, length, 64, device=mesh.device_type).unbind()]
    at = torch.arange(length, device=mesh.device_type)
    near = (at[:, None] - at).abs() <= reach
    q, k, v = whole
    wanted = functional.scaled_dot_product_attention(q, k, v, attn_mask=None if everything else near)
    wanted.sum().backward()
    rank, ranks = mesh.get_local_rank(), mesh.size()
    own = [x.detach().chunk(ranks, 2)[rank].clone().requires_grad_() for x in whole]
    try:
        out = make(mesh, length, reach)(own)
    except Exception as error:  # whatever torch has against it here
        return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
    found = [out.detach(), *(x.grad for x in own)]
    exact = [wanted.detach(), *(x.grad for x in whole)]
    errors = [
        float((x.chunk(ranks, 2)[rank] - y).abs().max())
        for x, y in zip(exact, found, strict=True)
        if x is not None and y is not None
    ]
    return None if len(errors) == 4 and max(errors) <= 1e-2 else f"another answer, off by {max(errors):.2g}"
