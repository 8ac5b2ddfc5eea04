"""The FlexAttention backend without a GPU: a dense stand-in for its one call, in the whole kit.

The stand-in reads the lists of blocks as the kernels do: what they leave out is not computed, and blocks
that they call full are not masked.
"""

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.attention.flex_attention import flex_attention

import lf_backend as lf
from lf_backend.backends import flex
from lf_backend.backends.flex import Flex, FlexFlash
from lf_backend.dispatch import registry, select
from lf_backend.errors import BuildError
from lf_backend.pattern.interchange import BLOCK
from lf_backend.problem import Machine
from lf_backend.testing import check
from lf_backend.testing.cases import named
from lf_backend.testing.strategies import cases


def stand_in(q, k, v, mask, scale, score_mod, options):
    """flex_attention in float32, differentiable: out and lse."""
    group = q.shape[1] // k.shape[1]
    k, v = (x.repeat_interleave(group, 1) for x in (k, v))
    index = [torch.arange(size).view(*(-1 if i == j else 1 for j in range(4))) for i, size in
             enumerate((*q.shape[:3], k.shape[2]))]  # fmt: skip
    some, full = (blocks(*lists, k.shape[2])[:, :, : q.shape[2]] for lists in (
        (mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)))  # fmt: skip
    seen = some & mask.mask_mod(*index) | full
    scores = (q.float() @ k.float().mT) * scale
    if score_mod is not None:
        scores = score_mod(scores, *index)
    scores = scores.masked_fill(~seen, -torch.inf)
    lse = scores.logsumexp(-1)
    weights = (scores - lse.masked_fill(~seen.any(-1), 0)[..., None]).exp()
    return (weights @ v.float()).to(q.dtype), lse


def blocks(counts, indices, keys):
    """Bool [1, H, blocks * BLOCK, keys]: pairs in the blocks that are listed."""
    listed = torch.arange(indices.shape[-1]) < counts[..., None]
    dense = torch.zeros_like(listed).scatter(-1, indices.long(), listed)
    return dense.repeat_interleave(BLOCK, 2).repeat_interleave(BLOCK, 3)[..., :keys]


class StandIn(Flex):
    """The backend on a CPU."""

    name = "flex_stand_in"
    priority = -1
    capabilities = lf.Capabilities(Flex.capabilities.features, Flex.capabilities.dtypes)
    attention = staticmethod(stand_in)


@pytest.fixture(scope="module", autouse=True)
def registered():
    registry.register(StandIn)
    yield
    registry.unregister("flex_stand_in")


ABLE = {
    name: case for name, case in named() if not StandIn().reasons(case.problem(torch.float32), Machine("cpu"))
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ABLE)
def test_case(name, dtype) -> None:
    check(ABLE[name], "flex_stand_in", dtype)


def test_every_claim_is_exercised() -> None:
    needs = (case.problem(torch.float32).features for case in ABLE.values())
    assert set().union(*needs) == Flex.capabilities.features


@given(case=cases())
@settings(max_examples=60, suppress_health_check=list(HealthCheck))
def test_random_case(case) -> None:
    assume(not StandIn().reasons(case.problem(torch.float32), Machine("cpu")))
    check(case, "flex_stand_in", torch.float32)


class Unfused(StandIn):
    """FlexAttention itself, traced and not fused: forward on a CPU."""

    name = "flex_unfused"
    attention = staticmethod(Flex.attention)


@pytest.fixture
def traced(monkeypatch):
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("eager")
    compiled = torch.compile(flex_attention, fullgraph=True, dynamic=True, backend=counter)
    monkeypatch.setattr(flex, "_compiled", lambda: compiled)
    registry.register(Unfused)
    yield counter
    registry.unregister("flex_unfused")


PATTERNS = [
    "window(20, 9) | global(3, 40)",
    "window(4, 4, dilation=[1, 2, 3, 3]) | documents([0, 11, 45])",
    "(random_blocks(600, block=16, heads=4) | window(3, 0)) & causal()",
]


