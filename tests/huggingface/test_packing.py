"""Packing: nothing is lost, cut or padded unless asked, and training sees what it saw unpacked."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

import lf_backend as lf
import lf_huggingface
from tests.huggingface import families


def _document(size: int, first: int = 0) -> dict[str, Any]:
    return {"input_ids": [(first + at) % 50 + 5 for at in range(size)]}


@given(sizes=st.lists(st.integers(1, 30), max_size=60), open_rows=st.integers(1, 8))
def test_every_document_is_in_one_row_whole(sizes: list[int], open_rows: int) -> None:
    documents = [_document(size, first=7 * at) for at, size in enumerate(sizes)]
    rows = lf_huggingface.pack(iter(documents), 30, open_rows=open_rows)
    found = list(rows)
    assert all(1 <= len(row["input_ids"]) <= 30 for row in found)
    parts = []
    for row in found:
        ends = row["cu_seq_lens"]
        assert ends[0] == 0 and ends[-1] == len(row["input_ids"])
        for low, high in pairwise(ends):
            assert row["position_ids"][low:high] == list(range(high - low))
            parts.append(tuple(row["input_ids"][low:high]))
    assert Counter(parts) == Counter(tuple(d["input_ids"]) for d in documents)
    assert rows.tokens == sum(sizes) and rows.rows == len(found)
    assert list(lf_huggingface.pack(documents, 30, open_rows=open_rows)) == found


def test_a_document_goes_where_it_fits_best() -> None:
    rows = lf_huggingface.pack([_document(size) for size in (6, 7, 3, 4, 10)], 10)
    assert [row["cu_seq_lens"] for row in rows] == [[0, 7, 10], [0, 6, 10], [0, 10]]
    assert rows.filled == 1.0


def test_what_is_too_long() -> None:
    documents = [_document(25), _document(3)]
    with pytest.raises(lf.ShapeError, match="document 0: at most length=10 tokens wanted, got 25"):
        list(lf_huggingface.pack(documents, 10))
    split = list(lf_huggingface.pack(documents, 10, too_long="split"))
    assert sum(len(row["input_ids"]) for row in split) == 28
    assert sum(len(row["input_ids"]) for row in lf_huggingface.pack(documents, 10, too_long="cut")) == 13


def test_labels_of_the_next_token_end_with_their_document() -> None:
    row = next(iter(lf_huggingface.pack([_document(3), _document(2)], 5, next_token=True)))
    assert row["labels"] == [-100, 6, 7, -100, 6]
    given = [{**_document(3), "labels": [1, 2, 3]}]
    assert next(iter(lf_huggingface.pack(given, 5, next_token=True)))["labels"] == [-100, 2, 3]
    assert next(iter(lf_huggingface.pack(given, 5)))["labels"] == [1, 2, 3]


@pytest.mark.parametrize(
    "document, words",
    [
        ({"text": "a"}, "document 1: a mapping with input_ids wanted"),
        ({"input_ids": []}, "document 1: at least one token"),
        ({"input_ids": [1, 2], "text": "ab"}, r"document 1: text of 2 numbers, .* drop=\('text',\)"),
        ({"input_ids": [1, 2], "labels": [1]}, "document 1: labels of 2 numbers"),
        ({"input_ids": [1, 2], "attention_mask": [1, 0]}, "document 1: no padding wanted"),
        ({"input_ids": [1, 2], "labels": [1, 2]}, "document 1: the names of those before it"),
    ],
)
def test_a_document_that_does_not_fit_is_named(document: dict[str, Any], words: str) -> None:
    with pytest.raises(lf.ShapeError, match=words):
        list(lf_huggingface.pack([_document(2), document], 10))


def test_numbers_that_are_none() -> None:
    for arguments in ({"length": 0}, {"length": 5, "open_rows": 0}, {"length": 5, "too_long": "crop"}):
        with pytest.raises(lf.LFError):
            lf_huggingface.pack([], **arguments)
    with pytest.raises(lf.ShapeError, match="rows: at least one"):
        lf_huggingface.collate_packed([])


def test_workers_share_the_documents() -> None:
    documents = [_document(3 + at % 4, first=at) for at in range(20)]
    loader = DataLoader(lf_huggingface.pack(documents, 12), batch_size=None, num_workers=2, collate_fn=None)
    found = [tuple(row["input_ids"][a:b]) for row in loader for a, b in _parts(row)]
    assert Counter(found) == Counter(tuple(d["input_ids"]) for d in documents)


def _parts(row: dict[str, list[int]]) -> list[tuple[int, int]]:
    return list(pairwise(row["cu_seq_lens"]))


@pytest.mark.parametrize("family", ["Mistral", "Llama"])
def test_training_on_rows_sees_the_losses_of_the_documents(family: str, tmp_path: Any) -> None:
    """A Trainer's losses over packed rows are those of the same documents, one row each, of equal weight."""
    documents = [_document(size, first=3 * size) for size in (5, 9, 14, 3, 11, 6)]
    rows = list(lf_huggingface.pack(documents, 20, next_token=True))
    by_row = [
        [{"input_ids": row["input_ids"][a:b], "labels": row["labels"][a:b]} for a, b in _parts(row)]
        for row in rows
    ]

    def losses(model: Any, dataset: list[Any], collate: Any) -> list[float]:
        arguments = transformers.TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=1,
            max_steps=len(dataset),
            logging_steps=1,
            report_to=[],
            use_cpu=True,
            learning_rate=1e-2,
            disable_tqdm=True,
            save_strategy="no",
            seed=3,
            remove_unused_columns=False,
            dataloader_pin_memory=False,
        )
        trainer = transformers.Trainer(model, arguments, train_dataset=dataset, data_collator=collate)
        trainer.get_train_dataloader = lambda: DataLoader(dataset, batch_size=1, collate_fn=collate)
        trainer.train()
        return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]

    def padded(batch: list[Any]) -> dict[str, torch.Tensor]:
        """The documents of one row as rows of their own."""
        (parts,) = batch
        longest = max(len(part["input_ids"]) for part in parts)

        def filled(name: str, value: int) -> torch.Tensor:
            return torch.tensor([part[name] + [value] * (longest - len(part[name])) for part in parts])

        ids = filled("input_ids", 1)
        mask = torch.tensor([[at < len(p["input_ids"]) for at in range(longest)] for p in parts])
        return {"input_ids": ids, "labels": filled("labels", -100), "attention_mask": mask.long()}

    packed = losses(families.build(family).train(), rows, lf_huggingface.collate_packed)
    apart = losses(families.build(family).train(), by_row, padded)
    assert packed == pytest.approx(apart, abs=2e-4)
