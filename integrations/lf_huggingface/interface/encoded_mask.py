"""How a mask crosses a model of transformers: as a small integer tensor and a number in its shape.

A mask function is told lengths, offsets and padding, and not the layer; an attention function is told the
layer and its tensors, and not the offsets. All that goes from one to the other is one 4-D tensor, which
transformers hands on as it is (through layers, generation, gradient checkpoints, compiled graphs):

    int32 [B, number, rows, Q + K]

Row 0 holds the position of every query and of every key; `~position` where a key must not be seen. Row 1,
if any, holds the document of each. What does not depend on data, the `Plan`, is kept in a table of this
process, and `number`, a size and so known without looking at data, is its place there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from lf_backend._graphs import constant_in_graphs
from lf_backend.errors import ShapeError, UnsupportedError
from lf_backend.pattern.notation import parse
from lf_backend.pattern.terms import Causal, Global, Pattern, Window, intersection, union
from lf_huggingface.interface import config_patterns

CODE = torch.int32


@dataclass(frozen=True)
class Plan:
    """What a mask says whatever its data.

    Attributes:
        pattern: upstream's own window and causality.
        layers: what runs in its place, by `config.lf_attention`: nothing, one for all layers, or one each.
        aligned: the last keys are those of the queries; otherwise keys are slots, some of them unfilled.
        padded: some keys may be padding.
        packed: row 1 says which document a token belongs to.
        sinks: leading keys that are global tokens from before the window; None if the cache is not a
            `WindowCache`.
    """

    pattern: Pattern
    layers: tuple[Pattern, ...] = ()
    aligned: bool = True
    padded: bool = False
    packed: bool = False
    sinks: int | None = None

    def of_layer(self, layer: int | None, name: str, is_cross: bool) -> Pattern:
        """The pattern that a layer runs.

        Raises:
            UnsupportedError: one pattern per layer, and a module that does not know its place.
        """
        if not self.layers or is_cross:
            return self.pattern
        if len(self.layers) > 1 and layer is None:
            raise UnsupportedError(
                f"lf_attention: one pattern for all layers wanted, got {len(self.layers)}: {name} of this "
                "model does not know which layer it is"
            )
        return self.layers[layer if len(self.layers) > 1 and layer is not None else 0]


# As attributes `plan_1`, ... of which torch.compile sees those that were made in the same trace.
_plans = SimpleNamespace()
_lock = Lock()


def number(config: Any, text: str, aligned: bool, padded: bool, packed: bool, sinks: int | None) -> int:
    """The place, from 1, of the plan for a model; `text` is its pattern. A causal model stays causal."""
    place: int = _number(config_patterns.given(config), text, aligned, padded, packed, sinks)
    return place


@constant_in_graphs
def _number(
    given: config_patterns.Given, text: str, aligned: bool, padded: bool, packed: bool, sinks: int | None
) -> int:
    pattern, layers = parse(text), config_patterns.read(*given)
    if pattern.is_causal:
        layers = tuple(intersection(layer, Causal()) for layer in layers)
    plan = Plan(pattern, layers, aligned, padded, packed, sinks)
    with _lock:
        known = list(vars(_plans).values())
        if plan not in known:
            known.append(plan)
            setattr(_plans, f"plan_{len(known)}", plan)
        return known.index(plan) + 1


def numbered(place: int) -> Plan:
    """The plan in that place."""
    found: Plan = getattr(_plans, f"plan_{place}")
    return found


@dataclass(frozen=True, eq=False)
class Mask:
    """A mask as the attention function reads it.

    Attributes:
        plan: see there.
        queries: int32 [B, Q], positions.
        keys: int32 [B, K], positions, `~position` where a key must not be seen.
        documents: int32 [B, Q + K] or None.
    """

    plan: Plan
    queries: Tensor
    keys: Tensor
    documents: Tensor | None

    @property
    def hidden(self) -> Tensor:
        """Bool [B, K], True where a key must not be seen."""
        return self.keys < 0

    @property
    def positions(self) -> Tensor:
        """int32 [B, K], positions of the keys."""
        return torch.where(self.hidden, ~self.keys, self.keys)

    def without(self, hidden: Tensor) -> Mask:
        """The mask without some keys more, bool [B, K]."""
        keys = torch.where(hidden & ~self.hidden, ~self.keys, self.keys)
        return replace(self, plan=replace(self.plan, padded=True), keys=keys)

    def visible(self, pattern: Pattern, heads: int) -> Tensor:
        """Bool [B, H, Q, K], pair by pair: dense, for what has no sparse form."""
        head = torch.arange(heads, device=self.keys.device)[:, None, None]
        query, key = self.queries[:, None, :, None], self.positions[:, None, None]
        seen = pattern.sees(head, query, key) & ~self.hidden[:, None, None]
        if self.documents is not None:
            split = self.queries.shape[1]
            own, other = self.documents[:, :split], self.documents[:, split:]
            seen = seen & (own[:, None, :, None] == other[:, None, None])
        return torch.as_tensor(seen)


def encode(place: int, queries: Tensor, keys: Tensor, documents: Tensor | None) -> Tensor:
    """The tensor of a mask; queries [B, Q], keys [B, K] as in `Mask`, documents [B, Q], the plan's place."""
    rows = [torch.cat([queries, keys], dim=1)]
    if documents is not None:
        rows.append(torch.cat([documents, documents], dim=1))
    return torch.stack(rows, dim=1).to(CODE)[:, None].expand(-1, place, -1, -1)


