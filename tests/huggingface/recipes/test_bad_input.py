"""Bad input, for every task: each error names what is wrong, what was wanted and what was got."""

from __future__ import annotations

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import transformers

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.__main__ import BAD_INPUT, main
from lf_huggingface.recipes.formats import articles, hotpot_qa, labelled, plain_text, trivia_qa
from lf_huggingface.recipes.models import encoders
from lf_huggingface.recipes.options import settled
from lf_huggingface.recipes.tasks import TASKS
from lf_huggingface.recipes.trial import model as trial_model

TRIVIA = {"Question": "q", "QuestionId": "1", "EntityPages": [{"Filename": "a.txt"}],
          "Answer": {"Value": "b", "Aliases": ["b"]}}  # fmt: skip
HOTPOT = {
    "_id": "1",
    "question": "q",
    "answer": "b",
    "supporting_facts": [["A", 0]],
    "context": [["A", ["b"]]],
}
READERS: dict[str, Any] = {
    "trivia": lambda path: trivia_qa.read(path, path.parent, gold=True),
    "hotpot": functools.partial(hotpot_qa.read, gold=True),
    "arxiv": functools.partial(articles.read, gold=True),
    "table": functools.partial(labelled.table, gold=True),
    "xml": lambda path: labelled.hyperpartisan(path, path.with_name("truth.xml")),
    "text": plain_text.read,
}
FILES = [
    ("trivia", "x.json", {"data": [TRIVIA]}, "JSON with an array Data wanted, got"),
    ("trivia", "x.json", {"Data": [{**TRIVIA, "EntityPages": ["a.txt"]}]},
     r"EntityPages: objects wanted, got a\.txt"),
    ("trivia", "x.json", {"Data": [{**TRIVIA, "Answer": "b"}]}, "record 0: Answer: dict wanted, got str"),
    ("hotpot", "x.json", {"data": [HOTPOT]}, "JSON with an array wanted, got"),
    ("hotpot", "x.json", [{k: HOTPOT[k] for k in ("_id", "question", "context", "answer")}],
     "the field 'supporting_facts' wanted, got _id, answer, context, question"),
    ("hotpot", "x.json", [{**HOTPOT, "supporting_facts": [["A"]]}],
     r"supporting_facts: \[title, number\] wanted, got \['A'\]"),
    ("hotpot", "x.json", [{**HOTPOT, "context": []}],
     r"context: at least one paragraph with sentences wanted, got \[\]"),
    ("arxiv", "x.txt", {"article": "a"}, "line 1: the field 'article_text' wanted, got article"),
    ("arxiv", "x.txt", {"article_text": [], "abstract_text": []}, "article_text: some text wanted, got ''"),
    ("table", "x.jsonl", {"text": "a"}, "line 1: the field 'label' wanted, got text"),
    ("table", "x.jsonl", [1], "line 1: an object wanted, got list"),
    ("xml", "x.xml", "<articles><article", "truth.xml wanted, it is not there"),
    ("text", "x.pdf", "text", r"\.txt or \.jsonl wanted, got .*x\.pdf"),
    ("text", "x.txt", b"\xff", "UTF-8 wanted"),
    ("text", "none", None, "text in .*none wanted, none is there"),
]  # fmt: skip


