"""Whole small models over ranks: loss, outputs and gradients are those of one process."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.ranks import Ranks
from tests.huggingface.parallel import jobs, models

TOLERANCE = 3e-5  # float32, in which models keep norms and rotary angles whatever their dtype


def same(
    ranks: Ranks, sizes: tuple[int, ...], job: Any, *arguments: Any, tolerance: float = TOLERANCE
) -> None:
    wanted = job(None, *arguments)
    for size in sizes:
        for found in ranks.run(size, job, *arguments):
            if isinstance(found, Exception):
                raise found
            jobs.assert_same(found, wanted, tolerance)


@pytest.mark.parametrize("name", models.NAMES)
def test_models(ranks: Ranks, name: str) -> None:
    same(ranks, (2, 3), jobs.results, name, models.batch(name), {})


@pytest.mark.parametrize("name", ["Llama", "RoBERTa spans", "ModernBERT mean", "Longformer classes"])
@pytest.mark.parametrize("padding", ["none", "left", "most"])
def test_padding(ranks: Ranks, name: str, padding: str) -> None:
    """Of a sequence that is padding for the most part some ranks have nothing else."""
    same(ranks, (4,), jobs.results, name, models.batch(name, padding), {})


@pytest.mark.parametrize(
    "name", ["Llama", "BERT base", "RoBERTa spans", "ModernBERT mean", "Longformer choices"]
)
def test_whole_heads(ranks: Ranks, name: str) -> None:
    same(ranks, (3,), jobs.with_whole_heads, name, models.batch(name))


def _documents(restart: bool) -> dict[str, Tensor]:
    ids = torch.arange(3, 43)[None]
    packed: dict[str, Tensor] = {"input_ids": ids, "labels": ids.clone()}
    lengths = (9, 11, 20)  # the second begins where none of 2 ranks does, the third where the second does
    at = torch.cat([torch.arange(n) for n in lengths])[None]
    ends = torch.tensor([0, 9, 20, 40], dtype=torch.int32)
    return packed | ({"position_ids": at} if restart else {"cu_seq_lens_q": ends, "position_ids": at})


@pytest.mark.parametrize("restart", [True, False])
def test_packed_documents(ranks: Ranks, restart: bool) -> None:
    same(ranks, (2, 3), jobs.results, "Llama", _documents(restart), {})


def test_layers_that_are_computed_again(ranks: Ranks) -> None:
    for name in ("Llama", "Longformer"):
        same(ranks, (3,), jobs.checkpointed, name, models.batch(name))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing")  # which peft reads
def test_lora(ranks: Ranks) -> None:
    same(ranks, (2,), jobs.adapted, "Llama", models.batch("Llama"))


def test_autocast(ranks: Ranks) -> None:
    same(ranks, (2,), jobs.halved, "Llama", models.batch("Llama"), tolerance=4e-2)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # which the compiler reads
@pytest.mark.parametrize("name", ["Llama", "Gemma 3", "BERT base", "RoBERTa spans", "Longformer"])
def test_compiled(ranks: Ranks, name: str) -> None:
    same(ranks, (2,), jobs.compiled, name, models.batch(name))
