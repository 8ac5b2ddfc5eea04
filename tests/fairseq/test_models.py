"""Whole models: with windows as long as the text, outputs, gradients and generation are stock fairseq's."""

import copy
import itertools

import pytest
import torch
from fairseq.models.masked_lm import MaskedLMModel
from fairseq.sequence_generator import SequenceGenerator

import lf_backend as lf
from tests.fairseq.zoo import STOCK, build, dictionary, gradients, net_input, tokens

WIDE = "window(64, 64)"
PAD = dictionary().pad()


def wide(kind):
    return "window(64, 0)" if kind == "lm" else WIDE


def check_equal(stock, patched, kind, ids, seen):
    """Outputs where `seen` and all gradients of a loss that reads them."""
    results = []
    for model in (stock, patched):
        model.zero_grad()
        torch.manual_seed(1)
        out = model(**net_input(kind, ids))[0]
        weights = torch.linspace(-1, 1, out[seen].numel(), dtype=out.dtype).view_as(out[seen])
        (out[seen] * weights).sum().backward()
        results.append((out[seen].detach(), gradients(model)))
    (wanted, wanted_grads), (got, got_grads) = results
    torch.testing.assert_close(got, wanted, rtol=1e-10, atol=1e-10)
    assert wanted_grads.keys() == got_grads.keys()
    for name, grad in wanted_grads.items():
        torch.testing.assert_close(
            got_grads[name], grad, rtol=1e-9, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}"
        )


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("pads", [(), (0, 5, 2)])
def test_outputs_and_gradients_are_stock(kind, pads):
    stock = build(STOCK[kind])
    patched = copy.deepcopy(stock)
    ids = tokens(3, 17, pads)
    out = net_input(kind, ids).get("prev_output_tokens", ids)
    with lf.patch(patched, wide(kind)):
        check_equal(stock, patched, kind, ids, out != PAD)


@pytest.mark.parametrize("kind", STOCK)
@pytest.mark.parametrize("checkpoint", ["checkpoint_activations", "offload_activations"])
def test_checkpointed_activations(kind, checkpoint):
    stock = build(STOCK[kind], **{checkpoint: True})
    patched = copy.deepcopy(build(STOCK[kind]))
    patched.load_state_dict(stock.state_dict())
    sparse = build(STOCK[kind], **{checkpoint: True})
    sparse.load_state_dict(stock.state_dict())
    for model in (stock, patched, sparse):
        model.train()
    ids = tokens(3, 17, (0, 5, 2))
    marked = {} if kind == "lm" else {"global_mask": torch.arange(17).expand(3, -1) % 5 == 1}
    seen = net_input(kind, ids).get("prev_output_tokens", ids) != PAD
    with lf.patch(sparse, wide(kind)):
        check_equal(stock, sparse, kind, ids, seen)
    narrow = "window(2, 0)" if kind == "lm" else "window(2, 2)"
    with lf.patch(sparse, narrow), lf.patch(patched, narrow):  # marks of the batch in the second forward too
        grads = []
        for model in (patched, sparse):
            model.zero_grad()
            model(**net_input(kind, ids), **marked)[0][seen].square().sum().backward()
            grads.append(gradients(model))
        for name, grad in grads[0].items():
            torch.testing.assert_close(grads[1][name], grad, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", STOCK)
def test_layer_drop_draws_the_same_layers(kind):
    stock = build(STOCK[kind], encoder_layerdrop=0.5, decoder_layerdrop=0.5)
    patched = copy.deepcopy(stock)
    ids = tokens(2, 11)
    for seed in range(3):
        outs = []
        with lf.patch(patched, wide(kind)) as patch:
            assert "LayerDropModuleList" in str(patch.report)
            for model in (stock.train(), patched.train()):
                torch.manual_seed(seed)
                outs.append(model(**net_input(kind, ids))[0])
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-10, atol=1e-10)


def test_an_older_sentence_encoder():
    from argparse import Namespace

    from fairseq.models.masked_lm import base_architecture

    args = Namespace(
        encoder_embed_dim=32,
        encoder_ffn_embed_dim=40,
        encoder_layers=2,
        encoder_attention_heads=4,
        dropout=0.0,
        attention_dropout=0.0,
        act_dropout=0.0,
        tokens_per_sample=64,
        sent_loss=False,
    )
    base_architecture(args)
    task = type("Task", (), {"dictionary": dictionary(), "source_dictionary": dictionary()})()
    stock = MaskedLMModel.build_model(args, task).double().eval()
    patched = copy.deepcopy(stock)
    ids = tokens(2, 15, (0, 4))
    given = {"src_tokens": ids, "segment_labels": torch.zeros_like(ids)}
    with lf.patch(patched, WIDE) as patch:
        assert "TransformerSentenceEncoder" in str(patch.report)
        wanted, got = stock(**given)[0], patched(**given)[0]
        torch.testing.assert_close(got[ids != PAD], wanted[ids != PAD], rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["lm", "translation", "bart"])
