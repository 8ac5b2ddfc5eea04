"""The character language model of Longformer as a fairseq architecture: `--arch longformer_lm_small`.

Beltagy et al. 2020 (arXiv 2004.05150), section 4 and table 12: a decoder with layer norm first, GELU, and
Transformer-XL's relative sinusoidal positions instead of absolute ones, so that a sequence may have any
length. The rest is Transformer-XL (Dai et al. 2019, section 3.3, and its enwik8 model), from which the paper
starts: projections of the attention have no bias; u and v are shared by all layers, W is each layer's own;
matrices, embeddings, u and v begin normal with deviation 0.02 and biases 0; embeddings are multiplied by the
square root of their width and are also the output's weights. This gives 41M parameters (small) and 102M
(large), as published. Transformer-XL also drops out sinusoids; here they are never dropped.
"""
# No postponed annotations: fairseq reads the types of a configuration's fields.

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from fairseq.dataclass import FairseqDataclass
from fairseq.models import (
    FairseqIncrementalDecoder,
    FairseqLanguageModel,
    register_model,
    register_model_architecture,
)
from omegaconf import II
from torch import Tensor, nn
from torch.nn.functional import dropout, gelu

import lf_backend as lf
from lf_backend.errors import LFError
from lf_fairseq import pattern_option
from lf_fairseq.archs import options
from lf_fairseq.attention.relative_attention import IncrementalState, RelativeAttention

NAME = "longformer_lm"
DEVIATION = 0.02


@dataclass
class LongformerLMConfig(FairseqDataclass):
    """Options on the command line; widths are numbers of features."""

    decoder_layers: int = field(default=12, metadata={"help": "layers"})
    decoder_embed_dim: int = field(default=512, metadata={"help": "width of the hidden states"})
    decoder_ffn_embed_dim: int = field(default=2048, metadata={"help": "width of the feed-forward part"})
    decoder_attention_heads: int = field(default=8, metadata={"help": "heads; a divisor of the width"})
    dropout: float = field(default=0.2, metadata={"help": "of embeddings, attention, feed-forward"})
    attention_dropout: float = field(default=0.0, metadata={"help": "of attention weights"})
    attention_pattern: str = field(
        default="window(511, 0)",
        metadata={
            "help": "causal windows: a pattern for all layers, or JSON (text or the path of a .json file) "
            "of one, or of a list of one per layer"
        },
    )
    attention_backend: str = field(
        default="", metadata={"help": "backend of lf_backend that must run it (default: the best)"}
    )
    position_block: int = field(
        default=0,
        metadata={
            "help": "queries whose position scores exist at a time, to be computed again in the backward "
            "pass: less memory, more time; 0 computes all at once and keeps them"
        },
    )
    tokens_per_sample: int = II("task.tokens_per_sample")


class LongformerLMLayer(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, cfg: LongformerLMConfig, pattern: lf.Pattern) -> None:
        super().__init__()
        width, hidden = cfg.decoder_embed_dim, cfg.decoder_ffn_embed_dim
        self.dropout = cfg.dropout
        self.self_attn_layer_norm = nn.LayerNorm(width)
        self.self_attn = RelativeAttention(
            width,
            cfg.decoder_attention_heads,
            pattern,
            cfg.attention_dropout,
            cfg.position_block,
            cfg.attention_backend or None,
        )
        self.final_layer_norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(
        self, x: Tensor, biases: tuple[Tensor, Tensor], padding: Tensor, state: IncrementalState | None
    ) -> Tensor:
        """x [B, N, C]; biases u and v [H, D]; padding bool [B, N]."""
        x = x + self._drop(self.self_attn(self.self_attn_layer_norm(x), *biases, padding, state))
        hidden = self._drop(gelu(self.fc1(self.final_layer_norm(x))))
        return x + self._drop(self.fc2(hidden))

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout, self.training)


