"""The recipe as users run it: all five phases of the laptop's size, shortened; interruption; bad input."""

import json
import math
import re
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy
import pytest
import torch
from rich.progress import Progress
from typer.main import get_command
from typer.testing import CliRunner

import lf_backend as lf
from lf_backend.errors import LFError
from lf_fairseq.recipes import binarise, char_lm, corpus, evaluation, phases, recipe, training

UPDATES = 2


def invoke(*arguments):
    return CliRunner().invoke(char_lm.app, [str(argument) for argument in arguments])


def weights(checkpoint):
    return torch.load(checkpoint, weights_only=False)["model"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a shortened training of all phases, and what the command printed."""
    torch.set_num_threads(1)
    out = tmp_path_factory.mktemp("char_lm")
    done = invoke("--size", "laptop", "--trial", UPDATES, "--out", out, "--devices", 0)
    assert done.exit_code == 0, done.output
    return out, done.output


def test_all_phases_run_and_the_model_learns(trained):
    out, printed = trained
    rows = recipe.results(out)
    assert list(rows) == [1, 2, 3, 4, 5]
    uniform = math.log2(256)
    counts = numpy.bincount(numpy.frombuffer(corpus.standard_library().content, numpy.uint8))
    assert uniform > -sum(p * math.log2(p) for p in counts[counts > 0] / counts.sum()) > 4
    first = training.curves(out / "phase1" / "train.log")[0]
    assert [record["update"] for record in first] == list(range(1, UPDATES + 1))
    assert first[-1]["bits"] < first[0]["bits"] - 0.3
    assert rows[5]["test"] < rows[1]["test"] < uniform
    assert all(math.isfinite(row["test"]) and row["characters"] == 4096 + 2048 for row in rows.values())
    assert (out / "curves.png").stat().st_size > 10_000
    assert "fairseq-train" in printed and "bits per character" in printed


def test_windows_and_lengths_double_and_the_rate_halves(trained):
    rows = list(recipe.results(trained[0]).values())
    for before, after in pairwise(rows):
        assert after["length"] == 2 * before["length"]
        assert after["learning_rate"] == before["learning_rate"] / 2
        for one, two in zip(before["windows"], after["windows"], strict=True):
            one, two = lf.parse(one), lf.parse(two)
            assert (two.left + 1, two.right, two.dilation) == (2 * (one.left + 1), 0, one.dilation)
    for row in rows:
        logged = training.curves(trained[0] / f"phase{row['phase']}" / "train.log")[0]
        assert logged[-1]["lr"] == row["learning_rate"]


def test_a_phase_begins_with_the_weights_of_the_last(trained, tmp_path):
    """With a rate of 0 phase 2 ends as it begins: with phase 1's weights."""
    size = phases.SIZES["laptop"].trial(1)
    frozen = replace(size, learning_rate=0.0, weight_decay=0.0)
    run = phases.Run(trained[0] / "data", tmp_path)
    run.folder(1).mkdir()
    run.checkpoint(1).symlink_to(trained[0] / "phase1" / "checkpoint_last.pt")
    with Progress(disable=True) as progress:
        phase = frozen.phase(2)
        training.train(phases.arguments(frozen, phase, run), run.log(2), 1, progress, "phase 2")
        bar = progress.tasks[0]
    assert re.fullmatch(r"phase 2 \[dim\]training \d\.\d{3}, development \d\.\d{3}\[/dim\]", bar.description)
    assert bar.completed == bar.total == 1
    one, two = weights(run.checkpoint(1)), weights(run.checkpoint(2))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    state = torch.load(run.checkpoint(2), weights_only=False)["optimizer_history"][-1]
    assert state["num_updates"] == 1  # its own


def test_the_same_command_again_does_nothing(trained):
    out, _ = trained
    before = {path: path.stat().st_mtime_ns for path in out.glob("phase*/*.pt")}
    rows = (out / "results.json").read_text()
    assert invoke("--trial", UPDATES, "--out", out, "--phase", 5, "--devices", 0).exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in out.glob("phase*/*.pt")} == before
    assert (out / "results.json").read_text() == rows


