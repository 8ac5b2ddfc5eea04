"""WikiHop: which of the candidates answers a query, from several documents (section 6.1, appendix D)."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes.data.padding import inputs, padded
from lf_huggingface.recipes.data.words import attached
from lf_huggingface.recipes.formats import qangaroo
from lf_huggingface.recipes.metrics import classes
from lf_huggingface.recipes.models.heads import NEVER, CandidateScorer
from lf_huggingface.recipes.models.reader import load_encoder
from lf_huggingface.recipes.options import Options, option
from lf_huggingface.recipes.task import Batch, Encoded, Task
from lf_huggingface.recipes.tasks.paper import FINE_TUNING, TRIAL


@dataclass
class WikiHopOptions(Options):
    """Options of WikiHop alone, besides those of every task."""

    over_chunks: str = option(
        "A candidate's score over chunks: the average, as the paper says, or the sum, as its script does.",
        "average",
        choices=("average", "sum"),
    )
    no_globals: bool = option("Ablation: no token is global.", False)
    no_projections: bool = option("Ablation: global tokens share the projections of the others.", False)


class WikiHop(Task[WikiHopOptions]):
    """[cls] [q] query [/q] ([ent] candidate [/ent])* [sep], then the supports, each closed by a separator."""

    name: ClassVar[str] = "wikihop"
    kind: ClassVar[type[Options]] = WikiHopOptions
    marks: ClassVar[tuple[str, ...]] = ("[q]", "[/q]", "[ent]", "[/ent]")
    best: ClassVar[str] = "accuracy"
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {**FINE_TUNING, "long": "chunk", "epochs": 15.0, "warmup": 200},
        "large": {"long": "cut"},
        "trial": TRIAL,
    }

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        from lf_huggingface.recipes.trial import files

        files.wikihop(folder, seed)

    def file(self, split: str) -> Path:
        return self.data / f"{split}.json"

    def records(self, path: Path, *, gold: bool) -> Iterator[qangaroo.Question]:
        return qangaroo.read(path, gold)

    def encode(self, records: Iterable[qangaroo.Question], tokenizer: Any, split: str) -> Iterator[Encoded]:
        def ids(text: str) -> list[int]:
            return list(tokenizer(" " + attached(text), add_special_tokens=False, verbose=False)["input_ids"])

        for record in records:
            made: Encoded = {
                "id": record.id,
                "names": record.candidates,
                "query": ids(record.query.replace("_", " ")),
                "candidates": [ids(candidate) for candidate in record.candidates],
                "supports": [ids(support) for support in record.supports],
                "answer": NEVER if record.answer is None else record.candidates.index(record.answer),
            }
            prefix = 5 + len(made["query"]) + sum(len(x) + 2 for x in made["candidates"])
            length = prefix + sum(len(x) + 1 for x in made["supports"])
            self._check(record.id, prefix, length)
            yield {**made, "length": length}

    def _check(self, name: str, prefix: int, length: int) -> None:
        most = self.options.max_length
        assert most is not None
        if prefix >= most:
            raise RecipeError(
                f"{name}: question and candidates below --max-length {most} tokens wanted, they take {prefix}"
            )
        if length > most and self.options.long == "refuse":
            raise RecipeError(f"{name}: at most --max-length {most} tokens wanted, got {length}; see --long")

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        model = CandidateScorer.on(load_encoder(source), over_chunks=self.options.over_chunks)
        if self.options.no_projections:
            share_projections(model)
        return model

    def load_model(self, folder: Path) -> Any:
        model = CandidateScorer.trained(folder)
        if self.options.no_projections:
            share_projections(model)
        return model

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        """All chunks of all questions; candidates and supports are shuffled in training."""
        start, end, mark, close = tokenizer.convert_tokens_to_ids(list(self.marks))
        cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
        assert self.options.max_length is not None
        rows, positions, question, labels, prefixes = [], [], [], [], []
        for number, example in enumerate(examples):
            order = shuffled(range(len(example["candidates"])), rng)
            prefix = [cls, start, *example["query"], end]
            where = [NEVER] * len(order)
            for candidate in order:
                where[candidate] = len(prefix)  # scores stay in the file's order
                prefix += [mark, *example["candidates"][candidate], close]
            prefix.append(sep)
            supports = [token for ids in shuffled(example["supports"], rng) for token in (*ids, sep)]
            room = self.options.max_length - len(prefix)
            for first in range(0, len(supports) if self.options.long == "chunk" else 1, room):
                rows.append(prefix + supports[first : first + room])
                positions.append(where)
                question.append(number)
                prefixes.append(range(0 if self.options.no_globals else len(prefix)))
            labels.append(example["answer"])
        made = inputs(rows, prefixes, tokenizer.pad_token_id)
        return {
            **made, "candidates": padded(positions, NEVER), "question": torch.tensor(question),
            "labels": torch.tensor(labels),
        }  # fmt: skip

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        chosen = model(**batch).logits.argmax(1).tolist()
        return [example["names"][at] for at, example in zip(chosen, examples, strict=True)]

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        truths = [example["names"][example["answer"]] for example in examples]
        return {"accuracy": classes.accuracy(predictions, truths)}

    def write(self, predictions: Sequence[Any], examples: Iterable[Encoded], folder: Path) -> Path:
        """{id: candidate}, as Qangaroo's evaluation takes it."""
        path = folder / "predictions.json"
        run_folder.write_json(
            path, {x["id"]: answer for x, answer in zip(examples, predictions, strict=True)}
        )
        return path

    def notes(self) -> Iterator[str]:
        how = self.options.over_chunks
        yield f"a candidate's score is the {how} over chunks; the paper averages, its script sums"


def shuffled(items: Iterable[Any], rng: random.Random | None) -> list[Any]:
    """Items in a drawn order, or as they are without a generator."""
    found = list(items)
    if rng is not None:
        rng.shuffle(found)
    return found


def share_projections(model: Any) -> None:
    """Let global tokens use the modules that project the others: the same tensors, trained together."""
    for module in model.modules():
        for name in ("query", "key", "value"):
            if hasattr(module, f"{name}_global"):
                setattr(module, f"{name}_global", getattr(module, name))
