"""Order of examples, the cache, and what tasks make of records: chunks, spans, evidence."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from transformers import LongformerConfig

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.data.order import Examples, Order
from lf_huggingface.recipes.data.store import Store, cached
from lf_huggingface.recipes.models import encoders
from lf_huggingface.recipes.options import settled
from lf_huggingface.recipes.tasks import TASKS
from lf_huggingface.recipes.tasks.mlm import IGNORED, MLM, MLMOptions
from lf_huggingface.recipes.trial import model as trial_model

SMALL: dict[str, Any] = {
    "vocab_size": 800, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 90, "pad_token_id": 1, "bos_token_id": 0,
    "eos_token_id": 2,
}  # fmt: skip


@pytest.mark.parametrize("grouped", [False, True])
def test_an_epoch_has_every_example_once_in_an_order_of_its_own(grouped: bool) -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 803)
    order, again = Order(lengths, 1, 8, grouped), Order(lengths, 1, 8, grouped)
    first = order.indices()
    assert sorted(first) == list(range(803))
    order.epoch = again.epoch = 3
    assert list(order) == list(again) and not np.array_equal(order.indices(), first)
    assert next(iter(order))[0] == 3
    assert not np.array_equal(Order(lengths, 2, 8, grouped).indices(), first)
    waste = sum(
        8 * lengths[first[at : at + 8]].max() - lengths[first[at : at + 8]].sum() for at in range(0, 800, 8)
    )
    assert (waste < 0.1 * lengths.sum()) == grouped


def test_the_cache_is_read_one_by_one_and_made_once(tmp_path: Path) -> None:
    rows = [{"length": n, "ids": list(range(n)), "text": "é" * n} for n in (3, 1, 2)]
    made = cached(tmp_path, "x", {"a": 1}, lambda: iter(rows))
    assert list(made) == rows and made.lengths.tolist() == [3, 1, 2] and made[2] == rows[2]

    def never() -> Any:
        raise AssertionError("it is there")

    assert list(cached(tmp_path, "x", {"a": 1}, never)) == rows
    assert list(cached(tmp_path, "x", {"a": 2}, lambda: rows[:1])) == rows[:1]
    with pytest.raises(RecipeError, match="x: at least one example wanted, got none"):
        cached(tmp_path, "x", {"a": 3}, lambda: [])
    examples = Examples(Store(next(tmp_path.glob("x-*.jsonl"))), 5)
    drawn = [examples[epoch, 0][2].random() for epoch in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2] and examples[0][2] is None


def _task(name: str, folder: Path, **given: Any) -> tuple[Any, Any, list[Any]]:
    """A task on its trial's data, a tokenizer, and its encoded training examples."""
    kind = TASKS[name]
    kind.trial_data(folder / "data", 1)
    trial_model.make(folder / "model", folder / "data", decoder=False)
    task = kind(settled(kind.kind(trial=True, **given), kind.sizes))
    task.data = folder / "data"
    tokenizer = encoders.load_tokenizer(folder / "model")
    tokenizer.add_special_tokens({"additional_special_tokens": list(kind.marks)})
    return task, tokenizer, list(task.encode(task.records(task.file("train"), gold=True), tokenizer, "train"))


def test_chunks_of_wikihop_hold_every_support_once_behind_the_prefix(tmp_path: Path) -> None:
    task, tokenizer, examples = _task("wikihop", tmp_path, max_length=80, long="chunk")
    batch = task.batch(examples[:2], tokenizer, None)
    assert batch["input_ids"].shape[1] == 80 and len(batch["question"]) > 4
    for number, example in enumerate(examples[:2]):
        rows = batch["input_ids"][batch["question"] == number]
        prefix = int(batch["global_attention_mask"][batch["question"] == number][0].sum())
        assert (rows[:, :prefix] == rows[0, :prefix]).all()
        mask = batch["attention_mask"][batch["question"] == number].bool()
        rest = [int(x) for row, keep in zip(rows, mask, strict=True) for x in row[keep][prefix:]]
        assert rest == [x for ids in example["supports"] for x in (*ids, tokenizer.sep_token_id)]
        marks = rows[0, batch["candidates"][batch["question"] == number][0]]
        assert (marks == tokenizer.convert_tokens_to_ids("[ent]")).all()
    shuffled = task.batch(examples[:2], tokenizer, random.Random(0))
    assert shuffled["labels"].equal(batch["labels"])
    where = shuffled["candidates"][0]  # scores stay in the file's order
    first = shuffled["input_ids"][0, int(where[0]) + 1]
    assert int(first) == examples[0]["candidates"][0][0] and not where.equal(batch["candidates"][0])


