"""Global tokens in fairseq: by position, by symbol, and by a field of the batch."""

from contextlib import ExitStack

import pytest
import torch
from torch.nn import functional

import lf_backend as lf
from lf_backend.errors import PatchError, ShapeError, UnsupportedError
from lf_backend.pattern.global_positions import unplaced, within
from lf_fairseq import add_global_projections, set_global_tokens
from lf_fairseq.attention import mask_bits
from tests.fairseq.zoo import build, dictionary, net_input, tokens

PAD, MASK = dictionary().pad(), dictionary().index("<mask>")
KINDS = {"roberta": "roberta_base", "translation": "transformer", "bart": "bart_base", "lm": "transformer_lm"}


def marked(places, batch=3, length=20):
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[:, list(places)] = True
    return mask


def narrow(kind):
    return "window(1, 0)" if kind == "lm" else "window(1, 1)"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pads", [(), (0, 3, 7)])
def test_a_field_of_the_batch_is_the_same_as_positions(kind, pads):
    """A language model's decoder takes it, and the encoder of every other model."""
    model = build(KINDS[kind])
    given = net_input(kind, tokens(3, 20, pads))
    with ExitStack() as patches:
        patches.enter_context(lf.patch(sides(model)[0], f"{narrow(kind)} | global(0, 5)"))
        for other in sides(model)[1:]:
            patches.enter_context(lf.patch(other, "window(1, 0)"))
        wanted = model(**given)[0]
    with lf.patch(model, narrow(kind)):
        got = model(**given, global_mask=marked((0, 5)))[0]
        without = model(**given)[0]
    seen = given.get("prev_output_tokens", given["src_tokens"]) != PAD
    torch.testing.assert_close(got[seen], wanted[seen])
    assert not torch.allclose(without[seen], wanted[seen])


def sides(model):
    return [getattr(model, name) for name in ("encoder", "decoder") if hasattr(model, name)]


def test_a_field_for_an_encoder_that_is_not_patched():
    model = build("transformer_lf", decoder_attention_pattern="window(2, 0)")
    given = net_input("translation", tokens(2, 9))
    model(**given)
    with pytest.raises(
        UnsupportedError, match="global_mask: a patched encoder wanted, got one of fairseq as it is"
    ):
        model(**given, global_mask=marked((0,), 2, 9))


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_by_id(kind):
    model = build(KINDS[kind])
    ids = tokens(3, 20, (0, 3, 7))
    ids[0, 2] = ids[0, 9] = ids[1, 0] = MASK
    given = net_input(kind, ids)
    out = given.get("prev_output_tokens", ids)
    with lf.patch(model, narrow(kind)):
        plain = model(**given)[0]
        field = {} if kind in ("translation", "bart") else {"global_mask": ids == MASK}
        wanted = model(**given, **field)[0]
        set_global_tokens(model, [MASK])
        got = model(**given)[0]
        if field:
            torch.testing.assert_close(got[out != PAD], wanted[out != PAD])
        assert not torch.allclose(got, plain)
        set_global_tokens(model, [])
        torch.testing.assert_close(model(**given)[0], plain)
    assert not any(hasattr(module, "lf_mark") for module in model.modules())


def test_positions_are_counted_without_padding():
    """Left padding, which translation has, moves no global token: each example as if it were alone."""
    model = build("transformer")
    with lf.patch(model.encoder, "window(1, 1, dilation=[1, 2, 1, 1]) | global(0, 3)"):
        ids = tokens(3, 12, (0, 5, 9), left=True)
        whole = model.encoder(ids, ids.ne(PAD).sum(1))["encoder_out"][0]
        for example, count in enumerate((0, 5, 9)):
            alone = model.encoder(ids[example : example + 1, count:], torch.tensor([12 - count]))
            torch.testing.assert_close(whole[count:, example], alone["encoder_out"][0][:, 0])


def test_positions_beyond_a_short_batch():
    model = build("roberta_base")
    ids = tokens(2, 6)
    with lf.patch(model, "window(1, 1) | global(0, 50)"):
        got = model(ids)[0]
    with lf.patch(model, "window(1, 1) | global(0)"):
        torch.testing.assert_close(got, model(ids)[0])


