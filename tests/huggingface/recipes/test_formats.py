"""Files as distributed, and what is said about those that are not."""

import json

import pytest

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.data.words import attached, occurrences, spans_of_tokens
from lf_huggingface.recipes.formats import (
    articles,
    hotpot_qa,
    json_files,
    labelled,
    plain_text,
    qangaroo,
    trivia_qa,
)

HOP = {"id": "WH_0", "query": "place x", "answer": "a", "candidates": ["a", "b"], "supports": ["text"]}


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_arrays_are_streamed_whatever_the_pieces(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_files, "CHUNK", chunk)
    rows = [{"a": '[],{}\\" é'}, {"b": [1, {"c": 2}]}, {}]
    path = tmp_path / "x.json"
    path.write_text(json.dumps({"Version": 1, "Data": rows}, indent=1), "utf8")
    assert [row for _, row in json_files.array(path, "Data")] == rows
    if chunk > 1:
        path.write_text(json.dumps(rows), "utf8")
        assert [row for _, row in json_files.array(path)] == rows


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"supports": []}, "record 1: supports: at least one with text wanted"),
        ({"answer": "c"}, "record 1: answer: one of the candidates wanted, got 'c'"),
        ({"candidates": "a"}, "record 1: candidates: list wanted, got str"),
        ({"candidates": [1]}, "record 1: candidates: a list of strings wanted, it holds 1"),
        ({"query": None}, "record 1: query: str wanted, got NoneType"),
    ],
)
def test_wikihop_says_which_record_is_wrong(tmp_path, change, message):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([HOP, {**HOP, **change}]))
    with pytest.raises(RecipeError, match=message):
        list(qangaroo.read(path, gold=True))


def test_a_cut_file_a_missing_file_and_another_version(tmp_path):
    path = tmp_path / "train.json"
    path.write_text(json.dumps([HOP])[:-20])
    with pytest.raises(RecipeError, match="record 0: JSON wanted"):
        list(qangaroo.read(path, gold=True))
    with pytest.raises(RecipeError, match=r"the file .*none\.json wanted"):
        list(qangaroo.read(tmp_path / "none.json", gold=True))
    path.write_text(json.dumps({"data": [HOP]}))
    with pytest.raises(RecipeError, match="JSON with an array wanted"):
        list(qangaroo.read(path, gold=True))
    path.write_text(json.dumps([{k: v for k, v in HOP.items() if k != "supports"}]))
    with pytest.raises(RecipeError, match="the field 'supports' wanted, got answer, candidates, id, query"):
        list(qangaroo.read(path, gold=True))


def test_trivia_qa_needs_its_evidence(tmp_path):
    row = {
        "Question": "q", "QuestionId": "1", "EntityPages": [{"Filename": "a.txt"}],
        "Answer": {"Value": "C++", "Aliases": ["C++", "cpp"]},
    }  # fmt: skip
    path = tmp_path / "qa.json"
    path.write_text(json.dumps({"Data": [row]}))
    with pytest.raises(RecipeError, match=r"the document .*a\.txt wanted"):
        list(trivia_qa.read(path, tmp_path, gold=True))
    (tmp_path / "a.txt").write_text("text")
    [found] = trivia_qa.read(path, tmp_path, gold=True)
    assert (found.aliases, found.document) == (["C++", "cpp"], "text")
    path.write_text(json.dumps({"Data": [{**row, "EntityPages": []}]}))
    with pytest.raises(RecipeError, match="EntityPages: at least one document wanted"):
        list(trivia_qa.read(path, tmp_path, gold=True))


def test_hotpot_qa_s_facts_are_in_its_context(tmp_path):
    row = {
        "_id": "1",
        "question": "q",
        "answer": "yes",
        "supporting_facts": [["B", 0]],
        "context": [["A", ["s."]]],
    }
    path = tmp_path / "hotpot.json"
    path.write_text(json.dumps([row]))
    with pytest.raises(RecipeError, match=r"supporting_facts: titles of the context wanted, got \['B'\]"):
        list(hotpot_qa.read(path, gold=True))
    path.write_text(json.dumps([{**row, "context": [["A", "s."]]}]))
    with pytest.raises(RecipeError, match=r"context: \[title, \[sentence, \.\.\.\]\] wanted"):
        list(hotpot_qa.read(path, gold=True))


