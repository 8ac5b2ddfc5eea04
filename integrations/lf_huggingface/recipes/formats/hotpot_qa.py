"""HotpotQA, distractor setting: a list of {_id, question, answer, supporting_facts, context}."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.formats.json_files import array, field


@dataclass(frozen=True)
class Question:
    """One question.

    Attributes:
        paragraphs: (title, sentences) in the file's order.
        answer, facts: None in a file without answers; facts are (title, number of a sentence).
    """

    id: str
    question: str
    paragraphs: list[tuple[str, list[str]]]
    answer: str | None
    facts: list[tuple[str, int]] | None


def read(path: Path, gold: bool) -> Iterator[Question]:
    """The questions of a file.

    Raises:
        RecipeError: a field that is missing, or facts in paragraphs that are not there.
    """
    for where, record in array(path):
        context = [_paragraph(where, item) for item in field(where, record, "context", list)]
        if not any(sentences for _, sentences in context):
            raise RecipeError(
                f"{where}: context: at least one paragraph with sentences wanted, got {context}"
            )
        answer, facts = None, None
        if gold:
            answer = field(where, record, "answer", str)
            facts = [_fact(where, item) for item in field(where, record, "supporting_facts", list)]
            if missing := {title for title, _ in facts} - {title for title, _ in context}:
                raise RecipeError(
                    f"{where}: supporting_facts: titles of the context wanted, got {sorted(missing)}"
                )
        yield Question(
            field(where, record, "_id", str), field(where, record, "question", str), context, answer, facts
        )


def _fact(where: str, item: Any) -> tuple[str, int]:
    if not (
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], int)
    ):
        raise RecipeError(f"{where}: supporting_facts: [title, number] wanted, got {str(item)[:60]}")
    return item[0], item[1]


def _paragraph(where: str, item: Any) -> tuple[str, list[str]]:
    if not (
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str) and isinstance(item[1], list)
    ):
        raise RecipeError(f"{where}: context: [title, [sentence, ...]] wanted, got {str(item)[:60]}")
    return item[0], [str(sentence) for sentence in item[1]]
