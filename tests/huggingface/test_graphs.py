"""Configured models in graphs that torch.compile and torch.export trace, and in other dtypes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import transformers
from torch import Tensor

from tests.huggingface import families


@pytest.fixture
def _dynamo() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def _ids(length: int = 20, batch: int = 1) -> Tensor:
    return torch.randint(3, families.VOCABULARY, (batch, length))


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("family", ["Mistral", "GPT-OSS", "BERT", "ModernBERT"])
def test_one_graph(family: str) -> None:
    model = families.build(family, lf_attention="window(5, 5) | global(0)" if family == "BERT" else None)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = families.batch(family, "right")
    del batch["labels"]
    cached = {} if family in families.ENCODERS else {"use_cache": False}
    with families.forms() as seen:
        got = compiled(**batch, **cached).logits
    torch.testing.assert_close(got, model(**batch).logits, atol=2e-5, rtol=0)
    assert "sparse" in seen


@pytest.mark.usefixtures("_dynamo")
def test_packing_in_a_graph_is_dense_and_exact() -> None:
    model = families.build("Mistral")
    positions = torch.cat([torch.arange(9), torch.arange(11)])[None]
    inputs = {"input_ids": _ids(), "position_ids": positions, "use_cache": False}
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs).logits, model(**inputs).logits, atol=2e-5, rtol=0)


@pytest.mark.parametrize("family", ["Llama", "Mistral", "BERT"])
def test_export(family: str) -> None:
    model = families.build(family)
    batch = families.batch(family, "right")
    del batch["labels"]
    if family in families.DECODERS:
        batch["use_cache"] = False
    exported = torch.export.export(model, (), batch, strict=False).module()
    torch.testing.assert_close(exported(**batch).logits, model(**batch).logits)


@pytest.mark.usefixtures("_dynamo")
@pytest.mark.parametrize("family", ["Llama", "Gemma 3"])
def test_a_compiled_step_over_a_static_cache(family: str) -> None:
    model = families.build(family, lf_attention="window(4, 0) | global(1)" if family == "Llama" else None)
    ids = _ids(6, 2)
    asked = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False, "cache_implementation": "static"}
    want = model.generate(ids, **asked)
    config = transformers.CompileConfig(fullgraph=True, backend="eager", mode=None)
    config._compile_all_devices = True
    got = model.generate(ids, compile_config=config, **asked)
    assert torch.equal(got, want)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0


@pytest.mark.parametrize("family", ["Llama", "GPT-OSS", "BERT"])
def test_autocast_and_half_precision(family: str) -> None:
    model = families.build(family)
    batch = families.batch(family, "right")
    with torch.autocast("cpu", torch.bfloat16):
        got, want = model(**batch), families.twin(model)(**batch)
    torch.testing.assert_close(got.loss, want.loss, rtol=0.03, atol=0)
    half = families.build(family).bfloat16()
    torch.testing.assert_close(half(**batch).loss, want.loss, rtol=0.05, atol=0, check_dtype=False)


def test_dropout_follows_the_seed_and_is_off_in_evaluation() -> None:
    model = families.build("Llama", attention_dropout=0.5, lf_attention="window(6, 0)").train()
    ids = _ids()
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(model(ids).logits)
    assert torch.equal(found[0], found[1])
    assert not torch.allclose(found[0], found[2])
    assert torch.equal(model.eval()(ids).logits, model(ids).logits)
