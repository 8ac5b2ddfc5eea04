"""Whole models, patched and stock: the same outputs, hidden states, attentions, loss and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import lf_backend as lf
from tests.huggingface import zoo

ALL = {"output_attentions": True, "output_hidden_states": True}
LONGFORMERS = (
    "LongformerModel",
    "LongformerForMaskedLM",
    "LongformerForSequenceClassification",
    "LongformerForQuestionAnswering",
    "LongformerForTokenClassification",
    "LongformerForMultipleChoice",
)
LEDS = ("LEDModel", "LEDForConditionalGeneration", "LEDForQuestionAnswering")


def _batch(kind: str, length: int) -> dict[str, Any]:
    """Tokens, masks and labels as the class wants them."""
    ids, masks = zoo.tokens(4, length), zoo.masks(length)
    if kind == "LongformerForMultipleChoice":
        pairs = {name: x.view(2, 2, length) for name, x in {"input_ids": ids, **masks}.items()}
        del pairs["global_attention_mask"]  # the class marks what follows the first separator
        pairs["input_ids"][..., [3, 6, length - 1]] = zoo.SEPARATOR
        return {**pairs, "labels": torch.tensor([0, 1])}
    if kind.startswith("Longformer"):
        masks["token_type_ids"] = ids % 2
    labels: dict[str, Any] = {
        "LongformerForMaskedLM": {"labels": ids},
        "LongformerForSequenceClassification": {"labels": torch.tensor([0, 1, 2, 0])},
        "LongformerForQuestionAnswering": {"start_positions": ids[:, 0] % 7, "end_positions": ids[:, 1] % 7},
        "LongformerForTokenClassification": {"labels": ids % 3},
        "LEDModel": {"decoder_input_ids": ids[:, :5]},
        "LEDForConditionalGeneration": {"labels": ids[:, :5].contiguous()},
        "LEDForQuestionAnswering": {"start_positions": ids[:, 0] % 7, "end_positions": ids[:, 1] % 7},
    }
    return {"input_ids": ids, **masks, **labels.get(kind, {})}


def _stock(kind: str) -> torch.nn.Module:
    labels = 2 if kind.endswith("QuestionAnswering") else 3
    return (zoo.led if kind.startswith("LED") else zoo.longformer)(kind, num_labels=labels)


def _pair(stock: torch.nn.Module, **how: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    patched = copy.deepcopy(stock)
    lf.patch(patched, **how)
    return patched, stock


@pytest.mark.parametrize("length", [32, 27], ids=["a multiple of the window", "not a multiple"])
@pytest.mark.parametrize("kind", LONGFORMERS + LEDS)
def test_every_class_gives_the_same(kind: str, length: int) -> None:
    stock = _stock(kind)
    zoo.assert_same(*_pair(stock), _batch(kind, length), length, **ALL)


@pytest.mark.parametrize("kind", ["LongformerForSequenceClassification", "LongformerForQuestionAnswering"])
def test_a_head_that_sets_the_global_mask_itself(kind: str) -> None:
    batch = _batch(kind, 24)
    batch["input_ids"][:, [5, 9, 20]] = zoo.SEPARATOR
    del batch["global_attention_mask"]
    zoo.assert_same(*_pair(_stock(kind)), batch, 24, **ALL)


@pytest.mark.parametrize("backend", ["reference", "blocked"])
def test_a_named_backend_gives_the_same(backend: str) -> None:
    batch = _batch("LongformerModel", 24)
    zoo.assert_same(*_pair(zoo.longformer(), backend=backend), batch, 24, **ALL)


def test_float64() -> None:
    """One global in every example: from none, stock's softmax in float32 makes NaN of float64 scores."""
    batch = {"input_ids": zoo.tokens(2, 24), "global_attention_mask": torch.arange(24)[None].eq(3).long()}
    batch["global_attention_mask"] = batch["global_attention_mask"].expand(2, -1)
    patched, stock = _pair(zoo.longformer().double())
    want, got = (zoo.results(model, batch, 24, **ALL) for model in (stock, patched))
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, atol=1e-6, rtol=1e-5, msg=name)  # a float32 softmax's


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("make", [zoo.longformer, zoo.led])
def test_half_precision(make: Any, dtype: torch.dtype) -> None:
    stock = make(**({"initializer_range": 0.1} if make is zoo.longformer else {"init_std": 0.1})).to(dtype)
    kind = type(stock).__name__
    zoo.assert_same(*_pair(stock), _batch(kind, 24), 24, **ALL)


