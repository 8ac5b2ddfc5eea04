"""The name "lf", the masks behind it, and what is refused, in words."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import lf_backend as lf
import lf_huggingface
from lf_huggingface.interface import mask_function
from tests.huggingface import families, zoo


@pytest.fixture(autouse=True)
def _nothing_said_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mask_function, "_said", set())


@pytest.fixture
def _registered_again() -> Iterator[None]:
    yield
    lf_huggingface.register()


def _run(code: str) -> None:
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def _ids(length: int = 20, batch: int = 1) -> Tensor:
    return torch.randint(3, families.VOCABULARY, (batch, length))


# The name.


@pytest.mark.parametrize(
    "first", ["import lf_huggingface", "import transformers.modeling_utils; import lf_huggingface"]
)
def test_the_import_registers_before_or_after_transformers(first: str) -> None:
    _run(
        f"""
{first}
from transformers import AttentionInterface, AttentionMaskInterface
import transformers.modeling_utils
assert "lf" in AttentionInterface._global_mapping and "lf" in AttentionMaskInterface._global_mapping
"""
    )


@pytest.mark.usefixtures("_registered_again")
def test_register_again_and_unregister() -> None:
    lf_huggingface.register()
    model = families.build("Llama")
    lf_huggingface.unregister()
    with pytest.raises(KeyError, match="lf"):
        model(_ids())
    with pytest.raises(ValueError, match="attn_implementation"):
        families.build("Llama")
    with pytest.raises(lf.LFError, match="name: one that lf_huggingface has registered wanted, got 'lf'"):
        lf_huggingface.unregister()


@pytest.mark.parametrize(
    "name", ["", "lf_flash", "my-sdpa", "org/lf", "paged|lf", "flex_attention2", "eager"]
)
def test_names_that_transformers_would_misread(name: str) -> None:
    with pytest.raises(
        lf.LFError, match=f"name: one without any of .* wanted, got {name!r}".replace("|", r"\|")
    ):
        lf_huggingface.register(name)


def test_a_name_that_is_somebody_elses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "theirs", print)
    with pytest.raises(lf.LFError, match="name: a free one wanted, 'theirs' is <built-in function print>"):
        lf_huggingface.register("theirs")


def test_all_ways_to_ask_for_it(tmp_path: Path) -> None:
    model = families.build("Mistral", lf_attention=lf.to_dict(lf.Window.causal(4)))
    ids = _ids()
    want = model(ids).logits
    model.save_pretrained(tmp_path)
    kind = type(model)
    loaded = kind.from_pretrained(tmp_path, attn_implementation="lf")
    assert loaded.config.lf_attention == lf.to_dict(lf.Window.causal(4))
    torch.testing.assert_close(loaded(ids).logits, want, atol=0, rtol=0)
    eager = kind.from_pretrained(tmp_path, attn_implementation="eager")
    assert not torch.allclose(eager(ids).logits, want, atol=1e-3)
    eager.set_attn_implementation("lf")
    torch.testing.assert_close(eager(ids).logits, want, atol=0, rtol=0)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "attn_implementation": "lf"}))
    torch.testing.assert_close(kind.from_pretrained(tmp_path)(ids).logits, want, atol=0, rtol=0)


def test_one_part_of_a_model() -> None:
    parts = [families.build(name, "eager", is_decoder=name == "RoBERTa") for name in ("BERT", "RoBERTa")]
    parts[1].config.add_cross_attention = True
    config = transformers.EncoderDecoderConfig.from_encoder_decoder_configs(*(x.config for x in parts))
    model = transformers.EncoderDecoderModel(config)
    model.set_attn_implementation({"encoder": "lf", "decoder": "eager"})
    names = [x.config._attn_implementation for x in (model.encoder, model.decoder)]
    assert names == ["lf", "eager"]
    batch = {"input_ids": _ids(9), "decoder_input_ids": _ids(9), "attention_mask": torch.ones(1, 9)}
    batch["attention_mask"][0, -3:] = 0
    want = model.eval()(**batch).logits
    for name in ("lf", "eager"):
        model.set_attn_implementation({"encoder": "eager", "decoder": name})
        torch.testing.assert_close(model(**batch).logits, want)
    model.decoder.config.lf_attention = "window(2, 0)"  # and not to cross attention, with as many keys
    model.set_attn_implementation({"encoder": "eager", "decoder": "lf"})
    late = torch.full_like(batch["input_ids"], 3)
    first = {**batch, "input_ids": torch.cat([late[:, :1], batch["input_ids"][:, 1:]], dim=1)}
    assert not torch.allclose(model(**first).logits[:, -1], model(**batch).logits[:, -1], atol=1e-5)


# The pattern of the config.


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            {"term": "window", "left": 1, "right": 0, "size": 3},
            r"lf_attention: keys .* got unknown \['size'\]",
        ),
        ({"window": 3}, "lf_attention.term: one of .* wanted, got None"),
        ("window(3", "wanted"),
        (["window(3, 0)"] * 3, "lf_attention: one pattern, or one per layer wanted, 2 layers, got 3"),
        (["window(3, 0)"], "lf_attention: one pattern, or one per layer wanted, 2 layers, got 1"),
        ("window(128, 0)", r"lf_attention: reach < 128 \(max_position_embeddings\) wanted, .* reaches 128"),
        ("window(3, 0) | global(200)", "lf_attention: reach < 128 .* reaches 200"),
        ("window(3, 0, dilation=[1, 2])", "dilation: one int per head wanted, 4 heads, got 2"),
        (lf.Window(3, 0), "lf_attention: plain data .* wanted, got Window"),
    ],
)
def test_a_config_that_means_nothing(value: Any, text: str) -> None:
    model = families.build("Llama")
    model.config.lf_attention = value
    with pytest.raises(lf.PatternError, match=text):
        model(_ids())


def test_one_pattern_per_layer() -> None:
    schedule = lf.schedules.to_list([lf.Window.causal(2), lf.Window.causal(5)])
    model = families.build("Llama", lf_attention=schedule)
    probe = _Patterns()
    with probe:
        model(_ids())
    assert probe.seen == ["window(1, 0) & causal()", "window(4, 0) & causal()"]
    image = families.vit(lf_attention=["window(1, 1)", "window(2, 2)"])
    with pytest.raises(
        lf.UnsupportedError, match=r"one pattern for all layers wanted, got 2: ViT.*which layer"
    ):
        image(pixel_values=torch.randn(1, 1, 16, 16))


class _Patterns:
    """Which patterns run, in order."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __enter__(self) -> None:
        from lf_huggingface.interface import attention

        self._patch = pytest.MonkeyPatch()
        original = attention.sparse

        def spy(call: Any, pattern: Any, *rest: Any) -> Tensor:
            self.seen.append(str(pattern))
            return original(call, pattern, *rest)

        self._patch.setattr(attention, "sparse", spy)

    def __exit__(self, *_: Any) -> None:
        self._patch.undo()


