"""Classification of documents (section 6.1): IMDB, Hyperpartisan, or a table of one's own."""

from __future__ import annotations

import dataclasses
import json
import random
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
import transformers

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.data.padding import inputs
from lf_huggingface.recipes.formats import labelled
from lf_huggingface.recipes.formats.json_files import need_file
from lf_huggingface.recipes.metrics import classes
from lf_huggingface.recipes.models import encoders
from lf_huggingface.recipes.options import Options, by_size, option
from lf_huggingface.recipes.task import TRAIN, Batch, Encoded, Task
from lf_huggingface.recipes.tasks.paper import FINE_TUNING, TRIAL

HYPERPARTISAN, LABELS = "training-byarticle-20181122.xml", ("false", "true")
PUBLIC = "hp-splits.json"


@dataclass
class ClassifyOptions(Options):
    """Options of classification alone, besides those of every task."""

    format: str | None = by_size("Of the data.", choices=("imdb", "hyperpartisan", "table"))
    labels: list[str] = dataclasses.field(
        default_factory=list, metadata={"help": "Of a table, in order; the last of two is the positive one."}
    )
    split: str = option(
        f"Hyperpartisan's: clean, or the public one of {PUBLIC}, with 51 of 65 test articles in training.",
        "clean",
        choices=("clean", "public"),
    )
    seeds: int = option("Train so many times, with seeds from --seed on; metrics are means.", 1)


