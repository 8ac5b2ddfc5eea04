"""fairseq's tools train, resume, evaluate and generate with the architectures; a checkpoint is enough."""

import json
import re

import pytest
import torch
from fairseq.checkpoint_utils import load_checkpoint_to_cpu, load_model_ensemble

import lf_backend as lf
from lf_backend.errors import LFError
from tests.fairseq.commands import TINY, USER_DIR, binarised, run, sizes, words

PATTERN = "window(7, 0) | global(0)"
USER = ["--user-dir", USER_DIR]
LM = [
    *USER,
    *words(
        "--task language_modeling --arch transformer_lm_lf --tokens-per-sample 64 --sample-break-mode none"
    ),
    *["--share-decoder-input-output-embed", *sizes("decoder"), *TINY],
]
VALIDATE = words("--valid-subset valid --cpu --max-tokens 256 --num-workers 0")
VALID = words("--gen-subset valid --cpu --max-tokens 256 --num-workers 0")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return binarised(tmp_path_factory.mktemp("lm"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return binarised(tmp_path_factory.mktemp("pairs"), "a", "b")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A language model whose pattern came from a file that is gone."""
    folder = tmp_path_factory.mktemp("trained")
    path = folder / "schedule.json"
    path.write_text(json.dumps(["window(7, 0)", {"term": "window", "left": 15, "right": 0, "dilation": 2}]))
    log = run("train", data, *LM, "--attention-pattern", path, "--max-update", "4", "--save-dir", folder)
    path.unlink()
    assert "num_updates 4" in log
    return folder / "checkpoint_last.pt"


def loss(log, name="loss"):
    return float(re.findall(rf"{name} (?:\(base 2\): )?([0-9.]+)", log)[-1])


def evaluate(data, path, *more):
    blocks = words("--sample-break-mode none --tokens-per-sample 62")  # fairseq adds a token to each
    return run("eval-lm", data, *USER, "--path", path, *VALID, *blocks, *more)


def test_the_pattern_is_in_the_checkpoint(trained):
    config = load_checkpoint_to_cpu(str(trained))["cfg"]["model"]
    assert json.loads(config["attention_pattern"]) == ["window(7, 0)", "window(15, 0, dilation=2)"]
    (model,), _ = load_model_ensemble([str(trained)])
    assert [str(layer.self_attn.lf_mark.pattern) for layer in model.decoder.layers] == [
        "window(7, 0) & causal()", "window(15, 0, dilation=2) & causal()",
    ]  # fmt: skip


def test_eval_lm_needs_the_user_dir_alone(data, trained):
    first = loss(evaluate(data, trained), "Loss")
    assert 0 < first < 10
    again = loss(evaluate(data, trained, "--context-window", "8"), "Loss")
    assert 0 < again < 10


def test_model_overrides(data, trained):
    own = loss(evaluate(data, trained), "Loss")
    override = {"attention_pattern": "window(0, 0)", "attention_backend": "reference"}
    other = loss(evaluate(data, trained, "--model-overrides", override), "Loss")
    same = loss(evaluate(data, trained, "--model-overrides", {"attention_backend": "reference"}), "Loss")
    assert abs(own - same) < 1e-3 < abs(own - other)
    with pytest.raises(
        lf.PatternError, match="--attention-pattern: layer 0: a window without steps ahead wanted"
    ):
        evaluate(data, trained, "--model-overrides", {"attention_pattern": "window(3, 3)"})


def test_training_resumes_where_it_stopped(data, tmp_path):
    options = [*LM, "--attention-pattern", PATTERN, "--attention-dropout", "0.1"]
    straight, broken = tmp_path / "straight", tmp_path / "broken"
    run("train", data, *options, "--save-dir", straight, "--max-update", "6", "--save-interval-updates", "3")
    run("train", data, *options, "--save-dir", broken, "--max-update", "3", "--save-interval-updates", "3")
    log = run(
        "train", data, *options, "--save-dir", broken, "--max-update", "6", "--save-interval-updates", "3"
    )
    assert "Loaded checkpoint" in log and "@ 3 updates" in log
    states = [load_checkpoint_to_cpu(str(folder / "checkpoint_last.pt")) for folder in (straight, broken)]
    for name, wanted in states[0]["model"].items():
        assert torch.equal(states[1]["model"][name], wanted), name


def test_a_stock_checkpoint_is_trained_on(data, tmp_path):
    stock = ["transformer_lm" if word == "transformer_lm_lf" else word for word in LM]
    run("train", data, *stock, "--save-dir", tmp_path / "stock", "--max-update", "2")
    path = tmp_path / "stock" / "checkpoint_last.pt"
    log = run(
        "train",
        data,
        *LM,
        "--attention-pattern",
        "window(63, 0)",
        "--finetune-from-model",
        path,
        "--save-dir",
        tmp_path / "lf",
        "--max-update",
        "1",
        "--lr",
        "1e-9",
    )
    assert "loading pretrained model" in log
    got, wanted = (loss(evaluate(data, x), "Loss") for x in (tmp_path / "lf" / "checkpoint_last.pt", path))
    assert abs(got - wanted) < 1e-3


@pytest.mark.parametrize("bf16", [[], ["--bf16"]])
def test_language_models_generate_and_validate(data, trained, bf16, monkeypatch):
    common = [*USER, "--path", trained, "--task", "language_modeling", "--cpu", *bf16]
    log = run("validate", data, *common, *VALIDATE)
    assert 0 < loss(log) < 10
    search = words("--beam 3 --max-len-b 12")
    monkeypatch.setattr("fileinput.input", lambda *_, **__: _lines(["a b c d", "h g"]))
    assert "Total time" in run("interactive", data, *common, *search)
    log = run("generate", data, *common, *VALID, *search, *words("--sample-break-mode eos --prefix-size 2"))
    assert "Translated 40 sentences" in log


class _lines(list):
    def __enter__(self):
        return iter(self)

    def __exit__(self, *_):
        return None


@pytest.mark.parametrize("half", ["", "common.bf16=true common.memory_efficient_bf16=true"])
def test_hydra_train(data, tmp_path, monkeypatch, half):
    """bfloat16 through hydra alone: fairseq-train takes --bf16 for a TPU's."""
    monkeypatch.chdir(tmp_path)
    model = words("_name=transformer_lm_lf decoder_layers=2 decoder_embed_dim=32 decoder_attention_heads=4")
    others = words(
        "task=language_modeling task.sample_break_mode=none task.tokens_per_sample=64 "
        "criterion=cross_entropy optimizer=adam lr_scheduler=fixed optimization.lr=[0.003] "
        "optimization.max_update=2 common.cpu=true dataset.max_tokens=256 dataset.num_workers=0"
    )
    run(
        "hydra-train",
        *others,
        *words(half),
        *(f"+model.{text}" for text in model),
        f"task.data={data}",
        f'+model.attention_pattern="{PATTERN}"',
        'optimizer.adam_betas="(0.9, 0.98)"',
        f"common.user_dir={USER_DIR}",
        f"checkpoint.save_dir={tmp_path}",
    )
    path = tmp_path / "checkpoint_last.pt"
    assert load_checkpoint_to_cpu(str(path))["cfg"]["model"]["attention_pattern"] == PATTERN
    assert 0 < loss(evaluate(data, path), "Loss") < 10


@pytest.mark.parametrize(
    "options",
    [
        "--memory-efficient-fp16",
        "--amp",
        "--quant-noise-pq 0.2 --quant-noise-pq-block-size 8 --decoder-input-dim 32 --decoder-output-dim 32",
        "--checkpoint-activations --decoder-layerdrop 0.3 --attention-dropout 0.1",
    ],
)
def test_trainers(data, tmp_path, options):
    log = run(
        "train",
        data,
        *LM,
        *words(options),
        "--attention-pattern",
        PATTERN,
        "--max-update",
        "2",
        "--save-dir",
        tmp_path,
        "--no-save",
    )
    assert "num_updates 2" in log and 0 < loss(log) < 10


@pytest.mark.parametrize("arch", ["transformer_lf", "bart_base_lf"])
def test_translation(pairs, tmp_path, arch, monkeypatch):
    path = tmp_path / "checkpoint_last.pt"
    run(
        "train",
        pairs,
        *USER,
        "--task",
        "translation",
        "--arch",
        arch,
        *sizes("encoder", "decoder"),
        *TINY,
        "--attention-pattern",
        '["window(3, 3) | global(0)", "window(5, 5)"]',
        "--decoder-attention-pattern",
        "window(4, 0)",
        "--global-tokens",
        "a,</s>",
        "--save-dir",
        tmp_path,
        *words("--attention-backend blocked --max-update 3 --share-all-embeddings"),
        *words("--max-source-positions 64 --max-target-positions 64"),
    )
    (model,), _ = load_model_ensemble([str(path)])
    assert str(model.encoder.layers[0].self_attn.lf_mark.pattern) == "window(3, 3) | global(0)"
    assert str(model.decoder.layers[1].self_attn.lf_mark.pattern) == "window(4, 0) & causal()"
    assert len(model.encoder.lf_mark.tokens) == 2 and not hasattr(model.decoder.lf_mark, "tokens")
    override = {"attention_pattern": "window(1, 1)", "decoder_attention_pattern": ""}
    (other,), _ = load_model_ensemble([str(path)], arg_overrides=override)
    assert not hasattr(other.decoder, "lf_mark")
    common, search = [*USER, "--path", path, "--cpu"], words("--beam 3 --max-len-b 12")
    assert "Translated 40 sentences" in run("generate", pairs, *common, *VALID, *search)
    monkeypatch.setattr("fileinput.input", lambda *_, **__: _lines(["a b c d", "h g"]))
    assert "Total time" in run("interactive", pairs, *common, *search)
    log = run("validate", pairs, *common, "--task", "translation", *VALIDATE)
    assert 0 < loss(log) < 10


def test_roberta(data, tmp_path):
    task = [*USER, "--task", "masked_lm"]
    blocks = words("--tokens-per-sample 64 --max-positions 64 --sample-break-mode none --criterion masked_lm")
    log = run(
        "train",
        data,
        *task,
        "--arch",
        "roberta_base_lf",
        *sizes("encoder"),
        *TINY,
        *blocks,
        "--max-update",
        "3",
        "--attention-pattern",
        "window(4, 4)",
        "--global-tokens",
        "<s>,<mask>",
        "--save-dir",
        tmp_path,
        "--global-projections",
    )
    assert "num_updates 3" in log
    path = tmp_path / "checkpoint_last.pt"
    own = [name for name in load_checkpoint_to_cpu(str(path))["model"] if "_global" in name]
    assert len(own) == 2 * 3 * 2
    log = run("validate", data, *task, "--path", path, *VALIDATE)
    assert 0 < loss(log) < 10


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ([], lf.PatternError, "--attention-pattern: a pattern such as .* wanted, got none"),
        (
            ["--attention-pattern", "window(7, 0"],
            lf.PatternError,
            r"column 12 of 'window\(7, 0': '\)' or ',' wanted",
        ),
        (
            ["--attention-pattern", '["window(7, 0)"]'],
            lf.PatternError,
            "one per layer wanted, 2 layers, got 1",
        ),
        (
            ["--attention-pattern", "window(8, 8)"],
            lf.PatternError,
            r"without steps ahead wanted in a causal model, got window\(8, 8\); .* write window\(8, 0\)",
        ),
        (["--attention-pattern", PATTERN, "--attention-backend", "no"], LFError, "one of .*'blocked'.*'no'"),
        *(  # neither runs on a CPU, xformers installed or not
            (["--attention-pattern", PATTERN, "--attention-backend", name], lf.UnsupportedError, name)
            for name in ("triton", "xformers")
        ),
        (
            ["--attention-pattern", PATTERN, "--global-tokens", "<s>,zebra"],
            LFError,
            r"--global-tokens: symbols of the dictionary wanted, got \['zebra'\]",
        ),
    ],
)
def test_bad_options(data, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        run("train", data, *LM, *options, "--max-update", "1", "--save-dir", tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--attention-pattern or --decoder-attention-pattern: a pattern such as .* wanted, got none"),
        (
            ["--decoder-attention-pattern", "window(3, 3)"],
            "--decoder-attention-pattern: layer 0: a window without steps ahead wanted",
        ),
        (
            ["--decoder-attention-pattern", "window(3, 0)", "--global-tokens", "a"],
            "--global-tokens: with --attention-pattern wanted, got it without",
        ),
    ],
)
def test_options_of_two_sides(pairs, tmp_path, options, message):
    arch = words("--task translation --arch transformer_tiny_lf")
    with pytest.raises(lf.PatternError, match=message):
        run("train", pairs, *USER, *arch, *TINY, *options, "--save-dir", tmp_path)