def test_tokens_global_in_one_call() -> None:
    model = families.build("BERT", lf_attention="window(2, 2)")
    ids = _ids(20, 2)
    marked = torch.zeros_like(ids)
    marked[:, [0, 9]] = 1
    want = families.build("BERT", lf_attention="window(2, 2) | global(0, 9)")(ids).logits
    torch.testing.assert_close(model(ids, global_attention_mask=marked).logits, want)
    with pytest.raises(lf.ShapeError, match=r"global_attention_mask: \[2, 20\], and as many queries"):
        model(ids, global_attention_mask=marked[:, :3])


def test_a_global_token_beyond_a_short_input_does_not_exist_yet() -> None:
    model = families.build("Llama", lf_attention="window(3, 0) | global(0, 50)")
    other = families.build("Llama", lf_attention="window(3, 0) | global(0)")
    ids = _ids()
    torch.testing.assert_close(model(ids).logits, other(ids).logits)


# Masks.


def _pairs(model: nn.Module, other: nn.Module, **inputs: Any) -> None:
    torch.testing.assert_close(model(**inputs).logits, other(**inputs).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("kind", ["bool", "float"])
@pytest.mark.parametrize("family", ["Llama", "GPT-OSS", "Gemma 2"])
def test_a_dense_mask_of_the_users(family: str, kind: str) -> None:
    model = families.build(family)
    seen = (torch.rand(2, 1, 20, 20) > 0.5) | torch.eye(20, dtype=torch.bool)
    floats = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    given = seen if kind == "bool" else floats
    ids = _ids(20, 2)
    want = families.twin(model)(ids, attention_mask=floats).logits
    torch.testing.assert_close(model(ids, attention_mask=given).logits, want, atol=2e-5, rtol=0)
    model.config.lf_attention = "window(3, 0)"
    allowed = lf.Window(3, 0).mask(20)[None] & seen
    floats = torch.zeros(seen.shape).masked_fill(~allowed, torch.finfo(torch.float32).min)
    want = families.twin(model)(ids, attention_mask=floats).logits
    torch.testing.assert_close(model(ids, attention_mask=given).logits, want, atol=2e-5, rtol=0)
    wanted = r"attention_mask: bool or float \[1 or B, 1 or H, 1 or 20, 1 or 20\] wanted"
    with pytest.raises(lf.ShapeError, match=wanted):
        model(ids, attention_mask=given[..., :7])


def test_an_unknown_mask_function_runs_densely_and_says_so_once() -> None:
    model = families.build("Llama")
    eager = families.twin(model)
    ids = _ids()
    blocks = {"block_sequence_ids": torch.zeros(1, 20, dtype=torch.long)}

    def masked(x: nn.Module) -> Tensor:
        embeds = x.get_input_embeddings()(ids)
        return transformers.masking_utils.create_causal_mask(x.config, embeds, None, None, **blocks)

    with pytest.warns(UserWarning, match=r"or_masks.<locals>.or_mask is not known .* runs densely"):
        got = model(ids, attention_mask=masked(model)).logits
    torch.testing.assert_close(got, eager(ids, attention_mask=masked(eager)).logits, atol=2e-5, rtol=0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        masked(model)


def test_an_unknown_mask_function_is_an_error_in_strict_mode(_registered_again: None) -> None:
    lf_huggingface.register(strict=True)
    model = families.build("Llama")
    model(_ids())
    with pytest.raises(
        lf.UnsupportedError, match=r"or_mask is not known .* which strict=True and WindowCache forbid"
    ):
        transformers.masking_utils.create_causal_mask(
            model.config, torch.zeros(1, 4, 32), None, None, or_mask_function=lambda b, h, q, k: q == k
        )


def test_lengths_of_a_cropped_cache_may_be_tensors() -> None:
    """Those of transformers 5.17 after assisted decoding has taken tokens back."""
    sizes = {"batch_size": 1, "q_length": 1, "attention_mask": torch.ones(1, 23, dtype=torch.bool)}
    config = families.build("Mistral").config
    function = transformers.masking_utils.sliding_window_causal_mask_function(8)
    found, wanted = (
        mask_function.mask(
            **sizes,
            kv_length=length(8),
            q_offset=length(22),
            kv_offset=length(15),
            mask_function=function,
            config=config,
        )
        for length in (torch.tensor, int)
    )
    assert found.shape == wanted.shape and found.kind is wanted.kind
    assert torch.equal(found.queries, wanted.queries) and torch.equal(found.keys, wanted.keys)


def _made(length: int = 20) -> Any:
    config = families.build("Llama").config
    return transformers.masking_utils.create_causal_mask(config, torch.zeros(1, length, 32), None, None)


def test_a_mask_for_other_lengths_is_refused() -> None:
    with pytest.raises(
        lf.ShapeError, match="a mask for 20 queries and 20 keys wanted, got one for 19 and 19"
    ):
        families.build("Llama")(_ids(), attention_mask=_made(19))


@pytest.mark.parametrize(
    "compute",
    [
        lambda mask, x: mask[..., 1:],
        lambda mask, x: mask != 0,
        lambda mask, x: x == mask,
        lambda mask, x: mask < 0,
        lambda mask, x: x + mask,
        lambda mask, x: mask + x,
        lambda mask, x: ~mask,
        lambda mask, x: torch.where(mask, x, 0.0),
        lambda mask, x: x.masked_fill(mask, 0.0),
        lambda mask, x: mask.float(),
        lambda mask, x: mask.expand(-1, 2, -1, -1),
        lambda mask, x: mask.dtype == torch.bool,
        lambda mask, x: torch.nn.functional.scaled_dot_product_attention(x, x, x, attn_mask=mask),
        lambda mask, x: bool(mask),
        lambda mask, x: torch.as_tensor(mask),
    ],
)
def test_a_mask_is_no_number(compute: Any) -> None:
    with pytest.raises(lf.UnsupportedError, match="attention_mask: a model that hands its mask on"):
        compute(_made(), torch.zeros(1, 4, 20, 20))


def test_a_mask_made_before_is_taken_as_it_is() -> None:
    model, ids = families.build("Mistral"), _ids()
    embeds = torch.zeros(1, 20, 32)
    made = transformers.masking_utils.create_sliding_window_causal_mask(model.config, embeds, None, None)
    assert made.shape == (1, 1, 20, 20) and made.ndim == made.dim() == 4
    assert made.to("cpu").contiguous().size(-1) == 20 and made.to(torch.bool) is made
    assert torch.equal(model(ids, attention_mask=made).logits, model(ids).logits)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "Qwen2", "Gemma 2", "Gemma 3"])
