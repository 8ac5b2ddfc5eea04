"""Causal self-attention with relative positions, as a module of a fairseq decoder, step by step too."""

from __future__ import annotations

from typing import Any

import torch
from fairseq.incremental_decoding_utils import with_incremental_state
from torch import Tensor, nn

import lf_backend as lf
from lf_fairseq.attention import relative

IncrementalState = dict[str, dict[str, Tensor | None]]


@with_incremental_state
class RelativeAttention(nn.Module):
    """One layer's attention: projections without bias, as in Transformer-XL, and relative positions.

    Scores and softmax are float32 whatever the dtype of training: the paper trains in half precision with
    this part in float32 (Beltagy et al. 2020, appendix A), and so do we, under autocast too.

    Args:
        width: C.
        heads: H, a divisor of `width`.
        pattern: one limited causal window.
        dropout: probability of dropping an attention weight.
        block: queries whose position scores exist at a time, 0 for all; see `relative.attention`.
        backend: of `lf_backend`, None for the best that can.
    """

    def __init__(
        self, width: int, heads: int, pattern: lf.Pattern, dropout: float, block: int, backend: str | None
    ) -> None:
        super().__init__()
        reach, _ = relative.band(pattern).span()
        assert reach is not None, "band() has refused windows without limits"
        self.reach = reach  # positions that a step looks back
        self.heads, self.pattern, self.block = heads, pattern, block
        self.dropout, self.backend = dropout, backend
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.position_proj = nn.Linear(width, width, bias=False)  # W of `relative`
        self.out_proj = nn.Linear(width, width, bias=False)

    def forward(
        self,
        x: Tensor,
        content_bias: Tensor,
        position_bias: Tensor,
        padding: Tensor,
        incremental_state: IncrementalState | None = None,
    ) -> Tensor:
        """Self-attention of x [B, N, C]; with a state, of the positions that follow those it has seen.

        Args:
            content_bias, position_bias: u and v, [H, D].
            padding: bool [B, N], True = padded.
        """
        q, k, v = (self._heads(project(x)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if incremental_state is not None:
            k, v, padding = self._continued(k, v, padding, incremental_state)
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        with torch.autocast(x.device.type, enabled=False):
            out = relative.attention(
                q.to(dtype),
                k.to(dtype),
                v.to(dtype),
                self.pattern,
                self.position_proj.weight.to(dtype),
                content_bias.to(dtype),
                position_bias.to(dtype),
                key_padding=padding,
                dropout_p=self.dropout if self.training else 0.0,
                block=self.block,
                backend=self.backend,
            )
        return self.out_proj(out.to(v.dtype).transpose(1, 2).flatten(2))

    def reorder_incremental_state(
        self, incremental_state: IncrementalState, new_order: Tensor
    ) -> IncrementalState:
        """Beam search: row b continues what row new_order[b] was."""
        state: Any = self
        past = state.get_incremental_state(incremental_state, "window")
        if past is not None:
            moved = {name: tensor.index_select(0, new_order) for name, tensor in past.items()}
            state.set_incremental_state(incremental_state, "window", moved)
        return incremental_state

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.heads, -1).transpose(1, 2)  # [B, H, N, D]

    def _continued(
        self, k: Tensor, v: Tensor, padding: Tensor, incremental_state: IncrementalState
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and padding with those that came before, of which the window's reach is kept."""
        state: Any = self
        past = state.get_incremental_state(incremental_state, "window")
        if past is not None:
            k, v = torch.cat((past["keys"], k), dim=2), torch.cat((past["values"], v), dim=2)
            padding = torch.cat((past["padding"], padding), dim=1)
        old = max(k.shape[2] - self.reach, 0)
        kept = {"keys": k[:, :, old:], "values": v[:, :, old:], "padding": padding[:, old:]}
        state.set_incremental_state(incremental_state, "window", kept)
        return k, v, padding
