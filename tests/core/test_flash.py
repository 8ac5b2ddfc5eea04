"""The flash backend without a GPU: PyTorch's two operators under their own schema, with a reference for the
CPU in place of the kernels, in the whole kit.

The reference is written from FlashAttention's documentation: windows are aligned at the bottom right, -1 is
no limit, sequences end to end are [total, H, D] with a log-sum-exp of [H, total], the backward forms the sum
of grad_out * out itself, and a query with a log-sum-exp of +inf has no weight.
"""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

import lf_backend as lf
from lf_backend.backends import flash
from lf_backend.backends.flash import Flash
from lf_backend.dispatch import registry, select
from lf_backend.problem import Machine
from lf_backend.testing import check
from lf_backend.testing.cases import named
from lf_backend.testing.strategies import cases

CPU = Machine("cpu")


def forward(
    q, k, v, ends_q, ends_k, most_q, most_k, dropout_p, is_causal, return_debug_mask, *, scale,
    window_size_left, window_size_right, **others,
):  # fmt: skip
    """`aten::_flash_attention_forward`."""
    assert dropout_p == 0 and not return_debug_mask and scale > 0 and not any(others.values())
    window = window_size_left, 0 if is_causal else window_size_right
    check_inputs(q, k, v)
    out, lse = torch.empty_like(q), q.new_empty(lse_shape(q, ends_q), dtype=torch.float32)
    for rows, keys, heads in sequences(q, k, ends_q, ends_k, most_q, most_k):
        scores = scores_of(q[rows], k[keys], window, scale)
        out[rows] = (scores.softmax(-1) @ expanded(v[keys], q)).transpose(0, 1).to(q.dtype)
        lse[heads] = scores.logsumexp(-1).float()
    return out, lse, torch.empty(2, dtype=torch.uint64), torch.empty((), dtype=torch.uint64), q.new_empty(0)


def backward(
    grad, q, k, v, out, lse, ends_q, ends_k, most_q, most_k, dropout_p, is_causal, state, unused, *, scale,
    window_size_left, window_size_right,
):  # fmt: skip
    """`aten::_flash_attention_backward`: gradients of shared keys are rounded head by head, then summed."""
    assert dropout_p == 0 and scale > 0 and lse.is_contiguous() and lse.shape == lse_shape(q, ends_q)
    window = window_size_left, 0 if is_causal else window_size_right
    check_inputs(grad, q, k, v, out)
    found = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
    for rows, keys, heads in sequences(q, k, ends_q, ends_k, most_q, most_k):
        weights = (scores_of(q[rows], k[keys], window, scale) - lse[heads].double()[..., None]).exp()
        up, own = (x[rows].double().transpose(0, 1) for x in (grad, out))
        raw = weights * (up @ expanded(v[keys], q).mT - (up * own).sum(-1, keepdim=True)) * scale
        found[0][rows] = (raw @ expanded(k[keys], q)).transpose(0, 1).to(q.dtype)
        for into, each in (
            (found[1], raw.mT @ q[rows].double().transpose(0, 1)),
            (found[2], weights.mT @ up),
        ):
            each = each.to(q.dtype).unflatten(0, (k.shape[-2], -1))
            into[keys] = each.sum(1, dtype=torch.float32).transpose(0, 1).to(q.dtype)
    return found


def check_inputs(*tensors) -> None:
    for x in tensors:
        assert x.dtype in (torch.float16, torch.bfloat16) and x.shape[-1] % 8 == 0 and x.shape[-1] <= 256
        assert x.stride(-1) == 1 and x.data_ptr() % 16 == 0
        assert all(step % 8 == 0 for step, size in zip(x.stride()[:-1], x.shape, strict=False) if size > 1)


def lse_shape(q, ends):
    return (q.shape[0], q.shape[2], q.shape[1]) if ends is None else (q.shape[1], q.shape[0])


def sequences(q, k, ends_q, ends_k, most_q, most_k):
    """The indices of one sequence after the other: of queries, of keys, and in the log-sum-exp."""
    if ends_q is None:
        assert (most_q, most_k) == (q.shape[1], k.shape[1])
        yield from ((b, b, b) for b in range(len(q)))
        return
    for ends, most, x in ((ends_q, most_q, q), (ends_k, most_k, k)):
        assert ends.dtype == torch.int32 and ends.is_contiguous() and ends[0] == 0 and ends[-1] == len(x)
        assert ends.diff().min() >= 0 and ends.diff().max() <= most  # what is longer is not computed
    for at in range(len(ends_q) - 1):
        rows, keys = (slice(int(ends[at]), int(ends[at + 1])) for ends in (ends_q, ends_k))
        yield rows, keys, (slice(None), rows)