@pytest.mark.parametrize(("reader", "name", "content", "message"), FILES)
def test_a_file_of_another_version_or_form(
    reader: str, name: str, content: Any, message: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf8")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(RecipeError, match=message):
        list(READERS[reader](path))


def test_articles_without_labels_or_well_formed_xml(tmp_path: Path) -> None:
    path, truth = tmp_path / "articles.xml", tmp_path / "truth.xml"
    path.write_text('<articles><article id="1"><p>a</p></article></articles>')
    truth.write_text('<articles><article id="2" hyperpartisan="true"/></articles>')
    with pytest.raises(RecipeError, match=r"article 0: an id with a label in .*truth\.xml wanted, got 1"):
        list(labelled.hyperpartisan(path, truth))
    path.write_text("<articles><article")
    with pytest.raises(RecipeError, match="well-formed XML wanted"):
        list(labelled.hyperpartisan(path, None))


def _encoded(name: str, folder: Path, change: Any = None, **given: Any) -> list[Any]:
    """The training examples of a trial's data, whose records are changed."""
    kind = TASKS[name]
    kind.trial_data(folder / "data", 1)
    trial_model.make(folder / "model", folder / "data", decoder=False)
    task = kind(settled(kind.kind(trial=True, **given), kind.sizes))
    task.data = folder / "data"
    records = task.records(task.file("train"), gold=True)
    if change is not None:
        records = (change(record) for record in records)
    return list(task.encode(records, encoders.load_tokenizer(folder / "model"), "train"))


def _unanswerable(record: Any) -> Any:
    import dataclasses

    names = {field.name for field in dataclasses.fields(record)}
    return dataclasses.replace(record, **{"aliases": ["zz"]} if "aliases" in names else {"answer": "zz"})


LONG = [
    ("wikihop", {"max_length": 16}, "question and candidates below --max-length 16 tokens wanted, they take"),
    ("triviaqa", {"max_length": 8}, "a question below --max-length 8 wanted, it takes"),
    ("triviaqa", {"max_length": 64, "long": "refuse"}, r"at most \d+ tokens in train-0.txt wanted, got \d+"),
    ("hotpotqa", {"max_length": 64, "long": "refuse"}, "at most --max-length 64 tokens wanted, got"),
    ("classify", {"max_length": 64, "long": "refuse"}, r"at most 62 tokens wanted, got \d+; see --long"),
]


@pytest.mark.parametrize(("task", "given", "message"), LONG)
def test_what_is_longer_than_the_model(task: str, given: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=message):
        _encoded(task, tmp_path, **given)


@pytest.mark.parametrize("task", ["triviaqa", "hotpotqa"])
def test_some_answers_may_be_nowhere_but_not_all(task: str, tmp_path: Path) -> None:
    done: list[Any] = []

    def first(record: Any) -> Any:
        done.append(record)
        return record if len(done) == 1 else _unanswerable(record)

    assert len(_encoded(task, tmp_path, first)) > 1
    with pytest.raises(
        RecipeError, match=r"an answer that is in its text wanted, none of \d+ examples has one"
    ):
        _encoded(task, tmp_path, _unanswerable)


def test_labels_and_parts_that_are_not_there(tmp_path: Path) -> None:
    kind = TASKS["classify"]
    (tmp_path / "train.jsonl").write_text('{"text": "a", "label": "maybe"}\n')
    trial_model.make(tmp_path / "model", tmp_path, decoder=False)
    task = kind(settled(kind.kind(format="table", labels=["no", "yes"], split="clean"), kind.sizes))  # type: ignore[call-arg]
    task.data = tmp_path
    tokenizer = encoders.load_tokenizer(tmp_path / "model")
    with pytest.raises(RecipeError, match="0: a label of no, yes wanted, got 'maybe'"):
        list(task.encode(task.records(task.file("train"), gold=True), tokenizer, "train"))
    (tmp_path / "hp-splits.json").write_text('{"train": []}')
    task = kind(settled(kind.kind(format="hyperpartisan", split="public"), kind.sizes))  # type: ignore[call-arg]
    task.data = tmp_path
    with pytest.raises(RecipeError, match=r"ids under train, dev and test wanted, without \['dev', 'test'\]"):
        list(task.notes())


MODELS = [
    ("{}", "a config.json that transformers reads wanted"),
    (
        '{"model_type": "roberta", "architectures": ["Other"]}',
        r"one class of transformers in .* got \['Other'\]",
    ),
    ('{"model_type": "longformer"}', "a fast tokenizer with a vocabulary wanted, got"),
]


@pytest.mark.parametrize(("config", "message"), MODELS)
def test_a_folder_without_a_model(config: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(RecipeError, match=message):
        encoders.long_folder(tmp_path, tmp_path / "long", 64, 16)
        encoders.load_tokenizer(tmp_path)


def test_a_model_without_its_weights_or_global_tokens(tmp_path: Path) -> None:
    small = {"vocab_size": 90, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
             "intermediate_size": 32, "attention_window": 8}  # fmt: skip
    transformers.LongformerModel(transformers.LongformerConfig(**small)).save_pretrained(tmp_path)
    with pytest.raises(
        RecipeError, match=r"a checkpoint of LongformerForMaskedLM wanted, .* lacks \['lm_head"
    ):
        encoders.load(transformers.AutoModelForMaskedLM, tmp_path)

    class Deaf(transformers.LongformerModel):
        def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
            raise NotImplementedError

    with pytest.raises(
        RecipeError, match="one that takes a global_attention_mask wanted, Deaf passes none on"
    ):
        encoders.check_takes_globals(Deaf(transformers.LongformerConfig(**small)))


def test_a_folder_without_the_data(tmp_path: Path, capsys: Any) -> None:
    TASKS["wikihop"].trial_data(tmp_path / "data", 1)
    trial_model.make(tmp_path / "model", tmp_path / "data", decoder=False)
    words = f"wikihop --model {tmp_path / 'model'} --data {tmp_path / 'model'} --out {tmp_path / 'run'}"
    assert main(words.split()) == BAD_INPUT
    assert "train.json wanted, it is not there" in " ".join(capsys.readouterr().err.split())
