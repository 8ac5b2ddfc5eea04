"""Masked language modelling on long text (section 5): a converted model learns to use its length."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

import lf_huggingface
from lf_huggingface.conversion import positions
from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.data.padding import inputs, padded
from lf_huggingface.recipes.formats import plain_text
from lf_huggingface.recipes.models import encoders
from lf_huggingface.recipes.options import Options, option
from lf_huggingface.recipes.task import Batch, Encoded, Task
from lf_huggingface.recipes.tasks.paper import TRIAL

IGNORED = -100
EVALUATION_SEED = "evaluation"  # the same tokens are masked in every evaluation


@dataclass
class MLMOptions(Options):
    """Options of masked language modelling alone, besides those of every task."""

    masked: float = option("Share of tokens that are masked.", 0.15)
    copy_projections: bool = option(
        "Copy q, k and v to the projections of global tokens at the end: this task does not train them.", True
    )
    only_positions: bool = option("Train the new position embeddings alone (section 5).", False)
    apart: bool = option("Let no document see another, in place of text that goes on between them.", False)
    pack: bool = option("With --apart, pack documents into rows where the model takes packed rows.", True)


class MLM(Task[MLMOptions]):
    """Rows are full: text goes on from document to document, with a separator between.

    Documents that are apart are packed, if the model takes packed rows; else each is a row, and padded.
    """

    name: ClassVar[str] = "mlm"
    kind: ClassVar[type[Options]] = MLMOptions
    best: ClassVar[str] = "bits"
    lower_is_better: ClassVar[bool] = True
    has_predictions: ClassVar[bool] = False
    ways: ClassVar[tuple[str, ...]] = ("chunk",)
    encoding: ClassVar[frozenset[str]] = Task.encoding | {"apart"}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {
            "max_length": 4096, "attention_window": 512, "long": "chunk", "learning_rate": 3e-5, "batch": 64,
            "epochs": 1.0, "updates": 65_000, "warmup": 500, "schedule": "polynomial", "power": 3.0,
            "weight_decay": 0.01, "adam_beta2": 0.999, "adam_epsilon": 1e-6, "max_grad_norm": 5.0,
            "device_batch": 1,
        },
        "large": {},
        "trial": {**TRIAL, "updates": 12, "evaluate_every": 6},
    }  # fmt: skip

    def __init__(self, options: MLMOptions, folder: str = "") -> None:
        super().__init__(options, folder)
        self._first_position = 0
        if not options.pack and not options.apart:
            raise RecipeError("--no-pack: with --apart alone")

    @property
    def packs(self) -> bool:
        """Whether documents are packed into rows.

        Raises:
            RecipeError: they are, and processes shall share a row.
        """
        if not (self.options.apart and self.options.pack and encoders.takes_packed_rows(self.source)):
            return False
        if self.options.context_parallel > 1:
            raise RecipeError(
                "--context-parallel: 1 wanted with packed rows, got "
                f"{self.options.context_parallel}; --no-pack pads them"
            )
        return True

    def carried_key(self, split: str) -> Any:
        return self.packs

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        from lf_huggingface.recipes.trial import files

        files.text(folder, seed)

    def file(self, split: str) -> Path:
        found = [
            path for name in (split, f"{split}.txt", f"{split}.jsonl") if (path := self.data / name).exists()
        ]
        return found[0] if found else self.data / f"{split}.txt"

    def records(self, path: Path, *, gold: bool) -> Iterator[str]:
        return plain_text.read(path)

    def encode(self, records: Iterable[str], tokenizer: Any, split: str) -> Iterator[Encoded]:
        most = self.options.max_length
        assert most is not None
        if not self.options.apart:
            yield from self._joined(records, tokenizer, most - 2)
        elif not self.packs:
            yield from self._documents(records, tokenizer, most - 2)
        else:
            documents = ({"input_ids": x["ids"]} for x in self._documents(records, tokenizer, most - 2))
            for row in lf_huggingface.pack(documents, most):
                ids = row["input_ids"]
                yield {"ids": ids, "ends": row["cu_seq_lens"][1:], "length": len(ids)}

    def _documents(self, records: Iterable[str], tokenizer: Any, room: int) -> Iterator[Encoded]:
        """Each document, or each part of a long one."""
        for text in records:
            ids = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            for start in range(0, len(ids), room):
                yield self._row(ids[start : start + room], tokenizer)

    def _joined(self, records: Iterable[str], tokenizer: Any, room: int) -> Iterator[Encoded]:
        held = list[int]()
        for text in records:
            held += [
                *tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"],
                tokenizer.sep_token_id,
            ]
            while len(held) >= room:
                yield self._row(held[:room], tokenizer)
                held = held[room:]
        if len(held) > 1:
            yield self._row(held, tokenizer)

    def _row(self, ids: list[int], tokenizer: Any) -> Encoded:
        row = [tokenizer.cls_token_id, *ids, tokenizer.sep_token_id]
        return {"ids": row, "length": len(row)}

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        model = self.load_model(source)
        if self.options.only_positions:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name.endswith("position_embeddings.weight"))
        return model

    def load_model(self, folder: Path) -> Any:
        model = encoders.load(transformers.AutoModelForMaskedLM, folder)
        self._first_position = max(positions.tables(model).values(), default=0)
        return model

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        """Ids with a share masked: 80% by the mask, 10% by another token, 10% left; labels of these."""
        special = set(tokenizer.all_special_ids)
        rows, labels = [], []
        for example in examples:
            row, label = list(example["ids"]), [IGNORED] * len(example["ids"])
            draw = rng or random.Random(f"{EVALUATION_SEED}/{row}")  # in whatever batch it comes
            for at, token in enumerate(row):
                if token not in special and draw.random() < self.options.masked:
                    label[at], what = token, draw.random()
                    row[at] = (
                        tokenizer.mask_token_id
                        if what < 0.8
                        else token
                        if what < 0.9
                        else draw.randrange(len(tokenizer))
                    )
            rows.append(row)
            labels.append(label)
        if examples and "ends" in examples[0]:
            return self._packed(rows, labels, [example["ends"] for example in examples])
        made = inputs(rows, [[] for _ in rows], tokenizer.pad_token_id)
        del made["global_attention_mask"]  # no token is global
        return {**made, "labels": padded(labels, IGNORED)}

    def _packed(
        self, rows: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], ends: Sequence[Sequence[int]]
    ) -> Batch:
        """One row of all documents; what a position of it is called depends on the model."""
        sizes = [end - start for row in ends for start, end in pairwise([0, *row])]
        boundaries = torch.tensor([0, *sizes]).cumsum(0, dtype=torch.int32)
        counted = [self._first_position + at for size in sizes for at in range(size)]
        return {
            "input_ids": torch.tensor([[token for row in rows for token in row]]),
            "position_ids": torch.tensor([counted]),
            "cu_seq_lens_q": boundaries,
            "cu_seq_lens_k": boundaries,
            "labels": torch.tensor([[label for row in labels for label in row]]),
        }

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        """(nats, tokens) of each row."""
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        labels, found = batch["labels"], []
        if "ends" in examples[0]:
            sizes = [len(example["ids"]) for example in examples]
            logits, labels = logits[0].split(sizes), labels[0].split(sizes)
        for row, label in zip(logits, labels, strict=True):
            at = label != IGNORED
            nats = torch.nn.functional.cross_entropy(row[at].float(), label[at], reduction="sum")
            found.append([float(nats), int(at.sum())])
        return found

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        """Bits per masked token: what the paper calls BPC."""
        nats, tokens = (sum(row[at] for row in predictions) for at in (0, 1))
        return {"bits": nats / max(tokens, 1) / math.log(2), "tokens": tokens}

    def finish(self, model: Any) -> None:
        """Copy q, k and v to the projections of global tokens, which this task does not train."""
        if not self.options.copy_projections:
            return
        for module in model.modules():
            for name in ("query", "key", "value"):
                if hasattr(module, f"{name}_global"):
                    getattr(module, f"{name}_global").load_state_dict(getattr(module, name).state_dict())
