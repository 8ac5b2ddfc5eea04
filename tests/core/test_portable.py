"""The portable form: the operator's answers under every caller that the operator is opaque to."""

import pytest
import torch
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import lf_backend as lf
from lf_backend.testing.cases import CASES, named
from lf_backend.testing.checking import run

# torch's own forward-mode formulas and traces use what torch has deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")

PATTERNS = (
    "window(3, 2)",
    "window(3, 0, dilation=2) & causal()",
    "window(2, 2) | window(2, 2, dilation=[2, 3])",
    "window(2, 1) | global(0, 5)",
    "(window(4, 4) | global(1)) & causal()",
    "block_local(4) | window(1, 1)",
)


def tensors(n=11, m=11, seed=0, heads=2, kv_heads=2, batch=2, dim=3):
    generator = torch.Generator().manual_seed(seed)
    shapes = ((heads, n), (kv_heads, m), (kv_heads, m))
    return [torch.randn(batch, h, x, dim, generator=generator, dtype=torch.float64) for h, x in shapes]


def masks(m=11):
    padding = torch.zeros(2, m, dtype=torch.bool)
    padding[1, m - 3 :] = True
    marked = torch.zeros(2, m, dtype=torch.bool)
    marked[0, 4] = marked[1, 2] = marked[1, 6] = True
    return {"key_padding": padding, "global_mask": marked}


def forms(pattern, **options):
    """Attention by the operator and by ordinary operators, as functions of q, k, v."""

    def ordinary(*qkv):
        with lf.portable():
            return lf.attention(*qkv, pattern, **options)

    return (lambda *qkv: lf.attention(*qkv, pattern, **options)), ordinary


@pytest.mark.parametrize(
    "case", [pytest.param(case, id=title) for title, case in named() if case.batch and case.queries]
)
def test_all_of_a_call(case):
    """Output, lse and every gradient of every case of the kit, global rows, sinks and padding included."""
    drawn = case.tensors(torch.float64, torch.device("cpu"))
    wanted = run(case, "reference", drawn)
    with lf.portable():
        found = run(case, "portable", drawn)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=1e-9, atol=1e-9, msg=name)


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("options", [{}, masks()], ids=["plain", "masks"])
def test_transforms(pattern, options):
    """grad, vjp, jvp, jacrev, jacfwd and hessian of torch.func, and forward-mode differentiation."""
    q, k, v = tensors()
    attend, dense = forms(pattern, **options)[0], _dense(pattern, **options)
    torch.testing.assert_close(attend(q, k, v), dense(q, k, v))
    along = torch.randn_like(q)
    for transform in (
        lambda f: grad(lambda x: f(x, k, v).sin().sum())(q),
        lambda f: vjp(lambda x: f(q, x, v), k)[1](along)[0],
        lambda f: jvp(lambda x: f(x, k, v), (q,), (along,))[1],
        lambda f: jvp(lambda x: f(q, k, x), (v,), (along,))[1],
    ):
        torch.testing.assert_close(transform(attend), transform(dense))
    with forward_ad.dual_level():
        out = attend(forward_ad.make_dual(q, along), k, v)
        tangent = forward_ad.unpack_dual(out).tangent
    torch.testing.assert_close(tangent, jvp(lambda x: dense(x, k, v), (q,), (along,))[1])


@pytest.mark.parametrize("pattern", PATTERNS)
def test_jacobians(pattern):
    q, k, v = (x[:1, :, :6] for x in tensors())
    if "[" not in pattern and "5" in pattern:
        pattern = pattern.replace("5", "4")
    attend, dense = forms(pattern)[0], _dense(pattern)
    for transform in (jacrev, jacfwd):
        torch.testing.assert_close(
            transform(lambda x: attend(x, k, v))(q), transform(lambda x: dense(x, k, v))(q)
        )
    torch.testing.assert_close(
        hessian(lambda x: attend(x, k, v).sin().sum())(q), hessian(lambda x: dense(x, k, v).sin().sum())(q)
    )


def _dense(pattern, key_padding=None, global_mask=None):
    """Eager attention under the mask."""
    pattern = lf.parse(pattern)

    def attend(q, k, v):
        n, m = q.shape[2], k.shape[2]
        seen = pattern.mask(n, m, q.shape[1])[None]
        padding = torch.zeros(1, m, dtype=torch.bool) if key_padding is None else key_padding
        if global_mask is not None:
            marked = global_mask & ~padding
            either = marked[:, None, None] | marked[:, None, m - n :, None]
            seen = seen | (either.tril(m - n) if pattern.is_causal else either)
        seen = seen & ~padding[:, None, None]
        scores = (q @ k.mT * q.shape[3] ** -0.5).masked_fill(~seen, -1e9)
        weights = scores.softmax(-1).masked_fill(~seen, 0)
        return (weights @ v).masked_fill(padding[:, None, m - n :, None], 0)

    return attend


