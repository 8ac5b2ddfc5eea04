"""The dense kernel's ends: what it is not told, and what it takes over."""

import pytest
import torch

import lf_backend as lf
from lf_backend.backends import sdpa

EVERYTHING, PAST = lf.Window(None, None), lf.Causal()


@pytest.mark.parametrize("pattern", [EVERYTHING, PAST], ids=str)
def test_gradients_of_the_log_sum_exp_alone_or_of_some_rows(pattern: lf.Pattern) -> None:
    """Where grad_out is 0, no output can tell the kernel what the log-sum-exp's gradient is."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 4, 20, 8, dtype=torch.float64)
    k, v = k[:, :2], v[:, :2]
    for rows in (0, 7, 20):
        found = {}
        for backend in ("sdpa", "reference"):
            leaves = [x.clone().requires_grad_() for x in (q, k, v)]
            out, lse = lf.attention(*leaves, pattern, return_lse=True, backend=backend)
            (out[:, :, :rows].square().sum() + lse.sin().sum()).backward()
            found[backend] = [x.grad for x in leaves]
        torch.testing.assert_close(found["sdpa"], found["reference"])


def test_an_output_that_the_dtype_cannot_hold() -> None:
    """float16: gradients of the output so small beside that of the log-sum-exp that their quotient is inf."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 2, 9, 8, dtype=torch.float16)
    found = {}
    for backend in ("sdpa", "reference"):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        out, lse = lf.attention(*leaves, EVERYTHING, return_lse=True, backend=backend)
        torch.autograd.backward([out, lse], [torch.full_like(out, 1e-6), torch.ones_like(lse)])
        found[backend] = [x.grad for x in leaves]
    assert all(x.isfinite().all() for x in found["sdpa"])
    torch.testing.assert_close(found["sdpa"], found["reference"])


@pytest.mark.parametrize("compiled", [False, True])
def test_the_kernels_own_backward_runs_where_the_log_sum_exp_has_no_gradient(compiled, monkeypatch) -> None:
    runs, kernel = [], sdpa._flash_backward
    monkeypatch.setattr(
        sdpa, "_flash_backward", lambda *args, **more: runs.append(1) or kernel(*args, **more)
    )
    leaves = [x.requires_grad_() for x in torch.randn(3, 1, 2, 9, 8)]

    def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return lf.attention(q, k, v, EVERYTHING, return_lse=True, backend="sdpa")[0]

    call = torch.compile(attend, fullgraph=True, backend="aot_eager") if compiled else attend
    call(*leaves).sum().backward()
    assert len(runs) == 1


def reasons(pattern: lf.Pattern, n: int, m: int, **given: torch.Tensor) -> str:
    q, k = torch.empty(1, 2, n, 8, device="meta"), torch.empty(1, 2, m, 8, device="meta")
    found = lf.explain(q, k, k, pattern, machine=lf.Machine("cpu"), **given)
    return "; ".join(next(v.reasons for v in found.verdicts if v.backend == "sdpa"))


def test_it_runs_what_leaves_no_pair_out() -> None:
    padding = torch.zeros(1, 9, dtype=torch.bool, device="meta")
    assert reasons(lf.Window(8, 8), 9, 9) == reasons(lf.Window(8, 2), 3, 9) == ""
    assert reasons(EVERYTHING | lf.Global(1), 9, 9, key_padding=padding) == reasons(PAST, 9, 9) == ""
    assert reasons(lf.Window(8, 0), 1, 9) == ""
    assert reasons(lf.Window(7, 0), 9, 9) == (
        "sdpa needs a window that covers every key, or every past key and nothing else; this one shows 8 of 9"
    )
    assert "every past key and nothing else; this one shows" in reasons(lf.Window(8, 0) | lf.Global(2), 9, 9)
    assert "dilation is not supported; sdpa needs a window" in reasons(lf.Window(8, 8, dilation=2), 9, 9)
    assert reasons(PAST, 3, 9) == "as many queries as keys under causality wanted, call has 3"
    assert reasons(PAST, 9, 9, key_padding=padding) == "key padding under causality is not supported"
