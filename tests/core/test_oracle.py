"""The oracle against three nested loops over Python floats, in which nothing is clever."""

import math
from functools import cache
from itertools import pairwise

import pytest
import torch

from lf_backend.testing import oracle
from lf_backend.testing.case import Case, Tensors
from lf_backend.testing.cases import named

PLAIN = [pytest.param(c, id=name) for name, c in named() if not c.dropout_p and c.head_dim <= 16]


@pytest.mark.parametrize("case", PLAIN)
def test_oracle_is_the_triple_loop(case: Case) -> None:
    tensors = case.tensors(torch.float64, torch.device("cpu"))
    out, lse = oracle.attention(
        pattern=case.pattern, scale=case.scale, softcap=case.softcap, **tensors.named()
    )
    for batch in range(case.batch):
        for head in range(case.heads):
            for row in range(case.queries):
                wanted, wanted_lse = _row(case, tensors, batch, head, row)
                assert out[batch, head, row].tolist() == pytest.approx(wanted, abs=1e-10)
                assert lse[batch, head, row].item() == pytest.approx(wanted_lse, abs=1e-10)


def _row(case: Case, t: Tensors, batch: int, head: int, row: int) -> tuple[list[float], float]:
    position = case.length - case.queries + row
    key_head = head // (case.heads // case.kv_heads)
    nothing = [0.0] * t.v.shape[-1], -math.inf
    if _padded(t, batch, position):
        return nothing
    q, k, v = t.q, t.k, t.v
    if case.separate and _is_global(case, t, batch, position):
        q, k, v = t.global_q, t.global_k, t.global_v
    logits = {
        key: _logit(case, t, q[batch, head, row], k[batch, key_head, key], batch, head, row, key)
        for key in range(case.length)
        if _sees(case, t, batch, head, position, key)
    }
    terms = [*logits.values(), *([t.sinks[head].item()] if t.sinks is not None else [])]
    if not terms:
        return nothing
    top = max(terms)
    total = sum(math.exp(term - top) for term in terms)
    out = [0.0] * t.v.shape[-1]
    for key, logit in logits.items():
        weight = math.exp(logit - top) / total
        out = [o + weight * x for o, x in zip(out, v[batch, key_head, key].tolist(), strict=True)]
    return out, top + math.log(total)


def _logit(case: Case, t: Tensors, q, k, batch: int, head: int, row: int, key: int) -> float:
    scale = case.head_dim**-0.5 if case.scale is None else case.scale
    logit = scale * sum(a * b for a, b in zip(q.tolist(), k.tolist(), strict=True))
    if case.softcap is not None:
        logit = case.softcap * math.tanh(logit / case.softcap)
    if t.band_bias is not None:
        (band,) = case.pattern.lowered.bands
        step, rest = divmod(key - (case.length - case.queries + row), band.dilation(head))
        tap = step + band.left
        if rest == 0 and 0 <= tap < t.band_bias.shape[-1]:
            logit += t.band_bias[min(batch, len(t.band_bias) - 1), head, row, tap].item()
    return logit


def _sees(case: Case, t: Tensors, batch: int, head: int, query: int, key: int) -> bool:
    start = _start(t, batch, query)
    if _padded(t, batch, key) or start != _start(t, batch, key):
        return False
    if case.pattern.visible(query - start, key - start, head):
        return True
    if case.pattern.is_causal and key > query:
        return False
    return any(_is_marked(t, batch, at) and not _padded(t, batch, at) for at in (query, key))


def _start(t: Tensors, batch: int, position: int) -> int:
    """Where the position's document starts."""
    return 0 if t.documents is None else _starts(t, batch)[position]


@cache
def _starts(t: Tensors, batch: int) -> list[int]:
    assert t.documents is not None, "asked only where there are some"
    starts = [0]
    for position, (before, own) in enumerate(pairwise(t.documents[batch].tolist()), start=1):
        starts.append(starts[-1] if own == before else position)
    return starts


def _is_global(case: Case, t: Tensors, batch: int, position: int) -> bool:
    inside = position - _start(t, batch, position)
    return _is_marked(t, batch, position) or inside in case.pattern.lowered.positions


def _is_marked(t: Tensors, batch: int, position: int) -> bool:
    """Whether the call says that the position is global, as a mask or in a list."""
    if t.global_positions is not None:
        return position in t.global_positions[batch].tolist()
    return t.global_mask is not None and bool(t.global_mask[batch, position])


def _padded(t: Tensors, batch: int, position: int) -> bool:
    return t.key_padding is not None and bool(t.key_padding[batch, position])
