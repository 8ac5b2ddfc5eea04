"""The demo, tiny: it agrees, it notices when the models disagree, and it is clear about what it lacks."""

import json
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from lf_backend import LFError
from lf_backend.cli.app import app
from lf_backend.cli.demo import comparison, document, subject

TEXT = "It was the best of times, it was the worst of times. " * 8


def run(*arguments):
    return CliRunner().invoke(app, ["demo", *arguments], env={"COLUMNS": "200"})


def small(*arguments):
    return run("--max-length", "96", "--window", "16", "--layers", "1", *arguments)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return str(path)


@pytest.fixture
def transformers():
    """transformers, and the integration installed so that `patch` finds it."""
    pytest.importorskip("lf_huggingface")
    return pytest.importorskip("transformers")


def test_the_models_agree(transformers, text):
    pytest.importorskip("matplotlib")
    result = small(text)
    assert result.exit_code == 0, result.output
    for words in (f"{len(TEXT) + 1} tokens", "window(8, 8) | global(0)", "runs it", "global columns",
                  "LongformerSelfAttention", "the same answer: largest difference"):  # fmt: skip
        assert words in result.output
    assert Path("lf-demo.png").read_bytes().startswith(b"\x89PNG")


def test_results_as_data(transformers, text):
    result = small("--json", text)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["agree"] and found["machine"].startswith(("quiet", "busy"))
    (row,) = found["rows"]
    assert row["length"] == 96 and 0 < row["ours"]["attention"] < row["ours"]["seconds"]["median"] * 2
    assert "the same answer" in result.stderr


def test_a_text_shorter_than_asked_ends_the_lengths(transformers, tmp_path):
    (tmp_path / "a.txt").write_text("A short text, ", encoding="utf-8")
    (tmp_path / "b.txt").write_text("in two files.", encoding="utf-8")
    result = small("a.txt", "b.txt")
    assert result.exit_code == 0, result.output
    assert "a.txt, b.txt: 30 tokens" in result.output
    assert "lengths end at 30, not 96: the text has no more" in result.output


