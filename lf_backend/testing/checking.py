"""Whether a backend gives the oracle's answer to a case: values, gradients, and what must not matter.

Tolerance is a budget, not a table: a result may be off by twice the error that the eager computation
makes in the same dtype (flash-attention's rule), plus 16 units of rounding at its own size, for what eager
happens to get exactly, and one at the size of the logits. A gradient may be off by four more units, or as
many as the largest logit says, at the size of its terms, which cancel where a row sees one key.
Uninitialised memory is filled with NaN while a backend runs.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from lf_backend import api
from lf_backend.testing import oracle
from lf_backend.testing.case import Case, Tensors

CPU = torch.device("cpu")
Results = dict[str, Tensor]

MASKS = ("key_padding", "global_mask", "global_positions", "documents")
FEW = 2000  # elements of q, fewer of which say little about rounding
ONCE = os.environ.get("LF_TESTING_ONCE", "0") != "0"  # for an interpreter, slow and the same in every run


class Mismatch(AssertionError):
    """A backend that does not do what the library promises."""


def check(case: Case, backend: str, dtype: torch.dtype, device: torch.device = CPU) -> None:
    """Run one case whole on one backend.

    Raises:
        Mismatch: what differs, by how much, and what would have been allowed.
    """
    tensors = case.tensors(dtype, device)
    found = run(case, backend, tensors)
    _compare(case, found, tensors)
    if tensors.key_padding is not None and case.batch:
        _check_padding(case, backend, tensors, found)  # a repetition too: no bit may differ
    elif not ONCE:
        _check_repeat(found, run(case, backend, tensors))
    if case.batch and not case.dropout_p:
        _check_reach(case, backend, tensors, found)


def run(case: Case, backend: str, tensors: Tensors) -> Results:
    """out, lse and the gradient of every leaf, on the backend under test, in poisoned memory."""
    with _poisoned(), torch.random.fork_rng(devices=_cuda(tensors)):
        return _with_gradients(case, *_forward(case, backend, tensors), tensors)


def _forward(case: Case, backend: str, tensors: Tensors) -> tuple[Tensor, Tensor]:
    torch.manual_seed(case.seed)
    return api.attention(
        pattern=case.pattern,
        **tensors.named(),
        **case.options(),
        return_lse=True,
        backend=backend,
    )


def expected(case: Case, tensors: Tensors) -> Results:
    """Return the oracle's results, in the dtype of the tensors."""
    with torch.random.fork_rng(devices=_cuda(tensors)):
        torch.manual_seed(case.seed)
        seed = torch.randint(2**62, (1,), device=tensors.q.device)  # what `attention` draws
        out, lse = oracle.attention(
            pattern=case.pattern,
            seed=seed,
            **tensors.named(),
            **case.options(),
        )
        return _with_gradients(case, out, lse, tensors)


def _with_gradients(case: Case, out: Tensor, lse: Tensor, tensors: Tensors) -> Results:
    upstream = (_upstream(case, out), _upstream(case, lse).masked_fill(lse.isinf(), 0))
    leaves = tensors.leaves()
    grads = torch.autograd.grad((out, lse), list(leaves.values()), upstream, materialize_grads=True)
    named = {f"gradient of {name}": grad for name, grad in zip(leaves, grads, strict=True)}
    return {"out": out.detach(), "lse": lse.detach(), **named}