@pytest.mark.parametrize("text", PATTERNS)
def test_new_lengths_do_not_compile_again(traced, text) -> None:
    for queries, keys in ((200, 650), (300, 800), (500, 555), (130, 400)):
        q = torch.randn(2, 4, queries, 16)
        k, v = torch.randn(2, 2, 2, keys, 16)
        mask = torch.rand(2, keys) < 0.1
        given = {"key_padding": torch.rand(2, keys) < 0.2, "global_mask": mask, "softcap": 5.0}
        out, lse = lf.attention(q, k, v, text, return_lse=True, backend="flex_unfused", **given)
        wanted = lf.attention(q, k, v, text, return_lse=True, backend="reference", **given)
        torch.testing.assert_close((out, lse), wanted)
    assert traced.frame_count == 2  # one for the first length, one for all lengths of several blocks


class Fused(StandIn):
    """FlexAttention compiled for a CPU, where it gives no lse: here all zeros, as if every row saw a key."""

    name = "flex_fused"

    @staticmethod
    def attention(q, k, v, mask, scale, score_mod, options):
        compiled = torch.compile(flex_attention, fullgraph=True)
        return compiled(q, k, v, score_mod, mask, scale, q.shape[1] != k.shape[1]), torch.zeros(q.shape[:3])


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")  # torch's own, of its compiler
def test_the_mask_compiles_to_a_kernel() -> None:
    """Padding, columns per example, grouped heads, dilation per head, a predicate with a table, softcap."""
    torch._dynamo.reset()
    registry.register(Fused)
    q, k, v = torch.randn(2, 4, 300, 16), *torch.randn(2, 2, 2, 555, 16)
    padding = torch.zeros(2, 555, dtype=torch.bool)
    padding[0, 400:430] = True
    given = {"key_padding": padding, "global_mask": torch.rand(2, 555) < 0.02, "softcap": 5.0}
    pattern = "window(40, 9, dilation=[1, 2, 3, 3]) | documents([0, 280, 410])"
    try:
        out = lf.attention(q, k, v, pattern, backend="flex_fused", **given)
    finally:
        registry.unregister("flex_fused")
    torch.testing.assert_close(out, lf.attention(q, k, v, pattern, backend="reference", **given))


def test_it_says_what_it_cannot() -> None:
    q = torch.randn(1, 1, 9, 8, dtype=torch.float64)
    with pytest.raises(lf.UnsupportedError) as error:
        lf.attention(q, q, q, lf.Window(1, 1), dropout_p=0.1, backend="flex")
    for reason in ("dropout is not supported", "call has float64", "call has cpu", "head_dim >= 16 wanted"):
        assert reason in str(error.value)


def test_on_cuda_it_can_and_does_not_come_first() -> None:
    q = torch.empty(1, 2, 4096, 64, dtype=torch.bfloat16, device="meta", requires_grad=True)
    machine = Machine("cuda", "some GPU", (9, 0), (("triton", "3.9.0"),))
    found = lf.explain(q, q, q, "big_bird(4096)", machine=machine)
    verdict = next(v for v in found.verdicts if v.backend == "flex")
    assert not verdict.reasons and found.chosen != "flex"


class FlashStandIn(FlexFlash):
    """The variant with FlexAttention's FLASH kernel, on a CPU."""

    name = "flex_flash_stand_in"
    priority = -1
    capabilities = lf.Capabilities(
        Flex.capabilities.features, FlexFlash.capabilities.dtypes, max_head_dim=128
    )
    attention = staticmethod(stand_in)


