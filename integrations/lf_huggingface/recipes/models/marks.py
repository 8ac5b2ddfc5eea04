"""Marks: new tokens of a task, whose embeddings start from a normal distribution like that of the table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from lf_huggingface.errors import RecipeError


def add(model: Any, tokenizer: Any, marks: Sequence[str]) -> None:
    """Add tokens to a tokenizer and rows to the embeddings of a model.

    Args:
        model: a model of transformers.
        tokenizer: its own; changed.
        marks: the tokens; those that it has stay as they are.
    """
    tokenizer.add_special_tokens(
        {"additional_special_tokens": list(marks)}, replace_extra_special_tokens=False
    )
    table = model.get_input_embeddings().weight.detach()
    before = table.shape[0]
    if len(tokenizer) <= before:
        return
    mean, deviation = float(table.float().mean()), float(table.float().std())
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[before:].normal_(mean, deviation)


def check(tokenizer: Any, marks: Sequence[str]) -> None:
    """Raise RecipeError if a tokenizer does not know the marks of a task."""
    vocabulary = tokenizer.get_vocab()
    if missing := [mark for mark in marks if mark not in vocabulary]:
        raise RecipeError(
            f"tokenizer: one with the marks {', '.join(marks)} wanted, it lacks {', '.join(missing)}"
        )
