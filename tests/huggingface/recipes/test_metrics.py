"""The official metrics on cases computed by hand."""

import pytest

from lf_huggingface.recipes.metrics import answers, classes


def test_answers_are_normalised():
    assert answers.normalised("The  Beatles'  (an album)!") == "beatles album"
    assert answers.normalised("U.S.") == "us"
    assert answers.normalised("rock_and-roll", answers.TRIVIA_QA) == "rock and roll"
    assert answers.normalised("A theme") == "theme"  # articles are words, not beginnings of words


def test_em_and_f1_over_aliases():
    assert answers.best("the Nile river", ["Nile", "River Nile"]) == (0.0, 1.0)
    exact, f1 = answers.best("Nile", ["River Nile", "Amazon"])
    assert exact == 0 and f1 == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert answers.best("anything", []) == (0.0, 0.0)


def test_words_count_as_often_as_they_occur():
    found = answers.agreement("new new york", "new york york")
    assert (found.exact, found.precision, found.recall) == (0.0, pytest.approx(2 / 3), pytest.approx(2 / 3))


def test_yes_and_no_are_right_or_wrong_as_a_whole():
    assert answers.agreement("yes he did", "yes") == answers.NONE
    assert answers.agreement("Yes", "yes").f1 == 1.0


def test_joint_em_and_f1():
    answer = answers.agreement("river nile", "nile")  # precision 1/2, recall 1
    evidence = answers.of_sets([("a", 0), ("b", 1), ("c", 2)], [("a", 0), ("b", 1)])  # 2/3, 1
    assert evidence.exact == 0 and evidence.f1 == pytest.approx(0.8)
    both = answers.joint(answer, evidence)
    assert (both.exact, both.precision, both.recall) == (0.0, pytest.approx(1 / 3), 1.0)
    assert both.f1 == pytest.approx(0.5)
    assert answers.joint(answers.NONE, evidence).f1 == 0.0
    assert answers.of_sets([], [("a", 0)]) == answers.NONE


def test_classes():
    truths, found = [1, 1, 0, 0, 1], [1, 0, 1, 0, 1]
    assert classes.accuracy(found, truths) == 0.6
    assert classes.f1(found, truths, 1) == pytest.approx(2 * 2 / (2 * 2 + 2))
    assert classes.f1([0, 0], [0, 0], 1) == 0.0
    assert classes.macro_f1([0, 1, 2], [0, 1, 1], [0, 1, 2]) == pytest.approx((1 + 2 / 3 + 0) / 3)