def test_packed_documents(family: str) -> None:
    model = families.build(family)
    positions = torch.cat([torch.arange(n) for n in (11, 1, 5, 3)])[None]
    ids = _ids()
    batch = {"input_ids": ids, "labels": ids, "position_ids": positions, "use_cache": False}
    with families.forms() as seen:
        families.assert_same(model, families.twin(model), batch)
    assert seen == {"sparse"}
    ends = torch.tensor([0, 11, 12, 17, 20], dtype=torch.int32)
    want = model(**batch).logits
    counted = {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": 11, "max_length_k": 11}
    got = model(ids, position_ids=positions, **counted).logits
    torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family, arguments", [("Llama", {}), ("GPT-OSS", {"use_cache": False})])
def test_packed_documents_that_transformers_overlooks(family: str, arguments: dict[str, Any]) -> None:
    """With a cache, or where the model tells its masks nothing, positions that restart are documents too."""
    model, ids = families.build(family), _ids()
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    with families.forms() as seen:
        found = model(ids, position_ids=positions, **arguments).logits
    assert seen == {"sparse"}
    apart = [model(part, use_cache=False).logits for part in (ids[:, :9], ids[:, 9:])]
    torch.testing.assert_close(found, torch.cat(apart, 1), atol=2e-5, rtol=0)


def test_packed_documents_beside_a_mask_are_refused() -> None:
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    with pytest.raises(lf.UnsupportedError, match="position_ids: positions that restart mean packed"):
        families.build("Llama")(_ids(), position_ids=positions, attention_mask=torch.ones(1, 20))


def test_packed_documents_have_global_tokens_of_their_own() -> None:
    model, ids = families.build("BERT", lf_attention="window(2, 2) | global(0)"), _ids()
    marks = torch.zeros(1, 20, dtype=torch.long)
    marks[0, 4] = marks[0, 15] = 1
    ends = torch.tensor([0, 9, 20])
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    found = model(
        ids, position_ids=positions, cu_seq_lens_q=ends, cu_seq_lens_k=ends, global_attention_mask=marks
    )
    apart = [model(ids[:, at], global_attention_mask=marks[:, at]) for at in (slice(9), slice(9, 20))]
    torch.testing.assert_close(found.logits, torch.cat([x.logits for x in apart], 1), atol=2e-5, rtol=0)


def test_packed_documents_run_in_one_graph() -> None:
    model = families.build("Mistral")
    graphs = CompileCounter()
    compiled = torch.compile(model, backend=graphs, fullgraph=True)
    for cut in (9, 13, 4):
        positions = torch.cat([torch.arange(cut), torch.arange(20 - cut)])[None]
        batch = {"input_ids": _ids(), "position_ids": positions, "use_cache": False}
        torch.testing.assert_close(compiled(**batch).logits, model(**batch).logits, atol=2e-5, rtol=0)
    assert graphs.frame_count == 1


def test_boundaries_that_do_not_cover_the_row_are_refused() -> None:
    with pytest.raises(lf.ShapeError, match="cu_seq_lens_q, cu_seq_lens_k: the same, from 0 to 20"):
        families.build("Llama")(_ids(), cu_seq_lens_q=torch.tensor([0, 5]))


def test_causal_models_made_bidirectional() -> None:
    for family in ("Llama", "Gemma 3"):
        model = families.build(family)
        ids, mask = _ids(20, 2), torch.ones(2, 20)
        mask[1, :4] = 0
        inputs = {"attention_mask": mask, "is_causal": False, "use_cache": False}
        got, want = (x(ids, **inputs).logits * mask[..., None] for x in (model, families.twin(model)))
        torch.testing.assert_close(got, want, atol=2e-5, rtol=0)


# What is refused.


def test_weights_are_refused_with_the_reason_and_the_way() -> None:
    for family in ("Llama", "BERT", "T5"):
        batch = families.batch(family, "none")
        with pytest.raises(lf.UnsupportedError, match=r"output_attentions: weights are Q x K .*'eager'"):
            families.build(family)(**batch, output_attentions=True)


def test_a_word_that_is_not_carried_is_named() -> None:
    with pytest.raises(lf.UnsupportedError, match="temperature_of_attention: passed by LlamaAttention"):
        families.build("Llama")(_ids(), temperature_of_attention=2.0)


@pytest.mark.parametrize("make", [zoo.longformer, zoo.led, zoo.big_bird])
def test_models_that_no_name_reaches(make: Any) -> None:
    model = make()
    again = type(model)._from_config(model.config, attn_implementation="lf")
    with pytest.raises(lf.UnsupportedError, match=r"attends in code of its own.*use lf.patch\(model\)"):
        again(zoo.tokens(1, 8))


def test_a_cache_that_drops_what_the_pattern_needs() -> None:
    model = families.build("Mistral", lf_attention="window(20, 0)")
    with pytest.raises(
        lf.UnsupportedError, match=r"past_key_values: a cache that keeps what window\(20, 0\)"
    ):
        model.generate(_ids(20), max_new_tokens=3, do_sample=False)
    cache = transformers.DynamicCache()
    model.generate(_ids(20), max_new_tokens=3, do_sample=False, past_key_values=cache)
