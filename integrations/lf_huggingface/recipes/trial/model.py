"""A small model for short inputs, with a tokenizer of the trial's own text: what a conversion starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import ByteLevelBPETokenizer

SPECIAL = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
SIDES = ("encoder", "decoder")
VOCABULARY, WIDTH, LAYERS, HEADS, POSITIONS = 700, 64, 2, 4, 64


def make(folder: Path, data: Path, *, decoder: bool) -> None:
    """Write a RoBERTa, or a BART where a decoder is wanted, of random weights."""
    files = [str(path) for path in sorted(data.rglob("*")) if path.is_file()]
    trained: Any = ByteLevelBPETokenizer()
    trained.train(
        files, vocab_size=VOCABULARY, min_frequency=2, special_tokens=list(SPECIAL), show_progress=False
    )
    kind: Any = transformers.PreTrainedTokenizerFast
    tokenizer = kind(
        tokenizer_object=trained._tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=POSITIONS,
    )
    ids: dict[str, Any] = {
        "bos_token_id": 0,
        "pad_token_id": 1,
        "eos_token_id": 2,
        "vocab_size": len(tokenizer),
    }
    torch.manual_seed(0)
    if decoder:
        sizes = {"layers": LAYERS, "attention_heads": HEADS, "ffn_dim": 2 * WIDTH}
        sides: dict[str, Any] = {f"{side}_{name}": size for side in SIDES for name, size in sizes.items()}
        config: Any = transformers.BartConfig(
            d_model=WIDTH,
            max_position_embeddings=POSITIONS,
            decoder_start_token_id=2,
            forced_eos_token_id=2,
            **sides,
            **ids,
        )
        model: Any = transformers.BartForConditionalGeneration(config)
    else:
        config = transformers.RobertaConfig(
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            intermediate_size=2 * WIDTH,
            max_position_embeddings=POSITIONS + 2,
            type_vocab_size=1,
            **ids,
        )
        model = transformers.RobertaForMaskedLM(config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