class Classify(Task[ClassifyOptions]):
    """[cls] document [sep], [cls] is global; cross-entropy, for two labels the paper's binary one."""

    name: ClassVar[str] = "classify"
    kind: ClassVar[type[Options]] = ClassifyOptions
    best: ClassVar[str] = "f1"
    ways: ClassVar[tuple[str, ...]] = ("cut", "refuse")
    encoding: ClassVar[frozenset[str]] = Task.encoding | {"format", "labels", "split"}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {**FINE_TUNING, "epochs": 15.0, "warmup": 0.1, "adam_beta2": 0.999, "format": "imdb"},
        "large": {},
        "trial": {**TRIAL, "format": "hyperpartisan"},
    }

    def __init__(self, options: ClassifyOptions, folder: str = "") -> None:
        super().__init__(options, folder)
        if options.format == "table" and len(options.labels) < 2:
            raise RecipeError(f"--labels: at least two wanted with --format table, got {options.labels}")
        if options.format != "table" and options.labels:
            raise RecipeError(f"--labels: none wanted with --format {options.format}, got {options.labels}")
        if options.split != "clean" and options.format != "hyperpartisan":
            raise RecipeError(f"--split: clean wanted with --format {options.format}, got {options.split}")

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        from lf_huggingface.recipes.trial import files

        files.hyperpartisan(folder, seed)

    def stages(self) -> Sequence[Task[ClassifyOptions]]:
        given = self.options
        if given.seeds == 1:
            return (self,)
        seeds = range(given.seed, given.seed + given.seeds)
        return [Classify(dataclasses.replace(given, seed=seed), f"seed-{seed}") for seed in seeds]

    @property
    def classes(self) -> tuple[str, ...]:
        """The labels, in the order of the model's outputs; of two the last is the positive one."""
        known = {"imdb": ("neg", "pos"), "hyperpartisan": LABELS}
        return known.get(str(self.options.format), tuple(self.options.labels))

    def file(self, split: str) -> Path:
        if self.options.format == "imdb":
            return self.data / ("train" if split == TRAIN else "test")
        if self.options.format == "hyperpartisan":
            return self.data / f"articles-{HYPERPARTISAN}"
        found = [path for kind in ("csv", "jsonl") if (path := self.data / f"{split}.{kind}").exists()]
        return found[0] if found else self.data / f"{split}.csv"

    def records(self, path: Path, *, gold: bool) -> Iterator[labelled.Document]:
        if self.options.format == "imdb":
            return labelled.imdb(path, gold)
        if self.options.format == "table":
            return labelled.table(path, gold)
        truth = path.with_name(path.name.replace("articles-", "ground-truth-"))
        return labelled.hyperpartisan(path, truth if gold else None)

    def encode(self, records: Iterable[labelled.Document], tokenizer: Any, split: str) -> Iterator[Encoded]:
        part = self._part(split)
        for record in records:
            if part is not None and record.id not in part:
                continue
            if record.label is not None and record.label not in self.classes:
                raise RecipeError(
                    f"{record.id}: a label of {', '.join(self.classes)} wanted, got {record.label!r}"
                )
            ids = tokenizer(record.text, add_special_tokens=False, verbose=False)["input_ids"]
            assert self.options.max_length is not None
            room = self.options.max_length - 2
            if len(ids) > room and self.options.long == "refuse":
                raise RecipeError(f"{record.id}: at most {room} tokens wanted, got {len(ids)}; see --long")
            label = -1 if record.label is None else self.classes.index(record.label)
            yield {"id": record.id, "ids": ids[:room], "label": label, "length": min(len(ids), room) + 2}

    def _part(self, split: str) -> set[str] | None:
        """Ids of the articles of a split of Hyperpartisan; None where files are splits."""
        if self.options.format != "hyperpartisan" or self.options.input is not None:
            return None
        return set(self.parts()[split])

    def parts(self) -> dict[str, list[str]]:
        """Ids of Hyperpartisan's training, development and test articles."""
        if self.options.split == "clean":
            return labelled.clean_parts(labelled.hyperpartisan(self.file(TRAIN), None))
        need_file(self.data / PUBLIC)
        found = json.loads((self.data / PUBLIC).read_text("utf8"))
        if missing := [split for split in labelled.SPLITS if split not in found]:
            raise RecipeError(
                f"{self.data / PUBLIC}: ids under train, dev and test wanted, without {missing}"
            )
        return {split: [str(name) for name in found[split]] for split in labelled.SPLITS}

    def notes(self) -> Iterator[str]:
        if self.options.split == "public":
            parts = self.parts()
            yield (
                f"WARNING: {len(labelled.leaked(parts))} of {len(parts['test'])} test articles of the public "
                "split are in its training part; its numbers say nothing about new articles"
            )

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        return encoders.load(
            transformers.AutoModelForSequenceClassification,
            source,
            optional=("classifier", "head", "score", "pre_"),
            num_labels=len(self.classes),
            id2label=dict(enumerate(self.classes)),
            label2id={name: at for at, name in enumerate(self.classes)},
            problem_type="single_label_classification",
        )

    def load_model(self, folder: Path) -> Any:
        return encoders.load(transformers.AutoModelForSequenceClassification, folder)

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        rows = [[tokenizer.cls_token_id, *x["ids"], tokenizer.sep_token_id] for x in examples]
        made = inputs(rows, [[0] for _ in rows], tokenizer.pad_token_id)
        return {**made, "labels": torch.tensor([x["label"] for x in examples])}

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        logits = model(**{k: v for k, v in batch.items() if k != "labels"}).logits
        return [self.classes[at] for at in logits.argmax(1).tolist()]

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        """Accuracy, and F1 of the positive label of two, or the mean over more."""
        truths = [self.classes[x["label"]] for x in examples]
        if len(self.classes) == 2:
            f1 = classes.f1(predictions, truths, self.classes[1])
        else:
            f1 = classes.macro_f1(predictions, truths, self.classes)
        return {"accuracy": classes.accuracy(predictions, truths), "f1": f1}

    def summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Mean and standard deviation over seeds."""
        if self.options.seeds == 1:
            return {}
        found: dict[str, Any] = {}
        for name in ("accuracy", "f1"):
            values = [row[name] for row in metrics.values()]
            found |= {
                f"mean {name}": statistics.mean(values),
                f"deviation of {name}": statistics.stdev(values),
            }
        return found

    def write(self, predictions: Sequence[Any], examples: Iterable[Encoded], folder: Path) -> Path:
        """A line "id label" for each document, as the Hyperpartisan task takes it."""
        path = folder / "predictions.txt"
        rows = zip(examples, predictions, strict=True)
        path.write_text("".join(f"{x['id']} {label}\n" for x, label in rows), "utf8")
        return path
