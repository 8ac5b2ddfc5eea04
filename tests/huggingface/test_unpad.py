"""Encoders without padding: real tokens, loss and gradients as with it, whatever the masks are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
import lf_huggingface
from tests.huggingface import families, zoo

MASKS = {
    "right": [[1] * 19 + [0] * 14, [1] * 33, [1] * 7 + [0] * 26],
    "left": [[0] * 14 + [1] * 19, [1] * 33, [0] * 26 + [1] * 7],
    "holes": [[1] * 5 + [0] * 4 + [1] * 10 + [0] * 14, [0, 1, 0] * 11, [1] * 33],
    "an empty example": [[0] * 33, [1] * 20 + [0] * 13, [1] * 33],
    "nothing but padding": [[0] * 33] * 3,
    "none": [[1] * 33] * 3,
}
PATTERNS = [None, "window(3, 2)", "window(3, 2) | global(0, 20)", "window(2, 2, dilation=3)"]


def _batch(mask: str, generator: torch.Generator) -> dict[str, Tensor]:
    attention_mask = torch.tensor(MASKS[mask])
    tokens = torch.randint(5, 50, attention_mask.shape, generator=generator)
    is_global = torch.rand(attention_mask.shape, generator=generator) < 0.1
    return {"input_ids": tokens, "attention_mask": attention_mask, "global_attention_mask": is_global.long()}


def _run(model: nn.Module, batch: dict[str, Tensor]) -> tuple[Any, dict[str, Tensor]]:
    """Outputs, and the gradients of a loss that real tokens alone have."""
    model.zero_grad()
    out = model(**batch, output_hidden_states=True)
    real = batch["attention_mask"][..., None]
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(out.last_hidden_state.shape, generator=generator, dtype=out.last_hidden_state.dtype)
    (out.last_hidden_state * real * weights).sum().backward()
    return out, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("mask", MASKS)
def test_real_tokens_and_gradients_are_those_of_the_padded_batch(mask: str, pattern: str | None) -> None:
    model = zoo.longformer().double().eval()
    batch = _batch(mask, torch.Generator().manual_seed(3))
    with lf.patch(model, pattern):
        wanted, grads = _run(model, batch)
    before = {name: type(module) for name, module in model.named_modules()}
    with lf.patch(model, pattern, unpad=True):
        found, own = _run(model, batch)
    assert {name: type(module) for name, module in model.named_modules()} == before
    real = batch["attention_mask"][..., None]
    for got, right in zip(
        (found.last_hidden_state, *found.hidden_states),
        (wanted.last_hidden_state, *wanted.hidden_states),
        strict=True,
    ):
        torch.testing.assert_close(got * real, right * real, rtol=1e-9, atol=1e-9)
    for name, grad in grads.items():
        torch.testing.assert_close(
            own.get(name, torch.zeros_like(grad)), grad, rtol=1e-8, atol=1e-8, msg=name
        )


def test_layers_run_over_real_tokens_alone() -> None:
    model, lengths = zoo.longformer(), []
    model.encoder.layer[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape))
    batch = _batch("right", torch.Generator().manual_seed(3))
    with lf.patch(model, unpad=True):
        model(**batch)
        model(**batch, output_attentions=True)  # weights have their place in the batch
        model(**_batch("none", torch.Generator()))
    assert [shape[:2] for shape in lengths] == [(1, 59), (3, 33), (3, 33)]


def test_leds_encoder_as_well() -> None:
    model = zoo.led().double().eval()
    batch = _batch("right", torch.Generator().manual_seed(3))
    with lf.patch(model):
        wanted = model(**batch, decoder_input_ids=batch["input_ids"][:, :5]).logits
    with lf.patch(model, unpad=True):
        found = model(**batch, decoder_input_ids=batch["input_ids"][:, :5]).logits
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    "make", [zoo.big_bird, zoo.longt5, zoo.pegasus_x], ids=lambda make: str(make.__name__)
)
def test_a_model_that_reads_its_padding_is_refused(make: Any) -> None:
    model = make()
    with pytest.raises(lf.PatchError, match="unpad: a model whose layers can do without padding"):
        lf.patch(model, unpad=True)
    lf.patch(model).undo()


def test_a_layer_alone_is_refused() -> None:
    with pytest.raises(lf.PatchError, match=r"unpad: .* no module that reads the masks of all its layers"):
        lf.patch(zoo.longformer().encoder.layer[0], unpad=True)


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("pattern", [None, "window(3, 2)", "window(2, 2) | global(0)"])
@pytest.mark.parametrize("family", list(families.ENCODERS))
def test_configured_encoders_as_well(family: str, pattern: str | None, mask: str) -> None:
    settings = {} if pattern is None else {"lf_attention": pattern}
    model = families.build(family, **settings).double().eval()
    batch = _batch(mask, torch.Generator().manual_seed(3))
    del batch["global_attention_mask"]
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)

    def run() -> tuple[Any, list[Tensor]]:
        model.zero_grad()
        out = model(**batch, labels=labels, output_hidden_states=True)
        out.loss.backward()
        return out, [p.grad.clone() for p in model.parameters() if p.grad is not None]

    wanted, grads = run()
    with lf_huggingface.unpadded(model):
        found, own = run()
        copy.deepcopy(model)
    again, _ = run()
    assert torch.equal(again.logits, wanted.logits)
    real = batch["attention_mask"][..., None]
    if mask != "nothing but padding":
        torch.testing.assert_close(found.loss, wanted.loss, rtol=1e-9, atol=1e-9)
        for got, right in zip(own, grads, strict=True):
            torch.testing.assert_close(got, right, rtol=1e-8, atol=1e-8)
    pairs = zip((found.logits, *found.hidden_states), (wanted.logits, *wanted.hidden_states), strict=True)
    for got, right in pairs:
        torch.testing.assert_close(got * real, right * real, rtol=1e-9, atol=1e-9)


def test_a_pooler_reads_the_first_token_of_every_example() -> None:
    config = transformers.BertConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    model = transformers.AutoModel.from_config(config, attn_implementation="lf").double().eval()
    batch = _batch("right", torch.Generator().manual_seed(3))
    del batch["global_attention_mask"]
    wanted = model(**batch).pooler_output
    lengths: list[Any] = []
    model.encoder.layer[0].register_forward_pre_hook(lambda module, args: lengths.append(args[0].shape[:2]))
    with lf_huggingface.unpadded(model):
        torch.testing.assert_close(model(**batch).pooler_output, wanted)
        torch.testing.assert_close(model(**batch, return_dict=False)[1], wanted)
    assert lengths == [(1, 59)] * 2


def test_what_cannot_be_unpadded_is_an_error() -> None:
    with pytest.raises(lf.PatchError, match="an encoder with embeddings of its own"):
        lf_huggingface.unpadded(families.build("Mistral"))
    model = families.build("BERT")
    handle = lf_huggingface.unpadded(model)
    with pytest.raises(lf.PatchError, match="not unpadded yet"):
        lf_huggingface.unpadded(model)
    handle.undo()
    with pytest.raises(lf.PatchError, match="undo: the model runs with its padding already"):
        handle.undo()


def test_a_configured_model_is_told_its_way() -> None:
    with pytest.raises(lf.PatchError, match=r"unpad: .* `lf_huggingface.unpadded\(model\)`"):
        lf.patch(families.build("BERT"), unpad=True)
