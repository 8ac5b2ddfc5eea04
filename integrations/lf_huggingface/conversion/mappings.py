"""The places of a short model's tensors and settings in Longformer or LED.

A mapping is data: names of classes, names of settings, rules for names of tensors. Only what maps exactly
is here; what does not is in `UNMAPPED`, with the reason.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

Rules = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Target:
    """The long form of one class of models.

    Attributes:
        name: the new class.
        rules: (pattern, replacement) for the names of tensors, applied in turn.
    """

    name: str
    rules: Rules = ()

    def rename(self, key: str) -> str:
        """The new name of a tensor."""
        for pattern, replacement in self.rules:
            key = re.sub(pattern, replacement, key)
        return key


@dataclass(frozen=True)
class Family:
    """All classes of one model type.

    Attributes:
        targets: what each class becomes.
        settings: config names where the new one is not the old one.
        fixed: settings that the old model has in its code.
        has_padding_row: positions start behind pad_token_id, as in Longformer; otherwise at 0.
    """

    targets: Mapping[str, Target]
    settings: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, object] = field(default_factory=dict)
    has_padding_row: bool = False


def _roberta(name: str) -> Family:
    rules = ((r"^roberta\.", "longformer."),)
    heads = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
    targets = {f"{name}Model": Target("LongformerModel")}
    targets |= {name + head: Target("Longformer" + head, rules) for head in heads}
    return Family(targets, has_padding_row=True)


_BERT: Rules = ((r"^bert\.", "longformer."),)
_BERT_MLM: Rules = (
    (r"^cls\.predictions\.transform\.LayerNorm", "lm_head.layer_norm"),
    (r"^cls\.predictions\.transform\.", "lm_head."),
    (r"^cls\.predictions\.", "lm_head."),
)
_BERT_CLASSIFIER: Rules = (  # BERT's pooler and classifier are the two layers of Longformer's head
    (r"^classifier\.", "classifier.out_proj."),
    (r"^bert\.pooler\.dense", "classifier.dense"),
)
_DISTILBERT: Rules = (
    (r"^distilbert\.", "longformer."),
    (r"\btransformer\.layer", "encoder.layer"),
    (r"attention\.q_lin", "attention.self.query"),
    (r"attention\.k_lin", "attention.self.key"),
    (r"attention\.v_lin", "attention.self.value"),
    (r"attention\.out_lin", "attention.output.dense"),
    (r"sa_layer_norm", "attention.output.LayerNorm"),
    (r"output_layer_norm", "output.LayerNorm"),
    (r"ffn\.lin1", "intermediate.dense"),
    (r"ffn\.lin2", "output.dense"),
)
_DISTILBERT_MLM: Rules = (
    (r"^vocab_transform", "lm_head.dense"),
    (r"^vocab_layer_norm", "lm_head.layer_norm"),
    (r"^vocab_projector", "lm_head.decoder"),
)
_ELECTRA: Rules = ((r"^electra\.", "longformer."),)
_ELECTRA_MLM: Rules = (
    (r"^generator_predictions\.LayerNorm", "lm_head.layer_norm"),
    (r"^generator_predictions\.", "lm_head."),
    (r"^generator_lm_head\.", "lm_head.decoder."),
)
_BART_ENCODER: Rules = (
    (r"\b(encoder\.layers\.\d+\.self_attn)\.q_proj", r"\1.longformer_self_attn.query"),
    (r"\b(encoder\.layers\.\d+\.self_attn)\.k_proj", r"\1.longformer_self_attn.key"),
    (r"\b(encoder\.layers\.\d+\.self_attn)\.v_proj", r"\1.longformer_self_attn.value"),
    (r"\b(encoder\.layers\.\d+\.self_attn)\.out_proj", r"\1.output"),
)
_BART: Rules = ((r"^model\.", "led."), *_BART_ENCODER)

FAMILIES: dict[str, Family] = {
    "roberta": _roberta("Roberta"),
    "xlm-roberta": _roberta("XLMRoberta"),
    "camembert": _roberta("Camembert"),
    "bert": Family(
        {
            "BertModel": Target("LongformerModel"),
            "BertForMaskedLM": Target("LongformerForMaskedLM", (*_BERT_MLM, *_BERT)),
            "BertForSequenceClassification": Target(
                "LongformerForSequenceClassification", (*_BERT_CLASSIFIER, *_BERT)
            ),
            "BertForTokenClassification": Target("LongformerForTokenClassification", _BERT),
            "BertForQuestionAnswering": Target("LongformerForQuestionAnswering", _BERT),
        }
    ),
    "distilbert": Family(
        {
            "DistilBertForMaskedLM": Target("LongformerForMaskedLM", (*_DISTILBERT_MLM, *_DISTILBERT)),
            "DistilBertForTokenClassification": Target("LongformerForTokenClassification", _DISTILBERT),
            "DistilBertForQuestionAnswering": Target("LongformerForQuestionAnswering", _DISTILBERT),
        },
        {
            "hidden_size": "dim",
            "num_hidden_layers": "n_layers",
            "num_attention_heads": "n_heads",
            "intermediate_size": "hidden_dim",
            "hidden_act": "activation",
            "hidden_dropout_prob": "dropout",
            "attention_probs_dropout_prob": "attention_dropout",
        },
        {"layer_norm_eps": 1e-12, "type_vocab_size": 1},
    ),
    "electra": Family(
        {
            "ElectraForMaskedLM": Target("LongformerForMaskedLM", (*_ELECTRA_MLM, *_ELECTRA)),
            "ElectraForTokenClassification": Target("LongformerForTokenClassification", _ELECTRA),
            "ElectraForQuestionAnswering": Target("LongformerForQuestionAnswering", _ELECTRA),
        }
    ),
    "bart": Family(
        {
            "BartModel": Target("LEDModel", _BART_ENCODER),
            "BartForConditionalGeneration": Target("LEDForConditionalGeneration", _BART),
            "BartForQuestionAnswering": Target("LEDForQuestionAnswering", _BART),
        },
        {"max_decoder_position_embeddings": "max_position_embeddings"},
    ),
}

_NO_POOLER = "it has no pooler, and LongformerModel has one"
UNMAPPED: dict[str, str] = {
    "DistilBertModel": _NO_POOLER,
    "ElectraModel": _NO_POOLER,
    "DistilBertForSequenceClassification": "its head has a ReLU where Longformer's has a tanh",
    "ElectraForSequenceClassification": "its head has a GELU where Longformer's has a tanh",
    "BertForPreTraining": "Longformer has no next-sentence head; load it as BertForMaskedLM",
    "BartForSequenceClassification": "transformers has no LED with that head",
    **dict.fromkeys(
        ("MPNetModel", "MPNetForMaskedLM", "MPNetForSequenceClassification", "MPNetForTokenClassification"),
        "its attention has a bias by relative position, and Longformer's has none",
    ),
}
