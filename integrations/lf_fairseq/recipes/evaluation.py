"""Bits per character with overlapping long sequences.

Beltagy et al. 2020, section 4.2.2, after Dai et al. 2019: sequences of `length` start `step` apart, and only
the last `step` characters of each are scored, so that every character but the first has a long context.
The first sequence scores all of its characters, the last one what is left: each is scored exactly once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from fairseq import checkpoint_utils
from rich.progress import Progress
from torch import Tensor

from lf_backend.errors import LFError


@dataclass(frozen=True)
class Span:
    """One sequence: characters start to stop, of which those from `scored` on count."""

    start: int
    scored: int
    stop: int

    @property
    def shape(self) -> tuple[int, int]:
        """Characters, and those that count."""
        return self.stop - self.start, self.stop - self.scored


@dataclass(frozen=True)
class Score:
    """Bits that a model needs for some characters."""

    bits: float
    characters: int

    @property
    def per_character(self) -> float:
        return self.bits / self.characters


def spans(characters: int, length: int, step: int) -> Iterator[Span]:
    """The sequences that score each of some characters once.

    Raises:
        LFError: not 1 <= step <= length, or no character.
    """
    if not 1 <= step <= length:
        raise LFError(f"--step: 1 <= step <= length wanted, got step {step}, length {length}")
    if characters < 1:
        raise LFError(f"characters: at least one wanted, got {characters}")
    scored, stop = 0, min(length, characters)
    while scored < characters:
        yield Span(max(stop - length, 0), scored, stop)
        scored, stop = stop, min(stop + step, characters)


@torch.no_grad()
def score(
    model: Any, tokens: Tensor, start: int, length: int, step: int, batch: int, progress: Progress
) -> Score:
    """Score tokens by a language model of fairseq.

    Args:
        model: put into evaluation mode here.
        tokens: int64 [characters].
        start: the token before the first, which fairseq makes the end of sentence.
        length, step: as in `spans`.
        batch: sequences at a time; only equally long ones share a batch.

    Raises:
        LFError: as in `spans`, or a length that the model's absolute positions do not reach.
    """
    if length > model.max_positions():
        raise LFError(f"--length: <= {model.max_positions()}, the model's positions, wanted, got {length}")
    model.eval()
    device = next(model.parameters()).device
    inputs = torch.cat((tokens.new_tensor([start]), tokens[:-1]))
    bits = 0.0
    found = list(spans(len(tokens), length, step))
    task = progress.add_task("bits per character", total=len(found))
    for (_, counted), alike in groupby(found, key=lambda span: span.shape):
        group = list(alike)
        for at in range(0, len(group), batch):
            some = group[at : at + batch]
            given = torch.stack([inputs[span.start : span.stop] for span in some]).to(device)
            wanted = torch.stack([tokens[span.scored : span.stop] for span in some]).to(device)
            bits += _bits(model, given, wanted, counted)
            progress.advance(task, len(some))
    return Score(bits, len(tokens))


def _bits(model: Any, given: Tensor, wanted: Tensor, counted: int) -> float:
    """Sum the bits of the last `counted` predictions of each row."""
    features, extra = model.extract_features(given)
    logits = model.output_layer(features[:, -counted:])
    log_probabilities = model.get_normalized_probs((logits, extra), log_probs=True, sample=None)
    nats = -log_probabilities.gather(-1, wanted[..., None]).double().sum()
    return float(nats) / math.log(2)


def load(checkpoint: Path, data: Path | None, overrides: dict[str, Any] | None = None) -> tuple[Any, Any]:
    """A language model and its task.

    Args:
        checkpoint: written by fairseq-train.
        data: folder of binarised data, by default the one it was trained on.
        overrides: other values of the checkpoint's configuration, e.g. `{"attention_pattern": ...}`.

    Raises:
        LFError: no such file, or no language model.
    """
    if not checkpoint.is_file():
        raise LFError(f"checkpoint: a file wanted, got {checkpoint}")
    changed = {**(overrides or {}), **({} if data is None else {"data": str(data)})}
    models, _, task = checkpoint_utils.load_model_ensemble_and_task([str(checkpoint)], arg_overrides=changed)
    (model,) = models
    if not hasattr(model, "decoder") or hasattr(model, "encoder"):
        raise LFError(f"checkpoint: one of a language model wanted, got {type(model).__name__}")
    return model, task


def tokens_of(task: Any, split: str, limit: int | None = None) -> Tensor:
    """The tokens of a split in order, int64 [characters]; the first `limit` of them.

    Raises:
        FileNotFoundError: no such split, from fairseq.
    """
    from fairseq.data import data_utils

    prefix = str(Path(task.args.data) / split)
    dataset = data_utils.load_indexed_dataset(prefix, task.dictionary, None)
    if dataset is None:
        raise LFError(f"--split: a split of {task.args.data} wanted, got {split!r}")
    return torch.cat([dataset[index] for index in range(len(dataset))]).long()[:limit]