def _upstream(case: Case, result: Tensor) -> Tensor:
    """A random gradient of a result, the same for every dtype up to rounding."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    drawn = torch.randn(result.shape, generator=generator, dtype=torch.float64)
    return drawn.to(result.device, result.dtype)


def _compare(case: Case, found: Results, tensors: Tensors) -> None:
    dtype = tensors.q.dtype
    truth = expected(case, tensors.to(torch.float64))
    budget = _budget(case, dtype, tensors.q.device)
    cancelling, logits = _cancelling(case, tensors, found["out"]), _logits(case, tensors)
    for name, wanted in truth.items():
        got = found[name]
        if got.shape != wanted.shape or not torch.equal(got.isinf(), wanted.isinf()) or got.isnan().any():
            raise Mismatch(f"{name}: {_bad(got, wanted)} in {case}")
        floor = 16 * max(1.0, _size(wanted)) + logits
        floor += max(4.0, logits) * cancelling if name.startswith("gradient") else 0.0
        error, allowance = _largest(got, wanted), budget[name] + torch.finfo(dtype).eps * floor
        if error > allowance:
            raise Mismatch(f"{name}: error {error:.3g}, allowed {allowance:.3g}, in {case}")


def _cancelling(case: Case, tensors: Tensors, out: Tensor) -> float:
    """Size of the terms of a gradient, which can cancel to much less: grad_out @ v less its mean, times
    what the score multiplies."""
    scale = case.head_dim**-0.5 if case.scale is None else abs(case.scale)
    factor: float = max(1.0, scale * max(map(_size, tensors.leaves().values())))
    values = max(_longest(x) for x in (tensors.v, tensors.global_v) if x is not None)
    return _longest(_upstream(case, out)) * values * factor


def _logits(case: Case, tensors: Tensors) -> float:
    """How large a logit can be; one unit of rounding of it is a relative error of its weight."""
    queries = max(_longest(x) for x in (tensors.q, tensors.global_q) if x is not None)
    keys = max(_longest(x) for x in (tensors.k, tensors.global_k) if x is not None)
    scale = case.head_dim**-0.5 if case.scale is None else abs(case.scale)
    return float(scale * queries * keys)


def _longest(x: Tensor) -> float:
    """Norm of the longest vector of x [..., D]."""
    return _size(torch.linalg.vector_norm(x.detach().double(), dim=-1))


def _budget(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, float]:
    """Twice what eager errs on this call; on a small one also on others like it, as it may be lucky.

    float64 has no better judge than itself, so the judge's own error counts as well: three times, not
    twice, what eager float32 errs, scaled.
    """
    eager = torch.float32 if dtype == torch.float64 else dtype
    times = 3 * torch.finfo(dtype).eps / torch.finfo(eager).eps if dtype == torch.float64 else 2.0
    elements = max(case.batch * case.heads * case.queries * case.head_dim, 1)
    budget: dict[str, float] = {}
    for draw in range(max(1, min(8, FEW // elements))):
        tensors = replace(case, seed=case.seed + draw).tensors(eager, device)
        truth, errs = expected(case, tensors.to(torch.float64)), expected(case, tensors)
        for name, wanted in truth.items():
            budget[name] = max(budget.get(name, 0.0), times * _largest(errs[name], wanted))
    return budget


def _bad(got: Tensor, wanted: Tensor) -> str:
    if got.shape != wanted.shape:
        return f"shape {list(wanted.shape)} wanted, got {list(got.shape)}"
    return (
        f"{int(got.isnan().sum())} NaN, {int(got.isinf().sum())} inf, wanted {int(wanted.isinf().sum())} inf"
    )


def _largest(a: Tensor, b: Tensor) -> float:
    """Largest absolute difference, pairs of equal infinities apart."""
    difference = (a.double() - b.double()).masked_fill(b.isinf(), 0).abs()
    return float(difference.detach().max()) if difference.numel() else 0.0


def _size(x: Tensor) -> float:
    return _largest(x, torch.zeros_like(x))


def _check_repeat(first: Results, second: Results) -> None:
    for name, value in first.items():
        if not torch.equal(value, second[name]):
            raise Mismatch(f"{name}: two runs differ by {_largest(value, second[name]):.3g}")


def _check_padding(case: Case, backend: str, tensors: Tensors, found: Results) -> None:
    """Check that padded positions, whatever they hold, have no effect and get no gradient."""
    padding = tensors.key_padding
    assert padding is not None, "called only with padding"
    spoiled = {}
    for name, x in tensors.named().items():
        if name in ("q", "k", "v", "global_q", "global_k", "global_v") and x is not None:
            junk = torch.where(torch.arange(x.shape[3], device=x.device) % 2 == 0, torch.nan, torch.inf)
            other = torch.empty_like(x).copy_(x.detach())  # in the layout of x, which decides on rounding
            other.transpose(1, 2)[padding[:, case.length - x.shape[2] :]] = junk.to(x.dtype)
            spoiled[name] = other.requires_grad_()
    again = run(case, backend, replace(tensors, **spoiled))
    for name, value in found.items():
        if not torch.equal(value, again[name]):
            raise Mismatch(f"{name}: changes with what padded positions hold, or from run to run, in {case}")
        leaf = name.removeprefix("gradient of ")
        if leaf in spoiled:
            mask = padding[:, None, case.length - value.shape[2] :, None]
            if value.masked_fill(~mask, 0).any():
                raise Mismatch(f"{name}: not 0 at padded positions, in {case}")


def _check_reach(case: Case, backend: str, tensors: Tensors, found: Results) -> None:
    """A key that a query does not see changes nothing in that query's row."""
    position = case.seed % case.length
    sees = _rows_that_see(case, tensors, position)
    moved = {}
    for name in ("k", "v", "global_k", "global_v"):
        x = getattr(tensors, name)
        if x is not None:
            other = x.detach().clone()
            other[:, :, position] += 1.0
            moved[name] = other.requires_grad_()
    with _poisoned(), torch.random.fork_rng(devices=_cuda(tensors)):
        out, lse = _forward(case, backend, replace(tensors, **moved))
    for name, again, blind in (("out", out, ~sees[..., None]), ("lse", lse, ~sees)):
        old, new = (torch.where(blind, x.detach(), 0) for x in (found[name], again))
        if not torch.equal(old, new):
            raise Mismatch(f"{name}: changes with key {position} in rows that do not see it, in {case}")
    if not sees.any():
        for name in ("gradient of k", "gradient of v"):
            if found[name][:, :, position].any():
                raise Mismatch(f"{name}: not 0 for key {position}, which nobody sees, in {case}")


def _rows_that_see(case: Case, tensors: Tensors, position: int) -> Tensor:
    """Bool [B, H, N] from the oracle's own mask: the gradient of lse reaches the key's score or not."""
    ones = {name: getattr(tensors, name) for name in MASKS}
    k = torch.zeros(case.batch, 1, case.length, 1, dtype=torch.float64, device=tensors.q.device)
    q = torch.zeros(case.batch, case.heads, case.queries, 1, dtype=torch.float64, device=k.device)
    v = k.clone()
    v[:, :, position] = 1.0
    out, _ = oracle.attention(q, k, v, case.pattern, **ones)
    return out[..., 0] > 0


@contextmanager
def _poisoned() -> Iterator[None]:
    """Fresh memory holds NaN, and an operation without a deterministic form is an error."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _cuda(tensors: Tensors) -> list[int]:
    return [tensors.q.get_device()] if tensors.q.is_cuda else []
