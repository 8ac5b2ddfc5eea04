"""The heads of the paper's tasks (section 6 and appendix D)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.utils.generic import ModelOutput

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.models.reader import Reader

NEVER = -1  # pads positions and labels


@dataclass
class Scores(ModelOutput):
    """loss [], and logits [questions, candidates], -inf where there is no candidate."""

    loss: Tensor | None = None
    logits: Tensor | None = None


class CandidateScorer(Reader):
    """One logit for each candidate's mark, combined over the chunks of a question (WikiHop)."""

    def add_head(self, width: int, settings: dict[str, Any]) -> None:
        if settings.get("over_chunks") not in ("average", "sum"):
            raise RecipeError(f"over_chunks: average or sum wanted, got {settings.get('over_chunks')!r}")
        self.averages = settings["over_chunks"] == "average"
        self.score = nn.Linear(width, 1, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        global_attention_mask: Tensor,
        candidates: Tensor,
        question: Tensor,
        labels: Tensor | None = None,
    ) -> Scores:
        """Score candidates.

        Args:
            input_ids, attention_mask, global_attention_mask: int [chunks, N].
            candidates: int [chunks, candidates], positions of their marks, -1 for none.
            question: int [chunks], to which question each chunk belongs, 0, 0, 1, ...
            labels: int [questions], the right candidate; -1 if there is none, which has no loss.
        """
        hidden = self.encode(input_ids, attention_mask, global_attention_mask)
        marks = hidden.gather(1, candidates.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[2]))
        each = self.score(marks)[..., 0].float()
        count = int(labels.shape[0]) if labels is not None else int(question.max()) + 1
        total = each.new_zeros(count, each.shape[1]).index_add(0, question, each)
        if self.averages:
            total = total / torch.bincount(question, minlength=count)[:, None]
        absent = torch.zeros_like(total, dtype=torch.bool)
        absent[question] = candidates == NEVER
        loss = None if labels is None else _cross_entropy(total.masked_fill(absent, -torch.inf), labels)
        return Scores(loss=loss, logits=total.masked_fill(absent, -torch.inf))


