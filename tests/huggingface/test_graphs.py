"""Configured models in graphs that torch.compile and torch.export trace, and in other dtypes."""

from __future__ import annotations

import subprocess
import sys
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
@pytest.mark.filterwarnings("ignore:While compiling, we found certain side effects")  # of transformers
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("pattern", [None, "window(4, 4) | global(0)"])
@pytest.mark.parametrize("family", ["BERT", "BART", "ModernBERT", "T5", "Mistral"])
def test_export_of_any_length_after_a_call(family: str, pattern: str | None, strict: bool) -> None:
    model = families.build(family, lf_attention=pattern)
    length = torch.export.Dim("length", min=2, max=60)

    def inputs(size: int) -> dict[str, Tensor]:
        ids = _ids(size, 2)
        mask = torch.ones_like(ids)
        mask[1, -3:] = 0
        found = {"input_ids": ids, "attention_mask": mask}
        return found | ({"decoder_input_ids": ids.flip(0)} if family in families.SEQ2SEQ else {})

    given = inputs(24)
    fixed = {} if family in families.ENCODERS else {"use_cache": False}
    dynamic = {name: {1: length} for name in given} | dict.fromkeys(fixed)
    model(**given, **fixed)
    exported = torch.export.export(model, (), {**given, **fixed}, dynamic_shapes=dynamic, strict=strict)
    for size in (17, 40):
        other = inputs(size)
        found = exported.module()(**other, **fixed)[0]
        torch.testing.assert_close(found, model(**other, **fixed)[0])


_COLD = """
import torch
from tests.huggingface import zoo
import lf_backend as lf
torch.set_num_threads(1)
model = zoo.{make}()
model = (model.get_encoder() if model.config.is_encoder_decoder else model).train({training})
lf.patch(model)
for length in (64, 80, 96, 20):  # the last is short, attended to in full, and upstream logs that
    compiled = torch.compile(model, fullgraph=length > 20, backend="eager")
    ids = zoo.tokens(2, length)
    torch.testing.assert_close(compiled(ids)[0], model(ids)[0])
"""


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("make", ["big_bird", "bigbird_pegasus"])
def test_a_big_bird_that_is_compiled_cold(make: str, training: bool) -> None:
    """In a process where no block was drawn before."""
    code = _COLD.format(make=make, training=training)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert not done.returncode, done.stderr


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
