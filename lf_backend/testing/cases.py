"""Calls worth testing: `CASES`, by name and by hand."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from lf_backend.pattern.predicate import Predicate
from lf_backend.pattern.terms import Causal, Global, Window
from lf_backend.sparsity import block_local, documents, fixed, random_blocks
from lf_backend.testing.case import Case


def _every_third(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return ((key % 3 == head % 3) & (key <= query)) | (key == query)


def _even_rows(head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (query % 2 == 0) & (key % 5 != 1)


_WINDOW = Window(5, 3)
_BASE = Case(_WINDOW)
_LONG = replace(_BASE, queries=150, batch=1)  # several blocks of any backend

CASES: dict[str, Case] = {
    "window": _BASE,
    "window of one key": replace(_BASE, pattern=Window(0, 0)),
    "window to the left": replace(_BASE, pattern=Window(7, 0)),
    "window to the right": replace(_BASE, pattern=Window(0, 7)),
    "window longer than the sequence": replace(_BASE, pattern=Window(100, 60)),
    "window without limit": replace(_BASE, pattern=Window(None, None)),
    "causal without limit": replace(_BASE, pattern=Causal(), queries=70),
    "everything, padding, grouped heads": replace(
        _BASE, pattern=Window(None, None), padding="middle", heads=4, batch=3, queries=70, sinks=True
    ),
    "everything, more keys, a whole example of padding": replace(
        _BASE, pattern=Window(90, 90) | Global(3), queries=17, keys=60, padding="all", separate=True
    ),
    "everything, global tokens per example": replace(
        _BASE, pattern=Window(None, None), globals=3, separate=True, transposed=True
    ),
    "all past, grouped heads, a sink": replace(
        _BASE, pattern=Window(80, 0), heads=4, queries=70, globals=2, sinks=True
    ),
    "limit on one side": replace(_BASE, pattern=Window(None, 2), queries=70),
    "several blocks": replace(_LONG, pattern=Window(40, 30)),
    "several blocks, narrow": replace(_LONG, pattern=Window(3, 1)),
    "sharp softmax": replace(_LONG, pattern=Window(40, 30), spread=30.0),
    "dilation": replace(_BASE, pattern=Window(3, 2, dilation=3)),
    "dilation, several blocks": replace(_LONG, pattern=Window(35, 20, dilation=2)),
    "dilation beyond the sequence": replace(_BASE, pattern=Window(2, 2, dilation=50)),
    "dilation per head": replace(_BASE, pattern=Window(3, 2, dilation=(1, 4))),
    "dilation per head, grouped": replace(
        _BASE, pattern=Window(3, 2, dilation=(1, 2, 2, 3)), heads=4, kv_heads=2, queries=50
    ),
    "two windows": replace(_BASE, pattern=Window(2, 2) | Window(4, 4, dilation=3), queries=70),
    "windows that overlap": replace(_BASE, pattern=Window(6, 0) | Window(2, 2)),
    "a window, and a dilation beyond the sequence": replace(
        _BASE, pattern=Window(2, 2) | Window(3, 3, dilation=50)
    ),
    "windows that cross": replace(_BASE, pattern=Window(4, 4, dilation=2) | Window(3, 3, dilation=3)),
    "several windows, global tokens, padding": replace(
        _BASE,
        pattern=Window(9, 4) | Window(None, 2, dilation=4) | Global(0, 20),
        queries=24,
        keys=40,
        padding="middle",
        globals=3,
        separate=True,
        dropout_p=0.2,
        softcap=2.0,
        sinks=True,
    ),
    "windows of dilations per head": replace(
        _BASE, pattern=Window(3, 3, dilation=(1, 2)) | Window(9, 5, dilation=(2, 4)), queries=40
    ),
    "global tokens": replace(_BASE, pattern=_WINDOW | Global(0, 17)),
    "global tokens, several blocks": replace(_LONG, pattern=Window(40, 30) | Global(0, 77, 149)),
    "only global tokens": replace(_BASE, pattern=Global(3)),
    "nothing to see": replace(_BASE, pattern=Global()),
    "nothing to see but a sink": replace(_BASE, pattern=Global() & Causal(), sinks=True),
    "no global token": replace(_BASE, pattern=_WINDOW | Global()),
    "causal global tokens": replace(_BASE, pattern=(_WINDOW | Global(0, 9)) & Causal()),
    "global tokens per example": replace(_BASE, globals=4),
    "global tokens per example and fixed": replace(_BASE, pattern=_WINDOW | Global(2), globals=4),
    "global tokens per example, causal": replace(_BASE, pattern=Window(5, 0), globals=4),
    "no global token in the batch": replace(_BASE, globals=0),
    "separate projections": replace(_BASE, pattern=_WINDOW | Global(0, 20), separate=True),
    "separate projections per example": replace(_BASE, globals=3, separate=True, heads=4),
    "separate projections, none global": replace(_BASE, globals=0, separate=True),
    "separate projections, dilation per head, padding": replace(
        _BASE, pattern=Window(3, 2, dilation=(1, 3)), globals=3, separate=True, padding="right", batch=3
    ),
    "padding right": replace(_BASE, padding="right"),
    "padding left": replace(_BASE, padding="left", pattern=_WINDOW | Global(0)),
    "padding in the middle": replace(_BASE, padding="middle", batch=3),
    "padding of a whole example": replace(_BASE, padding="all", pattern=_WINDOW | Global(0), globals=2),
    "padding, dilation": replace(_BASE, padding="middle", pattern=Window(4, 4, dilation=2)),
    "grouped heads": replace(_BASE, heads=6, kv_heads=2),
    "grouped heads, one key head": replace(_BASE, heads=3, kv_heads=1, pattern=_WINDOW | Global(5)),
    "decode": replace(_BASE, queries=1, keys=60, pattern=Window(9, 0) | Global(0) & Causal()),
    "decode, grouped heads": replace(
        _BASE, batch=1, queries=3, keys=80, heads=4, pattern=Window(35, 0, dilation=2) | Global(0, 79)
    ),
    "chunked prefill": replace(_BASE, queries=17, keys=80, pattern=Window(20, 4, dilation=2)),
    "more keys, global rows and columns": replace(
        _BASE, queries=17, keys=60, pattern=_WINDOW | Global(0, 50), separate=True, padding="middle"
    ),
    "one position": replace(_BASE, queries=1),
    "one position, global": replace(_BASE, queries=1, pattern=_WINDOW | Global(0), separate=True),
    "empty batch": replace(_BASE, batch=0),
    "band bias": replace(_BASE, bias=2),
    "band bias of all examples": replace(_BASE, bias=1, padding="right", queries=70),
    "band bias, dilation": replace(_BASE, bias=1, pattern=Window(3, 4, dilation=(1, 3))),
    "band bias, global tokens": replace(_BASE, bias=2, pattern=_WINDOW | Global(0, 9), separate=True),
    "band bias, one query": replace(_BASE, bias=2, queries=1, keys=30),
    "few queries, everything": replace(
        _BASE,
        pattern=Window(20, 5, dilation=2) | Global(0, 30),
        queries=3,
        keys=90,
        heads=4,
        padding="middle",
        softcap=2.0,
        dropout_p=0.2,
        sinks=True,
        globals=2,
        documents=2,
    ),
    "softcap": replace(_BASE, softcap=1.5),
    "softcap and band bias": replace(_BASE, softcap=2.0, bias=2, pattern=_WINDOW | Global(0)),
    "sinks": replace(_BASE, sinks=True, pattern=Window(9, 0)),
    "sinks, padding, global tokens": replace(_BASE, sinks=True, padding="all", globals=3),
    "scale of zero": replace(_BASE, scale=0.0),
    "negative scale": replace(_BASE, scale=-0.7),
    "dropout": replace(_BASE, dropout_p=0.4),
    "dropout, dilation, global tokens": replace(
        _BASE, dropout_p=0.3, pattern=Window(3, 3, dilation=2) | Global(1), separate=True, padding="middle"
    ),
    "transposed views": replace(_BASE, transposed=True, queries=70, pattern=_WINDOW | Global(0)),
    "head_dim 1": replace(_BASE, head_dim=1),
    "head_dim 40": replace(_BASE, head_dim=40),
    "head_dim 128": replace(_BASE, head_dim=128, pattern=_WINDOW | Global(0)),
    "narrow values": replace(_LONG, value_dim=5, pattern=Window(40, 30)),
    "wide values": replace(
        _BASE, value_dim=24, pattern=_WINDOW | Global(0), globals=3, separate=True, padding="middle", heads=4
    ),
    "narrow values, several windows, a rule": replace(
        _BASE, value_dim=4, pattern=Window(2, 2) | Window(3, 3, dilation=3) | block_local(12), dropout_p=0.2
    ),
    "positions of global tokens": replace(_BASE, globals=4, listed=True, separate=True, padding="middle"),
    "positions of global tokens, causal, more keys": replace(
        _BASE, pattern=(Window(5, 0) | Global(2)) & Causal(), globals=3, listed=True, queries=20, keys=45
    ),
    "no position of a global token": replace(_BASE, globals=0, listed=True),
    "documents": replace(_BASE, documents=4),
    "documents, several blocks": replace(_LONG, pattern=Window(40, 30), documents=5),
    "documents, causal without limit": replace(_LONG, pattern=Causal(), documents=3),
    "documents, everything visible": replace(_BASE, pattern=Window(None, None), documents=3, queries=80),
    "documents, one position each": replace(_BASE, documents=400, queries=20),
    "documents, dilation per head": replace(
        _BASE, pattern=Window(3, 2, dilation=(1, 3)), documents=4, queries=80, padding="right"
    ),
    "documents, two windows": replace(
        _BASE, pattern=Window(2, 2) | Window(4, 4, dilation=3), documents=3, queries=70
    ),
    "documents, global tokens": replace(_LONG, pattern=Window(9, 5) | Global(0, 17), documents=9, batch=2),
    "documents, global tokens per example": replace(
        _BASE, documents=4, globals=5, separate=True, queries=70, padding="middle"
    ),
    "documents, causal global tokens, grouped heads": replace(
        _BASE, pattern=(Window(9, 0) | Global(0)) & Causal(), documents=4, heads=4, queries=90
    ),
    "documents, more keys, positions of global tokens": replace(
        _BASE,
        pattern=_WINDOW | Global(1),
        documents=4,
        globals=3,
        listed=True,
        queries=40,
        keys=90,
        sinks=True,
    ),
    "documents, decode": replace(_BASE, pattern=Window(20, 0) | Global(0), documents=3, queries=1, keys=60),
    "documents, band bias": replace(_BASE, pattern=_WINDOW | Global(0), documents=4, bias=2, queries=70),
    "documents, softcap and dropout": replace(
        _BASE, pattern=_WINDOW | Global(0), documents=4, softcap=2.0, dropout_p=0.3, separate=True
    ),
    "documents of the pattern": replace(
        _LONG, pattern=documents([0, 11, 12, 100]) & Window(20, 9), padding="middle", heads=4, sinks=True
    ),
    "documents of the pattern, causal, more keys": replace(
        _BASE, pattern=documents([0, 30, 44]) & Causal(), queries=40, keys=70
    ),
    "documents, predicate": replace(
        _BASE, pattern=block_local(12, reach=1) | Window(3, 2) | Global(3), documents=3, queries=100, keys=130
    ),
    "documents, predicate without bounds": replace(
        _BASE, pattern=Predicate(_every_third), documents=4, padding="middle", globals=2, queries=60
    ),
    "predicate": replace(_BASE, pattern=Predicate(_every_third)),
    "predicate and the rest": replace(
        _BASE, pattern=Predicate(_every_third) | Window(2, 2, dilation=2) | Global(4), padding="middle"
    ),
    "predicate, several blocks": replace(_LONG, pattern=block_local(40, reach=1)),
    "predicate, keys in several places": replace(_LONG, pattern=fixed(20, 3), transposed=True),
    "predicate, rows that see nothing": replace(_BASE, pattern=Predicate(_even_rows), sinks=True, queries=90),
    "predicate that shows nothing": replace(_BASE, pattern=random_blocks(33, 8, 0)),
    "predicate per head, grouped, dropout": replace(
        _LONG, pattern=Predicate(_every_third), heads=4, kv_heads=2, dropout_p=0.3, softcap=2.0
    ),
    "predicate, more keys, global tokens per example": replace(
        _BASE, pattern=documents([0, 11, 40]) | Window(3, 3), queries=27, keys=90, globals=4, separate=True
    ),
    "predicate, causal, global tokens per example": replace(
        _BASE, pattern=(documents([0, 11, 40]) | Window(9, 2)) & Causal(), globals=4, padding="left"
    ),
    "predicate and band bias": replace(_BASE, pattern=block_local(12) | Window(3, 2), bias=2, queries=70),
    "everything": Case(
        Window(20, 9, dilation=(1, 1, 2, 3)) | Global(0, 60),
        heads=4,
        kv_heads=2,
        queries=90,
        keys=100,
        padding="middle",
        globals=3,
        separate=True,
        sinks=True,
        bias=2,
        softcap=3.0,
        dropout_p=0.2,
        transposed=True,
    ),
}


def named() -> Iterator[tuple[str, Case]]:
    """All cases, each with a seed of its own."""
    return ((name, replace(case, seed=seed)) for seed, (name, case) in enumerate(CASES.items()))
