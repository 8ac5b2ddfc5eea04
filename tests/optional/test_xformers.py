"""The xformers backend without a GPU: a reference for its two calls, under the masks that the real bias
objects draw of themselves, in the whole kit."""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings

import lf_backend as lf
from lf_backend.backends.xformers import Xformers
from lf_backend.dispatch import registry
from lf_backend.problem import Machine
from lf_backend.testing import check
from lf_backend.testing.cases import named
from lf_backend.testing.strategies import cases

CPU = Machine("cpu", packages=(("xformers", "0.0.35"),))


def scores(q, k, bias, scale):
    """Float64 [B, H, n, m] of q [B, n, H, D] and k [B, m, H, D], -inf where the bias says so."""
    found = (q.double().transpose(1, 2) @ k.double().transpose(1, 2).mT) * scale
    return found if bias is None else found + bias.materialize(tuple(found.shape)).double()


def attend(q, k, v, bias, scale):
    found = scores(q, k, bias, scale)
    out = found.softmax(-1) @ v.double().transpose(1, 2)
    return out.transpose(1, 2).to(q.dtype), found.logsumexp(-1).float()


def differentiate(grad, out, lse, q, k, v, bias, scale):
    """As the kernels do: delta from the output and its gradient, weights from lse."""
    assert all(x.stride(-1) == 1 and x.shape[-1] % 8 == 0 for x in (grad, out, q, k, v))
    weights, dtype = (scores(q, k, bias, scale) - lse.double()[..., None]).exp(), q.dtype
    grad, out, q, k, v = (x.double().transpose(1, 2) for x in (grad, out, q, k, v))
    raw = weights * (grad @ v.mT - (grad * out).sum(-1, keepdim=True)) * scale
    return tuple(x.transpose(1, 2).to(dtype) for x in (raw @ k, raw.mT @ q, weights.mT @ grad))


class StandIn(Xformers):
    """The backend on a CPU."""

    name = "xformers_stand_in"
    priority = -1
    capabilities = lf.Capabilities(
        Xformers.capabilities.features, Xformers.capabilities.dtypes, max_head_dim=248, packages=("xformers",)
    )
    attend = staticmethod(attend)
    differentiate = staticmethod(differentiate)


@pytest.fixture(scope="module", autouse=True)
def registered():
    registry.register(StandIn)
    yield
    registry.unregister("xformers_stand_in")


ABLE = {name: case for name, case in named() if not StandIn().reasons(case.problem(torch.float16), CPU)}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ABLE)
def test_case(name, dtype) -> None:
    check(ABLE[name], "xformers_stand_in", dtype)


def test_every_claim_is_exercised() -> None:
    needs = (case.problem(torch.float16).features for case in ABLE.values())
    assert set().union(*needs) == Xformers.capabilities.features


@given(case=cases())
@settings(max_examples=150, suppress_health_check=list(HealthCheck))
def test_random_case(case) -> None:
    assume(not StandIn().reasons(case.problem(torch.bfloat16), CPU))
    check(case, "xformers_stand_in", torch.bfloat16)


def test_a_window_alone_is_xformers_own_call(monkeypatch) -> None:
    """Views of the inputs and no further dimension."""
    seen = []
    monkeypatch.setattr(StandIn, "attend", staticmethod(lambda *args: seen.append(args) or attend(*args)))
    q, k, v = torch.randn(3, 2, 40, 4, 16, dtype=torch.float16).transpose(2, 3)
    lf.attention(q, k, v, lf.Window(3, 2), backend="xformers_stand_in")
    ((*given, bias, scale),) = seen
    assert [x.data_ptr() for x in given] == [x.data_ptr() for x in (q, k, v)]
    assert (bias.window_left, bias.window_right, scale) == (3, 2, 0.25)


@pytest.mark.parametrize(("pattern", "calls"), [("window(4, 0)", 1), ("causal()", 1), ("window(4, 1)", 3)])
def test_documents_share_a_call_where_there_is_a_bias_for_it(monkeypatch, pattern, calls) -> None:
    seen = []
    monkeypatch.setattr(StandIn, "attend", staticmethod(lambda *args: seen.append(args) or attend(*args)))
    q, k, v = torch.randn(3, 2, 2, 20, 16, dtype=torch.float16)
    ids = torch.tensor([[0] * 20, [0] * 7 + [1] * 13])
    out = lf.attention(q, k, v, pattern, documents=ids, backend="xformers_stand_in")
    assert len(seen) == calls
    wanted = lf.attention(q, k, v, pattern, documents=ids, backend="reference")
    torch.testing.assert_close(out, wanted, rtol=2e-3, atol=2e-3)


def test_what_xformers_refuses_is_a_reason() -> None:
    """Its own operator on a CPU, which says why it does not run there."""
    q = torch.randn(1, 1, 24, 16, dtype=torch.float16)

    class Forced(StandIn):
        name = "xformers_forced"
        attend = staticmethod(Xformers.attend)

    registry.register(Forced)
    try:
        with pytest.raises(
            lf.UnsupportedError, match=r"cannot: xformers: No operator found .* not supported because"
        ):
            lf.attention(q, q, q, lf.Window(1, 1), backend="xformers_forced")
    finally:
        registry.unregister("xformers_forced")


def test_it_says_what_it_cannot() -> None:
    q = torch.empty(1, 2, 64, 20, dtype=torch.float32, device="meta")
    old = Machine("cuda", "an old GPU", (7, 0), ())
    selection = lf.explain(q, q, q, lf.Window(1, 1) | lf.Window(2, 2, 3), backend="xformers", machine=old)
    (reasons,) = (verdict.reasons for verdict in selection.verdicts if verdict.backend == "xformers")
    assert reasons == (
        "several windows is not supported",
        "dtype in ['bfloat16', 'float16'] wanted, call has float32",
        "package xformers is not installed",
        "head_dim % 8 == 0 wanted, call has 20",
        "capability >= 8.0 wanted, machine has 7.0",
    )


def test_info_has_xformers_own_operators() -> None:
    words = Xformers().details().split(", ")
    assert any(word.startswith("fa2F") for word in words)
    assert {word.split()[-1] for word in words} <= {"yes", "no"}