def test_patterns_without_their_positions():
    pattern = (lf.Window(3, 0) | lf.Global(0, 7)) & lf.Causal()
    assert within(pattern, 8) is pattern
    assert within(pattern, 5) == (lf.Window(3, 0) | lf.Global(0)) & lf.Causal()
    assert unplaced(pattern) == (lf.Window(3, 0) | lf.Global()) & lf.Causal()
    assert unplaced(lf.Window(3, 0)) == lf.Window(3, 0)
    named = lf.parse("streaming(2, 4)")
    assert unplaced(named).global_positions == ()


def test_positions_that_padding_cannot_move_are_refused():
    model = build("roberta_base")
    with lf.patch(model, "window(9, 9) & global(0)"):
        model(tokens(2, 9))
        with pytest.raises(
            UnsupportedError, match=r"global positions joined by \| alone wanted where padding"
        ):
            model(tokens(2, 9, (0, 2)))


def test_a_head_on_global_tokens_reads_the_whole_text():
    """sentence_prediction on <s>: without a global token it sees two layers of its window, with it all."""
    model = build("roberta_base")
    model.register_classification_head("topic", num_classes=3)
    model.double()
    ids = tokens(1, 30)
    ids[:, 0] = dictionary().bos()
    other = ids.clone()
    other[0, 25] = ids[0, 25] % 15 + 5
    with lf.patch(model, "window(1, 1)"):
        near = [model(x, classification_head_name="topic")[0] for x in (ids, other)]
        assert torch.equal(*near)
        set_global_tokens(model, [dictionary().bos()])
        far = [model(x, classification_head_name="topic")[0] for x in (ids, other)]
        assert not torch.equal(*far)
        functional.cross_entropy(far[0], torch.tensor([1])).backward()
        assert all(x.grad is not None for x in model.encoder.sentence_encoder.layers.parameters())


def test_masked_lm_learns_from_marked_tokens():
    """The masked symbol is a copy of a far, marked one: learnt with the batch's marks alone."""
    losses = {}
    for given in (True, False):
        torch.manual_seed(0)
        model = build("roberta_base", encoder_layers=1).float().train()
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        with lf.patch(model, "window(1, 1)"):
            for _ in range(120):
                ids = tokens(8, 24)
                target, masked = ids[:, 2].clone(), torch.zeros_like(ids, dtype=torch.bool)
                ids[:, 20], masked[:, 20] = MASK, True
                field = {"global_mask": marked((2,), 8, 24)} if given else {}
                loss = functional.cross_entropy(model(ids, masked_tokens=masked, **field)[0], target)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        losses[given] = loss.item()
    assert losses[True] < 0.75 * losses[False], losses


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (marked((0,)).long(), r"global_mask: dtype torch.bool \(True = global\) wanted, got torch.int64"),
        (marked((0,), 3, 19), r"global_mask: shape \[batch, length\] = \[3, 20\] wanted, got \[3, 19\]"),
        ([True], "global_mask: dtype torch.bool .* wanted, got list"),
    ],
)
def test_bad_fields(mask, message):
    model = build("roberta_base")
    with lf.patch(model, "window(1, 1)"), pytest.raises(ShapeError, match=message):
        model(tokens(3, 20), global_mask=mask)


def test_tokens_of_a_model_that_is_not_patched():
    with pytest.raises(
        PatchError, match="a patched encoder or decoder wanted, got TransformerLanguageModel without"
    ):
        set_global_tokens(build("transformer_lm"), [1])
    model = build("transformer_lm")
    with (
        lf.patch(model, "window(1, 0)"),
        pytest.raises(lf.PatternError, match="tokens: an int wanted, got '<s>'"),
    ):
        set_global_tokens(model, ["<s>"])


def projected(kind="roberta"):
    """A patched model whose global projections differ from the local ones, and its patch."""
    model = build(KINDS[kind])
    patch = lf.patch(model if kind == "roberta" else model.encoder, "window(2, 2) | global(0, 7)")
    add_global_projections(model)
    return model, patch


