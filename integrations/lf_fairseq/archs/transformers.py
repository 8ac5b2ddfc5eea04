"""fairseq's transformers with sparse self-attention, under fairseq's names with `_lf` behind them.

Models: `transformer_lm_lf`, `transformer_lf`, `bart_lf`, `roberta_lf`. Every architecture of fairseq's four
models is there: `transformer_lm_gpt2_small_lf`, `bart_base_lf`, `roberta_large_lf`, ... Parameters and their
names are fairseq's, so that checkpoints go both ways.
"""
# No postponed annotations: fairseq reads the types of a configuration's fields.

from argparse import Namespace
from dataclasses import dataclass, field
from typing import Any

from fairseq.models import (
    ARCH_CONFIG_REGISTRY,
    ARCH_MODEL_INV_REGISTRY,
    register_model,
    register_model_architecture,
)
from fairseq.models.roberta import RobertaModel
from fairseq.models.transformer_lm import TransformerLanguageModel, TransformerLanguageModelConfig
from torch.serialization import add_safe_globals

from lf_fairseq.archs import options
from lf_fairseq.archs.options import BACKEND, DECODER_PATTERN, ENCODER, HELP, PATTERN, TOKENS, TWO_SIDED, Part
from lf_fairseq.patch import stacks


@dataclass
class SparseLanguageModelConfig(TransformerLanguageModelConfig):
    """fairseq's, and what self-attention sees. An empty text is one not given."""

    attention_pattern: str = field(default="", metadata={"help": HELP[PATTERN]})
    attention_backend: str = field(default="", metadata={"help": HELP[BACKEND]})
    global_tokens: str = field(default="", metadata={"help": HELP[TOKENS]})


@register_model("transformer_lm_lf", dataclass=SparseLanguageModelConfig)
class SparseLanguageModel(TransformerLanguageModel):
    """A language model. Its windows look back only; a global token is seen from later ones."""

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Any:
        """fairseq's, patched."""
        model = super().build_model(args, task)
        options.apply(args, [Part(model.decoder, PATTERN, task.source_dictionary)])
        return model


class _TwoSided:
    """The part that models with an encoder and a decoder share."""

    @classmethod
    def add_args(cls, parser: Any) -> None:
        """fairseq's options and ours."""
        super().add_args(parser)  # type: ignore[misc]
        options.add(parser, TWO_SIDED)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Any:
        """fairseq's, patched."""
        model = super().build_model(args, task)  # type: ignore[misc]
        encoder = Part(model.encoder, PATTERN, task.source_dictionary)
        decoder = Part(model.decoder, DECODER_PATTERN, task.target_dictionary, takes_globals=False)
        options.apply(args, [encoder, decoder])
        return model


@register_model("transformer_lf")
class SparseTransformer(_TwoSided, stacks.TransformerModel):
    """For translation and summarisation. Encoder-decoder attention stays dense."""


@register_model("bart_lf")
class SparseBART(_TwoSided, stacks.BARTModel):
    """BART. Encoder-decoder attention stays dense."""


@register_model("roberta_lf")
class SparseRoberta(RobertaModel):
    """RoBERTa, with global tokens that a pattern, symbols, or the batch choose."""

    @staticmethod
    def add_args(parser: Any) -> None:
        """fairseq's options and ours."""
        RobertaModel.add_args(parser)
        options.add(parser, ENCODER)

    @classmethod
    def build_model(cls, args: Any, task: Any) -> Any:
        """fairseq's, patched."""
        model = super().build_model(args, task)
        options.apply(args, [Part(model.encoder, PATTERN, task.source_dictionary)])
        return model


def _register(model: str) -> None:
    for name in ARCH_MODEL_INV_REGISTRY[model]:
        if f"{name}_lf" not in ARCH_CONFIG_REGISTRY:
            register_model_architecture(f"{model}_lf", f"{name}_lf")(ARCH_CONFIG_REGISTRY[name])


register_model_architecture("bart_lf", "bart_lf")(ARCH_CONFIG_REGISTRY["bart_large"])
for _model in ("transformer_lm", "transformer", "bart", "roberta"):
    _register(_model)

# Checkpoints of models that fairseq configures by argparse hold a Namespace, a class of plain values, which
# torch.load refuses since torch 2.6; fairseq does not ask it to take more than tensors.
add_safe_globals([Namespace])
