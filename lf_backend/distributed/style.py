"""A style of `torch.distributed.tensor.parallel`: a module whose `lf_backend.attention` runs over ranks.

    parallelize_module(block.attention, mesh["cp"], lf.distributed.ContextParallel())

The module gets its q, k, v as DTensors that are sharded along their positions, which is what makes
`lf_backend.attention` run over ranks.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ParallelStyle

from lf_backend import api
from lf_backend.distributed.attention import attention
from lf_backend.distributed.group import Group
from lf_backend.errors import ShapeError


class ContextParallel(ParallelStyle):
    """Run the attention of a module over the ranks of a mesh, each with a slice of the sequence.

    The module's forward takes q, k, v [B, H, n, D], this rank's slices, as its first three arguments or by
    the names q, k, v or query, key, value, and calls `lf_backend.attention` with them as they are. Other
    arguments and what it returns are slices too.

    Raises:
        ArgumentError: from `parallelize_module`, a mesh of several dimensions.
        ShapeError: from the module, fewer than three such tensors.
    """

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        Group.of(device_mesh)

        def shard(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
            return _sharded(args, kwargs, device_mesh)

        module.register_forward_pre_hook(shard, with_kwargs=True)
        module.register_forward_hook(_local)
        return module


_NAMES = (("q", "query"), ("k", "key"), ("v", "value"))


def _sharded(args: tuple[Any, ...], kwargs: dict[str, Any], mesh: DeviceMesh) -> tuple[Any, dict[str, Any]]:
    found, named = list(args), dict(kwargs)
    for index, names in enumerate(_NAMES):
        place: Any = found if index < len(found) else named
        key: Any = index if index < len(found) else next((name for name in names if name in named), names[0])
        x = place[key] if place is found else place.get(key)
        if not isinstance(x, Tensor) or x.ndim != 4:
            got = list(x.shape) if isinstance(x, Tensor) else type(x).__name__
            raise ShapeError(f"{names[0]}: [B, H, n, D] wanted of a module under ContextParallel, got {got}")
        if not isinstance(x, DTensor):
            place[key] = DTensor.from_local(x, mesh, [Shard(2)], run_check=False)
    return tuple(found), named


def _local(_: nn.Module, args: Any, output: Any) -> Any:
    if isinstance(output, tuple):
        return tuple(_local(_, args, x) for x in output)
    return output.to_local() if isinstance(output, DTensor) else output


def _over_ranks(q: Any, *args: Any, **options: Any) -> Any:
    """Run a call with DTensors, over the dimension of the mesh that shards their positions."""
    names, mesh = q.device_mesh.mesh_dim_names, q.device_mesh
    dims = [dim for dim, placement in enumerate(q.placements) if placement == Shard(2)]
    if len(dims) != 1:
        raise ShapeError(
            f"q: a DTensor with Shard(2) over one dimension of its mesh wanted, got {q.placements}"
        )
    if mesh.ndim > 1:
        if names is None:
            raise ShapeError("q: a DTensor over a mesh of one dimension, or of named ones, wanted")
        mesh = mesh[names[dims[0]]]
    return attention(q, *args, mesh=mesh, **options)


api.elsewhere[DTensor] = _over_ranks