def test_global_projections_start_as_the_local_ones():
    model, _ = projected()
    ids = tokens(3, 20, (0, 3, 7))
    seen = ids != PAD
    with_them = model(ids)[0][seen]
    other = build(KINDS["roberta"])
    missing = other.load_state_dict({k: v for k, v in model.state_dict().items() if "_global" not in k})
    assert not missing.missing_keys
    with lf.patch(other, "window(2, 2) | global(0, 7)"):
        torch.testing.assert_close(other(ids)[0][seen], with_them)


@pytest.mark.parametrize("field", [False, True])
def test_rows_of_global_tokens_use_their_own_projections(field):
    """Against a dense computation of both softmaxes."""
    model, _ = projected()
    attention = model.encoder.sentence_encoder.layers[0].self_attn
    with torch.no_grad():
        for name in ("q", "k", "v"):
            getattr(attention, f"{name}_proj_global").weight.mul_(1.7)
    x = torch.randn(20, 3, 32, dtype=torch.float64)
    given = mask_bits.encode(None, marked((4,)) & (torch.arange(3) == 1)[:, None]) if field else None
    out, heads = attention(x, x, x, key_padding_mask=given, need_head_weights=True)
    pattern = attention.lf_mark.pattern
    for example in range(3):
        places = (0, 4, 7) if field and example == 1 else (0, 7)
        seen = (lf.Window(2, 2) | lf.Global(*places)).mask(20)[0]
        one = x[:, example]
        rows = []
        for name in ("", "_global"):
            q, k, v = (
                getattr(attention, f"{part}_proj{name}")(one).view(20, 4, 8).transpose(0, 1) for part in "qkv"
            )
            scores = (q @ k.transpose(1, 2) * attention.scaling).masked_fill(~seen, -torch.inf).softmax(-1)
            rows.append((scores @ v, scores))
        is_row = torch.zeros(20, dtype=torch.bool)
        is_row[list(places)] = True
        wanted = torch.where(is_row[:, None], rows[1][0], rows[0][0])
        wanted = attention.out_proj(wanted.transpose(0, 1).reshape(20, 32))
        torch.testing.assert_close(out[:, example], wanted)
        weights = torch.where(is_row[:, None], rows[1][1], rows[0][1])
        torch.testing.assert_close(heads[:, example], weights)
    assert pattern == lf.Window(2, 2) | lf.Global(0, 7)


def test_global_projections_are_trained_and_saved():
    model, _ = projected("translation")
    ids = tokens(2, 20)
    model(**net_input("translation", ids))[0].sum().backward()
    own = {name: x for name, x in model.named_parameters() if "_global" in name}
    assert len(own) == 2 * 3 * 2 and all(x.grad is not None for x in own.values())
    with torch.no_grad():
        for x in own.values():
            x.add_(0.1)
    other, _ = projected("translation")
    other.load_state_dict(model.state_dict())
    given = net_input("translation", ids)
    torch.testing.assert_close(other(**given)[0], model(**given)[0])


def test_stock_checkpoints_fill_global_projections():
    stock = build(KINDS["roberta"])
    model, _ = projected()
    model.load_state_dict(stock.state_dict())
    layer = model.encoder.sentence_encoder.layers[1].self_attn
    assert torch.equal(layer.k_proj_global.weight, layer.k_proj.weight)
    assert layer.k_proj_global.weight.data_ptr() != layer.k_proj.weight.data_ptr()


def test_global_projections_that_do_not_fit():
    with pytest.raises(PatchError, match="got RobertaModel without any"):
        add_global_projections(build(KINDS["roberta"]))
    model, _ = projected()
    with pytest.raises(PatchError, match="got some that has them"):
        add_global_projections(model)
    model = build(KINDS["lm"])
    lf.patch(model, "window(2, 0) | global(0)")
    add_global_projections(model)
    with pytest.raises(UnsupportedError, match="incremental_state: none wanted with global projections"):
        model.decoder(tokens(1, 3), incremental_state={})
