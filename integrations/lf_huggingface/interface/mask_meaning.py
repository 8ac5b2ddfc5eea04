"""The meaning of an upstream mask function, read from how it was put together.

transformers composes mask functions from a few named parts (`transformers.masking_utils`), each a closure
over its numbers. A part is known by its code object; anything else is unknown and never guessed.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, lru_cache
from types import CodeType, FunctionType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lf_backend._graphs import constant_in_graphs
from lf_backend.pattern.terms import Causal, Global, Pattern, Window, intersection

MaskFunction = Callable[..., Any]

EVERYTHING, PAST = Window(None, None), Causal()


class Meaning(NamedTuple):
    """A pattern on positions, and the documents [B, Q] that it is confined to, if any."""

    pattern: Pattern
    documents: Tensor | None = None


class Unknown(Exception):
    """The name of a part that is not known."""


def meaning(function: MaskFunction) -> Meaning:
    """Return the meaning of a mask function.

    Raises:
        Unknown: a part of it is not known.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    if function is causal_mask_function:
        return Meaning(PAST)
    if function is bidirectional_mask_function:
        return Meaning(EVERYTHING)
    read = _known().get(function.__code__) if isinstance(function, FunctionType) else None
    if read is None or not isinstance(function, FunctionType):
        raise Unknown(getattr(function, "__qualname__", repr(function)))
    cells = (cell.cell_contents for cell in function.__closure__ or ())
    return read(**dict(zip(function.__code__.co_freevars, cells, strict=True)))


def traced_meaning(
    function: MaskFunction, config: Any, size: int | None, is_causal: bool, is_bidirectional: bool
) -> Meaning:
    """`meaning` where torch.compile traces, which cannot look into a closure.

    Args:
        size: upstream's window, if the mask has one; of chunks, where the config has chunks.
        is_causal, is_bidirectional: upstream says that nothing else is laid over the window: neither
            packing nor blocks. Both are False if something may be.
    """
    from transformers.masking_utils import bidirectional_mask_function, causal_mask_function

    if function is causal_mask_function:
        return Meaning(PAST)
    if function is bidirectional_mask_function:
        return Meaning(EVERYTHING)
    chunk = getattr(config, "attention_chunk_size", None)
    if size is None or chunk is not None or not (is_causal or is_bidirectional):
        raise Unknown(function.__qualname__)
    return Meaning(_window(size - 1, 0) if is_causal else _window(size, size))


@constant_in_graphs
def _window(left: int, right: int) -> Pattern:
    """With `right` 0 a causal model's, whose global tokens are cut as well."""
    return Window(left, right) if right else Window(left, 0) & Causal()


@cache
def _known() -> dict[CodeType, Callable[..., Meaning]]:
    """How to read each part, by its code."""
    from transformers import masking_utils as upstream

    some = torch.zeros(1, 1)
    known: dict[CodeType, Callable[..., Meaning]] = {
        upstream.and_masks().__code__: _all,
        upstream.sliding_window_overlay(1).__code__: _back,
        upstream.sliding_window_bidirectional_overlay(1).__code__: _both_sides,
        upstream.packed_sequence_mask_function(some).__code__: _packed,
    }
    remap = getattr(upstream, "remap_positions_for_packed_sequence", None)  # not in 5.17
    if remap is not None:
        known[remap(_all, some).__code__] = _remapped
    return known


# A mask is read anew for every token that is generated: patterns are made once.
@lru_cache(maxsize=256)
def _both_sides(sliding_window: int) -> Meaning:
    return Meaning(Window(sliding_window, sliding_window))


def _packed(packed_sequence_mask: Tensor) -> Meaning:
    return Meaning(EVERYTHING, packed_sequence_mask)


def _remapped(mask_function: MaskFunction, position_ids: Tensor) -> Meaning:
    # The positions restart where a document does, and inside one they differ as slots do.
    return meaning(mask_function)


@lru_cache(maxsize=256)
def _back(sliding_window: int) -> Meaning:
    # Qwen2-MoE without windows has size 0, and a mask of it that no layer uses.
    return Meaning(Window(sliding_window - 1, None) if sliding_window > 0 else Global())


def _all(mask_functions: tuple[MaskFunction, ...]) -> Meaning:
    parts = [meaning(function) for function in mask_functions]
    documents = [part.documents for part in parts if part.documents is not None]
    if len(documents) > 1:
        raise Unknown("and_mask of several documents")
    pattern = _common(tuple(part.pattern for part in parts))
    return Meaning(pattern, documents[0] if documents else None)


@lru_cache(maxsize=256)
def _common(patterns: tuple[Pattern, ...]) -> Pattern:
    """Return what windows have in common, as a window, cut where one of them is."""
    pattern = whole = intersection(*patterns)
    for band in whole.lowered.bands:  # one, or none if nothing is shown
        pattern = Window(band.left, band.right)
    return pattern.past if whole.is_causal else pattern