@pytest.mark.parametrize(("prefix", "options"), [(0, {}), (3, {}), (0, {"no_repeat_ngram_size": 2})])
def test_beam_search_gives_the_same_sentences_and_scores(kind, prefix, options):
    stock = build(STOCK[kind])
    patched = copy.deepcopy(stock)
    ids = tokens(3, 9, (0, 2, 5), left=kind != "lm")
    sample = {"net_input": {"src_tokens": ids, "src_lengths": ids.ne(PAD).sum(1)}}
    forced = tokens(3, prefix) if prefix else None
    found = []
    with lf.patch(patched, wide(kind)):
        for model in (stock, patched):
            search = SequenceGenerator([model], dictionary(), beam_size=4, max_len_b=20, **options)
            found.append(search.generate([model], sample, prefix_tokens=forced))
    for wanted, got in zip(*found, strict=True):
        assert len(wanted) == 4
        for one, other in zip(wanted, got, strict=True):
            assert one["tokens"].tolist() == other["tokens"].tolist()
            for name in ("score", "positional_scores"):  # the generator's own are float32
                torch.testing.assert_close(other[name], one[name], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["lm", "translation"])
def test_a_window_in_beam_search_is_the_window_without_a_buffer(kind):
    """Scores of the found sentences, computed again in one forward."""
    model = build(STOCK[kind])
    ids = tokens(2, 9)
    sample = {"net_input": {"src_tokens": ids, "src_lengths": ids.ne(PAD).sum(1)}}
    with lf.patch(model, "window(2, 0, dilation=[1, 1, 2, 3]) | global(0, 2)"):
        search = SequenceGenerator([model], dictionary(), beam_size=3, max_len_b=24, normalize_scores=False)
        for example, hypotheses in enumerate(search.generate([model], sample)):
            for hypothesis in hypotheses:
                text = hypothesis["tokens"][None]
                start = torch.full((1, 1), dictionary().eos())
                before = torch.cat([start, text[:, :-1]], dim=1)
                own = {} if kind == "lm" else {
                    "encoder_out": model.encoder(ids[example : example + 1], torch.tensor([9]))
                }  # fmt: skip
                out = model.decoder(before, **own)
                scores = model.get_normalized_probs(out, log_probs=True).gather(2, text[..., None])
                wanted = hypothesis["positional_scores"]
                torch.testing.assert_close(scores[0, :, 0], wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", STOCK)
def test_half_precision(kind):
    """bfloat16 and float16 are as far from float64 as stock, which rounds its scores as well."""
    reference = build(STOCK[kind])
    ids = tokens(2, 13, (0, 3))
    wanted = reference(**net_input(kind, ids))[0]
    seen = net_input(kind, ids).get("prev_output_tokens", ids) != PAD
    for dtype in (torch.bfloat16, torch.float16):
        stock = copy.deepcopy(reference).to(dtype)
        patched = copy.deepcopy(stock)
        with lf.patch(patched, wide(kind)):
            errors = [
                (m(**net_input(kind, ids))[0].double() - wanted)[seen].abs().max() for m in (stock, patched)
            ]
        assert errors[1] <= 2 * errors[0] + 16 * torch.finfo(dtype).eps


def test_no_future_mask_is_built():
    model = build("transformer_lm")
    model(tokens(1, 12))
    assert model.decoder._future_mask.numel() == 144
    model = build("transformer_lm")
    with lf.patch(model, "window(3, 0)"):
        model(tokens(1, 12))
    assert model.decoder._future_mask.numel() == 0


def test_what_a_pattern_hides_has_no_influence():
    """One layer: a token changed outside the pattern leaves the output; a seen one does not."""
    model = build("transformer_lm", decoder_layers=1)
    ids = tokens(1, 12)
    with lf.patch(model, "window(2, 0) | global(1)"):
        out = model(ids)[0]
        for place, moved in itertools.product((1, 4, 9), (11,)):
            other = ids.clone()
            other[0, place] = ids[0, place] % 15 + 5
            changed = not torch.equal(model(other)[0][0, moved], out[0, moved])
            assert changed == (place in (1, 9))
