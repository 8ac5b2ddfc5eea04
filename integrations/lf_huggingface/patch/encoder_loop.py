"""The loop over encoder layers that Longformer and LED share, and what it collects."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from torch import Tensor

from lf_huggingface.patch.token_masks import Tokens


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
    layers: Iterable[Callable[..., tuple[Tensor, ...]]],
    hidden: Tensor,
    tokens: Tokens,
    *,
    output_attentions: bool | None,
    output_hidden_states: bool | None,
    skips: Callable[[], bool] = lambda: False,
) -> Trace:
    """Run hidden [B, N, E] through the layers; `skips` says whether to leave out the next one."""
    states, local, rows = [hidden], [], []
    arguments: dict[str, Any] = {
        "attention_mask": None,
        "is_index_masked": tokens.padded,
        "is_index_global_attn": tokens.global_mask,
        "is_global_attn": tokens.global_mask is not None,
        "output_attentions": output_attentions,
    }
    for layer in layers:
        found: tuple[Tensor, ...] = (hidden,) if skips() else layer(hidden, **arguments)
        hidden = found[0]
        states.append(hidden)
        local.append(found[1].transpose(1, 2) if len(found) > 1 else None)
        rows.append(found[2].transpose(2, 3) if len(found) > 2 else None)
    return Trace(
        hidden,
        tuple(states) if output_hidden_states else None,
        tuple(local) if output_attentions else None,
        tuple(rows) if any(x is not None for x in rows) else None,
    )
