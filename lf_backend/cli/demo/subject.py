"""The model that the demo runs: a Longformer with seeded weights, or somebody's own checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lf_backend._optional import optional
from lf_backend.errors import LFError

FIRST_BYTE = 4  # ids below it are Longformer's <s>, <pad>, </s> and <mask>


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and how it reads.

    Attributes:
        name: for the heading.
        model: float32, in evaluation mode; takes `input_ids` and `global_attention_mask`.
        encode: text -> token ids, the first a start token.
        max_tokens: the longest input that it has positions for.
        heads, head_dim: of its attention.
    """

    name: str
    model: nn.Module
    encode: Callable[[str], list[int]]
    max_tokens: int
    heads: int
    head_dim: int


def seeded(layers: int, window: int, max_tokens: int, seed: int) -> Subject:
    """A Longformer of the base model's width, 12 heads x 64, whose tokens are bytes.

    Args:
        window: `attention_window`, both sides together, even.
        seed: of its weights.

    Raises:
        LFError: transformers is not installed, or an odd window.
    """
    transformers = _transformers()
    if window % 2:
        raise LFError(f"--window: an even number (half on each side) wanted, got {window}")
    config = transformers.LongformerConfig(
        vocab_size=FIRST_BYTE + 256,
        num_hidden_layers=layers,
        attention_window=window,
        max_position_embeddings=max_tokens + 2,  # positions start behind the padding's, 1
        type_vocab_size=1,
    )
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        model = transformers.LongformerModel(config, add_pooling_layer=False).eval()
    name = f"Longformer, {layers} layers, window {window}, weights from seed {seed}, bytes as tokens"
    return _subject(name, model, _encode_bytes, max_tokens)


def loaded(directory: Path) -> Subject:
    """A Longformer, or the encoder of an LED, and its tokenizer, from files alone.

    Raises:
        LFError: transformers is not installed, or the directory is no such checkpoint.
    """
    transformers = _transformers()
    if not (directory / "config.json").is_file():
        raise LFError(f"--model: a checkpoint wanted, {directory} has no config.json")
    try:
        config = transformers.AutoConfig.from_pretrained(directory, local_files_only=True)
        if config.model_type not in ("longformer", "led"):
            raise LFError(f"--model: a longformer or led wanted, {directory} has a {config.model_type}")
        model = transformers.AutoModel.from_pretrained(directory, local_files_only=True, dtype=torch.float32)
        tokenizer = transformers.AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        if isinstance(error, LFError):
            raise
        raise LFError(f"--model: {directory} cannot be loaded: {error}") from None
    if config.model_type == "led":
        model = model.get_encoder()
        max_tokens = config.max_encoder_position_embeddings
    else:
        max_tokens = config.max_position_embeddings - config.pad_token_id - 1

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, verbose=False)["input_ids"]
        return ids

    return _subject(f"{type(model).__name__} of {directory}", model.eval(), encode, max_tokens)


def _subject(name: str, model: Any, encode: Callable[[str], list[int]], max_tokens: int) -> Subject:
    heads = model.config.num_attention_heads
    return Subject(name, model, encode, max_tokens, heads, model.config.hidden_size // heads)


def _encode_bytes(text: str) -> list[int]:
    return [0, *(FIRST_BYTE + byte for byte in text.encode())]


def _transformers() -> Any:
    transformers = optional("transformers", "huggingface")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    return transformers
