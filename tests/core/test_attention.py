"""The operator in PyTorch's machinery: compile, export, autocast, checkpointing, autograd."""

import pytest
import torch
import torch._dynamo.testing
from torch.utils.checkpoint import checkpoint

import lf_backend as lf
from lf_backend.ops.arguments import Arguments
from lf_backend.pattern.interned import intern
from lf_backend.testing.cases import CASES

PATTERN = lf.Window(6, 4) | lf.Global(0)
BACKENDS = ("reference", "blocked")
every_backend = pytest.mark.parametrize("backend", BACKENDS)


def tensors(length: int = 40, dtype: torch.dtype = torch.float32, grad: bool = True) -> list[torch.Tensor]:
    return [torch.randn(2, 2, length, 8, dtype=dtype, requires_grad=grad) for _ in range(3)]


def test_pattern_may_be_its_string() -> None:
    q, k, v = tensors()
    wanted = lf.attention(q, k, v, PATTERN)
    assert torch.equal(lf.attention(q, k, v, str(PATTERN)), wanted)


def test_a_new_string_may_meet_torch_compile_first() -> None:
    inputs = tensors()
    text = "window(5, 3) | global(1, 2)"
    compiled = torch.compile(lambda q, k, v: lf.attention(q, k, v, text), fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), lf.attention(*inputs, text))


