"""The paper's language model as a fairseq model: sizes, causality, decoding step by step, half precision."""

from types import SimpleNamespace

import pytest
import torch
from fairseq.data import Dictionary
from fairseq.sequence_generator import SequenceGenerator
from omegaconf import OmegaConf

import lf_backend as lf
from lf_backend.errors import LFError, PatternError
from lf_fairseq.archs.longformer_lm import SIZES, LongformerLM, LongformerLMConfig
from lf_fairseq.attention import relative
from tests.fairseq.commands import USER_DIR, binarised, run, words

SMALL = {
    "decoder_layers": 2,
    "decoder_embed_dim": 16,
    "decoder_ffn_embed_dim": 32,
    "decoder_attention_heads": 4,
    "dropout": 0.0,
    "attention_pattern": '["window(3, 0)", "window(4, 0, dilation=[2, 2, 1, 1])"]',
}


def dictionary(symbols=20):
    found = Dictionary()
    for symbol in range(symbols):
        found.add_symbol(f"s{symbol}")
    return found


def build(words=None, **values):
    cfg = LongformerLMConfig()
    for name, value in values.items():
        setattr(cfg, name, value)
    model = LongformerLM.build_model(cfg, SimpleNamespace(target_dictionary=words or dictionary()))
    model.train(False)
    return model


def tokens(rows=2, length=20):
    return torch.randint(4, 24, (rows, length), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("size", "millions"), [("small", 41), ("large", 102)])
def test_as_many_parameters_as_published(size, millions):
    with torch.device("meta"):
        model = build(dictionary(205), **SIZES[size])  # enwik8 has 205 different bytes
    assert int(sum(parameter.numel() for parameter in model.parameters()) / 1e6) == millions


def test_a_token_reaches_exactly_what_the_windows_show():
    """Two layers see 3 + 4 * 2 steps back, and nothing ahead."""
    model = build(**SMALL).double()
    words = tokens()
    changed = words.clone()
    changed[:, 5] = 4 + (changed[:, 5] - 3) % 20
    with torch.no_grad():
        moved = (model(words)[0] - model(changed)[0]).abs().amax((0, 2)) > 0
    assert moved.nonzero()[:, 0].tolist() == list(range(5, 5 + 3 + 8 + 1))


def test_step_by_step_is_the_same():
    """First steps of several tokens, then one at a time; a reordered state continues the other rows."""
    model = build(**SMALL).double()
    words = tokens()
    with torch.no_grad():
        whole = model(words)[0]
        state = {}
        parts = [model(words[:, :stop], incremental_state=state)[0] for stop in (5, *range(6, 13))]
        torch.testing.assert_close(torch.cat(parts, 1), whole[:, :12], rtol=0, atol=1e-12)
        order = torch.tensor([1, 0])
        model.decoder.reorder_incremental_state_scripting(state, order)
        rest = model(torch.cat((words[order, :12], words[order, 12:]), 1), incremental_state=state)[0]
    torch.testing.assert_close(rest, whole[order, 12:], rtol=0, atol=1e-12)


def test_what_a_step_keeps_is_bounded_by_the_reach():
    model, state = build(**SMALL), {}
    with torch.no_grad():
        for stop in range(1, 31):
            model(tokens(length=30)[:, :stop], incremental_state=state)
    kept = sorted(part["keys"].shape[2] for part in state.values() if "keys" in part)
    assert kept == [3, 8]


def test_beam_search_finds_what_whole_sequences_give():
    """fairseq's own generator with a prefix: every score is that of the sentence read as a whole."""
    words = dictionary()
    model = build(words, **SMALL).double()
    generator = SequenceGenerator([model], words, beam_size=3, max_len_b=12, normalize_scores=False)
    prefix = tokens(2, 6)
    sample = {"net_input": {"src_tokens": prefix, "src_lengths": torch.tensor([6, 6])}}
    found = generator.generate([model], sample, prefix_tokens=prefix)
    for row in found:
        for sentence in row:
            text = sentence["tokens"]
            given = torch.cat((torch.tensor([words.eos()]), text[:-1]))[None]
            with torch.no_grad():
                scores = model.get_normalized_probs(model(given), log_probs=True)
            wanted = scores[0].gather(-1, text[:, None])[:, 0]
            scored = sentence["positional_scores"]
            torch.testing.assert_close(scored.double(), wanted.double(), rtol=0, atol=1e-5)
    assert len({tuple(sentence["tokens"].tolist()) for sentence in found[0]}) == 3


def test_padding_counts_for_nothing():
    model = build(**SMALL).double()
    words = tokens()
    padded = torch.full((2, 27), model.decoder.padding)
    padded[0, :20], padded[1, 7:] = words
    with torch.no_grad():
        whole, got = model(words)[0], model(padded)[0]
    torch.testing.assert_close(torch.stack((got[0, :20], got[1, 7:])), whole, rtol=0, atol=1e-12)


