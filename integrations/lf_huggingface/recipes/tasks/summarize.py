"""Summarisation of long documents with LED (section 7): arXiv and PubMed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import transformers

from lf_backend._optional import optional
from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes.data.padding import inputs, padded
from lf_huggingface.recipes.formats import articles
from lf_huggingface.recipes.models import encoders
from lf_huggingface.recipes.options import Options, by_size, option
from lf_huggingface.recipes.task import TRAIN, Batch, Encoded, Task
from lf_huggingface.recipes.tasks.paper import FINE_TUNING, TRIAL

IGNORED = -100
ROUGE = ("rouge1", "rouge2", "rougeL", "rougeLsum")


@dataclass
class SummarizeOptions(Options):
    """Options of summarisation alone, besides those of every task."""

    beams: int | None = by_size("Beams of generation.")
    max_summary: int | None = by_size("Tokens of a summary.")
    length_penalty: float = option("Of generation.", 1.0)


class Summarize(Task[SummarizeOptions]):
    """[bos] article [eos] to the encoder, [bos] is global; the summary from the decoder."""

    name: ClassVar[str] = "summarize"
    kind: ClassVar[type[Options]] = SummarizeOptions
    best: ClassVar[str] = "rougeL"
    ways: ClassVar[tuple[str, ...]] = ("cut", "refuse")
    encoding: ClassVar[frozenset[str]] = Task.encoding | {"max_summary"}
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base": {
            **FINE_TUNING, "max_length": 16384, "attention_window": 1024, "epochs": 5.0, "warmup": 1000,
            "adam_beta2": 0.999, "beams": 4, "max_summary": 512,
        },
        "large": {},
        "trial": {**TRIAL, "max_summary": 16, "beams": 2, "epochs": 12.0, "evaluate_every": 18},
    }  # fmt: skip

    def __init__(self, options: SummarizeOptions, folder: str = "") -> None:
        super().__init__(options, folder)
        optional("rouge_score.rouge_scorer", "recipes")  # before hours of training, not after

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        from lf_huggingface.recipes.trial import files

        files.arxiv(folder, seed)

    def file(self, split: str) -> Path:
        return self.data / ("train.txt" if split == TRAIN else "val.txt")

    def records(self, path: Path, *, gold: bool) -> Iterator[articles.Article]:
        return articles.read(path, gold)

    def encode(self, records: Iterable[articles.Article], tokenizer: Any, split: str) -> Iterator[Encoded]:
        assert self.options.max_length is not None and self.options.max_summary is not None, "settled"
        room = self.options.max_length - 2
        for record in records:
            ids = tokenizer(record.text, add_special_tokens=False, verbose=False)["input_ids"]
            if len(ids) > room and self.options.long == "refuse":
                raise RecipeError(f"{record.id}: at most {room} tokens wanted, got {len(ids)}; see --long")
            summary = record.summary or ""
            wanted = tokenizer(summary, add_special_tokens=False, verbose=False)["input_ids"]
            wanted = wanted[: self.options.max_summary - 2]
            yield {
                "id": record.id, "ids": [tokenizer.cls_token_id, *ids[:room], tokenizer.sep_token_id],
                "summary": summary, "length": min(len(ids), room) + 2,
                "labels": [tokenizer.cls_token_id, *wanted, tokenizer.sep_token_id],
            }  # fmt: skip

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        assert self.options.max_summary is not None, "settled"
        model = self.load_model(source)
        if model.config.max_decoder_position_embeddings < self.options.max_summary:
            raise RecipeError(
                f"--max-summary: at most {model.config.max_decoder_position_embeddings} (the decoder's "
                f"positions) wanted, got {self.options.max_summary}"
            )
        return model

    def load_model(self, folder: Path) -> Any:
        model = encoders.load(transformers.AutoModelForSeq2SeqLM, folder)
        if model.config.model_type != "led":
            raise RecipeError(f"--model: an LED, or a BART to convert, wanted, got {model.config.model_type}")
        self._decode = encoders.load_tokenizer(folder).batch_decode
        return model

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        made = inputs([x["ids"] for x in examples], [[0] for _ in examples], tokenizer.pad_token_id)
        return {**made, "labels": padded([x["labels"] for x in examples], IGNORED)}

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        ids = getattr(model, "module", model).generate(
            **{k: v for k, v in batch.items() if k != "labels"},
            num_beams=self.options.beams,
            do_sample=False,
            max_length=self.options.max_summary,
            min_length=0,
            length_penalty=self.options.length_penalty,
        )
        return [text.strip() for text in self._decode(ids, skip_special_tokens=True)]

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        """ROUGE F1 in percent by rouge-score, with its stemmer; rougeLsum is of sentences by line."""
        scorer = optional("rouge_score.rouge_scorer", "recipes").RougeScorer(list(ROUGE), use_stemmer=True)
        total, count = dict.fromkeys(ROUGE, 0.0), 0
        for text, x in zip(predictions, examples, strict=True):
            found = scorer.score(x["summary"], text)
            total = {name: total[name] + 100 * found[name].fmeasure for name in ROUGE}
            count += 1
        return {name: value / count for name, value in total.items()}

    def write(self, predictions: Sequence[Any], examples: Iterable[Encoded], folder: Path) -> Path:
        """A list of {article_id, abstract_text}, the keys of the data set."""
        path = folder / "predictions.json"
        rows = [
            {"article_id": x["id"], "abstract_text": [s]} for x, s in zip(examples, predictions, strict=True)
        ]
        run_folder.write_json(path, rows)
        return path
