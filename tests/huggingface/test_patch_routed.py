"""`lf.patch` on models that attend through transformers' interface: as by configuration, and back."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

import lf_backend as lf
import lf_huggingface
from tests.huggingface import families

PATTERN = "window(3, 3, dilation=2) | global(0, 7)"


def _stock(family: str, **changes: Any) -> Any:
    return families.build(family, "eager", **changes)


def _state(model: torch.nn.Module) -> list[Any]:
    """All that a patch may touch."""
    return [
        (type(x), sorted(vars(x)), len(x._forward_pre_hooks), copy.deepcopy(vars(getattr(x, "config", x)))
         if hasattr(x, "config") else None)
        for x in model.modules()
    ]  # fmt: skip


@pytest.mark.parametrize("family", families.FAMILIES)
def test_the_answer_of_a_configured_model_and_the_way_back(family: str) -> None:
    model, batch = _stock(family), families.batch(family, "right")
    want = families.build(family, lf_attention=PATTERN)(**batch).logits
    stock, before = model(**batch).logits, _state(model)
    with lf.patch(model, PATTERN) as patch:
        torch.testing.assert_close(model(**batch).logits, want)
        assert all(
            row.from_config for row in lf_huggingface.report(model).rows if row.note != "cross attention"
        )
    assert _state(model) == before
    assert torch.equal(model(**batch).logits, stock)
    assert {str(row.pattern) for row in patch.report.rows} == {str(lf.parse(PATTERN))}


@pytest.mark.parametrize("family", ["Mistral", "ModernBERT", "T5"])
def test_without_a_pattern_the_models_own_windows(family: str) -> None:
    model, batch = _stock(family), families.batch(family, "right")
    want = families.build(family)(**batch).logits
    with lf.patch(model) as patch:
        torch.testing.assert_close(model(**batch).logits, want)
    assert {row.pattern for row in patch.report.rows} == {None}
    assert "through transformers' interface" in str(patch.report)
    assert model.config._attn_implementation == "eager"


def test_one_pattern_per_layer_and_what_does_not_fit() -> None:
    model = _stock("Llama")
    patch = lf.patch(model, ["window(2, 0)", "window(5, 0)"])
    assert [str(row.pattern) for row in patch.report.rows] == ["window(2, 0)", "window(5, 0)"]
    patch.undo()
    for wrong, text in ((["window(2, 0)"] * 3, "2 layers, got 3"), ("window(500, 0)", "reach < 128")):
        with pytest.raises(lf.PatternError, match=text):
            lf.patch(model, wrong)
        assert model.config._attn_implementation == "eager" and not hasattr(model.config, "lf_attention")


def test_a_pattern_that_the_config_held_comes_back() -> None:
    model = _stock("Llama", lf_attention="window(9, 0)")
    with lf.patch(model, "window(2, 0)"):
        assert model.config.lf_attention == lf.to_dict(lf.Window(2, 0))
    assert model.config.lf_attention == "window(9, 0)" and model.config._attn_implementation == "eager"


def test_copies_are_patched_on_their_own() -> None:
    model, batch = _stock("BART"), families.batch("BART", "none")
    stock = model(**batch).logits
    patch = lf.patch(model, "window(2, 2)")
    want = model(**batch).logits
    copies = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    patch.undo()
    torch.testing.assert_close(model(**batch).logits, stock)
    for copied in copies:
        torch.testing.assert_close(copied(**batch).logits, want)
        lf.Patch.of(copied).undo()
        torch.testing.assert_close(copied(**batch).logits, stock)
        assert not any(x._forward_pre_hooks for x in copied.modules())


def test_a_backend_that_is_asked_for_runs_or_refuses() -> None:
    model, batch = _stock("BERT"), families.batch("BERT", "right")
    want = model(**batch).logits
    for backend in ("blocked", "reference"):
        with lf.patch(model, backend=backend) as patch:  # in full, which no backend would be asked for
            real = batch["attention_mask"][..., None]
            torch.testing.assert_close(model(**batch).logits * real, want * real, atol=2e-5, rtol=1e-5)
            assert patch.report.backend == backend
    model = _stock("T5")
    with (
        lf.patch(model, "window(3, 3)", backend="blocked"),
        pytest.raises(lf.UnsupportedError, match="backend: not carried in a call that runs densely"),
    ):
        model(**families.batch("T5", "none"))


def test_parts_of_several_kinds() -> None:
    parts = [families.build(name, "sdpa").config for name in ("BERT", "RoBERTa")]
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*parts)
    model = transformers.EncoderDecoderModel(config).eval()
    with pytest.raises(lf.PatchError, match=r"configs of one kind wanted .* BertConfig, RobertaC"):
        lf.patch(model, "window(3, 3)")
    ids: Tensor = torch.randint(3, 60, (1, 9))
    want = model(ids, decoder_input_ids=ids).logits
    with lf.patch(model):
        torch.testing.assert_close(model(ids, decoder_input_ids=ids).logits, want, atol=2e-5, rtol=1e-5)
    with lf.patch(model.encoder, "window(3, 3)"):
        assert not torch.allclose(model(ids, decoder_input_ids=ids).logits, want, atol=1e-3)
    torch.testing.assert_close(model(ids, decoder_input_ids=ids).logits, want)


def test_a_pooling_head_is_no_self_attention() -> None:
    config = transformers.SiglipVisionConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        image_size=16,
        patch_size=4,
    )
    model = transformers.SiglipVisionModel(config).eval()
    pixels = torch.randn(1, 3, 16, 16)
    want = model(pixels).last_hidden_state
    with lf.patch(model, "window(16, 16)") as patch:
        assert "MultiheadAttention attends in code of its own, and stays as it is" in str(patch.report)
        torch.testing.assert_close(model(pixels).last_hidden_state, want, atol=2e-5, rtol=1e-5)


def test_generation() -> None:
    model = _stock("Llama")
    ids = torch.randint(3, 60, (1, 11))
    asked = {"max_new_tokens": 9, "min_new_tokens": 9, "do_sample": False}
    want = families.build("Llama", lf_attention="window(4, 0)").generate(ids, **asked)
    with lf.patch(model, "window(4, 0)"):
        assert torch.equal(model.generate(ids, **asked), want)
        cache = lf_huggingface.WindowCache(model.config)
        assert torch.equal(model.generate(ids, past_key_values=cache, **asked), want)
