"""Documents packed into rows: none is padded, cut or lost, and no two see each other.

    rows = lf_huggingface.pack(tokenized, 16_384, next_token=True)
    loader = DataLoader(rows, batch_size=1, collate_fn=lf_huggingface.collate_packed)
    for batch in loader:
        loss = model(**batch).loss

A document goes to the open row that it fits best (best fit, of a bounded number of open rows), so that a
stream is packed as it comes, and the same stream always in the same way.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from lf_backend._integers import integer
from lf_backend.errors import ShapeError

Row = dict[str, list[int]]
IGNORED = -100  # label of what has no loss


def pack(
    documents: Iterable[Mapping[str, Any]],
    length: int,
    *,
    next_token: bool = False,
    too_long: Literal["error", "split", "cut"] = "error",
    drop: Sequence[str] = (),
    open_rows: int = 256,
) -> PackedRows:
    """Pack documents into rows of at most `length` tokens.

    Args:
        documents: mappings with `input_ids` and any other sequences of as many numbers, such as `labels`,
            `token_type_ids` and `global_attention_mask`: a dataset, or a stream. All have the same names.
        length: the most tokens of a row.
        next_token: labels are for predicting the next token; they are the `input_ids` where a document has
            none, and the first of every document is not predicted from the one before it.
        too_long: what becomes of a document longer than `length`: an error, documents of at most `length`
            tokens each, or its first `length` tokens.
        drop: names of what a document holds and the rows shall not.
        open_rows: how many rows wait for documents that fit; more of them leave fewer slots empty.

    Returns:
        An iterable dataset of rows; see `PackedRows`.

    Raises:
        ShapeError: a number that is none; while iterating, a document that does not fit, which, and why.
    """
    if too_long not in ("error", "split", "cut"):
        raise ShapeError(f"too_long: 'error', 'split' or 'cut' wanted, got {too_long!r}")
    if isinstance(drop, str):
        raise ShapeError(f"drop: a sequence of names wanted, got {drop!r}")
    return PackedRows(
        documents,
        integer("length", length, 1),
        next_token,
        too_long,
        frozenset(drop),
        integer("open_rows", open_rows, 1),
    )


@dataclass(eq=False)
class PackedRows(IterableDataset):  # type: ignore[type-arg]
    """Rows of packed documents, each a dict of lists.

    `input_ids` and what else the documents hold, one behind the other; `position_ids`, which restart with
    every document; and `cu_seq_lens`, where documents begin and the last one ends. Workers of a data loader
    share the documents.

    Attributes:
        rows, tokens: how many the last iteration has given.
    """

    documents: Iterable[Mapping[str, Any]]
    length: int
    next_token: bool
    too_long: str
    drop: frozenset[str]
    open_rows: int
    rows: int = field(default=0, init=False)
    tokens: int = field(default=0, init=False)

    @property
    def filled(self) -> float:
        """The share of the slots of all rows so far that hold a token."""
        return self.tokens / (self.rows * self.length) if self.rows else 0.0

    def __iter__(self) -> Iterator[Row]:
        self.rows = self.tokens = 0
        waiting = _Waiting()
        for document in self._read():
            size = len(document["input_ids"])
            row = waiting.take(self.length - size)
            row.append(document)
            if row.tokens < self.length:
                waiting.put(row)
            else:
                yield self._finished(row)
            if len(waiting) > self.open_rows:
                yield self._finished(waiting.take_fullest())
        for row in waiting.in_order():
            yield self._finished(row)

    def _finished(self, row: _Open) -> Row:
        self.rows += 1
        self.tokens += row.tokens
        return row.written()

    def _read(self) -> Iterator[Row]:
        """Documents that fit, checked; those of this worker."""
        worker, names = get_worker_info(), None
        for index, given in enumerate(self.documents):
            document = _checked(index, given, self.drop)
            if names is not None and document.keys() != names:
                raise ShapeError(
                    f"document {index}: the names of those before it, {sorted(names)}, wanted, got "
                    f"{sorted(document)}"
                )
            names = document.keys()
            if worker is None or index % worker.num_workers == worker.id:
                yield from self._parts(index, document)

    def _parts(self, index: int, document: Row) -> Iterator[Row]:
        size = len(document["input_ids"])
        if size > self.length and self.too_long == "error":
            raise ShapeError(
                f"document {index}: at most length={self.length} tokens wanted, got {size}; too_long='split' "
                "makes several documents of it, too_long='cut' keeps its beginning"
            )
        stop = self.length if self.too_long == "cut" else size
        for start in range(0, stop, self.length):
            part = {name: x[start : start + self.length] for name, x in document.items()}
            if self.next_token:
                part["labels"] = [IGNORED, *part.get("labels", part["input_ids"])[1:]]
            yield part


def collate_packed(rows: Sequence[Row]) -> dict[str, Tensor | int]:
    """Return a batch of one row: the documents of all rows, one behind the other.

    Returns:
        int64 [1, tokens] by name; `cu_seq_lens_q` and `cu_seq_lens_k`, int32 [documents + 1], and
        `max_length_q` and `max_length_k`, the longest document: what transformers' models take.
    """
    if not rows:
        raise ShapeError("rows: at least one wanted, got none")
    names = [name for name in rows[0] if name != "cu_seq_lens"]
    batch: dict[str, Tensor | int] = {
        name: torch.tensor([[number for row in rows for number in row[name]]]) for name in names
    }
    sizes = [end - start for row in rows for start, end in pairwise(row["cu_seq_lens"])]
    ends = torch.tensor([0, *sizes]).cumsum(0, dtype=torch.int32)
    longest = max(sizes)
    batch |= {"cu_seq_lens_q": ends, "cu_seq_lens_k": ends, "max_length_q": longest, "max_length_k": longest}
    return batch


def _checked(index: int, given: Mapping[str, Any], drop: frozenset[str]) -> Row:
    """A document as lists of numbers, without what is to be dropped and a mask that masks nothing."""
    if not isinstance(given, Mapping) or "input_ids" not in given:
        got = sorted(given) if isinstance(given, Mapping) else type(given).__name__
        raise ShapeError(f"document {index}: a mapping with input_ids wanted, got {got}")
    size = len(given["input_ids"])
    if size == 0:
        raise ShapeError(f"document {index}: at least one token wanted, got none")
    document: Row = {}
    for name, value in given.items():
        if name in drop:
            continue
        numbers = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(numbers, str) or not isinstance(numbers, Sequence) or len(numbers) != size:
            raise ShapeError(
                f"document {index}: {name} of {size} numbers, as many as input_ids, wanted, got {value!r}; "
                f"drop=({name!r},) leaves it out"
            )
        if name != "attention_mask":
            document[name] = list(numbers)
        elif not all(numbers):
            raise ShapeError(f"document {index}: no padding wanted, got an attention_mask with zeros")
    return document


class _Open:
    """A row that documents may still join."""

    def __init__(self, number: int) -> None:
        self.number, self.tokens = number, 0
        self.documents: list[Row] = []

    def append(self, document: Row) -> None:
        self.documents.append(document)
        self.tokens += len(document["input_ids"])

    def written(self) -> Row:
        row: Row = {name: [x for d in self.documents for x in d[name]] for name in self.documents[0]}
        row["position_ids"] = [at for d in self.documents for at in range(len(d["input_ids"]))]
        ends = [0]
        for document in self.documents:
            ends.append(ends[-1] + len(document["input_ids"]))
        return row | {"cu_seq_lens": ends}


class _Waiting:
    """Open rows, the emptiest first and of equals the oldest last."""

    def __init__(self) -> None:
        self._sorted: list[tuple[int, int]] = []
        self._rows: dict[int, _Open] = {}
        self._made = 0

    def __len__(self) -> int:
        return len(self._sorted)

    def take(self, room: int) -> _Open:
        """The fullest row of at most `room` tokens, the oldest of equals; a new one if there is none."""
        at = bisect_left(self._sorted, (room + 1, -self._made - 1))
        if at == 0:
            self._made += 1
            return _Open(self._made)
        return self._rows.pop(-self._sorted.pop(at - 1)[1])

    def take_fullest(self) -> _Open:
        return self._rows.pop(-self._sorted.pop()[1])

    def put(self, row: _Open) -> None:
        insort(self._sorted, (row.tokens, -row.number))
        self._rows[row.number] = row

    def in_order(self) -> list[_Open]:
        """All that are left, the oldest first."""
        return [self._rows[number] for number in sorted(self._rows)]
