"""The six recipes as users run them: whole, interrupted and continued, evaluated, asked for predictions."""

from __future__ import annotations

import functools
import json
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file

from lf_backend.measure import peak_bytes
from lf_huggingface.recipes import folder as run_folder
from lf_huggingface.recipes import tasks as recipes
from lf_huggingface.recipes.__main__ import ACTIONS, BAD_INPUT, main
from lf_huggingface.recipes.options import settled
from lf_huggingface.recipes.training import NON_FINITE, RecipeTrainer
from lf_huggingface.recipes.trial import model as trial_model

ROUGE = pytest.mark.skipif(not find_spec("rouge_score"), reason="rouge-score is not installed")
TASKS = ["mlm", "wikihop", "triviaqa", "hotpotqa", "classify", pytest.param("summarize", marks=ROUGE)]
STOP_AT = 5  # updates; checkpoints are made every 4
pytestmark = pytest.mark.filterwarnings("default")  # transformers deprecates names of its own


class Stop(Exception):
    """What stops a training in its middle."""


def _run(task: str, out: Path, *words: str) -> int:
    return main([task, *words, "--trial", "--out", str(out), "--evaluate_every", "4", "--updates", "10"])


@pytest.mark.parametrize("task", TASKS)
def test_a_trial_runs_and_resumes_to_the_bit(
    task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    whole, broken = tmp_path / "run", tmp_path / "broken"
    assert _run(task, whole) == 0
    printed = capsys.readouterr().out
    assert "global" in printed and "window(" in printed  # --show
    stock, done = RecipeTrainer.training_step, [0]

    def stopping(self: Any, *arguments: Any, **more: Any) -> Any:
        if self.state.global_step == STOP_AT and not done[0]:
            done[0] = 1
            raise Stop
        return stock(self, *arguments, **more)

    monkeypatch.setattr(RecipeTrainer, "training_step", stopping)
    for name in ("data", "model"):  # the same data at another place would be another run
        (tmp_path / "broken-trial").mkdir(exist_ok=True)
        (tmp_path / "broken-trial" / name).symlink_to(tmp_path / "run-trial" / name)
    with pytest.raises(Stop):
        _run(task, broken)
    assert _run(task, broken) == 0
    assert done[0]
    models = sorted(path.relative_to(whole) for path in whole.rglob("model/model.safetensors"))
    assert models
    for path in models:
        one, two = load_file(whole / path), load_file(broken / path)
        assert one.keys() == two.keys()
        assert all(torch.equal(x, two[name]) for name, x in one.items()), path
        at = path.parent.parent
        assert (whole / at / "curves.png").stat().st_size > 5000
        assert _losses(whole / at) == _losses(broken / at)
        assert json.loads((whole / at / "metrics.json").read_text()) == json.loads(
            (broken / at / "metrics.json").read_text()
        )
    if task == "classify":  # the mean over a batch, however many pieces of it accumulate
        assert 0.5 < _losses(whole)[0] < 0.9
    commands = (broken / run_folder.COMMANDS).read_text().splitlines()
    assert len(commands) == 2 and f"recipes {task} --trial" in json.loads(commands[0])["command"]


def _losses(folder: Path) -> list[float]:
    return [row["loss"] for row in json.loads((folder / "curves.json").read_text()) if "loss" in row]


def test_a_run_is_evaluated_and_its_folder_is_its_own(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "run"
    assert _run("wikihop", out) == 0
    metrics = json.loads((out / "metrics.json").read_text())
    dev = json.loads((tmp_path / "run-trial" / "data" / "dev.json").read_text())
    predictions = json.loads((out / "predictions.json").read_text())
    assert predictions.keys() == {row["id"] for row in dev}
    right = sum(predictions[row["id"]] == row["answer"] for row in dev)
    assert metrics["accuracy"] == right / len(dev)
    (out / "metrics.json").unlink()  # as if it had been stopped between its last checkpoint and its metrics
    assert _run("wikihop", out) == 0
    assert json.loads((out / "metrics.json").read_text()) == metrics
    (out / "evaluation.json").unlink()
    assert main(["wikihop", "evaluate", "--out", str(out)]) == 0
    assert json.loads((out / "evaluation.json").read_text())["accuracy"] == metrics["accuracy"]
    for row in dev:
        del row["answer"]
    (tmp_path / "asked.json").write_text(json.dumps(dev[:3]))
    assert main(["wikihop", "predict", "--out", str(out), "--input", str(tmp_path / "asked.json")]) == 0
    asked = json.loads((out / "asked" / "predictions.json").read_text())
    assert asked == {row["id"]: predictions[row["id"]] for row in dev[:3]}
    capsys.readouterr()
    assert _run("wikihop", out, "--seed", "2") == BAD_INPUT
    assert "belongs to one with another seed (1, not 2)" in capsys.readouterr().err
    assert main(["wikihop", "evaluate", "--out", str(out), "--seed", "3"]) == BAD_INPUT
    assert "--seed: not with evaluate and predict" in capsys.readouterr().err
    assert main(["triviaqa", "evaluate", "--out", str(out)]) == BAD_INPUT
    assert "a run of triviaqa wanted" in capsys.readouterr().err


def test_the_ablations_of_wikihop_are_saved_and_loaded(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = f"wikihop --out {out} --trial --updates 2 --no_projections --no_globals"
    assert main(words.split()) == 0  # and evaluated
    weights = load_file(out / "model" / "model.safetensors")
    own = [name for name in weights if "_global." in name]
    assert len(own) == 2 * 3 * 2  # layers, projections, weight and bias
    assert all(torch.equal(weights[name], weights[name.replace("_global.", ".")]) for name in own)


def test_a_loss_that_is_not_finite_stops_with_its_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    from lf_huggingface.recipes.models.heads import CandidateScorer

    stock = CandidateScorer.forward

    @functools.wraps(stock)
    def broken(self: Any, **batch: Any) -> Any:
        found = stock(self, **batch)
        if self.training:
            found.loss = found.loss * float("nan")
        return found

    monkeypatch.setattr(CandidateScorer, "forward", broken)
    assert _run("wikihop", tmp_path / "run") == BAD_INPUT
    assert "loss: a finite number wanted in update 1, got nan" in capsys.readouterr().err
    assert "input_ids" in torch.load(tmp_path / "run" / NON_FINITE)


def test_a_step_takes_the_memory_of_the_bare_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stock, peaks = RecipeTrainer.training_step, list[tuple[int, int]]()

    def measured(self: Any, model: Any, inputs: dict[str, Any], *rest: Any, **more: Any) -> Any:
        batch, losses = {name: x for name, x in inputs.items() if name != "index"}, list[Any]()
        model.train().zero_grad()
        bare = peak_bytes(lambda: model(**batch).loss.backward())
        model.zero_grad()
        peaks.append((bare, peak_bytes(lambda: losses.append(stock(self, model, inputs, *rest, **more)))))
        return losses[0]

    monkeypatch.setattr(RecipeTrainer, "training_step", measured)
    assert main(f"wikihop --trial --out {tmp_path / 'run'} --batch 4 --updates 2".split()) == 0
    assert len(peaks) == 2 and all(recipe <= 1.02 * bare for bare, recipe in peaks), peaks


BAD = [
    ("poetry", "TASK: one of mlm, wikihop"),
    ("wikihop teach", "the action after wikihop: one of train, evaluate, predict wanted, got teach"),
    ("wikihop --out OUT", "--model, --data: both wanted"),
    ("wikihop --model OUT --data OUT --out OUT", "a folder with config.json wanted"),
    ("wikihop --trial --batch 0", "--batch: at least 1 wanted, got 0"),
    ("wikihop --trial --out OUT --batch 6", "--batch: a multiple of 1 devices x --device-batch 4"),
    ("wikihop --trial --out OUT --trainer nonsense=1", "NAME=VALUE of transformers'"),
    ("wikihop --trial --out OUT --trainer learning_rate=1", "that the recipe does not set itself wanted"),
    (
        "wikihop --trial --out OUT --trainer fsdp=true",
        "fsdp: several processes on accelerators wanted, got NO",
    ),
    ("wikihop --trial --out OUT --context_parallel 2", "torchrun --nproc-per-node 2"),
    ("wikihop --trial --out OUT --context_parallel 2 --unpad", "--unpad: not given wanted"),
    ("wikihop --trial --out OUT --max_length 32", "max_length >= 64 (the model's own) wanted, got 32"),
    ("wikihop --trial --out OUT --long refuse --max_length 128", "at most --max-length 128 tokens wanted"),
    ("mlm predict --trial --out OUT", "predict: a task that predicts wanted"),
    ("mlm --trial --out OUT --no_pack", "--no-pack: with --apart alone"),
    ("classify --trial --out OUT --labels a b", "--labels: none wanted"),
    ("wikihop evaluate --out OUT", "--out: the folder of a trained run wanted"),
]


@pytest.mark.parametrize(("words", "message"), BAD)
def test_bad_input_is_said_in_a_line(words: str, message: str, tmp_path: Path, capsys: Any) -> None:
    assert main(words.replace("OUT", str(tmp_path / "run")).split()) == BAD_INPUT
    assert message in " ".join(capsys.readouterr().err.split())


COMMAND = re.compile(r"^python -m lf_huggingface\.recipes ([^#\n]+)", re.MULTILINE)
PAGES = sorted((Path(__file__).parents[3] / "docs").glob("task-*.md"))


def test_every_task_has_a_page() -> None:
    assert [page.stem for page in PAGES] == sorted(f"task-{name}" for name in recipes.TASKS)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_parse(page: Path) -> None:
    found = COMMAND.findall(page.read_text("utf8"))
    assert found
    for command in found:
        task, *words = command.split()
        assert task == page.stem.removeprefix("task-")
        words = words[1:] if words[0] in ACTIONS else words
        [given] = transformers.HfArgumentParser(recipes.TASKS[task].kind).parse_args_into_dataclasses(words)
        settled(given, recipes.TASKS[task].sizes)


def test_unpadded_training_is_the_padded_one(tmp_path: Path) -> None:
    """A training without padding begins as the padded one does; dropout draws other numbers."""
    losses = []
    for name, words in (("padded", []), ("unpadded", ["--unpad"])):
        out = tmp_path / name
        assert _run("triviaqa", out, *words) == 0
        losses.append(torch.tensor(_losses(out)))
    assert losses[0].isfinite().all() and losses[1].isfinite().all()
    torch.testing.assert_close(losses[0][:1], losses[1][:1], rtol=0.1, atol=0.0)


def test_documents_apart_train_packed_as_they_do_padded(tmp_path: Path, capsys: Any) -> None:
    """Packed rows are other batches of the same documents; what is evaluated is the same."""
    assert _run("mlm", tmp_path / "long") == 0
    home, short = tmp_path / "long-trial", tmp_path / "short"
    config = transformers.AutoConfig.from_pretrained(home / "model")
    config.update({"lf_attention": "window(16, 16)", "max_position_embeddings": 130})
    transformers.RobertaForMaskedLM(config).save_pretrained(short)
    transformers.AutoTokenizer.from_pretrained(home / "model").save_pretrained(short)
    words = f"mlm --model {short} --data {home / 'data'} --apart --max_length 128 --batch 4 --device_batch 2"
    words += " --updates 3 --warmup 1 --learning_rate 1e-12 --limit 9"
    bits = []
    for name, more in (("packed", ""), ("padded", "--no_pack")):
        out = tmp_path / name
        assert main(f"{words} --out {out} {more}".split()) == 0
        assert main(f"mlm evaluate --out {out}".split()) == 0
        found = json.loads((out / "evaluation.json").read_text())
        assert found == {k: json.loads((out / "metrics.json").read_text())[k] for k in ("bits", "tokens")}
        bits.append(found["bits"])
    assert bits[0] == pytest.approx(bits[1], rel=0.02)  # other tokens are masked
    capsys.readouterr()
    packs = f"mlm evaluate --out {tmp_path / 'packed'} --context_parallel 2"
    assert main(packs.split()) == BAD_INPUT
    assert "--context-parallel: 1 wanted with packed rows, got 2" in capsys.readouterr().err


@pytest.mark.parametrize("how", ["--device_batch", "--context_parallel"])
def test_two_processes_train_and_evaluate_as_one(how: str, tmp_path: Path) -> None:
    """The same updates on the same examples: losses and metrics of one process, up to dropout."""
    out, environment = tmp_path / "two", {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    words = ["--trial", "--out", str(out), "--updates", "3"]
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "lf_huggingface.recipes", "wikihop", *words, how, "2"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert main(["wikihop", *words, "--out", str(tmp_path / "one")]) == 0
    two, one = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("two", "one"))
    assert two["updates"] == one["updates"] == 3
    predictions = json.loads((out / "predictions.json").read_text())
    assert len(predictions) == len(json.loads((tmp_path / "two-trial" / "data" / "dev.json").read_text()))
    assert len((out / run_folder.COMMANDS).read_text().splitlines()) == 1
    assert abs(_losses(out)[0] - _losses(tmp_path / "one")[0]) < 0.2


HOW = {
    "bf16": (["--bf16"], {"fsdp2": False, "sharded": False, "computes": "torch.bfloat16"}, 2e-2),
    "fsdp": (["--trainer", "fsdp=true"], {"fsdp2": True, "sharded": True, "computes": "torch.float32"}, 1e-4),
}


@pytest.mark.parametrize("how", HOW)
def test_two_processes_in_bfloat16_or_sharded_train_as_one(how: str, tmp_path: Path) -> None:
    """Options of Trainer arrive there, and losses are those of one process up to rounding: no dropout."""
    more, wanted, tolerance = HOW[how]
    recipes.TASKS["classify"].trial_data(tmp_path / "data", 1)
    trial_model.make(tmp_path / "model", tmp_path / "data", decoder=False)
    config = transformers.AutoConfig.from_pretrained(tmp_path / "model")
    config.update({"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    config.save_pretrained(tmp_path / "model")
    words = f"classify --model {tmp_path / 'model'} --data {tmp_path / 'data'} --format hyperpartisan"
    words += " --max_length 128 --attention_window 32 --batch 8 --updates 3 --warmup 1 --learning_rate 1e-3"
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    two = [*words.split(), "--device_batch", "2", *more]
    done = subprocess.run(
        [*torchrun, "-m", "tests.huggingface.recipes.ranks", str(tmp_path / "two"), *two],
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads((tmp_path / "two" / "seen.json").read_text())
    assert seen == {**wanted, "processes": 2, "kept": "torch.float32"}
    assert main([*words.split(), "--device_batch", "4", "--out", str(tmp_path / "one")]) == 0
    one, found = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(one) == 3 and found == pytest.approx(one, rel=tolerance)
    assert (tmp_path / "two" / "model" / "model.safetensors").exists()