def test_another_training_in_the_same_folder_is_refused(trained):
    done = invoke("--out", trained[0], "--phase", 5, "--devices", 0)
    assert done.exit_code == char_lm.BAD_INPUT
    assert f"4 done before 5 wanted, 40 updates, got {UPDATES} in" in " ".join(done.stderr.split())
    done = invoke("--out", trained[0], "--trial", UPDATES, "--seed", 2, "--devices", 0)
    assert done.exit_code == char_lm.BAD_INPUT
    assert "phase1 has another seed (1, not 2)" in " ".join(done.stderr.split())


def test_any_checkpoint_is_evaluated(trained, tmp_path, monkeypatch):
    checkpoint = trained[0] / "phase3" / "checkpoint_last.pt"
    monkeypatch.chdir(tmp_path)
    words = ("--length", 1024, "--step", 256, "--characters", 3000, "--split", "valid")
    stock = invoke("evaluate", checkpoint, *words)
    assert stock.exit_code == 0, stock.output
    bits = float(stock.output.split(" bits per character on 3,000 of valid")[0].split()[-1])
    assert 2 < bits < 8
    other = invoke("evaluate", checkpoint, *words, "--pattern", "window(0, 0)")  # no context at all
    assert other.exit_code == 0 and other.output.split()[-8] != stock.output.split()[-8]


def test_fairseq_s_own_evaluation_agrees(trained, tmp_path):
    """fairseq-eval-lm with `--user-dir` alone scores sequences without overlap: ours with step = length."""
    from fairseq import options
    from fairseq.dataclass.utils import convert_namespace_to_omegaconf
    from fairseq_cli import eval_lm

    checkpoint = trained[0] / "phase1" / "checkpoint_last.pt"
    model, task = evaluation.load(checkpoint, None)
    tokens = evaluation.tokens_of(task, "valid", 8 * 256)
    task.dictionary.save(str(tmp_path / "dict.txt"))
    with Progress(disable=True) as progress:
        binarise.write(tmp_path / "valid", tokens.numpy(), len(task.dictionary), progress)
        ours = evaluation.score(model, tokens, task.dictionary.eos(), 256, 256, 4, progress)
    arguments = [
        tmp_path, "--path", checkpoint, "--user-dir", phases.USER_DIR, "--gen-subset", "valid",
        "--batch-size", 4, "--cpu", "--tokens-per-sample", 256, "--num-workers", 0,
    ]  # fmt: skip
    parsed = options.parse_args_and_arch(options.get_eval_lm_parser(), [str(word) for word in arguments])
    found = eval_lm.main(convert_namespace_to_omegaconf(parsed))
    assert found["loss"] == pytest.approx(ours.per_character, rel=1e-5)


class Stop(Exception):
    """What stops a training in its middle."""


@pytest.fixture
def stops(monkeypatch):
    """Numbers of updates at which a training stops, each once."""
    from fairseq.trainer import Trainer

    step, found = Trainer.train_step, list[int]()

    def stopping(self, *arguments, **options):
        if found and self.get_num_updates() == found[0]:
            found.pop(0)
            raise Stop
        return step(self, *arguments, **options)

    monkeypatch.setattr(Trainer, "train_step", stopping)
    return found


def test_an_interrupted_training_loses_nothing(tmp_path, stops):
    """Stopped after its save and once more between two, it ends with the weights of one that was not."""
    text = corpus.Corpus("python", corpus.standard_library().content[:200_000])
    few = {"lengths": (64,), "batches": (4,), "sequences": (2,), "updates": (8,), "validation": 2}
    size = replace(phases.SIZES["laptop"].trial(8), **few)
    phase, runs = size.phase(1), [phases.Run(tmp_path / "data", tmp_path / name) for name in ("one", "two")]
    with Progress(disable=True) as progress:
        binarise.binarise(text, tmp_path / "data", progress)
        command = [(phases.arguments(size, phase, run), run.log(1), 8, progress, "phase 1") for run in runs]
        training.train(*command[0])
        stops[:] = [4, 7]
        for _ in range(2):
            with pytest.raises(Stop):
                training.train(*command[1])
        training.train(*command[1])
    one, two = (torch.load(run.checkpoint(1), weights_only=False) for run in runs)
    assert all(torch.equal(one["model"][name], two["model"][name]) for name in one["model"])
    moments = [state["last_optimizer_state"]["state"] for state in (one, two)]
    for name in ("exp_avg", "exp_avg_sq"):
        assert all(torch.equal(moments[0][key][name], moments[1][key][name]) for key in moments[0])
    curves = [training.curves(run.log(1))[0] for run in runs]
    assert [record["update"] for record in curves[0]] == list(range(1, 9))
    assert curves[0] == curves[1]


