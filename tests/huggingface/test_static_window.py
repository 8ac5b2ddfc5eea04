"""A static `WindowCache`: the same text, in tensors that stay where they are."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers

import lf_backend as lf
import lf_huggingface
from tests.huggingface import families

PATTERNS = (
    "window(4, 0)",
    "window(4, 0) | global(0, 1, 4)",
    "window(2, 0, dilation=3) | global(2)",
    ["window(9, 0) | global(0)", "window(3, 0) | global(2)"],
)


def generated(model: Any, cache: Any, batch: dict[str, torch.Tensor], **mode: Any) -> Any:
    torch.manual_seed(3)
    asked = {"max_new_tokens": 16, "min_new_tokens": 16, "do_sample": False, "output_logits": True, **mode}
    return model.generate(**batch, past_key_values=cache, return_dict_in_generate=True, **asked)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize(("length", "padding"), [(1, "none"), (3, "none"), (7, "left"), (23, "left")])
@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
def test_the_same_text_as_with_a_cache_of_everything(
    pattern: Any, length: int, padding: str, mode: dict[str, Any]
) -> None:
    model = families.build("Llama", lf_attention=pattern)
    batch = families.batch("Llama", padding, length)
    batch = {name: batch[name] for name in ("input_ids", "attention_mask") if name in batch}
    cache = lf_huggingface.WindowCache(model.config, static=True)
    want = generated(model, transformers.DynamicCache(), batch, **mode)
    got = generated(model, cache, batch, **mode)
    assert torch.equal(got.sequences, want.sequences)
    torch.testing.assert_close(torch.stack(got.logits), torch.stack(want.logits), atol=2e-4, rtol=0)


def test_its_tensors_stay_and_it_starts_anew() -> None:
    model = families.build("Llama", lf_attention="window(5, 0) | global(0, 2)")
    ids = torch.randint(3, families.VOCABULARY, (1, 40))
    want = model(ids).logits
    cache = lf_huggingface.WindowCache(model.config, static=True)
    places = None
    for _ in range(2):
        parts = [model(part, past_key_values=cache).logits for part in ids.split([11, 1, 8, 20], dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), want, atol=2e-5, rtol=0)
        now = [(layer.keys.data_ptr(), layer.keys.shape[2]) for layer in cache.layers]
        assert all(slots == 2 + 5 for _, slots in now)
        places = now if places is None else places
        assert now == places
        cache.reset()


def test_a_compiled_step() -> None:
    """One graph for all tokens after the prompt."""
    model = families.build("Llama", lf_attention="window(4, 0) | global(1)")
    ids = torch.randint(3, families.VOCABULARY, (2, 6))
    asked = {"max_new_tokens": 12, "min_new_tokens": 12, "do_sample": False}
    want = model.generate(ids, past_key_values=transformers.DynamicCache(), **asked)
    config = transformers.CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cache = lf_huggingface.WindowCache(model.config, static=True)
    got = model.generate(ids, past_key_values=cache, compile_config=config, **asked)
    assert torch.equal(got, want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_what_it_cannot_is_refused() -> None:
    model = families.build("Llama", lf_attention="window(5, 0) | global(9)")
    with pytest.raises(
        lf.UnsupportedError, match=r"among the first 6 wanted for a static WindowCache, got 9"
    ):
        lf_huggingface.WindowCache(model.config, static=True)
    model = families.build("Llama", lf_attention="window(5, 0)")
    cache = lf_huggingface.WindowCache(model.config, static=True)
    with pytest.raises(lf.UnsupportedError, match="crop: a dynamic WindowCache wanted to take -1"):
        cache.crop(-1)
