"""Accuracy and F1 of labels, from 0 to 1."""

from __future__ import annotations

from collections.abc import Sequence


def accuracy(predictions: Sequence[object], truths: Sequence[object]) -> float:
    """The share of predictions that are the truth."""
    return sum(a == b for a, b in zip(predictions, truths, strict=True)) / len(truths)


def f1(predictions: Sequence[object], truths: Sequence[object], positive: object) -> float:
    """2 TP / (2 TP + FP + FN) of one label; 0 where nothing is positive."""
    pairs = list(zip(predictions, truths, strict=True))
    hits = sum(a == b == positive for a, b in pairs)
    wrong = sum((a == positive) != (b == positive) for a, b in pairs)
    return 2 * hits / (2 * hits + wrong) if hits else 0.0


def macro_f1(predictions: Sequence[object], truths: Sequence[object], labels: Sequence[object]) -> float:
    """The mean of the labels' F1."""
    return sum(f1(predictions, truths, label) for label in labels) / len(labels)