def test_the_paper_s_numbers():
    for name, updates in (("small", (430, 50, 50, 35, 5)), ("large", (350, 25, 10, 5, 5))):
        size = phases.SIZES[name]
        found = [size.phase(number) for number in range(1, 6)]
        assert [phase.updates for phase in found] == [1000 * count for count in updates]
        assert [phase.learning_rate for phase in found] == [2.5e-4, 1.25e-4, 6.25e-5, 3.125e-5, 1.5625e-5]
        assert [phase.length for phase in found] == [2048, 4096, 8192, 16384, 23040]
        assert [phase.batch for phase in found] == [32, 32, 16, 16, 16]
        assert [phase.warmup for phase in found] == [min(100 * count, 10_000) for count in updates]
        assert [len(found[0].schedule[layer].key_range(9999, 10_000)) for layer in (0, -1)] == [32, 512]
        assert [len(found[4].schedule[layer].key_range(99_999, 100_000)) for layer in (0, -1)] == [512, 8192]
        assert size.evaluation == (32_256, 512)


def test_the_command_of_a_phase_has_the_published_options(tmp_path):
    size, run = phases.SIZES["large"], phases.Run(tmp_path / "data", tmp_path, devices=8, half=True)
    found = phases.arguments(size, size.phase(3), run)
    pairs = dict(pairwise(found))
    wanted = {
        "--arch": "longformer_lm_large", "--clip-norm": "0.25", "--weight-decay": "0.01", "--lr": "6.25e-05",
        "--tokens-per-sample": "8192", "--batch-size": "1", "--update-freq": "2", "--warmup-updates": "1000",
        "--distributed-world-size": "8", "--finetune-from-model": str(tmp_path / "phase2/checkpoint_last.pt"),
    }  # fmt: skip
    assert {name: pairs[name] for name in wanted} == wanted
    assert json.loads(pairs["--attention-pattern"]) == [
        p.text for p in lf.schedules.longformer_lm("large", 3)
    ]
    assert "--fp16" in found and "--cpu" not in found
    with pytest.raises(LFError, match="times 5 devices a divisor of the batch, 32, wanted, got 4"):
        phases.arguments(size, size.phase(1), replace(run, devices=5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "nowhere"], "a folder with one of text8, text8.zip, enwik8, enwik8.zip wanted"),
        (["--phase", "3"], "--phase: 2 done before 3 wanted, 60 updates, got 0 in"),
        (
            ["--half"],
            "--half: at least one GPU wanted, fairseq has no half precision on a CPU, got --devices 0",
        ),
        (["--sequences", "3"], "--sequences: times 1 devices a divisor of the batch, 16, wanted, got 3"),
    ],
)
def test_bad_input_is_said_in_a_line(arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(corpus, "standard_library", lambda: corpus.Corpus("python", b"print()\n" * 1000))
    done = invoke(*arguments, "--out", tmp_path / "out", "--devices", 0)
    assert done.exit_code == char_lm.BAD_INPUT
    assert message in " ".join(done.stderr.split())


def test_options_of_a_training_are_refused_before_evaluate(tmp_path):
    done = invoke("--size", "small", "evaluate", tmp_path / "none.pt")
    assert done.exit_code == 2
    assert "--size: not with evaluate" in done.stderr
    done = invoke("evaluate", tmp_path / "none.pt")
    assert done.exit_code == 2
    assert "checkpoint: a file wanted, got" in done.stderr


def test_the_commands_of_the_page_exist():
    """Every option and sub-command that docs/fairseq_char_lm.md names is one of the command's."""
    page = (Path(__file__).parents[2] / "docs" / "fairseq_char_lm.md").read_text("utf8")
    group = get_command(char_lm.app)
    lines = [line.partition("#")[0].split() for line in page.splitlines() if "recipes.char_lm" in line]
    commands = [words[3:] for words in lines if words[:2] == ["python", "-m"]]
    assert len(commands) == 6
    for words in commands:
        command = group.commands["evaluate"] if words[:1] == ["evaluate"] else group
        known = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("--")} <= known
