"""The attention alone against fairseq's: masks, weights, dropout, noise, hooks, and what is refused."""

import copy

import pytest
import torch
from fairseq.modules import MultiheadAttention, TransformerEncoderLayer
from torch import nn

import lf_backend as lf
from lf_backend.errors import UnsupportedError
from lf_backend.patching import PatchMark
from lf_fairseq.attention import mask_bits
from lf_fairseq.attention.self_attention import SparseMultiheadAttention
from tests.fairseq.zoo import build

T, B, E, H = 14, 3, 24, 4


def pair(pattern="window(32, 32)", **changes):
    """fairseq's attention and the same with ours, both float64."""
    stock = MultiheadAttention(E, H, self_attention=True, **changes).double()
    sparse = copy.deepcopy(stock)
    sparse.lf_mark = PatchMark(MultiheadAttention, SparseMultiheadAttention, lf.parse(pattern), None, "")
    sparse.__class__ = SparseMultiheadAttention
    return stock, sparse


def inputs():
    return torch.randn(T, B, E, dtype=torch.float64)


def padding(dtype=torch.bool):
    mask = torch.zeros(B, T, dtype=dtype)
    mask[1, 9:] = 1
    mask[2, 4:6] = 1
    return mask


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64])
def test_padding_in_every_dtype_that_fairseq_takes(dtype):
    stock, sparse = pair()
    x = inputs()
    wanted, got = (
        m(x, x, x, key_padding_mask=padding(dtype), need_weights=False)[0] for m in (stock, sparse)
    )
    seen = ~padding().T
    torch.testing.assert_close(got[seen], wanted[seen])
    torch.testing.assert_close(got[~seen], sparse.out_proj.bias.expand_as(got[~seen]))


def test_nothing_is_copied_on_the_way_in(monkeypatch):
    _, sparse = pair()
    seen = []
    called = lf.attention
    monkeypatch.setattr(
        lf, "attention", lambda q, k, v, *a, **kw: (seen.append((q, k, v)), called(q, k, v, *a, **kw))[1]
    )
    projected = []
    hooks = [
        p.register_forward_hook(lambda m, a, y: projected.append(y))
        for p in (sparse.q_proj, sparse.k_proj, sparse.v_proj)
    ]
    x = inputs()
    sparse(x, x, x)
    for view, made in zip(seen[0], projected, strict=True):
        assert view.shape == (B, H, T, E // H) and view.data_ptr() == made.data_ptr()
    for hook in hooks:
        hook.remove()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bool])
def test_the_mask_of_the_future_is_recognised(dtype):
    stock, sparse = pair("window(32, 32)")
    x = inputs()
    future = torch.ones(T, T).triu(1).bool()
    mask = future if dtype == torch.bool else torch.zeros(T, T, dtype=dtype).masked_fill(future, -torch.inf)
    wanted, got = (m(x, x, x, attn_mask=mask, need_weights=False)[0] for m in (stock, sparse))
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize(
    "change", [lambda m: m.fill_diagonal_(-1.0), lambda m: m.zero_(), lambda m: m[:, :5]]
)
def test_another_mask_is_refused(change):
    _, sparse = pair()
    x = inputs()
    mask = change(torch.full((T, T), -torch.inf, dtype=torch.float64).triu(1))
    with pytest.raises(
        UnsupportedError, match=r"attn_mask: none, or \[14, 14\] with -inf above .* wanted, got"
    ):
        sparse(x, x, x, attn_mask=mask)