def test_vmap_of_everything():
    """Over q alone, over masks too, and over gradients: as a loop over calls."""
    q, k, v = (torch.stack([x, x.flip(2)]) for x in tensors())
    given = masks()
    stacked = {name: torch.stack([x, x.flip(0)]) for name, x in given.items()}

    def attend(q, k, v, padding, marked):
        return lf.attention(q, k, v, "window(2, 2)", key_padding=padding, global_mask=marked)

    found = vmap(attend)(q, k, v, *stacked.values())
    for index in range(2):
        own = [x[index] for x in (q, k, v, *stacked.values())]
        torch.testing.assert_close(found[index], attend(*own))
    each = vmap(grad(lambda q, k, v: lf.attention(q, k, v, "window(2, 2)").sin().sum()))(q, k, v)
    for index in range(2):
        own = [x[index] for x in (q, k, v)]
        dense = grad(lambda q, k, v: _dense("window(2, 2)")(q, k, v).sin().sum())(*own)
        torch.testing.assert_close(each[index], dense)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_double_and_triple_backward(pattern):
    q, k, v = (x.requires_grad_() for x in tensors(seed=3))
    found = []
    for attend in (forms(pattern, **masks())[0], _dense(pattern, **masks())):
        once = torch.autograd.grad(attend(q, k, v).sin().sum(), (q, k, v), create_graph=True)
        twice = torch.autograd.grad(sum(x.cos().sum() for x in once), (q, k, v), create_graph=True)
        thrice = torch.autograd.grad(sum(x.sin().sum() for x in twice), (q, k, v))
        found.append((*once, *twice, *thrice))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got, wanted)


def test_double_backward_replays_dropout_and_knows_every_argument():
    case = CASES["everything"]
    drawn = case.tensors(torch.float64, torch.device("cpu"))
    torch.manual_seed(1)
    out, lse = lf.attention(pattern=case.pattern, **drawn.named(), **case.options(), return_lse=True)
    leaves = list(drawn.leaves().values())
    total = out.sum() + lse.masked_fill(lse.isinf(), 0).sin().sum()
    once = torch.autograd.grad(total, leaves, retain_graph=True)
    again = torch.autograd.grad(total, leaves, create_graph=True)
    for got, wanted in zip(again, once, strict=True):
        torch.testing.assert_close(got, wanted)
    twice = torch.autograd.grad(sum(x.square().sum() for x in again), leaves)
    assert all(x.isfinite().all() for x in twice) and twice[0].any()


def test_a_named_backend_is_not_replaced():
    q, k, v = tensors()
    with pytest.raises(lf.UnsupportedError, match=r"backend: 'portable' or no name wanted .* got 'blocked'"):
        grad(lambda x: lf.attention(x, k, v, "window(1, 1)", backend="blocked").sum())(q)
    found = grad(lambda x: lf.attention(x, k, v, "window(1, 1)", backend="portable").sum())(q)
    assert found.any()


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("example", ["plain", "marked"])
def test_a_trace_follows_lengths_and_masks(pattern, example):
    """Traced with an example that pads and marks nothing, or something; run on other lengths and masks."""

    class Attend(torch.nn.Module):
        def forward(self, q, k, v, padding, marked):
            return lf.attention(q, k, v, pattern, key_padding=padding, global_mask=marked)

    nothing = torch.zeros(2, 11, dtype=torch.bool)
    given = (nothing, nothing) if example == "plain" else tuple(masks().values())
    traced = torch.jit.trace(Attend(), (*tensors(), *given))
    for length in (7, 11, 40):
        others = (*tensors(length, length, seed=length), *masks(length).values())
        torch.testing.assert_close(traced(*others), Attend()(*others))


def test_memory_is_linear():
    """The largest tensor of forward and backward, at twice the length, is at most twice as large."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Largest(TorchDispatchMode):
        size = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for x in torch.utils._pytree.tree_leaves(out):
                if isinstance(x, torch.Tensor):
                    self.size = max(self.size, x.numel())
            return out

    def largest(length):
        q = torch.randn(1, 1, length, 4, requires_grad=True)
        marked = torch.zeros(1, length, dtype=torch.bool)
        marked[0, :3] = True
        with lf.portable(), Largest() as seen:
            lf.attention(q, q, q, "window(8, 8) | global(5)", global_mask=marked).sum().backward()
        return seen.size

    assert largest(2048) <= 2.1 * largest(1024)


@pytest.mark.parametrize("name", ["scale", "softcap"])
def test_a_learned_number_is_refused(name):
    q, k, v = tensors()
    with pytest.raises(lf.ShapeError, match=f"{name}: a float wanted, got a tensor, whose"):
        lf.attention(q, k, v, "window(1, 1)", **{name: torch.nn.Parameter(torch.tensor(1.0))})
