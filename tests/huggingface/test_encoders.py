"""Patched encoders of blocks and local windows: BigBird, BigBird-Pegasus, LongT5 and PegasusX."""

from __future__ import annotations

import copy
import logging
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import lf_backend as lf
from tests.huggingface import zoo

MAKES = {
    "BigBird": zoo.big_bird,
    "BigBird-Pegasus": zoo.bigbird_pegasus,
    "LongT5": zoo.longt5,
    "PegasusX": zoo.pegasus_x,
}
LENGTHS = (1, 7, 30, 36, 37, 66)  # BigBird's blocks of 4: in full up to 36


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Upstream's warnings about short and padded inputs."""
    caplog.set_level(logging.ERROR, logger="transformers")


def batch(model: Any, length: int) -> dict[str, torch.Tensor]:
    """Two examples, the second padded, and the decoder's tokens."""
    mask = torch.ones(2, length, dtype=torch.long)
    mask[1, length - length // 4 :] = 0
    given = {"input_ids": zoo.tokens(2, length), "attention_mask": mask}
    if model.config.is_encoder_decoder:
        given["decoder_input_ids"] = zoo.tokens(2, 4)
    return given


def results(model: nn.Module, given: dict[str, Any], length: int) -> zoo.Results:
    """The last hidden state, of an encoder where it is a token, and all gradients."""
    model.zero_grad()
    output = model(**given).last_hidden_state
    if "decoder_input_ids" not in given:
        output = output * given["attention_mask"][..., None]
    output.double().square().mean().backward()
    grads = {f"grad {name}": x.grad for name, x in model.named_parameters() if x.grad is not None}
    return {"output": output.detach(), **grads}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("family", MAKES)
def test_a_patched_encoder_is_upstreams(family: str, length: int, training: bool) -> None:
    stock = MAKES[family]().train(training)
    patched = copy.deepcopy(stock)
    lf.patch(patched)
    zoo.assert_same(patched, stock, batch(stock, length), length, run=results)


@pytest.mark.parametrize("training", [False, True])
def test_a_length_that_big_bird_has_another_plan_for(training: bool) -> None:
    """1,024 is one; its draws repeat what the window shows, and then count twice."""
    stock = zoo.big_bird(block_size=32, max_position_embeddings=1024, num_hidden_layers=1).train(training)
    patched = copy.deepcopy(stock)
    lf.patch(patched)
    zoo.assert_same(patched, stock, batch(stock, 1024), 1024, run=results)


def test_big_bird_without_random_blocks_which_upstream_cannot_run() -> None:
    model = zoo.big_bird(num_random_blocks=0)
    same = copy.deepcopy(model)
    lf.patch(model)
    lf.patch(same, lf.sparsity.block_local(4, 1) | lf.Global(*range(4), *range(48, 52)))
    given = batch(model, 52)
    torch.testing.assert_close(model(**given).last_hidden_state, same(**given).last_hidden_state)


WIDE = {
    "BigBird": ("window(None, None)", {"attention_type": "original_full"}),
    "BigBird-Pegasus": ("window(None, None)", {"attention_type": "original_full"}),
    "LongT5": ("window(70, 70)", {"local_radius": 70}),
    "PegasusX": ("window(None, None)", {"block_size": 512}),
}


@pytest.mark.parametrize("family", MAKES)
def test_a_pattern_of_the_users_takes_the_place_of_the_models(family: str) -> None:
    pattern, same = WIDE[family]
    patched, stock = (
        MAKES[family](stagger_local_blocks=False),
        MAKES[family](stagger_local_blocks=False, **same),
    )
    stock.load_state_dict(patched.state_dict())
    lf.patch(patched, pattern)
    zoo.assert_same(patched, stock, batch(stock, 66), 66, run=results)


@pytest.mark.parametrize("family", MAKES)
def test_undo_gives_the_untouched_model_back(family: str) -> None:
    model = MAKES[family]()
    before = [(path, type(x), sorted(vars(x))) for path, x in model.named_modules()]
    given = batch(model, 40)
    want, keys = model(**given).last_hidden_state, list(model.state_dict())
    patch = lf.patch(model)
    assert list(model.state_dict()) == keys
    model(**given)
    model(**batch(model, 8))
    patch.undo()
    assert [(path, type(x), sorted(vars(x))) for path, x in model.named_modules()] == before
    assert torch.equal(model(**given).last_hidden_state, want)


def test_a_short_input_does_not_change_big_bird_for_the_next() -> None:
    model = zoo.big_bird()
    lf.patch(model)
    given = batch(model, 60)
    want = model(**given).last_hidden_state
    model(**batch(model, 10))
    assert model.attention_type == "block_sparse"
    assert torch.equal(model(**given).last_hidden_state, want)


def test_training_big_bird_leaves_numpys_generator_alone() -> None:
    model = zoo.big_bird(block_size=2).train()  # blocks that no other test has drawn for
    lf.patch(model)
    np.random.seed(5)
    want = np.random.random()
    np.random.seed(5)
    model(**batch(model, 40))
    assert np.random.random() == want


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("length", [20, 60])
@pytest.mark.parametrize("family", MAKES)
def test_a_layer_run_again_by_a_gradient_checkpoint(family: str, length: int, reentrant: bool) -> None:
    model = MAKES[family]().train()
    lf.patch(model)
    given = batch(model, length)
    want = results(model, given, length)
    enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable({"use_reentrant": reentrant})
    got = results(model, given, length)
    assert got.keys() == want.keys()
    for name, x in want.items():
        torch.testing.assert_close(got[name], x, msg=name)


def test_heads_model_and_generation_run_patched() -> None:
    model = zoo.longt5("LongT5ForConditionalGeneration")
    given = {"input_ids": zoo.tokens(2, 40)}
    asked: dict[str, Any] = {"max_new_tokens": 5, "do_sample": False, "decoder_start_token_id": 0}
    want = model.generate(**given, **asked)
    with lf.patch(model):
        assert torch.equal(model.generate(**given, **asked), want)
    answers = zoo.big_bird("BigBirdForQuestionAnswering")
    given = {**batch(answers, 50), "question_lengths": torch.tensor([[4], [5]])}
    stock = answers(**given).start_logits
    with lf.patch(answers):
        torch.testing.assert_close(answers(**given).start_logits, stock)


@pytest.mark.parametrize("family", ["LongT5", "PegasusX"])
def test_dropout_acts_in_training(family: str) -> None:
    names = {"LongT5": {"dropout_rate": 0.5}, "PegasusX": {"attention_dropout": 0.5}}
    model = MAKES[family](**names[family])
    lf.patch(model)
    given = batch(model, 30)
    torch.manual_seed(0)
    first = model.train()(**given).last_hidden_state
    assert not torch.equal(first, model(**given).last_hidden_state)
    assert torch.equal(model.eval()(**given).last_hidden_state, model(**given).last_hidden_state)


@pytest.mark.parametrize("family", MAKES)
def test_weights_are_refused_by_name(family: str) -> None:
    model = MAKES[family]()
    lf.patch(model)
    with pytest.raises(lf.UnsupportedError, match="output_attentions: False wanted of a patched"):
        model(**batch(model, 40), output_attentions=True)


def test_what_does_not_fit_is_refused_by_name() -> None:
    with pytest.raises(lf.PatternError, match="one window with a bound, and nothing else, wanted for LongT5"):
        lf.patch(zoo.longt5(), "window(5, 5) | global(0)")
    with pytest.raises(lf.PatternError, match="without global positions wanted for PegasusX"):
        lf.patch(zoo.pegasus_x(), "window(5, 5) | global(0)")
    with pytest.raises(lf.PatternError, match="one per layer wanted, 2 layers, got 3 patterns"):
        lf.patch(zoo.pegasus_x(), ["window(5, 5)"] * 3)
    with pytest.raises(lf.PatchError, match="LongT5TransientGlobalAttention: its side tokens have a bias"):
        lf.patch(zoo.longt5(encoder_attention_type="transient-global"))
    with pytest.raises(lf.PatchError, match="BigBirdSelfAttention: attention_type='original_full'"):
        lf.patch(zoo.big_bird(attention_type="original_full"))
    model = zoo.big_bird()
    lf.patch(model)
    with pytest.raises(lf.UnsupportedError, match="set_attention_type: not of a patched BigBird wanted"):
        model.set_attention_type("original_full")


def test_patterns_per_layer_and_the_report() -> None:
    patch = lf.patch(zoo.longt5(), ["window(2, 2)", "window(3, 3, dilation=2)"])
    assert [str(row.pattern) for row in patch.report.rows] == ["window(2, 2)", "window(3, 3, dilation=2)"]
    assert "a decoder stays dense and untouched" in str(patch.report)
    assert "first, the last and random blocks as upstream has them" in str(lf.patch(zoo.big_bird()).report)
