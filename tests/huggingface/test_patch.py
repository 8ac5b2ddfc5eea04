"""Patching and undoing Hugging Face models: what stays, what is said, what is refused."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from transformers.models.led import modeling_led
from transformers.models.longformer import modeling_longformer

import lf_backend as lf
from tests.huggingface import zoo

MAKES = [zoo.longformer, zoo.led, lambda: zoo.longformer("LongformerForSequenceClassification")]


def _traces(model: nn.Module) -> list[Any]:
    """Everything of a model that a patch might leave something in."""
    return [(path, type(x), sorted(vars(x))) for path, x in model.named_modules()]


def _output(model: nn.Module, length: int = 24) -> torch.Tensor:
    torch.manual_seed(1)
    return model(zoo.tokens(2, length))[0]


@pytest.mark.parametrize("make", MAKES)
def test_undo_gives_the_untouched_model_back(make: Any) -> None:
    model = make()
    traces, output, keys = _traces(model), _output(model), list(model.state_dict())
    config = model.config.to_dict()
    patch = lf.patch(model)
    assert _traces(model) != traces
    assert list(model.state_dict()) == keys
    patch.undo()
    assert _traces(model) == traces
    assert torch.equal(_output(model), output)
    assert model.config.to_dict() == config


def test_the_integration_does_not_import_transformers() -> None:
    code = """
import sys, lf_backend, lf_huggingface, torch
try:
    lf_backend.patch(torch.nn.Linear(2, 2))
except lf_backend.PatchError as error:
    assert "looks for LongformerModel" in str(error)
assert "transformers" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_other_models_and_upstreams_classes_stay_as_they_are() -> None:
    classes = (modeling_longformer.LongformerModel, modeling_led.LEDEncoder)
    before = [dict(vars(kind)) for kind in classes]
    other = zoo.longformer()
    traces = _traces(other)
    lf.patch(zoo.longformer())
    lf.patch(zoo.led())
    assert _traces(other) == traces
    assert [dict(vars(kind)) for kind in classes] == before


def test_a_context_manager_undoes_on_exit_and_on_an_exception() -> None:
    model = zoo.longformer()
    traces = _traces(model)
    with lf.patch(model) as patch:
        assert isinstance(patch, lf.Patch)
        assert type(model) is not modeling_longformer.LongformerModel
    assert _traces(model) == traces
    with pytest.raises(KeyError), lf.patch(model):
        raise KeyError
    assert _traces(model) == traces
    with lf.patch(model) as patch:
        patch.undo()
    assert _traces(model) == traces


def test_patched_modules_are_still_instances_of_their_class_under_its_name() -> None:
    model = zoo.longformer()
    lf.patch(model)
    assert isinstance(model, modeling_longformer.LongformerModel)
    assert type(model).__name__ == "LongformerModel"
    assert type(model.encoder.layer[0].attention.self).__name__ in model._no_split_modules


def test_the_report_is_a_table_of_modules_patterns_and_notes() -> None:
    report = lf.patch(zoo.led(), "window(4, 4) | global(0)", backend="blocked").report
    lines = str(report).splitlines()
    assert lines[0].startswith("3 modules of LEDForConditionalGeneration patched; ")
    assert lines[0].endswith("; attention runs by backend 'blocked' only")
    assert lines[1].split()[:2] == ["led.encoder", "LEDEncoder"]
    assert "builds no N x N mask" in lines[1]
    assert "a decoder stays dense and untouched" in lines[1]
    assert lines[2].split()[0] == "led.encoder.layers.0.self_attn.longformer_self_attn"
    assert "LEDEncoderSelfAttention" in lines[2]
    assert "window(4, 4) | global(0)" in lines[2]
    assert report.rows[2].path == "led.encoder.layers.1.self_attn.longformer_self_attn"
    assert "by the backend that suits each call" in str(lf.patch(zoo.longformer()).report)


def test_a_backend_asked_for_is_never_substituted() -> None:
    model = zoo.longformer()
    with lf.patch(model, backend="reference"), lf.use_backend("blocked"):
        assert {x.lf_mark.backend for x in model.modules() if "lf_mark" in vars(x)} == {"reference"}
        model(zoo.tokens(1, 8))
    with pytest.raises(lf.LFError, match=r"backend: one of \[.*'blocked'.*\] wanted, got 'nobody'"):
        lf.patch(model, backend="nobody")
    predicate = lf.Window(1, 1) & lf.Predicate(lambda head, query, key: key != 3)
    with (
        lf.patch(model, predicate, backend="flex"),
        pytest.raises(lf.UnsupportedError, match="backend 'flex' cannot run this call"),
    ):
        model(zoo.tokens(1, 8))


def test_a_deep_copy_is_patched_too_and_on_its_own() -> None:
    model = zoo.longformer()
    patch = lf.patch(model)
    copied = copy.deepcopy(model)
    want = _output(model)
    assert torch.equal(_output(copied), want)
    patch.undo()
    assert "lf_mark" in vars(copied)
    assert torch.equal(_output(copied), want)
    with pytest.raises(lf.PatchError, match="not patched yet wanted"):
        lf.patch(copied)
    handle = lf.Patch.of(copied)
    assert str(handle.report) == str(patch.report)
    handle.undo()
    assert _traces(copied) == _traces(model)


