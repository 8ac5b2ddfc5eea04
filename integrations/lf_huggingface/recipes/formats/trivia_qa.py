"""TriviaQA, reading comprehension: {"Data": [...]} with questions, and a folder of documents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.formats.json_files import array, field, texts


@dataclass(frozen=True)
class Reading:
    """A question and one document of its evidence; `aliases` is empty in a file without answers."""

    id: str
    question: str
    document: str
    name: str
    aliases: list[str]


def read(path: Path, evidence: Path, gold: bool) -> Iterator[Reading]:
    """A question with each of its documents.

    Args:
        path: e.g. qa/wikipedia-train.json.
        evidence: e.g. evidence/wikipedia.

    Raises:
        RecipeError: a field or a document that is missing.
    """
    for where, record in array(path, "Data"):
        question = field(where, record, "Question", str)
        name = field(where, record, "QuestionId", str)
        aliases = _aliases(where, record) if gold else []
        pages = field(where, record, "EntityPages", list)
        if not pages:
            raise RecipeError(f"{where}: EntityPages: at least one document wanted, got []")
        for page in pages:
            if not isinstance(page, dict):
                raise RecipeError(f"{where}: EntityPages: objects wanted, got {str(page)[:60]}")
            file = evidence / field(f"{where}: EntityPages", page, "Filename", str)
            if not file.is_file():
                raise RecipeError(f"{where}: the document {file} wanted, it is not there")
            yield Reading(name, question, file.read_text("utf8"), file.name, aliases)


def _aliases(where: str, record: dict[str, object]) -> list[str]:
    answer = field(where, record, "Answer", dict)
    found = [field(f"{where}: Answer", answer, "Value", str), *texts(f"{where}: Answer", answer, "Aliases")]
    for name in ("NormalizedAliases", "HumanAnswers"):
        found += texts(f"{where}: Answer", answer, name) if name in answer else []
    return list(dict.fromkeys(found))
