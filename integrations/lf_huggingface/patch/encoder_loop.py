"""The loop over encoder layers that Longformer and LED share, and what it collects."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from torch import Tensor, nn

from lf_backend.patching.handle import mark_of
from lf_backend.pattern.terms import Pattern
from lf_huggingface.patch.packed_rows import PackedRow
from lf_huggingface.patch.token_masks import TokenMasks


class Trace(NamedTuple):
    """In the order of upstream's encoder outputs; N is the length that was given, without padding.

    Attributes:
        last_hidden_state: [B, N, E].
        hidden_states: the input of every layer and the last output, or None.
        attentions: per layer [B, H, N, G + taps], or None.
        global_attentions: per layer [B, H, N, G], None if not asked for or without any global token.
    """

    last_hidden_state: Tensor
    hidden_states: tuple[Tensor, ...] | None
    attentions: tuple[Tensor | None, ...] | None
    global_attentions: tuple[Tensor | None, ...] | None


def run(
    layers: nn.ModuleList,
    hidden: Tensor,
    tokens: TokenMasks,
    *,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
    unpad: bool,
    skips: Callable[[], bool] = lambda: False,
) -> Trace:
    """Run hidden [B, N, E] through the layers.

    Args:
        unpad: run without padding, in one row, where that leaves something out. Weights have no place in a
            row, so not with `output_attentions`.
        skips: whether to leave out the next layer.
    """
    row = PackedRow.of(tokens, hidden, _patterns(layers)) if unpad and not output_attentions else None
    if row is not None:
        tokens, hidden = row.tokens, row.pack(hidden)
    states, local, rows = [hidden], [], []
    arguments: dict[str, Any] = {"attention_mask": tokens, "output_attentions": output_attentions}
    for layer in layers:
        found: tuple[Tensor, ...] = (hidden,) if skips() else layer(hidden, **arguments)
        hidden = found[0]
        states.append(hidden)
        local.append(found[1].transpose(1, 2) if len(found) > 1 else None)
        rows.append(found[2].transpose(2, 3) if len(found) > 2 else None)
    if row is not None:
        hidden = row.unpack(hidden)
        states = [row.unpack(state) for state in states] if output_hidden_states else []
    return Trace(
        hidden,
        tuple(states) if output_hidden_states else None,
        tuple(local) if output_attentions else None,
        tuple(rows) if any(x is not None for x in rows) else None,
    )


def _patterns(layers: nn.ModuleList) -> Iterator[Pattern]:
    """The patterns that patched layers run."""
    marks = (mark_of(module) for module in layers.modules())
    return (mark.pattern for mark in marks if mark is not None and mark.pattern is not None)
