"""What the blocked backend promises besides the right answer: linear memory, and no copies of views."""

import pytest
import torch

import lf_backend as lf
from lf_backend.measure import peak_bytes

WINDOW = lf.Window(32, 32)


def tensors(length: int, grad: bool) -> list[torch.Tensor]:
    shape = (1, length, 4, 32)
    return [torch.randn(shape).transpose(1, 2).requires_grad_(grad) for _ in range(3)]


def run(length: int, grad: bool, pattern: lf.Pattern = WINDOW) -> int:
    inputs = tensors(length, grad)

    def work() -> None:
        out = lf.attention(*inputs, pattern, backend="blocked")
        if grad:
            torch.autograd.grad(out, inputs, out.detach())

    return peak_bytes(work)


PATTERNS = {
    "window": WINDOW,
    "global": WINDOW | lf.Global(0, 7),
    "dilated": lf.Window(16, 16, dilation=3),
    "dilated per head": lf.Window(16, 16, dilation=(1, 1, 2, 2)),
    "causal": WINDOW & lf.Causal(),
    "blocks": lf.sparsity.block_local(64, reach=1),
    "documents": lf.sparsity.documents(range(0, 8193, 100)) | lf.Window(8, 0),
    "big bird": lf.sparsity.big_bird(8192, block=32),
}


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS.keys())
@pytest.mark.parametrize("grad", [False, True])
def test_memory_doubles_with_length(grad: bool, pattern: lf.Pattern) -> None:
    one, two = run(4096, grad, pattern), run(8192, grad, pattern)
    assert two < 2.1 * one


def test_peak_is_a_few_times_inputs_and_outputs() -> None:
    length = 16384
    unit = length * 4 * 32 * 4  # bytes of one of q, k, v, out and of each gradient
    assert run(length, grad=False) < 2 * unit
    assert run(length, grad=True) < 3 * 8 * unit


def test_transposed_views_are_not_copied() -> None:
    length = 16384
    unit = length * 4 * 32 * 4
    out_and_lse = unit + unit // 32
    assert run(length, grad=False) < out_and_lse + unit / 2


def test_keys_in_one_place_are_not_gathered() -> None:
    """A block, its neighbours and unaligned documents: each query block reads one range of keys."""
    length = 16384
    unit = length * 4 * 32 * 4
    for pattern in (lf.sparsity.block_local(128, reach=1), lf.sparsity.documents(range(0, length, 100))):
        assert run(length, grad=False, pattern=pattern) < unit + unit // 32 + unit / 2


def test_a_predicate_with_bounds_is_asked_about_its_blocks_alone() -> None:
    asked = []

    def same(head, query, key):
        asked.append(torch.broadcast_shapes(query.shape, key.shape).numel())
        return query // 100 == key // 100

    def bounds(head, first, last, m):
        return [(first // 100 * 100, (last // 100 + 1) * 100, first // 100 == last // 100)]

    q = torch.randn(1, 2, 6400, 8)
    lf.attention(q, q, q, lf.Predicate(same, bounds), backend="blocked")
    assert sum(asked) < 6400 * 200
