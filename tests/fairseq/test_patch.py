"""`lf.patch` on models and hub interfaces of fairseq: what it reports, undoes, saves, and refuses."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from fairseq.hub_utils import GeneratorHubInterface
from fairseq.models.roberta import RobertaHubInterface
from fairseq.models.transformer import TransformerEncoder
from fairseq.modules import MultiheadAttention
from omegaconf import OmegaConf
from torch import nn

import lf_backend as lf
from lf_backend.errors import PatchError
from lf_fairseq.attention.self_attention import SparseMultiheadAttention
from lf_fairseq.upstream import FAIRSEQ
from tests.fairseq.zoo import STOCK, build, dictionary, net_input, tokens

NARROW = {
    "lm": "window(2, 0)",
    "translation": "window(2, 2)",
    "bart": "window(2, 2)",
    "roberta": "window(2, 2)",
}


def test_the_report_says_all():
    model = build("transformer")
    text = str(lf.patch(model, "window(3, 3) | global(0)", backend="blocked").report)
    for line in (
        "9 modules of TransformerModel patched; attention runs by backend 'blocked' only",
        "encoder.layers.1.self_attn  MultiheadAttention  window(3, 3) | global(0)",
        "decoder.layers.0.self_attn  MultiheadAttention  (window(3, 3) | global(0)) & causal()",
        "builds no T x T mask; encoder-decoder attention stays dense",
    ):
        assert " ".join(line.split()) in " ".join(text.split()), text
    assert type(model.decoder.layers[0].encoder_attn) is MultiheadAttention


@pytest.mark.parametrize("kind", STOCK)
def test_undo_gives_back_the_model(kind):
    model = build(STOCK[kind])
    ids = tokens(2, 12)
    before = {path: type(module) for path, module in model.named_modules()}
    values = {path: dict(vars(module)) for path, module in model.named_modules()}
    wanted, state = model(**net_input(kind, ids))[0], model.state_dict()
    with lf.patch(model, NARROW[kind]):
        assert not torch.allclose(model(**net_input(kind, ids))[0], wanted)
        assert list(model.state_dict()) == list(state)
    assert torch.equal(model(**net_input(kind, ids))[0], wanted)
    assert {path: type(module) for path, module in model.named_modules()} == before
    for path, module in model.named_modules():
        assert vars(module).keys() == values[path].keys()


@pytest.mark.parametrize("kind", STOCK)
def test_checkpoints_go_both_ways(kind):
    stock, other = build(STOCK[kind]), build(STOCK[kind])
    ids = tokens(2, 12)
    with lf.patch(other, NARROW[kind]):
        other.load_state_dict(stock.state_dict())
        saved = {name: value.clone() for name, value in other.state_dict().items()}
        again = build(STOCK[kind])
        again.load_state_dict(saved)
    wanted = stock(**net_input(kind, ids))[0]
    assert torch.equal(again(**net_input(kind, ids))[0], wanted)
    assert torch.equal(other(**net_input(kind, ids))[0], wanted)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copy_is_patched_and_undone_alone(copied):
    model = build("transformer")
    ids = tokens(2, 12)
    stock = model(**net_input("translation", ids))[0]
    patch = lf.patch(model, "window(2, 2)")
    wanted = model(**net_input("translation", ids))[0]
    other = copied(model)
    patch.undo()
    assert torch.equal(other(**net_input("translation", ids))[0], wanted)
    lf.Patch.of(other).undo()
    assert torch.equal(other(**net_input("translation", ids))[0], stock)


def test_one_pattern_per_layer_and_per_side():
    model = build("transformer", decoder_layers=3)
    with pytest.raises(
        lf.PatternError, match=r"2 layers in encoder, got 3; an encoder and a decoder may be patched"
    ):
        lf.patch(model, ["window(1, 1)"] * 3)
    lf.patch(model.encoder, ["window(1, 1)", "window(2, 2)"])
    lf.patch(model.decoder, ["window(1, 0)", "window(2, 0)", "window(3, 0)"])
    found = [
        str(module.lf_mark.pattern) for module in model.modules() if type(module) is SparseMultiheadAttention
    ]
    decoder = [f"window({left}, 0) & causal()" for left in (1, 2, 3)]
    assert found == ["window(1, 1)", "window(2, 2)", *decoder]
    model(**net_input("translation", tokens(2, 9)))


@pytest.mark.parametrize(
    ("arch", "pattern", "message"),
    [
        (
            "transformer_lm",
            None,
            "pattern: one wanted, since fairseq's models have none of their own, got None",
        ),
        (
            "transformer_lm",
            "window(4, 4)",
            r"pattern: decoder.layers.0.self_attn: .*without steps ahead wanted in a causal model, got "
            r"window\(4, 4\); for the same reach back write window\(4, 0\)",
        ),
        ("transformer_lm", "window(1, 0, dilation=[1, 2])", "4 heads, got 2 values"),
        ("transformer_lm", ["window(1, 0)"], "one, or one per layer wanted, 2 layers in decoder, got 1"),
    ],
)
def test_patterns_that_do_not_fit(arch, pattern, message):
    model = build(arch)
    with pytest.raises(lf.PatternError, match=message):
        lf.patch(model, pattern)
    assert not any(hasattr(module, "lf_mark") for module in model.modules())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: setattr(a, "bias_k", nn.Parameter(torch.zeros(1, 1, 32))), "bias_k and bias_v"),
        (lambda a: setattr(a, "add_zero_attn", True), "add_zero_attn"),
        (lambda a: setattr(a, "onnx_trace", True), "onnx_trace"),
        (lambda a: setattr(a, "use_xformers", True), "xformers_att_config"),
        (lambda a: setattr(a, "self_attention", False), "cross_self_attention"),
    ],
)
def test_attention_that_is_not_carried_is_refused_by_name(change, message):
    model = build("transformer_lm")
    change(model.decoder.layers[1].self_attn)
    with pytest.raises(PatchError, match=rf"decoder.layers.1.self_attn: self-attention without {message}"):
        lf.patch(model, "window(2, 0)")


def test_cross_self_attention_is_refused():
    model = build("transformer", cross_self_attention=True, no_cross_attention=True)
    with pytest.raises(PatchError, match="without cross_self_attention wanted"):
        lf.patch(model, "window(2, 2)")


def test_another_class_of_attention_is_refused():
    class Mine(MultiheadAttention):
        pass

    model = build("transformer_lm")
    model.decoder.layers[0].self_attn.__class__ = Mine
    with pytest.raises(
        PatchError, match=r"decoder.layers.0.self_attn: fairseq's MultiheadAttention wanted, got Mine"
    ):
        lf.patch(model, "window(2, 0)")


def test_what_is_not_known_is_said():
    with pytest.raises(
        PatchError, match="fairseq: looks for transformer layers of fairseq; nothing of fairseq is"
    ):
        lf.patch(nn.Linear(2, 2), "window(2, 0)")
    with pytest.raises(
        PatchError, match=r"fairseq: looks for self_attn of Tr.*a subclass.*not taken: Mine of"
    ):
        lf.patch(type("Mine", (MultiheadAttention,), {})(8, 2), "window(2, 0)")


def test_full_context_alignment_is_refused():
    model = build("transformer")
    with (
        lf.patch(model, "window(9, 9)"),
        pytest.raises(lf.UnsupportedError, match="full_context_alignment: False"),
    ):
        model.decoder(tokens(1, 4), model.encoder(tokens(1, 4)), full_context_alignment=True)


def test_alignment_of_the_decoder_is_stock():
    stock = build("transformer")
    patched = copy.deepcopy(stock)
    given = net_input("translation", tokens(2, 9))
    with lf.patch(patched, "window(9, 9)"):
        wanted, got = (
            m(**given, alignment_layer=0, alignment_heads=2)[1]["attn"][0] for m in (stock, patched)
        )
    torch.testing.assert_close(got, wanted)


def test_a_known_encoder_in_somebody_s_model():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = build("roberta_base").encoder.sentence_encoder

        def forward(self, ids):
            return self.body(ids)["encoder_out"][0]

    model = Mine().eval()
    wanted = model(tokens(1, 9))
    torch.manual_seed(0)
    with lf.patch(model, "window(20, 20)") as patch:
        assert "body.layers.1.self_attn" in str(patch.report)
        torch.testing.assert_close(model(tokens(1, 9)).shape, wanted.shape)
    assert type(model.body) is TransformerEncoder


def test_changed_seams_are_errors(monkeypatch):
    def forward(self, query, key, value):
        return query

    monkeypatch.setattr(MultiheadAttention, "forward", forward)
    with pytest.raises(
        PatchError, match=r"fairseq .* \(tested: 0.12.3.1 .*\): MultiheadAttention.forward\(query, key"
    ):
        lf.patch(build("transformer_lm"), "window(2, 0)")
    with pytest.raises(PatchError, match=r"Linear with attributes \['q_proj'\] wanted"):
        FAIRSEQ.check_attributes(nn.Linear(1, 1), ["q_proj"])
    with pytest.raises(PatchError, match=r"a function with parameters \['mask'\] wanted"):
        FAIRSEQ.check_takes(forward, ["mask"], "a function")


def test_hub_interface_of_roberta():
    config = OmegaConf.create({"bpe": None})
    task = SimpleNamespace(source_dictionary=dictionary())
    hub = RobertaHubInterface(config, task, build("roberta_base"))
    ids = tokens(1, 20)
    wanted = hub.extract_features(ids, return_all_hiddens=True)
    with lf.patch(hub, "window(32, 32)"):
        for one, other in zip(wanted, hub.extract_features(ids, return_all_hiddens=True), strict=True):
            torch.testing.assert_close(other, one)
    with lf.patch(hub, "window(1, 1)"):
        assert not torch.allclose(hub.extract_features(ids), wanted[-1])


def test_hub_interface_that_generates():
    from fairseq.dataclass.configs import FairseqConfig, GenerationConfig

    config = OmegaConf.structured(FairseqConfig)
    config.tokenizer = config.bpe = None
    words = dictionary()
    task = SimpleNamespace(source_dictionary=words, target_dictionary=words, max_positions=lambda: (128, 128))
    hub = GeneratorHubInterface(config, task, [build("transformer")])
    from fairseq.sequence_generator import SequenceGenerator

    def generate():
        search = SequenceGenerator(list(hub.models), words, beam_size=GenerationConfig().beam, max_len_b=12)
        ids = hub.encode("a b c d e f g")[None]
        sample = {"net_input": {"src_tokens": ids, "src_lengths": torch.tensor([ids.shape[1]])}}
        return [hub.decode(found["tokens"]) for found in search.generate(hub.models, sample)[0]]

    wanted = generate()
    with lf.patch(hub, "window(32, 32)") as patch:
        assert "models.0.encoder.layers.0.self_attn" in str(patch.report)
        assert generate() == wanted


@pytest.mark.parametrize(
    "arch",
    [
        "nonautoregressive_transformer",
        "cmlm_transformer",
        "insertion_transformer",
        "levenshtein_transformer",
    ],
)
def test_decoders_that_see_ahead(arch):
    """Decoder layers in a stack that hides nothing: a window that covers everything changes nothing."""
    model, ids, source = build(arch), tokens(2, 12), tokens(2, 11)

    def run():
        out = model.encoder(source, src_lengths=torch.full((2,), 11))
        if arch.startswith(("insertion", "levenshtein")):
            return model.decoder.extract_features(ids, encoder_out=out)[0]
        return model.decoder(normalize=False, prev_output_tokens=ids, encoder_out=out)

    wanted = run()
    with lf.patch(model, "window(64, 64)"):
        torch.testing.assert_close(run(), wanted)
    with lf.patch(model, "window(1, 1)"):
        assert not torch.allclose(run(), wanted, atol=1e-3)


def test_a_decoder_that_is_not_known_stays_causal_by_its_mask():
    model, ids = build("transformer"), tokens(2, 12)
    given = net_input("translation", ids)
    wanted = model(**given)[0]
    decoder = model.decoder
    decoder.__class__ = type("Decoder", (type(decoder),), {})
    with lf.patch(model, "window(64, 64)") as patch:
        assert "in a stack that is not known" in str(patch.report)
        torch.testing.assert_close(model(**given)[0], wanted)
        out, state, steps = model.encoder(ids, src_lengths=given["src_lengths"]), {}, []
        for end in range(1, 13):
            seen = given["prev_output_tokens"][:, :end]
            steps.append(decoder(seen, encoder_out=out, incremental_state=state)[0])
        torch.testing.assert_close(torch.cat(steps, dim=1), wanted)