def test_a_pickled_model_is_patched_too() -> None:
    model = zoo.led()
    lf.patch(model, "window(4, 4, dilation=[1, 1, 2, 2])")
    read = pickle.loads(pickle.dumps(model))
    batch = {"input_ids": zoo.tokens(2, 20), "decoder_input_ids": zoo.tokens(2, 4)}
    assert torch.equal(read(**batch).logits, model(**batch).logits)
    lf.Patch.of(read).undo()


@pytest.mark.parametrize("kind", ["LongformerModel", "LongformerForMaskedLM"])
def test_saving_a_patched_model_saves_an_ordinary_one(kind: str, tmp_path: Path) -> None:
    model = zoo.longformer(kind)
    lf.patch(model)
    model.save_pretrained(tmp_path)
    stock = getattr(transformers, kind).from_pretrained(tmp_path).eval()
    assert stock.config.architectures == [kind]
    assert not any("lf_mark" in vars(module) for module in stock.modules())
    torch.testing.assert_close(_output(stock), _output(model), atol=2e-5, rtol=0)
    lf.patch(stock)
    assert torch.equal(_output(stock), _output(model))


def test_a_model_inside_another_module_is_found() -> None:
    parts = {"reader": zoo.longformer(), "writer": zoo.led("LEDModel"), "head": nn.Linear(2, 2)}
    holder = nn.ModuleDict(parts)
    with lf.patch(holder) as patch:
        assert [row.path.split(".")[0] for row in patch.report.rows] == ["reader"] * 4 + ["writer"] * 3


def test_an_encoder_or_a_layer_alone_runs_under_stocks_model() -> None:
    batch = {"input_ids": zoo.tokens(4, 24), **zoo.masks(24)}
    for inner in (lambda model: model.encoder, lambda model: model.encoder.layer[1]):
        patched = zoo.longformer()
        for row in lf.patch(inner(patched)).report.rows:
            assert row.module == "LongformerSelfAttention"
            assert row.note == "alone: mask and padding stay upstream's"
        zoo.assert_same(patched, zoo.longformer(), batch, 24, output_attentions=True)


def test_patching_twice_and_undoing_twice() -> None:
    model = zoo.longformer("LongformerForMaskedLM")
    patch = lf.patch(model)
    with pytest.raises(lf.PatchError, match="not patched yet wanted, got longformer and 3 more patched"):
        lf.patch(model)
    with pytest.raises(lf.PatchError, match="not patched yet wanted, got the model itself and 3 more"):
        lf.patch(model.longformer)
    patch.undo()
    with pytest.raises(lf.PatchError, match="undo: the patch is undone already"):
        patch.undo()
    with pytest.raises(lf.PatchError, match="a patched model wanted, got LongformerForMaskedLM without"):
        lf.Patch.of(model)
    lf.patch(model).undo()


def test_a_model_nothing_is_known_about() -> None:
    config = transformers.MegatronBertConfig(
        vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    model = transformers.MegatronBertModel(config)
    with pytest.raises(lf.PatchError) as raised:
        lf.patch(model)
    text = str(raised.value)
    assert "nothing to patch in MegatronBertModel; looked at Dropout, Embedding" in text
    assert "huggingface: looks for LongformerModel, LongformerEncoder, LongformerSelfAttention, LED" in text
    assert "; MegatronBertSelfAttention attends in code of its own" in text


def test_a_subclass_is_not_taken_and_named() -> None:
    class Attention(modeling_longformer.LongformerSelfAttention):
        pass

    layer = Attention(zoo.longformer().config, layer_id=0)
    with pytest.raises(lf.PatchError, match="is not taken: Attention of LongformerSelfAttention"):
        lf.patch(layer)


def test_a_forward_set_on_the_instance_would_hide_the_patch() -> None:
    model = zoo.longformer()
    model.encoder.forward = model.encoder.forward
    with pytest.raises(lf.PatchError, match="encoder: a forward from its class wanted, got one set on"):
        lf.patch(model)
    assert not any("lf_mark" in vars(module) for module in model.modules())


@pytest.mark.parametrize(
    ("module", "name"),
    [
        (modeling_longformer, "LongformerModel"),
        (modeling_longformer, "LongformerEncoder"),
        (modeling_longformer, "LongformerLayer"),
        (modeling_longformer, "LongformerAttention"),
        (modeling_longformer, "LongformerSelfAttention"),
        (modeling_led, "LEDEncoder"),
        (modeling_led, "LEDEncoderLayer"),
        (modeling_led, "LEDEncoderAttention"),
        (modeling_led, "LEDEncoderSelfAttention"),
    ],
)
def test_a_changed_private_signature_names_the_version(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = (zoo.led if name.startswith("LED") else zoo.longformer)()
    monkeypatch.setattr(getattr(module, name), "forward", lambda self, hidden, mask_of_tomorrow=None: hidden)
    version = transformers.__version__.replace(".", r"\.")
    text = rf"transformers {version} \(tested: 5.17 to 5.23\): {name}.forward\(.*\) wanted, got \(hidden, ma"
    with pytest.raises(lf.PatchError, match=text):
        lf.patch(model)


def test_a_missing_private_attribute_names_the_version() -> None:
    model = zoo.longformer()
    del model.encoder.layer[1].attention.self.key_global
    with pytest.raises(lf.PatchError, match=r"SelfAttention with attributes \['key_global'\] wanted"):
        lf.patch(model)
