"""A call like an earlier one runs on what was decided for that; what differs in anything is decided anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import lf_backend as lf
from lf_backend.dispatch import registry
from lf_backend.ops import repeated

WINDOW = lf.Window(3, 2)


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    repeated._decisions.clear()
    yield
    repeated._decisions.clear()


def _inputs(length: int = 20, heads: int = 2, dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(length)
    return list(torch.randn(3, 1, heads, length, 8, generator=generator).to(dtype))


def _right(pattern: lf.Pattern | str, inputs: list[torch.Tensor], **options: Any) -> None:
    """Twice, so that the second call may be a repeated one."""
    wanted = lf.attention(*[x.double() for x in inputs], pattern, **{**options, "backend": "reference"})
    for _ in range(2):
        found = lf.attention(*inputs, pattern, **options)
        near = 2e-2 if found.dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(found.double(), wanted, atol=near, rtol=0)


def test_whatever_differs_counts() -> None:
    for pattern in (WINDOW, "window(3, 2)", lf.Window(3, 3), WINDOW & lf.Causal(), lf.Causal()):
        for options in ({}, {"scale": 0.5}, {"scale": 2}, {"softcap": 1.5}, {"key_padding": None}):
            for inputs in (_inputs(), _inputs(21), _inputs(heads=4), _inputs(dtype=torch.bfloat16)):
                _right(pattern, inputs, **options)
    assert len(repeated._decisions) == 5 * 4 * (4 + 3), "and 3 shapes in float64; None is no option"


def test_the_rest_of_the_call_is_not_remembered() -> None:
    q, k, v = _inputs()
    for _ in range(2):
        lf.attention(q, k, v, WINDOW | lf.Global(0))
        lf.attention(q, k, v, lf.Predicate(lambda head, query, key: key <= query))
        lf.attention(q, k, v, WINDOW, global_mask=torch.ones(1, 20, dtype=torch.bool))
        lf.attention(q, k, v, WINDOW, documents=torch.zeros(1, 20, dtype=torch.int64))
        lf.attention(q, k, v, WINDOW, sinks=torch.zeros(2))
        lf.attention(q, k, v, WINDOW, dropout_p=0.5)
    assert not repeated._decisions


def test_padding_counts_where_there_is_some() -> None:
    inputs = _inputs()
    padding = torch.zeros(1, 20, dtype=torch.bool)
    _right(WINDOW, inputs, key_padding=padding)
    assert len(repeated._decisions) == 2, "float64 is one"
    padding[:, 5:9] = True
    _right(WINDOW, inputs, key_padding=padding)
    with pytest.raises(lf.ShapeError, match="key_padding: shape"):
        lf.attention(*inputs, WINDOW, key_padding=torch.zeros(1, 19, dtype=torch.bool))


def test_gradients_are_recorded() -> None:
    q, k, v = _inputs()
    lf.attention(q, k, v, WINDOW)
    assert lf.attention(q.requires_grad_(), k, v, WINDOW).grad_fn is not None
    with torch.no_grad():
        assert lf.attention(q, k, v, WINDOW).grad_fn is None


def test_autocast_casts() -> None:
    q, k, v = _inputs()
    lf.attention(q, k, v, WINDOW)
    with torch.autocast("cpu", torch.bfloat16):
        assert lf.attention(q, k, v, WINDOW).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "wrong", "said"),
    [
        ("k", torch.zeros(1, 3, 20, 8), r"v: batch, heads and length of k \[1, 3, 20\]"),
        ("v", torch.zeros(1, 2, 20, 8, dtype=torch.float64), "v: dtype torch.float32 of q wanted"),
        ("q", [0.0], "q: a tensor wanted, got list"),
        ("pattern", [0], "pattern: a lf_backend pattern or its string wanted"),
        ("scale", torch.tensor(1.0), "scale: a float wanted, got a tensor"),
        ("scale", float("nan"), "scale: a finite number wanted, got nan"),
        ("scale", "wide", "scale: a float wanted, got 'wide'"),
        ("softcap", 0, "softcap: a finite number > 0 or None wanted"),
        ("backend", "nobody", "backend: one of .* wanted, got 'nobody'"),
    ],
)
def test_what_is_wrong_is_said_after_what_was_right(name: str, wrong: Any, said: str) -> None:
    q, k, v = _inputs()
    right: dict[str, Any] = {"q": q, "k": k, "v": v, "pattern": WINDOW}
    lf.attention(**right)
    with pytest.raises(lf.LFError, match=said):
        lf.attention(**{**right, name: wrong})


def test_the_choice_is_made_again_where_it_may_change(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = _inputs()
    ran: list[str] = []

    def watched(name: str) -> None:
        backend = registry.get(name)
        before = type(backend).forward
        monkeypatch.setattr(type(backend), "forward", lambda *call: ran.append(name) or before(*call))

    for name in ("blocked", "portable", "reference"):
        watched(name)
    for _ in range(2):
        lf.attention(*inputs, WINDOW, backend="blocked")
        with lf.use_backend("portable"):
            lf.attention(*inputs, WINDOW)
        monkeypatch.setitem(os.environ, "LF_BACKEND", "reference")
        lf.attention(*inputs, WINDOW)
        monkeypatch.delitem(os.environ, "LF_BACKEND")
    assert ran == ["blocked", "portable", "reference"] * 2

    @lf.register
    class Newest(type(registry.get("blocked"))):  # type: ignore[misc]
        name, priority = "newest", 1_000_000

        def forward(self, call: Any) -> Any:
            ran.append("newest")
            return super().forward(call)

    try:
        lf.attention(*inputs, WINDOW)
        lf.attention(*inputs, WINDOW)
        assert ran[-4:] == ["newest", "blocked"] * 2
    finally:
        registry.unregister("newest")
    lf.attention(*inputs, WINDOW)
    assert ran.count("newest") == 2


def test_only_so_many_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(repeated, "MOST", 2)
    for length in range(10, 16):
        _right(WINDOW, _inputs(length))
        assert 1 <= len(repeated._decisions) <= 2


def test_few_functions_of_python_run() -> None:
    inputs = _inputs()
    called: list[str] = []
    for _ in range(2):
        called.clear()
        sys.setprofile(lambda frame, event, _: event == "call" and called.append(frame.f_code.co_name))
        lf.attention(*inputs, WINDOW, backend="reference")
        sys.setprofile(None)
    assert called.index("forward") <= 25, "about 0.3 microseconds each"