def test_the_same_seed_gives_the_same_model(transformers):
    one, two, other = (subject.seeded(1, 8, 32, seed).model for seed in (3, 3, 4))
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    before = torch.random.get_rng_state()
    subject.seeded(1, 8, 32, 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_models_that_disagree_end_with_1(transformers, text, monkeypatch):
    from lf_backend.cli.demo import run as module

    patch = module.patch
    monkeypatch.setattr(module, "patch", lambda model: patch(model, "window(7, 8)"))
    result = small(text)
    assert result.exit_code == 1
    assert "NOT the same answer" in result.output


def checkpoint(transformers, directory, config):
    """A tiny checkpoint with a tokenizer, as `save_pretrained` writes them."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {
        word: at for at, word in enumerate(["<s>", "<pad>", "</s>", "<unk>", *sorted(set(TEXT.split()))])
    }
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", pad_token="<pad>"
    ).save_pretrained(directory)
    transformers.AutoModel.from_config(config(vocab_size=len(words))).save_pretrained(directory)


def longformer(transformers, **others):
    return lambda **more: transformers.LongformerConfig(
        hidden_size=16,
        num_attention_heads=2,
        num_hidden_layers=2,
        intermediate_size=16,
        pad_token_id=1,
        attention_window=[8, 4],
        max_position_embeddings=66,
        **others,
        **more,
    )


def led(transformers):
    return lambda **more: transformers.LEDConfig(
        d_model=16,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_layers=1,
        decoder_layers=1,
        encoder_ffn_dim=16,
        decoder_ffn_dim=16,
        attention_window=8,
        max_encoder_position_embeddings=64,
        max_decoder_position_embeddings=64,
        pad_token_id=1,
        **more,
    )


@pytest.mark.parametrize("config", [longformer, led])
def test_ones_own_checkpoint(transformers, text, tmp_path, config):
    checkpoint(transformers, tmp_path / "model", config(transformers))
    result = run(text, "--model", str(tmp_path / "model"))
    assert result.exit_code == 0, result.output
    assert f"{len(TEXT.split())} tokens" in result.output
    assert "lengths end at 64, not 4,096: the model has no more positions" in result.output


def test_a_checkpoint_of_another_kind(transformers, text, tmp_path):
    transformers.BertConfig().save_pretrained(tmp_path / "model")
    result = run(text, "--model", str(tmp_path / "model"))
    assert result.exit_code == 2
    assert "error: --model: a longformer or led wanted" in result.output and "has a bert" in result.output


def test_a_checkpoint_without_weights(transformers, text, tmp_path):
    longformer(transformers)().save_pretrained(tmp_path / "model")
    result = run(text, "--model", str(tmp_path / "model"))
    assert result.exit_code == 2
    assert "cannot be loaded:" in result.output and "Traceback" not in result.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no_such.txt"], "no_such.txt' does not exist"),
        (["empty.txt"], "error: empty.txt: some text wanted, the file is empty"),
        (["blank.txt"], "error: blank.txt: some text wanted, the file is empty"),
        (["binary.bin"], "error: binary.bin: UTF-8 text wanted, byte 1 is none"),
        (["--model", "no_such"], "no_such' does not exist"),
        (["--model", "."], "error: --model: a checkpoint wanted, . has no config.json"),
        (["--window", "511"], "error: --window: an even number (half on each side) wanted, got 511"),
        (["--device", "abacus"], "error: --device: cpu, or cuda where there is one, wanted, got 'abacus'"),
        (["--max-length", "1"], "Invalid value for '--max-length'"),
    ],
)
def test_bad_input_is_a_line_and_exit_code_2(transformers, arguments, message):
    for name, content in (("empty.txt", b""), ("blank.txt", b" \n"), ("binary.bin", b"a\xff")):
        Path(name).write_bytes(content)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.output and "Traceback" not in result.output


def test_without_transformers(monkeypatch, text):
    monkeypatch.setitem(sys.modules, "transformers", None)
    result = small(text)
    assert result.exit_code == 2
    assert (
        "error: transformers is not installed: python -m pip install 'lf-backend[huggingface]'"
        in result.output
    )


def test_without_matplotlib_there_is_no_plot_and_it_says_so(monkeypatch, transformers, text):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    result = small(text)
    assert result.exit_code == 0, result.output
    assert "no plot: matplotlib is not installed: python -m pip install 'lf-backend[plots]'" in result.output
    assert not Path("lf-demo.png").exists()
    asked = small(text, "--plot", "mine.png")
    assert asked.exit_code == 2
    assert "error: matplotlib is not installed" in asked.output and "tokens" not in asked.output


def test_the_default_text_is_long_english_prose():
    found = document.read(())
    assert len(found.text) > 100_000 and found.text.count(" the ") > 1000


def test_a_twin_shares_the_weights():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    twin = comparison.twin(model)
    assert twin is not model and twin[0] is not model[0]
    assert all(a is b for a, b in zip(model.parameters(), twin.parameters(), strict=True))
    assert all(a is b for a, b in zip(model.buffers(), twin.buffers(), strict=True))


def test_lengths_double_up_to_the_longest():
    assert comparison.lengths(512, 4096) == [512, 1024, 2048, 4096]
    assert comparison.lengths(512, 3000) == [512, 1024, 2048, 3000]
    assert comparison.lengths(30, 30) == [30]


def test_a_package_that_is_there_but_broken_is_not_called_missing(monkeypatch, tmp_path):
    (tmp_path / "halfway.py").write_text("import no_such_module_at_all", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    from lf_backend._optional import optional

    with pytest.raises(ModuleNotFoundError, match="no_such_module_at_all"):
        optional("halfway", "plots")
    with pytest.raises(LFError, match=r"no_such is not installed: .* 'lf-backend\[plots\]'"):
        optional("no_such.part", "plots")