def test_autocast() -> None:
    def run(*args: Any, **asked: bool) -> zoo.Results:
        with torch.autocast("cpu", torch.bfloat16):
            return zoo.results(*args, **asked)

    stock = zoo.longformer("LongformerForMaskedLM", initializer_range=0.1)
    zoo.assert_same(*_pair(stock), _batch("LongformerForMaskedLM", 24), 24, run=run, **ALL)


@pytest.mark.parametrize("reentrant", [True, False])
@pytest.mark.parametrize("kind", ["LongformerForMaskedLM", "LEDForConditionalGeneration"])
def test_gradient_checkpointing(kind: str, reentrant: bool) -> None:
    stock = _stock(kind)
    patched, _ = _pair(stock)
    patched.train()
    enable = getattr(patched, "activation_checkpointing_enable", patched.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    batch = {**_batch(kind, 24), **({"use_cache": False} if kind.startswith("LED") else {})}
    zoo.assert_same(patched, stock, batch, 24)


def test_dropout_is_replayed_by_gradient_checkpointing() -> None:
    patched, _ = _pair(zoo.longformer("LongformerForMaskedLM", attention_probs_dropout_prob=0.3))
    patched.train()
    batch = _batch("LongformerForMaskedLM", 24)

    def gradients() -> list[torch.Tensor]:
        torch.manual_seed(7)
        patched.zero_grad()
        patched(**batch).loss.backward()
        return [x.grad.clone() for x in patched.parameters()]

    plain = gradients()
    enable = getattr(patched, "activation_checkpointing_enable", patched.gradient_checkpointing_enable)
    enable({"use_reentrant": False})
    for got, want in zip(gradients(), plain, strict=True):
        torch.testing.assert_close(got, want)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_length_mask_and_number_of_globals(data: st.DataObject) -> None:
    length = data.draw(st.integers(1, 40), label="length")
    window = data.draw(st.sampled_from([4, 8, 20]), label="window")
    rows = st.lists(st.sampled_from([0, 1, 1, 1]), min_size=length, max_size=length)
    marks = st.lists(st.sampled_from([0, 0, 0, 1]), min_size=length, max_size=length)
    batch: dict[str, Any] = {"input_ids": zoo.tokens(2, length)}
    if data.draw(st.booleans(), label="padding"):
        batch["attention_mask"] = torch.tensor([data.draw(rows), data.draw(rows)])
    if data.draw(st.booleans(), label="globals"):
        batch["global_attention_mask"] = torch.tensor([data.draw(marks), data.draw(marks)])
    zoo.assert_same(*_pair(zoo.longformer(attention_window=window)), batch, length, **ALL)


@pytest.mark.parametrize("make", [zoo.longformer, zoo.led])
@pytest.mark.parametrize("both", [False, True], ids=["code 2", "code 2 and a global mask"])
def test_an_attention_mask_that_carries_twos(make: Any, both: bool) -> None:
    stock = make()
    batch = _batch(type(stock).__name__, 24)
    batch["attention_mask"][0, 3] = batch["attention_mask"][0, 0] = 2
    if not both:
        del batch["global_attention_mask"]
    zoo.assert_same(*_pair(stock), batch, 24, **ALL)


def test_embeddings_instead_of_tokens() -> None:
    stock = zoo.longformer()
    batch = {"inputs_embeds": torch.randn(4, 24, 32), **zoo.masks(24), "position_ids": torch.arange(24)[None]}
    zoo.assert_same(*_pair(stock), batch, 24, **ALL)
    encoder = zoo.led().led.encoder
    del batch["position_ids"]
    zoo.assert_same(*_pair(encoder), batch, 24, **ALL)


@pytest.mark.parametrize("make", [zoo.longformer, lambda: zoo.led().led.encoder], ids=["longformer", "led"])
def test_tuples_have_the_same_layout(make: Any) -> None:
    patched, stock = _pair(make())
    batch = {"input_ids": zoo.tokens(4, 24), **zoo.masks(24)}
    for asked in ({}, {"output_hidden_states": True}, ALL):
        want, got = (model(**batch, **asked, return_dict=False) for model in (stock, patched))
        assert len(got) == len(want)
        assert [type(x) for x in got] == [type(x) for x in want]
    for model in (patched, stock):
        model.config.return_dict = False
        assert isinstance(model(**batch), tuple)


@pytest.mark.parametrize("mode", [{}, {"num_beams": 3}], ids=["greedy", "beams"])
@pytest.mark.parametrize("given", [("attention_mask",), ("attention_mask", "global_attention_mask")], ids=len)
def test_led_generates_the_same(given: tuple[str, ...], mode: dict[str, Any]) -> None:
    patched, stock = _pair(zoo.led())
    masks = zoo.masks(24)
    batch = {"input_ids": zoo.tokens(4, 24), **{name: masks[name] for name in given}, **mode}
    want, got = (model.generate(**batch, max_new_tokens=5, do_sample=False) for model in (stock, patched))
    assert torch.equal(got, want)


def test_a_global_token_of_led_reaches_what_it_writes() -> None:
    patched, _ = _pair(zoo.led())
    batch = {"input_ids": zoo.tokens(4, 24), "decoder_input_ids": zoo.tokens(4, 3)}
    marked = zoo.masks(24)["global_attention_mask"]
    got, other = (patched(**batch, global_attention_mask=mask).logits for mask in (marked, marked * 0))
    assert not torch.allclose(got[0], other[0], atol=1e-3)


@pytest.mark.parametrize("length", [1, 3, 9, 30])
def test_mixed_windows_that_stock_cannot_run(length: int) -> None:
    """Stock needs every length padded to a common multiple; given one, both agree."""
    stock = zoo.longformer(attention_window=[8, 12])
    patched, _ = _pair(stock)
    ids = zoo.tokens(2, length)
    padded = torch.nn.functional.pad(ids, (0, 48 - length), value=zoo.PAD)
    want = stock(padded, attention_mask=(padded != zoo.PAD).long()).last_hidden_state[:, :length]
    torch.testing.assert_close(patched(ids).last_hidden_state, want, atol=2e-5, rtol=0)


@pytest.mark.parametrize("where", ["input_ids", "inputs_embeds"])
def test_both_or_neither_input_is_an_error(where: str) -> None:
    for model in (zoo.longformer(), zoo.led().led.encoder):
        lf.patch(model)
        with pytest.raises(ValueError, match="input_ids or inputs_embeds: exactly one wanted"):
            model(input_ids=zoo.tokens(1, 4), inputs_embeds=torch.zeros(1, 4, 32))
        with pytest.raises(ValueError, match="input_ids or inputs_embeds: exactly one wanted"):
            model()


def test_without_any_global_the_global_projections_are_not_used() -> None:
    patched, _ = _pair(zoo.longformer("LongformerForMaskedLM"))
    batch = {"input_ids": zoo.tokens(2, 24), "global_attention_mask": torch.zeros(2, 24, dtype=torch.long)}
    patched(**batch, labels=batch["input_ids"]).loss.backward()
    used = {name for name, x in patched.named_parameters() if x.grad is not None}
    assert not any("_global" in name for name in used)
    assert any("query" in name for name in used)


def test_layerdrop_leaves_layers_out() -> None:
    model = zoo.led("LEDModel", encoder_layerdrop=1.0).encoder
    lf.patch(model)
    output = model.train()(zoo.tokens(1, 8), output_attentions=True)
    assert output.attentions == (None, None)
