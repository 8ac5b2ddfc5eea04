"""Packed documents: each exactly as if it were a row of its own, at the cost of its own pairs."""

from __future__ import annotations

import gc
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter
from torch.utils._python_dispatch import TorchDispatchMode

import lf_backend as lf
from lf_backend.api import checked_arguments
from lf_backend.dispatch import registry
from lf_backend.ops import around_backend
from lf_backend.problem import Feature
from lf_backend.testing.strategies import patterns

LOOKS = ("_local_scalar_dense", "is_nonzero", "nonzero", "masked_select", "equal")
CPU = [
    name
    for name, backend in registry.working().items()
    if Feature.DOCUMENTS in backend.capabilities.features
    and not backend.reasons(
        lf.Problem(frozenset(), "float64", 1, 1, 1, 8, 8, 8), lf.Machine.of(torch.device("cpu"))
    )
]
BESIDE_PREDICATES = {"blocked", "portable", "reference"}  # who runs documents under a predicate


class _Looks(TorchDispatchMode):
    """Counts operators for which a device would be waited for."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if (name := func.overloadpacket.__name__) in LOOKS:
            self.seen[name] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def _no_look() -> Iterator[None]:
    with _Looks() as looks:
        yield
    assert not looks.seen


def _ids(sizes: list[int]) -> Tensor:
    return lf.document_ids(torch.tensor([0, *sizes]).cumsum(0))


@st.composite
def _rows(draw: st.DrawFn) -> tuple[list[int], dict[str, Any]]:
    sizes = draw(st.lists(st.integers(1, 40), min_size=1, max_size=5))
    heads = draw(st.sampled_from([(2, 2), (4, 2)]))
    return sizes, {
        "heads": heads,
        "pattern": draw(patterns(heads[0], min(sizes))),
        "padding": draw(st.booleans()),
        "globals": draw(st.integers(0, 3)),
        "given": draw(st.sampled_from(["global_mask", "global_positions"])),
        "separate": draw(st.booleans()),
        "softcap": draw(st.sampled_from([None, 2.0])),
        "sinks": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


@pytest.mark.parametrize("backend", CPU)
@settings(deadline=None, max_examples=40)
@given(row=_rows())
def test_a_document_is_as_a_row_of_its_own(backend: str, row: tuple[list[int], dict[str, Any]]) -> None:
    """Values and gradients in float64, against one call of the reference for each document."""
    sizes, asked = row
    if asked["pattern"].lowered.others:
        assume(backend in BESIDE_PREDICATES)
    length, generator = sum(sizes), torch.Generator().manual_seed(asked["seed"])
    heads, kv_heads = asked["heads"]

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    names = ["q", "k", "v"]
    leaves = dict(zip(names, (leaf(1, h, length, 8) for h in (heads, kv_heads, kv_heads)), strict=True))
    padding = torch.rand(1, length, generator=generator) < 0.2 if asked["padding"] else None
    mask = torch.zeros(1, length, dtype=torch.bool)
    mask[0, torch.randperm(length, generator=generator)[: asked["globals"]]] = True
    if asked["separate"]:
        own = (leaf(1, h, length, 8) for h in (heads, kv_heads, kv_heads))
        leaves |= dict(zip(("global_q", "global_k", "global_v"), own, strict=True))
    sinks = leaf(heads) if asked["sinks"] else None
    numbers = {"softcap": asked["softcap"], "sinks": sinks, "return_lse": True}

    packed: dict[str, Any] = {"key_padding": padding, "documents": _ids(sizes)}
    at = mask[0].nonzero().T
    packed |= {"global_mask": mask} if asked["given"] == "global_mask" else {"global_positions": at}
    found = lf.attention(pattern=asked["pattern"], backend=backend, **leaves, **packed, **numbers)

    parts, start = [], 0
    for size in sizes:
        part = slice(start, start + size)
        one = {name: x[:, :, part] for name, x in leaves.items()}
        masks = {"key_padding": None if padding is None else padding[:, part], "global_mask": mask[:, part]}
        pattern = asked["pattern"]
        parts.append(lf.attention(pattern=pattern, backend="reference", **one, **masks, **numbers))
        start += size
    wanted = tuple(torch.cat(x, 2) for x in zip(*parts, strict=True))
    upstream = [torch.randn(x.shape, generator=generator, dtype=x.dtype) for x in wanted]
    upstream[1] = upstream[1].masked_fill(wanted[1].isinf(), 0)
    inputs = [*leaves.values(), *([] if sinks is None else [sinks])]
    for got, right in zip(
        (*found, *torch.autograd.grad(found, inputs, upstream, materialize_grads=True)),
        (*wanted, *torch.autograd.grad(wanted, inputs, upstream, materialize_grads=True)),
        strict=True,
    ):
        torch.testing.assert_close(got, right, rtol=1e-9, atol=1e-9)


def test_a_position_that_a_document_has_not_is_nobodys() -> None:
    q = torch.randn(1, 2, 30, 8)
    pattern = lf.Window(2, 2) | lf.Global(12, 90)
    seen = lf.probabilities(q, q, q, pattern, documents=_ids([10, 20]))[0, 0] > 0
    assert seen[10:, 22].all()  # position 12 of the second document
    assert not seen[:10, 10:].any() and not seen[10:, :10].any()
    assert seen[:10, :10].sum() == lf.Window(2, 2).pairs(10)


def test_ids_from_boundaries() -> None:
    assert lf.document_ids([0, 3, 3, 5], 5).tolist() == [[0, 0, 0, 2, 2]]
    assert lf.document_ids(torch.tensor([[0, 2, 4], [0, 1, 4]])).tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    for wrong, words in (
        ([0, 3, 2], "ascending"),
        ([1, 3], "from 0 to"),
        (torch.tensor([0.0, 1.0]), "ints"),
        (torch.zeros(1, 1, 1, dtype=torch.int64), "documents"),
    ):
        with pytest.raises(lf.ShapeError, match=f"cu_seqlens: .*{words}"):
            lf.document_ids(wrong)
    with pytest.raises(lf.ShapeError, match="from 0 to 7 wanted"):
        lf.document_ids([0, 3, 5], 7)


Q = torch.randn(2, 1, 6, 8)
IDS = torch.zeros(2, 6, dtype=torch.int64)


@pytest.mark.parametrize(
    "given, words",
    [
        (
            {"documents": torch.tensor([[0, 0, 1, 1, 0, 0]] * 2)},
            "documents: .*id 0 of row 0 at position 1 .* 4",
        ),
        ({"documents": IDS[:1]}, r"documents: shape \[batch, keys\] = \[2, 6\]"),
        ({"documents": IDS.float()}, "documents: a dtype of ints"),
        ({"documents": IDS[0]}, r"documents: \[batch, keys\]"),
        ({"documents": [0, 6]}, "documents: an int tensor"),
        ({"documents": IDS.to("meta")}, "documents: device cpu"),
        ({"global_positions": IDS.bool()}, "global_positions: a dtype of ints"),
        ({"global_positions": IDS[:1]}, r"global_positions: shape \[batch, tokens\] = \[2, any\]"),
        ({"global_positions": IDS[:, :1] + 6}, "global_positions: positions below 6, .* got 6"),
        ({"global_positions": IDS[:, :1] - 2}, "global_positions: positions below 6, .* got -2"),
        ({"global_positions": IDS[:, :2]}, "global_positions: a position once .* got 0 twice"),
        ({"global_positions": [0]}, "global_positions: an int tensor"),
        ({"global_positions": IDS[:, :1], "global_mask": IDS.bool()}, "global_positions: either .* got both"),
        ({"global_positions": IDS[:, :1].to("meta")}, "global_positions: device cpu"),
        ({"cu_seqlens": [0, 6]}, "document_ids"),
    ],
)
def test_what_does_not_fit_is_an_error(given: dict[str, Any], words: str) -> None:
    with pytest.raises((lf.ShapeError, lf.ArgumentError), match=words):
        lf.attention(Q, Q, Q, "window(1, 1)", **given)


def test_check_documents_takes_what_is_in_order() -> None:
    lf.check_documents(torch.tensor([[5, 5, 2, 9], [1, 1, 1, 1]]))
    lf.check_documents(torch.zeros(2, 0, dtype=torch.int64))
    with pytest.raises(lf.ShapeError, match="id 5 of row 1 at position 0 and again at 2"):
        lf.check_documents(torch.tensor([[0, 0, 0], [5, 2, 5]]))


def test_nobody_looks_where_positions_say_which_are_global() -> None:
    """Neither forward nor backward, with padding, documents, dropout and own projections."""
    q = torch.randn(2, 2, 50, 8, requires_grad=True)
    options: dict[str, Any] = {
        "key_padding": torch.rand(2, 50) < 0.2,
        "global_positions": torch.tensor([[3, -1], [40, 7]]),
        "documents": torch.arange(50).expand(2, -1) // 20,
        "global_q": q, "global_k": q, "global_v": q,
        "dropout_p": 0.1,
        "backend": "native" if "native" in CPU else "portable",
    }  # fmt: skip
    lf.attention(q, q, q, "window(4, 4)", **options).sum().backward()  # what is checked is checked by now
    call = checked_arguments(q, q, q, "window(4, 4)", options)
    with torch.no_grad(), _no_look():
        out, lse = around_backend.forward(call)
        around_backend.backward(call, torch.ones_like(out), None, out, lse)


def test_a_mask_is_looked_at_once_for_forward_and_backward() -> None:
    q = torch.randn(1, 2, 40, 8, requires_grad=True)
    mask = torch.zeros(1, 40, dtype=torch.bool)
    mask[0, 5] = True
    with _Looks() as looks:
        looks.seen.clear()
        out = lf.attention(q, q, q, "window(4, 4)", global_mask=mask)
    assert sum(looks.seen.values()) <= 1
    out.sum().backward()


def test_new_boundaries_neither_compile_again_nor_stay_in_memory() -> None:
    q = torch.randn(1, 1, 64, 8)
    torch._dynamo.reset()
    count = CompileCounter()

    @torch.compile(backend=count, fullgraph=True)
    def attend(q: Tensor, documents: Tensor) -> Tensor:
        return lf.attention(q, q, q, "window(4, 4)", documents=documents)

    def some(seed: int) -> Tensor:
        return _ids([seed % 60 + 1, 63 - seed % 60])

    for seed in range(5):
        torch.testing.assert_close(
            attend(q, some(seed)), lf.attention(q, q, q, "window(4, 4)", documents=some(seed))
        )
    assert count.frame_count == 1

    def run(seeds: range) -> int:
        for seed in seeds:
            lf.attention(q, q, q, "window(4, 4)", documents=some(seed))
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    tracemalloc.start()
    before = run(range(200))
    after = run(range(200, 1200))
    tracemalloc.stop()
    assert after - before < 20_000


def test_export_takes_documents_of_any_length() -> None:
    class Attend(torch.nn.Module):
        def forward(self, q: Tensor, documents: Tensor) -> Tensor:
            return lf.attention(q, q, q, "window(4, 4) | global(0)", documents=documents)

    length = torch.export.Dim("length", min=2, max=1000)
    q, ids = torch.randn(1, 1, 40, 8), _ids([10, 30])
    program = torch.export.export(Attend(), (q, ids), dynamic_shapes=({2: length}, {1: length})).module()
    other, other_ids = torch.randn(1, 1, 70, 8), _ids([33, 3, 34])
    torch.testing.assert_close(program(other, other_ids), Attend()(other, other_ids))
