"""What each layer has run, and what becomes of a pattern that some layer would not run."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
import lf_huggingface
from tests.huggingface import families, zoo

SMALL = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 128, "pad_token_id": 0, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip


def _ids(length: int = 20, batch: int = 1) -> Tensor:
    return torch.randint(3, 60, (batch, length))


def _rows(model: nn.Module) -> list[tuple[str, str, bool]]:
    found = lf_huggingface.report(model).rows
    return [(row.path, str(row.pattern or "-"), row.from_config) for row in found]


# The receipt.


def test_every_layer_says_what_it_ran() -> None:
    model = families.build("Qwen2", lf_attention=["window(3, 0)", "window(5, 0) | global(0)"])
    layers = [f"model.layers.{index}.self_attn" for index in range(2)]
    assert _rows(model) == [(path, "-", False) for path in layers]
    model(_ids())
    ran = ["window(3, 0) & causal()", "(window(5, 0) | global(0)) & causal()"]
    assert _rows(model) == [(path, text, True) for path, text in zip(layers, ran, strict=True)]
    text = str(lf_huggingface.report(model))
    assert text.startswith("2 of 2 attention layers of Qwen2ForCausalLM ran by lf_backend")
    assert "Qwen2Attention  window(3, 0) & causal()" in text
    model.config.lf_attention = None
    model(_ids())
    assert [row.note for row in lf_huggingface.report(model).rows] == ["the model's own"] * 2
    assert [text for _, text, _ in _rows(model)] == ["window(7, 0) & causal()", "causal()"]
    model.set_attn_implementation("eager")
    assert {row.note for row in lf_huggingface.report(model).rows} == {"attends by 'eager'"}


def test_patched_layers_and_layers_of_their_own_have_a_row() -> None:
    model = zoo.longformer()
    assert {row.note for row in lf_huggingface.report(model).rows} == {"attends in code of its own"}
    with lf.patch(model):
        assert _rows(model) == [
            (f"encoder.layer.{index}.attention.self", "window(4, 4)", False) for index in range(2)
        ]


@pytest.mark.parametrize("model", [nn.Linear(2, 2), "BERT"])
def test_a_receipt_of_nothing(model: Any) -> None:
    with pytest.raises(lf.LFError, match=r"model: .* wanted, got"):
        lf_huggingface.report(model)


# Cross attention is recognised by what is passed.


def _q_former(**changes: Any) -> Any:
    config = transformers.Blip2QFormerConfig(
        **SMALL, encoder_hidden_size=32, cross_attention_frequency=1, initializer_range=0.25
    )
    torch.manual_seed(0)
    model = transformers.Blip2QFormerModel._from_config(config, attn_implementation="lf").eval()
    for name, value in changes.items():
        setattr(model.config, name, value)
    return model


def test_a_q_former_under_a_window_that_covers_everything() -> None:
    """As many keys of an image as queries, in classes that no name tells apart."""
    model, x, image = _q_former(), torch.randn(2, 12, 32), torch.randn(2, 12, 32)
    want = families.twin(model)(x, encoder_hidden_states=image)[0]
    model.config.lf_attention = "window(12, 12)"
    torch.testing.assert_close(model(x, encoder_hidden_states=image)[0], want, atol=2e-5, rtol=1e-5)
    model.config.lf_attention = "window(2, 2)"
    narrow = model(x, encoder_hidden_states=image)[0]
    assert (narrow - want).abs().max() > 0.1
    notes = [row.note for row in lf_huggingface.report(model).rows]
    assert notes == ["by lf_attention", "cross attention"] * 2
    moved = image.flip(1)  # the order of an image's keys means nothing
    torch.testing.assert_close(model(x, encoder_hidden_states=moved)[0], narrow, atol=2e-5, rtol=1e-5)
    copied = pickle.loads(pickle.dumps(copy.deepcopy(model)))
    torch.testing.assert_close(copied(x, encoder_hidden_states=image)[0], narrow)


@pytest.mark.parametrize("family", families.SEQ2SEQ)
def test_encoders_and_decoders(family: str) -> None:
    model = families.build(family, lf_attention="window(3, 3)")
    model(**families.batch(family, "none"))
    for path, text, from_config in _rows(model):
        is_cross = "encoder_attn" in path or "EncDecAttention" in path
        own = "window(3, 3)" if path.split(".")[-5 if "EncDec" in path else 0] == "encoder" else None
        assert from_config is not is_cross
        assert text == ("window(none, none)" if is_cross else own or text)
    assert len(lf_huggingface.report(model).rows) == 6


def test_what_is_passed_decides_however_it_is_passed() -> None:
    layer, x, y = (
        _q_former().encoder.layer[0].crossattention.attention,
        torch.randn(1, 4, 32),
        torch.randn(1, 4, 32),
    )
    layer.config.lf_attention = "window(1, 1)"
    want = layer(x, encoder_hidden_states=y)[0]
    for found in (
        layer(encoder_hidden_states=y, hidden_states=x)[0],
        layer(x, None, y)[0],
    ):
        assert torch.equal(found, want)
        assert lf_huggingface.report(layer).rows[0].note == "cross attention"
    layer(x, encoder_hidden_states=x)  # its own sequence, by another name
    assert lf_huggingface.report(layer).rows[0].note == "by lf_attention"


# A pattern that some layer would not run.


def _tiny(kind: str, **config: Any) -> Any:
    made = getattr(transformers, kind)
    return made._from_config(made.config_class(**config), attn_implementation="lf").eval()


def test_layers_that_attend_in_code_of_their_own() -> None:
    model = _tiny("DebertaModel", **SMALL)
    want = families.twin(model)(_ids())[0]
    assert want.isfinite().all()
    model.config.lf_attention = "window(3, 3)"
    with pytest.raises(
        lf.UnsupportedError,
        match=r"lf_attention: .* got 'window\(3, 3\)': encoder.layer.0.attention.self "
        r"\(DisentangledSelfAttention\) attends in code of its own",
    ):
        model(_ids())
    model.set_attn_implementation("eager")
    model.config._attn_implementation = "eager"  # asked for by name
    model(_ids())


def test_an_encoder_of_its_own_beside_a_decoder_that_is_routed() -> None:
    model = zoo.longt5(lf_attention="window(3, 3)")
    model.set_attn_implementation("lf")
    with pytest.raises(
        lf.UnsupportedError, match=r"encoder.block.0.*\(LongT5LocalAttention\) attends in code"
    ):
        model(zoo.tokens(1, 8), decoder_input_ids=zoo.tokens(1, 8))


def _gemma3() -> Any:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = transformers.Gemma3Config(
        text_config={**sizes, "vocab_size": 300, "num_key_value_heads": 2, "head_dim": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 4},
        mm_tokens_per_image=4,
        image_token_index=299,
        image_token_id=299,
    )
    return transformers.Gemma3ForConditionalGeneration._from_config(config, attn_implementation="lf").eval()


def test_a_pattern_on_the_config_of_a_model_of_parts() -> None:
    model = _gemma3()
    model.config.lf_attention = "window(3, 0)"
    with pytest.raises(
        lf.PatternError,
        match=r"lf_attention: on the config that layers read \(model.vision_tower.config, "
        r"model.language_model.config\).* got it on a Gemma3Config .* model.language_model.layers.0",
    ):
        model(_ids())
    model.config.lf_attention, model.config.text_config.lf_attention = None, "window(3, 0)"
    model(_ids())
    assert ("model.language_model.layers.0.self_attn", "window(3, 0) & causal()", True) in _rows(model)


def test_a_pattern_that_came_after_a_models_copies_of_its_config() -> None:
    model = families.build("T5")
    model.config.lf_attention = "window(3, 3)"
    with pytest.raises(lf.PatternError, match=r"\(encoder.config, decoder.config\), or set before the model"):
        model(**families.batch("T5", "none"))
    model.encoder.config.lf_attention = model.decoder.config.lf_attention = "window(3, 3)"
    model(**families.batch("T5", "none"))


def test_a_decoder_that_is_deeper_than_the_list() -> None:
    model = families.build("BART", decoder_layers=3, lf_attention=["window(3, 3)", "window(4, 4)"])
    with pytest.raises(
        lf.PatternError, match="one pattern for all layers, or one for each, wanted, got 2: BartAttention is"
    ):
        model(**families.batch("BART", "none"))


_OF_THEIR_OWN: dict[str, dict[str, Any]] = {
    "BloomModel": {"vocab_size": 64, "hidden_size": 32, "n_layer": 1, "n_head": 4},
    "MegatronBertModel": SMALL,
    "RemBertModel": {**SMALL, "input_embedding_size": 16, "output_embedding_size": 16},
    "RoFormerModel": SMALL,
    "MPNetModel": SMALL,
    "IBertModel": SMALL,
    "SqueezeBertModel": {**SMALL, "embedding_size": 32, "q_groups": 1, "k_groups": 1, "v_groups": 1,
                         "post_attention_groups": 1, "intermediate_groups": 1, "output_groups": 1},
    "NystromformerModel": {**SMALL, "num_landmarks": 4, "segment_means_seq_len": 20},
    "ConvBertModel": {**SMALL, "embedding_size": 32, "head_ratio": 2, "conv_kernel_size": 3},
    "XGLMModel": {"vocab_size": 64, "d_model": 32, "num_layers": 1, "attention_heads": 4, "ffn_dim": 33},
    "MptModel": {"vocab_size": 64, "d_model": 32, "n_layers": 1, "n_heads": 4},
    "GPTNeoXJapaneseModel": {**SMALL},
    "CodeGenModel": {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4,
                     "bos_token_id": 1, "eos_token_id": 2},
    "GPTJModel": {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4, "rotary_dim": 4,
                  "bos_token_id": 1, "eos_token_id": 2},
    "GPTNeoModel": {"vocab_size": 64, "hidden_size": 32, "num_layers": 1, "num_heads": 4,
                    "attention_types": [[["global"], 1]], "bos_token_id": 1, "eos_token_id": 2},
    "FalconModel": {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4,
                    "alibi": False},
    "XLNetModel": {"vocab_size": 64, "d_model": 32, "n_layer": 1, "n_head": 4, "d_inner": 33},
    "XLMModel": {"vocab_size": 64, "emb_dim": 32, "n_layers": 1, "n_heads": 4},
    "FlaubertModel": {"vocab_size": 64, "emb_dim": 32, "n_layers": 1, "n_heads": 4},
    "OpenAIGPTModel": {"vocab_size": 64, "n_embd": 32, "n_layer": 1, "n_head": 4},
    "DebertaV2Model": SMALL,
    "FunnelBaseModel": {"vocab_size": 64, "d_model": 32, "block_sizes": [1], "n_head": 4, "d_head": 8,
                        "d_inner": 33},
    "CanineModel": {**SMALL, "local_transformer_stride": 4},
    "TapasModel": SMALL,
    "LukeModel": {**SMALL, "entity_vocab_size": 8, "entity_emb_size": 16},
    "VisualBertModel": {**SMALL, "visual_embedding_dim": 16},
}  # fmt: skip


_MADE = "refused when it is made: it has one class for each name it knows"
_CALLED = "refused when it is called: it builds masks and attends in code of its own"
_ALONE = "runs as it is; a pattern in `lf_attention` is refused"
PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"


def _fate(kind: str) -> str:
    """What becomes of a model of a family under "lf", and under a pattern."""
    made = getattr(transformers, kind)
    torch.manual_seed(0)
    config = made.config_class(**_OF_THEIR_OWN[kind])
    ids, eager = _ids(), made._from_config(copy.deepcopy(config), attn_implementation="eager").eval()
    want = eager(ids)[0]
    try:
        model = made._from_config(config, attn_implementation="lf").eval()
    except lf.UnsupportedError as error:
        assert "attends in code of its own" in str(error)
        return _MADE
    model.load_state_dict(eager.state_dict())
    try:
        found = model(ids)[0]
    except lf.UnsupportedError as error:
        assert "attends in code of its own" in str(error) or "computes with it" in str(error)
        return _CALLED
    torch.testing.assert_close(found, want)
    model.config.lf_attention = "window(3, 3)"
    with pytest.raises(lf.UnsupportedError, match=r"lf_attention: .* attends in code of its own"):
        model(ids)
    return _ALONE


@pytest.mark.filterwarnings("ignore")  # upstream's own
def test_families_that_attend_in_code_of_their_own() -> None:
    """Refused by name where "lf" reaches their masks, left alone otherwise; and so says the table."""
    fates = {kind: _fate(kind) for kind in sorted(_OF_THEIR_OWN)}
    lines = ['| under "lf" | families |', "|---|---|"]
    for fate in (_ALONE, _CALLED, _MADE):
        names = [kind.removesuffix("Model").removesuffix("Base") for kind in fates if fates[kind] == fate]
        lines.append(f"| {fate} | {', '.join(names)} |")
    assert "\n\n" + "\n".join(lines) + "\n\n" in PAGE.read_text("utf8"), "\n".join(lines)


def _doge() -> Any:
    return _tiny("DogeForCausalLM", **SMALL, num_key_value_heads=2)


@pytest.mark.parametrize("how", ["eager", "compile", "export"])
def test_a_model_that_computes_with_its_mask(how: str) -> None:
    model, ids = _doge(), _ids()
    torch._dynamo.reset()
    wanted = r"attention_mask: a model that hands its mask on to its attention wanted, doge computes with it"
    with torch.no_grad(), pytest.raises(lf.UnsupportedError, match=wanted):
        if how == "export":
            torch.export.export(model, (ids,), strict=False)
        else:
            (torch.compile(model, backend="eager") if how == "compile" else model)(ids)
    torch._dynamo.reset()


# Masks that nobody uses, and layers that share keys.


def test_a_mask_that_no_layer_uses_is_not_checked() -> None:
    model = families.build("Qwen2", layer_types=["sliding_attention"] * 2)
    asked = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False}
    ids = _ids(11)
    assert torch.equal(model.generate(ids, **asked), families.twin(model).generate(ids, **asked))


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("shared", [0, 2])
def test_layers_that_share_keys_generate(shared: int, cache: str | None) -> None:
    model = _tiny(
        "Gemma4ForCausalLM",
        **SMALL | {"num_hidden_layers": 4},
        vocab_size_per_layer_input=64,
        hidden_size_per_layer_input=8,
        num_key_value_heads=2,
        head_dim=8,
        global_head_dim=16,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"] * 2,
        num_kv_shared_layers=shared,
        initializer_range=0.25,
    )
    eager, ids = families.twin(model), _ids(11, 2)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
    found, want = (x.generate(ids, attention_mask=mask, **asked) for x in (model, eager))
    assert torch.equal(found, want)
    kept = {"logits_to_keep": 3, "use_cache": False}
    found, want = (x(ids, attention_mask=mask, **kept).logits for x in (model, eager))
    torch.testing.assert_close(found, want, atol=2e-5, rtol=1e-5)


# A config that holds a pattern.


def test_a_saved_config_loads_as_itself(tmp_path: Path) -> None:
    model = families.build("Mistral", lf_attention="window(3, 0)")
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["attn_implementation"] == "lf"
    ids, kind = _ids(), type(model)
    for load in (kind, transformers.AutoModelForCausalLM):
        again = load.from_pretrained(tmp_path)
        assert torch.equal(again(ids).logits, model(ids).logits)
    assert kind.from_pretrained(tmp_path, attn_implementation="sdpa").config._attn_implementation == "sdpa"
    code = f"from transformers import AutoModel; AutoModel.from_pretrained({str(tmp_path)!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode and 'attn_implementation="lf"` is not supported' in done.stderr


def test_a_config_of_before_loads_as_itself(tmp_path: Path) -> None:
    """Saved without a word on attention, and so what any config says that is made by hand."""
    model = families.build("Mistral", lf_attention="window(3, 0)")
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["attn_implementation"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(
        type(model).from_pretrained(tmp_path)(_ids(9)).logits.isfinite(), torch.ones(1, 9, 64) > 0
    )
    again = type(model).from_pretrained(tmp_path)
    assert again.config._attn_implementation == "lf"
    assert families.FAMILIES["Mistral"]
    made = transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL, lf_attention="window(3, 0)"))
    assert made.config._attn_implementation == "lf"
    assert (
        transformers.MistralForCausalLM(transformers.MistralConfig(**SMALL)).config._attn_implementation
        == "sdpa"
    )


def test_a_saved_config_of_parts(tmp_path: Path) -> None:
    model = _gemma3()
    model.config.text_config.lf_attention = "window(3, 0)"
    model.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert saved["attn_implementation"] == {"text_config": "lf"}
    again = type(model).from_pretrained(tmp_path)
    ids = _ids()
    assert torch.equal(again(ids).logits, model(ids).logits)
    names = [again.config.text_config._attn_implementation, again.config.vision_config._attn_implementation]
    assert names == ["lf", "sdpa"]


def test_hooks_go_with_the_attention() -> None:
    model = families.build("BART")
    hooked = [x for x in model.modules() if x._forward_pre_hooks]
    assert len(hooked) == 6
    model.set_attn_implementation("eager")
    assert not any(x._forward_pre_hooks or x._forward_pre_hooks_with_kwargs for x in model.modules())
    assert not any(x._forward_pre_hooks for x in families.build("Llama").modules())