def test_spans_of_triviaqa_are_the_answer(tmp_path: Path) -> None:
    task, tokenizer, examples = _task("triviaqa", tmp_path)
    batch = task.batch(examples[:4], tokenizer, None)
    for row, example in enumerate(examples[:4]):
        assert len(example["spans"]) == 2
        for start, end in zip(batch["gold_starts"][row], batch["gold_ends"][row], strict=True):
            text = tokenizer.decode(batch["input_ids"][row, start : end + 1]).strip(" .")
            assert text.lower() == example["aliases"][0].lower()
    pieces, _, _ = _task("triviaqa", tmp_path / "chunks", max_length=60, long="chunk")
    read = list(pieces.encode(pieces.records(pieces.file("train"), gold=True), tokenizer, "train"))
    whole = [x for x in read if x["id"] == read[0]["id"]]
    assert len(whole) > 1 and all(x["length"] <= 60 for x in read)
    assert [x for piece in whole for x in piece["document"]] == examples[0]["document"]
    predictions = [[f"text {n}", float(n)] for n in range(len(whole))]
    assert pieces._chosen(predictions, whole) == {whole[0]["id"]: f"text {len(whole) - 1}"}


def test_evidence_of_hotpotqa_is_where_the_facts_are(tmp_path: Path) -> None:
    task, tokenizer, examples = _task("hotpotqa", tmp_path)
    records = list(task.records(task.file("train"), gold=True))
    for record, example in zip(records[:6], examples, strict=False):
        facts = [
            (t, n) for gold, (_, t, n) in zip(example["gold_marks"], example["marks"], strict=True) if gold
        ]
        assert sorted(facts) == sorted(record.facts)
        assert sum(example["gold_titles"]) == 2
        assert {example["ids"][at] for at, _, _ in example["marks"]} == {
            tokenizer.convert_tokens_to_ids("[s]")
        }
        assert example["kind"] == (1 if record.answer == "yes" else 0)
        for first, last in example["spans"]:
            text = example["text"][example["offsets"][first][0] : example["offsets"][last][1]]
            assert text.strip(" .") == record.answer
        assert bool(example["spans"]) == (record.answer != "yes")


def test_stages_of_hotpotqa_hand_paragraphs_on(tmp_path: Path) -> None:
    task, tokenizer, _ = _task("hotpotqa", tmp_path)
    first, second = task.stages()
    first.data = second.data = task.data
    records = list(task.records(task.file("dev"), gold=True))
    encoded = list(first.encode(records, tokenizer, "dev"))
    scores = [
        {"paragraphs": [(title, -float(n)) for n, (_, title) in enumerate(x["titles"])]} for x in encoded
    ]
    found = first.selected(scores, encoded)
    assert all(len(titles) == 3 for titles in found.values())  # 0, -1 and -2 are above -3
    first.hand_on({"dev": found, "train": {record.id: [] for record in records}})
    for x, record in zip(second.encode(records, tokenizer, "dev"), records, strict=True):
        assert {title for _, title in x["titles"]} == set(found[record.id])
    for x, record in zip(second.encode(records, tokenizer, "train"), records, strict=True):
        assert {title for _, title in x["titles"]} == {
            title for title, _ in record.facts
        }  # always in training


def test_masking_is_that_of_the_paper_and_the_same_in_every_evaluation(tmp_path: Path) -> None:
    task, tokenizer, examples = _task("mlm", tmp_path)
    batch, again = (task.batch(examples[:4], tokenizer, None) for _ in range(2))
    assert all(batch[name].equal(again[name]) for name in batch)
    drawn = [task.batch([x], tokenizer, random.Random(n)) for n, x in enumerate(examples[:40])]
    chosen = sum(int((x["labels"] != IGNORED).sum()) for x in drawn)
    total = sum(x["labels"].numel() for x in drawn)
    masked = sum(int((x["input_ids"] == tokenizer.mask_token_id).sum()) for x in drawn)
    assert abs(chosen / total - 0.15) < 0.02 and abs(masked / chosen - 0.8) < 0.05
    for example, x in zip(examples, drawn, strict=False):
        at = x["labels"][0] != IGNORED
        ids = np.array(example["ids"])
        assert (ids[at.numpy()] == x["labels"][0][at].numpy()).all()
        assert (ids[~at.numpy()] == x["input_ids"][0][~at].numpy()).all()
        assert not set(x["labels"][0][at].tolist()) & set(tokenizer.all_special_ids)


