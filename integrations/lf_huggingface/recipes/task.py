"""The contract of a task; everything else is shared.

A record is what a file of the task's format holds; an encoded example is a dict of plain data (token ids as
lists), which is cached; a batch is a dict of tensors.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from torch import Tensor

from lf_huggingface.errors import RecipeError
from lf_huggingface.recipes.options import Options

T = TypeVar("T", bound=Options)
Encoded = dict[str, Any]
Batch = dict[str, Tensor]
TRAIN, DEV = "train", "dev"


class Task(Generic[T]):
    """One task with its options, all settled.

    Attributes:
        name: the word on the command line.
        kind: the class of its options.
        sizes: what each size settles: for "base", and what differs in "large" and in "trial".
        marks: tokens that the task adds to a tokenizer.
        best: the metric by which the best checkpoint is chosen.
        lower_is_better: whether it is a loss.
        encoding: names of the options that encoded examples depend on.
        hands_on: whether the next stage takes what this one selects.
        ways: which of cut, chunk and refuse it knows for long documents.
        folder: where in the run's folder this stage's is; "" for the only one.
        data: the folder of the data set.
        source: the folder of the encoder to start from, or of the trained model.
    """

    name: ClassVar[str]
    kind: ClassVar[type[Options]]
    sizes: ClassVar[Mapping[str, Mapping[str, Any]]]
    marks: ClassVar[tuple[str, ...]] = ()
    best: ClassVar[str]
    lower_is_better: ClassVar[bool] = False
    ways: ClassVar[tuple[str, ...]] = ("cut", "chunk", "refuse")
    has_predictions: ClassVar[bool] = True
    hands_on: ClassVar[bool] = False
    encoding: ClassVar[frozenset[str]] = frozenset({"max_length", "long", "limit"})
    data: Path
    source: Path

    def __init__(self, options: T, folder: str = "") -> None:
        self.options, self.folder = options, folder
        if options.long not in self.ways:
            raise RecipeError(
                f"--long: one of {', '.join(self.ways)} wanted for {self.name}, got {options.long}"
            )

    def stages(self) -> Sequence[Task[T]]:
        """The trainings that make up the task, in order; one unless it says otherwise."""
        return (self,)

    def selected(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, Any]:
        """Select, by record, from this stage's predictions for the next stage."""
        return {}

    def hand_on(self, found: Mapping[str, dict[str, Any]]) -> None:
        """Give the next stage what was selected in each split."""

    def carried_key(self, split: str) -> Any:
        """Return the selection that a stage was handed for a split, as plain data for the cache."""
        return None

    def summary(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """Return the metrics of several stages together."""
        return {}

    @classmethod
    def trial_data(cls, folder: Path, seed: int) -> None:
        """Write a small data set of the format to a folder."""
        raise NotImplementedError

    def file(self, split: str) -> Path:
        """The file or folder of a split inside `--data`."""
        raise NotImplementedError

    def records(self, path: Path, *, gold: bool) -> Iterator[Any]:
        """The records of a file, in its order.

        Args:
            gold: records must hold their answers.

        Raises:
            RecipeError: a file that is missing or malformed: which record, what was wanted.
        """
        raise NotImplementedError

    def encode(self, records: Iterable[Any], tokenizer: Any, split: str) -> Iterator[Encoded]:
        """Encoded examples of records; each has its "length" in tokens."""
        raise NotImplementedError

    def new_model(self, source: Path, tokenizer: Any) -> Any:
        """A model to train, from the folder of an encoder (converted already)."""
        raise NotImplementedError

    def load_model(self, folder: Path) -> Any:
        """A trained model."""
        raise NotImplementedError

    def batch(self, examples: Sequence[Encoded], tokenizer: Any, rng: random.Random | None) -> Batch:
        """Inputs of the model for examples.

        Args:
            rng: what training draws from; None in evaluation.
        """
        raise NotImplementedError

    def predict(self, model: Any, batch: Batch, examples: Sequence[Encoded]) -> list[Any]:
        """One prediction for each example, plain data."""
        raise NotImplementedError

    def score(self, predictions: Sequence[Any], examples: Iterable[Encoded]) -> dict[str, float]:
        """The official metrics of predictions, against what the examples hold."""
        raise NotImplementedError

    def write(self, predictions: Sequence[Any], examples: Iterable[Encoded], folder: Path) -> Path:
        """Write predictions in the official format; return the file."""
        raise NotImplementedError

    def finish(self, model: Any) -> None:
        """Change a trained model before it is saved."""

    def notes(self) -> Iterator[str]:
        """Sentences that a user must read before the numbers."""
        yield from ()


def answered(examples: Iterable[Encoded], has_answer: Callable[[Encoded], bool]) -> Iterator[Encoded]:
    """The examples of a training set, of which any may lack its answer, but not all.

    Raises:
        RecipeError: behind the last, if all do: there is nothing to learn from.
    """
    count, found = 0, False
    for example in examples:
        count, found = count + 1, found or has_answer(example)
        yield example
    if count and not found:
        raise RecipeError(f"--data: an answer that is in its text wanted, none of {count} examples has one")
