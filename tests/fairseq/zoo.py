"""Tiny models of fairseq in float64, and batches for them."""

from argparse import Namespace
from dataclasses import dataclass

import torch
from fairseq.data import Dictionary
from fairseq.models import ARCH_CONFIG_REGISTRY, ARCH_MODEL_REGISTRY

SIZES = dict(
    encoder_embed_dim=32,
    encoder_ffn_embed_dim=40,
    encoder_layers=2,
    encoder_attention_heads=4,
    decoder_embed_dim=32,
    decoder_ffn_embed_dim=40,
    decoder_layers=2,
    decoder_attention_heads=4,
    dropout=0.0,
    attention_dropout=0.0,
    activation_dropout=0.0,
    max_positions=128,
    tokens_per_sample=128,
    max_source_positions=128,
    max_target_positions=128,
    share_all_embeddings=True,
    decoder_output_dim=32,
    decoder_input_dim=32,
    task="denoising",
)


def dictionary(extra=("<mask>",)):
    made = Dictionary()
    for symbol in (*"abcdefghijklmnopqrst", *extra):
        made.add_symbol(symbol)
    return made


@dataclass
class Task:
    source_dictionary: Dictionary
    target_dictionary: Dictionary

    def max_positions(self):
        return 128


def build(arch, **changes):
    """A model of an architecture by its name, in float64 and evaluation."""
    words = dictionary()
    args = Namespace(**{**SIZES, "arch": arch, **changes})
    ARCH_CONFIG_REGISTRY[arch](args)
    if "transformer_lm" in arch:
        from fairseq.models.transformer_lm import base_lm_architecture

        base_lm_architecture(args)
    return ARCH_MODEL_REGISTRY[arch].build_model(args, Task(words, words)).double().eval()


def tokens(batch, length, pads=(), left=False):
    """Token ids [batch, length]; `pads` says how many of each example are padding, behind or in front."""
    words = dictionary()
    ids = torch.randint(words.nspecial, len(words) - 1, (batch, length))
    for example, count in enumerate(pads):
        if count:
            ids[example, slice(0, count) if left else slice(length - count, length)] = words.pad()
    return ids


def net_input(kind, ids):
    """The arguments of a model's forward for ids [B, T]."""
    if kind in ("lm", "roberta"):
        return {"src_tokens": ids}
    lengths = ids.ne(dictionary().pad()).sum(1)
    return {"src_tokens": ids, "src_lengths": lengths, "prev_output_tokens": ids.flip(0).clone()}


STOCK = {
    "lm": "transformer_lm",
    "translation": "transformer",
    "bart": "bart_base",
    "roberta": "roberta_base",
}


def gradients(model):
    return {name: None if x.grad is None else x.grad.clone() for name, x in model.named_parameters()}
