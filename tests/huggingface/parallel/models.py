"""Small models with windows, and batches of whole sequences for them."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
from tests.huggingface import families, zoo

LENGTH = 41  # no multiple of a number of ranks
WINDOWS = ["window(5, 0)", "window(7, 0)"]
BOTH_WAYS = ["window(5, 4)", "window(3, 3, dilation=2) | global(0)"]
CAUSAL = ("Llama", "Mistral", "Qwen2", "Qwen3", "Gemma 2", "Gemma 3", "GPT-OSS")

# Name: how to build it. The class of a head, and what is said to its config.
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("BERT", "BertForMaskedLM", {}),
    "BERT base": ("BERT", "BertModel", {}),
    "BERT classes": ("BERT", "BertForSequenceClassification", {"num_labels": 3}),
    "RoBERTa": ("RoBERTa", "RobertaForMaskedLM", {}),
    "RoBERTa classes": ("RoBERTa", "RobertaForSequenceClassification", {"num_labels": 3}),
    "RoBERTa spans": ("RoBERTa", "RobertaForQuestionAnswering", {}),
    "ModernBERT": ("ModernBERT", "ModernBertForMaskedLM", {}),
    "ModernBERT first": (
        "ModernBERT", "ModernBertForSequenceClassification", {"classifier_pooling": "cls", "num_labels": 3}
    ),
    "ModernBERT mean": (
        "ModernBERT", "ModernBertForSequenceClassification", {"classifier_pooling": "mean", "num_labels": 3}
    ),
    "ModernBERT words": ("ModernBERT", "ModernBertForTokenClassification", {"num_labels": 3}),
}  # fmt: skip
LONGFORMERS = {
    "Longformer": "LongformerForMaskedLM",
    "Longformer base": "LongformerModel",
    "Longformer classes": "LongformerForSequenceClassification",
    "Longformer spans": "LongformerForQuestionAnswering",
    "Longformer words": "LongformerForTokenClassification",
}
CHOICES = "Longformer choices"
NAMES = (*CAUSAL, *ENCODERS, *LONGFORMERS, "LED")


def build(name: str, **changes: Any) -> nn.Module:
    """Return a seeded model in eval mode that ranks can share."""
    if name in CAUSAL:
        return families.build(name, **{"lf_attention": WINDOWS, **changes})
    if name in ENCODERS:
        family, kind, own = ENCODERS[name]
        _, config_class, more = families.FAMILIES[family]
        settings = {**families._ENCODER, **more, "lf_attention": BOTH_WAYS, **own, **changes}
        config = getattr(transformers, config_class)(**settings)
        torch.manual_seed(0)
        return getattr(transformers, kind)._from_config(config, attn_implementation="lf").eval()
    if name.endswith("spans"):
        changes = {"num_labels": 2, **changes}
    if name == CHOICES:
        model = zoo.longformer("LongformerForMultipleChoice", **changes)
        lf.patch(model)
        return model
    model = zoo.led(**changes) if name == "LED" else zoo.longformer(LONGFORMERS[name], **changes)
    lf.patch(model)
    return model


def batch(name: str, padding: str = "right", length: int = LENGTH) -> dict[str, Tensor]:
    """Return two whole sequences, one of them padded."""
    draw = torch.Generator().manual_seed(7)
    ids = torch.randint(4, zoo.VOCABULARY, (2, length), generator=draw)
    mask = torch.ones_like(ids)
    places = {"right": slice(length - 9, None), "left": slice(0, 9), "most": slice(5, None)}
    if padding != "none":
        mask[1, places[padding]] = 0
    pad = zoo.PAD if name in (*LONGFORMERS, "LED") else families.PAD
    found = {"input_ids": ids.masked_fill(mask == 0, pad)}
    if padding != "none":
        found["attention_mask"] = mask
    if name.endswith("spans"):
        ids[:, [6, 12, 13]] = zoo.SEPARATOR
        found["input_ids"] = ids.masked_fill(mask == 0, pad)
        found |= {"start_positions": torch.tensor([17, 60]), "end_positions": torch.tensor([30, 4])}
    elif name.endswith(("classes", "first", "mean")):
        found["labels"] = torch.tensor([2, 0])
    elif name == CHOICES:
        ids[:, [6, 12, 13]] = zoo.SEPARATOR
        return {"input_ids": ids[:, None], "attention_mask": mask[:, None], "labels": torch.zeros(2).long()}
    elif name == "LED":
        found["labels"] = torch.randint(4, zoo.VOCABULARY, (2, 7), generator=draw)
    elif not name.endswith("base"):
        labels = torch.randint(0, 3, ids.shape, generator=draw) if name.endswith("words") else ids.clone()
        found["labels"] = labels.masked_fill(torch.rand(ids.shape, generator=draw) < 0.4, -100)
    if name in ("Longformer", "Longformer base", "Longformer words", "LED"):
        marked = torch.zeros_like(ids)
        marked[0, [0, length // 2]] = 1
        found["global_attention_mask"] = marked
    return found
