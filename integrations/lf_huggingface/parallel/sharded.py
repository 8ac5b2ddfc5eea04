"""The batches that were sharded, and which of them a forward has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from lf_backend.distributed.group import Group
from lf_backend.errors import ShapeError, UnsupportedError
from lf_huggingface.interface.ranks import Batch, Ranks
from lf_huggingface.parallel.batches import sizes_of

_TOKENS = ("input_ids", "inputs_embeds")
# Arguments of a forward, what they may be, and what they would need.
_REFUSED = {
    "use_cache": ((None, False), "False"),
    "past_key_values": ((None,), "None"),
    "logits_to_keep": ((None, 0), "0, and slices of the logits,"),
}


class Sharded:
    """Batches that `shard` has cut, known by their tokens, so that several may be cut ahead."""

    def __init__(self, group: Group, ranks: Ranks) -> None:
        self._group, self._ranks, self._last = group, ranks, Batch()
        self._known: Any = WeakIdKeyDictionary()

    def add(self, slices: Mapping[str, Any], batch: Batch) -> None:
        """Keep what all ranks know of a batch for its forward."""
        self._last = batch
        self._known[next(slices[name] for name in _TOKENS if name in slices)] = batch

    def begin(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Look at the arguments of a forward before it begins.

        Raises:
            ShapeError: tokens that are no slice.
            UnsupportedError: an argument that asks for what ranks do not have.
        """
        for name, (allowed, other) in _REFUSED.items():
            if not any(kwargs.get(name) is x for x in allowed):
                raise UnsupportedError(f"{name}: {other} wanted over ranks, got {kwargs[name]!r}")
        given = [kwargs[name] for name in _TOKENS if kwargs.get(name) is not None]
        tokens: Tensor = given[0] if given else args[0]
        batch = self._last if torch.compiler.is_compiling() else self._known.get(tokens, self._last)
        wanted = sizes_of(batch.length, self._group)[self._group.rank]
        if tokens.shape[1] != wanted or not batch.length:
            size = f"[B, {wanted}], " if batch.length else ""
            raise ShapeError(
                f"input_ids: {size}this rank's slice, as `cp.shard(batch)` returns it, wanted under "
                f"context_parallel, got {list(tokens.shape)}"
            )
        self._ranks.begin(batch)
