"""The options of the architectures, and how a built model takes them.

An architecture is fairseq's own, built by fairseq and then patched as any loaded model is. The options are
stored in its checkpoints, with the content of a file in place of its name.
"""

from __future__ import annotations

from argparse import ArgumentParser
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig
from torch import nn

import lf_backend as lf
from lf_backend.errors import LFError, PatternError
from lf_fairseq import pattern_option
from lf_fairseq.patch import swaps
from lf_fairseq.patch.global_projections import add_global_projections
from lf_fairseq.patch.global_tokens import set_global_tokens

PATTERN = "attention_pattern"
DECODER_PATTERN = "decoder_attention_pattern"
BACKEND = "attention_backend"
TOKENS = "global_tokens"
PROJECTIONS = "global_projections"

_TEXT = (
    "a pattern such as 'window(255, 0) | global(0)', JSON of one or of a list of one per layer, or the path "
    "of a file with such JSON"
)
HELP = {
    PATTERN: f"what self-attention sees: {_TEXT}",
    BACKEND: "name of the lf_backend backend that must run it; by default the one that suits each call",
    TOKENS: "symbols of the dictionary, separated by commas, that are global tokens wherever they are, such "
    "as '<s>,<mask>'",
}
ENCODER = {
    **HELP,
    PROJECTIONS: "give global tokens projections of their own, as in the paper; they start as the others",
}
TWO_SIDED = {
    **ENCODER,
    PATTERN: f"what the encoder's self-attention sees: {_TEXT}; dense if not given",
    DECODER_PATTERN: f"what the decoder's self-attention sees, of the past: {_TEXT}; dense if not given",
    TOKENS: f"{HELP[TOKENS]}, in the encoder",
    PROJECTIONS: f"{ENCODER[PROJECTIONS]}, in the encoder",
}


@dataclass(frozen=True)
class Part:
    """One side of a model, and the option that holds its pattern.

    Attributes:
        module: the encoder or decoder.
        name: of the option.
        dictionary: of its tokens.
        takes_globals: the options about global tokens are about this side.
    """

    module: nn.Module
    name: str
    dictionary: Any
    takes_globals: bool = True


def add(parser: ArgumentParser, texts: dict[str, str]) -> None:
    """Add the options to a parser, for models that fairseq configures by argparse."""
    for name, text in texts.items():
        how: dict[str, Any] = {"type": str, "metavar": "TEXT"}
        if name == PROJECTIONS:
            how = {"action": "store_true", "default": False}
        parser.add_argument(option(name), help=text, **how)


def option(name: str) -> str:
    """Return the option as a command line spells it."""
    return "--" + name.replace("_", "-")


def apply(args: Any, parts: list[Part]) -> None:
    """Patch the parts of a built model as its options say, and make the options fit to be stored.

    Raises:
        PatternError: a pattern that cannot be read or does not fit, or none at all.
        LFError: a backend or a symbol that is not known.
    """
    texts = {part.name: getattr(args, part.name, None) for part in parts}
    if not any(texts.values()):
        raise PatternError(f"{' or '.join(map(option, texts))}: {_TEXT} wanted, got none")
    for name in (TOKENS, PROJECTIONS):
        if getattr(args, name, None) and not any(texts[part.name] for part in parts if part.takes_globals):
            raise PatternError(f"{option(name)}: with {option(PATTERN)} wanted, got it without")
    for part in parts:
        if text := texts[part.name]:
            _apply(args, part, text)


def _apply(args: Any, part: Part, text: str) -> None:
    name = option(part.name)
    (side,) = swaps.sides(part.module)
    layer: Any = next(iter(side.layers.values()))
    found = pattern_option.read(
        text, len(side.layers), causal=side.causal, heads=layer.self_attn.num_heads, option=name
    )
    lf.patch(part.module, found, backend=getattr(args, BACKEND, None) or None)
    if part.takes_globals and (symbols := getattr(args, TOKENS, None)):
        set_global_tokens(part.module, _ids(symbols, part.dictionary))
    if part.takes_globals and getattr(args, PROJECTIONS, False):
        add_global_projections(part.module)
    store(args, part.name, pattern_option.write(text, name))


def _ids(symbols: str, dictionary: Any) -> list[int]:
    names = symbols.split(",")
    if unknown := [name for name in names if name not in dictionary]:
        raise LFError(f"{option(TOKENS)}: symbols of the dictionary wanted, got {unknown}")
    return [dictionary.index(name) for name in names]


def store(args: Any, name: str, text: str) -> None:
    """Set an option where checkpoints take it from: fairseq gives a model a copy of its configuration."""
    setattr(args, name, text)
    whole: Any = args._get_parent() if isinstance(args, DictConfig) else None
    if whole is not None and "model" in whole and name in whole.model:
        whole.model[name] = text
