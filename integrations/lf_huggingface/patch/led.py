"""LED's replaced classes (transformers.models.led.modeling_led): those of the encoder.

The decoder attends densely, to itself and to the encoder, and stays as it is. See `longformer` for what
changes against upstream and why the names are upstream's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from transformers.models.led import modeling_led as upstream

from lf_huggingface.patch import config_patterns, encoder_loop
from lf_huggingface.patch.exchanged import Exchanged
from lf_huggingface.patch.replacements import Replacements
from lf_huggingface.patch.self_attention import SparseSelfAttention
from lf_huggingface.patch.token_masks import TokenMasks
from lf_huggingface.patch.upstream_checks import recorded

if TYPE_CHECKING:
    from lf_backend.patching import PatchMark


class LEDEncoderSelfAttention(Exchanged, SparseSelfAttention, upstream.LEDEncoderSelfAttention):
    """The layer of every encoder layer, with a pattern of its own."""


@recorded
class LEDEncoder(Exchanged, upstream.LEDEncoder):
    """Embeddings and the stack of layers; arguments and outputs are upstream's."""

    if TYPE_CHECKING:
        lf_mark: PatchMark

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids [B, N] or inputs_embeds [B, N, E] to a LEDEncoderBaseModelOutput."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids or inputs_embeds: exactly one wanted")
        asked = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        trace = encoder_loop.run(
            self.layers,
            self._embedded(self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds),
            TokenMasks.read(attention_mask, global_attention_mask, most=None),
            output_attentions=asked,
            output_hidden_states=states,
            unpad=self.lf_mark.unpad,
            skips=self._skips_layer,
        )
        outputs = upstream.LEDEncoderBaseModelOutput(**trace._asdict())
        as_dict = self.config.return_dict if return_dict is None else return_dict
        return outputs if as_dict else outputs.to_tuple()

    def _embedded(self, tokens: Tensor) -> Tensor:
        """Token embeddings [B, N, E] with positions, normalised."""
        hidden = self.layernorm_embedding(tokens + self.embed_positions(tokens.shape[:2]))
        return nn.functional.dropout(hidden, p=self.dropout, training=self.training)

    def _skips_layer(self) -> bool:
        """LayerDrop (Fan et al. 2019, arXiv 1909.11556): leave a layer out of a training step."""
        return self.training and self.layerdrop > 0 and bool(torch.rand([]) < self.layerdrop)


REPLACEMENTS = Replacements(
    (
        LEDEncoderSelfAttention,
        LEDEncoder,
    ),
    config_patterns.of_config,
)
