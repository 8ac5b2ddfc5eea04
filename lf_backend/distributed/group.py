"""The ranks of a mesh, and the words that they tell each other before a call."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import distributed_c10d
from torch.distributed.device_mesh import DeviceMesh

from lf_backend.errors import ArgumentError, DistributedError

_START = "start one process for each device: `torchrun --nproc-per-node 2 script.py`"
_FAILED = -1  # the digest of a rank that cannot make the call


@dataclass(frozen=True)
class Group:
    """Ranks that share a sequence, in the order of their slices.

    Attributes:
        handle: the process group.
        rank, size: the place of this process among them, and their number.
        device: where tensors of collectives live.
    """

    handle: Any
    rank: int
    size: int
    device: torch.device

    @classmethod
    def of(cls, mesh: Any) -> Group:
        """Return the ranks of a mesh of one dimension.

        Raises:
            DistributedError: there is no process group.
            ArgumentError: no DeviceMesh, or one of several dimensions.
        """
        if not dist.is_available() or not dist.is_initialized():
            raise DistributedError(f"mesh: a process group wanted, got none; {_START}")
        if not isinstance(mesh, DeviceMesh):
            raise ArgumentError(
                "mesh: a DeviceMesh wanted, as `torch.distributed.init_device_mesh` makes it, "
                f"got {type(mesh).__name__}"
            )
        if mesh.ndim != 1:
            names = mesh.mesh_dim_names
            which = f"{mesh.ndim} named {', '.join(names)}: pass mesh[{names[-1]!r}]" if names else mesh.ndim
            raise ArgumentError(f"mesh: one dimension wanted, got {which}")
        return cls._of(mesh.get_group(), torch.device(mesh.device_type))

    @classmethod
    def named(cls, name: str, device: torch.device) -> Group:
        """Return the ranks of the process group that has this name."""
        found: Any = distributed_c10d
        return cls._of(found._resolve_process_group(name), device)

    @classmethod
    def _of(cls, handle: Any, device: torch.device) -> Group:
        return cls(handle, dist.get_rank(handle), dist.get_world_size(handle), device)

    @property
    def name(self) -> str:
        """The name of the process group."""
        return str(self.handle.group_name)

    def gather(self, words: Tensor) -> Tensor:
        """Return int64 [ranks, W], the words [W] of every rank."""
        own = words.to(self.device, torch.int64)
        found = [torch.empty_like(own) for _ in range(self.size)]
        with self.waiting():
            dist.all_gather(found, own, group=self.handle)
        return torch.stack(found)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Wait inside for all ranks.

        Raises:
            DistributedError: the process group gives up, for a rank that has left or that does not come.
        """
        try:
            yield
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise DistributedError(
                f"mesh: all ranks wanted, rank {self.rank} of {self.size} waited for one in vain; {text}"
            ) from error

    def agree(self, said: Mapping[str, object] | Exception, words: Sequence[int]) -> list[list[int]]:
        """Return the words of every rank, if all say the same besides.

        Args:
            said: a call by its properties, or what makes this rank unable to make it.

        Raises:
            DistributedError: on all ranks, if they differ: in which property, and what each has; or on those
                that could have made the call, if another could not.
        """
        digest = _FAILED if isinstance(said, Exception) else _digest(said)
        rows: list[list[int]] = self.gather(torch.tensor([digest, *words])).tolist()
        if digest != _FAILED and all(row[0] == digest for row in rows):
            return [row[1:] for row in rows]
        everyone: list[Any] = [None] * self.size
        own = f"{type(said).__name__}: {said}" if isinstance(said, Exception) else dict(said)
        with self.waiting():
            dist.all_gather_object(everyone, own, group=self.handle)
        if isinstance(said, Exception):
            raise said
        raise DistributedError(_difference(everyone))


def _digest(said: Mapping[str, object]) -> int:
    text = repr(sorted((name, repr(value)) for name, value in said.items()))
    return int.from_bytes(blake2b(text.encode(), digest_size=7).digest(), "big")


def _difference(everyone: Sequence[Any]) -> str:
    """Return a message that names what ranks do not agree on."""
    failed = [f"rank {rank} {said}" for rank, said in enumerate(everyone) if isinstance(said, str)]
    if failed:
        return f"every rank able to make the call wanted, got {'; '.join(failed)}"
    differing = [name for name in everyone[0] if len({repr(said[name]) for said in everyone}) > 1]
    lines = (
        f"{name} " + ", ".join(f"{said[name]} on rank {rank}" for rank, said in enumerate(everyone))
        for name in differing
    )
    return f"one call on all ranks wanted, got {'; '.join(lines)}"
