"""TriviaQA: the span that answers a question, from a document, with all its occurrences (section 6.1)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes.data.padding import inputs, padded
from lf_huggingface.recipes.data.words import occurrences, spans_of_tokens
from lf_huggingface.recipes.formats import trivia_qa
from lf_huggingface.recipes.metrics import answers
from lf_huggingface.recipes.models.heads import NEVER, SpanReader
from lf_huggingface.recipes.models.reader import load_encoder
from lf_huggingface.recipes.options import Options, option
from lf_huggingface.recipes.task import TRAIN, Batch, Encoded, Task, answered
from lf_huggingface.recipes.tasks.paper import FINE_TUNING, TRIAL

LONGEST_ANSWER, BEST_OF = 30, 20


@dataclass
class TriviaQAOptions(Options):
    """Options of TriviaQA alone, besides those of every task."""

    part: str = option("Which evidence.", "wikipedia", choices=("wikipedia", "web"))
    max_question: int = option("Tokens of a question; a longer one is cut.", 55)
    max_spans: int = option("Occurrences of the answer that the loss is over.", 64)


class TriviaQA(Task[TriviaQAOptions]):
    """[cls] question [sep] document [sep]: one separator between, where RoBERTa's pairs have two."""

    name: ClassVar[str] = "triviaqa"
    kind: ClassVar[type[Options]] = TriviaQAOptions
    best: ClassVar[str] = "f1"
    encoding: ClassVar[frozenset[str]] = Task.encoding | {"part", "max_question", "max_spans"}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {**FINE_TUNING, "epochs": 5.0, "warmup": 1000},
        "large": {},
        "trial": TRIAL,
    }

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        from lf_huggingface.recipes.trial import files

        files.triviaqa(folder, seed)

    def file(self, split: str) -> Path:
        return self.data / "qa" / f"{self.options.part}-{split}.json"

    def records(self, path: Path, *, gold: bool) -> Iterator[trivia_qa.Reading]:
        return trivia_qa.read(path, self.data / "evidence" / self.options.part, gold)

    def encode(self, records: Iterable[trivia_qa.Reading], tokenizer: Any, split: str) -> Iterator[Encoded]:
        examples = self._examples(records, tokenizer)
        return answered(examples, lambda x: bool(x["spans"])) if split == TRAIN else examples

    def _examples(self, records: Iterable[trivia_qa.Reading], tokenizer: Any) -> Iterator[Encoded]:
        most = self.options.max_length
        assert most is not None
        for record in records:
            question = tokenizer(record.question, add_special_tokens=False)["input_ids"][
                : self.options.max_question
            ]
            found = tokenizer(
                record.document, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            document, offsets = found["input_ids"], found["offset_mapping"]
            room = most - len(question) - 3
            if room < 1:
                raise RecipeError(
                    f"{record.id}: a question below --max-length {most} wanted, it takes {len(question)}"
                )
            if len(document) > room and self.options.long == "refuse":
                raise RecipeError(
                    f"{record.id}: at most {room} tokens in {record.name} wanted, got {len(document)}"
                )
            for first in range(0, max(1, len(document)) if self.options.long == "chunk" else 1, room):
                yield self._example(
                    record, question, document[first : first + room], offsets[first : first + room]
                )

    def _example(
        self,
        record: trivia_qa.Reading,
        question: list[int],
        document: list[int],
        offsets: list[tuple[int, int]],
    ) -> Encoded:
        start, end = (offsets[0][0], offsets[-1][1]) if offsets else (0, 0)
        text = record.document[start:end]
        local = [(first - start, last - start) for first, last in offsets]
        spans = occurrences(text, record.aliases, self.options.max_spans)
        return {
            "id": record.id, "name": record.name, "question": question, "document": document, "text": text,
            "offsets": local, "aliases": record.aliases, "spans": list(spans_of_tokens(local, spans)),
            "length": len(question) + len(document) + 3,
        }  # fmt: skip

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        return SpanReader.on(load_encoder(source))

    def load_model(self, folder: Path) -> Any:
        return SpanReader.trained(folder)

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        rows = [[cls, *x["question"], sep, *x["document"], sep] for x in examples]
        made = inputs(rows, [range(len(x["question"]) + 1) for x in examples], tokenizer.pad_token_id)
        at = [len(x["question"]) + 2 for x in examples]
        starts = [[first + before for first, _ in x["spans"]] for x, before in zip(examples, at, strict=True)]
        ends = [[last + before for _, last in x["spans"]] for x, before in zip(examples, at, strict=True)]
        return {**made, "gold_starts": padded(starts, NEVER), "gold_ends": padded(ends, NEVER)}

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        """[text, score] of the best span of each document."""
        found = model(**{k: v for k, v in batch.items() if not k.startswith("gold_")})
        made = []
        for starts, ends, x in zip(found.starts, found.ends, examples, strict=True):
            first = len(x["question"]) + 2
            inside = slice(first, first + len(x["document"]))
            score, span = best_span(starts[inside], ends[inside])
            made.append(
                [
                    "" if span is None else x["text"][x["offsets"][span[0]][0] : x["offsets"][span[1]][1]],
                    score,
                ]
            )
        return made

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        """EM and F1, each the largest over the aliases, in percent; and where the answer was in reach."""
        listed = list(examples)
        chosen = self._chosen(predictions, listed)
        truths = {x["id"]: x["aliases"] for x in listed}
        found = [answers.best(chosen[name], truths[name], answers.TRIVIA_QA) for name in chosen]
        reachable = {x["id"] for x in listed if x["spans"]}
        exact, f1 = (100 * sum(x[at] for x in found) / len(found) for at in (0, 1))
        return {"exact": exact, "f1": f1, "questions": len(found), "with answer in the text": len(reachable)}

    def write(self, predictions: Sequence[Any], examples: Iterable[Encoded], folder: Path) -> Path:
        """{question id: answer}, as the official evaluation takes it."""
        path = folder / "predictions.json"
        run_folder.write_json(path, self._chosen(predictions, list(examples)))
        return path

    def _chosen(self, predictions: Sequence[Any], examples: Sequence[Encoded]) -> dict[str, str]:
        """The answer to each question: that of the document with the best score."""
        best: dict[str, tuple[str, float]] = {}
        for (text, score), x in zip(predictions, examples, strict=True):
            if x["id"] not in best or score > best[x["id"]][1]:
                best[x["id"]] = (text, score)
        return {name: text for name, (text, _) in best.items()}

    def notes(self) -> Iterator[str]:
        yield "one separator between question and document; transformers' own head wants three"


def best_span(starts: Tensor, ends: Tensor) -> tuple[float, tuple[int, int] | None]:
    """The best start <= end of at most 30 tokens among the 20 best of each, with its score.

    Args:
        starts, ends: logits [N] of a document's tokens; N may be 0, then there is no span.
    """
    most = min(BEST_OF, len(starts))
    if not most:
        return float("-inf"), None
    (a, first), (b, last) = torch.topk(starts.float(), most), torch.topk(ends.float(), most)
    length = last[None] - first[:, None] + 1
    scores = (a[:, None] + b[None]).masked_fill((length < 1) | (length > LONGEST_ANSWER), -torch.inf)
    at = int(scores.argmax())
    score = float(scores.flatten()[at])
    if score == float("-inf"):
        return score, None
    return score, (int(first[at // most]), int(last[at % most]))