def test_weights_are_those_of_stock_and_of_the_pattern():
    stock, sparse = pair()
    x = inputs()
    wanted, got = (m(x, x, x, key_padding_mask=padding())[1] for m in (stock, sparse))
    seen = ~padding()
    torch.testing.assert_close(got[seen], wanted[seen])
    _, sparse = pair("window(2, 2) | global(0)")
    out, heads = sparse(x, x, x, need_head_weights=True)
    assert heads.shape == (H, B, T, T) and not heads.requires_grad
    assert ((heads > 0) == lf.parse("window(2, 2) | global(0)").mask(T)[:, None]).all()
    values = sparse.v_proj(x).view(T, B, H, E // H)
    torch.testing.assert_close(
        out, sparse.out_proj(torch.einsum("hbts,sbhd->tbhd", heads, values).reshape(T, B, E))
    )


@pytest.mark.parametrize("heads", [False, True])
def test_weights_of_incremental_steps_cover_all_positions(heads):
    _, sparse = pair("(window(2, 0) | global(1)) & causal()")
    x = inputs()
    _, whole = sparse(x, x, x, need_head_weights=heads)
    state = {}
    for t in range(T):
        step = x[t : t + 1]
        _, weights = sparse(step, step, step, incremental_state=state, need_head_weights=heads)
        assert weights.shape[-1] == t + 1
        torch.testing.assert_close(weights[..., 0, :], whole[..., t, : t + 1])


def test_dropout_is_on_probabilities_and_replayed():
    _, sparse = pair("window(3, 3)", dropout=0.5)
    x = inputs()
    torch.manual_seed(3)
    first = sparse(x, x, x)[0]
    torch.manual_seed(3)
    assert torch.equal(first, sparse(x, x, x)[0])
    assert not torch.equal(first, sparse(x, x, x)[0])
    many = x[:, :1].expand(-1, 2000, -1)  # as many examples, each with its own dropout
    mean = sparse(many, many, many, need_weights=False)[0].mean(1)
    wanted = sparse.eval()(x, x, x)[0][:, 0]
    assert (mean - wanted).abs().max() < 0.15 * wanted.abs().max()
    sparse.dropout_module.apply_during_inference = True  # --retain-dropout
    assert not torch.equal(wanted, sparse(x, x, x)[0][:, 0])


def test_quantisation_noise_reaches_the_projections():
    """As in stock's path for models that were pruned, which calls the projections as well."""
    stock, sparse = pair(q_noise=0.5, qn_block_size=8)
    stock._set_skip_embed_dim_check()
    x = inputs()
    results = []
    for module in (stock.train(), sparse.train()):
        torch.manual_seed(5)
        out = module(x, x, x, need_weights=False)[0]
        out.square().sum().backward()
        results.append([out, *(p.grad for p in module.parameters())])
    for wanted, got in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-3, atol=1e-3)  # stock's softmax is float32 there
    assert not torch.equal(results[0][0], sparse(x, x, x, need_weights=False)[0])


def test_pruned_heads():
    stock, sparse = pair()
    for module in (stock, sparse):
        module._adaptive_prune_heads(module._get_reserve_head_index(2))
        module._set_skip_embed_dim_check()
    x = inputs()
    torch.testing.assert_close(sparse(x, x, x)[0], stock(x, x, x)[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"before_softmax": True}, "before_softmax off wanted"),
        ({"static_kv": True}, "static_kv off wanted"),
        ({"key": torch.zeros(T, B, E)}, "key: the query itself wanted"),
        ({"value": torch.zeros(T, B, E)}, "value: the query itself wanted"),
    ],
)
def test_arguments_that_are_not_carried(given, message):
    _, sparse = pair()
    x = inputs()
    with pytest.raises(UnsupportedError, match=message):
        sparse(x, **{"key": x, "value": x, **given})


def test_onnx_and_torchscript_are_refused_by_name():
    _, sparse = pair()
    sparse.prepare_for_onnx_export_()
    x = inputs()
    with pytest.raises(UnsupportedError, match="onnx_trace off wanted"):
        sparse(x, x, x)
    model = build("transformer_lm")
    with (
        lf.patch(model, "window(2, 0)"),
        pytest.raises(UnsupportedError, match=r"torch.jit.script: eager mode"),
    ):
        torch.jit.script(model)


def test_keys_from_outside_are_refused():
    _, sparse = pair("window(2, 0)")
    with pytest.raises(UnsupportedError, match="incremental_state: keys that this attention has kept itself"):
        sparse._set_input_buffer({}, {"prev_key": torch.zeros(1)})


def test_wrong_width():
    _, sparse = pair()
    x = torch.zeros(T, B, E + 1, dtype=torch.float64)
    with pytest.raises(lf.ShapeError, match="query: 24 channels wanted, got 25"):
        sparse(x, x, x)


@pytest.mark.parametrize("global_mask", [False, True])
def test_marks_hold_padding_and_globals(global_mask):
    marked = torch.arange(T).expand(B, -1) % 4 == 0 if global_mask else None
    code = mask_bits.encode(padding(), marked)
    assert torch.equal(mask_bits.padded(code), padding())
    assert (mask_bits.marked(code) is None) == (not global_mask)
    if global_mask:
        assert torch.equal(mask_bits.marked(code), marked)
        assert torch.equal(
            mask_bits.padded(mask_bits.encode(None, marked)), torch.zeros(B, T, dtype=torch.bool)
        )


def test_autocast():
    _, sparse = pair("window(3, 3)")
    sparse.float()
    x = inputs().float()
    wanted = sparse(x, x, x)[0]
    with torch.autocast("cpu", torch.bfloat16):
        got = sparse(x, x, x)[0]
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), wanted, rtol=0.05, atol=0.02)


def test_a_layer_alone():
    """A layer of fairseq outside any encoder that is known."""
    from argparse import Namespace

    args = Namespace(encoder_embed_dim=E, encoder_ffn_embed_dim=8, encoder_attention_heads=H)
    layers = nn.ModuleList(TransformerEncoderLayer(args) for _ in range(2)).double().eval()
    x = inputs()
    wanted = layers[1](layers[0](x, None), None)
    with lf.patch(layers, ["window(32, 32)", "window(20, 20)"]) as patch:
        assert "in a stack that is not known" in str(patch.report)
        torch.testing.assert_close(layers[1](layers[0](x, padding().logical_not() & False), None), wanted)
