"""The self-attention layer: upstream's projections and arguments around `lf_backend.attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

import lf_backend as lf
from lf_backend._callers import may_look
from lf_backend._looked import once
from lf_backend.backend import Columns
from lf_backend.ops.documents import boundaries
from lf_backend.ops.global_tokens import columns
from lf_backend.pattern.terms import Pattern
from lf_huggingface.interface.ranks import ranks_of, refuse_over_ranks
from lf_huggingface.patch import attention_weights, folded_rows, heads
from lf_huggingface.patch.token_masks import TokenMasks
from lf_huggingface.patch.zero_gradients import used

if TYPE_CHECKING:
    from lf_backend.patching import PatchMark


class SparseSelfAttention(nn.Module):
    """Mixed in before upstream's layer, whose parameters and attributes it uses."""

    if TYPE_CHECKING:
        lf_mark: PatchMark
        num_heads: int
        head_dim: int
        dropout: float
        query: nn.Linear
        key: nn.Linear
        value: nn.Linear
        query_global: nn.Linear
        key_global: nn.Linear
        value_global: nn.Linear

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | TokenMasks | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        """The layer's output, and the weights behind it if asked for.

        Args:
            hidden_states: [B, N, E], any N.
            attention_mask: the patched model's `TokenMasks`; anything else is not read: the next two say it.
            is_index_masked: bool [B, N], True = padding, or None. The output of padding is 0.
            is_index_global_attn: bool [B, N], True = global token.
            is_global_attn: whether any token is global.
            output_attentions: also return the weights; see `probabilities`.

        Returns:
            [B, N, E]; with `output_attentions` also [B, N, H, G + taps], G being the largest number of
            global tokens in the batch; and with globals also [B, H, G, N].
        """
        pattern = self.lf_mark.pattern
        assert pattern is not None, "the plan gives every attention layer a pattern"
        tokens = _tokens(attention_mask, is_index_masked, is_index_global_attn if is_global_attn else None)
        q, k, v = (heads.split(x(hidden_states), self.num_heads) for x in (self.query, self.key, self.value))
        ranks = ranks_of(self)
        if output_attentions:
            refuse_over_ranks(self, "output_attentions", "False")
        dropout_p = self.dropout if self.training else 0.0
        local: dict[str, Any] = {
            "key_padding": tokens.padded, "global_mask": tokens.global_mask,
            "global_positions": tokens.positions, "dropout_p": dropout_p, "backend": self.lf_mark.backend,
        }  # fmt: skip
        if not output_attentions and (few := self._few(pattern, tokens, k)) is not None:
            drawn = attention_weights.Replay.of_next_call(q, dropout_p)
            out = heads.join(lf.attention(q, k, v, pattern, documents=tokens.documents, **local))
            return (folded_rows.write(out, hidden_states, *few, drawn),)
        own: tuple[Tensor | None, ...] = (None, None, None)
        some = tokens.has_globals if ranks is None else ranks.has_globals
        if some or pattern.lowered.positions:
            own = self._own(hidden_states, pattern, tokens, k)
        elif self.training:
            q = used(q, self.query_global, self.key_global, self.value_global)
        replay = attention_weights.Replay.of_next_call(q, dropout_p) if output_attentions else None
        options = {**local, "global_q": own[0], "global_k": own[1], "global_v": own[2]}
        if ranks is None:
            out = lf.attention(q, k, v, pattern, documents=tokens.documents, **options)
        else:
            out = ranks.attention(q, k, v, pattern, **options)
        out = heads.join(out)
        if replay is None:
            return (out,)
        scored = attention_weights.Scored(q, k, own[0], own[1], tokens.padded, replay)
        return (out, *attention_weights.weights(scored, pattern, tokens.global_mask, tokens.positions))

    def _few(
        self, pattern: Pattern, tokens: TokenMasks, k: Tensor
    ) -> tuple[folded_rows.Projections, folded_rows.Tokens] | None:
        """The projections of global rows and these, where it is known that they are few; else None."""
        if tokens.global_mask is not None or ranks_of(self) is not None or not may_look(k):
            return None
        documents = None if tokens.documents is None else once(boundaries, tokens.documents)
        if documents is None:
            pattern.check_positions(k.shape[2])
        rows = columns(pattern, k, tokens.padded, positions=tokens.positions, documents=documents)
        if rows is None:
            return None
        own = folded_rows.Projections(self.query_global, self.key_global, self.value_global, self.num_heads)
        few = own.pay(rows.positions.shape[1], k)
        return (own, folded_rows.Tokens(rows, tokens.padded, documents)) if few else None

    def _own(self, x: Tensor, pattern: Pattern, tokens: TokenMasks, k: Tensor) -> tuple[Tensor, ...]:
        """Query, key and value [B, H, N, D] of the global rows.

        Of the queries only those of global tokens matter. Where it is known how many there are, only they
        are projected, and the others are 0.
        """
        ours = tokens.documents is None and ranks_of(self) is None
        counted = ours or not pattern.lowered.positions
        if tokens.global_mask is None and counted:
            pattern.check_positions(x.shape[1])
            query = self._of_rows(x, columns(pattern, k, None, positions=tokens.positions))
        else:
            query = self.query_global(x)
        return tuple(
            heads.split(y, self.num_heads) for y in (query, self.key_global(x), self.value_global(x))
        )

    def _of_rows(self, x: Tensor, rows: Columns | None) -> Tensor:
        """Global queries [B, N, E], projected for some rows alone."""
        if rows is None:  # on this rank, while another has some: a 0 that has derivatives all the same
            nothing = torch.ones((), dtype=torch.bool, device=x.device)
            return used(x.masked_fill(nothing, 0), self.query_global)
        at = rows.positions[..., None].expand(-1, -1, x.shape[2])
        found: Tensor = self.query_global(x.gather(1, at))
        return found.new_zeros(x.shape).scatter(1, at, found)


def _tokens(given: Any, padded: Tensor | None, global_mask: Tensor | None) -> TokenMasks:
    """Return what the model has read, or what the caller of a layer says itself."""
    return given if isinstance(given, TokenMasks) else TokenMasks(padded, global_mask)
