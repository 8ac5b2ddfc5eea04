"""Longformer's replaced classes (transformers.models.longformer.modeling_longformer).

They keep upstream's names, because transformers and accelerate look at names: `architectures` in a saved
config, `_no_split_modules`. Against upstream the model and its encoder
- build no N x N mask (upstream builds one and keeps a row of it),
- do not pad to a multiple of the window, so any length and any mixture of windows runs,
- and never branch on data in a compiled graph.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.models.longformer import modeling_longformer as upstream

from lf_huggingface.patch import config_patterns, encoder_loop
from lf_huggingface.patch.exchanged import Exchanged
from lf_huggingface.patch.replacements import Replacements
from lf_huggingface.patch.self_attention import SparseSelfAttention
from lf_huggingface.patch.token_masks import NOTHING_SAID, TokenMasks
from lf_huggingface.patch.upstream_checks import recorded

if TYPE_CHECKING:
    from lf_backend.patching import PatchMark


class LongformerSelfAttention(Exchanged, SparseSelfAttention, upstream.LongformerSelfAttention):
    """The layer of every encoder layer, with a pattern of its own."""


class LongformerEncoder(Exchanged, upstream.LongformerEncoder):
    """The stack of layers."""

    if TYPE_CHECKING:
        lf_mark: PatchMark

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: TokenMasks = NOTHING_SAID,
        padding_len: int = 0,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        return_dict: bool = True,
    ) -> Any:
        """Run hidden_states [B, N, E]; `attention_mask` is what the patched model has read."""
        assert padding_len == 0, "the patched model does not pad"
        trace = encoder_loop.run(
            self.layer,
            hidden_states,
            attention_mask,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            unpad=self.lf_mark.unpad,
        )
        outputs = upstream.LongformerBaseModelOutput(**trace._asdict())
        return outputs if return_dict else outputs.to_tuple()


@recorded
class LongformerModel(Exchanged, upstream.LongformerModel):
    """Embeddings, encoder, pooler; arguments and outputs are upstream's."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        global_attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids [B, N] or inputs_embeds [B, N, E] to a LongformerBaseModelOutputWithPooling."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("input_ids or inputs_embeds: exactly one wanted")
        if input_ids is not None:
            self.warn_if_padding_and_no_attention_mask(input_ids, attention_mask)  # type: ignore[no-untyped-call]
        asked = self.config.output_attentions if output_attentions is None else output_attentions
        states = self.config.output_hidden_states if output_hidden_states is None else output_hidden_states
        hidden = self.embeddings(
            input_ids=input_ids,
            position_ids=position_ids,
            token_type_ids=token_type_ids,
            inputs_embeds=inputs_embeds,
        )
        encoded = self.encoder(
            hidden,
            attention_mask=TokenMasks.read(attention_mask, global_attention_mask, most=2),
            output_attentions=asked,
            output_hidden_states=states,
        )
        pooled = None if self.pooler is None else self.pooler(encoded.last_hidden_state)
        if not (self.config.return_dict if return_dict is None else return_dict):
            return (encoded.last_hidden_state, pooled, *encoded.to_tuple()[1:])
        return upstream.LongformerBaseModelOutputWithPooling(pooler_output=pooled, **encoded)


REPLACEMENTS = Replacements(
    (
        LongformerSelfAttention,
        LongformerEncoder,
        LongformerModel,
    ),
    config_patterns.of_config,
)