def scores_of(q, k, window, scale):
    """Float64 [H, n, m] of q [n, H, D] and k [m, Hkv, D], -inf outside the window."""
    n, m = len(q), len(k)
    ahead = torch.arange(m) - (torch.arange(n)[:, None] + m - n)
    left, right = (m if reach < 0 else reach for reach in window)
    found = q.double().transpose(0, 1) @ expanded(k, q).mT * scale
    return found.masked_fill((ahead < -left) | (ahead > right), -torch.inf)


def expanded(x, q):
    """Float64 [H, m, D] of x [m, Hkv, D]."""
    return x.double().transpose(0, 1).repeat_interleave(q.shape[-2] // x.shape[-2], 0)


class StandIn(Flash):
    """The backend on a CPU."""

    name = "flash_stand_in"
    priority = -1
    capabilities = lf.Capabilities(Flash.capabilities.features, Flash.capabilities.dtypes, max_head_dim=256)
    missing = staticmethod(lambda: "")


@pytest.fixture(scope="module", autouse=True)
def registered():
    library = torch.library.Library("aten", "IMPL", "CPU")
    library.impl("_flash_attention_forward", forward)
    library.impl("_flash_attention_backward", backward)
    registry.register(StandIn)
    yield
    registry.unregister("flash_stand_in")
    library._destroy()


ABLE = {name: case for name, case in named() if not StandIn().reasons(case.problem(torch.float16), CPU)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ABLE)
def test_case(name, dtype) -> None:
    check(ABLE[name], "flash_stand_in", dtype)


def test_every_claim_is_exercised() -> None:
    needs = (case.problem(torch.float16).features for case in ABLE.values())
    assert set().union(*needs) == Flash.capabilities.features


@given(case=cases())
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_random_case(case) -> None:
    assume(not StandIn().reasons(case.problem(torch.bfloat16), CPU))
    check(case, "flash_stand_in", torch.bfloat16)


@pytest.fixture
def calls(monkeypatch):
    """The arguments of every forward and backward of the operators."""
    seen = []
    for name in ("_flash_attention_forward", "_flash_attention_backward"):
        real = getattr(torch.ops.aten, name)

        def counted(*args, real=real, **more):
            seen.append((args, more))
            return real(*args, **more)

        monkeypatch.setattr(torch.ops.aten, name, counted)
    return seen


def test_a_window_alone_is_the_operator_itself(calls) -> None:
    """Views of the inputs, keys shared as they are."""
    q, k, v = (torch.randn(2, 40, heads, 16, dtype=torch.float16).transpose(1, 2) for heads in (4, 2, 2))
    lf.attention(q, k, v, lf.Window(3, 2), backend="flash_stand_in")
    lf.attention(q, k, v, lf.Causal(), backend="flash_stand_in")
    ((args, more), (causal, no_limit)) = calls
    assert [x.data_ptr() for x in args[:3]] == [x.data_ptr() for x in (q, k, v)]
    assert args[3:] == (None, None, 40, 40, 0.0, False, False)
    assert more == {"scale": 0.25, "window_size_left": 3, "window_size_right": 2}
    assert causal[8] and (no_limit["window_size_left"], no_limit["window_size_right"]) == (-1, 0)


def test_what_its_kernels_cannot_load_is_copied(calls) -> None:
    """Odd addresses, odd strides, and a head dimension that is not in one piece."""
    whole = torch.randn(1, 2, 20, 27, dtype=torch.float16)
    q, k, v = whole[..., 3:19], whole[..., :16], torch.randn(1, 2, 16, 20, dtype=torch.float16).mT
    out = lf.attention(q, k, v, lf.Window(3, 2), backend="flash_stand_in")
    torch.testing.assert_close(out, lf.attention(q, k, v, lf.Window(3, 2), backend="reference"))
    assert not {x.data_ptr() for x in calls[0][0][:3]} & {x.data_ptr() for x in (q, k, v)}


def test_documents_are_one_call_and_looked_at_once(calls, monkeypatch) -> None:
    """By all layers of a model and their backward."""
    looks, ends = [], flash._ends
    monkeypatch.setattr(flash, "_ends", lambda *args: looks.append(args) or ends(*args))
    q, k, v = torch.randn(3, 2, 2, 20, 16, dtype=torch.float16).requires_grad_().unbind()
    ids = torch.tensor([[0] * 20, [0] * 7 + [1] * 13])
    for _ in range(2):
        out = lf.attention(q, k, v, lf.Window(4, 1), documents=ids, backend="flash_stand_in")
        out.sum().backward()
    assert len(calls) == 4 and len(looks) == 1
    assert calls[0][0][3].tolist() == calls[0][0][4].tolist() == [0, 20, 27, 40]
    assert calls[0][0][5:7] == (20, 20)
    torch.testing.assert_close(
        out, lf.attention(q, k, v, lf.Window(4, 1), documents=ids, backend="reference"), rtol=2e-3, atol=2e-3
    )


@pytest.mark.parametrize("head_dim", [8, 64, 256])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_gradients_of_the_log_sum_exp(head_dim, dtype) -> None:
    """Where no output has the delta: as exact as in float32, with and without a gradient of the output."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, heads, 40, head_dim, dtype=dtype) for heads in (4, 2, 2))
    up, up_lse = torch.randn(q.shape, dtype=dtype), torch.randn(1, 4, 40)
    for factor in (0, 1):
        found = {}
        for backend, kind in (("flash_stand_in", dtype), ("reference", torch.float64)):
            leaves = [x.detach().to(kind).requires_grad_() for x in (q, k, v)]
            out, lse = lf.attention(*leaves, lf.Window(9, 4), return_lse=True, backend=backend)
            torch.autograd.backward([out, lse], [(factor * up).to(kind), up_lse.to(lse.dtype)])
            found[backend] = [x.grad.double() for x in leaves]
        for ours, wanted in zip(found["flash_stand_in"], found["reference"], strict=True):
            error = (ours - wanted).abs().max()
            assert error <= 4 * torch.finfo(dtype).eps * max(1, wanted.abs().max())


@pytest.mark.parametrize("grad", [False, True])
def test_it_compiles_whole(grad) -> None:
    torch._dynamo.reset()
    drawn = torch.randn(3, 1, 40, 2, 16, dtype=torch.float16).transpose(2, 3)
    q, k, v = (x.requires_grad_(grad) for x in drawn)
    ids = torch.arange(40)[None] // 15

    def attend(q, k, v):
        return lf.attention(q, k, v, "window(5, 2) | global(0)", documents=ids, backend="flash_stand_in")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    found, wanted = compiled(q, k, v), attend(q, k, v)
    assert torch.equal(found, wanted) and found.is_contiguous()
    if grad:
        grads = (torch.autograd.grad(out.sin().sum(), (q, k, v)) for out in (found, wanted))
        assert all(torch.equal(one, other) for one, other in zip(*grads, strict=True))


def test_a_pytorch_without_its_kernels_is_a_reason(monkeypatch) -> None:
    q = torch.randn(1, 1, 24, 16, dtype=torch.float16)
    monkeypatch.setattr(select, "_ruled_out", {})
    monkeypatch.setattr(StandIn, "missing", staticmethod(Flash.missing))
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: False)
    with pytest.raises(lf.UnsupportedError, match="cannot: this PyTorch was built without FlashAttention"):
        lf.attention(q, q, q, lf.Window(1, 1), backend="flash_stand_in")
    assert Flash().details() == "this PyTorch was built without FlashAttention"
    monkeypatch.setattr(torch.version, "hip", "7.0")
    assert "PyTorch for ROCm has other kernels" in Flash().details()
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)
    assert Flash().details() == "in this PyTorch"


def test_more_documents_than_programs_is_a_reason(monkeypatch) -> None:
    monkeypatch.setattr(select, "_ruled_out", {})
    monkeypatch.setattr(flash, "MOST", 3)
    q = torch.randn(1, 1, 8, 16, dtype=torch.float16)
    with pytest.raises(lf.UnsupportedError, match="at most 3 documents wanted, call has 4"):
        lf.attention(q, q, q, lf.Window(1, 1), documents=torch.arange(8)[None] // 2, backend="flash_stand_in")


def reasons(machine: Machine, q, pattern="window(1, 1)", **given) -> tuple[str, ...]:
    selection = lf.explain(q, q, q, pattern, machine=machine, **given)
    return next(verdict.reasons for verdict in selection.verdicts if verdict.backend == "flash")


def test_it_says_what_it_cannot() -> None:
    q = torch.empty(1 << 16, 2, 64, 20, device="meta")
    padding = torch.empty(1 << 16, 64, dtype=torch.bool, device="meta")
    pattern = lf.Window(1, 1) | lf.Window(2, 2, 3)
    old = Machine("cuda", "an old GPU", (7, 5), ())
    assert reasons(old, q, pattern, key_padding=padding, softcap=2.0, dropout_p=0.1) == (
        "dilation is not supported",
        "dropout is not supported",
        "key padding is not supported",
        "several windows is not supported",
        "softcap is not supported",
        "dtype in ['bfloat16', 'float16'] wanted, call has float32",
        "head_dim % 8 == 0 wanted, call has 20",
        "compute capability >= 8.0 wanted, device has 7.5",
        "batch <= 65535 wanted, call has 65536",
    )
    wide = torch.empty(1, 2, 64, 224, dtype=torch.bfloat16, device="meta", requires_grad=True)
    assert reasons(Machine("cuda", "", (8, 6)), wide) == (
        "head_dim <= 192 or > 224 wanted here for gradients, call has 224",
    )
    assert not reasons(Machine("cuda", "", (9, 0)), wide)
    assert not reasons(Machine("cuda", "", (8, 6)), wide.detach())
