"""`attention` over ranks: what users call."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from lf_backend.distributed import op
from lf_backend.distributed.computed import computed
from lf_backend.distributed.plan import planned
from lf_backend.distributed.sharded import like
from lf_backend.ops.options import Options, takes_options
from lf_backend.pattern.terms import Pattern

if TYPE_CHECKING:
    from typing_extensions import Unpack


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    mesh: Any,
    return_lse: Literal[False] = False,
    **options: Unpack[Options],
) -> Tensor: ...


@overload
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    mesh: Any,
    return_lse: Literal[True],
    **options: Unpack[Options],
) -> tuple[Tensor, Tensor]: ...


@takes_options
def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern | str,
    *,
    mesh: Any,
    return_lse: bool = False,
    **options: Unpack[Options],
) -> Tensor | tuple[Tensor, Tensor]:
    """Compute `lf_backend.attention` of one sequence that is cut into slices, one for each rank of a mesh.

    A collective: all ranks call it, and all call backward on something that depends on its output; without
    that the others wait until the time-out. Slices are contiguous, in the order of ranks, and may differ in
    size or be empty. Each tensor is this rank's slice of what `lf_backend.attention` takes, except `sinks`,
    which all ranks have. The answer is the slice of the answer of one device, and so are gradients; that of
    `sinks` is this rank's share of a sum.

    Args:
        q: [B, H, n, D], the queries of this rank's n positions; a DTensor with `Shard(2)` over `mesh` comes
            back as one.
        k: [B, Hkv, n, D], the keys of the same positions.
        v: [B, Hkv, n, Dv].
        pattern: windows with a limit on both sides, global tokens, and predicates whose bounds, or a window
            that they are within, reach at most half of the row or 1,024 positions. Its positions are those
            of the row, or of documents.
        mesh: a DeviceMesh of one dimension.
        return_lse: return the log-sum-exp [B, H, n] as well.
        options: as in `lf_backend.attention`. `global_positions` count from the start of this rank's slice.
            A document goes on in the next slice if its id does. Dropout drops what it would on one device
            that has the generator of the first rank.

    Returns:
        The output [B, H, n, Dv], or (output, lse).

    Raises:
        DistributedError: no process group, or ranks that disagree, on all of them: about what.
        ShapeError, PatternError: as `lf_backend.attention`, for a rank's slices.
        UnsupportedError: a call that needs all keys on all ranks, with every reason.
    """
    if torch.compiler.is_compiling() and op.fits(q, k, v, mesh):
        found = op.run(q, k, v, pattern, mesh, options)
        out, lse = (like(q, x, q.shape[2]) for x in found)
    else:
        out, lse = _eager(q, k, v, pattern, mesh, options)
    return (out, lse) if return_lse else out


@torch.compiler.disable  # type: ignore[untyped-decorator]
def _eager(q: Tensor, k: Tensor, v: Tensor, pattern: Any, mesh: Any, options: Any) -> tuple[Tensor, Tensor]:
    plan = planned(q, k, v, pattern, mesh, options)
    out, lse = computed(plan)
    return like(q, out, plan.slices.length), like(q, lse, plan.slices.length)
