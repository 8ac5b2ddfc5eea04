"""Documents with a label: IMDB's folders, Hyperpartisan's XML, and CSV or JSON lines of one's own."""

from __future__ import annotations

import csv
import hashlib
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.formats.json_files import field, lines, need_file

SPLITS = ("train", "dev", "test")
SHARES = {"train": 80, "dev": 10}  # of 100 documents, as 516 / 64 / 65 of Hyperpartisan's 645


@dataclass(frozen=True)
class Document:
    """A text with its label, None where it has none."""

    id: str
    text: str
    label: str | None


def imdb(folder: Path, gold: bool) -> Iterator[Document]:
    """IMDB's train or test folder: a file for each review, in a folder for each label."""
    for label in ("neg", "pos"):
        files = sorted((folder / label).glob("*.txt"))
        if not files:
            raise RecipeError(f"--data: reviews in {folder / label}/*.txt wanted, none is there")
        for file in files:
            text = file.read_text("utf8").replace("<br /><br />", "\n").replace("<br />", "\n")
            yield Document(f"{label}/{file.stem}", text, label if gold else None)


def hyperpartisan(articles: Path, truth: Path | None) -> Iterator[Document]:
    """Articles of Hyperpartisan's XML, by-article: title and paragraphs.

    Args:
        truth: the file of labels, None to read without.

    Raises:
        RecipeError: XML that is not well-formed, an article without id, or without a label in `truth`.
    """
    labels = None if truth is None else {x.get("id"): x.get("hyperpartisan") for x in _articles(truth)}
    for number, element in enumerate(_articles(articles)):
        name = element.get("id")
        if name is None or (labels is not None and labels.get(name) not in ("true", "false")):
            raise RecipeError(
                f"{articles}: article {number}: an id with a label in {truth} wanted, got {name}"
            )
        text = "\n".join(
            [element.get("title", ""), *(" ".join("".join(p.itertext()).split()) for p in element.iter("p"))]
        )
        yield Document(name, text.strip(), None if labels is None else labels[name])


def table(path: Path, gold: bool) -> Iterator[Document]:
    """CSV with a header, or JSON lines: "text", "label", and if there is one "id".

    Raises:
        RecipeError: a field that is missing.
    """
    for number, (where, row) in enumerate(_csv(path) if path.suffix == ".csv" else lines(path)):
        label = str(field(where, row, "label", (str, int, bool))) if gold else None
        yield Document(str(row.get("id", number)), field(where, row, "text", str), label)


def clean_parts(documents: Iterable[Document]) -> dict[str, list[str]]:
    """Ids of a train, dev and test part: no text is in two parts, whatever its ids are.

    The part depends on the text alone, so it is the same on every machine and for every order of the file.
    """
    groups: dict[str, list[str]] = {}
    for document in documents:
        text = " ".join(document.text.lower().split())
        groups.setdefault(hashlib.sha256(text.encode()).hexdigest(), []).append(document.id)
    found: dict[str, list[str]] = {split: [] for split in SPLITS}
    for rank, digest in enumerate(sorted(groups)):
        share = 100 * rank / len(groups)
        split = (
            "train"
            if share < SHARES["train"]
            else "dev"
            if share < SHARES["train"] + SHARES["dev"]
            else "test"
        )
        found[split] += groups[digest]
    return found


def leaked(parts: dict[str, list[str]]) -> list[str]:
    """Ids of the test part that are in the training part too."""
    return sorted(set(parts["test"]) & set(parts["train"]))


def _articles(path: Path) -> Iterator[Any]:
    need_file(path)
    try:
        for _, element in ElementTree.iterparse(path):
            if element.tag == "article":
                yield element
                element.clear()
    except ElementTree.ParseError as error:
        raise RecipeError(f"{path}: well-formed XML wanted, {error}") from None


def _csv(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    need_file(path)
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with path.open(encoding="utf8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            yield f"{path}: line {number}", {name: value for name, value in row.items() if name is not None}