@pytest.fixture
def flash_stand_in(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(select, "_ruled_out", {})
    registry.register(FlashStandIn)
    yield
    registry.unregister("flex_flash_stand_in")


def test_the_flash_kernel_runs_forward_alone(flash_stand_in, monkeypatch) -> None:
    """It takes no gradient of the log-sum-exp: the backward is that of `flex`."""
    options: list = []
    monkeypatch.setattr(
        FlashStandIn, "attention", staticmethod(lambda *args: options.append(args[-1]) or stand_in(*args))
    )
    check(dict(named())["global tokens per example"], "flex_flash_stand_in", torch.bfloat16)
    assert {"BACKEND": "FLASH"} in options and None in options
    options.clear()
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 1, 20, 16, dtype=torch.float16))
    lf.attention(q, k, v, lf.Window(2, 1), backend="flex_flash_stand_in").sum().backward()
    assert options == [{"BACKEND": "FLASH"}, None]


def test_a_pytorch_without_the_flash_kernel_is_a_reason(flash_stand_in, monkeypatch) -> None:
    from torch.nn.attention import flex_attention as module

    assert FlexFlash().details() == ""
    monkeypatch.delattr(module, "_Backend")
    q = torch.randn(1, 1, 20, 16, dtype=torch.float16)
    with pytest.raises(lf.UnsupportedError, match=r"cannot: FlexAttention of torch .* has no FLASH kernel"):
        lf.attention(q, q, q, lf.Window(2, 1), backend="flex_flash_stand_in")


def test_the_flash_kernel_says_where_it_runs() -> None:
    q = torch.empty(1, 2, 4096, 200, dtype=torch.float32, device="meta")
    machine = Machine("cuda", "some GPU", (10, 0), (("triton", "3.9.0"),))
    found = lf.explain(q, q, q, lf.Window(2, 1), machine=machine)
    assert next(v.reasons for v in found.verdicts if v.backend == "flex_flash") == (
        "dtype in ['bfloat16', 'float16'] wanted, call has float32",
        "head_dim <= 128 wanted, call has 200",
        "package flash-attn-4 is not installed",
        "compute capability 9.x wanted (blocks of 128 queries), device has 10.0",
    )


class Unbuilt(StandIn):
    """A backend whose kernel does not compile."""

    name = "unbuilt"
    priority = 1000

    def forward(self, call):
        raise BuildError("no compiler here")


@pytest.fixture
def unbuilt(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(select, "_ruled_out", {})
    registry.register(Unbuilt)
    yield
    registry.unregister("unbuilt")


def test_what_cannot_be_built_is_a_reason_and_the_next_backend_runs(unbuilt) -> None:
    q = torch.randn(1, 1, 9, 16)
    assert lf.explain(q, q, q, lf.Window(1, 1)).chosen == "unbuilt"
    wanted = lf.attention(q, q, q, lf.Window(1, 1), backend="reference")
    torch.testing.assert_close(lf.attention(q, q, q, lf.Window(1, 1)), wanted)
    assert "unbuilt        cannot: no compiler here" in str(lf.explain(q, q, q, lf.Window(1, 1)))
    longer, wider = torch.randn(1, 1, 30, 16), torch.randn(1, 1, 9, 32)
    assert lf.explain(longer, longer, longer, lf.Window(1, 1)).chosen != "unbuilt"
    assert lf.explain(wider, wider, wider, lf.Window(1, 1)).chosen == "unbuilt"


def test_what_cannot_be_built_is_an_error_where_it_was_asked_for(unbuilt) -> None:
    q = torch.randn(1, 1, 8, 16)
    with pytest.raises(lf.UnsupportedError, match=r"'unbuilt' cannot run this call[\s\S]*no compiler here"):
        lf.attention(q, q, q, lf.Window(1, 1), backend="unbuilt")


def test_a_mask_that_flex_attention_cannot_compile_is_a_build_error(traced) -> None:
    def rule(head, query, key):
        torch._dynamo.graph_break()
        return key <= query

    q = torch.randn(1, 1, 20, 16)
    with pytest.raises(lf.UnsupportedError, match="FlexAttention does not compile"):
        lf.attention(q, q, q, lf.Predicate(rule), backend="flex_unfused")
