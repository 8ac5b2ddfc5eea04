"""Heads in one program, and gradients that another kernel finds on its way, against the oracle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from lf_backend.backends.triton import devices
from lf_backend.backends.triton.plan import LaunchPlan, best_pack
from lf_backend.pattern.terms import Global, Window
from lf_backend.testing.case import Case
from lf_backend.testing.checking import check

_BASE = Case(Window(40, 0), batch=1, heads=4, kv_heads=1, queries=90)
PACKED = {
    "window": _BASE,
    "window to both sides, two groups": replace(_BASE, pattern=Window(20, 20), kv_heads=2, batch=2),
    "three heads": replace(_BASE, heads=3),
    "dilation": replace(_BASE, pattern=Window(20, 0, dilation=2)),
    "dilation per group": replace(_BASE, pattern=Window(20, 0, dilation=(1, 1, 3, 3)), kv_heads=2),
    "band bias": replace(_BASE, bias=1),
    "dropout, softcap": replace(_BASE, dropout_p=0.3, softcap=2.0),
    "padding": replace(_BASE, padding="middle", batch=2),
    "documents": replace(_BASE, documents=4, sinks=True),
    "more keys": replace(_BASE, keys=130),
    "global tokens": replace(_BASE, pattern=Window(20, 20) | Global(0, 77), kv_heads=2, separate=True),
}


def _planned(case: Case) -> list[LaunchPlan]:
    """Check a case, and return the plans of its windows."""
    plans = devices.of(torch.device("cpu")).plans
    plans.clear()
    check(case, "triton", torch.float32)
    return [plan for plan in plans.values() if not plan.places]


def _rows(case: Case) -> LaunchPlan:
    """Check a case, and return the plan of its rows of global tokens."""
    _planned(case)
    (found,) = [plan for plan in devices.of(torch.device("cpu")).plans.values() if plan.places]
    return found


@pytest.mark.parametrize("case", [pytest.param(case, id=title) for title, case in PACKED.items()])
def test_heads_that_share_keys_share_programs(case: Case) -> None:
    for plan in _planned(case):
        assert plan.forward.arguments["PACK"] > 1 and plan.grad_queries.arguments["PACK"] > 1


def test_heads_of_several_dilations_have_programs_of_their_own() -> None:
    for plan in _planned(replace(_BASE, pattern=Window(20, 0, dilation=(1, 2, 3, 3)))):
        assert plan.forward.arguments["PACK"] == plan.grad_queries.arguments["PACK"] == 1


@pytest.mark.parametrize(
    ("group", "rows", "keys", "reach", "wanted"),
    [
        (8, 64, 64, 127, 1),  # three tiles in any case
        (8, 64, 32, 127, 2),  # five, and not six
        (8, 128, 64, 127, 2),
        (8, 64, 64, 4095, 1),
        (1, 64, 32, 127, 1),
        (3, 64, 32, 127, 3),  # one row of 64 is left over
        (7, 16, 64, 4, 1),  # which would be two of 16
    ],
)
def test_packs_meet_fewer_tiles_for_a_row(group: int, rows: int, keys: int, reach: int, wanted: int) -> None:
    assert best_pack(group, rows, keys, reach) == wanted


FEW = replace(_BASE, pattern=Window(20, 20) | Global(0, 77), kv_heads=2, batch=2)


@pytest.mark.parametrize(
    "case",
    [
        FEW,
        replace(FEW, pattern=Window(3, 2) | Global(5), separate=True, padding="middle"),
        replace(FEW, dropout_p=0.3, softcap=2.0, globals=2),
        replace(FEW, pattern=(Window(9, 0) | Global(0, 9)), keys=120, heads=3, kv_heads=3),
    ],
    ids=lambda case: str(case.pattern),
)
def test_few_global_tokens_have_their_gradients_found_with_others(case: Case) -> None:
    (plan,) = _planned(case)
    assert plan.grad_queries.shares == plan.grad_queries.grid[0] // plan.kv_heads // plan.batch
    rows = _rows(case)
    assert rows.grad_keys.shares == rows.grad_keys.arguments["blocks"]


@pytest.mark.parametrize(
    "case",
    [
        replace(FEW, pattern=Window(20, 20) | Global(*range(0, 90, 5))),
        replace(FEW, documents=2),
        replace(FEW, pattern=Window(5, 5, dilation=2) | Global(0), documents=2),
    ],
    ids=lambda case: str(case.pattern),
)
def test_other_global_tokens_have_kernels_of_their_own(case: Case) -> None:
    """They are many, or not every block meets them."""
    (plan,) = _planned(case)
    assert plan.grad_queries.shares == 0 and plan.grad_columns.parts > 0
    assert _rows(case).grad_keys.shares == 0


def test_dilated_windows_find_no_columns_on_their_way() -> None:
    """Their blocks are not all there."""
    (plan,) = _planned(replace(FEW, pattern=Window(5, 5, dilation=2) | Global(0)))
    assert plan.grad_queries.shares == 0
