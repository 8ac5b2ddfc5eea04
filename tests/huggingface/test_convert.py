"""Short checkpoints made long: the same answers on short inputs, and any length."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from typer.testing import CliRunner

import lf_backend as lf
import lf_huggingface
from lf_huggingface.cli import app
from lf_huggingface.conversion import verify
from lf_huggingface.errors import ConversionError
from tests.huggingface import families

HEADS = ("ForMaskedLM", "ForSequenceClassification", "ForTokenClassification", "ForQuestionAnswering")
CLASSES = {
    "Bert": ("Model", *HEADS),
    "Roberta": ("Model", *HEADS),
    "XLMRoberta": ("Model", *HEADS),
    "Camembert": ("Model", *HEADS),
    "DistilBert": ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"),
    "Electra": ("ForMaskedLM", "ForTokenClassification", "ForQuestionAnswering"),
    "Bart": ("Model", "ForConditionalGeneration", "ForQuestionAnswering"),
}
NAMES = [name + head for name, heads in CLASSES.items() for head in heads]
SHORT, LONG, WINDOW = 40, 96, 16
OWN: dict[str, dict[str, Any]] = {
    "DistilBert": families.ENCODERS["DistilBERT"][2],
    "Electra": families.ENCODERS["ELECTRA"][2],
    "Bart": families.SEQ2SEQ["BART"][2],
}


class _Tokenizer:
    model_max_length, sep_token_id = SHORT, 5


def _short(name: str, **changes: Any) -> nn.Module:
    """A seeded model of the class with 40 positions, whose token 0 is padding; 1 in those like RoBERTa."""
    family = next(family for family in CLASSES if name.startswith(family))
    rows = 2 if family in ("Roberta", "XLMRoberta", "Camembert") else 0
    common = {**families._ENCODER, "pad_token_id": 1 if rows else 0, "max_position_embeddings": SHORT + rows}
    config = getattr(transformers, f"{family}Config")(**{**common, **OWN.get(family, {}), **changes})
    torch.manual_seed(0)
    model = getattr(transformers, name)(config).eval()
    for x in model.parameters():  # or biases are 0, and one that is lost is not missed
        x.data += 0.05 * torch.randn_like(x)
    return model


def _ids(length: int, batch: int = 2) -> Tensor:
    return torch.randint(6, families.VOCABULARY, (batch, length))


@pytest.mark.parametrize("name", NAMES)
def test_the_same_answers_on_short_inputs_and_any_length(name: str) -> None:
    short, tokenizer = _short(name), _Tokenizer()
    before = {key: x.clone() for key, x in short.state_dict().items()}
    long = lf_huggingface.convert(short, LONG, WINDOW, tokenizer=tokenizer)
    assert tokenizer.model_max_length == LONG
    assert type(long).__name__.startswith("LED" if name.startswith("Bart") else "Longformer")
    assert verify.check(short, long) < 1e-5
    assert all(torch.equal(x, before[key]) for key, x in short.state_dict().items())
    ids = _ids(WINDOW // 2 + 1)
    marked = torch.zeros_like(ids)
    marked[:, 0] = 1  # global projections are copies, so a global token changes nothing
    want = short(ids)[0]
    torch.testing.assert_close(long(ids, global_attention_mask=marked)[0], want, atol=2e-5, rtol=0)
    ids = _ids(LONG)
    batch = {"input_ids": ids, "global_attention_mask": torch.zeros_like(ids)}
    if name.startswith("Bart"):
        batch["decoder_input_ids"] = ids[:, :8]
    want = long(**batch)[0]
    with lf.patch(long):
        torch.testing.assert_close(long(**batch)[0], want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("name", ["BertForMaskedLM", "RobertaForMaskedLM", "BartForConditionalGeneration"])
def test_what_is_written_loads_whole_and_shares_its_tensors(name: str, tmp_path: Path) -> None:
    short = _short(name)
    long = lf_huggingface.convert(short, LONG, WINDOW)
    inside = {x.data_ptr() for x in short.state_dict().values()}
    own = [key for key, x in long.state_dict().items() if x.data_ptr() not in inside]
    copied = ("_global.", "position_embeddings", "embed_positions", "lm_head.bias", "lm_head.decoder.bias")
    assert all(any(word in key for word in copied) for key in own)
    embedding = long.get_input_embeddings().weight
    assert long.get_output_embeddings().weight.data_ptr() == embedding.data_ptr()
    long.save_pretrained(tmp_path)
    read, info = type(long).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    assert verify.check(short, read) < 1e-5


def test_positions_are_tiled_behind_the_rows_of_padding() -> None:
    short = _short("RobertaModel")
    table = short.embeddings.position_embeddings.weight
    long = lf_huggingface.convert(short, LONG, WINDOW).embeddings.position_embeddings.weight
    assert torch.equal(long[:2], table[:2])
    assert torch.equal(long[2:], torch.cat([table[2:]] * 3)[:LONG])
    short = _short("BertModel")
    table = short.embeddings.position_embeddings.weight
    long = lf_huggingface.convert(short, LONG, WINDOW).embeddings.position_embeddings.weight
    assert torch.equal(long[1:], torch.cat([table] * 3)[:LONG])


def test_a_converted_model_trains_in_half_precision() -> None:
    long = lf_huggingface.convert(_short("BertForMaskedLM").bfloat16(), LONG, WINDOW).train()
    assert long.dtype == torch.bfloat16
    ids = _ids(LONG)
    long(ids, labels=ids).loss.backward()
    assert long.longformer.embeddings.position_embeddings.weight.grad.isfinite().all()


@pytest.mark.parametrize("name", [name for name in NAMES if "Model" in name or "ForMaskedLM" in name])
def test_the_same_class_made_long(name: str, tmp_path: Path) -> None:
    short = _short(name)
    long = lf_huggingface.convert(short, LONG, WINDOW, keep_class=True)
    assert type(long) is type(short)
    assert verify.check(short, long) < 1e-5
    long.save_pretrained(tmp_path)
    read = type(long).from_pretrained(tmp_path, attn_implementation="lf")
    ids = _ids(LONG)
    torch.testing.assert_close(read(ids)[0], long(ids)[0], atol=0, rtol=0)
    with families.forms() as seen:
        long(ids)
    assert "sparse" in seen


@pytest.mark.parametrize("family", ["Llama", "GPT-2"])
def test_a_decoder_made_long_keeps_its_rotary_positions(family: str) -> None:
    short = families.build(family, "eager")
    long = lf_huggingface.convert(short, 300, WINDOW, keep_class=True)
    assert verify.check(short, long) < 1e-5
    assert long(_ids(290)).logits.isfinite().all()
    if family == "Llama":
        own, new = (x.model.rotary_emb.inv_freq for x in (short, long))
        assert torch.equal(own, new)


@pytest.mark.parametrize(
    ("make", "arguments", "text"),
    [
        (
            lambda: _short("BertModel"),
            {"max_length": 39},
            r"max_length >= 40 \(the model's own\) wanted, got 39",
        ),
        (lambda: _short("RobertaModel"), {"max_length": 39, "keep_class": True}, "max_length >= 40"),
        (
            lambda: _short("BartModel"),
            {"max_length": 90},
            "a multiple of attention_window=16 wanted, .* got 90",
        ),
        (lambda: _short("BertModel"), {"max_length": 1.5}, "max_length: an int wanted, got 1.5"),
        (lambda: nn.Linear(2, 2), {}, "model: a model of transformers wanted, got Linear"),
        (lambda: families.build("Llama"), {}, "LlamaForCausalLM cannot become a Longformer exactly: one of"),
        (
            lambda: transformers.T5EncoderModel(
                transformers.T5Config(d_model=8, num_layers=1, d_ff=8, d_kv=4, num_heads=2)
            ),
            {"keep_class": True},
            "a config with max_position_embeddings wanted, got T5Config",
        ),
        (lambda: _short("ElectraModel"), {}, "cannot become a Longformer exactly: it has no pooler"),
        (
            lambda: transformers.MPNetModel(transformers.MPNetConfig(hidden_size=8, num_attention_heads=2)),
            {},
            "MPNetModel cannot become a Longformer exactly: its attention has a bias by relative position",
        ),
        (
            lambda: _short("BertForMaskedLM", hidden_act="relu"),
            {},
            "hidden_act: 'gelu' wanted for .* got 'relu'",
        ),
        (
            lambda: _short("BertModel", is_decoder=True),
            {},
            "is_decoder: False wanted for BertModel, got True",
        ),
        (lambda: _short("ElectraForMaskedLM", embedding_size=16), {}, "embedding_size: 32 wanted for"),
        (
            lambda: _short("BartModel", scale_embedding=True),
            {},
            "scale_embedding: False wanted for BartModel",
        ),
        (lambda: _short("BertForQuestionAnswering"), {}, "tokenizer: one wanted for question answering"),
    ],
)
def test_what_cannot_be_converted(make: Any, arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(ConversionError, match=text):
        lf_huggingface.convert(make(), **{"max_length": LONG, "attention_window": WINDOW, **arguments})


def test_an_odd_window() -> None:
    with pytest.raises(lf.PatternError, match="attention_window: an even number"):
        lf_huggingface.convert(_short("BertModel"), LONG, 15)


@pytest.mark.parametrize("keep_class", [False, True])
def test_converting_twice(keep_class: bool) -> None:
    long = lf_huggingface.convert(_short("RobertaModel"), LONG, WINDOW, keep_class=keep_class)
    with pytest.raises(ConversionError, match=r"model: one for short inputs wanted, .* is long already"):
        lf_huggingface.convert(long, 2 * LONG, WINDOW)


def test_a_conversion_that_is_not_exact_is_found_out() -> None:
    short = _short("BertModel")
    long = lf_huggingface.convert(short, LONG, WINDOW)
    long.encoder.layer[1].output.dense.weight.data *= 1.5
    with pytest.raises(ConversionError, match=r"difference on short inputs <= .* wanted, got"):
        verify.check(_short("BertModel"), long)


@pytest.mark.parametrize("family", ["Mistral", "ModernBERT", "Gemma 3"])
def test_one_window_over_layers_with_their_own_is_found_out(family: str) -> None:
    """On texts that are longer than every window, which short ones never are."""
    short = families.build(family, "eager")
    long = families.build(family, lf_attention=lf.to_dict(lf.Window(64, 64)))
    with pytest.raises(ConversionError, match="difference on short inputs"):
        verify.check(short, long)


def test_positions_up_to_the_sources_limit_are_read() -> None:
    short = _short("RobertaModel")
    long = lf_huggingface.convert(short, LONG, WINDOW)
    long.embeddings.position_embeddings.weight.data[SHORT + 1] *= -1  # the last that the source has
    with pytest.raises(ConversionError, match="difference on short inputs"):
        verify.check(short, long)


@pytest.mark.parametrize("name", ["BartForConditionalGeneration", "GPT-2"])
def test_a_model_that_writes_other_text_is_found_out(name: str) -> None:
    keep_class = name == "GPT-2"
    short = families.build("GPT-2", "eager") if keep_class else _short(name)
    long = lf_huggingface.convert(short, 256, WINDOW, keep_class=keep_class)
    assert verify.check(short, long) < 1e-5
    long.generation_config.suppress_tokens = list(range(3, 60))
    with pytest.raises(ConversionError, match="the text of the source wanted"):
        verify.check(short, long)


@pytest.mark.parametrize("name", ["BertForSequenceClassification", "RobertaForTokenClassification"])
def test_a_heads_dropout_is_kept(name: str) -> None:
    long = lf_huggingface.convert(_short(name, classifier_dropout=0.3), LONG, WINDOW)
    assert long.config.classifier_dropout == 0.3
    assert (long if "Token" in name else long.classifier).dropout.p == 0.3
    assert (
        lf_huggingface.convert(_short("BertModel", classifier_dropout=0.3), LONG).config.classifier_dropout
        == 0.3
    )


def test_positions_that_are_kept_elsewhere_are_refused() -> None:
    config = transformers.CLIPTextConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4
    )
    with pytest.raises(
        ConversionError,
        match=r"learned positions called one of .*'wpe', .* got .*position_embedding.weight \[77, 32\]",
    ):
        lf_huggingface.convert(transformers.CLIPTextModel(config), 256, WINDOW, keep_class=True)


def _invoke(*arguments: Any) -> Any:
    return CliRunner().invoke(app, ["convert", *map(str, arguments)])


@pytest.mark.parametrize("options", [[], ["--keep-class"]])
def test_the_command(options: list[str], tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    short = _short("RobertaForMaskedLM")
    short.save_pretrained(source)
    sizes = ["--max-length", LONG, "--attention-window", WINDOW, "--shard-size", "20KB"]
    result = _invoke(source, target, *sizes, *options)
    assert result.exit_code == 0, result.output
    name = "RobertaForMaskedLM" if options else "LongformerForMaskedLM"
    assert f"RobertaForMaskedLM -> {name}: {LONG} positions, window {WINDOW}" in result.output
    assert "nothing missing, nothing unexpected" in result.output
    assert "difference to the source on short inputs: " in result.output
    assert len(list(target.glob("*.safetensors"))) > 1
    again = _invoke(source, target)
    assert again.exit_code == 2
    assert "error: target: a new or empty folder wanted" in again.output


def test_the_command_with_a_tokenizer(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    _short("BertForQuestionAnswering").save_pretrained(source)
    words = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]", *"abcdefgh"]
    (tmp_path / "vocab.txt").write_text("\n".join(words))
    tokenizer = transformers.BertTokenizer(str(tmp_path / "vocab.txt"), model_max_length=SHORT)
    tokenizer.save_pretrained(source)
    result = _invoke(source, target, "--max-length", LONG, "--attention-window", WINDOW)
    assert result.exit_code == 0, result.output
    assert transformers.AutoTokenizer.from_pretrained(target).model_max_length == LONG
    read = transformers.LongformerForQuestionAnswering.from_pretrained(target)
    assert read.config.sep_token_id == tokenizer.sep_token_id


def test_the_module_is_a_command() -> None:
    command = [sys.executable, "-m", "lf_huggingface", "convert", "nowhere", "there"]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 2
    assert "nowhere" in run.stderr