@pytest.mark.parametrize("how", ["half", "bfloat16", "autocast"])
def test_attention_is_float32_in_half_precision(monkeypatch, how):
    """As in the paper; what comes out of the layer has the dtype of training again."""
    seen, dense = [], lf.attention

    def spy(q, k, v, *arguments, **options):
        seen.extend(x.dtype for x in (q, k, v, options["band_bias"]))
        assert not torch.is_autocast_enabled("cpu")
        return dense(q, k, v, *arguments, **options)

    monkeypatch.setattr(lf, "attention", spy)
    model = build(**SMALL)
    whole = model(tokens())[0]
    if how == "autocast":
        with torch.autocast("cpu", torch.bfloat16):
            out = model(tokens())[0]
    else:
        out = {"half": model.half, "bfloat16": model.bfloat16}[how]()(tokens())[0]
    assert set(seen) == {torch.float32}
    assert out.dtype == (torch.float16 if how == "half" else torch.bfloat16)
    assert (out.float() - whole).abs().max() < 0.02 * whole.abs().max() + 0.01


def test_blocks_of_positions_change_nothing(monkeypatch):
    """`--position-block` computes scores a part at a time, with the same results and gradients."""
    blocks, attention = [], relative.attention

    def spy(*arguments, **options):
        blocks.append(options["block"])
        return attention(*arguments, **options)

    monkeypatch.setattr(relative, "attention", spy)
    models = [build(**SMALL, position_block=block).double() for block in (0, 6)]
    models[1].load_state_dict(models[0].state_dict())
    for model in models:
        model(tokens())[0].square().sum().backward()
    for one, two in zip(*(model.parameters() for model in models), strict=True):
        torch.testing.assert_close(one.grad, two.grad, rtol=0, atol=1e-12)
    with torch.no_grad():
        one, two = (model(tokens())[0] for model in models)
    torch.testing.assert_close(one, two, rtol=0, atol=1e-12)
    assert blocks == [0, 0, 6, 6] * 2


def test_a_checkpoint_does_not_need_the_file_of_its_pattern(tmp_path):
    path = tmp_path / "windows.json"
    path.write_text(SMALL["attention_pattern"])
    cfg = OmegaConf.create({"model": {**vars(LongformerLMConfig()), **SMALL, "attention_pattern": str(path)}})
    LongformerLM.build_model(cfg.model, SimpleNamespace(target_dictionary=dictionary()))
    path.unlink()
    assert cfg.model.attention_pattern == SMALL["attention_pattern"]
    LongformerLM.build_model(cfg.model, SimpleNamespace(target_dictionary=dictionary()))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"attention_pattern": "window(3, 1)"},
            r"layer 0: a window without steps ahead wanted .* window\(3, 0\)",
        ),
        ({"attention_pattern": '["window(3, 0)"]'}, "one pattern, or one per layer wanted, 2 layers, got 1"),
        ({"attention_pattern": "window(3, 0) | global(0)"}, "a pattern of one limited window wanted, got"),
        ({"attention_pattern": "window(none, 0)"}, "a pattern of one limited window wanted, got"),
        ({"attention_pattern": "window(3, 0, dilation=[1, 2])"}, "one int per head wanted, 4 heads, got 2"),
        ({"decoder_embed_dim": 18}, "--decoder-embed-dim: an even multiple of 4 heads wanted, got 18"),
    ],
)
def test_bad_options(values, message):
    with pytest.raises((PatternError, LFError), match=message):
        build(**{**SMALL, **values})


def test_an_encoder_is_refused():
    with pytest.raises(LFError, match="encoder_out: None wanted, longformer_lm has no encoder, got dict"):
        build(**SMALL).decoder(tokens(), encoder_out={})


@pytest.mark.parametrize("half", ["", "common.bf16=true common.memory_efficient_bf16=true"])
def test_fairseq_s_tools(tmp_path, monkeypatch, half):
    """Trained by fairseq-hydra-train, in bfloat16 too; read by fairseq-generate with `--user-dir` alone."""
    monkeypatch.chdir(tmp_path)
    data = binarised(tmp_path)
    model = {"_name": "longformer_lm", **SMALL, "position_block": 16, "attention_pattern": '"window(7, 0)"'}
    options = (
        "task=language_modeling task.sample_break_mode=none task.tokens_per_sample=64 "
        "criterion=cross_entropy optimizer=adam lr_scheduler=fixed optimization.lr=[0.003] "
        "optimization.max_update=3 common.cpu=true dataset.max_tokens=256 dataset.num_workers=0"
    )
    run(
        "hydra-train",
        *words(options),
        *words(half),
        *(f"+model.{name}={model[name]}" for name in model),
        'optimizer.adam_betas="(0.9, 0.98)"',
        f"task.data={data}",
        f"common.user_dir={USER_DIR}",
        f"checkpoint.save_dir={tmp_path}",
    )
    log = run(
        "generate",
        data,
        "--user-dir",
        USER_DIR,
        "--path",
        tmp_path / "checkpoint_last.pt",
        *words("--task language_modeling --cpu --gen-subset valid --max-tokens 256 --num-workers 0 --beam 3"),
        *words("--max-len-b 12 --sample-break-mode eos --prefix-size 2"),
    )
    assert "Translated 40 sentences" in log
