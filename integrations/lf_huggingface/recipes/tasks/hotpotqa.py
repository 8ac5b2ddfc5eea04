"""HotpotQA in two stages (appendix D): paragraphs of the whole context, then answer and evidence."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes.data.padding import inputs, padded
from lf_huggingface.recipes.data.words import occurrences, tokens_of
from lf_huggingface.recipes.formats import hotpot_qa
from lf_huggingface.recipes.metrics import answers
from lf_huggingface.recipes.models.heads import NEVER, EvidenceReader
from lf_huggingface.recipes.models.reader import load_encoder
from lf_huggingface.recipes.options import Options, option
from lf_huggingface.recipes.task import TRAIN, Batch, Encoded, Task, answered
from lf_huggingface.recipes.tasks.paper import FINE_TUNING, TRIAL
from lf_huggingface.recipes.tasks.triviaqa import best_span

PARAGRAPHS, ANSWERS = "paragraphs", "answers"
KINDS = ("span", "yes", "no")
MOST_SPANS, EVIDENCE = 64, 2  # the answer needs exactly two paragraphs
NO_TEXT = (0, 0)


@dataclass
class HotpotQAOptions(Options):
    """Options of HotpotQA alone, besides those of every task."""

    most_paragraphs: int = option("Paragraphs that the second stage reads.", 5)
    least_score: float = option("Score that a paragraph needs to be read.", -3.0)


class HotpotQA(Task[HotpotQAOptions]):
    """[cls] [q] question [/q], then <t> title </t> sentence [s] sentence [s] ... for each paragraph, [sep].

    Question, <t> and [s] are global. Both stages train on everything; the first gives its paragraph scores.
    """

    name: ClassVar[str] = "hotpotqa"
    kind: ClassVar[type[Options]] = HotpotQAOptions
    marks: ClassVar[tuple[str, ...]] = ("[q]", "[/q]", "<t>", "</t>", "[s]")
    best: ClassVar[str] = "joint_f1"
    ways: ClassVar[tuple[str, ...]] = ("cut", "refuse")
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {**FINE_TUNING, "epochs": 5.0, "warmup": 1000, "learning_rate": 5e-5},
        "large": {},
        "trial": TRIAL,
    }

    def __init__(self, options: HotpotQAOptions, folder: str = "") -> None:
        super().__init__(options, folder)
        self._stages: tuple[HotpotQA, ...] = ()
        self._next: HotpotQA | None = None
        self._handed: Mapping[str, dict[str, Any]] = {}
        self.hands_on = folder == PARAGRAPHS  # type: ignore[misc]

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        from lf_huggingface.recipes.trial import files

        files.hotpotqa(folder, seed)

    def stages(self) -> Sequence[Task[HotpotQAOptions]]:
        if not self._stages:
            first, second = HotpotQA(self.options, PARAGRAPHS), HotpotQA(self.options, ANSWERS)
            first._next = second
            self._stages = (first, second)
        return self._stages

    def selected(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, Any]:
        """Titles of the paragraphs worth reading, for each question, best first."""
        found = {}
        for prediction, x in zip(predictions, examples, strict=True):
            ranked = sorted(prediction["paragraphs"], key=lambda pair: -pair[1])
            worth = [pair for pair in ranked if pair[1] > self.options.least_score][
                : self.options.most_paragraphs
            ]
            found[x["id"]] = [title for title, _ in (worth if len(worth) >= EVIDENCE else ranked[:EVIDENCE])]
        return found

    def hand_on(self, found: Mapping[str, dict[str, Any]]) -> None:
        if self._next is not None:
            self._next._handed = found

    def carried_key(self, split: str) -> Any:
        return self._handed.get(split)

    def file(self, split: str) -> Path:
        name = "hotpot_train_v1.1.json" if split == TRAIN else "hotpot_dev_distractor_v1.json"
        return self.data / name

    def records(self, path: Path, *, gold: bool) -> Iterator[hotpot_qa.Question]:
        return hotpot_qa.read(path, gold)

    def encode(self, records: Iterable[hotpot_qa.Question], tokenizer: Any, split: str) -> Iterator[Encoded]:
        examples = self._examples(records, tokenizer, split)
        return answered(examples, lambda x: bool(x["spans"] or x["kind"])) if split == TRAIN else examples

    def _examples(
        self, records: Iterable[hotpot_qa.Question], tokenizer: Any, split: str
    ) -> Iterator[Encoded]:
        handed = self._handed.get(split)
        for record in records:
            chosen = record.paragraphs
            if handed is not None:
                wanted = set(handed[record.id])
                if split == TRAIN and record.facts:
                    wanted |= {title for title, _ in record.facts}
                chosen = [paragraph for paragraph in chosen if paragraph[0] in wanted]
            yield self._encoded(record, chosen, tokenizer)

    def _encoded(
        self, record: hotpot_qa.Question, chosen: Sequence[tuple[str, list[str]]], tokenizer: Any
    ) -> Encoded:
        most = self.options.max_length
        assert most is not None
        open_q, close_q, open_t, close_t, mark = tokenizer.convert_tokens_to_ids(list(self.marks))
        row = [tokenizer.cls_token_id, open_q, *_ids(tokenizer, record.question)[0], close_q]
        if len(row) + 3 > most:
            raise RecipeError(
                f"{record.id}: a question below --max-length {most} wanted, it takes {len(row)}"
            )
        question, text = len(row), ""
        offsets = [NO_TEXT] * len(row)
        titles: list[tuple[int, str]] = []
        marks: list[tuple[int, str, int]] = []
        spans: list[tuple[int, int]] = []
        for title, sentences in chosen:
            titles.append((len(row), title))
            head = [open_t, *_ids(tokenizer, title)[0], close_t]
            row += head
            offsets += [NO_TEXT] * len(head)
            is_evidence = record.facts is not None and title in {name for name, _ in record.facts}
            for number, sentence in enumerate(sentences):
                ids, at = _ids(tokenizer, sentence)
                if is_evidence and record.answer is not None:
                    here = occurrences(sentence, [record.answer], MOST_SPANS)
                    spans += [(len(text) + start, len(text) + end) for start, end in here]
                row += [*ids, mark]
                offsets += [*((len(text) + start, len(text) + end) for start, end in at), NO_TEXT]
                marks.append((len(row) - 1, title, number))
                text += sentence + "\n"
        if len(row) + 1 > most and self.options.long == "refuse":
            raise RecipeError(f"{record.id}: at most --max-length {most} tokens wanted, got {len(row) + 1}")
        row, offsets = [*row[: most - 1], tokenizer.sep_token_id], [*offsets[: most - 1], NO_TEXT]
        found = [span for start, end in spans if (span := tokens_of(offsets, start, end)) is not None]
        facts = {tuple(fact) for fact in record.facts or ()}
        gold_titles = {title for title, _ in facts}
        titles, marks = [x for x in titles if x[0] < most - 1], [x for x in marks if x[0] < most - 1]
        answer = None if record.answer is None else record.answer
        kind = KINDS.index(answer) if answer in KINDS[1:] else 0
        return {
            "id": record.id, "ids": row, "question": question, "offsets": offsets, "text": text,
            "titles": titles,
            "marks": marks, "spans": [] if kind else found[:MOST_SPANS], "kind": kind, "answer": answer,
            "facts": sorted(facts), "length": len(row),
            "gold_titles": [int(title in gold_titles) for _, title in titles],
            "gold_marks": [int((title, number) in facts) for _, title, number in marks],
        }  # fmt: skip

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        return EvidenceReader.on(load_encoder(source))

    def load_model(self, folder: Path) -> Any:
        return EvidenceReader.trained(folder)

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        titles = [[at for at, _ in x["titles"]] for x in examples]
        marks = [[at for at, _, _ in x["marks"]] for x in examples]
        where = [[*range(x["question"]), *a, *b] for x, a, b in zip(examples, titles, marks, strict=True)]
        made = inputs([x["ids"] for x in examples], where, tokenizer.pad_token_id)
        return {
            **made, "titles": padded(titles, NEVER), "marks": padded(marks, NEVER),
            "gold_starts": padded([[first for first, _ in x["spans"]] for x in examples], NEVER),
            "gold_ends": padded([[last for _, last in x["spans"]] for x in examples], NEVER),
            "gold_kinds": torch.tensor([x["kind"] for x in examples]),
            "gold_paragraphs": padded([x["gold_titles"] for x in examples], 0),
            "gold_sentences": padded([x["gold_marks"] for x in examples], 0),
        }  # fmt: skip

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        """Answer, evidence from exactly two paragraphs, and the score of every paragraph."""
        found = model(**{k: v for k, v in batch.items() if not k.startswith("gold_")})
        rows = zip(
            found.starts, found.ends, found.kinds, found.paragraphs, found.sentences, examples, strict=True
        )
        return [self._prediction(*row) for row in rows]

    def _prediction(
        self, starts: Any, ends: Any, kinds: Any, paragraphs: Any, sentences: Any, x: Encoded
    ) -> Any:
        scored = [(title, float(score)) for (_, title), score in zip(x["titles"], paragraphs, strict=False)]
        chosen = {title for title, _ in sorted(scored, key=lambda pair: -pair[1])[:EVIDENCE]}
        inside = [
            (title, number, float(score))
            for (_, title, number), score in zip(x["marks"], sentences, strict=False)
            if title in chosen
        ]
        facts = [[title, number] for title, number, score in inside if score > 0]
        for title in sorted(chosen - {title for title, _ in facts}):  # one of each at least
            own = [item for item in inside if item[0] == title]
            if own:
                facts.append(list(max(own, key=lambda item: item[2])[:2]))
        kind = KINDS[int(kinds.argmax())]
        return {
            "answer": self._span(starts, ends, x) if kind == "span" else kind,
            "facts": facts,
            "paragraphs": scored,
        }

    def _span(self, starts: Any, ends: Any, x: Encoded) -> str:
        offsets = torch.tensor(x["offsets"])
        no_text = torch.ones(len(starts), dtype=torch.bool)
        no_text[: len(offsets)] = offsets[:, 0] == offsets[:, 1]
        no_text = no_text.to(starts.device)
        _, span = best_span(starts.masked_fill(no_text, -torch.inf), ends.masked_fill(no_text, -torch.inf))
        return "" if span is None else x["text"][x["offsets"][span[0]][0] : x["offsets"][span[1]][1]]

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        """EM and F1 of answer, evidence and both, in percent."""
        total = dict.fromkeys(
            ("exact", "f1", "evidence_exact", "evidence_f1", "joint_exact", "joint_f1"), 0.0
        )
        for prediction, x in zip(predictions, examples, strict=True):
            answer = answers.agreement(prediction["answer"], x["answer"])
            evidence = answers.of_sets(
                [tuple(f) for f in prediction["facts"]], [tuple(f) for f in x["facts"]]
            )
            both = answers.joint(answer, evidence)
            for name, found in (("", answer), ("evidence_", evidence), ("joint_", both)):
                total[f"{name}exact"] += found.exact
                total[f"{name}f1"] += found.f1
        return {name: 100 * value / len(predictions) for name, value in total.items()}

    def write(self, predictions: Sequence[Any], examples: Iterable[Encoded], folder: Path) -> Path:
        """{"answer": {id: text}, "sp": {id: [[title, sentence], ...]}}, as the official script takes it."""
        path, rows = folder / "predictions.json", list(zip(examples, predictions, strict=True))
        answer = {x["id"]: prediction["answer"] for x, prediction in rows}
        run_folder.write_json(path, {"answer": answer, "sp": {x["id"]: p["facts"] for x, p in rows}})
        return path

    def notes(self) -> Iterator[str]:
        yield "the rate is 5e-5 as in the paper's table 14; its text says 3e-5: --learning-rate"


def _ids(tokenizer: Any, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    return list(found["input_ids"]), list(found["offset_mapping"])
