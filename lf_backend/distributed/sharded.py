"""Tensors that say themselves how they are sharded: DTensors as slices, and slices as DTensors."""

from __future__ import annotations

from typing import Any

from torch import Size, Tensor
from torch.distributed.tensor import DTensor, Shard

from lf_backend.errors import ShapeError

# The dimension of a sequence's positions, of every tensor that has one.
_POSITIONS = {
    "q": 2, "k": 2, "v": 2, "global_q": 2, "global_k": 2, "global_v": 2, "band_bias": 2,
    "key_padding": 1, "global_mask": 1, "documents": 1,
}  # fmt: skip


def slice_of(name: str, x: Any, mesh: Any) -> Any:
    """Return this rank's slice of a DTensor; anything else as it is.

    Raises:
        ShapeError: a DTensor that is not sharded over the ranks of `mesh` along its positions.
    """
    if not isinstance(x, DTensor):
        return x
    dim = _POSITIONS.get(name)
    if dim is None:
        raise ShapeError(f"{name}: a plain tensor wanted, the same on all ranks or a slice, got a DTensor")
    over = [placement for own, placement in _dims(x) if own == mesh]
    if over != [Shard(dim)] or sum(placement == Shard(dim) for placement in x.placements) > 1:
        wanted = f"a DTensor with Shard({dim}) over {_named(mesh)} and no other dimension"
        raise ShapeError(f"{name}: {wanted} wanted, got {x.placements} over {_named(x.device_mesh)}")
    return x.to_local()


def like(x: Any, local: Tensor, length: int) -> Tensor:
    """Return a slice [B, H, n, ...] of `length` as a DTensor, if `x` is one, sharded in the same way."""
    if not isinstance(x, DTensor):
        return local
    shape = (*x.shape[:2], length, *local.shape[3:])
    stride = [1]
    for size in reversed(shape[1:]):
        stride.insert(0, stride[0] * size)
    placements, mesh = x.placements, x.device_mesh
    return DTensor.from_local(local, mesh, placements, shape=Size(shape), stride=tuple(stride))


def _dims(x: DTensor) -> list[tuple[Any, Any]]:
    """Return every dimension of a DTensor's mesh, as a mesh of its own, and its placement."""
    mesh = x.device_mesh
    names = mesh.mesh_dim_names
    if mesh.ndim == 1 or names is None:
        return [(mesh, placement) for placement in x.placements]
    return [(mesh[name], placement) for name, placement in zip(names, x.placements, strict=True)]


def _named(mesh: Any) -> str:
    return f"the mesh {mesh.mesh_dim_names or tuple(mesh.shape)}"