def test_patterns_that_are_first_met_in_one_trace() -> None:
    q, k, v = (torch.randn(1, 2, 16, 8) for _ in range(3))

    def layers(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        return lf.attention(lf.attention(q, k, v, "window(13, 0)"), k, v, "window(13, 1)")

    compiled = torch.compile(layers, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(q, k, v), layers(q, k, v))


@every_backend
def test_compiles_whole_and_new_lengths_do_not_recompile(backend: str) -> None:
    def layer(q, k, v, padding):
        return lf.attention(q * 2, k, v, PATTERN, key_padding=padding, backend=backend).sin()

    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for length in (40, 41, 57, 96):
        inputs = tensors(length)
        padding = torch.rand(2, length) < 0.2
        out = compiled(*inputs, padding)
        grads = torch.autograd.grad(out.sum(), inputs)
        wanted = layer(*inputs, padding)
        torch.testing.assert_close(out, wanted)
        torch.testing.assert_close(grads, torch.autograd.grad(wanted.sum(), inputs))
    assert counter.frame_count == 2  # one for the first length, one for all lengths


def test_compiles_with_dropout() -> None:
    compiled = torch.compile(lambda q, k, v: lf.attention(q, k, v, PATTERN, dropout_p=0.5), fullgraph=True,
                             backend="aot_eager")  # fmt: skip
    inputs = tensors()
    one, two = compiled(*inputs), compiled(*inputs)
    assert not torch.equal(one, two)
    torch.autograd.grad(one.sum(), inputs)


def test_exports_with_a_dynamic_length() -> None:
    class Layer(torch.nn.Module):
        def forward(self, q, k, v):
            return lf.attention(q, k, v, PATTERN)

    length = torch.export.Dim("length", min=8, max=4096)
    program = torch.export.export(
        Layer(), tuple(tensors(grad=False)), dynamic_shapes=({2: length}, {2: length}, {2: length})
    )
    inputs = tensors(77, grad=False)
    assert torch.equal(program.module()(*inputs), lf.attention(*inputs, PATTERN))


def test_a_pattern_may_be_made_inside_compiled_code() -> None:
    def layer(q, k, v):
        return lf.attention(q, k, v, lf.Window(4, 1) | lf.Global(0))

    inputs = tensors()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    assert torch.equal(compiled(*inputs), layer(*inputs))


def test_compiled_code_tells_patterns_apart() -> None:
    compiled = torch.compile(lambda q, k, v, p: lf.attention(q, k, v, p), fullgraph=True, backend="eager")
    inputs = tensors()
    even, odd = (lf.Predicate(lambda h, i, j, n=n: (j % 2 == n) | (j == i)) for n in (0, 1))
    for pattern in (lf.Window(1, 1), lf.Window(2, 1), lf.Window(1, 1) | lf.Global(3), even, odd, even | odd):
        assert torch.equal(compiled(*inputs, pattern), lf.attention(*inputs, pattern)), pattern


def test_predicates_compile_too() -> None:
    pattern = lf.Predicate(lambda head, query, key: key % 2 == query % 2)
    compiled = torch.compile(lambda q, k, v: lf.attention(q, k, v, pattern), fullgraph=True, backend="eager")
    inputs = tensors()
    torch.testing.assert_close(compiled(*inputs), lf.attention(*inputs, pattern))


def test_a_predicate_joins_other_terms_inside_compiled_code() -> None:
    even = lf.Predicate(lambda head, query, key: key % 2 == query % 2)

    def layer(q, k, v):
        return lf.attention(q, k, v, even | lf.Window(2, 2))

    inputs = tensors()
    compiled = torch.compile(layer, fullgraph=True, backend="eager")
    found, wanted = compiled(*inputs), layer(*inputs)
    torch.testing.assert_close(found, wanted)
    grads = (torch.autograd.grad(out.sin().sum(), inputs) for out in (found, wanted))
    torch.testing.assert_close(*grads)


def test_a_predicate_made_inside_compiled_code_is_refused() -> None:
    def layer(q, k, v):
        return lf.attention(q, k, v, lf.Predicate(_same_parity))

    compiled = torch.compile(layer, backend="eager")
    with pytest.raises(lf.PatternError, match=r"made outside of it, or by a function under @lf\.term"):
        compiled(*tensors())


def _same_parity(head, query, key):
    return key % 2 == query % 2


@pytest.mark.parametrize("name", ["separate projections per example", "everything", "sinks", "empty batch"])
def test_operator_passes_torchs_own_checks(name: str) -> None:
    case = CASES[name]
    t = case.tensors(torch.float32, torch.device("cpu"))
    seed = torch.tensor([5]) if case.dropout_p else None
    arguments = Arguments(
        **t.named(),
        seed=seed,
        pattern=intern(case.pattern),
        scale=0.3,
        softcap=case.softcap,
        dropout_p=case.dropout_p,
        differentiable=True,
        backend="",
    )
    torch.library.opcheck(torch.ops.lf_backend.attention.default, arguments.values())


@every_backend
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_its_dtype(backend: str, dtype: torch.dtype) -> None:
    q, k, v = tensors()
    with torch.autocast("cpu", dtype):
        out = lf.attention(q, k.to(dtype), v, PATTERN, backend=backend)
    assert out.dtype == dtype
    wanted = lf.attention(*(x.to(dtype) for x in (q, k, v)), PATTERN, backend=backend)
    assert torch.equal(out, wanted)
    grads = torch.autograd.grad(out.float().sum(), (q, k, v))
    assert all(grad.dtype == torch.float32 for grad in grads)


def test_autocast_leaves_float64_alone() -> None:
    inputs = tensors(dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        assert lf.attention(*inputs, PATTERN).dtype == torch.float64


@every_backend
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_replays_dropout(backend: str, reentrant: bool) -> None:
    inputs = tensors()

    def layer(q, k, v):
        return lf.attention(q, k, v, PATTERN, dropout_p=0.3, backend=backend)

    torch.manual_seed(3)
    plain = torch.autograd.grad(layer(*inputs).square().sum(), inputs)
    torch.manual_seed(3)
    out = checkpoint(layer, *inputs, use_reentrant=reentrant)
    out.square().sum().backward()
    torch.testing.assert_close(tuple(x.grad for x in inputs), plain, rtol=0, atol=0)


def test_backward_runs_on_the_backend_of_the_forward() -> None:
    """Outside of `use_backend` and in autograd's own thread nothing else is chosen."""
    inputs = tensors()
    with lf.use_backend("reference"):
        out = lf.attention(*inputs, PATTERN)
        wanted = torch.autograd.grad(lf.attention(*inputs, PATTERN).sum(), inputs)
    grads = torch.autograd.grad(out.sum(), inputs)
    assert all(torch.equal(a, b) for a, b in zip(grads, wanted, strict=True))


@every_backend
@pytest.mark.parametrize("which", range(3))
def test_one_input_may_need_a_gradient_alone(backend: str, which: int) -> None:
    inputs = tensors()
    wanted = torch.autograd.grad(lf.attention(*inputs, PATTERN, backend=backend).sum(), inputs)[which]
    alone = [x.detach().requires_grad_(index == which) for index, x in enumerate(inputs)]
    lf.attention(*alone, PATTERN, backend=backend).sum().backward()
    assert torch.equal(alone[which].grad, wanted)


@every_backend
def test_lse_joins_two_halves_with_gradients(backend: str) -> None:
    """Attention over two disjoint patterns, joined by their lse, is attention over the union."""
    q, k, v = tensors(dtype=torch.float64)
    near, far = lf.Window(2, 0), lf.Predicate(lambda h, i, j: (j < i - 2) | (j > i))
    one, one_lse = lf.attention(q, k, v, near, return_lse=True, backend=backend)
    two, two_lse = lf.attention(q, k, v, far, return_lse=True)
    total = torch.logaddexp(one_lse, two_lse)
    joined = one * (one_lse - total).exp()[..., None] + two * (two_lse - total).exp()[..., None]
    wanted = lf.attention(q, k, v, lf.Window(None, None))
    torch.testing.assert_close(joined, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(joined.sin().sum(), (q, k, v)), torch.autograd.grad(wanted.sin().sum(), (q, k, v))
    )


@every_backend
def test_any_strides(backend: str) -> None:
    """Every second value, every second position, one example for all, reversed dimensions."""
    wide = torch.randn(1, 2, 80, 16, dtype=torch.float64)
    q = wide[..., ::2, ::2].expand(2, -1, -1, -1)
    k = torch.randn(8, 40, 2, 2, dtype=torch.float64).permute(3, 2, 1, 0)
    v = wide[:, :, 1::2, 8:].expand(2, -1, -1, -1)
    views = [x.requires_grad_() for x in (q, k, v)]
    copies = [x.detach().clone(memory_format=torch.contiguous_format).requires_grad_() for x in (q, k, v)]
    found, wanted = (lf.attention(*xs, PATTERN, backend=backend) for xs in (views, copies))
    torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(found.sin().sum(), views), torch.autograd.grad(wanted.sin().sum(), copies)
    )


def test_inference_mode_and_output_layout() -> None:
    q, k, v = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in tensors(grad=False))
    with torch.inference_mode():
        out, lse = lf.attention(q, k, v, PATTERN, return_lse=True)
    assert out.is_contiguous() and lse.shape == (2, 2, 40) and lse.dtype == torch.float32