class LongformerLMDecoder(FairseqIncrementalDecoder):
    """Tokens [B, N] to logits [B, N, vocabulary]; of any length, there being no absolute positions.

    Args:
        cfg: `LongformerLMConfig` or a namespace like it.
        dictionary: of fairseq.
        schedule: one causal window per layer.
    """

    def __init__(self, cfg: Any, dictionary: Any, schedule: tuple[lf.Pattern, ...]) -> None:
        super().__init__(dictionary)
        width, heads = cfg.decoder_embed_dim, cfg.decoder_attention_heads
        if width % heads or width % 2:
            raise LFError(f"--decoder-embed-dim: an even multiple of {heads} heads wanted, got {width}")
        self.dropout, self.padding = cfg.dropout, dictionary.pad()
        self.embed_tokens = nn.Embedding(len(dictionary), width, padding_idx=self.padding)
        self.content_bias = nn.Parameter(torch.empty(heads, width // heads))  # u
        self.position_bias = nn.Parameter(torch.empty(heads, width // heads))  # v
        self.layers = nn.ModuleList(LongformerLMLayer(cfg, pattern) for pattern in schedule)
        self.layer_norm = nn.LayerNorm(width)
        self.output_projection = nn.Linear(width, len(dictionary))
        self.reset_parameters()
        self.output_projection.weight = self.embed_tokens.weight

    def reset_parameters(self) -> None:
        """Transformer-XL's initialisation."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=DEVIATION)
            if isinstance(module, nn.Linear) and module.bias is not None:
                nn.init.zeros_(module.bias)
        for bias in (self.content_bias, self.position_bias):
            nn.init.normal_(bias, std=DEVIATION)
        with torch.no_grad():
            self.embed_tokens.weight[self.padding].zero_()

    def extract_features(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Hidden states [B, N, C]; with a state, of those tokens alone that it has not seen.

        Args:
            src_lengths: fairseq passes them; padding is read from the tokens.
        """
        if encoder_out is not None:
            raise LFError(
                f"encoder_out: None wanted, {NAME} has no encoder, got {type(encoder_out).__name__}"
            )
        tokens = self._unseen(prev_output_tokens, incremental_state)
        padding = tokens.eq(self.padding)
        x = self.embed_tokens(tokens) * math.sqrt(self.embed_tokens.embedding_dim)
        x = dropout(x, self.dropout, self.training)
        biases = (self.content_bias, self.position_bias)
        for layer in self.layers:
            x = layer(x, biases, padding, incremental_state)
        return dropout(self.layer_norm(x), self.dropout, self.training), {"attn": [None]}

    def forward(
        self,
        prev_output_tokens: Tensor,
        encoder_out: None = None,
        incremental_state: IncrementalState | None = None,
        src_lengths: Tensor | None = None,
    ) -> tuple[Tensor, dict[str, Any]]:
        """Logits; arguments as in `extract_features`."""
        features, extra = self.extract_features(
            prev_output_tokens, encoder_out, incremental_state, src_lengths
        )
        return self.output_layer(features), extra

    def output_layer(self, features: Tensor) -> Tensor:
        """Features [B, N, C] to logits [B, N, vocabulary]."""
        return self.output_projection(features)

    def max_positions(self) -> int:
        """No limit: positions are relative."""
        return sys.maxsize

    def _unseen(self, tokens: Tensor, incremental_state: IncrementalState | None) -> Tensor:
        if incremental_state is None:
            return tokens
        state = self.get_incremental_state(incremental_state, "tokens")
        seen = 0 if state is None else int(state["seen"])
        now = {"seen": torch.tensor(tokens.shape[1])}  # on the CPU, wherever the model is
        self.set_incremental_state(incremental_state, "tokens", now)
        return tokens[:, seen:]


@register_model(NAME, dataclass=LongformerLMConfig)
class LongformerLM(FairseqLanguageModel):
    """The model that `--arch longformer_lm` and its sizes build."""

    @classmethod
    def build_model(cls, cfg: Any, task: Any) -> "LongformerLM":
        """The model of a configuration.

        Raises:
            PatternError: a pattern that cannot be read, looks ahead, or is more than one limited window.
        """
        text = cfg.attention_pattern
        schedule = pattern_option.read(
            text, cfg.decoder_layers, causal=True, heads=cfg.decoder_attention_heads
        )
        options.store(cfg, options.PATTERN, pattern_option.write(text))
        return cls(LongformerLMDecoder(cfg, task.target_dictionary, schedule))


SIZES: dict[str, dict[str, Any]] = {
    "small": {"decoder_layers": 12, "dropout": 0.2},
    "large": {"decoder_layers": 30, "dropout": 0.4},
    "laptop": {
        "decoder_layers": 6,
        "decoder_embed_dim": 128,
        "decoder_ffn_embed_dim": 512,
        "decoder_attention_heads": 4,
        "dropout": 0.0,
    },
}


def _architecture(values: dict[str, Any]) -> Callable[[Any], None]:
    def fill(args: Any) -> None:
        for name, value in values.items():
            if getattr(args, name, None) is None:
                setattr(args, name, value)

    return fill


for _size, _values in SIZES.items():
    register_model_architecture(NAME, f"{NAME}_{_size}")(_architecture(_values))
