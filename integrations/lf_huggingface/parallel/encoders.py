"""Encoders whose sequences ranks share, in models that have them whole.

An encoder takes its slice of what it is given, and gives its output for all tokens: to a decoder that attends
to them, or to a head of whatever kind.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from lf_backend.distributed.group import Group
from lf_huggingface.interface.ranks import Ranks
from lf_huggingface.parallel.batches import PACKED, TOKENS, ModelKind, bounds, cut, sizes_of
from lf_huggingface.parallel.collectives import whole
from lf_huggingface.parallel.heads import poolers


def around(model: nn.Module, layers: Sequence[nn.Module]) -> list[Any]:
    """Return the innermost models of transformers that hold any of some layers."""
    wanted = set(map(id, layers))
    found = [x for x in model.modules() if isinstance(x, PreTrainedModel) and _holds(x, wanted)]
    return [x for x in found if not any(y is not x and y in set(x.modules()) for y in found)]


def hooked(encoder: Any, kind: ModelKind, group: Group, ranks: Ranks) -> Iterator[Any]:
    """Set hooks on an encoder, and yield their handles."""
    slices = _Slices(kind, group, ranks)
    yield encoder.register_forward_pre_hook(slices.cut, with_kwargs=True)
    yield encoder.register_forward_hook(slices.join)
    if hasattr(encoder, "embed_positions"):
        yield encoder.embed_positions.register_forward_pre_hook(slices.move, with_kwargs=True)
    yield from poolers(encoder, group)


def _holds(module: nn.Module, wanted: set[int]) -> bool:
    return any(id(x) in wanted for x in module.modules())


class _Slices:
    """The hooks of one encoder."""

    def __init__(self, kind: ModelKind, group: Group, ranks: Ranks) -> None:
        self.kind, self.group, self.ranks = kind, group, ranks

    def cut(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        bound = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        more = bound.pop("kwargs", {})
        given = {**bound, **more}
        names = [name for name in (*TOKENS, *PACKED) if name != "labels" and given.get(name) is not None]
        tokens = {name: given.pop(name) for name in names}
        slices, batch = cut(tokens, self.kind, self.group)
        self.ranks.begin(batch)
        return (), {**given, **slices}

    def move(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """Count positions, of a model that takes none, from where the slice begins."""
        first, _ = bounds(self.ranks.length, self.group)
        return args, {**kwargs, "past_key_values_length": first}

    def join(self, module: Any, args: Any, outputs: Any) -> Any:
        if isinstance(outputs, tuple):  # the last states, what is pooled of them, all states
            return tuple(self._joined(x) for x in outputs)
        names = ("last_hidden_state", "hidden_states")
        return type(outputs)(**{k: self._joined(x) if k in names else x for k, x in outputs.items()})

    def _joined(self, x: Any) -> Any:
        if isinstance(x, tuple):
            return tuple(map(self._joined, x))
        tokens = isinstance(x, Tensor) and x.ndim == 3
        return whole(self.group, x, sizes_of(self.ranks.length, self.group)) if tokens else x
