"""The order of examples: a function of seed and epoch alone, so that a training resumes where it was.

An example is asked for by (epoch, index). What training draws for it (shuffled candidates, masked tokens)
comes from a generator of these two and the seed, in whichever process, before or after an interruption.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from torch.utils.data import Dataset, Sampler

from lf_huggingface.recipes.data.store import Store

GROUP = 50  # batches whose examples are sorted by length together


class Order(Sampler[tuple[int, int]]):
    """Every example of an epoch once, shuffled, or shuffled in batches of similar length.

    Attributes:
        epoch: the one that comes next.
    """

    def __init__(self, lengths: Sequence[int], seed: int, batch: int, group_by_length: bool) -> None:
        self._lengths, self._seed = np.asarray(lengths), seed
        self._batch, self._grouped = batch, group_by_length
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self.epoch, int(index)) for index in self.indices()])

    def indices(self) -> np.ndarray[Any, Any]:
        """The numbers of the examples in the order of `epoch`."""
        rng = np.random.default_rng([self._seed, self.epoch])
        order = rng.permutation(len(self))
        if not self._grouped:
            return order
        size = GROUP * self._batch
        groups = [order[start : start + size] for start in range(0, len(order), size)]
        longest_first = [group[np.argsort(-self._lengths[group], kind="stable")] for group in groups]
        batches = [
            group[start : start + self._batch]
            for group in longest_first
            for start in range(0, len(group), self._batch)
        ]
        whole = [batch for batch in batches if len(batch) == self._batch]
        rest = [batch for batch in batches if len(batch) < self._batch]
        return np.concatenate([*(whole[at] for at in rng.permutation(len(whole))), *rest])


class Examples(Dataset[Any]):
    """The examples of a store, ready to be batched: (index, example, generator or None).

    Args:
        store: the encoded examples.
        seed: of the generators.
    """

    def __init__(self, store: Store, seed: int) -> None:
        self.store, self._seed = store, seed

    def __len__(self) -> int:
        return len(self.store)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[int, dict[str, Any], random.Random | None]:
        if isinstance(key, tuple):
            epoch, index = key
            return index, self.store[index], random.Random(f"{self._seed}/{epoch}/{index}")
        return key, self.store[key], None


class Collator:
    """Batches of examples: the task's tensors, and which examples they are of."""

    def __init__(
        self, make: Callable[[Sequence[dict[str, Any]], random.Random | None], dict[str, Any]]
    ) -> None:
        self._make = make

    def __call__(self, rows: Sequence[tuple[int, dict[str, Any], random.Random | None]]) -> dict[str, Any]:
        import torch

        made = self._make([example for _, example, _ in rows], rows[0][2])
        return {**made, "index": torch.tensor([index for index, _, _ in rows])}
