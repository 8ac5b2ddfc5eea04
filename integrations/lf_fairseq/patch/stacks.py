"""fairseq's encoders and decoders, as far as they have to know what their attention sees.

All of them do what fairseq's do, by calling it. What is added: a decoder builds no T x T mask of the future;
global tokens, by id or of the batch, reach the attention; what cannot be carried is refused by name.

Only the classes of these names are replaced, and not their subclasses, which may differ.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from fairseq import modules
from fairseq.models import bart, masked_lm, roberta, transformer
from torch import Tensor, nn

from lf_backend.errors import UnsupportedError
from lf_backend.patching import PatchMark
from lf_fairseq.attention import mask_bits
from lf_fairseq.patch import side_channel


@dataclass(frozen=True)
class TokensPatchMark(PatchMark):
    """The mark of a stack with global tokens.

    Attributes:
        tokens: their ids.
    """

    tokens: tuple[int, ...] = ()


class _Layers(nn.ModuleList):
    """A list of layers that may carry a mask, which takes the place of the one that the stack passes."""

    if TYPE_CHECKING:
        lf_mark: PatchMark

    def __iter__(self) -> Iterator[Any]:
        mask = side_channel.cargo(self)
        for layer in super().__iter__():
            yield layer if mask is None else partial(_call, layer, mask)


class CarryingModuleList(_Layers):
    """A plain list of layers."""


class CarryingLayerDropModuleList(_Layers, modules.LayerDropModuleList):
    """A list that drops layers in training."""


def _call(layer: Callable[..., Any], mask: Tensor, *args: Any, **kwargs: Any) -> Any:
    for name in ("self_attn_padding_mask", "encoder_padding_mask"):
        if name in kwargs:
            kwargs[name] = mask
            return layer(*args, **kwargs)
    raise AssertionError("a layer is called with the mask of its keys by name: checked when it was patched")


class _Stack(nn.Module):
    """The part that encoders and decoders share."""

    if TYPE_CHECKING:
        lf_mark: PatchMark
        layers: nn.ModuleList
        padding_idx: int

    def _mask(self, tokens: Tensor, global_mask: Tensor | None, last: bool = False) -> Tensor | None:
        """The mask that the layers carry, None if nothing is global but by the pattern.

        Args:
            tokens: [B, T].
            global_mask: as the batch says, bool [B, T], or None.
            last: the layers get the last token alone.
        """
        ids = self.lf_mark.tokens if isinstance(self.lf_mark, TokensPatchMark) else ()
        mask = mask_bits.of_tokens(tokens, self.padding_idx, ids, global_mask)
        return mask[:, -1:] if mask is not None and last else mask


class _Encoder(_Stack):
    def forward(
        self, src_tokens: Tensor, *args: Any, global_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """fairseq's, and `global_mask`: bool [B, T], True = global token, besides those of the pattern."""
        given = side_channel.received(self) if global_mask is None else global_mask
        with side_channel.carried(self.layers, self._mask(src_tokens, given)):
            return super().forward(src_tokens, *args, **kwargs)


class TransformerEncoderBase(_Encoder, transformer.TransformerEncoderBase):
    pass


class TransformerEncoder(_Encoder, transformer.TransformerEncoder):
    pass


class TransformerSentenceEncoder(_Encoder, modules.TransformerSentenceEncoder):
    """An older one; its first argument is called `tokens`."""

    def forward(self, tokens: Tensor, *args: Any, **kwargs: Any) -> Any:  # type: ignore[override]
        return super().forward(tokens, *args, **kwargs)


class _Decoder(_Stack):
    def forward(
        self, prev_output_tokens: Tensor, *args: Any, global_mask: Tensor | None = None, **kwargs: Any
    ) -> Any:
        """fairseq's, and `global_mask`: bool [B, T], True = global token, besides those of the pattern."""
        with side_channel.addressed(self, global_mask):
            return super().forward(prev_output_tokens, *args, **kwargs)

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: Any = None,
        incremental_state: Any = None,
        full_context_alignment: bool = False,
        alignment_layer: int | None = None,
        alignment_heads: int | None = None,
        global_mask: Tensor | None = None,
    ) -> Any:
        """fairseq's, and `global_mask` as in `forward`.

        Raises:
            UnsupportedError: `full_context_alignment`, which a causal pattern contradicts.
        """
        if full_context_alignment:
            raise UnsupportedError("full_context_alignment: False wanted with a causal pattern, got True")
        given = side_channel.received(self) if global_mask is None else global_mask
        mask = self._mask(prev_output_tokens, given, last=incremental_state is not None)
        with side_channel.carried(self.layers, mask):
            return super().extract_features(  # type: ignore[misc]
                prev_output_tokens,
                encoder_out,
                incremental_state,
                full_context_alignment,
                alignment_layer,
                alignment_heads,
            )

    def buffered_future_mask(self, tensor: Tensor) -> None:
        """No mask: the pattern of every layer ends at the present."""


class TransformerDecoderBase(_Decoder, transformer.TransformerDecoderBase):
    pass


class TransformerDecoder(_Decoder, transformer.TransformerDecoder):
    pass


class _Passing(nn.Module):
    """A module around an encoder, whose arguments have no room for global tokens."""

    reads: ClassVar[str]

    def forward(self, *args: Any, global_mask: Tensor | None = None, **kwargs: Any) -> Any:
        """fairseq's, and `global_mask` for the encoder: bool [B, T], True = global token.

        Raises:
            UnsupportedError: `global_mask` for an encoder that is not patched.
        """
        encoder = self.get_submodule(self.reads)
        if global_mask is not None and not hasattr(encoder, "lf_mark"):
            raise UnsupportedError("global_mask: a patched encoder wanted, got one of fairseq as it is")
        with side_channel.addressed(encoder, global_mask):
            return super().forward(*args, **kwargs)


class RobertaEncoder(_Passing, roberta.RobertaEncoder):
    reads = "sentence_encoder"


class MaskedLMEncoder(_Passing, masked_lm.MaskedLMEncoder):
    reads = "sentence_encoder"


class TransformerModelBase(_Passing, transformer.TransformerModelBase):
    reads = "encoder"


class TransformerModel(_Passing, transformer.TransformerModel):
    reads = "encoder"


class BARTModel(_Passing, bart.BARTModel):
    reads = "encoder"


STACKS: dict[type[nn.Module], type[nn.Module]] = {
    transformer.TransformerEncoderBase: TransformerEncoderBase,
    transformer.TransformerEncoder: TransformerEncoder,
    modules.TransformerSentenceEncoder: TransformerSentenceEncoder,
    transformer.TransformerDecoderBase: TransformerDecoderBase,
    transformer.TransformerDecoder: TransformerDecoder,
}
LISTS: dict[type[nn.Module], type[nn.Module]] = {
    nn.ModuleList: CarryingModuleList,
    modules.LayerDropModuleList: CarryingLayerDropModuleList,
}
CONTAINERS: dict[type[nn.Module], type[nn.Module]] = {
    roberta.RobertaEncoder: RobertaEncoder,
    masked_lm.MaskedLMEncoder: MaskedLMEncoder,
    transformer.TransformerModelBase: TransformerModelBase,
    transformer.TransformerModel: TransformerModel,
    bart.BARTModel: BARTModel,
}
