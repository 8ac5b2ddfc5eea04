"""Tiny random models of the families that attend through transformers' interface, eager and "lf"."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
from lf_huggingface.interface import attention

VOCABULARY, LAYERS, WINDOW, PAD = 64, 2, 8, 0
_DECODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 128,
    "pad_token_id": PAD, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.25,
    "attention_dropout": 0.0,
}  # fmt: skip
_ENCODER = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "max_position_embeddings": 130, "pad_token_id": PAD, "bos_token_id": 1,
    "eos_token_id": 2, "initializer_range": 0.25, "attention_probs_dropout_prob": 0.0,
    "hidden_dropout_prob": 0.0,
}  # fmt: skip
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}
_MIXED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention"]}

# Name: (model class, config class, what its config needs besides).
DECODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", "LlamaConfig", {}),
    "Mistral": ("MistralForCausalLM", "MistralConfig", {"sliding_window": WINDOW}),
    "Mixtral": ("MixtralForCausalLM", "MixtralConfig", {"sliding_window": WINDOW, "num_local_experts": 4}),
    "Qwen2": ("Qwen2ForCausalLM", "Qwen2Config", {"use_sliding_window": True, **_MIXED}),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        "Qwen2MoeConfig",
        {"use_sliding_window": True, **_MIXED, **_EXPERTS, "num_experts": 4},
    ),
    "Qwen3": ("Qwen3ForCausalLM", "Qwen3Config", {"use_sliding_window": True, **_MIXED}),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3MoeConfig", {**_EXPERTS, "num_experts": 4}),
    "Gemma 2": ("Gemma2ForCausalLM", "Gemma2Config", {"query_pre_attn_scalar": 8, **_MIXED}),
    "Gemma 3": ("Gemma3ForCausalLM", "Gemma3TextConfig", {"query_pre_attn_scalar": 8, **_MIXED}),
    "Phi-3": ("Phi3ForCausalLM", "Phi3Config", {"sliding_window": WINDOW}),
    "GPT-2": ("GPT2LMHeadModel", "GPT2Config", {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}),
    "GPT-OSS": ("GptOssForCausalLM", "GptOssConfig", {"num_local_experts": 4, **_MIXED}),
    "OLMo": ("OlmoForCausalLM", "OlmoConfig", {}),
    "Cohere2": ("Cohere2ForCausalLM", "Cohere2Config", _MIXED),
}
ENCODERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "BERT": ("BertForMaskedLM", "BertConfig", {}),
    "RoBERTa": ("RobertaForMaskedLM", "RobertaConfig", {}),
    "ModernBERT": (
        "ModernBertForMaskedLM",
        "ModernBertConfig",
        {"local_attention": WINDOW, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "DistilBERT": (
        "DistilBertForMaskedLM",
        "DistilBertConfig",
        {"dim": 32, "hidden_dim": 48, "n_layers": LAYERS, "n_heads": 4, "dropout": 0.0},
    ),
    "ELECTRA": ("ElectraForMaskedLM", "ElectraConfig", {"embedding_size": 32}),
}
SEQ2SEQ: dict[str, tuple[str, str, dict[str, Any]]] = {
    "T5": (
        "T5ForConditionalGeneration",
        "T5Config",
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": LAYERS, "num_heads": 4, "dropout_rate": 0.0,
         "decoder_start_token_id": 0},
    ),
    "BART": (
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "d_model": 32, "encoder_layers": LAYERS, "decoder_layers": LAYERS, "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
            "init_std": 0.25, "dropout": 0.0, "decoder_start_token_id": 1, "forced_eos_token_id": None,
        },
    ),
}  # fmt: skip
FAMILIES = {**DECODERS, **ENCODERS, **SEQ2SEQ}


def build(family: str, attention: str = "lf", **changes: Any) -> nn.Module:
    """A seeded model in eval mode; weights are large, so that attention is far from uniform."""
    kind, config_class, own = FAMILIES[family]
    common = _DECODER if family in DECODERS else _ENCODER
    config = getattr(transformers, config_class)(**{**common, **own, **changes})
    torch.manual_seed(0)
    return getattr(transformers, kind)._from_config(config, attn_implementation=attention).eval()


def vit(attention: str = "lf", **changes: Any) -> nn.Module:
    """As `build`, an image model of 17 tokens."""
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
        num_channels=1,
        initializer_range=0.25,
        **changes,
    )
    torch.manual_seed(0)
    return transformers.ViTForImageClassification._from_config(config, attn_implementation=attention).eval()


def twin(model: nn.Module, attention: str = "eager") -> nn.Module:
    """A copy with the same weights and another attention."""
    copied = copy.deepcopy(model)
    copied.set_attn_implementation(attention)
    return copied


def batch(family: str, padding: str, length: int = 21) -> dict[str, Tensor]:
    """Two examples; `padding` is none, right or left."""
    ids = torch.randint(3, VOCABULARY, (2, length))
    found = {"input_ids": ids}
    if padding != "none":
        mask = torch.ones_like(ids)
        mask[1, slice(length - 5, None) if padding == "right" else slice(0, 5)] = 0
        found |= {"input_ids": ids.masked_fill(mask == 0, PAD), "attention_mask": mask}
    labels = found["input_ids"].clone()
    if padding != "none":
        labels = labels.masked_fill(found["attention_mask"] == 0, -100)
        labels[1, 5] = -100  # with left padding it would be what a decoder makes of a padded position
    if family in SEQ2SEQ:
        found["decoder_input_ids"] = torch.randint(3, VOCABULARY, (2, length))
    return {**found, "labels": labels}


Results = dict[str, Tensor]


def results(model: nn.Module, inputs: dict[str, Any], real: Tensor | None = None) -> Results:
    """Logits, loss and all gradients; where `real` [B, N] is 0, logits mean nothing and are 0 here."""
    model.zero_grad()
    output = model(**inputs)
    output.loss.backward()
    logits = output.logits.detach()
    grads = {f"grad {name}": x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {"loss": output.loss.detach(), "logits": logits if real is None else logits * real, **grads}


def assert_same(
    model: nn.Module, eager: nn.Module, inputs: dict[str, Any], eager_inputs: dict[str, Any] | None = None
) -> None:
    """Raise AssertionError unless the model is as near to the truth, float64, as eager attention is.

    It may err twice as much, plus 16 roundings of the largest value of its kind. `eager_inputs` say for
    eager attention what the model's config says for it.
    """
    eager_inputs = eager_inputs or inputs
    mask = inputs.get("attention_mask")
    real = None if mask is None or "decoder_input_ids" in inputs else mask[..., None]
    got, want = results(model, inputs, real), results(eager, eager_inputs, real)
    truth = _truth(eager, eager_inputs, real)
    assert got.keys() == want.keys() == truth.keys()
    eps = max(torch.finfo(x.dtype).eps for x in want.values())
    grads = max(float(x.abs().max()) for name, x in truth.items() if name.startswith("grad"))
    for name, exact in truth.items():
        scale = grads if name.startswith("grad") else float(exact.abs().max())
        allowed = 2 * float((want[name] - exact).abs().max()) + 16 * eps * scale
        error = float((got[name] - exact).abs().max())
        assert error <= allowed, f"{name}: error {error:.2e}, allowed {allowed:.2e}"


def _truth(eager: nn.Module, inputs: dict[str, Any], real: Tensor | None) -> Results:
    """Eager in float64, its softmax included, which upstream keeps in float32."""
    softmax = nn.functional.softmax
    doubled = {
        name: x.double() if isinstance(x, Tensor) and x.is_floating_point() else x
        for name, x in inputs.items()
    }
    plain = mock.patch.object(nn.functional, "softmax", lambda x, dim, dtype=None: softmax(x, dim))
    exact = copy.deepcopy(eager).double()
    if "experts" in " ".join(name for name, _ in eager.named_parameters()):
        exact.set_experts_implementation("eager")  # torch's grouped product has no float64
    with plain:
        return results(exact, doubled, real)


@contextmanager
def forms() -> Iterator[set[str]]:
    """How attention was computed meanwhile: "sparse", "dense" or both."""
    seen: set[str] = set()

    def spy(function: Callable[..., Tensor], form: str) -> Callable[..., Tensor]:
        def run(*args: Any) -> Tensor:
            seen.add(form)
            return function(*args)

        return run

    with ExitStack() as stack:
        for module, name, form in (
            (attention, "attend", "dense"),
            (attention, "sparse", "sparse"),
        ):
            stack.enter_context(mock.patch.object(module, name, spy(getattr(module, name), form)))
        yield seen


def dense_mask(pattern: str, inputs: dict[str, Tensor], is_causal: bool) -> Tensor:
    """The pattern as the float mask [B, 1, N, N] that eager attention adds, for `lf_attention`."""
    length = inputs["input_ids"].shape[1]
    seen = lf.parse(pattern).mask(length)
    if is_causal:
        seen = seen & torch.ones(length, length, dtype=torch.bool).tril()
    hidden = ~seen.expand(inputs["input_ids"].shape[0], 1, -1, -1)
    if "attention_mask" in inputs:
        hidden = hidden | (inputs["attention_mask"] == 0)[:, None, None]
    return torch.zeros(hidden.shape).masked_fill(hidden, torch.finfo(torch.float32).min)
