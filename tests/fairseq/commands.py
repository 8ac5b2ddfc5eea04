"""fairseq's command-line tools in this process, on data made here."""

import logging
import random
import shlex
import sys
import warnings
from contextlib import contextmanager
from pathlib import Path

from fairseq.models import distributed_fairseq_model
from fairseq_cli import eval_lm, generate, interactive, preprocess, train, validate

import lf_fairseq

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "\nThe version_base parameter is not specified", UserWarning)
    from fairseq_cli import hydra_train

USER_DIR = Path(lf_fairseq.__file__).parent
TOOLS = {
    "preprocess": preprocess.cli_main,
    "train": train.cli_main,
    "eval-lm": eval_lm.cli_main,
    "generate": generate.cli_main,
    "interactive": interactive.cli_main,
    "validate": validate.cli_main,
    "hydra-train": hydra_train.cli_main,
}
words = shlex.split
TINY = words(
    "--optimizer adam --lr 0.003 --max-tokens 256 --cpu --no-progress-bar --num-workers 0 --seed 1 "
    "--no-epoch-checkpoints"
)


def sizes(*sides):
    return [
        text
        for side in sides
        for name, size in (("layers", 2), ("embed-dim", 32), ("ffn-embed-dim", 32), ("attention-heads", 4))
        for text in (f"--{side}-{name}", str(size))
    ]


def run(tool, *arguments):
    """What the tool logged, one message a line. Warnings of fairseq, hydra and torch are theirs."""
    lines, handle = [], logging.Logger.handle

    def listen(logger, record):
        lines.append(record.getMessage())
        handle(logger, record)

    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.INFO)
    logging.Logger.handle = listen  # no handler of the root logger, which fairseq-validate may remove
    try:
        with _argv(f"fairseq-{tool}", *map(str, arguments)), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.filterwarnings("error", module="lf_")
            TOOLS[tool]()
    finally:
        logging.Logger.handle = handle
        root.setLevel(level)
    return "\n".join(lines)


def train_on_cpus(arguments):
    """One process of distributed training on CPUs.

    fairseq hands device 0 to torch's DistributedDataParallel, which takes none for a model on a CPU.
    """
    ddp = distributed_fairseq_model.DistributedDataParallel
    distributed_fairseq_model.DistributedDataParallel = lambda *args, device_ids, output_device, **kwargs: (
        ddp(*args, **kwargs)
    )
    run("train", *arguments)


@contextmanager
def _argv(*words):
    before, sys.argv = sys.argv, list(words)
    try:
        yield
    finally:
        sys.argv = before


def texts(folder, languages=("",), lines=(120, 40)):
    """Random words of letters, in train and valid files; a second language is the first one reversed."""
    draw = random.Random(0)
    for split, count in zip(("train", "valid"), lines, strict=True):
        rows = [[draw.choice("abcdefgh") for _ in range(draw.randint(4, 24))] for _ in range(count)]
        for place, language in enumerate(languages):
            text = "\n".join(" ".join(row[:: 1 - 2 * place]) for row in rows) + "\n"
            (folder / f"{split}{language}").write_text(text)


def binarised(folder, *languages):
    """The folder with data for fairseq."""
    texts(folder, [f".{language}" for language in languages] or [""])
    common = ["--trainpref", folder / "train", "--validpref", folder / "valid", "--workers", "1"]
    target = (
        ["--source-lang", "a", "--target-lang", "b", "--joined-dictionary"]
        if languages
        else ["--only-source"]
    )
    run("preprocess", *common, *target, "--destdir", folder / "bin")
    return folder / "bin"
