"""Bits per character with overlapping sequences, against one sequence for each character."""

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rich.progress import Progress

from lf_backend.errors import LFError
from lf_fairseq.recipes import evaluation
from tests.fairseq.test_longformer_lm import SMALL, build


@given(st.integers(1, 300), st.integers(1, 80), st.data())
def test_every_character_is_scored_once_with_as_much_context_as_there_is(characters, length, data):
    step = data.draw(st.integers(1, length))
    found = list(evaluation.spans(characters, length, step))
    scored = [index for span in found for index in range(span.scored, span.stop)]
    assert scored == list(range(characters))
    for span in found[1:]:
        assert span.stop - span.scored <= step
        assert span.stop - span.start == min(length, span.stop)
        assert span.scored - span.start >= length - step
    assert found[0].start == found[0].scored == 0
    assert found[0].stop == min(length, characters)


def test_the_paper_s_sequences():
    first, second, *_, last = evaluation.spans(5_000_000, 32_256, 512)
    assert (first.start, first.scored, first.stop) == (0, 0, 32_256)
    assert (second.start, second.scored, second.stop) == (512, 32_256, 32_768)
    assert last.stop == 5_000_000


@pytest.mark.parametrize(
    ("length", "step", "batch"), [(12, 4, 1), (12, 4, 3), (9, 9, 2), (64, 7, 4), (5, 1, 8)]
)
def test_bits_are_those_of_one_sequence_for_each_character(length, step, batch):
    model = build(**SMALL).double()
    text = torch.randint(4, 24, (50,), generator=torch.Generator().manual_seed(1))
    start = 2
    with Progress(disable=True) as progress:
        found = evaluation.score(model, text, start, length, step, batch, progress)
    bits = 0.0
    for at in range(50):
        # the sequence that scores it ends at the first multiple of `step` beyond the first `length`
        end = length if at < length else length + math.ceil((at + 1 - length) / step) * step
        end = min(end, 50)
        begin = max(end - length, 0)
        context = torch.cat((torch.tensor([start]), text))[begin : at + 1]
        with torch.no_grad():
            logits = model(context[None])[0][0, -1].double()
        bits -= logits.log_softmax(-1)[text[at]].item() / math.log(2)
    assert found.characters == 50
    assert found.bits == pytest.approx(bits, rel=1e-5)
    assert found.per_character == pytest.approx(bits / 50, rel=1e-5)


@pytest.mark.parametrize(("length", "step"), [(8, 0), (8, 9), (0, 0)])
def test_a_step_beyond_the_sequence_is_refused(length, step):
    with pytest.raises(
        LFError, match=f"--step: 1 <= step <= length wanted, got step {step}, length {length}"
    ):
        list(evaluation.spans(10, length, step))
    with pytest.raises(LFError, match="characters: at least one wanted, got 0"):
        list(evaluation.spans(0, 8, 8))


def test_absolute_positions_bound_the_length():
    short = SimpleNamespace(max_positions=lambda: 64)
    with pytest.raises(LFError, match="--length: <= 64, the model's positions, wanted, got 65"):
        evaluation.score(short, torch.arange(9), 2, 65, 5, 1, Progress(disable=True))


def test_checkpoints_that_are_none_are_refused(tmp_path, monkeypatch):
    with pytest.raises(LFError, match=r"checkpoint: a file wanted, got .*none\.pt"):
        evaluation.load(tmp_path / "none.pt", None)
    path = tmp_path / "some.pt"
    path.touch()
    translation = SimpleNamespace(encoder=None, decoder=None)
    monkeypatch.setattr(
        evaluation.checkpoint_utils,
        "load_model_ensemble_and_task",
        lambda *a, **k: ([translation], None, None),
    )
    with pytest.raises(LFError, match="checkpoint: one of a language model wanted, got SimpleNamespace"):
        evaluation.load(path, None)
