"""Measured calls decide among backends that can run a call; `explain` shows the one that did."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

import lf_backend as lf
from lf_backend.dispatch import measured, registry
from lf_backend.dispatch.measured import MeasuredCall, nearest, ordered
from lf_backend.problem import Coverage, Feature, Machine, Problem

CPU = Machine("cpu")


def row(
    length: int, window: int, coverage: Coverage = Coverage.PART, backward: bool = False, **ms: float
) -> MeasuredCall:
    times = tuple(sorted(ms.items(), key=lambda item: item[1]))
    return MeasuredCall("cpu", "float32", backward, length, length, window, coverage, times)


SHORT = row(64, 17, reference=1.0, blocked=2.0)
LONG = row(4096, 17, blocked=5.0, reference=90.0)
WHOLE = row(64, 64, Coverage.ALL, sdpa=0.5, reference=1.0, blocked=2.0)


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(measured, "rows", lambda: (SHORT, LONG, WHOLE))
    registry._bump()
    yield
    monkeypatch.undo()
    registry._bump()


def problem(length: int, window: int, *features: Feature, coverage: Coverage = Coverage.PART) -> Problem:
    return Problem(frozenset(features), "float32", 1, 2, 2, length, length, 8, window, coverage)


def test_the_nearest_row_of_the_same_kind() -> None:
    rows = (SHORT, LONG, WHOLE)
    assert nearest(problem(100, 20), CPU, rows) is SHORT
    assert nearest(problem(3000, 500), CPU, rows) is LONG
    assert nearest(problem(10**6, 9), CPU, rows) is LONG
    assert nearest(problem(70, 70, coverage=Coverage.ALL), CPU, rows) is WHOLE
    assert nearest(problem(70, 70, coverage=Coverage.PAST), CPU, rows) is None
    assert nearest(problem(100, 20, Feature.BACKWARD), CPU, rows) is None
    assert nearest(problem(100, 20, Feature.PREDICATE), CPU, rows) is None
    assert nearest(problem(100, 20), Machine("cuda"), rows) is None


def test_those_that_no_row_has_keep_their_places() -> None:
    names = ["mine", "blocked", "theirs", "sdpa", "reference"]
    assert ordered(names, None) == names
    assert ordered(names, SHORT) == ["mine", "reference", "theirs", "sdpa", "blocked"]
    assert ordered(names, WHOLE) == ["mine", "sdpa", "theirs", "reference", "blocked"]
    assert ordered(["mine"], WHOLE) == ["mine"]


@pytest.mark.usefixtures("without_native")
def test_explain_shows_the_row_that_decided(table: None) -> None:
    q = torch.randn(1, 2, 60, 8)
    found = lf.explain(q, q, q, lf.Window(8, 8))
    assert found.chosen == "reference"
    assert "blocked     could, but reference comes first" in str(found)
    assert str(found).endswith(
        "nearest measured call: 64 queries, 64 keys, window of 17, some pairs, float32, forward: "
        "reference 1 ms, blocked 2 ms"
    )
    assert lf.explain(q, q, q, lf.Window(8, 8), backend="blocked").chosen == "blocked"
    assert lf.explain(q, q, q, lf.Window(60, 60)).chosen == "sdpa"
    long = torch.empty(1, 2, 10**5, 8, device="meta")
    assert lf.explain(long, long, long, lf.Window(8, 8), machine=CPU).chosen == "blocked"
    assert "nearest measured" not in str(lf.explain(q, q, q, lf.Window(8, 8), dropout_p=0.5))


def test_the_file_reads_and_writes_and_names_its_machines() -> None:
    import json

    given = json.loads((Path(measured.__file__).with_name("measured.json")).read_text("utf8"))
    assert {found.device for found in measured.rows()} == set(given["environments"])
    assert [found.to_dict() for found in measured.rows()] == given["rows"]
    assert {found.coverage for found in measured.rows()} == set(Coverage)
    known = set(lf.backends())
    assert all({name for name, _ in found.times} <= known for found in measured.rows())