@pytest.mark.parametrize("name", ["window", "global tokens", "sinks, padding, global tokens", "band bias"])
def test_probabilities_are_what_the_output_weighs(name: str) -> None:
    case = CASES[name]
    t = case.tensors(torch.float64, torch.device("cpu"))
    given = {key: x for key, x in t.named().items() if key not in ("q", "k", "v")}
    weights = lf.probabilities(t.q, t.k, t.v, case.pattern, **given)
    torch.testing.assert_close(weights @ t.v, lf.attention(t.q, t.k, t.v, case.pattern, **given))
    assert not weights.requires_grad


def test_probabilities_of_separate_projections() -> None:
    case = CASES["separate projections"]
    t = case.tensors(torch.float64, torch.device("cpu"))
    own = {name: getattr(t, name) for name in ("global_q", "global_k", "global_v")}
    weights = lf.probabilities(t.q, t.k, t.v, case.pattern, **own)
    out = lf.attention(t.q, t.k, t.v, case.pattern, **own)
    torch.testing.assert_close((weights @ t.global_v)[:, :, 20], out[:, :, 20])
    torch.testing.assert_close((weights @ t.v)[:, :, 19], out[:, :, 19])


@pytest.mark.parametrize("counted", [True, False])
def test_cuda_graphs_end_at_calls_that_wait_alone(counted: bool) -> None:
    """A mask's global tokens are counted by the host, positions are not."""
    named = []

    def note(graph: torch.fx.GraphModule, inputs: object) -> torch.fx.GraphModule:
        named.extend(node.target for node in graph.graph.nodes if "lf_backend" in str(node.target))
        return graph

    q = torch.randn(1, 2, 20, 8)
    mask = torch.arange(20)[None] == 3
    given = {"global_mask": mask} if counted else {"global_positions": torch.tensor([[3]])}
    compiled = torch.compile(
        lambda q, given: lf.attention(q, q, q, PATTERN, **given), fullgraph=True, backend=note
    )
    torch.testing.assert_close(compiled(q, given), lf.attention(q, q, q, PATTERN, **given))
    (operator,) = named
    tags = (operator.default if hasattr(operator, "default") else operator).tags
    assert (torch.Tag.cudagraph_unsafe in tags) is counted
