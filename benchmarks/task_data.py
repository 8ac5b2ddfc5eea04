"""Data of the claims about tasks: questions and documents of real text, in the formats that recipes read.

Chains of WordNet's nouns become questions in WikiHop's format. The names of terms are replaced, as in
Qangaroo's masked version, so that nothing but the documents can tell what a term is.
"""

from __future__ import annotations

import gzip
import json
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Files of WordNet's lexicographers, by number: each is a topic.
TOPICS = {
    "05": "animal",
    "06": "artifact",
    "08": "body",
    "13": "food",
    "18": "person",
    "20": "plant",
    "27": "substance",
}
ASIDE = ("04", "07", "10", "21", "22")  # acts, attributes, communication, possessions, processes: no answer
LONGEST = 14  # words of a gloss
CANDIDATES, LINKS = 3, 3  # of a question: candidates, and glosses from its term on


@dataclass(frozen=True)
class Synset:
    """A noun of WordNet: its topic, the first part of its gloss, and the next wider noun."""

    topic: str
    gloss: str
    wider: str


class WordNet:
    """The nouns of a folder with data.noun, as Debian's package wordnet-base has it."""

    def __init__(self, folder: Path) -> None:
        text = (folder / "data.noun").read_text("utf8")
        self.words = set(re.findall("[a-z]+", text.lower()))
        self._synsets = dict(_synsets(text))
        self._starts: dict[str, list[str]] = {}
        for name, synset in self._synsets.items():
            if len(list(self._chain(name))) == LINKS:
                self._starts.setdefault(synset.topic, []).append(name)

    def chain(self, topic: str, rng: random.Random) -> list[Synset]:
        """Draw a noun, a wider one and one that is wider still, all of a topic."""
        return list(self._chain(rng.choice(self._starts[topic])))

    def gloss(self, topics: Sequence[str], rng: random.Random) -> str:
        """Draw a gloss of one of the topics."""
        return self.chain(rng.choice(topics), rng)[0].gloss

    def _chain(self, name: str) -> Iterator[Synset]:
        topic = self._synsets[name].topic
        for _ in range(LINKS):
            synset = self._synsets.get(name)
            if synset is None or synset.topic != topic or not 4 <= len(synset.gloss.split()) <= LONGEST:
                return
            yield synset
            name = synset.wider


def _synsets(text: str) -> Iterator[tuple[str, Synset]]:
    """Nouns by their place in the file; wninput(5WN) has the format."""
    for line in text.splitlines():
        if line.startswith(" "):
            continue  # the licence
        head, _, gloss = line.partition("|")
        fields = head.split()
        pointers = fields[5 + 2 * int(fields[3], 16) :]
        wider = pointers[pointers.index("@") + 1] if "@" in pointers else ""
        yield fields[0], Synset(fields[1], gloss.split(";")[0].strip(), wider)


def wikihop(path: Path, wordnet: WordNet, names: Sequence[str], count: int, before: int, seed: int) -> None:
    """Write a file of Qangaroo's format.

    Args:
        path: of the file.
        wordnet: where chains come from.
        names: words that stand for terms.
        count: questions.
        before: about so many words of other documents stand before those of the candidates. With none the
            questions are for learning what is asked: the other candidates have no document either.
        seed: of all that is drawn.
    """
    rng = random.Random(seed)
    write(
        path, json.dumps([_question(f"{path.stem}-{n}", wordnet, names, before, rng) for n in range(count)])
    )


def _question(
    name: str, wordnet: WordNet, names: Sequence[str], before: int, rng: random.Random
) -> dict[str, Any]:
    """The kind of a term is asked for; it is a kind of a second, which is of a third: a document each.

    Some of the other candidates have a document each, a term of their own. So an answer is found by following
    the names, or, as in WikiHop itself, by what more of the text is about.
    """
    topics, fresh = rng.sample(sorted(TOPICS), CANDIDATES), iter(rng.sample(names, len(names)))
    others = topics[1 : 1 + rng.randrange(CANDIDATES)] if before else []  # that have a document
    links = [next(fresh) for _ in range(LINKS)]
    documents = [
        _document(term, synset.gloss, wider)
        for term, synset, wider in zip(
            links, wordnet.chain(topics[0], rng), [*links[1:], next(fresh)], strict=True
        )
    ]
    documents += [_document(next(fresh), wordnet.gloss([topic], rng), next(fresh)) for topic in others]
    rng.shuffle(documents)
    aside, words = list[str](), 0
    while words < before:
        aside.append(_document(next(fresh), wordnet.gloss(ASIDE, rng), next(fresh)))
        words += len(aside[-1].split())
    return {
        "id": name,
        "query": f"kind_of {links[0]}",
        "answer": TOPICS[topics[0]],
        "candidates": sorted(TOPICS[topic] for topic in topics),
        "supports": [*aside, *documents],
    }


def _document(term: str, gloss: str, wider: str) -> str:
    return f"{term}: {gloss}. {term} is a kind of {wider}."


def names(vocabulary: Sequence[str], wordnet: WordNet) -> list[str]:
    """Whole words of a vocabulary that WordNet's nouns do not use: most are names of people."""
    return sorted(
        word
        for word in vocabulary
        if word.isascii() and word.isalpha() and len(word) > 4 and word not in wordnet.words
    )


def classify(path: Path, wordnet: WordNet, prose: str, count: int, before: int, seed: int) -> None:
    """Write JSON lines: a passage of prose, then glosses of animals or of plants.

    Args:
        path: of the file.
        wordnet: where glosses come from.
        prose: a long text that tells nothing of the label.
        count: documents.
        before: words of prose in each.
        seed: of all that is drawn.
    """
    rng, words, rows = random.Random(seed), prose.split(), list[str]()
    for _ in range(count):
        topic, start = rng.choice(["05", "20"]), rng.randrange(len(words) - before)
        evidence = ". ".join(wordnet.gloss([topic], rng) for _ in range(6))
        text = f"{' '.join(words[start : start + before])} {evidence}."
        rows.append(json.dumps({"text": text, "label": TOPICS[topic]}))
    write(path, "\n".join(rows))


def prose(path: Path) -> str:
    """Paragraphs of the Jargon File, without its headings, tables and drawings."""
    with gzip.open(path, "rt", encoding="utf8") as file:
        paragraphs = re.split(r"\n\s*\n", file.read())
    whole = (" ".join(paragraph.split()) for paragraph in paragraphs)
    return "\n".join(x for x in whole if len(x) > 200 and x.isascii() and _letters(x) > 0.75 * len(x))


def _letters(text: str) -> int:
    return sum(character.isalpha() for character in text)


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf8")