def decode(code: Tensor, queries: int, keys: int) -> Mask:
    """The mask of a tensor.

    Raises:
        ShapeError: a model has changed the mask on its way, or mixes up its layers.
    """
    plan = numbered(code.shape[1])
    row = code[:, 0, 0]
    extra = code.shape[3] - queries - keys
    if extra and (plan.sinks is None or extra < 0):
        raise ShapeError(
            f"attention_mask: a mask for {queries} queries and {keys} keys wanted, got one for "
            f"{code.shape[3]} together; the model changes masks in a way that is not known here"
        )
    found = row[:, queries:]
    if plan.sinks:
        found = _without_twins(found, plan.sinks, extra)
    elif extra:
        found = found[:, extra:]
    return Mask(plan, row[:, :queries], found, code[:, 0, 1] if plan.packed else None)


def _without_twins(keys: Tensor, sinks: int, extra: int) -> Tensor:
    """The keys of a `WindowCache` in a layer whose window is `extra` shorter than the mask's.

    A global token that the window still holds is hidden in front.
    """
    front, window = keys[:, :sinks], keys[:, sinks + extra :]
    at, first = (torch.where(x < 0, ~x, x) for x in (front, window[:, :1]))
    return torch.cat([torch.where((at >= first) & (front >= 0), ~front, front), window], dim=1)


@constant_in_graphs
def placed(text: str, positions: tuple[int, ...] = ()) -> str:
    """The windows of a pattern, and global tokens at other positions; both patterns as text."""
    return _placed(text, positions)


@lru_cache(maxsize=1024)
def _placed(text: str, positions: tuple[int, ...]) -> str:
    pattern = parse(text)
    if pattern.lowered.others:
        raise UnsupportedError(f"a pattern of windows and global tokens wanted, got {pattern}")
    windows = map(Window.of, pattern.lowered.bands)
    joined = union(*windows, Global(*positions))
    return (intersection(joined, Causal()) if pattern.is_causal else joined).text


def within(pattern: Pattern, length: int) -> str:
    """The pattern's text for so many keys; a global token that lies beyond them does not exist yet."""
    if not pattern.global_positions or pattern.global_positions[-1] < length:
        return pattern.text
    text: str = placed(pattern.text, tuple(at for at in pattern.global_positions if at < length))
    return text
