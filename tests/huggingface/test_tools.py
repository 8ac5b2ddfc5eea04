"""What people try at once: pipelines, sentence-transformers, hooks of accelerate, quantised linear layers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch
import transformers
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from torch import Tensor, nn

import lf_backend as lf
import lf_huggingface
from tests.huggingface import families, zoo


def save_with_tokenizer(model: Any, folder: Path) -> None:
    """The model, and a tokenizer of words "w0", "w1", ..."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = ["<s>", "<pad>", "</s>", "<unk>", "<mask>", *(f"w{i}" for i in range(zoo.VOCABULARY - 5))]
    tokens = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    tokens.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokens, pad_token="<pad>", unk_token="<unk>", mask_token="<mask>",
        model_max_length=128,
    ).save_pretrained(folder)  # fmt: skip


def sentences(folder: Path) -> Any:
    encoder = Transformer(str(folder))
    model = SentenceTransformer(modules=[encoder, Pooling(encoder.get_embedding_dimension())], device="cpu")
    return model.encode([" ".join(f"w{i % 40}" for i in range(100)), "w1 w2"])


def test_sentence_transformers_on_a_converted_encoder(tmp_path: Path) -> None:
    config = transformers.RobertaConfig(
        vocab_size=zoo.VOCABULARY,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=40,
        max_position_embeddings=66,
        pad_token_id=zoo.PAD,
        initializer_range=0.25,
    )
    torch.manual_seed(0)
    long = lf_huggingface.convert(transformers.RobertaModel(config), max_length=128, attention_window=16)
    save_with_tokenizer(long, tmp_path)
    want = sentences(tmp_path)
    with lf_huggingface.auto_patch():
        got = sentences(tmp_path)
    assert got.shape == (2, 32)
    assert got == pytest.approx(want, abs=1e-5)


def test_a_pipeline_on_a_converted_model(tmp_path: Path) -> None:
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"))
    config = transformers.BertConfig(
        vocab_size=len(words),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=40,
    )
    short = transformers.BertForMaskedLM(config)
    found = [
        transformers.pipeline("fill-mask", model=model, tokenizer=tokenizer)("a b [MASK] d")
        for model in (short.eval(), lf_huggingface.convert(short, 80, 16, tokenizer=tokenizer))
    ]
    assert [row["token"] for row in found[0]] == [row["token"] for row in found[1]]
    assert tokenizer.model_max_length == 80


def test_hooks_of_accelerate() -> None:
    model = families.build("Mistral")
    ids = torch.randint(3, families.VOCABULARY, (1, 20))
    want = model(ids).logits
    accelerate.dispatch_model(model, {"": "cpu"}, force_hooks=True)
    assert torch.equal(model(ids).logits, want)


class Int8Linear(nn.Module):
    """A linear layer as bitsandbytes and others put in its place: same call, other weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        scale = linear.weight.detach().abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("weight", (linear.weight.detach() / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.weight * self.scale, self.bias)


def quantised(model: nn.Module) -> nn.Module:
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) is nn.Linear:
                setattr(module, name, Int8Linear(child))
    return model


@pytest.mark.parametrize("make", [zoo.longformer, zoo.big_bird, zoo.pegasus_x, zoo.longt5])
def test_a_quantised_model_is_patched(make: Any) -> None:
    model = quantised(make())
    given = {"input_ids": zoo.tokens(2, 50)}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = zoo.tokens(2, 4)
    want = model(**given).last_hidden_state
    with lf.patch(model):
        torch.testing.assert_close(model(**given).last_hidden_state, want)


def test_a_quantised_model_by_configuration() -> None:
    model = quantised(families.build("Llama"))
    eager = copy.deepcopy(model)
    eager.set_attn_implementation("eager")
    ids = zoo.tokens(2, 30) % 20
    torch.testing.assert_close(model(ids).logits, eager(ids).logits)