def _cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labels that are there; 0 if none is."""
    known = labels != NEVER
    safe = torch.where(known[:, None], logits, 0.0)  # rows without a label: no infinities
    each = nn.functional.cross_entropy(safe, labels.clamp(min=0), reduction="none")
    return (each * known).sum() / known.sum().clamp(min=1)


@dataclass
class SpanScores(ModelOutput):
    """loss [], and logits [rows, N] of the first and of the last token of an answer."""

    loss: Tensor | None = None
    starts: Tensor | None = None
    ends: Tensor | None = None


class SpanReader(Reader):
    """The start and the end of an answer, with a loss over all its occurrences (TriviaQA)."""

    def add_head(self, width: int, settings: dict[str, Any]) -> None:
        self.span = nn.Linear(width, 2)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        global_attention_mask: Tensor,
        gold_starts: Tensor | None = None,
        gold_ends: Tensor | None = None,
    ) -> SpanScores:
        """Score spans.

        Args:
            input_ids, attention_mask, global_attention_mask: int [rows, N].
            gold_starts, gold_ends: int [rows, spans], positions, -1 for none. Rows without any have no loss.
        """
        hidden = self.encode(input_ids, attention_mask, global_attention_mask)
        starts, ends = _span_logits(self.span, hidden, attention_mask)
        loss = None
        if gold_starts is not None and gold_ends is not None:
            loss = (any_of(starts, gold_starts) + any_of(ends, gold_ends)) / 2
        return SpanScores(loss=loss, starts=starts, ends=ends)


def _span_logits(layer: nn.Module, hidden: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
    logits = layer(hidden).float().masked_fill(attention_mask[..., None] == 0, -torch.inf)
    return logits[..., 0], logits[..., 1]


def any_of(logits: Tensor, gold: Tensor) -> Tensor:
    """-log of the probability that one of the gold positions is chosen, the mean over rows that have one.

    That is -(log-sum-exp of the gold logits - log-sum-exp of all), the "or" loss of Clark and Gardner 2018.

    Args:
        logits: float [rows, N].
        gold: int [rows, spans], positions, each counted once however often it is named, -1 for none.
    """
    is_gold = torch.zeros(logits.shape[0], logits.shape[1] + 1, dtype=torch.bool, device=logits.device)
    is_gold = is_gold.scatter(1, torch.where(gold < 0, logits.shape[1], gold), True)[:, :-1]
    known = is_gold.any(1)
    chosen = torch.where(is_gold | ~known[:, None], logits, -torch.inf)
    each = logits.logsumexp(1) - chosen.logsumexp(1)
    return torch.where(known, each, 0.0).sum() / known.sum().clamp(min=1)


@dataclass
class EvidenceScores(ModelOutput):
    """loss [], spans as in SpanScores, logits of kinds [rows, 3], of paragraphs and sentences [rows, ...]."""

    loss: Tensor | None = None
    starts: Tensor | None = None
    ends: Tensor | None = None
    kinds: Tensor | None = None
    paragraphs: Tensor | None = None
    sentences: Tensor | None = None


class EvidenceReader(Reader):
    """Span, kind of answer at the first token, evidence at marks of paragraphs and sentences (HotpotQA)."""

    def add_head(self, width: int, settings: dict[str, Any]) -> None:
        self.span = nn.Linear(width, 2)
        self.kind = nn.Linear(width, 3)
        self.paragraph, self.sentence = _two_layers(width), _two_layers(width)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        global_attention_mask: Tensor,
        titles: Tensor,
        marks: Tensor,
        gold_starts: Tensor | None = None,
        gold_ends: Tensor | None = None,
        gold_kinds: Tensor | None = None,
        gold_paragraphs: Tensor | None = None,
        gold_sentences: Tensor | None = None,
    ) -> EvidenceScores:
        """Score everything.

        Args:
            input_ids, attention_mask, global_attention_mask: int [rows, N].
            titles, marks: int [rows, paragraphs] and [rows, sentences], positions, -1 for none.
            gold_starts, gold_ends: as in SpanReader.
            gold_kinds: int [rows]: 0 a span, 1 yes, 2 no.
            gold_paragraphs, gold_sentences: int, 1 where they are evidence, shaped as titles and marks.
        """
        hidden = self.encode(input_ids, attention_mask, global_attention_mask)
        starts, ends = _span_logits(self.span, hidden, attention_mask)
        kinds = self.kind(hidden[:, 0]).float()
        paragraphs, sentences = _at(self.paragraph, hidden, titles), _at(self.sentence, hidden, marks)
        loss = None
        if gold_kinds is not None and gold_starts is not None and gold_ends is not None:
            assert gold_paragraphs is not None and gold_sentences is not None, "labels come together"
            loss = (any_of(starts, gold_starts) + any_of(ends, gold_ends)) / 2
            loss = loss + nn.functional.cross_entropy(kinds, gold_kinds)
            loss = (
                loss
                + _binary(paragraphs, gold_paragraphs, titles)
                + _binary(sentences, gold_sentences, marks)
            )
        return EvidenceScores(loss, starts, ends, kinds, paragraphs, sentences)


def _two_layers(width: int) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, 1))


def _at(layer: nn.Module, hidden: Tensor, positions: Tensor) -> Tensor:
    """Logits [rows, positions]; what they are where no position is must not be looked at."""
    found = hidden.gather(1, positions.clamp(min=0)[..., None].expand(-1, -1, hidden.shape[2]))
    return layer(found)[..., 0].float()


def _binary(logits: Tensor, gold: Tensor, positions: Tensor) -> Tensor:
    """Binary cross-entropy, the mean over the positions that are there."""
    there = positions != NEVER
    each = nn.functional.binary_cross_entropy_with_logits(logits, gold.to(logits.dtype), reduction="none")
    return (each * there).sum() / there.sum().clamp(min=1)