def test_a_clean_split_keeps_equal_texts_together():
    documents = [
        labelled.Document(str(n), f"Text {n // 2}" if n % 2 else f"text   {n // 2}", None) for n in range(200)
    ]
    parts = labelled.clean_parts(documents)
    assert sum(len(ids) for ids in parts.values()) == 200
    where = {name: split for split, ids in parts.items() for name in ids}
    assert all(where[str(n)] == where[str(n + 1)] for n in range(0, 200, 2))
    assert [len(parts[split]) for split in labelled.SPLITS] == [160, 20, 20]
    assert labelled.clean_parts(reversed(documents)).keys() == parts.keys()
    assert {k: sorted(v) for k, v in labelled.clean_parts(reversed(documents)).items()} == {
        k: sorted(v) for k, v in parts.items()
    }
    assert labelled.leaked({"train": ["1", "2"], "dev": [], "test": ["2", "3"]}) == ["2"]


def test_the_public_split_warns(tmp_path):
    from lf_huggingface.recipes.options import settled
    from lf_huggingface.recipes.tasks.classify import PUBLIC, Classify, ClassifyOptions

    (tmp_path / PUBLIC).write_text(json.dumps({"train": ["1", "2"], "dev": ["4"], "test": ["2", "3"]}))
    task = Classify(settled(ClassifyOptions(format="hyperpartisan", split="public"), Classify.sizes))
    task.data = tmp_path
    assert next(task.notes()).startswith("WARNING: 1 of 2 test articles")


def test_imdb_tables_articles_and_text(tmp_path):
    for label in ("neg", "pos"):
        (tmp_path / "train" / label).mkdir(parents=True)
        (tmp_path / "train" / label / "0_1.txt").write_text("a<br /><br />b")
    assert [(x.label, x.text) for x in labelled.imdb(tmp_path / "train", True)] == [
        ("neg", "a\nb"),
        ("pos", "a\nb"),
    ]
    with pytest.raises(RecipeError, match=r"reviews in .*neg"):
        list(labelled.imdb(tmp_path, True))
    (tmp_path / "x.csv").write_text('text,label\n"a, b",1\n')
    assert list(labelled.table(tmp_path / "x.csv", True)) == [labelled.Document("0", "a, b", "1")]
    (tmp_path / "y.csv").write_text("body,label\na,1\n")
    with pytest.raises(RecipeError, match="line 2: the field 'text' wanted, got body, label"):
        list(labelled.table(tmp_path / "y.csv", True))
    (tmp_path / "a.txt").write_text(
        '{"article_text": ["a .", "b ."], "abstract_text": ["<S> c . </S>", "<S> d </S>"]}\n'
    )
    assert list(articles.read(tmp_path / "a.txt", True)) == [articles.Article("0", "a . b .", "c .\nd")]
    (tmp_path / "t.txt").write_text("one\n\nstill one\n\n\ntwo\n")
    assert list(plain_text.read(tmp_path / "t.txt")) == ["one\n\nstill one", "two"]


def test_answers_are_text_and_not_patterns():
    text = "C++ (not C) and U.S. laws; us too, UsX; a.b axb"
    assert [text[a:b] for a, b in occurrences(text, ["C++"], 9)] == ["C++"]
    assert [text[a:b] for a, b in occurrences(text, ["us", "U.S."], 9)] == ["U.S.", "us"]
    assert [text[a:b] for a, b in occurrences(text, ["a.b"], 9)] == ["a.b"]
    assert occurrences(text, ["", " "], 9) == [] and len(occurrences("x " * 99, ["x"], 64)) == 64
    assert list(spans_of_tokens([(0, 1), (1, 3), (4, 5)], [(0, 3), (1, 2), (4, 9)])) == [(0, 1), (1, 1)]
    assert attached("a , b . He 's ( here )") == "a, b. He's (here)"
