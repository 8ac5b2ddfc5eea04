"""The self-attention layer: upstream's projections and arguments around `lf_backend.attention`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

import lf_backend as lf
from lf_backend.pattern.terms import Pattern
from lf_huggingface.patch import attention_weights, heads
from lf_huggingface.patch.token_masks import is_free_to_read
from lf_huggingface.patch.zero_gradients import used

if TYPE_CHECKING:
    from lf_backend.patching import Mark


class SparseSelfAttention(nn.Module):
    """Mixed in before upstream's layer, whose parameters and attributes it uses."""

    if TYPE_CHECKING:
        lf_mark: Mark
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
        attention_mask: Tensor | None = None,
        is_index_masked: Tensor | None = None,
        is_index_global_attn: Tensor | None = None,
        is_global_attn: bool | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, ...]:
        """The layer's output, and the weights behind it if asked for.

        Args:
            hidden_states: [B, N, E], any N.
            attention_mask: not read; the next two say the same.
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
        q, k, v = (heads.split(x(hidden_states), self.num_heads) for x in (self.query, self.key, self.value))
        global_mask = is_index_global_attn if is_global_attn else None
        own: tuple[Tensor | None, ...] = (None, None, None)
        if global_mask is not None or pattern.lowered.positions:
            own = self._own(hidden_states, pattern, global_mask)
        elif self.training:
            q = used(q, self.query_global, self.key_global, self.value_global)
        dropout_p = self.dropout if self.training else 0.0
        replay = attention_weights.Replay.of_next_call(q, dropout_p) if output_attentions else None
        out = lf.attention(
            q, k, v, pattern, key_padding=is_index_masked, global_mask=global_mask,
            global_q=own[0], global_k=own[1], global_v=own[2], dropout_p=dropout_p,
            backend=self.lf_mark.backend,
        )  # fmt: skip
        out = heads.join(out)
        if replay is None:
            return (out,)
        scored = attention_weights.Scored(q, k, own[0], own[1], is_index_masked, replay)
        return (out, *attention_weights.weights(scored, pattern, global_mask))

    def _own(self, x: Tensor, pattern: Pattern, global_mask: Tensor | None) -> tuple[Tensor, ...]:
        """Query, key and value [B, H, N, D] of the global rows.

        Of the queries only those of global tokens matter. Where these are found at no cost, only they
        are projected, and the others are 0.
        """
        query: Tensor
        if is_free_to_read(x):
            pattern.check_positions(x.shape[1])
            empty = torch.zeros(x.shape[:2], dtype=torch.bool)
            chosen = empty if global_mask is None else global_mask.clone()
            chosen[:, list(pattern.lowered.positions)] = True
            rows = self.query_global(x[chosen])
            query = rows.new_zeros(x.shape).index_put((chosen,), rows)
        else:
            query = self.query_global(x)
        return tuple(
            heads.split(y, self.num_heads) for y in (query, self.key_global(x), self.value_global(x))
        )
