"""LongT5's local encoder layer (transformers.models.longt5.modeling_longt5; Guo et al. 2022, arXiv
2112.07916, section 3.1.1): a window with T5's relative position bias, which is the operator's band bias.

Upstream cuts the sequence into blocks and scores three for each. The bias of a pair depends on its distance
alone, so a window of taps holds all of it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from transformers.models.longt5 import modeling_longt5 as upstream

import lf_backend as lf
from lf_backend.errors import PatternError
from lf_backend.pattern.terms import Pattern, Window
from lf_huggingface.errors import refuse_weights
from lf_huggingface.patch import heads
from lf_huggingface.patch.exchanged import Exchanged
from lf_huggingface.patch.replacements import Replacements

if TYPE_CHECKING:
    from lf_backend.patching import PatchMark


def _native(config: Any) -> tuple[Pattern, ...]:
    """The window of every layer: `local_radius` keys on each side."""
    return tuple(Window(config.local_radius, config.local_radius) for _ in range(config.num_layers))


def _check(pattern: Pattern) -> None:
    """Raise PatternError unless the pattern is one window, to whose taps the bias belongs."""
    lowered = pattern.lowered
    bounded = len(lowered.bands) == 1 and lowered.bands[0].taps() is not None
    if not bounded or lowered.positions or lowered.others:
        raise PatternError(
            f"pattern: one window with a bound, and nothing else, wanted for LongT5, whose position bias is "
            f"that of a window, got {pattern}"
        )


class LongT5LocalAttention(Exchanged, upstream.LongT5LocalAttention):
    """The layer; `position_bias` is what the first layer returns for the others."""

    if TYPE_CHECKING:
        lf_mark: PatchMark

    def forward(
        self,
        hidden_states: Tensor,
        mask: Tensor | None = None,
        position_bias: Tensor | None = None,
        output_attentions: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """The layer's output [B, N, E] and its bias [1, H, 1, taps].

        Args:
            hidden_states: [B, N, E].
            mask: bool [B, 1, blocks, block, 3 * block], upstream's: which keys of the own block and its
                neighbours a query sees.
            position_bias: what the first layer has returned, None in the first.

        Raises:
            UnsupportedError: attention weights are asked for.
        """
        refuse_weights(output_attentions, "LongT5")
        pattern = self.lf_mark.pattern
        assert pattern is not None, "the plan gives every attention layer a pattern"
        length = hidden_states.shape[1]
        if position_bias is None and self.has_relative_attention_bias:
            position_bias = self._bias(pattern)
        q, k, v = (heads.split(project(hidden_states), self.n_heads) for project in (self.q, self.k, self.v))
        out = lf.attention(
            q,
            k,
            v,
            pattern,
            key_padding=None if mask is None else self._padding(mask)[:, :length],
            scale=1.0,  # T5 does not scale (Raffel et al. 2020, section 2.1)
            band_bias=None if position_bias is None else position_bias.to(q.dtype).expand(-1, -1, length, -1),
            dropout_p=self.dropout if self.training else 0.0,
            backend=self.lf_mark.backend,
        )
        return self.o(heads.join(out)), position_bias

    def _bias(self, pattern: Pattern) -> Tensor:
        """[1, H, 1, taps], of the keys that each tap of the window leads to."""
        (band,) = pattern.lowered.bands
        taps = band.taps()
        assert taps is not None and band.left is not None, "`_check` has seen to it"
        device = self.relative_attention_bias.weight.device
        steps = torch.arange(taps, device=device) - band.left
        distances = torch.tensor(band.dilations, device=device)[:, None] * steps
        buckets: Tensor = self._relative_position_bucket(  # type: ignore[no-untyped-call]
            distances,
            bidirectional=not self.is_decoder,
            num_buckets=self.relative_attention_num_buckets,
            max_distance=self.relative_attention_max_distance,
        )
        return self.relative_attention_bias.weight.T.gather(1, buckets.expand(self.n_heads, -1))[
            None, :, None
        ]

    def _padding(self, mask: Tensor) -> Tensor:
        """Bool [B, N'], True = padded, N' being whole blocks: a query that is a token sees itself."""
        size = self.block_len
        own = mask[:, 0, :, :, size : 2 * size].diagonal(dim1=-2, dim2=-1)
        return ~own.flatten(1)


REPLACEMENTS = Replacements((LongT5LocalAttention,), _native, _check)
