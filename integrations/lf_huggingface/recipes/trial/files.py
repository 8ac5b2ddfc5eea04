"""Small data sets, in the formats of the published ones, whose answers can be found in the text."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

SIZES = {"train": 48, "dev": 16}
_ONSETS, _VOWELS, _CODAS = list("bdfgklmnprstvz"), list("aeiou"), ["", "n", "r", "s"]
PLACES, PEOPLE, THINGS = 12, 24, 40


class Words:
    """Invented names and sentences, drawn by one generator."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        names = list(dict.fromkeys(self._name() for _ in range(400)))
        self.places, self.people, self.things = (
            names[:PLACES],
            names[PLACES : PLACES + PEOPLE],
            names[PLACES + PEOPLE : PLACES + PEOPLE + THINGS],
        )

    def _name(self) -> str:
        return "".join(self.rng.choice(x) for x in (_ONSETS, _VOWELS, _CODAS, _ONSETS, _VOWELS, _CODAS))

    def sentence(self) -> str:
        """A sentence that says nothing about a place."""
        one, two, three = (self.rng.choice(self.things) for _ in range(3))
        return f"the {one} of the {two} is {three}."

    def sentences(self, count: int) -> list[str]:
        return [self.sentence() for _ in range(count)]


def text(folder: Path, seed: int) -> None:
    """train.txt and dev.txt of plain text."""
    words = Words(seed)
    for split, count in SIZES.items():
        documents = [" ".join(words.sentences(40)) for _ in range(count)]
        _write(folder / f"{split}.txt", "\n\n\n".join(documents))


def wikihop(folder: Path, seed: int) -> None:
    """train.json and dev.json as Qangaroo's: a person works for another, who lives in a place."""
    words = Words(seed)
    for split, count in SIZES.items():
        rows = []
        for number in range(count):
            (one, two, three), places = words.rng.sample(words.people, 3), words.rng.sample(words.places, 4)
            supports = [
                f"{one} works for {two} . {words.sentence()}",
                f"{two} lives in {places[0]} . {words.sentence()}",
                f"{three} lives in {places[1]} . {words.sentence()}",
                *(" ".join(words.sentences(3)) for _ in range(6)),
            ]
            words.rng.shuffle(supports)
            rows.append(
                {
                    "id": f"WH_{split}_{number}",
                    "query": f"place_of_work {one}",
                    "answer": places[0],
                    "candidates": sorted(places),
                    "supports": supports,
                }
            )
        _write(folder / f"{split}.json", json.dumps(rows))


def triviaqa(folder: Path, seed: int) -> None:
    """qa/ and evidence/ as TriviaQA's."""
    words = Words(seed)
    for split, count in SIZES.items():
        rows = []
        for number in range(count):
            person, place = words.rng.choice(words.people), words.rng.choice(words.places)
            body = [
                *words.sentences(14),
                f"{person} lives in {place}.",
                f"all people of {place} know {person}.",
            ]
            words.rng.shuffle(body)
            name = f"{split}-{number}.txt"
            _write(folder / "evidence" / "wikipedia" / name, " ".join(body))
            answer = {
                "Value": place.title(),
                "Aliases": [place.title(), f"{place} (town)"],
                "NormalizedAliases": [place],
            }
            rows.append(
                {
                    "Question": f"Where does {person} live?",
                    "QuestionId": f"tq_{split}_{number}",
                    "Answer": answer,
                    "EntityPages": [{"Filename": name, "Title": person}],
                }
            )
        _write(folder / "qa" / f"wikipedia-{split}.json", json.dumps({"Data": rows, "Split": split}))


def hotpotqa(folder: Path, seed: int) -> None:
    """hotpot_train_v1.1.json and hotpot_dev_distractor_v1.json."""
    words, files = Words(seed), {"train": "hotpot_train_v1.1.json", "dev": "hotpot_dev_distractor_v1.json"}
    for split, count in SIZES.items():
        _write(
            folder / files[split], json.dumps([_hop(words, f"{split}-{number}") for number in range(count)])
        )


def _hop(words: Words, name: str) -> dict[str, Any]:
    one, two, *others = words.rng.sample(words.people, 6)
    place = words.rng.choice(words.places)
    context = [
        [one, [words.sentence(), f" {one} works for {two}."]],
        [two, [f"{two} lives in {place}.", " " + words.sentence()]],
        *([other, [words.sentence(), " " + words.sentence()]] for other in others),
    ]
    words.rng.shuffle(context)
    question, answer = f"Where does the one live for whom {one} works?", place
    if words.rng.random() < 0.25:
        question, answer = f"Does {one} work for {two}?", "yes"
    return {
        "_id": name, "question": question, "answer": answer, "supporting_facts": [[one, 1], [two, 0]],
        "context": context, "type": "bridge", "level": "easy",
    }  # fmt: skip


def hyperpartisan(folder: Path, seed: int) -> None:
    """Articles and ground truth by article, as Hyperpartisan's."""
    words, articles, truths = Words(seed), [], []
    for number in range(sum(SIZES.values()) + 16):
        label = words.rng.random() < 0.5
        body = words.sentences(20)
        body[words.rng.randrange(10, 20)] = (
            f"they {'never' if label else 'also'} tell {words.rng.choice(words.people)} so."
        )
        paragraphs = "".join(f"<p>{sentence}</p>" for sentence in body)
        articles.append(
            f'<article id="{number:07d}" title="{words.rng.choice(words.places)}">{paragraphs}</article>'
        )
        truths.append(f'<article id="{number:07d}" hyperpartisan="{str(label).lower()}"/>')
    for kind, rows in (("articles", articles), ("ground-truth", truths)):
        text = '<?xml version="1.0" encoding="UTF-8"?>\n<articles>\n' + "\n".join(rows) + "\n</articles>\n"
        _write(folder / f"{kind}-training-byarticle-20181122.xml", text)


def arxiv(folder: Path, seed: int) -> None:
    """train.txt and val.txt as arXiv's."""
    words = Words(seed)
    for split, name in (("train", "train.txt"), ("dev", "val.txt")):
        lines = []
        for number in range(SIZES[split] // 2):
            person, place = words.rng.choice(words.people), words.rng.choice(words.places)
            body = [f"{person} lives in {place}.", *words.sentences(12)]
            row = {
                "article_id": f"{split}-{number}",
                "article_text": body,
                "abstract_text": [f"<S> {body[0]} </S>"],
            }
            lines.append(json.dumps(row))
        _write(folder / name, "\n".join(lines) + "\n")


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf8")
