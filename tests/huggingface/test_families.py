"""Every family by configuration against eager attention: outputs, loss, gradients, generation, the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

import lf_backend as lf
from tests.huggingface import families, zoo

PAGE = Path(__file__).parents[2] / "docs" / "huggingface.md"
PATTERN = "window(3, 3, dilation=2) | global(0, 7)"
PADDING = pytest.mark.parametrize("padding", ["none", "right", "left"])


@PADDING
@pytest.mark.parametrize("family", families.FAMILIES)
def test_as_it_is(family: str, padding: str) -> None:
    model = families.build(family)
    families.assert_same(model, families.twin(model), families.batch(family, padding))


@PADDING
@pytest.mark.parametrize("family", [*families.DECODERS, *families.ENCODERS])
def test_with_a_pattern_of_the_users(family: str, padding: str) -> None:
    model = families.build(family, lf_attention=PATTERN)
    batch = families.batch(family, padding)
    dense = families.dense_mask(PATTERN, batch, family in families.DECODERS)
    families.assert_same(model, families.twin(model), batch, {**batch, "attention_mask": dense})


@pytest.mark.parametrize("family", families.SEQ2SEQ)
def test_encoder_and_decoder_take_the_pattern_and_cross_attention_does_not(family: str) -> None:
    model, eager = families.build(family, lf_attention=PATTERN), families.build(family, "eager")
    batch = families.batch(family, "right")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    encoders = [x.get_encoder() for x in (model, eager)]
    dense = families.dense_mask(PATTERN, batch, False)
    got = encoders[0](ids, attention_mask=mask)[0] * mask[..., None]
    want = encoders[1](ids, attention_mask=dense)[0] * mask[..., None]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)
    states = {"encoder_hidden_states": want, "encoder_attention_mask": mask, "use_cache": False}
    del batch["attention_mask"]
    dense = families.dense_mask(PATTERN, batch, True)
    decoders = [x.get_decoder() for x in (model, eager)]
    got = decoders[0](ids, **states)[0]
    want = decoders[1](ids, attention_mask=dense, **states)[0]
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


IMAGES = "window(3, 3)"


def _image_batch() -> dict[str, Any]:
    return {"pixel_values": torch.randn(2, 1, 16, 16), "labels": torch.tensor([0, 1])}


def test_images() -> None:
    model = families.vit()
    families.assert_same(model, families.twin(model), _image_batch())


def test_images_with_a_pattern_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    def under_the_mask(module: Any, q: Any, k: Any, v: Any, mask: Any, **_: Any) -> Any:
        scores = q @ k.mT / q.shape[-1] ** 0.5
        seen = lf.parse(IMAGES).mask(q.shape[2])
        weights = torch.nn.functional.softmax(scores.masked_fill(~seen, -1e30), dim=-1)
        return (weights @ v).transpose(1, 2), weights

    monkeypatch.setitem(transformers.AttentionInterface._global_mapping, "oracle", under_the_mask)
    model = families.vit(lf_attention=IMAGES)
    families.assert_same(model, families.twin(model, "oracle"), _image_batch())


MODES: dict[str, dict[str, Any]] = {
    "beams": {"num_beams": 3},
    "beams, static": {"num_beams": 3, "cache_implementation": "static"},
    "sampling": {"do_sample": True, "top_k": 8},
    "no cache": {"use_cache": False},
    "chunked prefill": {"prefill_chunk_size": 4},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def _assert_generates_the_same(model: nn.Module, inputs: dict[str, Any], **mode: Any) -> None:
    found = []
    for x in (model, families.twin(model)):
        torch.manual_seed(1)
        asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False, **mode}
        found.append(x.generate(**inputs, **asked, output_logits=True, return_dict_in_generate=True))
    got, want = found
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=2e-4, rtol=0)


def _prompt(family: str, padding: str, length: int) -> dict[str, Any]:
    batch = families.batch(family, padding, length)
    return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}


@pytest.mark.parametrize("family", [*families.DECODERS, *families.SEQ2SEQ])
@pytest.mark.parametrize("cache", [None, "static"])
def test_generation(family: str, cache: str | None) -> None:
    prompt = _prompt(family, "left", length=11)
    _assert_generates_the_same(families.build(family), prompt, cache_implementation=cache)


@pytest.mark.parametrize("cache", [None, "static"])
@pytest.mark.parametrize("family", ["Mistral", "Gemma 3"])
def test_a_prompt_that_is_shorter_than_the_window(family: str, cache: str | None) -> None:
    prompt = _prompt(family, "none", length=3)
    _assert_generates_the_same(families.build(family), prompt, cache_implementation=cache)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["Llama", "Mistral", "Gemma 3", "GPT-OSS"])
def test_all_ways_to_generate(family: str, mode: str) -> None:
    prompt = _prompt(family, "left" if mode != "prompt lookup" else "none", length=11)
    if mode == "prompt lookup":
        prompt = {"input_ids": prompt["input_ids"][:1].repeat(1, 2)}
    _assert_generates_the_same(families.build(family), prompt, **MODES[mode])


def _form(model: nn.Module, batch: dict[str, Any]) -> str:
    """How the model attends; that the answer is exact is what the tests above say."""
    try:
        with families.forms() as seen, torch.no_grad():
            model(**batch)
    except lf.UnsupportedError as error:
        return "refused: `lf.patch(model)`" if "lf.patch(model)" in str(error) else "refused"
    return "exact, " + " and ".join(sorted(seen, reverse=True))


def _table() -> str:
    rows: dict[str, list[str]] = {}
    for family in families.FAMILIES:
        batch = families.batch(family, "right")
        forms = [_form(families.build(family, lf_attention=text), batch) for text in (None, PATTERN)]
        rows[family] = [*forms, "-" if family in families.ENCODERS else "exact"]
    rows["ViT"] = [_form(families.vit(lf_attention=text), _image_batch()) for text in (None, IMAGES)] + ["-"]
    for name, model in {"Longformer": zoo.longformer(), "LED": zoo.led()}.items():
        model.config._attn_implementation = "lf"
        rows[name] = [_form(model, {"input_ids": zoo.tokens(1, 8)})] * 2 + ["-"]
    head = "| family | its own attention | with `lf_attention` | generates |\n|---|---|---|---|\n"
    return head + "\n".join(f"| {family} | {' | '.join(cells)} |" for family, cells in rows.items())


def test_the_table_in_the_docs_is_what_this_run_finds() -> None:
    assert f"\n\n{_table()}\n\n" in PAGE.read_text("utf8")
