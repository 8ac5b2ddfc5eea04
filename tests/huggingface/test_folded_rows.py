"""The rows of few global tokens are those of keys and values that are projected for every token."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import peft
import pytest
import torch
import transformers
from torch import Tensor, nn

import lf_backend as lf
from lf_huggingface.patch import folded_rows

WIDTH, HEADS, LENGTH = 64, 4, 40  # so that eight global tokens are few
PATTERNS = ["window(5, 5)", "window(5, 5) | global(3, 7)", "(window(6, 0) | global(0)) & causal()"]


def _model(pattern: str, dropout: float = 0.0, unpad: bool = False) -> Any:
    torch.manual_seed(0)
    config = transformers.LongformerConfig(
        vocab_size=40, hidden_size=WIDTH, num_hidden_layers=2, num_attention_heads=HEADS,
        intermediate_size=64, attention_window=10, max_position_embeddings=LENGTH + 2,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=dropout,
    )  # fmt: skip
    model = transformers.LongformerModel(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    lf.patch(model, lf.parse(pattern), unpad=unpad)
    return model


def _batch(counts: tuple[int, ...], padded: int) -> dict[str, Tensor]:
    attention, marks = torch.ones(2, len(counts), LENGTH, dtype=torch.long)
    marks.zero_()
    for row, count in enumerate(counts):
        marks[row, torch.randperm(LENGTH - padded)[:count]] = 1
    attention[0, LENGTH - padded :] = 0
    ids = torch.randint(5, 40, attention.shape)
    return {"input_ids": ids, "attention_mask": attention, "global_attention_mask": marks}


@pytest.fixture
def folds(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often rows were folded, counted."""
    calls: list[int] = []
    write = folded_rows.write

    def counted(*arguments: Any) -> Tensor:
        calls.append(1)
        return write(*arguments)

    monkeypatch.setattr(folded_rows, "write", counted)
    yield calls


def _results(model: Any, batch: dict[str, Tensor], upstream: Tensor) -> list[Tensor]:
    torch.manual_seed(1)  # dropout draws
    model.zero_grad()
    out = model(**batch).last_hidden_state
    out.backward(upstream)
    grads = [x.grad for x in model.parameters() if x.grad is not None]
    return [out.detach(), *(x.clone() for x in grads)]


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("counts", [(1, 1), (0, 3), (3, 2)], ids=str)
@pytest.mark.parametrize("padded", [0, 9])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("unpad", [False, True])
def test_as_with_keys_for_every_token(
    pattern: str,
    counts: tuple[int, ...],
    padded: int,
    dropout: float,
    unpad: bool,
    folds: list[int],
    monkeypatch: Any,
) -> None:
    model = _model(pattern, dropout, unpad).double()
    batch, upstream = _batch(counts, padded), torch.randn(2, LENGTH, WIDTH, dtype=torch.float64)
    upstream = upstream * batch["attention_mask"][..., None]
    found = _results(model, batch, upstream)
    assert len(folds) == 2
    monkeypatch.setattr(folded_rows.Projections, "pay", lambda self, rows, like: False)
    wanted = _results(model, batch, upstream)
    assert len(folds) == 2 and len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_scores_are_float32(dtype: torch.dtype, folds: list[int], monkeypatch: Any) -> None:
    """Half precision loses no more than by projecting every token."""
    model = _model("window(5, 5)").eval()
    batch = _batch((3, 2), 4)
    with torch.no_grad():
        exact = copy.deepcopy(model).double()(**batch).last_hidden_state
        model.to(dtype)
        errors = []
        for pays in (True, False):
            monkeypatch.setattr(folded_rows.Projections, "pay", lambda self, rows, like, pays=pays: pays)
            errors.append((model(**batch).last_hidden_state - exact).abs().mean().item())
    assert folds and errors[0] <= 1.2 * errors[1]


def test_padding_may_hold_anything(folds: list[int]) -> None:
    model = _model("window(5, 5)").eval()
    layer = model.encoder.layer[0].attention.self
    x, padded = torch.randn(1, LENGTH, WIDTH), torch.arange(LENGTH)[None] >= LENGTH - 6
    marks = torch.arange(LENGTH)[None] == 0
    wanted = layer(x, None, padded, marks, True)[0]
    found = layer(x.masked_fill(padded[..., None], torch.nan), None, padded, marks, True)[0]
    assert torch.equal(found, wanted) and found.isfinite().all()


def test_many_global_tokens_have_keys_of_their_own(folds: list[int]) -> None:
    model = _model("window(5, 5)").eval()
    model(**_batch((8, 1), 0))
    assert len(folds) == 2
    model(**_batch((9, 1), 0))
    assert len(folds) == 2


def _hooked(model: Any) -> Any:
    for layer in model.encoder.layer:
        layer.attention.self.value_global.register_forward_hook(lambda module, given, out: 2 * out)
    return model


def _adapted(model: Any) -> Any:
    config = peft.LoraConfig(target_modules=["value_global"], init_lora_weights=False)
    return peft.get_peft_model(model, config)


def _with_another_forward(model: Any) -> Any:
    for layer in model.encoder.layer:
        own = layer.attention.self.value_global
        own.forward = lambda x, own=own: 3 * nn.functional.linear(x, own.weight, own.bias)
    return model


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # by peft
@pytest.mark.parametrize("change", [_hooked, _adapted, _with_another_forward])
def test_a_projection_that_is_more_than_its_weight(change: Any, folds: list[int]) -> None:
    model, batch = _model("window(5, 5)").eval(), _batch((2, 2), 0)
    before = model(**batch).last_hidden_state
    assert folds
    folds.clear()
    changed = change(model)(**batch).last_hidden_state
    assert not folds and not torch.allclose(changed, before, atol=1e-3)


def test_weights_of_attention_are_those_of_the_output(folds: list[int]) -> None:
    model, batch = _model("window(5, 5)").eval(), _batch((2, 1), 3)
    found, wanted = model(**batch, output_attentions=True), model(**batch)
    assert found.global_attentions is not None and len(folds) == 2
    torch.testing.assert_close(found.last_hidden_state, wanted.last_hidden_state)
