"""`WindowCache`: the same text as a cache of everything, in memory that does not grow."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
import lf_huggingface
from lf_huggingface.cache.window import WindowLayer
from tests.huggingface import families

PATTERNS = (
    "window(4, 0)",
    "window(0, 0) | global(0)",
    "window(4, 0) | global(0, 1, 4)",
    "window(2, 0, dilation=3) | global(2)",
    "window(3, 3, dilation=[1, 1, 2, 4]) | global(0, 5)",
    ["window(9, 0) | global(0)", "window(2, 0) | global(2)"],
)
MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 8},
    "beams": {"num_beams": 3},
    "sampled beams": {"num_beams": 2, "do_sample": True},
    "several": {"do_sample": True, "num_return_sequences": 2},
    "chunked prefill": {"prefill_chunk_size": 3},
    "prompt lookup": {"prompt_lookup_num_tokens": 3},
}


def _generated(model: nn.Module, cache: Any, batch: dict[str, Tensor], **mode: Any) -> Any:
    torch.manual_seed(3)
    asked = {"max_new_tokens": 20, "min_new_tokens": 20, "do_sample": False, "output_logits": True, **mode}
    return model.generate(**batch, past_key_values=cache, return_dict_in_generate=True, **asked)


def _same(model: nn.Module, batch: dict[str, Tensor], **mode: Any) -> transformers.Cache:
    cache = lf_huggingface.WindowCache(model.config)
    want = _generated(model, transformers.DynamicCache(), batch, **mode)
    got = _generated(model, cache, batch, **mode)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=2e-4, rtol=0)
    return cache


def _batch(padding: str = "none", length: int = 7) -> dict[str, Tensor]:
    batch = families.batch("Llama", padding, length)
    return {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}


@pytest.mark.parametrize("padding", ["none", "left"])
@pytest.mark.parametrize("length", [1, 2, 7, 23])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_same_text_as_with_a_cache_of_everything(pattern: Any, length: int, padding: str) -> None:
    if length < 6 and padding == "left":
        padding = "none"
    model = families.build("Llama", lf_attention=pattern)
    cache = _same(model, _batch(padding, length))
    for layer, own in zip(cache.layers, _layers(pattern), strict=True):
        reach = max(band.span()[0] for band in own.lowered.bands)
        assert layer.keys.shape[2] == len(layer.sinks) + reach + 1


def _layers(pattern: Any) -> tuple[lf.Pattern, ...]:
    return lf.schedules.from_list(pattern if isinstance(pattern, list) else [pattern] * families.LAYERS)


@pytest.mark.parametrize("mode", MODES)
def test_all_ways_to_generate(mode: str) -> None:
    model = families.build("Llama", lf_attention=PATTERNS[-1])
    batch = _batch(length=9)
    if mode == "prompt lookup":
        batch = {name: x[:1].repeat(1, 2) for name, x in batch.items()}
    _same(model, batch, **MODES[mode])


def test_assisted_by_another_model() -> None:
    model = families.build("Llama", lf_attention="window(5, 0) | global(0)")
    drafter = families.build("Llama", num_hidden_layers=1)
    _same(model, {"input_ids": _batch()["input_ids"][:1]}, assistant_model=drafter)


@pytest.mark.parametrize("family", ["Mistral", "Qwen3", "Gemma 2", "Gemma 3", "GPT-2", "GPT-OSS", "Cohere2"])
def test_families(family: str) -> None:
    _same(families.build(family, lf_attention="window(4, 0) | global(0, 1)"), _batch("left", 9))


def test_a_decoder_that_reads_an_encoder() -> None:
    model, batch = families.build("BART", lf_attention="window(4, 0) | global(0)"), _batch("right", 9)
    caches = [
        transformers.EncoderDecoderCache(own, transformers.DynamicCache())
        for own in (transformers.DynamicCache(), lf_huggingface.WindowCache(model.config))
    ]
    want, got = (_generated(model, cache, batch) for cache in caches)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=2e-4, rtol=0)


def test_a_bias_that_the_model_makes_for_keys_in_order() -> None:
    model = families.build("T5", lf_attention="window(4, 0) | global(0)")
    cache = lf_huggingface.WindowCache(model.config)
    cache = transformers.EncoderDecoderCache(cache, transformers.DynamicCache())
    with pytest.raises(
        lf.UnsupportedError, match="position_bias: T5Attention makes it for keys from the first"
    ):
        _generated(model, cache, _batch("right", 9))


def test_a_conversation_goes_on_and_a_cache_starts_anew() -> None:
    model = families.build("Llama", lf_attention="window(5, 0) | global(0)")
    ids = _batch(length=31)["input_ids"]
    want = model(ids).logits
    cache = lf_huggingface.WindowCache(model.config)
    for _ in range(2):
        parts = [model(part, past_key_values=cache).logits for part in ids.split([11, 1, 8, 11], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=2e-5, rtol=0)
        cache.reset()


def _after(steps: int, layer: WindowLayer, tokens: Tensor) -> list[Tensor]:
    """The memory that each of some steps returned its keys in, which are those that a cache of all has."""
    seen = []
    for at in range(layer.get_seq_length(), layer.get_seq_length() + steps):
        new = tokens[:, :, at : at + 1]
        keys, values = layer.update(new, -new)
        kept = [*(i for i in layer.sinks if i < at), *range(max(0, at - layer.reach), at + 1)]
        assert torch.equal(keys, tokens[:, :, kept]) and torch.equal(values, -keys)
        seen.append(keys)
    return seen


def test_a_token_is_appended_where_there_is_room() -> None:
    """Memory for an eighth more is not copied for every token, whoever changes the keys between."""
    tokens = torch.randn(2, 3, 400, 4)
    layer = WindowLayer(80, (0, 1))
    seen = _after(200, layer, tokens)
    assert len({keys.untyped_storage().data_ptr() for keys in seen[-20:]}) <= 3
    assert seen[-1].untyped_storage().nbytes() <= 1.13 * seen[-1].nbytes
    layer.reorder_cache(torch.tensor([1, 0]))
    tokens = tokens.flip(0)
    _after(5, layer, tokens)
    with torch.inference_mode():
        _after(30, layer, tokens)
    _after(5, copy.deepcopy(layer), tokens)
    _after(30, layer, tokens)


def test_keys_with_gradients_are_copied() -> None:
    tokens = torch.randn(1, 1, 12, 4, requires_grad=True)
    layer = WindowLayer(2, (0,))
    sum(keys.sum() * at for at, keys in enumerate(_after(12, layer, tokens))).backward()  # type: ignore[union-attr]
    steps = torch.arange(12.0)
    within = sum(steps[at : at + 3].sum() * (torch.arange(12) == at) for at in range(12))
    within[0] = within[0] + steps.sum()
    assert tokens.grad is not None
    torch.testing.assert_close(tokens.grad[0, 0, :, 0], within)


def test_memory_does_not_grow() -> None:
    model = families.build("Llama", lf_attention="window(15, 0) | global(0, 1)", max_position_embeddings=4096)
    cache = lf_huggingface.WindowCache(model.config)
    sizes = []
    with torch.no_grad():
        for length in (100, 1900):
            model(torch.randint(3, families.VOCABULARY, (1, length)), past_key_values=cache)
            sizes.append([layer.keys.untyped_storage().nbytes() for layer in cache.layers])
    assert sizes[0] == sizes[1] == [2 * 18 * 8 * 4] * families.LAYERS


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "config: lf_attention wanted, got none"),
        (
            {"lf_attention": "window(none, 0)"},
            r"windows with a bound wanted for a WindowCache, got window\(none, 0",
        ),
        ({"lf_attention": ["window(3, 0)", "causal()"]}, r"windows with a bound wanted .* got causal\(\)"),
    ],
)
def test_a_pattern_that_cannot_be_bounded(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(lf.PatternError, match=text):
        lf_huggingface.WindowCache(families.build("Llama", **changes).config)


def test_a_model_that_does_not_attend_through_this_library() -> None:
    model = families.build("Llama", "eager", lf_attention="window(3, 0)")
    with pytest.raises(
        lf.UnsupportedError, match="a model with attn_implementation='lf' wanted, got 'eager'"
    ):
        lf_huggingface.WindowCache(model.config)


def test_a_global_token_that_comes_too_late() -> None:
    model = families.build("Llama", lf_attention="window(3, 0) | global(12)")
    _same(model, _batch(length=13))  # it is in the prompt
    with pytest.raises(
        lf.UnsupportedError, match="global positions among the first 4, or in the first forward"
    ):
        _generated(model, lf_huggingface.WindowCache(model.config), _batch(length=10))


def test_more_taken_back_than_is_there() -> None:
    model = families.build("Llama", lf_attention="window(3, 0)")
    cache = lf_huggingface.WindowCache(model.config)
    model(_batch(length=10)["input_ids"], past_key_values=cache)
    with pytest.raises(
        lf.UnsupportedError, match=r"crop: a negative number of tokens, no more .* wanted, got -2"
    ):
        cache.crop(-2)
