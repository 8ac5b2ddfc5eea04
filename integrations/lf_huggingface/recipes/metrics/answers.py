"""Exact match and F1 of answers (Rajpurkar et al. 2016; Joshi et al. 2017; Yang et al. 2018)."""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Collection, Hashable, Iterable
from typing import NamedTuple

_CLOSED = ("yes", "no", "noanswer")


class Agreement(NamedTuple):
    """Agreement of one prediction with one truth, each number from 0 to 1."""

    exact: float
    f1: float
    precision: float
    recall: float


NONE = Agreement(0.0, 0.0, 0.0, 0.0)


def normalised(answer: str, also: str = "") -> str:
    """Lower case, without punctuation, articles and repeated blanks.

    Args:
        also: characters that become blanks first: TriviaQA's script reads them so, "_" and quotes of print.
    """
    text = answer.lower()
    for character in also:
        text = text.replace(character, " ")
    text = "".join(
        " " if also and x in string.punctuation else "" if x in string.punctuation else x for x in text
    )
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


TRIVIA_QA = "_\u2018\u2019\u00b4`"  # and quotes of print


def agreement(prediction: str, truth: str, also: str = "") -> Agreement:
    """EM and F1 over words."""
    got, want = normalised(prediction, also).split(), normalised(truth, also).split()
    exact = float(got == want)
    if not also and got != want and (" ".join(got) in _CLOSED or " ".join(want) in _CLOSED):
        return NONE  # HotpotQA: yes and no are right or wrong as a whole
    same = sum((Counter(got) & Counter(want)).values())
    if not same:
        return Agreement(exact, 0.0, 0.0, 0.0)
    precision, recall = same / len(got), same / len(want)
    return Agreement(exact, 2 * precision * recall / (precision + recall), precision, recall)


def best(prediction: str, truths: Iterable[str], also: str = "") -> tuple[float, float]:
    """The largest EM and the largest F1 over the truths, each by itself; 0 if there is none."""
    found = [agreement(prediction, truth, also) for truth in truths]
    return max((x.exact for x in found), default=0.0), max((x.f1 for x in found), default=0.0)


def of_sets(prediction: Collection[Hashable], truth: Collection[Hashable]) -> Agreement:
    """EM and F1 of evidence: two sets."""
    got, want = set(prediction), set(truth)
    same = len(got & want)
    precision = same / len(got) if got else 0.0
    recall = same / len(want) if want else 0.0
    f1 = 2 * precision * recall / (precision + recall) if same else 0.0
    return Agreement(float(got == want), f1, precision, recall)


def joint(answer: Agreement, evidence: Agreement) -> Agreement:
    """Both at once: the products of precisions, of recalls and of EM, and the F1 of these products."""
    precision, recall = answer.precision * evidence.precision, answer.recall * evidence.recall
    f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
    return Agreement(answer.exact * evidence.exact, f1, precision, recall)