CONFIGS = {
    "roberta": lambda: transformers.RobertaConfig(**SMALL, lf_attention="window(8, 8)"),  # from 2 on
    "bert": lambda: transformers.BertConfig(**SMALL, lf_attention="window(8, 8)"),
    "modernbert": lambda: transformers.ModernBertConfig(
        **SMALL, local_attention=16, cls_token_id=0, sep_token_id=2
    ),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_losses_of_packed_rows_are_those_of_padded_documents(kind: str, tmp_path: Path) -> None:
    packed, tokenizer, _ = _task("mlm", tmp_path)
    source = tmp_path / kind
    auto: Any = transformers.AutoModelForMaskedLM
    auto.from_config(CONFIGS[kind]()).save_pretrained(source)
    made = {}
    texts = [x[: 20 * n] for n, x in enumerate(packed.records(packed.file("train"), gold=True), 1)][:12]
    for pack in (True, False):
        task = TASKS["mlm"](settled(MLMOptions(trial=True, apart=True, pack=pack, max_length=80), MLM.sizes))
        task.source = source
        made[pack] = task, list(task.encode(texts, tokenizer, "train"))
    (packed, rows), (padded, documents) = made[True], made[False]
    parts = [row["ids"][a:b] for row in rows for a, b in pairwise([0, *row["ends"]])]
    assert len(rows) < len(documents) == len(parts) and max(len(row["ids"]) for row in rows) <= 80
    assert sorted(parts) == sorted(x["ids"] for x in documents)
    model = packed.new_model(source, tokenizer).eval()
    found = []
    for task, examples in ((packed, rows), (padded, [{"ids": ids} for ids in parts])):
        batch = task.batch(examples, tokenizer, random.Random(3))  # the same tokens are masked
        loss = model(**batch).loss
        loss.backward()
        gradients = [x.grad.clone() for x in model.parameters() if x.grad is not None]
        model.zero_grad()
        with torch.no_grad():
            found.append((loss.detach(), gradients, task.predict(model, batch, examples)))
    (one, one_gradients, one_nats), (two, two_gradients, two_nats) = found
    torch.testing.assert_close(one, two)
    torch.testing.assert_close(one_gradients, two_gradients)
    assert len(one_nats) == len(rows)
    assert packed.score(one_nats, rows) == pytest.approx(padded.score(two_nats, documents))


def test_a_patched_model_takes_documents_apart_in_rows_of_their_own(tmp_path: Path) -> None:
    _, tokenizer, _ = _task("mlm", tmp_path)
    task = MLM(settled(MLMOptions(trial=True, apart=True), MLM.sizes))
    task.source = tmp_path / "long"
    LongformerConfig(**SMALL, attention_window=16).save_pretrained(task.source)
    rows = list(task.encode(["one two", "three"], tokenizer, "train"))
    ends = (tokenizer.cls_token_id, tokenizer.sep_token_id)
    assert [x["ids"] for x in rows] == [
        [ends[0], *tokenizer(text)["input_ids"], ends[1]] for text in ("one two", "three")
    ]
    assert not any("ends" in x for x in rows)


def test_hyperpartisan_s_parts_are_apart(tmp_path: Path) -> None:
    task, tokenizer, train = _task("classify", tmp_path)
    dev = list(task.encode(task.records(task.file("dev"), gold=True), tokenizer, "dev"))
    parts = task.parts()
    assert {x["id"] for x in train} == set(parts["train"]) and {x["id"] for x in dev} == set(parts["dev"])
    assert not set(parts["train"]) & (set(parts["dev"]) | set(parts["test"]))
    assert json.dumps(parts) == json.dumps(task.parts())
